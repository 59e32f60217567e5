"""One git process: its own session, bounded in time and in what it may say, ended as a group."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gitsync.errors import Transient
from gitsync.source.remote import GitCredentials, GitPolicy, environment

READ_TIMEOUT = 120.0  # of a local git process
STDERR_BYTES = 32 << 10
_TERMINATE = 2.0  # seconds between SIGTERM and SIGKILL
_WATCH = 0.2  # seconds between two looks at a growing mirror


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    code: int  # negative: killed by that signal
    stdout: bytes
    stderr: str
    exceeded: bool  # a limit, and was killed
    timed_out: bool


async def run(
    arguments: Sequence[str],
    *,
    env: dict[str, str],
    cwd: Path,
    timeout: float = READ_TIMEOUT,
    limit: int = 1 << 20,
    rows: int = 0,
    stdin: int | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    over: Callable[[], bool] | None = None,
) -> Result:
    """Run git to its end, its deadline, or a limit: of bytes and NUL-ended rows on stdout, or ``over()``, asked now
    and then. Cancelling ends the whole process group."""
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise Transient(
            f"git cannot be started: {error.strerror}", doing=f"running git {arguments[0]}", hint="is git installed?"
        ) from error
    exceeded = timed_out = False

    def exceed() -> None:
        nonlocal exceeded
        exceeded = True
        _signal(process, signal.SIGKILL)

    async def head() -> bytes:
        kept, seen, counted = bytearray(), 0, 0
        while process.stdout and (piece := await process.stdout.read(1 << 16)):
            seen += len(piece)
            counted += piece.count(b"\0") if rows else 0
            if seen > limit or (rows and counted > rows):
                kept.clear()
                if not exceeded:
                    exceed()
            else:
                kept += piece
        return bytes(kept)

    async def tail() -> bytes:
        kept = b""
        while process.stderr and (piece := await process.stderr.read(1 << 14)):
            kept = (kept + piece)[-STDERR_BYTES:]
        return kept

    async def watch() -> None:
        while over and process.returncode is None:
            await asyncio.sleep(_WATCH)
            if await asyncio.to_thread(over):
                exceed()
                return

    output = errors = b""
    ended = False
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            reading, complaining = group.create_task(head()), group.create_task(tail())
            watching = group.create_task(watch())
            await process.wait()
            watching.cancel()
        output, errors, ended = reading.result(), complaining.result(), True
    except TimeoutError:
        timed_out = True
    finally:
        if not ended:
            await _end(process)
    return Result(
        code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        stdout=output,
        stderr=errors.decode("utf-8", "replace"),
        exceeded=exceeded,
        timed_out=timed_out,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the process group to stop, then kill what is left of it. Its pipes are drained: else it could not end."""

    async def drained(stream: asyncio.StreamReader | None) -> None:
        while stream and await stream.read(1 << 16):
            pass

    async def gone() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TERMINATE):
                await asyncio.gather(drained(process.stdout), drained(process.stderr), process.wait())

    try:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)  # git removes its temporary files
            await gone()
    finally:
        _signal(process, signal.SIGKILL)
    await gone()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def local_env(git_dir: Path) -> dict[str, str]:
    """For a git that reads: it may contact nothing, not even for a missing object of a partial clone."""
    return {**environment(os.environ, None, GitCredentials(), GitPolicy(), {}), "GIT_DIR": str(git_dir)}
