"""Builds with buildah, or with podman, which contains it: no daemon, a private store, RUN in a chroot."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from gitsync.errors import GitsyncError, Transient
from gitsync.failpoints import failpoint
from gitsync.images import builder, process
from gitsync.images.builder import BuildRequest, Log
from gitsync.images.dockerfile import FRONTEND, HEREDOC, LINK, STOCK_FRONTEND

# The first version that knows a feature. A distribution that builds it with an older parser answers by itself.
_SINCE = {
    "buildah": {HEREDOC: (1, 37), LINK: (1, 41)},
    "podman": {HEREDOC: (5, 2), LINK: (5, 6)},
}
_FULL = "disk-full"  # a mark: the store has outgrown the disk
_BUILD = {"buildah": "bud", "podman": "build"}
_RETRY = {"buildah": ("--retry", "1", "--retry-delay", "1s"), "podman": ()}
_LEFTOVERS = {"buildah": ("rm", "--all"), "podman": ("system", "prune", "--external", "--force")}


class Buildah:
    """``store`` is a directory of this builder's own: layers stay there as a cache, and it may vanish between builds.

    Any number of builds, of any number of processes, may use one store. A lock file is held shared while building;
    whoever finds traces of a build that was killed cleans up under the exclusive lock, or leaves it for later.
    """

    def __init__(self, store: Path, *, tool: str = "buildah") -> None:
        self.name = tool
        self._store = store
        # podman refuses a runroot of 50 characters or more.
        short = Path(tempfile.gettempdir()) / f"gitsync-{hashlib.sha256(str(store).encode()).hexdigest()[:12]}"
        self.runroot = store / "run" if len(str(store / "run")) < 50 else short
        self._version: tuple[int, int] | None = None

    async def available(self) -> str | None:
        if not shutil.which(self.name):
            return f"{self.name} is not installed"
        try:
            await self._find_version()
        except GitsyncError as error:
            return error.message
        if os.geteuid() and not _has_subordinate_ids():
            return f"{self.name} without root needs a range for this user in /etc/subuid and /etc/subgid"
        return None

    async def build(self, request: BuildRequest, log: Log) -> str:
        await self._refuse(request)
        async with builder.deadline(request, log) as note, self._store_in_use(note) as marks:
            mark = marks / request.scratch.name
            mark.touch()
            dockerfile = request.write_dockerfile()
            auth = await request.credentials.auth_file(request.hosts(), request.scratch)
            environ = {"REGISTRY_AUTH_FILE": str(auth), "CONTAINERS_REGISTRIES_CONF": str(_registries(request))}
            environ["TMPDIR"] = str(request.scratch)
            finished = await process.run(self._build_argv(request, dockerfile), note, environ=environ)
            if not finished.code:
                mark.unlink(missing_ok=True)  # not when it was killed: then something is left to clean up
            else:
                raise builder.failure(finished, request, self.name)
            failpoint("image.built")
            finished = await process.run(self._push_argv(request), note, environ=environ)
            if finished.code:
                raise builder.push_failure(finished, request, self.name)
        return (request.scratch / "digest").read_text().strip()

    # ------------------------------------------------------------------ commands

    def _command(self) -> list[str]:
        return [self.name, "--root", str(self._store / "root"), "--runroot", str(self.runroot)]

    def _build_argv(self, request: BuildRequest, dockerfile: Path) -> list[str]:
        nothing = request.scratch / "ignore"
        nothing.touch()  # the context holds only what .dockerignore leaves, by BuildKit's rules instead of buildah's
        argv = [*self._command(), _BUILD[self.name], "--isolation", "chroot", "--layers", "--force-rm"]
        argv += ["--pull=false", "--timestamp", "0", "--format", request.dockerfile.output_format]
        argv += ["--platform", request.platforms[0], "--ignorefile", str(nothing), "--file", str(dockerfile)]
        argv += ["--iidfile", str(request.scratch / "image"), *_RETRY[self.name]]
        argv += ["--target", request.target] if request.target else []
        for name, value in request.args:
            argv += ["--build-arg", f"{name}={value}"]
        return [*argv, "--", str(request.context)]

    def _push_argv(self, request: BuildRequest) -> list[str]:
        image = (request.scratch / "image").read_text().strip()
        digest = str(request.scratch / "digest")
        return [
            *self._command(),
            "push",
            "--quiet",
            *_RETRY[self.name],
            "--digestfile",
            digest,
            image,
            f"docker://{request.push}",
        ]

    # ------------------------------------------------------------------ what it can do

    async def _find_version(self) -> tuple[int, int]:
        if self._version is None:
            finished = await process.run([self.name, "--version"], lambda line: None)
            match = re.search(r"(\d+)\.(\d+)", " ".join(finished.lines))
            if finished.code or not match:
                said = " ".join(finished.lines)[:200]
                raise Transient(f"{self.name} --version ended with code {finished.code}: {said}")
            self._version = int(match[1]), int(match[2])
        return self._version

    async def _refuse(self, request: BuildRequest) -> None:
        version = await self._find_version()
        me = f"{self.name} {version[0]}.{version[1]}"
        for feature in request.dockerfile.features:
            since = _SINCE[self.name].get(feature.name)
            if since and version < since:
                able = f"{self.name} {since[0]}.{since[1]} or BuildKit (buildctl, docker)"
                raise builder.unsupported(request, me, feature.name, feature.line, able)
            if feature.name == FRONTEND and not STOCK_FRONTEND.fullmatch(request.dockerfile.syntax):
                what = f"the frontend {request.dockerfile.syntax}"
                raise builder.unsupported(request, me, what, feature.line, "BuildKit (buildctl, docker)")
        if len(request.platforms) > 1:
            what = f"several platforms in one build ({', '.join(request.platforms)})"
            raise builder.unsupported(request, me, what, 0, "BuildKit (buildctl)")

    # ------------------------------------------------------------------ the store

    @contextlib.asynccontextmanager
    async def _store_in_use(self, log: Log) -> AsyncGenerator[Path]:
        """Holds the store; yields the directory in which a build leaves its mark while it lasts."""
        marks = self._store / "building"
        marks.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._store / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            left = os.listdir(marks)
            if left or _read(self._store / "boot") != _boot():
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    await self._clean(marks, left, log)
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_SH)  # waits while another process cleans up
            yield marks
        except GitsyncError as error:
            if error.reason == "DiskFull":
                (marks / _FULL).touch()
            raise
        finally:
            os.close(lock)

    async def _clean(self, marks: Path, left: list[str], log: Log) -> None:
        """After a kill: containers and mounts of the builds that left a mark. Alone with the store."""
        if _read(self._store / "boot") != _boot():
            await self._remove(self.runroot, log)  # counts mounts, and is meant to vanish with them
        if left and (self._store / "root").exists():
            finished = await process.run([*self._command(), *_LEFTOVERS[self.name]], log)
            if finished.code or _FULL in left:
                log("the builder's store is emptied")
                await self._remove(self.runroot, log)
                await self._remove(self._store / "root", log)
        for name in left:
            (marks / name).unlink(missing_ok=True)
        (self._store / "boot").write_text(_boot())

    async def _remove(self, tree: Path, log: Log) -> None:
        if os.geteuid():  # files of subordinate users can only be removed inside the user namespace
            unshare = ["buildah", "unshare"] if self.name == "buildah" else ["podman", "unshare"]
            await process.run([*unshare, "rm", "-rf", "--", str(tree)], log)
        await asyncio.to_thread(process.remove, tree)


def _registries(request: BuildRequest) -> Path:
    """registries.conf of this build alone: which hosts speak plain HTTP. (All names are complete.)"""
    path = request.scratch / "registries.conf"
    plain = sorted(host for host in request.hosts() if request.access.plain(host))
    tables = (f'[[registry]]\nlocation = "{host}"\ninsecure = true\n' for host in plain)
    path.write_text('unqualified-search-registries = ["docker.io"]\n' + "".join(tables))
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _boot() -> str:
    return _read(Path("/proc/sys/kernel/random/boot_id")).strip() or "unknown"


def _has_subordinate_ids() -> bool:
    names = (f"{pwd.getpwuid(os.geteuid()).pw_name}:", f"{os.geteuid()}:")
    files = (_read(Path("/etc/subuid")), _read(Path("/etc/subgid")))
    return all(any(line.startswith(names) for line in text.splitlines()) for text in files)
