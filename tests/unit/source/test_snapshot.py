"""Reading one commit without a checkout: contents, exports, and what is refused by name."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gitsync.errors import Invalid, Transient
from gitsync.model import FileMode, Snapshot
from gitsync.source import GitPolicy, GitSnapshot, GitSource, git, process
from tests.unit.source.conftest import Repository

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


async def snap(
    repository: Repository, tmp_path: Path, policy: GitPolicy | None = None, commit: str = "HEAD"
) -> GitSnapshot:
    source = GitSource(tmp_path / "cache", policy)
    return await source.snapshot(await source.local(repository.path, commit))


def destination(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


async def test_leaves_are_listed_by_directory_with_mode_id_and_size(work: Repository, tmp_path: Path) -> None:
    work.write("a.txt", "a\n")
    work.write("web/run", "#!\n")
    (work.path / "web/run").chmod(0o755)
    (work.path / "web/link").symlink_to("run")
    work.write("web-api/x", "xx\n")
    work.commit()
    snapshot = await snap(work, tmp_path)
    shown = [(entry.path, entry.mode, entry.size) for entry in snapshot.entries()]
    assert shown == [
        ("a.txt", FileMode.FILE, 2),
        ("web-api/x", FileMode.FILE, 3),
        ("web/link", FileMode.SYMLINK, 3),
        ("web/run", FileMode.EXECUTABLE, 3),
    ]
    assert [entry.path for entry in snapshot.entries("./web/")] == ["web/link", "web/run"]
    assert list(snapshot.entries("../work")) == list(snapshot.entries("nowhere")) == []
    run = snapshot.entry("web/./run")
    assert run is not None
    assert run.id == work.git("rev-parse", "HEAD:web/run")
    assert snapshot.tree_id("web") == work.git("rev-parse", "HEAD:web")
    assert snapshot.tree_id(".") == work.git("rev-parse", "HEAD^{tree}")
    assert snapshot.tree_id("web/run") is None
    assert snapshot.identity("web/run") == f"100755 {run.id}"
    assert snapshot.identity("nowhere") is None
    _protocol: Snapshot = snapshot


async def test_a_tree_is_listed_once_whoever_asks(
    work: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monorepo's commit concerns every Application that follows it."""
    started: list[str] = []

    async def run(arguments: Sequence[str], **options: Any) -> process.Result:
        started.append(arguments[0])
        return await start(arguments, **options)

    start = process.run
    monkeypatch.setattr(process, "run", run)
    monkeypatch.setattr(git, "_LISTED", 4)
    source = GitSource(tmp_path / "cache")

    async def listed(commit: str) -> int:
        started.clear()
        await source.snapshot(await source.local(work.path, commit))
        return started.count("ls-tree")

    for name in ("one", "two", "three"):
        work.write(name)
        work.commit()
    work.commit("the same tree")
    assert [await listed(f"HEAD~{back}") for back in (3, 3, 2, 3)] == [1, 0, 1, 0]  # one and two paths
    assert [await listed(f"HEAD~{back}") for back in (1, 0, 1, 3, 2)] == [1, 0, 0, 0, 1]  # three, and no more than four


async def test_contents_are_read_by_id(work: Repository, tmp_path: Path) -> None:
    contents = {"a": b"", "b": b"\0\r\n\xff", "c/d": b"x" * 300_000, "same": b"\0\r\n\xff", "line\nbreak": b"y\n"}
    for path, content in contents.items():
        work.write(path, content)
    (work.path / "link").symlink_to("c/d")
    work.commit()
    snapshot = await snap(work, tmp_path)
    assert await snapshot.read(snapshot.entries()) == {**contents, "link": b"c/d"}
    assert await snapshot.read([]) == {}


async def test_reading_more_than_the_limit_names_the_largest(work: Repository, tmp_path: Path) -> None:
    work.write("small", "x")
    work.write("large", "x" * 2000)
    work.commit()
    snapshot = await snap(work, tmp_path)
    assert len(await snapshot.read(snapshot.entries(), limit=2001)) == 2
    with pytest.raises(Invalid, match=r"work@[0-9a-f]{7} large.*2,001 bytes exceed 2,000 bytes"):
        await snapshot.read(snapshot.entries(), limit=2000)


async def test_one_huge_blob_is_refused_by_name_wherever_it_is_used(work: Repository, tmp_path: Path) -> None:
    work.write("data/huge", b"\0" * (3 << 20))
    work.write("fine", "x")
    work.commit()
    snapshot = await snap(work, tmp_path, GitPolicy(max_blob=1 << 20))
    with pytest.raises(Invalid, match=r"data/huge has 3\.0 MiB, more than 1\.0 MiB"):
        await snapshot.read(snapshot.entries())
    with pytest.raises(Invalid, match="data/huge has"):
        await snapshot.export("data", str(destination(tmp_path)))
    assert await snapshot.read([entry for entry in snapshot.entries() if entry.path == "fine"]) == {"fine": b"x"}


@pytest.mark.parametrize("limit", [3, 4])
async def test_too_many_files_are_refused(work: Repository, tmp_path: Path, limit: int) -> None:
    for n in range(4):
        work.write(f"d{n}/x")
    work.commit()
    if limit == 4:
        assert len(list((await snap(work, tmp_path, GitPolicy(max_files=limit))).entries())) == 4
    else:
        with pytest.raises(Invalid, match="more than 3 files"):
            await snap(work, tmp_path, GitPolicy(max_files=limit))


async def test_a_tree_that_multiplies_is_refused_while_it_is_read(work: Repository, tmp_path: Path) -> None:
    level = work.git("mktree", stdin=f"100644 blob {work.blob(b'x')}\tx\n".encode())
    for _ in range(9):  # ten to the ninth files in ten objects
        level = work.git("mktree", stdin="".join(f"040000 tree {level}\td{n}\n" for n in range(10)).encode())
    commit = work.git("commit-tree", "-m", "bomb", level)
    with pytest.raises(Invalid, match="more than 200,000 files"):
        await snap(work, tmp_path, commit=commit)


@pytest.mark.parametrize("name", [b"..", b".git", b"."])
async def test_a_crafted_tree_is_refused_with_its_place(work: Repository, tmp_path: Path, name: bytes) -> None:
    commit = work.tree(("100644", "blob", work.blob(b"x"), name))
    with pytest.raises(Invalid, match=r"work@[0-9a-f]{7}\): .* is a name that git forbids"):
        await snap(work, tmp_path, commit=commit)


# ---------------------------------------------------------------- plain files only


async def test_links_and_submodules_on_a_used_path_are_refused_by_name(work: Repository, tmp_path: Path) -> None:
    work.write("real/a.yaml")
    work.write("deploy/ok.yaml")
    (work.path / "manifests").symlink_to("real")
    (work.path / "deploy/etc").symlink_to("/etc/passwd")
    (work.path / "deploy/git").symlink_to("../.git/config")
    head = work.commit()
    work.git("update-index", "--add", "--cacheinfo", f"160000,{head},vendor/lib")
    work.git("commit", "--quiet", "--message", "submodule")
    snapshot = await snap(work, tmp_path)
    assert [entry.path for entry in snapshot.regular_files("real")] == ["real/a.yaml"]
    assert [entry.path for entry in snapshot.regular_files("real/a.yaml")] == ["real/a.yaml"]
    for under, text in {
        "manifests": "manifests is a symbolic link",
        "manifests/sub": "manifests is a symbolic link",
        "deploy": "deploy/etc is a symbolic link; deploy/git is a symbolic link",
        "vendor": "vendor/lib is a submodule",
        "vendor/lib/deploy": "vendor/lib is a submodule",
    }.items():
        with pytest.raises(Invalid, match=text) as caught:
            snapshot.regular_files(under)
        assert caught.value.origin is not None
        assert caught.value.origin.repository == str(work.path)


@pytest.mark.parametrize(
    ("name", "shown"), [(b"a\nb.yaml", r"a\\nb\.yaml"), (b"\xff.yaml", r"\\xff\.yaml"), (b"\x1b[2J", r"\\x1b")]
)
async def test_a_name_that_cannot_be_printed_is_refused_on_a_used_path(
    work: Repository, tmp_path: Path, name: bytes, shown: str
) -> None:
    commit = work.tree(("100644", "blob", work.blob(b"x"), name))
    snapshot = await snap(work, tmp_path, commit=commit)
    with pytest.raises(Invalid, match=f"{shown}.* is a name with control characters or invalid UTF-8") as caught:
        snapshot.regular_files()
    str(caught.value).encode()  # can be logged


async def test_a_leading_dash_is_only_a_name(work: Repository, tmp_path: Path) -> None:
    work.write("-rf/--help", "x\n")
    work.git("add", "--", "-rf")
    work.commit()
    snapshot = await snap(work, tmp_path)
    assert await snapshot.read(snapshot.regular_files("-rf")) == {"-rf/--help": b"x\n"}
    out = destination(tmp_path)
    await snapshot.export("-rf", str(out))
    assert (out / "--help").read_text() == "x\n"


async def test_an_lfs_pointer_is_refused_by_name(work: Repository, tmp_path: Path) -> None:
    work.write("web/logo.png", POINTER)
    work.commit()
    snapshot = await snap(work, tmp_path)
    with pytest.raises(Invalid, match=r"web/logo\.png is a Git LFS pointer"):
        await snapshot.read(snapshot.entries())
    with pytest.raises(Invalid, match=r"web/logo\.png is a Git LFS pointer"):
        await snapshot.export("web", str(destination(tmp_path)))


# ---------------------------------------------------------------- export


@pytest.fixture(params=[0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
async def test_a_directory_is_written_as_git_has_it(work: Repository, tmp_path: Path) -> None:
    work.write("outside")
    work.write("web/a/b/c.txt", b"\0\xff\n")  # a checkout would end its line in CR LF
    work.write("web/run", "#!\n")
    work.write("web/large", os.urandom(9 << 20))
    work.write("web/caf\u00e9 \n.txt", "n")
    work.write(".gitattributes", "web/run export-ignore\n*.txt text eol=crlf\n")
    (work.path / "web/run").chmod(0o755)
    (work.path / "web/up").symlink_to("a/b")
    (work.path / "web/a/back").symlink_to("../run")
    work.commit()
    out = destination(tmp_path)
    snapshot = await snap(work, tmp_path)
    await snapshot.export("web", str(out))
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}
    assert sorted(found) == ["a/b/c.txt", "a/back", "caf\u00e9 \n.txt", "large", "run", "up"]
    assert (out / "a/b/c.txt").read_bytes() == b"\0\xff\n"
    assert (out / "large").read_bytes() == (work.path / "web/large").read_bytes()
    assert os.readlink(out / "up") == "a/b"
    assert os.readlink(out / "a/back") == "../run"
    modes = {path: stat.S_IMODE((out / path).stat().st_mode) for path in ("a", "a/b", "a/b/c.txt", "run", "large")}
    assert modes == {"a": 0o755, "a/b": 0o755, "a/b/c.txt": 0o644, "run": 0o755, "large": 0o644}


async def test_the_root_can_be_exported(work: Repository, tmp_path: Path) -> None:
    work.write("a/b")
    work.commit()
    out = destination(tmp_path)
    await (await snap(work, tmp_path)).export(".", str(out))
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*"))] == ["a", "a/b"]


async def test_bytes_in_names_are_kept(work: Repository, tmp_path: Path) -> None:
    commit = work.tree(("100644", "blob", work.blob(b"x"), b"\xff\xfe"))
    out = destination(tmp_path)
    await (await snap(work, tmp_path, commit=commit)).export("", str(out))
    assert os.listdir(os.fsencode(out)) == [b"\xff\xfe"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("/etc/passwd", "absolute path"),
        ("../secret", "out of its directory"),
        ("sub/../../secret", "out of its directory"),
        ("leaves", "in a loop"),
    ],
)
async def test_a_link_that_leaves_the_context_is_refused_before_anything_is_written(
    work: Repository, tmp_path: Path, target: str, text: str
) -> None:
    work.write("secret")
    work.write("web/sub/x")
    (work.path / "web/leaves").symlink_to(target)
    work.commit()
    out = destination(tmp_path)
    with pytest.raises(Invalid, match=rf"web/leaves is a symbolic link that leads .*{text}"):
        await (await snap(work, tmp_path)).export("web", str(out))
    assert list(out.iterdir()) == []


async def test_a_submodule_in_a_context_is_refused_by_name(work: Repository, tmp_path: Path) -> None:
    head = work.commit()
    work.git("update-index", "--add", "--cacheinfo", f"160000,{head},web/lib")
    work.git("commit", "--quiet", "--message", "submodule")
    with pytest.raises(Invalid, match="web/lib is a submodule"):
        await (await snap(work, tmp_path)).export("web", str(destination(tmp_path)))


async def test_a_context_is_bounded_and_must_exist(work: Repository, tmp_path: Path) -> None:
    work.write("web/a", "x" * 600)
    work.write("web/b", "x" * 600)
    work.commit()
    snapshot = await snap(work, tmp_path, GitPolicy(max_export=1000))
    with pytest.raises(Invalid, match="1,200 bytes, more than 1,000 bytes"):
        await snapshot.export("web", str(destination(tmp_path)))
    for under in ("nowhere", "web/a", "../web"):
        with pytest.raises(Invalid, match="there is no such directory"):
            await snapshot.export(under, str(tmp_path / "out"))


async def test_export_writes_into_an_empty_directory_only(work: Repository, tmp_path: Path) -> None:
    work.write("a")
    work.commit()
    out = destination(tmp_path)
    (out / "there").touch()
    with pytest.raises(ValueError, match="not empty"):
        await (await snap(work, tmp_path)).export("", str(out))
    with pytest.raises(Transient, match="cannot be written"):
        await (await snap(work, tmp_path)).export("", str(tmp_path / "missing"))


async def test_nothing_is_written_through_a_link_of_a_crafted_tree(work: Repository, tmp_path: Path) -> None:
    """The same name as a link and as a directory: a naive writer follows the first with the second."""
    inner = work.git("mktree", stdin=f"100644 blob {work.blob(b'x')}\tx\n".encode())
    commit = work.tree(("120000", "blob", work.blob(b"sub"), b"a"), ("40000", "tree", inner, b"a"))
    with pytest.raises(Invalid, match="a is there twice"):
        await snap(work, tmp_path, commit=commit)
