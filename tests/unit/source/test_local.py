"""A repository on this machine, read in place for the command line."""

import shutil
from pathlib import Path

import pytest

from gitsync.errors import Invalid
from gitsync.source import GitSource
from tests.unit.source.conftest import Repository


async def test_a_working_tree_and_a_bare_repository_are_read_as_committed(
    source: GitSource, work: Repository, tmp_path: Path
) -> None:
    work.write("a", "1\n")
    first = work.commit("one")
    work.write("a", "2\n")
    second = work.commit("two")
    work.write("a", "not committed\n")
    work.git("tag", "--annotate", "--message", "x", "v1", first)
    work.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    for path in (work.path, tmp_path / "bare.git"):
        revision = await source.local(path)
        assert str(revision) == f"main@sha1:{second}"
        assert revision.repository == str(path)
        snapshot = await source.snapshot(revision)
        assert await snapshot.read(snapshot.entries()) == {"a": b"2\n"}
        for name, expected in {"HEAD~1": first, "v1": first, "main": second, first: first, second[:8]: second}.items():
            assert (await source.local(path, name)).sha == expected
        assert str(await source.local(path, second[:8])) == f"sha1:{second}"
        assert await source.changed(str(path), first, second) == ("a",)
        assert await source.relation(str(path), first, second) == "ahead"
    assert (await source.open(str(work.path), "v1")).ref == "v1"


async def test_a_linked_worktree_is_read(source: GitSource, work: Repository, tmp_path: Path) -> None:
    work.write("a")
    work.commit()
    work.git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "side"))
    side = Repository(tmp_path / "side")
    side.write("b")
    head = side.commit()
    revision = await source.local(side.path)
    assert str(revision) == f"side@sha1:{head}"
    assert [entry.path for entry in (await source.snapshot(revision)).entries()] == ["a", "b"]


async def test_a_detached_head_is_its_commit(source: GitSource, work: Repository) -> None:
    head = work.commit()
    work.git("checkout", "--quiet", "--detach")
    assert str(await source.local(work.path)) == f"sha1:{head}"


async def test_what_is_not_there_is_named(source: GitSource, work: Repository, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="HEAD names no commit"):
        await source.local(work.path)
    work.write("folder/x")
    work.commit()
    with pytest.raises(Invalid, match="nowhere names no commit"):
        await source.local(work.path, "nowhere")
    (tmp_path / "plain").mkdir()
    for path in (tmp_path / "plain", tmp_path / "missing", work.path / "folder"):
        with pytest.raises(Invalid, match="there is no git repository"):
            await source.local(path)


async def test_a_damaged_repository_of_the_users_is_never_removed(source: GitSource, work: Repository) -> None:
    work.write("a")
    work.commit()
    revision = await source.local(work.path)
    snapshot = await source.snapshot(revision)
    blob = work.git("rev-parse", "HEAD:a")
    (work.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(Invalid, match="git fsck"):
        await snapshot.read(snapshot.entries())
    assert (work.path / ".git/HEAD").exists()
    shutil.rmtree(work.path / ".git/objects")
    (work.path / ".git/objects").mkdir()
    with pytest.raises(Invalid, match="git fsck"):
        await source.snapshot(revision)
    await source.collect_garbage(keep=[])
    assert (work.path / ".git/HEAD").exists()


async def test_the_configuration_of_a_foreign_repository_runs_nothing(
    source: GitSource, work: Repository, tmp_path: Path
) -> None:
    """A partial clone asks its remote for what is missing, through whatever its configuration names."""
    marker = tmp_path / "ran"
    work.write("a")
    work.commit()
    work.git("config", "core.repositoryFormatVersion", "1")
    work.git("config", "extensions.partialClone", "evil")
    work.git("config", "remote.evil.promisor", "true")
    work.git("config", "remote.evil.url", f"ext::touch {marker}")
    work.git("config", "protocol.ext.allow", "always")
    work.git("config", "core.fsmonitor", f"touch {marker}")
    work.git("config", "core.pager", f"touch {marker}")
    revision = await source.local(work.path)
    snapshot = await source.snapshot(revision)
    blob = work.git("rev-parse", "HEAD:a")
    (work.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(Invalid):
        await snapshot.read(snapshot.entries())
    assert not marker.exists()
