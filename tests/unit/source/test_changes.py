"""Which paths changed, and which contexts a change touches: checked against git itself."""

import random
from pathlib import Path

from gitsync.source import GitSnapshot, GitSource
from gitsync.source.changes import by_context, changed_paths, touched
from tests.unit.source.conftest import Repository


async def pair(source: GitSource, repository: Repository, old: str, new: str) -> tuple[GitSnapshot, GitSnapshot]:
    return (
        await source.snapshot(await source.local(repository.path, old)),
        await source.snapshot(await source.local(repository.path, new)),
    )


async def test_mode_content_existence_and_kind_all_touch(source: GitSource, work: Repository) -> None:
    for name in ("mode", "content", "gone", "kind", "moved", "same"):
        work.write(f"{name}/x", f"{name}\n")
    old = work.commit()
    (work.path / "mode/x").chmod(0o755)
    work.write("content/x", "other\n")
    (work.path / "gone/x").unlink()
    (work.path / "kind/x").unlink()
    (work.path / "kind/x").symlink_to("../same/x")
    (work.path / "moved/x").rename(work.path / "moved/y")
    work.write("new/x")
    new = work.commit()
    before, after = await pair(source, work, old, new)
    contexts = ["mode", "content", "gone", "kind", "moved", "new", "same", "nowhere", "", "same/x", "mode/x"]
    assert touched(before.identity, after.identity, contexts) == (
        "mode", "content", "gone", "kind", "moved", "new", "", "mode/x",
    )  # fmt: skip
    paths = changed_paths(before, after)
    assert paths == ("content/x", "gone/x", "kind/x", "mode/x", "moved/x", "moved/y", "new/x")
    assert paths == await source.changed(str(work.path), old, new)
    assert changed_paths(before, after, "moved") == ("moved/x", "moved/y")


def test_a_path_belongs_to_every_context_around_it() -> None:
    paths = ["README.md", "web/Dockerfile", "web/src/a.js", "web-api/b.js", "lib/c.js"]
    assert by_context(paths, ["web", "web/src", "web-api", "lib/c.js", "api", ""]) == {
        "web": ("web/Dockerfile", "web/src/a.js"),
        "web/src": ("web/src/a.js",),
        "web-api": ("web-api/b.js",),
        "lib/c.js": ("lib/c.js",),
        "": tuple(paths),
    }


async def test_no_change_is_missed_and_none_invented(source: GitSource, work: Repository, tmp_path: Path) -> None:
    """Random commits; the contexts that git's own list of changed paths touches are the truth."""
    chance = random.Random(5)
    folders = ["", "a", "a/b", "a/b/c", "ab", "a.d", "z", "z/a", "\u00fc"]
    commits: list[str] = []
    for _ in range(12):
        for _ in range(chance.randint(1, 4)):
            file = work.path / chance.choice(folders) / f"f{chance.randint(0, 2)}"
            if file.exists() and chance.random() < 0.4:
                file.unlink()
            else:
                work.write(str(file.relative_to(work.path)), f"{chance.randint(0, 2)}\n")
                file.chmod(chance.choice([0o644, 0o755]))
        commits.append(work.commit())
    contexts = [*folders, "a/f1", "nowhere"]
    compared = 0
    for old in commits[::3]:
        for new in commits[1::2]:
            before, after = await pair(source, work, old, new)
            truth = await source.changed(str(work.path), old, new)
            assert changed_paths(before, after) == truth
            assert set(touched(before.identity, after.identity, contexts)) == set(by_context(truth, contexts))
            compared += len(truth)
    assert compared > 50
