"""Keeps what was delivered as it was delivered: drift is named by watches, blamed, and put back at once.

Nothing here needs git: what is put back is the last good state. Somebody who writes the same object again and again is
answered ever more rarely, and the Application says so.
"""

from __future__ import annotations

import asyncio
import time

from gitsync.application import Application
from gitsync.attempt import Fight, Memory, Outcome, Prepared, decision_of, followed
from gitsync.cluster.record import GoodState
from gitsync.ledger import Ledger, Tools
from gitsync.model import (
    FIELD_MANAGER,
    Action,
    Applied,
    Change,
    Health,
    ImageSet,
    Json,
    Manifest,
    ObjectRef,
    Origin,
    Plan,
    SyncStatus,
)
from gitsync.plan.diff import blame, diff, owned_digest
from gitsync.preparing import Preparing
from gitsync.report.reporter import Run
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.follow import Follower


class Healing:
    """Follows the last good state of every Application."""

    def __init__(self, tools: Tools, ledger: Ledger, preparing: Preparing, memories: dict[str, Memory]) -> None:
        self._tools = tools
        self._ledger = ledger
        self._preparing = preparing
        self._memories = memories
        self.follower = Follower(tools.cluster, owned_digest, on_drift=tools.wake, on_health=self._lives)

    def _lives(self, key: str, health: Health) -> None:
        """The health of what was delivered changed, without anybody deploying anything."""
        application, memory = self._tools.applications(key), self._memories.get(key)
        if application is not None and memory is not None and memory.applying is None and memory.following:
            self._tools.reporter.observe(application, health=health)

    async def follow(self, prepared: Prepared, memory: Memory) -> None:
        """What was delivered is what should be, from now on."""
        memory.decided, memory.following = prepared.decision, True
        if prepared.application.spec.sync.self_heal == "off":
            await self.follower.forget(prepared.application.key)
            return
        live = {**prepared.live, **memory.replies}
        memory.replies.clear()
        await self.follower.follow(
            prepared.application.key,
            [
                (change.manifest.ref, change.manifest.object, live.get(change.manifest.ref.key))
                for change in prepared.plan.changes
                if followed(change.manifest)
            ],
        )

    async def follow_good(self, application: Application, memory: Memory, good: GoodState) -> None:
        """After a restore: what is seen first counts as right."""
        memory.following = True
        manifests = [Manifest(ref=ObjectRef.of(obj), object=obj, origin=Origin()) for obj in good.objects]
        objects = [(each.ref, each.object, memory.replies.get(each.ref.key)) for each in manifests if followed(each)]
        memory.replies.clear()
        await self.follower.follow(application.key, objects)

    async def repair(self, application: Application, memory: Memory, run: Run) -> Prepared | None:
        """Compare what the watches named with what was sent. ``None``: nothing differs, or nothing is written now."""
        named, record = self.follower.drifted(application.key), memory.record
        good = record.last_good if record else None
        if not named or record is None or good is None or memory.applying is not None or not memory.following:
            return None
        sent = {ObjectRef.of(obj).key: obj for obj in good.objects}
        target = self._preparing.target(application)
        live = await self._preparing.live(target, named.values())
        now = time.monotonic()
        changes: list[Change] = []
        waiting: list[tuple[float, Change]] = []
        for key, ref in named.items():
            if key not in sent:
                continue
            manifest = Manifest(
                ref=ref, object=sent[key], origin=Origin(repository=good.revision.repository, sha=good.revision.sha)
            )
            found = live.get(key)
            fields = diff(sent[key], found, secret=ref.kind == "Secret") if found is not None else ()
            if found is not None and not fields:
                self.follower.accept(ref, found)
                continue
            change = Change(
                action=Action.UPDATE if found is not None else Action.CREATE, manifest=manifest, fields=fields
            )
            due = memory.fights.setdefault(key, Fight()).due(now)
            if due > now:
                waiting.append((due, change))
            else:
                changes.append(change)
        differing = [*changes, *(change for _, change in waiting)]
        if not differing:
            self._tools.reporter.observe(application, stalled=None, sync=SyncStatus.SYNCED)
            return None
        told = "; ".join(
            self._blame(application, change, live.get(change.manifest.ref.key)) for change in differing[:20]
        )
        if application.spec.sync.self_heal == "detect":
            counts = {"objects": len(sent), "outOfSync": len(differing), "unhealthy": 0, "held": 0}
            self._tools.reporter.observe(application, sync=SyncStatus.OUT_OF_SYNC, counts=counts)
            return None
        if waiting:
            due = min(due for due, _ in waiting)
            asyncio.get_running_loop().call_later(due - now, self._tools.wake, application.key)
            self._tools.reporter.observe(
                application,
                sync=SyncStatus.OUT_OF_SYNC,
                stalled=("Fight", f"{FIELD_MANAGER} and somebody else rewrite it in turn: {told}"),
            )
        if not changes:
            return None
        run.log.info("repairing drift", objects=len(changes), what=told)
        planned = Plan(revision=good.revision, waves=(tuple(changes),))
        images = ImageSet(images=good.images, bases=good.bases)
        return Prepared(
            application=application,
            decision=decision_of(application, good.revision),
            plan=planned,
            images=images,
            digest="",
            target=target,
            live=live,
            record_generation=record.stored.generation,
            repair=True,
        )

    def _blame(self, application: Application, change: Change, live: Json | None) -> str:
        """Who changed which field, and when; told as an Event about the object, and returned in one line."""
        ref = change.manifest.ref
        if live is None:
            text = f"{ref} was deleted"
        else:
            culprits = blame(live, [each.path for each in change.fields])
            parts = [
                f"{each.path} ({each.manager or 'removed'}{f' at {each.time}' if each.time else ''})"
                for each in culprits[:10]
            ]
            text = f"{ref} was changed: {', '.join(parts)}"
        self._tools.reporter.event(application, "DriftDetected", text, warning=True, action="SelfHeal", about=ref)
        return text

    async def mend(self, prepared: Prepared, memory: Memory) -> Outcome:
        """Put fields and objects back. No attempt is recorded: it is the last good state that is sent again."""
        application, now = prepared.application, time.monotonic()
        record = await self._ledger.current(application, memory)
        landed: list[Applied] = []
        for change in prepared.plan.changes:
            fight = memory.fights.setdefault(change.manifest.ref.key, Fight())
            fight.repairs, fight.last = fight.repairs + 1, now
        try:
            await apply_wave(
                prepared.target, prepared.plan.changes, inventory=record.inventory, on_applied=landed.append
            )
        finally:
            for applied in landed:
                self.follower.accept(applied.ref, applied.object)
            await self._ledger.take_stock(application, memory, landed, 0)
        self._tools.reporter.metrics.repaired(application.namespace, application.name, len(landed))
        self._tools.reporter.event(
            application,
            "DriftRepaired",
            f"put back {', '.join(str(each.ref) for each in landed[:10])}",
            action="SelfHeal",
        )
        if not self.follower.drifted(application.key):
            self._tools.reporter.observe(application, sync=SyncStatus.SYNCED)
        return Outcome()
