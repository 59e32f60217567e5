"""Somebody who asks the app all the time, as its users would: at a fixed rate, whether or not answers come."""

from __future__ import annotations

import asyncio
import io
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from http.client import HTTPException, HTTPResponse
from typing import cast

from gitsync.errors import Transient

RATE = 20.0  # requests a second, each on a connection of its own
DEADLINE = 10.0  # seconds that an answer may take
_LARGEST = 1 << 16  # bytes of an answer that are read
_PATIENCE = 60.0  # seconds in which an answer that is due has to come
_MOST = 1000  # waiting at once; beyond that a request fails without being sent


class Probe:
    """``answered`` counts by what was said, ``failures`` by what went wrong; ``latest`` is the newest answer."""

    def __init__(self, address: str) -> None:
        """``address``: host:port."""
        self.url = f"http://{address}/"
        self._host, _, self._port = address.rpartition(":")
        self.answered: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latest = ""
        self._heard = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def asking(self) -> AsyncGenerator[Probe]:
        """Asks while the context lasts; leaving it waits for the answers that are still due."""
        pace = asyncio.create_task(self._keep_pace())
        try:
            yield self
            pace.cancel()
            await asyncio.gather(*self._asking)
        finally:
            pace.cancel()
            for task in self._asking:
                task.cancel()
            await asyncio.gather(pace, *self._asking, return_exceptions=True)

    async def until(self, good: Callable[[str], bool]) -> None:
        """Wait for such an answer. ``Transient`` with what came instead."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while not good(self.latest):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            said = ", ".join(self.failures) or f"it says “{self.latest}”"
            raise Transient(f"it does not answer as it should: {said}", doing=f"asking {self.url}") from None

    async def _keep_pace(self) -> None:
        """Open loop: the next request leaves at its time, however long the last one takes."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if len(self._asking) < _MOST:
                task = asyncio.create_task(self._ask())
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            else:
                self.failures["too many are waiting"] += 1
            due += 1 / RATE
            await asyncio.sleep(due - loop.time())

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(DEADLINE):
                received = await self._get()
            response = HTTPResponse(cast("socket.socket", _Received(received)))
            response.begin()
            text = response.read().decode(errors="replace").strip()
        except (OSError, HTTPException) as error:
            self.failures[type(error).__name__] += 1
            return
        if response.status == 200:
            self.answered[text] += 1
            self.latest = text
            self._heard.set()
        else:
            self.failures[f"HTTP {response.status}"] += 1

    async def _get(self) -> bytes:
        """All that comes. Not by aiohttp: it asks again by itself when a server hangs up, which is what we look for."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"GET / HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n\r\n".encode())
            received = b""
            while len(received) < _LARGEST and (chunk := await reader.read(_LARGEST)):
                received += chunk
            return received
        finally:
            writer.close()


class _Received:
    """What http.client wants of a socket."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._received)
