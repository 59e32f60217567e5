"""Follows what was applied, between rollouts: names what no longer is as it was sent, and how healthy it all is.

One watch per kind, namespace and account serves every Application. What is remembered of an object is a digest of the
fields that we sent, as the server answered them, so that defaults and webhooks are absorbed and other people's fields
are none of our business. Owns no decision and writes nothing: it says *that* an Application should look, and what it
heard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import orjson
import structlog

from gitsync.cluster.cache import Observed, Watcher
from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError
from gitsync.model import LABEL_APPLICATION, Health, HealthStatus, Json, ObjectRef, left_alone
from gitsync.rollout.health import aggregate, gates, health
from gitsync.rollout.target import Key

log = structlog.get_logger(__name__)

Place = tuple[str, str, str, str, str]  # account, group, version, kind, namespace
Fingerprint = Callable[[Json, Json], str]
"""(what was sent, what lives) → digest over the fields that were sent (``plan.diff.owned_digest``)."""

_MOST_HEARD = 8
_GONE = ("", b"gone")
_SHORTLY = 0.05  # seconds
_ANEW = 5.0  # seconds until a watch that broke begins again


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """An object that is not as it was sent, as heard at ``at``. ``live`` is ``None`` if it is gone.

    ``unread``: something was heard of it while a rollout wrote it, and nobody knows what; read it.
    """

    ref: ObjectRef
    at: datetime
    live: Json | None = None
    unread: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One object to follow. ``fields`` is the fingerprint of how it is right; "": as it is seen first.

    ``version`` is the resource version that has these fields, if that is known. ``whole`` is the digest of an object
    that has them (``cluster.cache``): one that looks like that is not looked into. ``untouched``: nothing was sent of
    it since it was followed, so what is known of it stays, a difference too.
    """

    ref: ObjectRef
    sent: Json
    fields: str = ""
    version: str = ""
    whole: bytes = b""
    untouched: bool = False


@dataclass(slots=True)
class _Expected:
    """One object as it should be. ``seen`` is the digest of a version that was compared and found equal.

    ``heard`` are the last versions that the watch told, with their digests: it tells a reply of the server that is
    older than what was heard meanwhile from one that is news.
    """

    owner: str
    ref: ObjectRef
    sent: Json
    fields: str
    seen: bytes = b""
    heard: tuple[tuple[str, bytes], ...] = ()

    def overtaken(self, version: str) -> bool:
        """Whether more than its status was heard to change after ``version``. A watch tells versions in their order."""
        versions = [each for each, _ in self.heard]
        if version not in versions:  # not heard yet, unless it was long ago
            return len(versions) == _MOST_HEARD
        return len({digest for _, digest in self.heard[versions.index(version) :]}) > 1


@dataclass(slots=True)
class _Watched:
    watcher: Watcher
    task: asyncio.Task[None]
    users: set[str] = field(default_factory=set[str])


class Follower:
    """One for the process. ``async with`` it. ``on_drift`` and ``on_health`` are called in the event loop.

    ``on_drift(application key)``: ``drifted`` has something new to say, or nothing any more; once, until ``accept`` or
    ``follow`` answers for the object. ``on_health(application key, health)``: it changed.
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
        self._drifted: dict[str, dict[Key, Drift]] = {}
        self._health: dict[str, dict[Key, Health]] = {}
        self._watched: dict[Place, _Watched] = {}
        self._judged: set[str] = set()

    async def __aenter__(self) -> Follower:
        return self

    async def __aexit__(self, *_: object) -> None:
        for watched in self._watched.values():
            watched.task.cancel()
        await asyncio.gather(*(watched.task for watched in self._watched.values()), return_exceptions=True)
        self._watched.clear()

    # ------------------------------------------------------------------ what should be

    async def follow(self, owner: str, objects: Iterable[Followed], *, impersonate: str = "") -> None:
        """From now on these, and only these, are the objects of Application ``owner``.

        Kinds that cannot be watched are left out. ``impersonate``: user whose rights apply.
        """
        wanted: dict[Key, _Expected] = {}
        unread: dict[Key, Drift] = {}
        for each in objects:
            ref = each.ref
            former = self._expected.get(ref.key)
            if each.untouched and former is not None and former.owner == owner:
                wanted[ref.key] = former
                if drift := self._drifted.get(owner, {}).get(ref.key):
                    unread[ref.key] = drift
                continue
            wanted[ref.key] = expected = _Expected(owner, ref, each.sent, each.fields, each.whole)
            if each.version and self._overtaken(impersonate, ref, each.version):
                unread[ref.key] = Drift(ref=ref, at=datetime.now(UTC), unread=True)
                expected.seen = b""
            if former is not None:
                expected.heard = former.heard[-1:]
        for key in self._owned.get(owner, set()) - wanted.keys():
            if key in self._expected and self._expected[key].owner == owner:  # else it has moved to another one
                del self._expected[key]
            self._health.get(owner, {}).pop(key, None)
        self._expected.update(wanted)
        self._owned[owner] = set(wanted)
        self._drifted[owner] = unread
        places = {(impersonate, each.ref.group, each.ref.version, each.ref.kind, each.ref.namespace)
                  for each in wanted.values()}  # fmt: skip
        for place in [place for place, watched in self._watched.items() if owner in watched.users]:
            if place not in places:
                await self._leave(place, owner)
        for place in places:
            await self._watch(place, owner)
        if unread:
            self._on_drift(owner)

    def _overtaken(self, account: str, ref: ObjectRef, version: str) -> bool:
        """Whether what the watch has heard of the object may be newer than ``version``."""
        expected = self._expected.get(ref.key)
        if expected is not None:
            return expected.overtaken(version)
        watched = self._watched.get((account, ref.group, ref.version, ref.kind, ref.namespace))
        if watched is None or not watched.watcher.synced.is_set():
            return False  # its first list will tell
        entry = watched.watcher.entries.get((ref.namespace, ref.name))
        return entry is None or entry.version != version

    async def forget(self, owner: str) -> None:
        await self.follow(owner, ())
        for table in (self._owned, self._drifted, self._health):
            table.pop(owner, None)

    def expects(self, ref: ObjectRef) -> Json | None:
        """What was sent of the object, in the form in which it is compared."""
        expected = self._expected.get(ref.key)
        return expected.sent if expected else None

    def equal(self, ref: ObjectRef, live: Json) -> bool:
        """Whether the object is as it should be, or a person has marked it to be left alone."""
        expected = self._expected.get(ref.key)
        if expected is None or left_alone(live):
            return True
        return expected.fields in ("", self._fingerprint(expected.sent, live))

    def accept(self, ref: ObjectRef, reply: Json, *, sent: Json | None = None) -> None:
        """The server's answer to a repair, or a version that is right: this is how it should be.

        ``sent``: from now on these fields only.
        """
        expected = self._expected.get(ref.key)
        if expected is None:
            return
        expected.sent = expected.sent if sent is None else sent
        if not left_alone(reply):  # else it is as it should be again only when the mark has gone
            expected.fields = self._fingerprint(expected.sent, reply)
        expected.seen = b""
        if expected.overtaken(str(reply["metadata"].get("resourceVersion", ""))):
            self._drifted.setdefault(expected.owner, {})[ref.key] = Drift(ref=ref, at=datetime.now(UTC), unread=True)
            self._on_drift(expected.owner)
        else:
            self._drifted.get(expected.owner, {}).pop(ref.key, None)

    def attend(self, owner: str, keys: Iterable[Key] | None = None) -> None:
        """These (``None``: all) are about to be written: what is heard from now on is held against the replies."""
        for key in self._owned.get(owner, ()) if keys is None else keys:
            if expected := self._expected.get(key):
                expected.heard = expected.heard[-1:]

    # ------------------------------------------------------------------ what is

    def sees(self, owner: str) -> bool:
        """Whether every object is watched and no watch is blind: what ``drifted`` does not name is as it should be."""
        mine = [(place, watched.watcher) for place, watched in self._watched.items() if owner in watched.users]
        places = {(group, kind, namespace) for (_, group, _, kind, namespace), _ in mine}
        watched = all(key[:3] in places for key in self._owned.get(owner, ()))
        return watched and all(watcher.stale_since is None for _, watcher in mine)

    def drifted(self, owner: str) -> Mapping[Key, Drift]:
        """Objects that differ, or are gone, as far as the watches tell."""
        return dict(self._drifted.get(owner, {}))

    def health(self, owner: str) -> Health | None:
        """The worst of all that was heard; ``None``: nothing yet."""
        heard = self._health.get(owner)
        return aggregate(heard.values()) if heard else None

    def unhealthy(self, owner: str) -> int:
        """How many objects are not healthy, of all that was heard."""
        well = (HealthStatus.HEALTHY, HealthStatus.SUSPENDED)
        return sum(each.status not in well for each in self._health.get(owner, {}).values())

    def _heard(self, group: str, kind: str, seen: Observed) -> None:
        key = (group, kind, *seen.key)
        expected = self._expected.get(key)
        if expected is None:
            return
        mark = (seen.entry.version, seen.entry.digest) if seen.entry else _GONE
        if expected.heard[-1:] != (mark,):
            expected.heard = (*expected.heard, mark)[-_MOST_HEARD:]
        if seen.entry is None:
            self._drifts(expected, None)
            if gates(expected.ref):
                self._judge(expected, None)
            return
        # What has no status is as healthy as it was.
        if seen.entry.digest == expected.seen and not (gates(expected.ref) and b'"status"' in seen.raw):
            return
        live: Json = {"apiVersion": expected.ref.api_version, "kind": kind} | orjson.loads(seen.raw)
        if seen.entry.digest != expected.seen:
            fields = self._fingerprint(expected.sent, live)
            expected.fields = expected.fields or fields
            if fields == expected.fields or left_alone(live):
                expected.seen = seen.entry.digest
                if self._drifted.get(expected.owner, {}).pop(key, None) and not self._drifted[expected.owner]:
                    self._on_drift(expected.owner)  # it is right again without our doing
            else:
                self._drifts(expected, live)
        if gates(expected.ref):
            self._judge(expected, live)

    def _drifts(self, expected: _Expected, live: Json | None) -> None:
        expected.seen = b""
        drifted = self._drifted.setdefault(expected.owner, {})
        known = expected.ref.key in drifted
        drifted[expected.ref.key] = Drift(ref=expected.ref, at=datetime.now(UTC), live=live)
        if not known:
            self._on_drift(expected.owner)

    def _judge(self, expected: _Expected, live: Json | None) -> None:
        table = self._health.setdefault(expected.owner, {})
        verdict = health(live, expected.ref)
        if table.get(expected.ref.key) == verdict:
            return
        table[expected.ref.key] = verdict
        if not self._judged:  # one verdict for all that is heard in one go: it looks at every object
            asyncio.get_running_loop().call_later(_SHORTLY, self._tell)
        self._judged.add(expected.owner)

    def _tell(self) -> None:
        judged, self._judged = self._judged, set()
        for owner in judged:
            if heard := self.health(owner):
                self._on_health(owner, heard)

    # ------------------------------------------------------------------ watches

    async def _watch(self, place: Place, owner: str) -> None:
        watched = self._watched.get(place)
        if watched is None:
            account, group, version, kind, namespace = place
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
                impersonate=account,
                on_stale=lambda error: self._stale(kind, namespace, error),
                on_listed=lambda: self._listed(place),
            )
            task = asyncio.create_task(_kept(watcher), name=f"follow {kind} in {namespace or 'the cluster'}")
            watched = self._watched[place] = _Watched(watcher, task)
        watched.users.add(owner)

    def _listed(self, place: Place) -> None:
        """What a list lacks and the watch never knew (it came and went in between) is gone; no event will tell."""
        _, group, version, kind, namespace = place
        watched = self._watched[place]
        for owner in watched.users:
            for key in self._owned.get(owner, ()):
                if key[:3] != (group, kind, namespace) or key[2:] in watched.watcher.entries:
                    continue
                ref = self._expected[key].ref if key in self._expected else None
                if ref and ref.version == version:
                    self._drifted.setdefault(owner, {})[key] = Drift(ref=ref, at=datetime.now(UTC), unread=True)
                    self._on_drift(owner)

    def _stale(self, kind: str, namespace: str, error: GitsyncError | None) -> None:
        if error is not None:
            log.warning("a watch is blind", kind=kind, namespace=namespace, reason=error.reason, error=str(error))
        else:
            log.info("a watch sees again", kind=kind, namespace=namespace)

    def blind(self) -> float:
        """For how many seconds the watch that is blind longest has seen nothing; 0 if all see."""
        now = time.monotonic()
        return max((now - (watched.watcher.stale_since or now) for watched in self._watched.values()), default=0.0)

    async def _leave(self, place: Place, owner: str) -> None:
        watched = self._watched[place]
        watched.users.discard(owner)
        if not watched.users:
            del self._watched[place]
            watched.task.cancel()
            await asyncio.gather(watched.task, return_exceptions=True)


async def _kept(watcher: Watcher) -> None:
    """Until cancelled. An error that nobody foresaw is told, and must leave no Application unwatched."""
    while True:
        try:
            await watcher.run()
        except Exception:
            log.exception("a watch broke unexpectedly; it begins again", kind=watcher.resource.kind)
        await asyncio.sleep(_ANEW)
