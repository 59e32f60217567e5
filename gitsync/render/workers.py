"""Processes that parse, so that a hostile or huge file can cost no more than a process.

A worker is ``serve`` run by a fresh interpreter: it limits its own address space, reads frames of files from its
standard input and answers each file on its standard output. It inherits no environment and opens nothing. It ends
with its input, so it cannot outlive its parent; the parent kills it when it misses a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from gitsync.render.yaml import Parsed, Unreadable, parse

_HEADER: Final = 8
_START_DEADLINE: Final = 30.0  # seconds that an interpreter may take to start, on top of a file's own
_MAX_ANSWER: Final = 256 << 20


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A file that could not be read, in ``Unreadable``'s words."""

    message: str
    line: int
    column: int
    hint: str

    def __len__(self) -> int:
        return len(self.message) + len(self.hint) + 100

    def error(self) -> Unreadable:
        return Unreadable(self.message, line=self.line, column=self.column, hint=self.hint)


Outcome = Parsed | Failed


def outcome(data: bytes) -> Outcome:
    """Parse in this process; never raises for any bytes."""
    try:
        return parse(data)
    except Unreadable as error:
        return Failed(error.message, error.line, error.column, error.hint)
    except MemoryError:
        return Failed("needs more memory to read than a manifest may", 0, 0, "split the file")


class Workers:
    """At most ``size`` worker processes, started when needed: ``async with Workers() as workers``.

    ``deadline`` (seconds) is for one file, ``memory`` (bytes) for one worker's address space.
    """

    def __init__(self, *, size: int = 2, deadline: float = 20.0, memory: int = 1 << 30) -> None:
        self._deadline = deadline
        self._memory = memory
        self._free = asyncio.Semaphore(size)
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._all:
            await self._end(next(iter(self._all)))

    async def parse(self, files: Sequence[bytes]) -> list[Outcome]:
        """The outcome of each file, in order. A file that kills its worker, or takes too long, is ``Failed``."""
        outcomes: list[Outcome] = []
        async with self._free:
            while len(outcomes) < len(files):
                outcomes += await self._batch(files[len(outcomes) :])
        return outcomes

    async def _batch(self, files: Sequence[bytes]) -> list[Outcome]:
        """Outcomes of the first files, at least one: up to and with the first that its worker did not survive."""
        outcomes: list[Outcome] = []
        async with self._worker() as worker:
            assert worker.stdin is not None
            assert worker.stdout is not None
            sending = asyncio.create_task(_send(worker.stdin, files))
            try:
                allowance = self._deadline + _START_DEADLINE
                for _ in files:
                    async with asyncio.timeout(allowance):
                        outcomes.append(await _receive(worker.stdout))
                    allowance = self._deadline
                await sending
            except TimeoutError:
                await self._end(worker)
                outcomes.append(Failed(f"takes more than {self._deadline:g} s to read", 0, 0, "split the file"))
            except (asyncio.IncompleteReadError, msgspec.DecodeError, OSError):
                await self._end(worker)
                outcomes.append(Failed("its reading ended the process that read it", 0, 0, "split the file"))
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
        return outcomes

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncGenerator[asyncio.subprocess.Process]:
        worker = self._idle.pop() if self._idle else await self._start()
        try:
            yield worker
        except BaseException:  # cancelled in mid-answer: what it would say next belongs to nobody
            await self._end(worker)
            raise
        if worker in self._all:
            self._idle.append(worker)

    async def _start(self) -> asyncio.subprocess.Process:
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            f"from {__name__} import serve; serve({self._memory})",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"},
            cwd="/",
            start_new_session=True,
            limit=1 << 20,
        )
        self._all.add(worker)
        return worker

    async def _end(self, worker: asyncio.subprocess.Process) -> None:
        self._all.discard(worker)
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()
        if worker.stdin is not None:
            worker.stdin.close()
            with contextlib.suppress(OSError):
                await worker.stdin.wait_closed()


async def _send(pipe: asyncio.StreamWriter, files: Sequence[bytes]) -> None:
    for data in files:
        pipe.write(len(data).to_bytes(_HEADER, "big"))
        pipe.write(data)
        await pipe.drain()


async def _receive(pipe: asyncio.StreamReader) -> Outcome:
    size = int.from_bytes(await pipe.readexactly(_HEADER), "big")
    if size > _MAX_ANSWER:
        raise OSError("an answer beyond every limit")
    return _DECODER.decode(await pipe.readexactly(size))


_DECODER: Final = msgspec.msgpack.Decoder(Parsed | Failed)


def serve(memory: int) -> None:
    """A worker's life: one frame per file in, one per outcome out, until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    encoder = msgspec.msgpack.Encoder()
    while len(header := source.read(_HEADER)) == _HEADER:
        answer = encoder.encode(outcome(source.read(int.from_bytes(header, "big"))))
        sink.write(len(answer).to_bytes(_HEADER, "big"))
        sink.write(answer)
        sink.flush()
