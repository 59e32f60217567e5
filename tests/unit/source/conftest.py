"""A real git host on loopback, repositories to push to it, and a source that may speak plain http."""

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gitsync.source import GitCredentials, GitPolicy, GitSource
from tests.cluster.githost import GitHost

LOGIN = GitCredentials(username="git", password="push-please")


@dataclass(frozen=True, slots=True)
class Repository:
    """A working tree; ``git`` runs there with nothing of the machine's own configuration."""

    path: Path

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        env |= {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "Ada",
            "GIT_AUTHOR_EMAIL": "ada@example.test",
            "GIT_COMMITTER_NAME": "Ada",
            "GIT_COMMITTER_EMAIL": "ada@example.test",
        }
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, env=env, input=stdin, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode("utf-8", "surrogateescape").strip()

    def write(self, path: str, content: str | bytes = "x\n") -> None:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, message: str = "change") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def tree(self, *rows: tuple[str, str, str, bytes]) -> str:
        """Commit a tree with any names, also those that git refuses: (mode, type, id, raw name)."""
        raw = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(id_) for mode, _, id_, name in rows)
        tree = self.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", stdin=raw)
        return self.git("commit-tree", "-m", "crafted", tree)

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)


def make_repository(path: Path) -> Repository:
    path.mkdir(parents=True)
    repository = Repository(path)
    repository.git("init", "--quiet", "--initial-branch=main")
    return repository


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def work(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "work")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    root = tmp_path / "host"
    root.mkdir()
    with GitHost(root, address="127.0.0.1", port=free_port()) as running:
        yield running


@pytest.fixture
def policy() -> GitPolicy:
    return GitPolicy(allow_insecure_transports=True, fetch_timeout=30, poll_timeout=30, low_speed_seconds=4)


@pytest.fixture
def source(tmp_path: Path, policy: GitPolicy) -> GitSource:
    return GitSource(tmp_path / "cache", policy)


@dataclass(frozen=True, slots=True)
class Shop:
    """A repository on the host with one commit on main."""

    work: Repository
    bare: Path
    url: str
    first: str

    def push(self, *refs: str) -> None:
        self.work.git("push", "--quiet", "--force", str(self.bare), *(refs or ("main",)))


@pytest.fixture
def shop(host: GitHost, work: Repository) -> Shop:
    bare = host.create("team/shop")
    work.write("manifests/web.yaml", "kind: Deployment\n")
    work.write("web/Dockerfile", "FROM scratch\n")
    shop = Shop(work, bare, host.url("team/shop"), work.commit("first: one module"))
    shop.push()
    return shop
