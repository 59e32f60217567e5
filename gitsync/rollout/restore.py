"""Puts the last good state back after a failed attempt, and says what it cannot undo.

First ``restore``, then wait until that serves, then ``remove_created``: nothing that may still be taking requests goes
before what replaces it is back. Namespaces, definitions and claims are never deleted, Jobs never run again, and nothing
is removed that the attempt did not create.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from gitsync.cluster.answers import Rejected
from gitsync.cluster.record import Attempt, GoodState
from gitsync.errors import GitsyncError, Invalid
from gitsync.failpoints import failpoint
from gitsync.model import (
    FIELD_MANAGER,
    Action,
    Applied,
    Change,
    HealthStatus,
    InventoryItem,
    Json,
    Manifest,
    ObjectRef,
    Origin,
    left_alone,
)
from gitsync.rollout.apply import apply_one
from gitsync.rollout.health import health
from gitsync.rollout.prune import Kept, Pruned
from gitsync.rollout.serving import JOB, WORKLOADS
from gitsync.rollout.target import Key, Target, on_each

#: Deleting these deletes what people keep in them.
NEVER_DELETED = frozenset(
    {
        ("", "Namespace"),
        ("", "PersistentVolume"),
        ("", "PersistentVolumeClaim"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """``applied`` are to be waited for. ``statements`` are sentences for a person: what is not as it was, and why."""

    applied: tuple[Applied, ...] = ()
    statements: tuple[str, ...] = ()


async def restore(
    target: Target,
    last_good: GoodState | None,
    attempt: Attempt,
    *,
    inventory: Collection[InventoryItem] = (),
    on_applied: Callable[[Applied], None] = lambda _: None,
) -> Restored:
    """Re-apply every object of the last good state that the attempt changed, settings before the pods that read them.

    Where it overtook another attempt, which may have changed any of them, that is every object. What is to be left
    alone was not sent either.

    What the API server refuses to take back (a shrunk claim) becomes a statement and does not stop the rest.
    ``Transient`` if some object could not be sent; calling again is harmless. Without a last good state nothing is
    done.
    """
    failpoint("restore.started")
    if last_good is None:
        return Restored(
            statements=(
                f"There is no earlier state of {target.application} to go back to: what {attempt.revision} has created "
                "stays. Push a commit that works, or delete what should not be there.",
            )
        )
    left = untouched(last_good, attempt)
    changed = [obj for obj in last_good.objects if ObjectRef.of(obj).key not in left]
    uids = {item.ref.key: item.uid for item in inventory}
    replaceable = {ref.key for ref in attempt.replaces}
    origin = Origin(repository=last_good.revision.repository, sha=last_good.revision.sha)

    async def put_back(obj: Json) -> Applied:
        ref = ObjectRef.of(obj)
        manifest = Manifest(ref=ref, object=obj, origin=origin)
        # An update of what is recorded: nothing is adopted on the way back.
        change, uid = Change(action=Action.UPDATE, manifest=manifest), uids.get(ref.key, "recorded")
        try:
            applied = await apply_one(target, change, uid)
        except Rejected:
            if ref.key not in replaceable:
                raise
            applied = await apply_one(target, Change(action=Action.REPLACE, manifest=manifest), uid)
        on_applied(applied)
        failpoint("restore.object-applied")
        return applied

    settings = [obj for obj in changed if _kind(obj) not in WORKLOADS]
    workloads = [obj for obj in changed if _kind(obj) in WORKLOADS and _kind(obj) != JOB]
    applied: list[Applied] = []
    statements: list[str] = []
    for batch in (settings, workloads):
        answers = await on_each(batch, put_back)
        for obj, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Applied):
                applied.append(answer)
            elif isinstance(answer, Invalid):
                statements.append(f"{ObjectRef.of(obj)} could not be put back: {answer.message}")
            else:
                raise answer
    failpoint("restore.applied")
    return Restored(applied=tuple(applied), statements=(*statements, *_irreversible(last_good, attempt)))


def untouched(last_good: GoodState, attempt: Attempt) -> frozenset[Key]:
    """The objects of the last good state of which nothing else was sent: the attempt wants them as they are, or both
    leave them alone."""
    sent = {ObjectRef.of(obj).key: obj for obj in attempt.objects}
    left: set[Key] = set()
    for obj in last_good.objects:
        key = ObjectRef.of(obj).key
        wanted = sent.get(key)
        if wanted is None:
            continue
        if (left_alone(obj) and left_alone(wanted)) or (wanted == obj and not attempt.overtook):
            left.add(key)
    return frozenset(left)


def _irreversible(last_good: GoodState, attempt: Attempt) -> list[str]:
    before = {ObjectRef.of(obj).key for obj in last_good.objects}
    statements: list[str] = []
    for ref in attempt.creates:
        if ref.key in before:
            continue
        if (ref.group, ref.kind) == JOB:
            statements.append(f"{ref} may have run; what it did is not undone")
        elif (ref.group, ref.kind) in NEVER_DELETED:
            statements.append(f"{ref}, which {attempt.revision} brought, stays: deleting it would delete its content")
    return statements


async def remove_created(
    target: Target,
    last_good: GoodState,
    attempt: Attempt,
    *,
    inventory: Collection[InventoryItem] = (),
    only: Collection[ObjectRef] | None = None,
) -> Pruned:
    """Delete what the attempt created and the last good state lacks, in reverse order. Call it once that serves again,
    and before ``restore`` with ``only`` those that hold what the last good state needs back.

    A crash may have kept an object out of the inventory: then it must be one that did not exist when the attempt was
    planned, and say itself that gitsync applied it for this Application. A Job that has completed is kept.
    """
    before = {ObjectRef.of(obj).key for obj in last_good.objects}
    order = {ObjectRef.of(obj).key: number for number, obj in enumerate(attempt.objects)}
    created = [
        ref
        for ref in (attempt.creates if only is None else only)
        if ref.key not in before and (ref.group, ref.kind) not in NEVER_DELETED
    ]
    created.sort(key=lambda ref: order.get(ref.key, 0), reverse=True)
    uids = {item.ref.key: item.uid for item in inventory}

    async def remove(ref: ObjectRef) -> InventoryItem | None:
        item = await _remove(target, ref, uids)
        failpoint("restore.object-removed")
        return item

    removed: list[InventoryItem] = []
    kept: list[Kept] = []
    for ref, answer in zip(created, await on_each(created, remove), strict=True):
        if isinstance(answer, GitsyncError):
            kept.append(Kept(item=InventoryItem(ref=ref, uid=uids.get(ref.key, "")), error=answer))
        elif answer is not None:
            removed.append(answer)
    failpoint("restore.ended")
    return Pruned(removed=tuple(removed), kept=tuple(kept))


async def _remove(target: Target, ref: ObjectRef, uids: dict[Key, str]) -> InventoryItem | None:
    """The item that left the inventory; ``None`` if there is nothing that may be removed."""
    recorded = uids.get(ref.key, "")
    live = await target.cluster.get(ref, impersonate=target.impersonate)
    gone = InventoryItem(ref=ref, uid=recorded) if recorded else None
    if live is None or (recorded and live["metadata"]["uid"] != recorded):
        return gone
    if not target.owns(live) or not (recorded or _applied_by_us(live)):
        return None
    if (ref.group, ref.kind) == JOB and health(live, ref).status is HealthStatus.HEALTHY:
        return None
    uid = str(live["metadata"]["uid"])
    await target.cluster.delete(ref, uid, impersonate=target.impersonate)
    return InventoryItem(ref=ref, uid=uid)


def _applied_by_us(live: Json) -> bool:
    entries: list[Json] = live["metadata"].get("managedFields") or []
    return any(entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply" for entry in entries)


def _kind(obj: Json) -> tuple[str, str]:
    ref = ObjectRef.of(obj)
    return (ref.group, ref.kind)
