"""The objects and their history, in memory: one revision counter, a bounded log that watches read from.

Objects are immutable once stored: a write replaces the whole dict. Knows nothing of kinds, schemas or HTTP.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace of a cluster-scoped object is ""."""


class Expired(Exception):
    """A revision that was compacted away: the client must list again (410 Gone)."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {asked} ({oldest})")


@dataclass(frozen=True, slots=True)
class Event:
    """One write. ``previous`` is what the object was before (``None`` when it was created)."""

    revision: int
    resource: str
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Json
    previous: Json | None


class Store:
    """``resource`` is plural.group, e.g. ``deployments.apps``; the core group's have no dot."""

    def __init__(self, *, history: int = 2_000) -> None:
        """``history``: how many writes a watch can go back before it gets ``Expired``."""
        self.revision = 1
        self._objects: dict[str, dict[Key, Json]] = {}
        self._log: deque[Event] = deque()
        self._history = history
        self._compacted = 0
        self._changed = asyncio.Event()

    def get(self, resource: str, namespace: str, name: str) -> Json | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def items(self, resource: str, namespace: str = "") -> list[Json]:
        """All objects (of one namespace, unless it is ""), ordered by namespace and name."""
        found = self._objects.get(resource, {})
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def count(self, resource: str) -> int:
        return len(self._objects.get(resource, {}))

    def everything(self) -> Iterator[tuple[str, Json]]:
        """(resource, object) of all that is stored; safe against writes in between."""
        for resource, objects in list(self._objects.items()):
            for each in list(objects.values()):
                yield resource, each

    def put(self, resource: str, value: Json) -> Json:
        """Store a new object or a new state of one; returns it with its resourceVersion."""
        metadata = value["metadata"]
        key = (metadata.get("namespace", ""), metadata["name"])
        objects = self._objects.setdefault(resource, {})
        previous = objects.get(key)
        stored = objects[key] = self._stamped(value)
        self._append("MODIFIED" if previous else "ADDED", resource, stored, previous)
        return stored

    def remove(self, resource: str, namespace: str, name: str, final: Json | None = None) -> Json:
        """Remove an object; ``final`` is its last state if that differs from the stored one."""
        previous = self._objects[resource].pop((namespace, name))
        stored = self._stamped(final or previous)
        self._append("DELETED", resource, stored, previous)
        return stored

    def forget(self, resource: str) -> None:
        """Drop all objects of a resource that is served no more, without events."""
        self._objects.pop(resource, None)

    def compact(self) -> None:
        """Forget the whole history: watches that are behind get ``Expired``."""
        self._compacted = self.revision
        self._log.clear()

    def since(self, revision: int) -> list[Event]:
        """Events after a revision, oldest first."""
        if revision < self._compacted:
            raise Expired(revision, self._compacted)
        found: list[Event] = []
        for event in reversed(self._log):
            if event.revision <= revision:
                break
            found.append(event)
        found.reverse()
        return found

    async def watch(self, revision: int) -> AsyncIterator[list[Event]]:
        """Batches of events after ``revision``, as they come. ``Expired`` when the reader falls behind the history."""
        while True:
            changed = self._changed
            batch = self.since(revision)
            if batch:
                revision = batch[-1].revision
                yield batch
            else:
                await changed.wait()

    def _stamped(self, value: Json) -> Json:
        self.revision += 1
        return value | {"metadata": value["metadata"] | {"resourceVersion": str(self.revision)}}

    def _append(
        self, what: Literal["ADDED", "MODIFIED", "DELETED"], resource: str, value: Json, old: Json | None
    ) -> None:
        self._log.append(Event(self.revision, resource, what, value, old))
        if len(self._log) > self._history:
            self._compacted = self._log.popleft().revision
        self._changed.set()
        self._changed = asyncio.Event()
