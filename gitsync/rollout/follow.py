"""Follows what was applied, between rollouts: names what no longer is as it was sent, and how healthy it all is.

One watch per kind and namespace serves every Application. What is remembered of an object is a digest of the fields
that we sent, as the server answered them, so that defaults and webhooks are absorbed and other people's fields are none
of our business. Owns no decision and writes nothing: it says *that* an Application should look, never what it will see.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import orjson
import structlog

from gitsync.cluster.cache import Observed, Watcher
from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError
from gitsync.model import LABEL_APPLICATION, Health, Json, ObjectRef
from gitsync.rollout.health import aggregate, gates, health
from gitsync.rollout.target import Key

log = structlog.get_logger(__name__)

Place = tuple[str, str, str, str]  # group, version, kind, namespace
Fingerprint = Callable[[Json, Json], str]
"""(what was sent, what lives) → digest over the fields that were sent (``plan.diff.owned_digest``)."""


@dataclass(slots=True)
class _Expected:
    """One object as it should be. ``seen`` is the digest of a version that was compared and found equal."""

    owner: str
    ref: ObjectRef
    sent: Json
    fields: str
    seen: bytes = b""


@dataclass(slots=True)
class _Watched:
    watcher: Watcher
    task: asyncio.Task[None]
    users: set[str] = field(default_factory=set[str])


class Follower:
    """One for the process. ``async with`` it. ``on_drift`` and ``on_health`` are called in the event loop.

    ``on_drift(application key)``: ``drifted`` has something to say. ``on_health(application key, health)``: it changed.
    """

    def __init__(
        self,
        cluster: Cluster,
        fingerprint: Fingerprint,
        *,
        on_drift: Callable[[str], None],
        on_health: Callable[[str, Health], None],
    ) -> None:
        self._cluster = cluster
        self._fingerprint = fingerprint
        self._on_drift = on_drift
        self._on_health = on_health
        self._expected: dict[Key, _Expected] = {}
        self._owned: dict[str, set[Key]] = {}
        self._drifted: dict[str, dict[Key, ObjectRef]] = {}
        self._health: dict[str, dict[Key, Health]] = {}
        self._watched: dict[Place, _Watched] = {}

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *_: object) -> None:
        for watched in self._watched.values():
            watched.task.cancel()
        await asyncio.gather(*(watched.task for watched in self._watched.values()), return_exceptions=True)
        self._watched.clear()

    # ------------------------------------------------------------------ what should be

    async def follow(self, owner: str, objects: Iterable[tuple[ObjectRef, Json, Json | None]]) -> None:
        """From now on these, and only these, are the objects of Application ``owner``: (ref, sent, live or reply).

        Without a live object the first one that is seen counts as right. Kinds that cannot be watched are left out.
        """
        wanted = {
            ref.key: _Expected(owner, ref, sent, self._fingerprint(sent, live) if live is not None else "")
            for ref, sent, live in objects
        }
        for key in self._owned.get(owner, set()) - wanted.keys():
            self._expected.pop(key, None)
            self._health.get(owner, {}).pop(key, None)
        self._expected.update(wanted)
        self._owned[owner] = set(wanted)
        self._drifted.pop(owner, None)
        places = {(each.ref.group, each.ref.version, each.ref.kind, each.ref.namespace) for each in wanted.values()}
        for place in [place for place, watched in self._watched.items() if owner in watched.users]:
            if place not in places:
                await self._leave(place, owner)
        for place in places:
            await self._watch(place, owner)

    async def forget(self, owner: str) -> None:
        await self.follow(owner, ())
        for table in (self._owned, self._drifted, self._health):
            table.pop(owner, None)

    def accept(self, ref: ObjectRef, reply: Json) -> None:
        """The server's answer to a repair: this is how it should be."""
        expected = self._expected.get(ref.key)
        if expected is not None:
            expected.fields, expected.seen = self._fingerprint(expected.sent, reply), b""
            self._drifted.get(expected.owner, {}).pop(ref.key, None)

    # ------------------------------------------------------------------ what is

    def drifted(self, owner: str) -> Mapping[Key, ObjectRef]:
        """Objects that differ, or are gone, as far as the watches tell."""
        return dict(self._drifted.get(owner, {}))

    def stale_since(self, owner: str) -> float | None:
        """Since when (monotonic seconds) some watch of the Application is silent or broken; ``None``: none is."""
        since = [w.watcher.stale_since for w in self._watched.values() if owner in w.users]
        return min((each for each in since if each is not None), default=None)

    def _heard(self, group: str, kind: str, seen: Observed) -> None:
        key = (group, kind, *seen.key)
        expected = self._expected.get(key)
        if expected is None:
            return
        if seen.entry is None:
            self._drifts(expected)
            if gates(expected.ref):
                self._judge(expected, None)
            return
        if seen.entry.digest == expected.seen and not gates(expected.ref):
            return
        live: Json = {"apiVersion": expected.ref.api_version, "kind": kind} | orjson.loads(seen.raw)
        if seen.entry.digest != expected.seen:
            fields = self._fingerprint(expected.sent, live)
            expected.fields = expected.fields or fields
            if fields == expected.fields:
                expected.seen = seen.entry.digest
                self._drifted.get(expected.owner, {}).pop(key, None)
            else:
                self._drifts(expected)
        if gates(expected.ref):
            self._judge(expected, live)

    def _drifts(self, expected: _Expected) -> None:
        expected.seen = b""
        self._drifted.setdefault(expected.owner, {})[expected.ref.key] = expected.ref
        self._on_drift(expected.owner)

    def _judge(self, expected: _Expected, live: Json | None) -> None:
        table = self._health.setdefault(expected.owner, {})
        verdict = health(live, expected.ref)
        if table.get(expected.ref.key) != verdict:
            table[expected.ref.key] = verdict
            self._on_health(expected.owner, aggregate(table.values()))

    # ------------------------------------------------------------------ watches

    async def _watch(self, place: Place, owner: str) -> None:
        watched = self._watched.get(place)
        if watched is None:
            group, version, kind, namespace = place
            try:
                resource = await self._cluster.resource(group, version, kind)
            except GitsyncError as error:
                log.warning("a kind cannot be followed", kind=kind, error=str(error))
                return
            if "watch" not in resource.verbs:
                return
            watcher = Watcher(
                self._cluster,
                resource,
                lambda seen: self._heard(group, kind, seen),
                namespace=namespace,
                label_selector=LABEL_APPLICATION,
            )
            task = asyncio.create_task(watcher.run(), name=f"follow {kind} in {namespace or 'the cluster'}")
            watched = self._watched[place] = _Watched(watcher, task)
        watched.users.add(owner)

    async def _leave(self, place: Place, owner: str) -> None:
        watched = self._watched[place]
        watched.users.discard(owner)
        if not watched.users:
            del self._watched[place]
            watched.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, GitsyncError):
                await watched.task
