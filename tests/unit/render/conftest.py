"""Commits of real git repositories to render from."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gitsync.model import Snapshot
from gitsync.source import GitSource
from tests.unit.source.conftest import Repository, make_repository

Files = dict[str, str | bytes]
Commit = Callable[[Files], Awaitable[Snapshot]]


@pytest.fixture
def work(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "work")


@pytest.fixture
def commit(work: Repository, tmp_path: Path) -> Commit:
    """Write files into the repository, commit everything in it, and open that commit."""

    async def make(files: Files) -> Snapshot:
        for path, content in files.items():
            work.write(path, content)
        work.commit()
        source = GitSource(tmp_path / "cache")
        return await source.snapshot(await source.local(work.path))

    return make


@pytest.fixture
def only_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH on which no renderer is found, while commits can still be read."""
    git = shutil.which("git")
    assert git is not None
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def config_map(name: str = "settings", **metadata: str) -> str:
    extra = "".join(f"  {key}: {value}\n" for key, value in metadata.items())
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n{extra}"
