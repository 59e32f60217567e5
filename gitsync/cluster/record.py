"""The Record: what gitsync remembers of one Application, kept in Secrets of a type of its own.

Secrets, because rendered objects may hold secrets and the cluster's ``view`` role must not read them. The Record is
gzipped JSON; what exceeds one Secret is cut into chunks, and five thousand objects fit. A save writes the chunks of a
new generation, then switches the head Secret over in one guarded write, then removes older chunks: a crash in between
leaves the old Record whole. A checksum over the whole is verified on every load. A missing or damaged chunk is
``Corrupt``; it is never read as a Record that is empty, because an empty inventory would orphan or delete things.

Every write expects the version that was loaded: of two writers, one gets ``Conflict`` and must load again.
"""

from __future__ import annotations

import asyncio
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import msgspec
import orjson

from gitsync.cluster.answers import Conflict
from gitsync.cluster.client import Cluster
from gitsync.errors import Invalid
from gitsync.failpoints import failpoint
from gitsync.model import API_GROUP, Finding, Image, InventoryItem, Json, ObjectRef, Origin, Revision, Stage

SECRET_TYPE = f"{API_GROUP}/record"
LABEL_RECORD = f"{API_GROUP}/record-of"
LABEL_RECORD_NAMESPACE = f"{API_GROUP}/record-of-namespace"
LABEL_GENERATION = f"{API_GROUP}/record-generation"

FORMAT = 1
CHUNK = 720 << 10  # bytes, before base64; a Secret holds 1 MiB
LIMIT = 512 << 20  # bytes of JSON; more is a bomb, not a Record


class Corrupt(Invalid):
    """A Record exists and cannot be read. Nothing may be concluded from it, least of all that it is empty."""

    reason = "RecordCorrupt"


# ---------------------------------------------------------------- what is remembered


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the server had one object when it was delivered: a digest of the fields that were sent (``owned_digest``).

    ``scaled``: without the replicas, which are an autoscaler's. ``whole``: of all that anybody wants of it
    (``cluster.cache.digest_of``); while that is the same, a fresh process need not look into the object.
    """

    fields: str
    scaled: bool = False
    whole: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodState:
    """The last state that served: exactly the objects that were sent, pinned and labelled, in order of application."""

    revision: Revision
    objects: tuple[Json, ...]
    images: tuple[Image, ...] = ()
    bases: Mapping[str, str] = field(default_factory=_empty)
    digest: str = ""  # what quarantine would remember, should a person go back behind it
    settled: str = ""  # under what it was delivered completely (``Decision.mark``); "": something is left to do
    looks: tuple[Look, ...] = ()  # of ``objects``; with them a restart needs no rendering to know what has changed
    findings: tuple[Finding, ...] = ()
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A deployment under way, recorded before its first write so that a restart resumes or restores it.

    ``objects`` are rendered, pinned and labelled; ``origins`` says where each came from (or is empty). ``phase`` is the
    step being taken and ``wave`` the wave, from 0. ``creates`` are the objects that did not exist when it was planned:
    only these may a restore remove again. ``replaces`` are those whose interruption was accepted; ``takes`` those of
    ``creates`` that took over what an object before them held. One that overtook an unfinished attempt answers for what
    that one had created and changed, too. ``ran`` are the Jobs that were seen to complete: none runs again, although it
    is cleaned away before the attempt has ended.
    """

    revision: Revision
    phase: Stage
    wave: int = 0
    objects: tuple[Json, ...]
    origins: tuple[Origin, ...] = ()
    creates: tuple[ObjectRef, ...] = ()
    replaces: tuple[ObjectRef, ...] = ()
    takes: tuple[ObjectRef, ...] = ()
    ran: tuple[ObjectRef, ...] = ()
    images: tuple[Image, ...] = ()
    bases: Mapping[str, str] = field(default_factory=_empty)
    started_at: datetime
    generation: int = 0  # of the Application's spec
    digest: str = ""  # what quarantine would remember
    overtook: bool = False
    rollback: str = ""  # the mark of a person's request that it answers: what git names then is condemned


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """What must not be tried again: ``digest`` of a commit's input under a spec's ``generation``.

    ``left``: nothing failed there, a person went back from it.
    """

    digest: str
    generation: int
    revision: Revision
    stage: Stage
    message: str
    at: datetime
    left: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One finished attempt. ``outcome`` in CamelCase; ``objects`` may be kept, to roll back without git."""

    revision: Revision
    started_at: datetime
    finished_at: datetime
    outcome: str
    message: str = ""
    images: tuple[Image, ...] = ()
    lowest_ready_share: float | None = None  # of ready endpoints, 0 to 1; None: nothing served before
    objects: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where a Record was loaded from. Generation 0 has never been saved."""

    generation: int = 0
    resource_version: str = ""
    chunks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything remembered of one Application. Change it with ``dataclasses.replace`` and save the result."""

    application: ObjectRef
    inventory: tuple[InventoryItem, ...] = ()
    last_good: GoodState | None = None
    attempt: Attempt | None = None
    quarantine: tuple[Quarantined, ...] = ()
    history: tuple[HistoryEntry, ...] = ()  # newest first
    bases: Mapping[str, str] = field(default_factory=_empty)  # locked base images: name → digest
    approvals: tuple[str, ...] = ()  # marks of the requests that were answered (``attempt.answered``)
    seed: str = ""  # keys the digests of configuration on pod templates: whoever reads those must not guess a Secret
    stored: Stored = Stored()


# ---------------------------------------------------------------- bytes


class _Wire(msgspec.Struct):
    """Objects stand once in a table; states that share most of them refer to its rows."""

    format: int
    record: Record
    objects: list[Json]
    good: list[int]
    attempt: list[int]
    history: list[list[int]]


def _plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - any mapping
    raise NotImplementedError(f"{type(value).__name__} in a Record")


_encoder = msgspec.json.Encoder(enc_hook=_plain)
_decoder = msgspec.json.Decoder(_Wire)


def pack(record: Record) -> bytes:
    """Gzipped JSON; the same Record gives the same bytes."""
    rows: dict[bytes, int] = {}
    known: dict[int, int] = {}  # by identity first: most states share their objects
    table: list[Json] = []

    def row(obj: Json) -> int:
        if id(obj) not in known:
            encoded = orjson.dumps(obj)
            if encoded not in rows:
                rows[encoded] = len(table)
                table.append(obj)
            known[id(obj)] = rows[encoded]
        return known[id(obj)]

    wire = _Wire(
        format=FORMAT,
        good=[row(each) for each in record.last_good.objects] if record.last_good else [],
        attempt=[row(each) for each in record.attempt.objects] if record.attempt else [],
        history=[[row(each) for each in entry.objects] for entry in record.history],
        objects=table,
        record=replace(
            record,
            stored=Stored(),
            last_good=replace(record.last_good, objects=()) if record.last_good else None,
            attempt=replace(record.attempt, objects=()) if record.attempt else None,
            history=tuple(replace(entry, objects=()) for entry in record.history),
        ),
    )
    packer = zlib.compressobj(6, wbits=31)
    return packer.compress(_encoder.encode(wire)) + packer.flush()


def unpack(packed: bytes) -> Record:
    """The inverse of ``pack``; raises ``Corrupt`` for anything else."""
    doing = "unpacking the Record"
    try:
        unpacker = zlib.decompressobj(wbits=31)
        text = unpacker.decompress(packed, LIMIT)
        if not unpacker.eof:
            raise Corrupt("its end is missing, or it is larger than any Record", doing=doing)
        written = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).get("format", b"0")
        if int(bytes(written)) > FORMAT:
            raise Corrupt(
                f"it has format {int(bytes(written))}, and this gitsync knows {FORMAT}",
                doing=doing,
                hint="it was written by a newer gitsync: run that",
            )
        wire = _decoder.decode(text)
        record = wire.record

        def rows(numbers: list[int]) -> tuple[Json, ...]:
            return tuple(wire.objects[number] for number in numbers)

        return replace(
            record,
            last_good=replace(record.last_good, objects=rows(wire.good)) if record.last_good else None,
            attempt=replace(record.attempt, objects=rows(wire.attempt)) if record.attempt else None,
            history=tuple(
                replace(entry, objects=rows(numbers))
                for entry, numbers in zip(record.history, wire.history, strict=True)
            ),
        )
    except (zlib.error, msgspec.MsgspecError, ValueError, IndexError) as error:
        raise Corrupt(f"it cannot be decoded ({type(error).__name__})", doing=doing) from error


# ---------------------------------------------------------------- Secrets


class _Head(msgspec.Struct):
    """What the head Secret says; ``chunks`` names Secrets, or is empty when the Record is inline."""

    format: int
    generation: int
    sha256: str
    size: int
    chunks: list[str]


class Records:
    """Loads and saves Records. ``namespace``: where they live; "" is each Application's own."""

    def __init__(self, cluster: Cluster, *, namespace: str = "") -> None:
        self._cluster = cluster
        self._namespace = namespace

    async def load(self, application: ObjectRef) -> Record:
        """The Record; a new one only if the server says that none exists. ``Corrupt``, ``Transient``."""
        for _ in range(5):
            head_secret = await self._cluster.get(self._secret(application, self._name(application, "record")))
            if head_secret is None:
                await self._check_nothing_is_left(application)
                return Record(application=application)
            version = str(head_secret["metadata"]["resourceVersion"])
            try:
                return await self._read(application, head_secret)
            except Corrupt:
                again = await self._cluster.get(self._secret(application, self._name(application, "record")))
                if again is not None and again["metadata"]["resourceVersion"] == version:
                    raise  # nobody was writing meanwhile
        raise Conflict("it is being written all the time", doing="loading the Record of", ref=application)

    async def save(self, record: Record, *, owner_uid: str = "") -> Record:
        """Write a new generation; returns the Record to go on with.

        ``owner_uid``: the Application's, so that its Record goes with it (same namespace only). ``Conflict`` if
        somebody else saved since it was loaded; after ``Transient`` its fate is unknown: load again.
        """
        packed = await asyncio.to_thread(pack, record)
        application, before = record.application, record.stored
        generation = before.generation + 1
        digest = sha256(packed).hexdigest()
        parts = [packed[at : at + CHUNK] for at in range(0, len(packed), CHUNK)] if len(packed) > CHUNK else []
        names = [
            self._name(application, "record-chunk", f"{generation}-{digest[:16]}-{number}")
            for number in range(len(parts))
        ]
        for name, part in zip(names, parts, strict=True):
            await self._write_chunk(application, name, part, generation, owner_uid)
            failpoint("record.chunk-written")
        failpoint("record.chunks-written")
        head = _Head(format=FORMAT, generation=generation, sha256=digest, size=len(packed), chunks=names)
        data = {"head": msgspec.json.encode(head)} | ({} if parts else {"record": packed})
        body = self._body(application, self._name(application, "record"), data, generation, owner_uid)
        try:
            if before.resource_version:
                body["metadata"]["resourceVersion"] = before.resource_version
                reply = await self._cluster.update(body)
            else:
                reply = await self._cluster.create(body)
        except Conflict as error:
            raise Conflict(
                "somebody else saved it since it was loaded", doing="saving the Record of", ref=application
            ) from error
        failpoint("record.saved")
        saved = Stored(
            generation=generation, resource_version=reply["metadata"]["resourceVersion"], chunks=tuple(names)
        )
        if names or before.chunks:
            await self._remove_chunks(application, keep=set(names), up_to=generation)
            failpoint("record.cleaned")
        return replace(record, stored=saved)

    async def delete(self, application: ObjectRef) -> None:
        """Forget the Application: the head first, so that no half of a Record can be found."""
        ref = self._secret(application, self._name(application, "record"))
        head = await self._cluster.get(ref)
        if head is not None:
            await self._cluster.delete(ref, head["metadata"]["uid"])
        await self._remove_chunks(application, keep=set(), up_to=None)

    # ------------------------------------------------ parts

    async def _read(self, application: ObjectRef, secret: Json) -> Record:
        doing = f"reading Secret {secret['metadata']['name']} for"
        data: dict[str, str] = secret.get("data") or {}
        try:
            head = msgspec.json.decode(b64decode(data["head"]), type=_Head)
        except (KeyError, ValueError, msgspec.MsgspecError) as error:
            raise self._corrupt("its head is missing or damaged", doing, application) from error
        if head.chunks:
            parts = await asyncio.gather(*(self._read_chunk(application, name, doing) for name in head.chunks))
            packed = b"".join(parts)
        else:
            packed = b64decode(data.get("record", ""))
        if len(packed) != head.size or sha256(packed).hexdigest() != head.sha256:
            raise self._corrupt("its content does not have the recorded checksum", doing, application)
        try:
            record = await asyncio.to_thread(unpack, packed)
        except Corrupt as error:
            raise self._corrupt(error.message, doing, application, error.hint) from error
        if record.application.key != application.key:
            raise self._corrupt(f"it is the Record of {record.application}", doing, application)
        stored = Stored(
            generation=head.generation,
            resource_version=secret["metadata"]["resourceVersion"],
            chunks=tuple(head.chunks),
        )
        return replace(record, stored=stored)

    async def _read_chunk(self, application: ObjectRef, name: str, doing: str) -> bytes:
        secret = await self._cluster.get(self._secret(application, name))
        if secret is None:
            raise self._corrupt(f"its chunk {name} is missing", doing, application)
        try:
            data: dict[str, str] = secret.get("data") or {}
            return b64decode(data["chunk"])
        except (KeyError, ValueError) as error:
            raise self._corrupt(f"its chunk {name} is damaged", doing, application) from error

    async def _write_chunk(
        self, application: ObjectRef, name: str, part: bytes, generation: int, owner_uid: str
    ) -> None:
        body = self._body(application, name, {"chunk": part}, generation, owner_uid) | {"immutable": True}
        try:
            await self._cluster.create(body)
        except Conflict:
            # A save that crashed left it. Its name holds the content's checksum, but do not take its word for it.
            ref = self._secret(application, name)
            live = await self._cluster.get(ref)
            if live is not None and live.get("data") == body["data"]:
                return
            if live is not None:
                await self._cluster.delete(ref, live["metadata"]["uid"])
            await self._cluster.create(body)

    async def _chunks(self, application: ObjectRef) -> list[tuple[ObjectRef, str, int]]:
        """(Secret, UID, generation) of every chunk of the Application."""
        resource = await self._cluster.resource("", "v1", "Secret")
        selector = f"{LABEL_RECORD}={application.name},{LABEL_RECORD_NAMESPACE}={application.namespace}"
        place = self._namespace or application.namespace
        listing = await self._cluster.list(resource, namespace=place, label_selector=selector, metadata_only=True)
        head = self._name(application, "record")
        return [
            (
                ObjectRef.of(item, namespace=place),
                item["metadata"]["uid"],
                int(item["metadata"]["labels"].get(LABEL_GENERATION) or 0),
            )
            for item in listing.items
            if item["metadata"]["name"] != head
        ]

    async def _check_nothing_is_left(self, application: ObjectRef) -> None:
        """Chunks without a head are those of a first save that crashed, unless they are of a later generation."""
        if any(generation > 1 for _, _, generation in await self._chunks(application)):
            raise self._corrupt("its head Secret is gone while its chunks exist", "loading the Record of", application)

    async def _remove_chunks(self, application: ObjectRef, *, keep: set[str], up_to: int | None) -> None:
        """Only up to our generation: a newer one belongs to a writer that has loaded ours."""
        for ref, uid, generation in await self._chunks(application):
            if ref.name not in keep and (up_to is None or generation <= up_to):
                await self._cluster.delete(ref, uid)

    def _corrupt(self, message: str, doing: str, application: ObjectRef, hint: str = "") -> Corrupt:
        name = self._name(application, "record")
        place = self._namespace or application.namespace
        return Corrupt(
            message,
            doing=doing,
            ref=application,
            hint=hint
            or f"restore Secret {place}/{name} and its chunks from a backup, or delete it to adopt what is live",
        )

    def _name(self, application: ObjectRef, suffix: str, middle: str = "") -> str:
        space = [application.namespace] if self._namespace not in ("", application.namespace) else []
        return ".".join([*space, application.name, *([middle] if middle else []), f"gitsync-{suffix}"])

    def _secret(self, application: ObjectRef, name: str) -> ObjectRef:
        return ObjectRef(version="v1", kind="Secret", namespace=self._namespace or application.namespace, name=name)

    def _body(
        self, application: ObjectRef, name: str, data: Mapping[str, bytes], generation: int, owner_uid: str
    ) -> Json:
        metadata: Json = {
            "namespace": self._namespace or application.namespace,
            "name": name,
            "labels": {
                LABEL_RECORD: application.name,
                LABEL_RECORD_NAMESPACE: application.namespace,
                LABEL_GENERATION: str(generation),
            },
        }
        if owner_uid and metadata["namespace"] == application.namespace:
            owner = {"apiVersion": application.api_version, "kind": application.kind, "name": application.name}
            metadata["ownerReferences"] = [owner | {"uid": owner_uid}]
        encoded = {key: b64encode(value).decode() for key, value in data.items()}
        return {"apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE, "metadata": metadata, "data": encoded}
