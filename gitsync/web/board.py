"""What the HTTP surface shows and asks for: views, and the protocol that the service implements.

A view is a finished picture of one Application, its pods apart, which are read when somebody looks. None of it is
secret.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from aiohttp import web

if TYPE_CHECKING:
    from gitsync.web.webhooks import Trigger


class StepState(StrEnum):
    """State of one step, or of one pod."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the way from commit to pods: commit, images, plan, rollout, pods, in this order."""

    name: str
    state: StepState
    summary: str = ""  # one line
    seconds: float | None = None
    details: tuple[str, ...] = ()  # one line each: an image, a changed object, a finding


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod of a workload of the Application. ``digest`` is of its first image of ours."""

    name: str
    state: StepState
    message: str = ""  # Running and ready, CrashLoopBackOff, …
    revision: str = ""
    digest: str = ""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The commit that the way begins with. ``url`` is a page about it, or empty."""

    revision: str  # main@sha1:<sha>
    sha: str
    subject: str = ""
    author: str = ""
    at: datetime | None = None
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One line of the history. ``outcome`` is deployed, restored, failed or refused."""

    revision: str
    at: datetime
    outcome: str
    subject: str = ""
    author: str = ""
    seconds: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One Application. ``status`` is the resource's own, as ``report.status`` builds it."""

    namespace: str
    name: str
    repository: str
    ref: str
    suspended: bool = False
    status: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    commit: Commit | None = None
    steps: tuple[Step, ...] = ()
    pods: tuple[PodView, ...] = ()
    history: tuple[Deployment, ...] = ()  # newest first
    build_log: str = ""  # the end of the last build's output, redacted

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def ready(self) -> Mapping[str, Any]:
        """The condition Ready; unknown before there is one."""
        conditions: Sequence[Mapping[str, Any]] = self.status.get("conditions") or ()
        for condition in conditions:
            if condition.get("type") == "Ready":
                return condition
        return {"type": "Ready", "status": "Unknown", "reason": "", "message": ""}


class Subscription:
    """The keys that changed since the last look: a set, so a slow reader costs no memory."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._event = asyncio.Event()
        self.closed = False

    def put(self, key: str) -> None:
        self._keys.add(key)
        self._event.set()

    def close(self) -> None:
        self.closed = True
        self._event.set()

    async def next(self, timeout: float) -> frozenset[str]:
        """Waits for changes; empty after ``timeout`` seconds or when closed."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return frozenset()
        keys = frozenset(self._keys)
        self._keys.clear()
        if not self.closed:
            self._event.clear()
        return keys


class Changes:
    """Tells every page that is open which Applications changed. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    def publish(self, key: str) -> None:
        for subscription in self._subscriptions:
            subscription.put(key)

    @contextmanager
    def subscribe(self) -> Generator[Subscription, None, None]:
        subscription = Subscription()
        if self._closed:
            subscription.close()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Ends every subscription, now and later: the server stops."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()


class Board(Protocol):
    """The service, as the HTTP surface sees it. What is not ``async`` answers from memory, at once."""

    @property
    def changes(self) -> Changes: ...

    def applications(self) -> Sequence[View]:
        """All of them, by namespace and name."""
        ...

    def application(self, key: str) -> View | None: ...

    async def pods(self, key: str) -> tuple[PodView, ...]:
        """The pods as they live; those that cannot be read within seconds are left out."""
        ...

    def not_ready(self) -> str:
        """Why this process cannot work yet; empty when it can."""
        ...

    def trigger(self, trigger: Trigger) -> int:
        """Wakes the Applications that a push concerns (``Trigger.concerns``); how many. Never waits."""
        ...

    async def sync(self, key: str, *, retry: bool) -> None:
        """Work on it now; ``retry`` also releases what is quarantined. Raises ``GitsyncError``."""
        ...

    async def suspend(self, key: str) -> None: ...

    async def resume(self, key: str) -> None: ...


#: Where handlers find the board.
BOARD: web.AppKey[Board] = web.AppKey("BOARD", Board)
