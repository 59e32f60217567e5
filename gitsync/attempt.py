"""What a run through the pipeline works on, and the pure decisions about it. No I/O here.

``Decision`` names what was looked at, ``Prepared`` is a plan with all that applying it needs, ``Memory`` is what a
process remembers of an Application between runs (a cache: it may vanish at any moment), and the functions turn
Records, plans and snapshots into new ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import orjson

from gitsync import __version__
from gitsync.application import DEFAULT_PATHS, Application
from gitsync.cluster.record import Attempt, GoodState, HistoryEntry, Quarantined, Record
from gitsync.errors import GitsyncError, Invalid
from gitsync.model import (
    ANNOTATION_APPROVE,
    ANNOTATION_REFRESH,
    ANNOTATION_REQUESTED_AT,
    ANNOTATION_RETRY,
    Action,
    Applied,
    Change,
    Desired,
    ImageSet,
    ImageSpec,
    InventoryItem,
    Json,
    Manifest,
    ObjectRef,
    Origin,
    Plan,
    Revision,
    Snapshot,
    Stage,
    left_alone,
)
from gitsync.plan import lint
from gitsync.rollout.follow import Drift
from gitsync.rollout.target import Key, Place, part, place_of
from gitsync.rollout.target import Target as ClusterTarget
from gitsync.source import Ref

MOST_GETS = 8  # objects of one kind and namespace read one by one; more are read by a list
HANDED_OVER_RETRY = 0.0
UNFINISHED_RETRY = 5.0
FREE_REPAIRS = 3  # of one object at once, then the pauses double: 7 in the first minute
LONGEST_TRUCE = 300.0  # seconds
PEACE = 600.0  # seconds without a repair after which a fight is forgotten
BUILD_LOG = 200  # lines
MOST_HISTORY = 50
MOST_KEPT = 10  # deployments whose objects are kept, to go back to
MOST_QUARANTINED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a run decided about. The same again needs no second look."""

    sha: str
    generation: int
    approved: str = ""
    retried: str = ""
    refreshed: str = ""

    @property
    def mark(self) -> str:
        """Under what else than the commit it was decided. Another gitsync may make something else of the same."""
        return " ".join((__version__, str(self.generation), self.approved, self.retried, self.refreshed))

    def delivered(self, good: GoodState) -> bool:
        """Whether this is what serves already, with nothing left to do."""
        return good.revision.sha == self.sha and good.settled == self.mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan, and what it was made from. ``digest`` is what quarantine would remember.

    ``deferred`` could not be dry-run before the commit's own namespaces, definitions and roles exist; ``present`` are
    the unchanged objects as they live; ``record_generation`` tells whether the Record was written since.
    """

    application: Application
    decision: Decision
    plan: Plan
    images: ImageSet
    digest: str
    target: ClusterTarget
    deferred: tuple[Manifest, ...] = ()
    present: tuple[InventoryItem, ...] = ()
    live: Mapping[Key, Json]
    record_generation: int = 0
    repair: bool = False  # of what somebody changed since the last delivery: no new commit
    rollback: str = ""  # the mark of a person's request for an earlier revision
    abandons: GitsyncError | None = None  # why the attempt that is under way is taken back; nothing of the plan is sent
    dismantles: bool = False  # the Application goes, and takes its objects along

    def resumes(self, attempt: Attempt) -> bool:
        return attempt.digest == self.digest and attempt.revision == self.plan.revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a lane achieved. ``retry_after``: seconds until the next try without a trigger; ``None``: the poll."""

    delivered: bool = False  # something new serves
    retry_after: float | None = None


class Handover:
    """Lets an apply ask, at each safe point, whether a newer plan is waiting."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(slots=True)
class Target:
    """What a preparation turned out to work on, filled in by the work as soon as it knows: a commit's sha."""

    sha: str = ""


@dataclass(slots=True)
class Fight:
    """Repairs of one object. Somebody who writes it again and again is answered ever more rarely."""

    repairs: int = 0
    last: float = 0.0  # monotonic seconds
    told: int = 0  # the repairs after which people were told that it is a fight

    def due(self, now: float) -> float:
        """When it may be repaired again, by the monotonic clock. The first few are repaired at once."""
        return now if now - self.last > PEACE else max(now, self.last + self._pause)

    def over(self, now: float) -> float:
        """When it may be called over: nobody has struck back for as long as the last pause was."""
        return max(now, self.last + self._pause / 2)

    @property
    def _pause(self) -> float:
        """Seconds from the last repair to the next one."""
        fights = self.repairs - FREE_REPAIRS
        return min(LONGEST_TRUCE, 2.0 ** (fights + 1)) if fights >= 0 else 0.0

    def repaired(self, now: float) -> None:
        self.repairs = 1 if now - self.last > PEACE else self.repairs + 1
        self.last = now

    @property
    def is_news(self) -> bool:
        return self.told != self.repairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Two tables of a Record by ``ObjectRef.key``, made once: a repair takes less than a walk through thousands."""

    record: Record
    sent: Mapping[Key, Json]
    inventory: Mapping[Key, InventoryItem]

    @classmethod
    def of(cls, record: Record) -> Index:
        objects = record.last_good.objects if record.last_good else ()
        return cls(
            record=record,
            sent={ObjectRef.of(obj).key: obj for obj in objects},
            inventory={item.ref.key: item for item in record.inventory},
        )


@dataclass(slots=True)
class Memory:
    record: Record | None = None
    seed: str = field(default_factory=lambda: secrets.token_hex(16))  # for a Record that has none yet
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while the Record is written, by either lane
    decided: Decision | None = None
    following: bool = False  # the last good state serves, and watches tell when it changes
    considering: Decision | None = None
    digest: str = ""  # of what is being considered
    applying: Decision | None = None
    rolling_back: str = ""  # the mark of the request to go back that was begun, although no Record may say so
    resumed: bool = False  # the attempt that a former process left was looked at
    build_log: deque[str] = field(default_factory=lambda: deque[str](maxlen=BUILD_LOG))  # the end of it
    replies: dict[Key, Json] = field(default_factory=dict[Key, Json])  # of the rollout under way
    fights: dict[Key, Fight] = field(default_factory=dict[Key, "Fight"])
    drifts: Mapping[Key, Drift] = field(default_factory=dict[Key, Drift])  # under repair, or reported
    differs: dict[Key, str] = field(default_factory=dict[Key, str])  # what was reported of each of these
    stalled: tuple[str, str] | None = None  # what a fight was told in the place of
    index: Index | None = None
    fetched: float = float("-inf")  # when git was last asked, by the monotonic clock
    taken_up: bool = False  # from the Record alone: what differs is dry-run before anything is written
    unmended: bool = False  # what drifted could not be read or put back: git is asked before that is tried again
    disturbed: bool = False  # it was said that the cluster differs from what was delivered


# ---------------------------------------------------------------- the Application and its commit


def decision_of(application: Application, revision: Revision) -> Decision:
    return Decision(
        sha=revision.sha,
        generation=application.generation,
        approved=application.annotations.get(ANNOTATION_APPROVE, ""),
        retried=application.annotations.get(ANNOTATION_RETRY, ""),
        refreshed=application.annotations.get(ANNOTATION_REFRESH, ""),
    )


def manifests_path(snapshot: Snapshot) -> str:
    """The first of the usual directories that the commit has. ``Invalid`` if there is none."""
    for path in DEFAULT_PATHS:
        if any(True for _ in snapshot.entries(path)):
            return path
    raise Invalid(
        f"the repository has none of the directories {', '.join(f'{each}/' for each in DEFAULT_PATHS)}",
        doing="looking for manifests",
        origin=Origin(repository=snapshot.revision.repository, sha=snapshot.revision.sha),
        hint="put the manifests into manifests/, or name their directory in spec.source.path",
        reason="PathNotFound",
    )


def ref_of(application: Application) -> Ref:
    ref = application.spec.source.ref
    return Ref(**{ref.kind: ref.value})


def handled(application: Application) -> dict[str, str]:
    """What to say when everything that was asked for has been looked at."""
    return {"handled_request": application.annotations.get(ANNOTATION_REQUESTED_AT, "")}


def approved(application: Application, revision: Revision) -> bool:
    given = application.annotations.get(ANNOTATION_APPROVE, "").rsplit(":", 1)[-1]
    return len(given) >= 7 and revision.sha.startswith(given)


def image_specs(application: Application) -> tuple[ImageSpec, ...]:
    """The ``images:`` entries with their defaults: the context is the Dockerfile's directory, or vice versa."""
    return tuple(
        ImageSpec(
            name=entry.name,
            context=entry.context or posixpath.dirname(entry.dockerfile) or ".",
            dockerfile=entry.dockerfile or posixpath.join(entry.context, "Dockerfile"),
            repository=entry.repository or "",
            target=entry.target,
            args=tuple(sorted(entry.args.items())),
            platforms=tuple(entry.platforms),
        )
        for entry in application.spec.images
    )


def input_digest(desired: Desired, fingerprints: Mapping[str, str]) -> str:
    """Identity of what a commit wants: its unpinned objects, and what their images are made from. 64 hex digits.

    Known before anything is built, so that a commit whose build failed is recognised, too.
    """
    digest = hashlib.sha256()
    for each in (*(manifest.object for manifest in desired.manifests), dict(fingerprints)):
        digest.update(orjson.dumps(each, option=orjson.OPT_SORT_KEYS))
        digest.update(b"\n")
    return digest.hexdigest()


def needed(desired: Desired) -> frozenset[ObjectRef]:
    """The ConfigMaps, Secrets and claims that pods of the commit cannot start without, wherever they come from."""
    keys = frozenset[Key]().union(*(lint.references(manifest) for manifest in desired.manifests))
    return frozenset(
        ObjectRef(group=group, version="v1", kind=kind, namespace=space, name=name) for group, kind, space, name in keys
    )


def followed(obj: Json) -> bool:
    """Whether drift of it is repaired. A Job ran once and may be cleaned away; some say that they are left alone."""
    return obj["kind"] != "Job" and not left_alone(obj)


# ---------------------------------------------------------------- the Record


def permitted_before(record: Record) -> frozenset[Place]:
    """Where the Application had the right to write: it wrote there, or the server's dry run let it."""
    tried = [ObjectRef.of(obj) for obj in record.attempt.objects] if record.attempt else []
    return frozenset(place_of(ref) for ref in (*(item.ref for item in record.inventory), *tried))


def merged(inventory: Sequence[InventoryItem], found: Iterable[InventoryItem]) -> tuple[InventoryItem, ...]:
    """The inventory with these in it; the newest UID of an object wins."""
    items = {item.ref.key: item for item in inventory}
    items.update((item.ref.key, item) for item in found)
    return tuple(items.values())


def without(record: Record, gone: Collection[Key]) -> Record:
    """The Record without these objects in its inventory."""
    return replace(record, inventory=tuple(item for item in record.inventory if item.ref.key not in gone))


def having_run(record: Record, jobs: Iterable[ObjectRef]) -> Record:
    """The Record, knowing that these Jobs of the attempt under way have completed."""
    attempt = record.attempt
    ran = tuple(sorted({*jobs, *attempt.ran})) if attempt else ()
    return replace(record, attempt=replace(attempt, ran=ran)) if attempt else record


def surviving(inventory: Sequence[InventoryItem], prepared: Prepared) -> tuple[InventoryItem, ...]:
    """Without what is neither wanted, nor alive under its UID as the plan was made: it went, whoever deleted it."""
    wanted = {change.manifest.ref.key for change in prepared.plan.changes}
    uids = {key: obj["metadata"]["uid"] for key, obj in prepared.live.items()}
    return tuple(item for item in inventory if item.ref.key in wanted or uids.get(item.ref.key) == item.uid)


def rollback_target(record: Record, wanted: str, generation: int) -> HistoryEntry:
    """The deployment to go back to: ``wanted`` (a sha or its beginning), or the last one before what is live now.

    ``Invalid`` if its objects are not kept, or two begin so. Without a name, one that was condemned after it had served
    is passed over.
    """
    kept = [entry for entry in record.history if entry.objects]
    now = record.attempt or record.last_good
    sha = wanted.rpartition(":")[2]
    latest: list[HistoryEntry] = []  # of each revision
    for entry in kept:
        if all(entry.revision.sha != each.revision.sha for each in latest):
            latest.append(entry)
    if sha:
        found = [entry for entry in latest if entry.revision.sha.startswith(sha)]
        problem = f"there is no deployment of {sha} to go back to"
        if found:
            problem = f"{sha} is the beginning of more than one revision"
    else:
        condemned = {each.revision.sha: each.at for each in record.quarantine if each.generation == generation}
        earlier = [entry for entry in latest if not now or entry.revision.sha != now.revision.sha]
        found = [e for e in earlier if e.revision.sha not in condemned or e.finished_at > condemned[e.revision.sha]][:1]
        problem = "there is no earlier deployment to go back to"
        if earlier:
            problem += " that was not refused, or left by a rollback; one of those has to be named"
    if len(found) == 1:
        return found[0]
    names = ", ".join(entry.revision.short for entry in latest) or "none"
    raise Invalid(
        problem,
        doing="rolling back",
        ref=record.application,
        hint=f"kept are {names}; 'gitsync history' shows them",
        reason="RevisionNotFound",
    )


def recorded(history: Sequence[HistoryEntry], entry: HistoryEntry) -> tuple[HistoryEntry, ...]:
    """The history with one more entry; the objects of old deployments are let go."""
    entries = (entry, *history)[:MOST_HISTORY]
    with_objects = [number for number, each in enumerate(entries) if each.objects]
    late = set(with_objects[MOST_KEPT:])
    return tuple(replace(each, objects=()) if number in late else each for number, each in enumerate(entries))


def wanted_again(record: Record, decision: Decision, images: ImageSet, digest: str) -> GoodState | None:
    """The last good state, if another commit wants exactly that, and nothing was left to do or to say about it.

    ``digest`` is ``input_digest`` of the commit. Findings name a commit's files: those are looked for anew.
    """
    good = record.last_good
    if good is None or record.attempt is not None or good.findings:
        return None
    if (good.digest, good.settled) != (digest, decision.mark):
        return None
    if {image.name: image.reference for image in good.images} != {i.name: i.reference for i in images.images}:
        return None
    served = {ObjectRef.of(obj).key for obj in good.objects}
    return good if served.issuperset(item.ref.key for item in record.inventory) else None  # else one is to be deleted


def _left_behind(record: Record, prepared: Prepared) -> Iterable[Quarantined]:
    """What a rollback goes back behind: it must not come again by itself."""
    for state in (record.last_good, record.attempt):
        if state is not None and state.digest and state.revision.sha != prepared.plan.revision.sha:
            yield Quarantined(
                digest=state.digest,
                generation=prepared.application.generation,
                revision=state.revision,
                stage=Stage.ROLLOUT,
                message=f"a person went back to {prepared.plan.revision}",
                at=datetime.now(UTC),
                left=True,
            )


def begun(record: Record, prepared: Prepared) -> Record:
    """The Record with the attempt in it.

    An attempt that is resumed keeps when it began. One that is resumed or overtaken leaves what it has created and
    replaced to its successor: a restore has to go back behind both.
    """
    changes, former = prepared.plan.changes, record.attempt
    resumed = former is not None and prepared.resumes(former)
    creates = {change.manifest.ref for change in changes if change.action is Action.CREATE}
    replaces = {change.manifest.ref for change in changes if change.action is Action.REPLACE}
    takes = {change.manifest.ref for change in changes if change.instead_of}
    attempt = Attempt(
        revision=prepared.plan.revision,
        phase=Stage.ROLLOUT,
        objects=tuple(change.manifest.object for change in changes),
        origins=tuple(change.manifest.origin for change in changes),
        creates=tuple(sorted(creates | set(former.creates if former else ()))),
        replaces=tuple(sorted(replaces | set(former.replaces if former else ()))),
        takes=tuple(sorted(takes | set(former.takes if former else ()))),
        ran=former.ran if former else (),
        images=prepared.images.images,
        bases=prepared.images.bases,
        started_at=former.started_at if former and resumed else datetime.now(UTC),
        generation=prepared.application.generation,
        digest=prepared.digest,
        overtook=former is not None and (former.overtook or not resumed),
        rollback=prepared.rollback,
    )
    if prepared.rollback:
        record = replace(
            record,
            approvals=answered(record, prepared.rollback),
            quarantine=remembered(record.quarantine, *_left_behind(record, prepared)),
        )
    return replace(
        record, attempt=attempt, inventory=merged(record.inventory, prepared.present),
        bases={**record.bases, **prepared.images.bases},
    )  # fmt: skip


def answered(record: Record, mark: str) -> tuple[str, ...]:
    """``approvals`` with this request in it (``rollback:<token>``, ``retry:<token>``, ``refresh:<token>``).

    An annotation holds one request, so the latest of each kind is all that can be met again; it is never let go.
    """
    kind = mark.partition(":")[0]
    return (*(each for each in record.approvals if each.partition(":")[0] != kind), mark)


def quarantined(prepared: Prepared, stage: Stage, message: str) -> Quarantined:
    return Quarantined(
        digest=prepared.digest,
        generation=prepared.application.generation,
        revision=prepared.plan.revision,
        stage=stage,
        message=message,
        at=datetime.now(UTC),
    )


def remembered(entries: Sequence[Quarantined], *more: Quarantined) -> tuple[Quarantined, ...]:
    """One entry per input; the oldest of many are forgotten."""
    by_input = {(each.digest, each.generation): each for each in more}
    others = [each for each in entries if (each.digest, each.generation) not in by_input]
    return (*others, *by_input.values())[-MOST_QUARANTINED:]


# ---------------------------------------------------------------- the plan


def without_effectless(planned: Plan, live: Mapping[Key, Json], replies: Mapping[Key, Applied]) -> Plan:
    """The plan without updates that the server says change nothing (a default, a webhook, another spelling)."""

    def judged(change: Change) -> Change:
        key = change.manifest.ref.key
        if change.action is not Action.UPDATE or key not in replies or key not in live:
            return change
        if essence(live[key]) != essence(replies[key].object):
            return change
        return replace(change, action=Action.UNCHANGED, fields=())

    return replace(planned, waves=tuple(tuple(judged(change) for change in wave) for wave in planned.waves))


def essence(obj: Json) -> Json:
    """An object without what every write changes."""
    metadata = {
        key: value
        for key, value in obj["metadata"].items()
        if key not in ("managedFields", "resourceVersion", "generation")
    }
    return {key: value for key, value in obj.items() if key != "status"} | {"metadata": metadata}


def unproven(wave: Sequence[Change], live: Mapping[Key, Json], good: GoodState | None) -> tuple[Applied, ...]:
    """Objects of the wave that need no change, and yet are not what served last, as they live.

    An earlier try has sent them and was interrupted, or gave up waiting: whether they serve is still to be seen.
    """
    proven = {ObjectRef.of(obj).key: obj for obj in good.objects} if good else {}
    return tuple(
        Applied(
            ref=change.manifest.ref,
            uid=str(found["metadata"]["uid"]),
            resource_version=str(found["metadata"]["resourceVersion"]),
            changed=False,
            object=found,
        )
        for change in wave
        if change.action is Action.UNCHANGED
        and (found := live.get(change.manifest.ref.key)) is not None
        and proven.get(change.manifest.ref.key) != change.manifest.object
    )


def summary(planned: Plan) -> str:
    """``2 created, 1 updated, 4 unchanged``."""
    words = {
        Action.CREATE: "created",
        Action.UPDATE: "updated",
        Action.REPLACE: "replaced",
        Action.UNCHANGED: "unchanged",
    }
    counts = Counter(change.action for change in planned.changes)
    parts = [f"{counts[action]} {word}" for action, word in words.items() if counts[action]]
    parts += [f"{len(planned.deletions)} deleted"] if planned.deletions else []
    return ", ".join(parts)


def placed(planned: Plan, ref: ObjectRef | None, container: str = "", field: str = "") -> str:
    """``Deployment/shop/web (shop@3f2a1b0 manifests/web.yaml:1)``, as far as it is known; "" without an object.

    ``container`` and ``field``: what of it the place is to be of.
    """
    found = next((each.manifest for each in planned.changes if ref and each.manifest.ref.key == ref.key), None)
    if found is None:
        return str(ref or "")
    path = _container_path(found.object, container) if container else ""
    origin = found.at(f"{path}.{field}".rstrip(".")) if path else found.origin
    return f"{ref} ({origin})" if str(origin) else str(ref)


def _container_path(obj: Json, name: str) -> str:
    """Where an object's pods have the container; "" if it is none of git's."""
    for path in (("spec", "template", "spec"), ("spec",), ("spec", "jobTemplate", "spec", "template", "spec")):
        for listed in ("containers", "initContainers"):
            containers: list[Json] = part(obj, *path).get(listed) or []
            for index, each in enumerate(containers):
                if each.get("name") == name:
                    return f"{'.'.join(path)}.{listed}[{index}]"
    return ""


def settled(prepared: Prepared) -> str:
    """The mark of a delivery that left nothing to do, ``""`` of one that waits for an approval."""
    return "" if prepared.plan.held or prepared.rollback else prepared.decision.mark


def held_message(prepared: Prepared) -> str:
    held = prepared.plan.held
    names = ", ".join(str(item.ref) for item in held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
    return (
        f"{prepared.plan.revision} would delete {names}; nothing is deleted until a person approves: "
        f"'gitsync approve {prepared.application.key}'"
    )
