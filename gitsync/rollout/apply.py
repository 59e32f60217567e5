"""Sends one wave of a plan: server-side apply, forced, strictly validated, many at once.

Namespaces and definitions of the wave come first and must be open for what goes into them. A replacement deletes the
live object (and no other), waits until it is gone and creates. Whatever landed is reported even when another object of
the wave fails, so that no object is ever created without being in the inventory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gitsync.cluster.answers import NoKind
from gitsync.errors import GitsyncError, Held, Invalid, Waiting
from gitsync.failpoints import failpoint
from gitsync.model import (
    LABEL_APPLICATION,
    LABEL_NAMESPACE,
    Action,
    Applied,
    Change,
    HealthStatus,
    InventoryItem,
    Json,
    Manifest,
    ObjectRef,
)
from gitsync.rollout.health import health
from gitsync.rollout.ownership import adopt, without_replicas
from gitsync.rollout.target import Target, located, on_each, part

GATE_DEADLINE = 60.0
"""Seconds for a namespace or a definition of the wave to open."""
GONE_DEADLINE = 120.0
"""Seconds, beyond its grace period, for a replaced object to go."""
_SETTLING = 15.0  # seconds in which what the cluster makes by itself (a service account, an endpoint) may lag


def label(manifest: Manifest, application: ObjectRef) -> Manifest:
    """The manifest with the labels by which we watch it. They never decide what is deleted."""
    ours = {LABEL_APPLICATION: application.name, LABEL_NAMESPACE: application.namespace}
    metadata = part(manifest.object, "metadata")
    metadata = metadata | {"labels": part(metadata, "labels") | ours}
    return replace(manifest, object=manifest.object | {"metadata": metadata})


def is_gate(ref: ObjectRef) -> bool:
    """Whether other objects of the same wave may need this one to exist first."""
    return (ref.group, ref.kind) in {("", "Namespace"), ("apiextensions.k8s.io", "CustomResourceDefinition")}


async def apply_wave(
    target: Target,
    wave: Sequence[Change],
    *,
    inventory: Collection[InventoryItem] = (),
    on_applied: Callable[[Applied], None] = lambda _: None,
) -> tuple[Applied, ...]:
    """Send every change of the wave but the unchanged, and return the answers in the wave's order.

    ``inventory`` is what was ours before: an update of anything else adopts it. ``on_applied`` hears of each object as
    it lands. After an error nothing new is sent, what is under way ends, and the gravest error is raised: ``Rejected``
    (evidence against the commit) before ``Transient``; its origin names file and line.
    """
    failpoint("apply.started")
    uids = {item.ref.key: item.uid for item in inventory}
    todo = [change for change in wave if change.action not in (Action.UNCHANGED, Action.PRUNE)]
    gates = [change for change in todo if is_gate(change.manifest.ref)]
    answers = await _send(target, gates, uids, on_applied)
    for change in gates:
        await _open(target, change.manifest)
    failpoint("apply.gate-open")
    answers += await _send(target, [change for change in todo if not is_gate(change.manifest.ref)], uids, on_applied)
    failpoint("apply.wave-sent")
    by_key = {answer.ref.key: answer for answer in answers}
    return tuple(by_key[change.manifest.ref.key] for change in todo)


async def _send(
    target: Target,
    changes: Sequence[Change],
    uids: dict[tuple[str, str, str, str], str],
    on_applied: Callable[[Applied], None],
) -> list[Applied]:
    failed = False

    async def send(change: Change) -> Applied | None:
        nonlocal failed
        if failed:
            return None
        try:
            applied = await apply_one(target, change, uids.get(change.manifest.ref.key, ""))
        except GitsyncError as error:
            failed = True
            raise located(error, change.manifest) from error.__cause__
        on_applied(applied)
        failpoint("apply.object-sent")
        return applied

    answers = await on_each(changes, send)
    errors = [answer for answer in answers if isinstance(answer, GitsyncError)]
    if errors:
        raise next((error for error in errors if isinstance(error, Invalid)), errors[0])
    return [answer for answer in answers if isinstance(answer, Applied)]


async def apply_one(target: Target, change: Change, recorded_uid: str) -> Applied:
    """Send one change. ``recorded_uid`` is the inventory's, "" for an object that was not ours: updating it adopts."""
    ref, obj = change.manifest.ref, change.manifest.object
    if change.action is Action.REPLACE:
        obj = await _remove_for_replacement(target, change.manifest, recorded_uid)
    elif change.action is Action.UPDATE and not recorded_uid:
        await adopt(target.cluster, ref, impersonate=target.impersonate)
        failpoint("apply.adopted")
    if ref.key in target.autoscaled and change.action is not Action.REPLACE:
        live = await target.cluster.get(ref, impersonate=target.impersonate)
        if live is not None:
            await target.cluster.claim_replicas(ref, impersonate=target.impersonate)
            failpoint("apply.replicas-claimed")
            obj = without_replicas(obj)
    while True:
        applied = await _settled(target, obj)
        if "deletionTimestamp" not in applied.object["metadata"]:
            return applied
        await wait_gone(target, ref, applied.uid, applied.object)  # we wrote to a dying one: it must be made anew


async def _settled(target: Target, obj: Json) -> Applied:
    """Apply, and wait a little for what the cluster makes by itself in a new namespace or for a new definition."""
    ends = time.monotonic() + _SETTLING
    while True:
        try:
            return await target.cluster.apply(obj, impersonate=target.impersonate)
        except (Waiting, NoKind) as error:
            lagging = isinstance(error, NoKind) or error.reason == "ServiceAccountNotFound"
            if not lagging or time.monotonic() > ends:
                raise
        await asyncio.sleep(0.5)


async def _open(target: Target, manifest: Manifest) -> None:
    """Wait until a namespace is active, or a definition's kinds are served."""
    ref = manifest.ref
    ends = time.monotonic() + GATE_DEADLINE
    while True:
        live = await target.cluster.get(ref, impersonate=target.impersonate)
        verdict = health(live, ref)
        if verdict.status is HealthStatus.HEALTHY and live is not None and await _served(target, live):
            return
        if verdict.status is HealthStatus.DEGRADED:
            raise located(Invalid(verdict.message, doing="waiting for", ref=ref), manifest)
        if time.monotonic() > ends:
            message = verdict.message or "its kinds are not served yet"
            raise located(Waiting(message, doing="waiting for", ref=ref, retry_after=10), manifest)
        await asyncio.sleep(0.1)


async def _served(target: Target, live: Json) -> bool:
    spec = part(live, "spec")
    if live["kind"] != "CustomResourceDefinition":
        return True
    try:
        for version in spec["versions"]:
            if version.get("served"):
                await target.cluster.resource(spec["group"], version["name"], spec["names"]["kind"])
    except NoKind:
        return False
    return True


async def _remove_for_replacement(target: Target, manifest: Manifest, recorded_uid: str) -> Json:
    """Delete the live object, if it is ours, and wait until it is gone. Returns what is to be created."""
    ref, obj = manifest.ref, manifest.object
    live = await target.cluster.get(ref, impersonate=target.impersonate)
    if live is None:  # an earlier try got this far
        failpoint("apply.replace-deleted")
        return obj
    uid = str(live["metadata"]["uid"])
    if uid != recorded_uid and not target.owns(live):
        raise Held(
            "it must be deleted and created, and it is not this Application's",
            doing="replacing",
            ref=ref,
            hint="delete it yourself, or give it another name in git",
        )
    await target.cluster.delete(ref, uid, propagation="Foreground", impersonate=target.impersonate)
    await wait_gone(target, ref, uid, live)
    failpoint("apply.replace-deleted")
    replicas = part(live, "spec").get("replicas")
    if ref.key in target.autoscaled and replicas is not None:
        return obj | {"spec": obj["spec"] | {"replicas": replicas}}
    return obj


async def wait_gone(target: Target, ref: ObjectRef, uid: str, live: Json) -> None:
    """Wait until this very object no longer exists. ``Waiting`` if something holds it beyond its grace period."""
    pod = part(live, "spec", "template", "spec") or part(live, "spec")
    grace: float = pod.get("terminationGracePeriodSeconds") or 30
    ends = time.monotonic() + GONE_DEADLINE + grace
    pause = 0.05
    while True:
        now = await target.cluster.get(ref, impersonate=target.impersonate)
        if now is None or now["metadata"]["uid"] != uid:
            return
        if time.monotonic() > ends:
            raise Waiting(health(now, ref).message, doing="waiting for the end of", ref=ref, retry_after=30)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 1.0)
