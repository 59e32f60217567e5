"""Open-loop load: ``python -m tests.cluster.load --url U --rate 200 --seconds 60 --out log.jsonl.gz --mode new``.

Requests start by the clock, whatever became of those before; each is tried once, and each is one line of the log.
The client is our own, on asyncio's protocols: a library's would retry, pool or hide an error, and cost more than the
server that is measured. Bounded in time, count and connections; SIGTERM ends it early, with all that is under way.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import re
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

Kind = Literal["new", "keepalive", "long"]
KINDS: tuple[Kind, ...] = ("new", "keepalive", "long")
_HEAD_LIMIT, _BODY_LIMIT = 64 << 10, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of the log."""

    t: float
    """When it was due, in seconds of the wall clock."""
    ms: float
    """From then until the last byte of the answer, or until it failed."""
    late: float
    """Milliseconds by which it was started too late: the generator's own fault."""
    kind: Kind
    status: int
    """0 when there was no whole answer."""
    error: str
    """Empty, or refused, reset, eof (closed before a whole answer), timeout, unreachable, protocol."""
    version: str
    """What the version pattern found in the body."""

    @property
    def failed(self) -> bool:
        return bool(self.error) or self.status >= 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    url: str
    rate: float
    """Requests per second, over all kinds."""
    seconds: float
    kinds: Sequence[Kind]
    """Taken in turn."""
    long_path: str
    """What a long request asks for; empty: the url's path, but the request's head takes ``hold`` seconds to send."""
    hold: float
    timeout: float
    pattern: re.Pattern[str]
    """Its first group (or all of it) in the body is the version."""


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, under: socket.socket) -> None:
        self._socket = under
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self._buffer = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._head: tuple[int, int, int | None, bool] | None = None
        """Status, where the body begins, its length (None: to the end of the connection), chunked."""
        self.reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        self._buffer.clear()
        self._head = None
        self.reusable = False
        self._answer = asyncio.get_running_loop().create_future()
        self.send(request)
        return self._answer

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        if not self.closed:
            self.transport.write(data)

    def quiet(self) -> bool:
        """Nothing has come since the last answer, not even an end, as far as our kernel knows at this moment."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._answer is None or self._answer.done():
            self.closed = True  # nobody asked: not a connection to use again
            return
        try:
            self._parse(at_end=False)
        except ValueError as error:
            self._fail(error)

    def eof_received(self) -> bool:
        self.closed = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is None or self._answer.done():
            return
        if exc is None:
            with contextlib.suppress(ValueError):
                self._parse(at_end=True)
        self._fail(exc or EOFError())

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _parse(self, *, at_end: bool) -> None:
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_LIMIT:
                    raise ValueError("head too long")
                return
            lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ", 2)[1])
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            chunked = fields.get("transfer-encoding", "").lower() == "chunked"
            length = (
                0 if status in (204, 304) else int(fields["content-length"]) if "content-length" in fields else None
            )
            self._head = status, end + 4, length, chunked
            self.reusable = (chunked or length is not None) and fields.get("connection", "").lower() != "close"
        status, begin, length, chunked = self._head
        if len(self._buffer) - begin > _BODY_LIMIT:
            raise ValueError("body too long")
        body: bytes | None = None
        if chunked:
            body = _unchunk(self._buffer, begin)
        elif length is not None:
            body = bytes(self._buffer[begin : begin + length]) if len(self._buffer) - begin >= length else None
        elif at_end:
            body = bytes(self._buffer[begin:])
        if body is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))


def _unchunk(buffer: bytearray, position: int) -> bytes | None:
    """The body, or None while its last chunk is missing."""
    body = bytearray()
    while True:
        end = buffer.find(b"\r\n", position)
        if end < 0:
            return None
        size = int(bytes(buffer[position:end]).split(b";")[0], 16)
        if len(buffer) < end + 2 + size + 2:
            return None
        if size == 0:
            return bytes(body)
        body += buffer[end + 2 : end + 2 + size]
        position = end + 2 + size + 2


class Load:
    """Runs one plan; ``requests`` fills with what is done."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        parts = urlsplit(plan.url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"{plan.url} is not http://HOST[:PORT]/PATH")
        self._host, self._port = parts.hostname, parts.port or 80
        self._path = parts.path or "/"
        self._authority = parts.netloc
        self._idle: list[_Connection] = []
        self.requests: list[Request] = []
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Until the plan's seconds are over or ``stopping`` is set, and then until the last request has ended."""
        loop = asyncio.get_running_loop()
        address = (await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))[0][4]
        self._host, self._port = str(address[0]), int(address[1])
        begin, wall = loop.time(), time.time()
        number = 0
        async with asyncio.TaskGroup() as group:
            while number < self.plan.rate * self.plan.seconds and not self.stopping.is_set():
                due = begin + number / self.plan.rate
                if (pause := due - loop.time()) > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.stopping.wait(), pause)
                    continue
                await asyncio.sleep(0)  # when it is behind, those under way get their turn all the same
                kind = self.plan.kinds[number % len(self.plan.kinds)]
                group.create_task(self._one(kind, due, wall + due - begin))
                number += 1
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.abort()

    async def _one(self, kind: Kind, due: float, wall: float) -> None:
        loop = asyncio.get_running_loop()
        late = loop.time() - due
        status, error, body = 0, "", b""
        try:
            async with asyncio.timeout(self.plan.timeout):
                status, body = await self._attempt(kind)
        except TimeoutError:
            error = "timeout"
        except ConnectionRefusedError:
            error = "refused"
        except (ConnectionResetError, BrokenPipeError, ConnectionAbortedError):
            error = "reset"
        except EOFError:
            error = "eof"
        except OSError:
            error = "unreachable"
        except ValueError:
            error = "protocol"
        match = self.plan.pattern.search(body.decode(errors="replace"))
        version = (match.group(1) if match.groups() else match.group(0)) if match else ""
        self.requests.append(
            Request(
                t=round(wall, 4),
                ms=round((loop.time() - due) * 1000, 2),
                late=round(late * 1000, 2),
                kind=kind,
                status=status,
                error=error,
                version=version,
            )
        )

    async def _attempt(self, kind: Kind) -> tuple[int, bytes]:
        connection = self._take() if kind == "keepalive" else None
        if connection is None:
            connection = await self._connect()
        path = self.plan.long_path or self._path if kind == "long" else self._path
        keep = "keep-alive" if kind == "keepalive" else "close"
        head = f"GET {path} HTTP/1.1\r\nHost: {self._authority}\r\nConnection: {keep}\r\n".encode()
        kept = False
        try:
            if kind == "long" and not self.plan.long_path:
                answer = connection.ask(head)
                await asyncio.wait([answer], timeout=self.plan.hold)
                connection.send(b"\r\n")
            else:
                answer = connection.ask(head + b"\r\n")
            result = await answer
            kept = kind == "keepalive" and connection.reusable and not connection.closed
            return result
        finally:
            if kept:
                self._idle.append(connection)
            elif connection.transport is not None:
                connection.transport.close()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        under = socket.socket()
        try:
            under.setblocking(False)
            await loop.sock_connect(under, (self._host, self._port))
            _, connection = await loop.create_connection(lambda: _Connection(under), sock=under)
        except BaseException:
            under.close()
            raise
        return connection

    def _take(self) -> _Connection | None:
        """An idle connection whose other end has not closed it."""
        while self._idle:
            connection = self._idle.pop(0)
            transport = connection.transport
            if not connection.closed and transport is not None and connection.quiet():
                return connection
            if transport is not None:
                transport.close()
        return None


def read(log: Path) -> list[Request]:
    """A finished log, in the order in which the requests were due."""
    with gzip.open(log, "rt") as lines:
        return sorted((Request(**json.loads(line)) for line in lines), key=lambda each: each.t)


def percentile(requests: Iterable[Request], share: float) -> float:
    """The latency that ``share`` (0…1) of the requests that did not fail stayed under, in milliseconds; 0 if none."""
    times = sorted(each.ms for each in requests if not each.failed)
    return times[min(len(times) - 1, int(share * len(times)))] if times else 0.0


def summary(requests: Sequence[Request]) -> dict[str, Any]:
    return {
        "requests": len(requests),
        "failed": sum(each.failed for each in requests),
        "errors": dict(Counter(each.error or str(each.status) for each in requests if each.failed)),
        "kinds": dict(Counter(each.kind for each in requests)),
        "versions": dict(Counter(each.version for each in requests if not each.failed)),
        "p50_ms": percentile([each for each in requests if each.kind != "long"], 0.5),
        "p99_ms": percentile([each for each in requests if each.kind != "long"], 0.99),
        "late_p99_ms": sorted(each.late for each in requests)[int(0.99 * len(requests))] if requests else 0.0,
    }


async def _run(plan: Plan, out: Path) -> dict[str, Any]:
    load = Load(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, load.stopping.set)
    written = 0
    with gzip.open(out, "wt", compresslevel=1) as log:

        def write() -> None:
            nonlocal written
            log.writelines(json.dumps(asdict(each)) + "\n" for each in load.requests[written:])
            written = len(load.requests)

        running = asyncio.ensure_future(load.run())
        while not running.done():
            await asyncio.wait([running], timeout=1)
            write()
        running.result()
        write()
    return summary(load.requests)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.load", description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True, help="gzipped JSON lines, one per request")
    parser.add_argument("--mode", default="new,keepalive", help="new, keepalive, long, or several in turn")
    parser.add_argument("--long-path", default="", help="path of a slow answer, for the mode long")
    parser.add_argument("--hold", type=float, default=4, help="seconds of a long request without --long-path")
    parser.add_argument("--timeout", type=float, default=30)
    parser.add_argument("--version-pattern", default=r"\A\s*(.{0,80})", help="finds the version in a body")
    options = parser.parse_args()
    modes = str(options.mode).split(",")
    kinds: list[Kind] = [each for each in KINDS if modes.count(each)]
    if len(kinds) != len(modes):
        parser.error(f"--mode {options.mode}: choose from {', '.join(KINDS)}")
    if options.rate * options.seconds > 1_000_000:
        parser.error("more than a million requests: lower --rate or --seconds")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = Plan(
        url=options.url,
        rate=options.rate,
        seconds=options.seconds,
        kinds=kinds,
        long_path=options.long_path,
        hold=options.hold,
        timeout=options.timeout,
        pattern=re.compile(options.version_pattern),
    )
    print(json.dumps(asyncio.run(_run(plan, options.out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
