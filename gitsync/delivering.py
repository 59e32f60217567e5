"""From a plan to pods that serve, or back to the last good state: the steps of an apply, each recorded.

Between two steps a process may be killed: the Record says how to go on. Within ``roll`` and ``restore`` a newer plan
may ask for the cluster; a wave that was sent is a safe point to hand over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gitsync.application import FINALIZER, Application
from gitsync.attempt import (
    HANDED_OVER_RETRY,
    Decision,
    Handover,
    Memory,
    Outcome,
    Prepared,
    handled,
    having_run,
    held_message,
    merged,
    quarantined,
    recorded,
    remembered,
    settled,
    summary,
    surviving,
    unproven,
    without,
)
from gitsync.cluster.record import GoodState, HistoryEntry, Record
from gitsync.errors import GitsyncError, Held, Invalid, Refused
from gitsync.healing import Healing
from gitsync.ledger import Ledger, Tools
from gitsync.model import (
    Action,
    Applied,
    Health,
    HealthStatus,
    InventoryItem,
    ObjectRef,
    Revision,
    Stage,
    SyncStatus,
)
from gitsync.plan.waves import prune_order
from gitsync.preparing import Preparing
from gitsync.report.reporter import Run
from gitsync.report.status import MOST_FINDINGS
from gitsync.rollout import watch as rollout
from gitsync.rollout.apply import apply_wave, wait_gone
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.prune import prune
from gitsync.rollout.restore import NEVER_DELETED, remove_created, restore, untouched
from gitsync.rollout.serving import JOB
from gitsync.rollout.target import Key
from gitsync.rollout.watch import Verdict, wait_healthy


class Delivering:
    """The steps that write, in order; ``pipeline`` calls them."""

    def __init__(self, tools: Tools, ledger: Ledger, preparing: Preparing, healing: Healing) -> None:
        self._tools = tools
        self._ledger = ledger
        self._preparing = preparing
        self._healing = healing

    async def moves_on(
        self,
        application: Application,
        memory: Memory,
        good: GoodState,
        decision: Decision,
        revision: Revision,
        run: Run,
    ) -> None:
        """A commit that wants what serves, as the watches know without asking: only the Record moves on."""
        moved = replace(good, revision=revision)
        await self._ledger.save(application, memory, lambda now: replace(now, last_good=moved))
        memory.decided = decision
        known = self._ledger.taken_up(application, moved) | self._ledger.known(memory)
        run.succeeded(f"{revision} changes nothing in the cluster", **known, stalled=None)
        self._healing.tell_health(application)

    async def nothing_changes(self, prepared: Prepared, memory: Memory, record: Record, run: Run) -> None:
        """A commit that changes no object and no image is deployed already: only the Record moves on."""
        revision, good = prepared.plan.revision, record.last_good
        assert good is not None
        objects = tuple(change.manifest.object for change in prepared.plan.changes)
        looks = self._healing.looks(prepared, memory, objects)
        moved = replace(
            good,
            revision=revision,
            objects=objects,
            looks=looks,
            settled=settled(prepared),
            findings=prepared.plan.findings[:MOST_FINDINGS],
            images=prepared.images.images,
            digest=prepared.digest,
        )
        await self._ledger.save(
            prepared.application,
            memory,
            lambda now: replace(
                now,
                last_good=moved,
                inventory=merged(surviving(now.inventory, prepared), prepared.present),
                bases={**now.bases, **prepared.images.bases},
            ),
        )
        await self._healing.follow(prepared, memory, looks)
        run.succeeded(f"{revision} changes nothing in the cluster", **self.deployed(prepared))
        self._healing.tell_health(prepared.application)

    async def roll(
        self, prepared: Prepared, memory: Memory, run: Run, number: int, handover: Handover
    ) -> rollout.Outcome | None:
        """One wave: apply → healthy. ``None``: a newer plan took over while this one waited."""
        application, target, wave = prepared.application, prepared.target, prepared.plan.waves[number]
        later = [change.manifest for each in prepared.plan.waves[number:] for change in each]
        asked = [m for m in prepared.deferred if m.ref.key in {each.ref.key for each in later}]
        landed: list[Applied] = []
        try:
            if number and asked:
                tried = await dry_run(target, asked, commit=later)
                if tried.refusals:
                    raise tried.refusals[0]
            await self._make_room(prepared, memory, [item for change in wave for item in change.instead_of], run)
            record = await self._ledger.current(application, memory)
            applied = await apply_wave(target, wave, inventory=record.inventory, on_applied=landed.append)
        except Invalid as error:
            await self._ledger.take_stock(application, memory, landed, number)
            return rollout.Outcome(verdict=Verdict.FAILED, health={}, message=str(error))
        except GitsyncError:
            await self._ledger.take_stock(application, memory, landed, number)
            raise
        await self._ledger.take_stock(application, memory, landed, number)
        memory.replies.update((each.ref.key, each.object) for each in applied)

        waited = unproven(wave, prepared.live, record.last_good)
        same = [change.manifest.ref for change in wave if change.action is Action.UNCHANGED]

        ended: set[ObjectRef] = set()

        def heard(health: Health) -> None:
            if health.ref and health.ref.key[:2] == JOB and health.status is HealthStatus.HEALTHY:
                ended.add(health.ref)
            run.tell(": ".join(part for part in (str(health.ref or ""), health.message or health.status.value) if part))

        outcome = await unless_handed_over(
            handover,
            wait_healthy(
                target,
                [*applied, *waited],
                unchanged=[ref for ref in same if ref not in {each.ref for each in waited}],
                ours=[change.manifest.ref.key for change in prepared.plan.changes],
                deadline=application.spec.sync.timeout.total_seconds(),
                on_health=heard,
                redact=self._tools.reporter.redactor,
            ),
            run,
        )
        last = number + 1 == len(prepared.plan.waves)
        if ended and (outcome is None or outcome.verdict is Verdict.LUCK or not last):
            await self._ledger.save(application, memory, lambda now: having_run(now, ended))
        return outcome

    async def _make_room(self, prepared: Prepared, memory: Memory, holders: Sequence[InventoryItem], run: Run) -> None:
        """What holds something that the wave needs, and only one can have, goes first: that was accepted."""
        if not holders:
            return
        run.tell(f"deleting {', '.join(str(item.ref) for item in holders)}, which the wave takes over from")
        pruned = await prune(prepared.target, holders)
        gone = {item.ref.key for item in pruned.removed}
        await self._ledger.save(prepared.application, memory, lambda now: without(now, gone))
        if pruned.kept:
            raise pruned.kept[0].error
        for item in holders:
            await wait_gone(prepared.target, item.ref, item.uid, {})

    async def prune(self, prepared: Prepared, memory: Memory, run: Run) -> None:
        if not prepared.plan.prunes:
            return
        run.tell(f"deleting {len(prepared.plan.prunes)} objects that git no longer has")
        pruned = await prune(prepared.target, prepared.plan.prunes)
        gone = {item.ref.key for item in pruned.removed}
        await self._ledger.save(prepared.application, memory, lambda now: without(now, gone))
        for kept in pruned.kept:
            self._tools.reporter.event(
                prepared.application, "PruneFailed", f"{kept.item.ref} was not deleted: {kept.error}", warning=True,
                action="Prune",
            )  # fmt: skip

    async def delivered(self, prepared: Prepared, memory: Memory, run: Run) -> None:
        application, revision, now = prepared.application, prepared.plan.revision, datetime.now(UTC)
        record = await self._ledger.current(application, memory)
        objects = tuple(change.manifest.object for change in prepared.plan.changes)
        looks = self._healing.looks(prepared, memory, objects)
        good = GoodState(
            revision=revision,
            objects=objects,
            looks=looks,
            settled=settled(prepared),
            findings=prepared.plan.findings[:MOST_FINDINGS],
            images=prepared.images.images,
            bases=prepared.images.bases,
            digest=prepared.digest,
            at=now,
        )
        started = record.attempt.started_at if record.attempt else run.started
        entry = HistoryEntry(
            revision=revision,
            started_at=started,
            finished_at=now,
            outcome="RolledBack" if prepared.rollback else "Deployed",
            message=summary(prepared.plan),
            images=prepared.images.images,
            lowest_ready_share=run.lowest_ready,
            objects=good.objects,
        )
        await self._ledger.save(
            application,
            memory,
            lambda now: replace(
                now,
                last_good=good,
                attempt=None,
                inventory=merged(surviving(now.inventory, prepared), prepared.present),
                history=recorded(now.history, entry),
                bases={**now.bases, **prepared.images.bases},
            ),
        )
        await self._healing.follow(prepared, memory, looks)
        metrics = self._tools.reporter.metrics
        metrics.deployed(application.namespace, application.name, "success")
        if run.lowest_ready is not None:
            metrics.lowest_ready(application.namespace, application.name, run.lowest_ready)
        served = {each.revision.sha for each in record.history if each.outcome in ("Deployed", "RolledBack")}
        if revision.committed_at is not None and revision.sha not in served:  # else a rollback, or another spec
            metrics.healthy_after_push((now - revision.committed_at).total_seconds())
        text = f"{revision} serves ({summary(prepared.plan)})"
        self._tools.reporter.event(application, "Deployed", text, action="Rollout")
        run.succeeded(text, **self.deployed(prepared))

    def deployed(self, prepared: Prepared) -> dict[str, Any]:
        """What to say of an Application whose newest commit is live and healthy."""
        planned = prepared.plan
        held = len(planned.held)
        return {
            "sync": SyncStatus.OUT_OF_SYNC if held else SyncStatus.SYNCED,
            "health": Health(status=HealthStatus.HEALTHY),
            "revision": str(planned.revision),
            "last_good": str(planned.revision),
            "images": prepared.images.images,
            "findings": planned.findings,
            "counts": {"objects": len(planned.changes), "outOfSync": held, "unhealthy": 0, "held": held},
            "stalled": (Held.reason, held_message(prepared)) if held else None,
            **handled(prepared.application),
        }

    async def keep_finalizer(self, application: Application) -> None:
        """An Application that says ``deletionPolicy: delete`` must not go before its objects; another one may."""
        wanted = application.spec.sync.deletion_policy == "delete"
        if wanted == (FINALIZER in application.finalizers):
            return
        others = [each for each in application.finalizers if each != FINALIZER]
        finalizers = [*others, FINALIZER] if wanted else others
        await self._tools.cluster.patch(application.ref, {"metadata": {"finalizers": finalizers}})

    async def dismantle(self, application: Application, memory: Memory, run: Run) -> None:
        """The Application is being deleted and says so: delete its objects, forget it, and let it go."""
        async with run.stage(Stage.PRUNE):
            memory.following = False
            await self._healing.follower.forget(application.key)
            record = await self._ledger.current(application, memory)
            record = await self._preparing.settle(application, memory, record)
            precious = [item for item in record.inventory if (item.ref.group, item.ref.kind) in NEVER_DELETED]
            doomed = [item for item in record.inventory if item not in precious]
            pruned = await prune(self._preparing.target(application), prune_order(doomed))
            gone = {item.ref.key for item in pruned.removed}
            await self._ledger.save(application, memory, lambda now: without(now, gone))
            if pruned.kept:
                raise pruned.kept[0].error
            if precious:
                names = ", ".join(str(item.ref) for item in precious[:10])
                text = f"{names} stay: deleting them would delete what people keep in them"
                self._tools.reporter.event(application, "Kept", text, warning=True, action="Delete")
            await self._tools.records.delete(application.ref)
            finalizers = [each for each in application.finalizers if each != FINALIZER]
            await self._tools.cluster.patch(application.ref, {"metadata": {"finalizers": finalizers}})

    async def restore(self, prepared: Prepared, memory: Memory, run: Run, handover: Handover, message: str) -> Outcome:
        """Put the last good state back, remember the commit, and say what cannot be undone."""
        application, target, began = prepared.application, prepared.target, time.monotonic()
        record = await self._ledger.current(application, memory)
        attempt, good = record.attempt, record.last_good
        assert attempt is not None
        async with run.stage(Stage.RESTORE, message):
            entries = () if prepared.abandons else (quarantined(prepared, Stage.ROLLOUT, message),)
            record = await self._ledger.save(
                application,
                memory,
                lambda now: replace(
                    now,
                    attempt=replace(attempt, phase=Stage.RESTORE),
                    quarantine=remembered(now.quarantine, *entries),
                ),
            )
            if good is not None and attempt.takes:
                taken = await remove_created(target, good, attempt, inventory=record.inventory, only=attempt.takes)
                gone_first = {item.ref.key for item in taken.removed}
                record = await self._ledger.save(application, memory, lambda now: without(now, gone_first))
            landed: list[Applied] = []
            restored = await restore(target, good, attempt, inventory=record.inventory, on_applied=landed.append)
            memory.replies = {each.ref.key: each.object for each in restored.applied}
            await self._ledger.take_stock(application, memory, landed, attempt.wave)
            verdict = await unless_handed_over(handover, wait_healthy(target, restored.applied), run)
            if verdict is None:
                return self.handed_over(run)
            statements = list(restored.statements)
            gone: set[Key] = set()
            if good is not None:
                record = await self._ledger.current(application, memory)
                removed = await remove_created(target, good, attempt, inventory=record.inventory)
                gone = {item.ref.key for item in removed.removed}
                statements += [f"{kept.item.ref} was not deleted: {kept.error}" for kept in removed.kept]
            finished = HistoryEntry(
                revision=attempt.revision,
                started_at=attempt.started_at,
                finished_at=datetime.now(UTC),
                outcome="Restored" if good else "Failed",
                message=message,
                images=attempt.images,
                lowest_ready_share=run.lowest_ready,
            )
            await self._ledger.save(
                application,
                memory,
                lambda now: replace(without(now, gone), attempt=None, history=recorded(now.history, finished)),
            )
        if prepared.abandons is None:  # else what was refused is remembered, and that may be no commit at all
            memory.decided = prepared.decision
        if good is not None:
            await self._healing.follow_good(prepared, memory, good, untouched(good, attempt))
        back = f"{good.revision} serves again" if good else "nothing was deployed before"
        error = Refused(
            " ".join([message.rstrip(".") + ".", *statements]).strip(),
            doing="" if prepared.abandons else f"rolling out {attempt.revision}",
            hint=f"{back}; push a fix, or 'gitsync sync --retry {application.key}'",
            reason=prepared.abandons.reason if prepared.abandons else "RolloutFailed",
        )
        outcome = "restored" if good else "failed"
        self._tools.reporter.metrics.deployed(application.namespace, application.name, outcome)
        self._tools.reporter.metrics.restored(time.monotonic() - began)
        healthy = verdict.verdict is Verdict.HEALTHY and good is not None
        run.failed(
            error,
            sync=SyncStatus.OUT_OF_SYNC,
            health=Health(status=HealthStatus.HEALTHY if healthy else HealthStatus.DEGRADED),
            revision=str(good.revision) if good else "",
            last_good=str(good.revision) if good else "",
            **self._ledger.quarantine_seen(memory),
            **handled(application),
        )
        return Outcome()

    def handed_over(self, run: Run) -> Outcome:
        run.log.info("handed over to a newer plan")
        return Outcome(retry_after=HANDED_OVER_RETRY)


async def unless_handed_over(
    handover: Handover, waiting: Coroutine[Any, Any, rollout.Outcome], run: Run
) -> rollout.Outcome | None:
    """Wait for a wave, or until a newer plan asks for the cluster: a wave that was sent is a safe point."""
    wait = asyncio.create_task(waiting)
    asked = asyncio.create_task(handover.wait())
    try:
        await asyncio.wait([wait, asked], return_when=asyncio.FIRST_COMPLETED)
        if not wait.done():
            return None
        outcome = wait.result()
    finally:
        for task in (wait, asked):
            task.cancel()
        await asyncio.gather(wait, asked, return_exceptions=True)
    if outcome.lowest_ready_share is not None:
        run.lowest_ready = min(outcome.lowest_ready_share, 1.0 if run.lowest_ready is None else run.lowest_ready)
    return outcome
