"""Where a demo keeps everything, and how all of it goes again: also what a demo left that was killed.

One directory below the system's temporary one, held by a lock for as long as the demo lives. What lies outside of it
(images in the engine's store, a builder's run directory) can be told from what is written in it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from gitsync.images import process
from gitsync.images.buildah import Buildah
from gitsync.sandbox.engine import Engine, EngineError

PREFIX = "gitsync-demo-"
ENGINES = ("podman", "docker")
_PROGRAMS = (*ENGINES, "docker-registry", "slirp4netns")
_REGISTRY = "registry-host"


@asynccontextmanager
async def home() -> AsyncGenerator[Path]:
    """This demo's own directory; what others left that live no more is removed first."""
    for place in await asyncio.to_thread(_abandoned):
        await asyncio.to_thread(_end_programs, place)
        await remove(place)
    place, lock = await asyncio.to_thread(_make)
    try:
        yield place
    finally:
        await remove(place)
        os.close(lock)


def remember_registry(place: Path, host: str) -> None:
    """Images that engines pull from this registry, or build for it, go with the demo."""
    (place / _REGISTRY).write_text(host)


def sandbox(place: Path) -> Path:
    return place / "sandbox"


async def remove(place: Path) -> None:
    """Everything that a demo left on this machine."""
    host = (place / _REGISTRY).read_text() if (place / _REGISTRY).exists() else ""
    for name in ENGINES:
        if path := shutil.which(name):
            engine = Engine(path, "")
            with suppress(EngineError):
                if left := (await engine.owners()).get(str(sandbox(place))):
                    await engine.remove(*left)
                if host and (images := await _images(engine, host)):
                    await engine.call("rmi", "--force", *images)
    for tool in ("buildah", "podman"):
        await _remove_tree(Buildah(layers(place) / tool, tool=tool).runroot)
    await _remove_tree(place)


def cache(place: Path) -> Path:
    return place / "cache"


def layers(place: Path) -> Path:
    return cache(place) / "layers"


def registry(place: Path) -> Path:
    return place / "registry"


def _make() -> tuple[Path, int]:
    place = Path(tempfile.mkdtemp(prefix=PREFIX))
    registry(place).mkdir()
    place.chmod(0o711)  # a container's own user must get through to its volumes
    lock = os.open(place / "lock.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (place / "lock.new").rename(place / "lock")  # so that nobody sees one that is not held yet
    return place, lock


def _abandoned() -> list[Path]:
    """Directories of ours whose lock nobody holds."""
    found: list[Path] = []
    for place in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if place.is_symlink() or place.stat().st_uid != os.geteuid():
                continue
            lock = os.open(place / "lock", os.O_RDWR | os.O_CLOEXEC)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(place)
            os.close(lock)
    return found


async def _images(engine: Engine, host: str) -> list[str]:
    """The names of all images from a registry."""
    shown = await engine.call("images", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}")
    rows = (line.split() for line in shown.decode().splitlines())
    names = [
        f"{repository}@{digest}" if tag == "<none>" else f"{repository}:{tag}"
        for repository, tag, digest in rows
        if repository.startswith(f"{host}/")
    ]
    return list(dict.fromkeys(names))


def _end_programs(place: Path) -> None:
    """What a killed demo was the parent of and does not notice it: a program of ours that names this directory."""
    for found in Path("/proc").glob("[0-9]*/cmdline"):  # where there is none, they end with their containers
        with suppress(OSError):
            words = found.read_bytes().split(b"\0")
            if Path(os.fsdecode(words[0])).name in _PROGRAMS and os.fsencode(place) in b" ".join(words[1:]):
                os.kill(int(found.parent.name), signal.SIGKILL)


async def _remove_tree(tree: Path) -> None:
    await asyncio.to_thread(process.remove, tree)
    if os.geteuid() and await asyncio.to_thread(
        tree.exists
    ):  # files of subordinate users go from within their namespace
        for tool in ("buildah", "podman"):
            if shutil.which(tool):
                await process.run([tool, "unshare", "rm", "-rf", "--", str(tree)], lambda line: None)
                return
