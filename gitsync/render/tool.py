"""Runs the binaries that render (kustomize, kubectl, helm): bounded, without network, killed as a group."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gitsync.errors import Invalid
from gitsync.model import Origin

_STDERR: Final = 16 << 10
_SHOWN: Final = 2000  # characters of a tool's complaint


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one run may take: seconds, bytes of address space (Go reserves much more than it uses), bytes of output."""

    deadline: float = 60.0
    memory: int = 4 << 30
    output: int = 64 << 20


def find(*names: str) -> str | None:
    """The first of these binaries that is on PATH."""
    return next((found for name in names if (found := shutil.which(name))), None)


async def run(
    argv: Sequence[str],
    *,
    directory: str,
    private: str,
    bounds: Bounds,
    doing: str,
    origin: Origin,
    clean: Callable[[str], str] = str,
) -> bytes:
    """Standard output of a tool that exits with 0. Raises ``Invalid`` with its own words otherwise.

    ``private`` is a temporary directory of the caller's with a ``home`` in it; its path is cut from what the tool says.
    ``clean`` takes out of that what nobody else may read.
    Its environment has no credential, no PATH (so no git, no plugin) and, for HTTP, a proxy that does not exist.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=directory,
        env=_environment(os.path.join(private, "home"), bounds),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (bounds.memory, bounds.memory))
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(bounds.deadline), asyncio.TaskGroup() as group:
            reading = group.create_task(_read(process, process.stdout, bounds.output))
            complaint = group.create_task(_tail(process.stderr))
            code = await process.wait()
    except TimeoutError as error:
        raise Invalid(f"takes more than {bounds.deadline:g} s", doing=doing, origin=origin) from error
    finally:
        await _kill(process)
    output = reading.result()
    if output is None:
        raise Invalid(f"gives more than {bounds.output} bytes", doing=doing, origin=origin)
    if code:
        said = clean(complaint.result().decode("utf-8", "replace").replace(f"{private}/", "").strip())
        raise Invalid(said[-_SHOWN:] or f"ends with code {code}", doing=doing, origin=origin)
    return output


def _environment(home: str, bounds: Bounds) -> Mapping[str, str]:
    nowhere = "http://127.0.0.1:9"
    return {
        "PATH": "",
        "HOME": home,
        "TMPDIR": home,
        "XDG_CONFIG_HOME": home,
        "XDG_CACHE_HOME": home,
        "XDG_DATA_HOME": home,
        "KUBECONFIG": os.devnull,
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "GOMEMLIMIT": str(bounds.memory // 2),
    }


async def _read(process: asyncio.subprocess.Process, stream: asyncio.StreamReader, limit: int) -> bytes | None:
    """All it writes; ``None``, and the process is ended, if that is more than ``limit`` bytes."""
    chunks: list[bytes] = []
    size = 0
    while chunk := await stream.read(1 << 16):
        size += len(chunk)
        if size > limit:
            _signal(process)
            return None
        chunks.append(chunk)
    return b"".join(chunks)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stream.read(1 << 16):
        kept = (kept + chunk)[-_STDERR:]
    return kept


def _signal(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _kill(process: asyncio.subprocess.Process) -> None:
    _signal(process)
    await process.wait()
