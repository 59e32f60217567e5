"""Runs a builder's command: own session, output bounded and streamed, and nothing of it left when we stop waiting."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gitsync.errors import Transient
from gitsync.images import reaper

_TAIL = 400  # lines kept in memory to explain a failure
_LINE = 4096  # bytes; of a longer line the middle is dropped: builders repeat a whole RUN before they say its exit code
CUT = " … "
_GRACE = 5.0  # seconds that a step of stopping may take
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
# What a builder may know of our environment. Nothing else: it may hold credentials.
_PASSED = (
    *("PATH", "HOME", "XDG_RUNTIME_DIR", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR", "STORAGE_DRIVER"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


@dataclass(frozen=True, slots=True)
class Finished:
    """``code`` is negative for a signal, as in ``subprocess``. ``lines`` are the last of stdout and stderr together."""

    code: int
    lines: tuple[str, ...]


async def run(argv: Sequence[str], log: Callable[[str], None], *, environ: Mapping[str, str] | None = None) -> Finished:
    """Runs to the end, or is cancelled: then the whole group is terminated, and killed if it does not end in 5 s.

    Either way no process of it is left, not even one that a build step put into a session of its own (``reaper``).
    """
    if not shutil.which(argv[0]):
        raise Transient("it is not installed", doing=f"running {argv[0]}", hint=f"install {argv[0]}")
    env = {name: os.environ[name] for name in _PASSED if name in os.environ} | dict(environ or {})
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", reaper.__file__, str(os.getpid()), *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=env,
            start_new_session=True,
            umask=0o022,  # the modes of what a build creates are part of its digest
        )
    )
    try:
        process = await asyncio.shield(starting)
    except asyncio.CancelledError:  # asyncio itself would kill the reaper alone, and what that has begun would go on
        await _done(_discard(starting))
        raise
    except OSError as error:
        raise Transient(f"it cannot be started: {error.strerror}", doing=f"running {argv[0]}") from error
    tail: deque[str] = deque(maxlen=_TAIL)
    reader = asyncio.create_task(_read(process, tail, log))
    try:
        code = await process.wait()
        await asyncio.wait([reader], timeout=_GRACE)
        return Finished(code, tuple(tail))
    finally:
        await _done(_stop(process))
        reader.cancel()


async def _done(work: Coroutine[Any, Any, None]) -> None:
    """Also when cancelled once more: never leave a process behind."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)


async def _discard(starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
    with contextlib.suppress(OSError):
        await _stop(await starting)


async def _read(process: asyncio.subprocess.Process, tail: deque[str], log: Callable[[str], None]) -> None:
    assert process.stdout
    partial = b""
    while chunk := await process.stdout.read(65536):
        *lines, partial = (partial + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        partial = _shortened(partial)
        for line in lines:
            _emit(line, tail, log)
    if partial:
        _emit(partial, tail, log)


def _shortened(line: bytes) -> bytes:
    half = (_LINE - len(CUT.encode())) // 2
    return line if len(line) <= _LINE else line[:half] + CUT.encode() + line[-half:]


def _emit(line: bytes, tail: deque[str], log: Callable[[str], None]) -> None:
    text = _CONTROL.sub("", _shortened(line).decode("utf-8", "replace")).rstrip()
    if text:
        tail.append(text)
        log(text)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), reaper.GRACE + _GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _GRACE)


def remove(tree: Path) -> None:
    """Deletes a directory that a builder used. What is still mounted below is unmounted first, never deleted into."""
    for mount in reversed(_mounts(tree)):
        subprocess.run(["umount", "--lazy", "--", mount], check=False, capture_output=True, timeout=30)
    if mounts := _mounts(tree):
        raise Transient(f"{mounts[0]} is still mounted", doing="cleaning up after a build", hint="unmount it")
    shutil.rmtree(tree, ignore_errors=True)


def _mounts(tree: Path) -> list[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux: nothing can be mounted by a chroot build
        return []
    points = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4]) for line in lines)
    return [point for point in points if point == str(tree) or point.startswith(f"{tree}/")]
