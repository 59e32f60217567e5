"""What the tests of images share: repositories, a registry with a base image, and images to ensure in it."""

import contextlib
import os
import subprocess
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gitsync.images import Destination, ImageBuilder, Images, RegistryCredentials, process
from gitsync.images.buildah import Buildah
from gitsync.model import ImageSet, ImageSpec, Snapshot
from gitsync.source import GitSource
from tests.registry import TestRegistry

HELLO = ImageSpec(name="kubetm/hello", context="hello", dockerfile="hello/Dockerfile")


@dataclass
class Repository:
    """A git repository of the test's own."""

    path: Path

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / ".git").exists():
            self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        env = os.environ | {
            "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        }  # fmt: skip
        return subprocess.run(
            ["git", "-C", str(self.path), *words], check=True, capture_output=True, text=True, env=env
        ).stdout

    async def commit(self, files: Mapping[str, str | bytes | None]) -> Snapshot:
        """Writes (None: deletes) files, commits, and returns the commit as a snapshot."""
        for name, content in files.items():
            file = self.path / name
            if content is None:
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a change")
        return await self.snapshot()

    async def snapshot(self, revision: str = "HEAD") -> Snapshot:
        source = GitSource(self.path.parent / "cache")
        return await source.snapshot(await source.local(self.path, revision))


@dataclass
class Bench:
    """A registry with ``base:1`` in it, and an ``Images`` that builds into it."""

    registry: TestRegistry
    images: Images
    lines: list[str] = field(default_factory=list[str])

    @property
    def base(self) -> str:
        return f"{self.registry.host}/base:1"

    @property
    def to(self) -> Destination:
        secret = RegistryCredentials.from_dockerconfigjson(self.registry.dockerconfigjson(), source="Secret shop/login")
        return Destination(push=f"{self.registry.host}/team", pull="registry.in:5000/team", credentials=secret)

    async def ensure(
        self,
        snapshot: Snapshot,
        *specs: ImageSpec,
        to: Destination | None = None,
        bases: Mapping[str, str] | None = None,
    ) -> ImageSet:
        return await self.images.ensure(
            snapshot,
            specs or (HELLO,),
            to=to or self.to,
            bases=bases or {},
            log=lambda _, line: self.lines.append(line),
        )


@contextlib.asynccontextmanager
async def bench(
    directory: Path, builder: ImageBuilder | None = None, *, timeout: float = 60.0, concurrency: int = 1
) -> AsyncGenerator[Bench]:
    async with TestRegistry(directory) as registry:
        await registry.push_image("base", "1")
        made = builder or Buildah(directory / "store")
        work = directory / "work"
        try:
            async with Images(made, work, build_timeout=timeout, concurrency=concurrency) as images:
                yield Bench(registry, images)
        finally:
            for place in (directory / "store", made.runroot) if isinstance(made, Buildah) else ():
                process.remove(place)
        assert not list((work / "builds").glob("*")) if work.exists() else True, "a build's files were left"


def processes(word: str) -> list[int]:
    """Processes whose command line contains the word (arguments end with a NUL)."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
