"""Decides *when* each Application is worked on; never what is done.

A trigger carries a name and nothing else: a webhook, a poll, a watch and a restart all end in ``wake(key)``, and the
work re-reads the world. Each Application has one driver task with two lanes:

- *prepare* (fetch, render, build, plan): cancelled at once when its commit is no longer the newest;
- *apply* (rollout, restore): never cancelled, asked to hand over at its next safe point once a newer plan is ready.

So the newest commit wins. Commits that arrive faster than they deploy could cancel each other for ever; a driver that
has delivered nothing for ``patience`` seconds therefore lets the lane it is in finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog

from gitsync.attempt import Handover, Outcome, Target
from gitsync.errors import GitsyncError, Waiting

log = structlog.get_logger(__name__)

P = TypeVar("P")
R = TypeVar("R")

FIRST_RETRY = 2.0  # seconds; doubles per failure
LAST_RETRY = 300.0


class Work(Protocol[P]):
    """The pipeline, as the scheduler sees it. Implementations report their own errors before they raise them."""

    async def head(self, key: str) -> str:
        """The newest sha of the Application's ref, cheaply. ``""`` when that cannot be told now."""
        ...

    async def prepare(self, key: str, target: Target) -> P | None:
        """Everything up to a plan. ``None``: there is nothing to apply."""
        ...

    async def apply(self, key: str, prepared: P, handover: Handover) -> Outcome: ...

    def interval(self, key: str) -> float:
        """Seconds between polls."""
        ...

    def urgent(self, prepared: P) -> bool:
        """Whether a person asked for it, so that no lane may finish first, however long nothing was delivered."""
        ...


@dataclass(slots=True)
class _Driver(Generic[P]):
    """One Application's lanes. Touched only by its own task, except what ``wake`` and ``leave`` set.

    At rest it costs its task and nothing else: whatever happens to it, a lane's end included, only stirs that.
    """

    key: str
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    woken: bool = False
    gone: bool = False
    task: asyncio.Task[None] | None = None
    preparing: asyncio.Task[P | None] | None = None
    applying: asyncio.Task[Outcome] | None = None
    peeking: asyncio.Task[str] | None = None
    target: Target = field(default_factory=Target)
    ready: P | None = None
    handover: Handover = field(default_factory=Handover)
    again: bool = False  # woken while preparing: look once more afterwards
    failures: int = 0
    undelivered_since: float | None = None  # loop time at which a lane was first put off that did not end since

    def wake(self) -> None:
        self.woken = True
        self.stirred.set()

    def leave(self) -> None:
        self.gone = True
        self.stirred.set()

    def lane(self, work: Coroutine[Any, Any, R], what: str) -> asyncio.Task[R]:
        task = asyncio.create_task(work, name=f"{what} {self.key}")
        task.add_done_callback(lambda _: self.stirred.set())
        return task


class Scheduler(Generic[P]):
    """Owns every driver task. ``async with`` it; leaving cancels preparations and lets applies reach a safe point."""

    def __init__(
        self,
        work: Work[P],
        *,
        patience: float = 90.0,
        grace: float = 20.0,
        preparations: int = 16,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._work = work
        self._patience = patience
        self._grace = grace
        self._jitter = jitter
        self._slots = asyncio.Semaphore(preparations)
        self._drivers: dict[str, _Driver[P]] = {}

    async def __aenter__(self) -> Scheduler[P]:
        return self

    async def __aexit__(self, *_: object) -> None:
        drivers = list(self._drivers.values())
        self._drivers.clear()
        for driver in drivers:
            driver.leave()
        await asyncio.gather(*(d.task for d in drivers if d.task), return_exceptions=True)

    @property
    def keys(self) -> frozenset[str]:
        return frozenset(self._drivers)

    def wake(self, key: str) -> None:
        """Something may have changed for this Application. Idempotent, synchronous, cheap: a thousand calls are one."""
        driver = self._drivers.get(key)
        if driver is None:
            driver = self._drivers[key] = _Driver(key=key)
            driver.task = asyncio.create_task(self._drive(driver), name=f"drive {key}")
        driver.wake()

    async def forget(self, key: str) -> None:
        """The Application is gone or no longer ours: stop, at a safe point."""
        driver = self._drivers.pop(key, None)
        if driver is not None and driver.task is not None:
            driver.leave()
            await asyncio.gather(driver.task, return_exceptions=True)

    # ------------------------------------------------------------------ one Application

    async def _drive(self, driver: _Driver[P]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        try:
            while not driver.gone:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await driver.stirred.wait()
                driver.stirred.clear()
                if driver.gone:
                    break
                if driver.applying is not None and driver.applying.done():
                    due = self._applied(driver, driver.applying, loop.time())
                if driver.preparing is not None and driver.preparing.done():
                    due = self._prepared(driver, driver.preparing, loop.time())
                if driver.peeking is not None and driver.peeking.done():
                    self._peeked(driver, driver.peeking, loop.time())
                if driver.woken or loop.time() >= due:
                    due = loop.time() + self._poll(driver.key)
                    if driver.preparing is None:
                        self._prepare(driver)
                    else:
                        driver.again |= driver.woken
                        if driver.peeking is None:
                            driver.peeking = driver.lane(self._work.head(driver.key), "peek")
                    driver.woken = False
        finally:
            await self._stop(driver)

    def _prepare(self, driver: _Driver[P]) -> None:
        driver.again = False
        driver.target = Target()
        driver.preparing = driver.lane(self._limited(driver), "prepare")

    async def _limited(self, driver: _Driver[P]) -> P | None:
        async with self._slots:
            return await self._work.prepare(driver.key, driver.target)

    def _peeked(self, driver: _Driver[P], task: asyncio.Task[str], now: float) -> None:
        """Woken or polled in mid-preparation: if the head moved on, what is being prepared is of no use any more."""
        driver.peeking = None
        head = "" if task.cancelled() or task.exception() else task.result()
        if not head or driver.preparing is None or not driver.target.sha or driver.target.sha == head:
            return
        if driver.undelivered_since is None:
            driver.undelivered_since = now
        if self._starving(driver, now):
            log.info("preparation goes on although a newer commit came: nothing was delivered for a while")
            driver.again = True
            return
        driver.preparing.cancel()

    def _prepared(self, driver: _Driver[P], task: asyncio.Task[P | None], now: float) -> float:
        driver.preparing = None
        again, driver.again = driver.again, False
        if task.cancelled():
            self._prepare(driver)
            return now + self._poll(driver.key)
        if error := task.exception():
            return now if again else now + self._retry(driver, error)
        prepared = task.result()
        if prepared is not None:
            driver.ready = prepared
            if driver.applying is None:
                self._apply(driver)
            elif self._work.urgent(prepared) or not self._starving(driver, now):
                if driver.undelivered_since is None:
                    driver.undelivered_since = now
                driver.handover.request()
        elif driver.applying is None:
            driver.failures = 0
            driver.undelivered_since = None  # it came to its end, and nothing waits behind a rollout
        return now if again else now + self._poll(driver.key)

    def _apply(self, driver: _Driver[P]) -> None:
        assert driver.ready is not None
        prepared, driver.ready = driver.ready, None
        driver.handover = Handover()
        driver.applying = driver.lane(self._work.apply(driver.key, prepared, driver.handover), "apply")

    def _applied(self, driver: _Driver[P], task: asyncio.Task[Outcome], now: float) -> float:
        driver.applying = None
        if task.cancelled():
            return now
        error = task.exception()
        outcome = Outcome() if error else task.result()
        ended = error is None and outcome.retry_after is None and not driver.handover.requested
        if outcome.delivered or ended:  # what was restored came to its end, too
            driver.undelivered_since = None
        if error is not None:
            due = now + self._retry(driver, error)
        elif outcome.retry_after is not None:
            due = now + outcome.retry_after
        else:
            driver.failures = 0
            due = now  # what came while it ran was compared with the rollout, not with its result: look again
        if driver.ready is not None:
            self._apply(driver)
        return due

    # ------------------------------------------------------------------ pacing

    def _starving(self, driver: _Driver[P], now: float) -> bool:
        return driver.undelivered_since is not None and now - driver.undelivered_since > self._patience

    def _poll(self, key: str) -> float:
        return self._work.interval(key) * (0.9 + 0.2 * self._jitter())

    def _retry(self, driver: _Driver[P], error: BaseException) -> float:
        driver.failures += 1
        if not isinstance(error, GitsyncError):
            log.error("unexpected error; will retry", application=driver.key, exc_info=error)
        if isinstance(error, Waiting):
            return error.retry_after
        return min(LAST_RETRY, FIRST_RETRY * 2 ** min(driver.failures - 1, 10)) * (0.75 + 0.5 * self._jitter())

    async def _stop(self, driver: _Driver[P]) -> None:
        """Cancel what may be cancelled; give a running apply ``grace`` seconds to reach a safe point."""
        for task in (driver.preparing, driver.peeking):
            if task is not None:
                task.cancel()
                await _settled(task)
        if driver.applying is not None:
            driver.handover.request()
            _, pending = await asyncio.wait([driver.applying], timeout=self._grace)
            for task in pending:
                task.cancel()
            await _settled(driver.applying)


async def _settled(task: Awaitable[object]) -> None:
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
