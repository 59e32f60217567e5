"""What the cluster has of one kind: versions and digests instead of objects, kept current by a watch.

A ``Watcher`` lists in pages, watches from there, resumes where it was cut off, lists again only when the server has
forgotten its place, and backs off with jitter. It says what changed and how stale it is; it never decides what that
means. An object that leaves a watch is read by name before it counts as gone, because removing a label looks the same.
A failed or partial list never makes anything gone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from functools import lru_cache
from hashlib import blake2b

import msgspec
import orjson

from gitsync.cluster.answers import Expired, Resource, WatchEvent
from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError, Transient

Key = tuple[str, str]
"""(namespace, name); the namespace is "" for cluster-scoped kinds."""

_LONGEST_PAUSE = 30.0  # seconds between two attempts
_CHECKS_AT_ONCE = 16


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one object: about half a kilobyte with its key."""

    uid: str
    version: str
    digest: bytes


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One object changed. ``entry`` is ``None`` when it is gone; ``raw`` is its JSON as read, kept by nobody.

    ``selected`` is false for an object that exists but left the watch: its label was removed.
    """

    key: Key
    entry: Entry | None
    raw: bytes = b""
    selected: bool = True


_NOTHING = msgspec.Raw(b"")


class _Meta(msgspec.Struct, rename="camel", gc=False):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    annotations: msgspec.Raw = _NOTHING
    deletion_timestamp: msgspec.Raw = _NOTHING
    finalizers: msgspec.Raw = _NOTHING
    labels: msgspec.Raw = _NOTHING
    owner_references: msgspec.Raw = _NOTHING


Fields = dict[str, msgspec.Raw]
_decode_fields = msgspec.json.Decoder(Fields).decode
_decode_meta = msgspec.json.Decoder(_Meta).decode
_NOT_WRITTEN = frozenset({"apiVersion", "kind", "metadata", "status"})


def digest_of(raw: bytes | msgspec.Raw) -> bytes:
    """16 bytes over what people and controllers want of an object: not its status, nor what the server counts.

    Equal for the same object from a list and from a watch. Formatting counts, so a difference may be none; compare
    then. Equal digests never hide a difference.
    """
    fields = _decode_fields(raw)
    return _digest(fields, _decode_meta(fields["metadata"]))


def _digest(fields: Fields, meta: _Meta) -> bytes:
    digest = blake2b(meta.labels, digest_size=16)
    for value in (meta.annotations, meta.deletion_timestamp, meta.finalizers, meta.owner_references):
        digest.update(b"\0")  # which JSON never contains
        digest.update(value)
    for name in sorted(fields):
        if name not in _NOT_WRITTEN:
            digest.update(_separator(name))
            digest.update(fields[name])
    return digest.digest()


@lru_cache(maxsize=256)
def _separator(name: str) -> bytes:
    return b"\0%b\0" % name.encode()


class Watcher:
    """Follows one kind, narrowed by namespace and selectors. Create, then keep ``run`` running in a task of yours.

    ``on_change`` is called in the event loop, once per new version of an object, the first list included; it must not
    block. ``entries`` is current as far as ``stale_since`` says.
    """

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        on_change: Callable[[Observed], None],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        impersonate: str = "",
        digests: bool = True,
        window: float = 40.0,
        grace: float = 10.0,
        on_stale: Callable[[GitsyncError | None], None] = lambda _: None,
        on_listed: Callable[[], None] = lambda: None,
    ) -> None:
        """``impersonate``: user whose rights apply (``client.service_account``), "" for our own. ``digests`` may be
        left out (empty) by who reads every version anyway. ``window``: seconds of one watch request; silence is
        noticed ``window + grace`` seconds after it began. ``on_stale`` hears once why the watch is blind, and ``None``
        once it sees again. ``on_listed`` is called after each whole list: what it lacked and nobody had seen before
        is in no ``on_change``.
        """
        self.resource = resource
        self.entries: dict[Key, Entry] = {}
        self.synced = asyncio.Event()  # set when the first list is whole, and never cleared
        self.stale_since: float | None = time.monotonic()  # since when nothing is certain; None while all is well
        self.last_error: GitsyncError | None = None
        self._cluster = cluster
        self._on_change = on_change
        self._namespace, self._labels, self._fields = namespace, label_selector, field_selector
        self._impersonate = impersonate
        self._digests = digests
        self._window, self._grace = window, grace
        self._on_stale, self._blind = on_stale, False
        self._on_listed = on_listed
        self._alive = time.monotonic()
        self._departed: dict[Key, Entry] = {}
        self._departures = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled. Server errors are survived and shown in ``last_error``; those of ``on_change`` pass.

        Run again after such a one, it lists anew and tells again what could not be taken.
        """
        self.stale_since = self.stale_since or time.monotonic()
        if self._departed:
            self._departures.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._check_departures())
            await self._follow()

    async def _follow(self) -> None:
        version, failures = "", 0
        while True:
            spoken = False
            began = time.monotonic()
            try:
                if not version:
                    version = await self._list()
                    self._is_alive()
                    self.synced.set()
                    self._on_listed()
                watch = self._cluster.watch(
                    self.resource,
                    resource_version=version,
                    namespace=self._namespace,
                    label_selector=self._labels,
                    field_selector=self._fields,
                    window=self._window,
                    grace=self._grace,
                    impersonate=self._impersonate,
                    on_open=self._is_alive,
                )
                async with aclosing(watch) as events:
                    async for event in events:
                        version = self._take(event)
                        spoken = True
                        self._is_alive()
                if not spoken and time.monotonic() - began < min(5.0, self._window / 2):
                    raise Transient("the server ended the watch at once", doing=f"watching {self.resource.plural}")
                self._is_alive()
                failures = 0
                continue
            except Expired as error:
                version = ""
                self._is_broken(error)
            except GitsyncError as error:
                self._is_broken(error)
            failures = 1 if spoken else failures + 1
            await asyncio.sleep(_pause(failures))

    def _is_alive(self) -> None:
        self._alive = time.monotonic()
        self.stale_since = self.last_error = None
        if self._blind:
            self._blind = False
            self._on_stale(None)

    def _is_broken(self, error: GitsyncError) -> None:
        self.last_error = error
        if self.stale_since is None:
            self.stale_since = self._alive
        if not self._blind and not isinstance(error, Expired):  # that is answered by a list at once
            self._blind = True
            self._on_stale(error)

    async def _list(self) -> str:
        """Take over the whole list; what it lacks has departed, which only a complete list can say."""
        missing, version = set(self.entries), ""
        pages = self._cluster.pages(
            self.resource,
            namespace=self._namespace,
            label_selector=self._labels,
            field_selector=self._fields,
            impersonate=self._impersonate,
        )
        async for page in pages:
            if page is None:
                missing = set(self.entries)
                continue
            version = page.metadata.resource_version
            for item in page.items or ():
                key, _ = self._see(item)
                missing.discard(key)
        for key in missing:
            self._depart(key, self.entries[key])
        return version

    def _take(self, event: WatchEvent) -> str:
        """Take over one event; returns the version to resume from."""
        if event.type == "BOOKMARK":
            return self._parse(event.object)[1].resource_version
        if event.type != "DELETED":
            return self._see(event.object)[1]
        _, meta = self._parse(event.object)
        key = (meta.namespace, meta.name)
        entry = self.entries.get(key)
        if entry is not None and entry.uid == meta.uid:
            self._depart(key, entry)
        return meta.resource_version

    def _parse(self, raw: msgspec.Raw) -> tuple[Fields, _Meta]:
        try:
            fields = _decode_fields(raw)
            meta = _decode_meta(fields["metadata"])
        except (msgspec.DecodeError, KeyError) as error:
            raise Transient(f"not an object: {error}", doing=f"watching {self.resource.plural}") from error
        if not meta.resource_version:
            raise Transient("an object without a resourceVersion", doing=f"watching {self.resource.plural}")
        return fields, meta

    def _see(self, raw: msgspec.Raw) -> tuple[Key, str]:
        fields, meta = self._parse(raw)
        key = (meta.namespace, meta.name)
        known = self.entries.get(key)
        returned = self._departed.pop(key, None)
        if known is None or known.version != meta.resource_version or known.uid != meta.uid or returned:
            entry = Entry(meta.uid, meta.resource_version, _digest(fields, meta) if self._digests else b"")
            self._on_change(Observed(key=key, entry=entry, raw=bytes(raw)))
            self.entries[key] = entry  # not before: what nobody could take must be told again
        return key, meta.resource_version

    # ------------------------------------------------ departures

    def _depart(self, key: Key, entry: Entry) -> None:
        self._departed[key] = entry
        self._departures.set()

    async def _check_departures(self) -> None:
        failures = 0
        while True:
            await self._departures.wait()
            self._departures.clear()
            waiting = list(self._departed)
            for start in range(0, len(waiting), _CHECKS_AT_ONCE):
                batch = waiting[start : start + _CHECKS_AT_ONCE]
                await asyncio.gather(*(self._check(key) for key in batch))
            if not self._departed:
                failures = 0
            elif not self._departures.is_set():
                failures += 1
                self._departures.set()
                await asyncio.sleep(_pause(failures))

    async def _check(self, key: Key) -> None:
        """Read one that left the watch. Nothing is concluded from an error, nor once it has come back."""
        departed = self._departed.get(key)
        try:
            live = await self._cluster.get(self.resource.ref(*key), impersonate=self._impersonate)
        except GitsyncError as error:
            self.last_error = error
            return
        if departed is None or self._departed.get(key) is not departed:
            return
        del self._departed[key]
        if live is None or live["metadata"]["uid"] != departed.uid:
            self._on_change(Observed(key=key, entry=None))
            self.entries.pop(key, None)
            return
        raw = orjson.dumps(live)
        digest = digest_of(raw) if self._digests else b""
        entry = Entry(departed.uid, live["metadata"]["resourceVersion"], digest)
        self.entries[key] = entry
        self._on_change(Observed(key=key, entry=entry, raw=raw, selected=False))


def _pause(failures: int) -> float:
    """Seconds: 0.2, 0.4, … 30, of which a random half is taken away so that many watchers do not come at once."""
    return min(_LONGEST_PAUSE, 0.1 * 2 ** min(failures, 12)) * random.uniform(0.5, 1)  # noqa: S311 - jitter
