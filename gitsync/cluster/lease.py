"""Leader election on a coordination/v1 Lease, so that one process at a time writes.

Time is this process's monotonic clock alone: a lease of somebody else counts as expired when it has not been seen to
change for its whole duration, whatever the clocks of the two machines say. Every write is guarded by the version that
was read. ``Lease.require`` is made for ``Cluster.guard``: after a pause (a stopped process, a cut network) it raises
before the first byte that a former leader would send.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError, Transient
from gitsync.failpoints import failpoint
from gitsync.model import Json, ObjectRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds. A leader that could not renew for ``renew_deadline`` stops; others may take over after ``duration``."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not self.retry < self.renew_deadline < self.duration:
            raise ValueError("a lease needs retry < renew_deadline < duration")

    @property
    def call(self) -> float:
        """The longest that one attempt may take: a leader has time for three."""
        return self.renew_deadline / 3


@dataclass(slots=True)
class _Seen:
    """The lease as last observed, and when it was first seen like that."""

    version: str
    since: float


class Lease:
    """One candidate. ``identity`` must be unique among all processes that ever compete for the lease."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ref = ObjectRef(group="coordination.k8s.io", version="v1", kind="Lease", namespace=namespace, name=name)
        self.identity = identity
        self.holder = ""  # who held it when last read, for status pages
        self._cluster = cluster
        self._timing = timing or Timing()
        self._clock = clock
        self._seen: _Seen | None = None
        self._object: Json | None = None
        self._valid_until = float("-inf")
        self._term: int | None = None  # the lease's leaseTransitions when it was acquired

    @property
    def held(self) -> bool:
        return self._clock() < self._valid_until

    def require(self) -> None:
        """Raise ``Transient`` unless the lease is held at this instant."""
        if not self.held:
            raise Transient(
                f"this process is not the leader ({self.holder or 'nobody'} is)", doing="writing", reason="NotLeader"
            )

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the lease, run ``work`` while it is held, and start over when it is lost; for ever, until cancelled.

        ``work`` is cancelled and awaited before the lease is given up. Returns only if ``work`` does. Its errors pass.
        """
        while True:
            await self._acquire()
            failpoint("lease.acquired")
            task = asyncio.ensure_future(work())
            try:
                lost = asyncio.ensure_future(self._keep())
                try:
                    await asyncio.wait((task, lost), return_when=asyncio.FIRST_COMPLETED)
                    if task.done():
                        return task.result()
                    lost.result()
                finally:
                    await _ended(lost)
            finally:
                await _ended(task)
                await self._release()

    async def _acquire(self) -> None:
        while True:
            if await self._try():
                return
            await asyncio.sleep(self._timing.retry * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def _keep(self) -> None:
        """Renew until that has failed for the renew deadline, or somebody else holds the lease."""
        while self.held:
            await asyncio.sleep(self._timing.retry)
            await self._try(renew=True)

    async def _try(self, *, renew: bool = False) -> bool:
        """Acquire or renew once. False: somebody else has it, or the API server did not answer in time."""
        began = self._clock()
        try:
            async with asyncio.timeout(self._timing.call):
                won = await self._write(renew)
        except (TimeoutError, GitsyncError):
            self._object = None  # what the server has now is not known
            return False
        if won:
            self._valid_until = began + self._timing.renew_deadline
        return won

    async def _write(self, renew: bool) -> bool:
        live = self._object if self.held else None
        if live is None:
            live = await self._cluster.get(self.ref, deadline=self._timing.call)
            self._observe(live)
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = dict(_spec(live))
        if renew and (self.holder != self.identity or spec.get("leaseTransitions") != self._term):
            self._valid_until = float("-inf")  # somebody else has led since
            return False
        if self.holder and self.holder != self.identity and not self._expired(spec):
            return False
        if self.holder != self.identity:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        spec |= {"holderIdentity": self.identity, "renewTime": now}
        spec["leaseDurationSeconds"] = max(1, round(self._timing.duration))
        await self._put(live, spec)
        self._term = spec.get("leaseTransitions")
        return True

    def _observe(self, live: Json | None) -> None:
        version = live["metadata"]["resourceVersion"] if live else ""
        if self._seen is None or self._seen.version != version:
            self._seen = _Seen(version, self._clock())
        self.holder = str(_spec(live).get("holderIdentity") or "")

    def _expired(self, spec: Json) -> bool:
        duration = float(spec.get("leaseDurationSeconds") or self._timing.duration)
        return self._seen is not None and self._clock() - self._seen.since > duration

    async def _put(self, live: Json | None, spec: Json) -> None:
        metadata: Json = {"namespace": self.ref.namespace, "name": self.ref.name}
        if live:
            metadata["resourceVersion"] = live["metadata"]["resourceVersion"]
        body: Json = {"apiVersion": self.ref.api_version, "kind": "Lease", "metadata": metadata, "spec": spec}
        write = self._cluster.update if live else self._cluster.create
        self._object = await write(body, deadline=self._timing.call, guarded=False)
        self._observe(self._object)

    async def _release(self) -> None:
        """Give it up at once, if it is still ours; best effort, because it expires anyway."""
        self._valid_until = float("-inf")
        live, self._object = self._object, None
        if live is None or self.holder != self.identity:
            return
        with suppress(GitsyncError, TimeoutError):
            async with asyncio.timeout(self._timing.call):
                await self._put(live, dict(live["spec"]) | {"holderIdentity": "", "leaseDurationSeconds": 1})
        self._object = None
        failpoint("lease.released")


def _spec(live: Json | None) -> Json:
    """What the lease says. One that somebody else has made may say nothing."""
    found: Json | None = live.get("spec") if live else None
    return found or {}


async def _ended(task: asyncio.Future[None]) -> None:
    """Cancel a task of ours and wait for its end, whatever it ends with."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
