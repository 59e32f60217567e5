"""Somebody who asks the app all the time, as its users would: at a fixed rate, whether or not answers come."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import aiohttp

from gitsync.errors import Transient

RATE = 20.0  # requests a second, each on a connection of its own
DEADLINE = 10.0  # seconds that an answer may take
_LARGEST = 4096  # bytes of an answer that tell its version
_PATIENCE = 60.0  # seconds in which an answer that is due has to come
_MOST = 1000  # waiting at once; beyond that a request fails without being sent


class Probe:
    """``answered`` counts by what was said, ``failures`` by what went wrong; ``latest`` is the newest answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answered: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.latest = ""
        self._heard = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def asking(self) -> AsyncGenerator[Probe]:
        """Asks while the context lasts; leaving it waits for the answers that are still due."""
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        timeout = aiohttp.ClientTimeout(total=DEADLINE)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            pace = asyncio.create_task(self._keep_pace(session))
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

    async def _keep_pace(self, session: aiohttp.ClientSession) -> None:
        """Open loop: the next request leaves at its time, however long the last one takes."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if len(self._asking) < _MOST:
                task = asyncio.create_task(self._ask(session))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
            else:
                self.failures["too many are waiting"] += 1
            due += 1 / RATE
            await asyncio.sleep(due - loop.time())

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        try:
            async with session.get(self.url, allow_redirects=False) as response:
                text = (await response.content.read(_LARGEST)).decode(errors="replace").strip()
                if response.status == 200:
                    self.answered[text] += 1
                    self.latest = text
                    self._heard.set()
                else:
                    self.failures[f"HTTP {response.status}"] += 1
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.failures[type(error).__name__] += 1
