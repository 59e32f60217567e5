"""Keeps what was delivered as it was delivered: drift is named by watches, blamed, and put back at once.

Nothing here needs git: what is put back is the last good state. What the watch heard is enough to decide, so a repair
is one request. Somebody who writes the same object again and again is answered ever more rarely, and the Application
says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime

import orjson

from gitsync.application import Application, Counts
from gitsync.attempt import Fight, Index, Memory, Prepared, decision_of, followed
from gitsync.cluster.cache import digest_of
from gitsync.cluster.record import GoodState, Look
from gitsync.errors import GitsyncError, Invalid, Transient
from gitsync.ledger import Ledger, Tools
from gitsync.model import (
    FIELD_MANAGER,
    Action,
    Applied,
    Change,
    FieldChange,
    Health,
    ImageSet,
    Json,
    Manifest,
    ObjectRef,
    Origin,
    Plan,
    SyncStatus,
)
from gitsync.plan import autoscaled
from gitsync.plan.diff import Culprit, blame, drifted, owned_digest
from gitsync.preparing import Preparing
from gitsync.report.reporter import Run
from gitsync.report.status import timestamp
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.follow import Drift, Followed, Follower
from gitsync.rollout.ownership import autoscalers, without_replicas
from gitsync.rollout.target import Key, Target, part

_FIGHT = "Fight"


class Healing:
    """Follows the last good state of every Application."""

    def __init__(self, tools: Tools, ledger: Ledger, preparing: Preparing, memories: dict[str, Memory]) -> None:
        self._tools = tools
        self._ledger = ledger
        self._preparing = preparing
        self._memories = memories
        self.follower = Follower(tools.cluster, _fields, on_drift=self._drifts, on_health=self._lives)
        tools.reporter.metrics.watches(self.follower.blind)

    def _drifts(self, key: str) -> None:
        """What a rollout or a repair changes itself is no news; they look again when they have ended."""
        memory = self._memories.get(key)
        if memory is not None and memory.following and memory.applying is None:
            self._tools.wake(key)

    def _lives(self, key: str, health: Health) -> None:
        """The health of what was delivered changed, without anybody deploying anything."""
        application, memory = self._tools.applications(key), self._memories.get(key)
        if application is not None and memory is not None and memory.applying is None and memory.following:
            said = self._tools.reporter.said(key)
            counts = said.observation.counts if said else None
            told = {"counts": {**counts, "unhealthy": self.follower.unhealthy(key)}} if counts else {}
            self._tools.reporter.observe(application, health=health, **told)

    def tell_health(self, application: Application) -> None:
        """As the watches have it now: what changed while something was applied was passed over."""
        if health := self.follower.health(application.key):
            self._lives(application.key, health)

    def sees_no_difference(self, application: Application, memory: Memory) -> bool:
        """Whether the watches alone say that all is as it was delivered. After a restart that takes one plan more."""
        calm = memory.following and memory.applying is None and not (memory.taken_up or memory.disturbed)
        watched = application.spec.sync.self_heal != "off" and self.follower.sees(application.key)
        return calm and watched and not self.follower.drifted(application.key)

    # ------------------------------------------------------------------ what is followed

    def pause(self, application: Application, memory: Memory, changes: Iterable[Change] | None = None) -> None:
        """A rollout begins to write these, a restore (``None``) whatever it has to.

        What it leaves as it is was read when the plan was made: what was heard of it since then counts.
        """
        memory.following = False
        memory.replies.clear()
        written = None if changes is None else [
            change.manifest.ref.key for change in changes if change.action is not Action.UNCHANGED
        ]  # fmt: skip
        self.follower.attend(application.key, written)

    def looks(self, prepared: Prepared, memory: Memory, objects: Iterable[Json]) -> tuple[Look, ...]:
        """How the server has these objects, as it answered the rollout or was read before it."""
        found: list[Look] = []
        for obj in objects:
            key = ObjectRef.of(obj).key
            scaled, live = key in prepared.target.autoscaled, memory.replies.get(key) or prepared.live.get(key)
            fields = _fields(without_replicas(obj) if scaled else obj, live) if live is not None else ""
            whole = digest_of(orjson.dumps(live)).hex() if live is not None else ""
            found.append(Look(fields=fields, scaled=scaled, whole=whole))
        return tuple(found)

    async def follow(self, prepared: Prepared, memory: Memory, looks: Sequence[Look]) -> None:
        """What was delivered is what should be, from now on."""
        memory.decided, memory.taken_up = prepared.decision, False
        replies, memory.replies = {**prepared.live, **memory.replies}, {}
        objects = [change.manifest.object for change in prepared.plan.changes]
        await self._follow(prepared.application, memory, zip(objects, looks, strict=True), replies)

    async def follow_good(self, prepared: Prepared, memory: Memory, good: GoodState, untouched: Set[Key]) -> None:
        """After a restore: what could not be put back counts as right as it is seen first.

        ``untouched`` neither the attempt nor the restore has written; what was known of these holds.
        """
        looks = self.looks(replace(prepared, live={}), memory, good.objects)
        if good.looks:  # else an older gitsync has written it
            looks = tuple(
                before if ObjectRef.of(obj).key in untouched else look
                for obj, look, before in zip(good.objects, looks, good.looks, strict=True)
            )
        replies, memory.replies = memory.replies, {}
        await self._follow(prepared.application, memory, zip(good.objects, looks, strict=True), replies, untouched)

    async def take_up(self, application: Application, memory: Memory, good: GoodState) -> None:
        """After a restart: the Record says how everything was left, so watches alone tell what has changed since."""
        if good.looks:  # else an older gitsync has written it
            memory.taken_up = True
            await self._follow(application, memory, zip(good.objects, good.looks, strict=True), {})

    async def show(self, application: Application, memory: Memory) -> None:
        """Tell of what serves although nothing is done about it: a suspended Application, after a restart."""
        record = await self._ledger.current(application, memory)
        good = record.last_good
        self._tools.reporter.observe(application, **self._ledger.known(memory), **self._ledger.quarantine_seen(memory))
        if good is None or record.attempt is not None:
            return
        newest = good.settled and all(entry.at <= good.at for entry in record.quarantine)
        told = self._ledger.taken_up(application, good)
        told["sync"] = SyncStatus.SYNCED if newest else SyncStatus.OUT_OF_SYNC
        self._tools.reporter.observe(application, **told)
        await self.take_up(application, memory, good)

    async def _follow(
        self,
        application: Application,
        memory: Memory,
        objects: Iterable[tuple[Json, Look]],
        replies: Mapping[Key, Json],
        untouched: Set[Key] = frozenset(),
    ) -> None:
        memory.following = True
        if application.spec.sync.self_heal == "off":
            await self.follower.forget(application.key)
            return
        wanted: list[Followed] = []
        for obj, look in objects:
            ref = ObjectRef.of(obj)
            reply: Json = replies.get(ref.key, {})
            if followed(obj):
                sent = without_replicas(obj) if look.scaled else obj
                version = str(part(reply, "metadata").get("resourceVersion", ""))
                whole = bytes.fromhex(look.whole)
                left = ref.key in untouched
                wanted.append(
                    Followed(ref=ref, sent=sent, fields=look.fields, version=version, whole=whole, untouched=left)
                )
        account = self._preparing.target(application).impersonate
        await self.follower.follow(application.key, wanted, impersonate=account)

    # ------------------------------------------------------------------ what differs

    async def repair(self, application: Application, memory: Memory, run: Run) -> Prepared | None:
        """What the watches named, as a plan to put it back. ``None``: nothing differs, or nothing is written now.

        Raises ``Transient``, whatever the server refuses: it was good once, so that speaks against no commit.
        """
        try:
            return await self._repair(application, memory, run)
        except Invalid as error:
            raise _luck(error) from error

    async def _repair(self, application: Application, memory: Memory, run: Run) -> Prepared | None:
        record = memory.record
        good = record.last_good if record else None
        if record is None or good is None or memory.applying is not None or not memory.following:
            return None
        named, now = self.follower.drifted(application.key), time.monotonic()
        if not named:
            self._calm(application, memory, good, now)
            return None
        if application.spec.sync.self_heal == "detect":
            await self._detect(application, memory, named, Index.of(record), run)
            if not memory.drifts:  # it was read, and is as it should be
                self._calm(application, memory, good, now)
            return None
        due = {key: memory.fights.setdefault(key, Fight()).due(now) for key in named}
        fresh = {key: drift for key, drift in named.items() if due[key] <= now or memory.fights[key].is_news}
        index = memory.index if memory.index and memory.index.record is record else Index.of(record)
        memory.index = index
        target, differing = await self._differing(application, memory, fresh, index)
        waiting = {key: drift for key, drift in differing.items() if due[key] > now}
        if waiting:
            self._truce(application, memory, waiting, {key: due[key] - now for key in waiting}, run)
        ready = {key: drift for key, drift in differing.items() if key not in waiting}
        if not ready:
            return None
        origin = Origin(repository=good.revision.repository, sha=good.revision.sha)
        wave = tuple(
            Change(
                action=Action.CREATE if drift.live is None else Action.UPDATE,
                manifest=Manifest(ref=drift.ref, object=index.sent[key], origin=origin),
            )
            for key, drift in ready.items()
            if key in index.sent
        )
        memory.drifts = ready
        return Prepared(
            application=application,
            decision=decision_of(application, good.revision),
            plan=Plan(revision=good.revision, waves=(wave,)),
            images=ImageSet(images=good.images, bases=good.bases),
            digest="",
            target=target,
            live={key: drift.live for key, drift in ready.items() if drift.live is not None},
            record_generation=record.stored.generation,
            repair=True,
        )

    async def _differing(
        self, application: Application, memory: Memory, named: Mapping[Key, Drift], index: Index
    ) -> tuple[Target, dict[Key, Drift]]:
        """Those that really differ, as they live; and where to write, knowing whose replicas are an autoscaler's."""
        target = self._preparing.target(application)
        unread = [drift.ref for drift in named.values() if drift.unread]
        live = await self._preparing.live(target, unread) if unread else {}
        differing: dict[Key, Drift] = {}
        for key, drift in named.items():
            drift = replace(drift, live=live.get(key), unread=False) if drift.unread else drift
            if drift.live is not None and self.follower.equal(drift.ref, drift.live):
                self.follower.accept(drift.ref, drift.live)
            else:
                differing[key] = drift
        target = replace(target, autoscaled=await self._scaled(target, differing, index))
        if memory.taken_up:
            memory.taken_up = False
            differing = await self._tried(target, differing, index)
        return target, differing

    async def _tried(self, target: Target, differing: Mapping[Key, Drift], index: Index) -> dict[Key, Drift]:
        """After a restart: what the server would answer as it is (another webhook, another default) is no drift."""
        replies = await self._replies(target, differing, index)
        left = dict(differing)
        for key, drift in differing.items():
            sent = self.follower.expects(drift.ref)
            if (
                drift.live is not None
                and sent
                and key in replies
                and not drifted(sent, replies[key].object, drift.live)
            ):
                self.follower.accept(drift.ref, drift.live)
                del left[key]
        return left

    async def _replies(self, target: Target, differing: Mapping[Key, Drift], index: Index) -> Mapping[Key, Applied]:
        """What the server says to sending those that exist, as dry runs."""
        manifests = [
            Manifest(ref=drift.ref, object=index.sent[key], origin=Origin())
            for key, drift in differing.items()
            if drift.live is not None and key in index.sent
        ]
        return (await dry_run(target, manifests)).replies

    async def _scaled(self, target: Target, differing: Mapping[Key, Drift], index: Index) -> frozenset[Key]:
        """Which of these an autoscaler scales. The cluster's are only looked for where the replicas differ."""
        known: set[Key] = set()
        rescaled: list[Manifest] = []
        for key, drift in differing.items():
            wanted = part(index.sent.get(key, {}), "spec").get("replicas")
            if wanted is None or drift.live is None:
                continue
            if "replicas" not in part(self.follower.expects(drift.ref) or {}, "spec"):
                known.add(key)
            elif part(drift.live, "spec").get("replicas") != wanted:
                rescaled.append(Manifest(ref=drift.ref, object=drift.live, origin=Origin()))
        if rescaled:
            scalers = await autoscalers(target.cluster, rescaled, impersonate=target.impersonate)
            known |= autoscaled((), [*scalers, *index.sent.values()])
        return frozenset(known)

    def _calm(self, application: Application, memory: Memory, good: GoodState, now: float) -> None:
        """Nothing differs: say so, once no fight is left. What else there was to say of it holds."""
        pause = max((fight.over(now) - now for fight in memory.fights.values()), default=0.0)
        if pause > 0 and memory.disturbed:
            self._again(application, pause)
        elif memory.disturbed:
            memory.disturbed = False
            memory.drifts, memory.differs = {}, {}
            stalled, held = self._stalled(application), self._held(application)
            newer = memory.decided is not None and memory.decided.sha != good.revision.sha
            self._tools.reporter.observe(
                application,
                stalled=memory.stalled if stalled and stalled[0] == _FIGHT else stalled,
                sync=SyncStatus.OUT_OF_SYNC if held or newer else SyncStatus.SYNCED,
                counts=self._counts(application, len(good.objects), differ=0),
                differs="",
            )

    def _stalled(self, application: Application) -> tuple[str, str] | None:
        said = self._tools.reporter.said(application.key)
        return said.observation.stalled if said else None

    def _held(self, application: Application) -> int:
        """How many objects wait for an approval to be deleted, as last said."""
        said = self._tools.reporter.said(application.key)
        return said.observation.counts["held"] if said and said.observation.counts else 0

    def _counts(self, application: Application, objects: int, *, differ: int) -> Counts:
        held, unhealthy = self._held(application), self.follower.unhealthy(application.key)
        return {"objects": objects, "outOfSync": differ + held, "unhealthy": unhealthy, "held": held}

    def _again(self, application: Application, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds + 0.01, self._tools.wake, application.key)

    async def _detect(
        self, application: Application, memory: Memory, named: Mapping[Key, Drift], index: Index, run: Run
    ) -> None:
        """Report, and write nothing: what would be put back is asked of the server as a dry run."""
        told = memory.differs.keys()  # else it was read when more was heard of it, or was to be put back
        news = {key: drift for key, drift in named.items() if memory.drifts.get(key) is not drift or key not in told}
        if not news and named.keys() == told:
            return
        target, differing = await self._differing(application, memory, news, index)
        replies = await self._replies(target, differing, index)
        memory.drifts = self.follower.drifted(application.key)  # not before: who was not told of it has to be
        memory.differs = {key: text for key, text in memory.differs.items() if key in memory.drifts}
        for key, drift in differing.items():
            reply = replies[key].object if key in replies else None
            memory.differs[key] = text = self._told(drift, self._changed(drift, reply))
            self._tools.reporter.event(
                application, "DriftDetected", text, warning=True, action="Detect", about=drift.ref
            )
            run.log.warning("drift detected", object=str(drift.ref), what=text)
        if not memory.differs:
            return
        memory.disturbed = True
        counts = self._counts(application, len(index.sent), differ=len(memory.differs))
        differs = "; ".join([*memory.differs.values()][:5])
        self._tools.reporter.observe(application, sync=SyncStatus.OUT_OF_SYNC, counts=counts, differs=differs)

    def _truce(
        self,
        application: Application,
        memory: Memory,
        waiting: Mapping[Key, Drift],
        pauses: Mapping[Key, float],
        run: Run,
    ) -> None:
        """Say once per pause that somebody strikes back, in words that stay the same while the fight does."""
        told: list[str] = []
        for key, drift in waiting.items():
            fight = memory.fights[key]
            fight.told = fight.repairs
            fields = sorted({f"{each.path} ({each.manager or 'removed'})" for each in self._changed(drift, None)})
            told.append(f"{drift.ref} {', '.join(fields[:5])}".rstrip())
            run.log.warning("a fight over fields", object=str(drift.ref), with_=fields[:5], pause=round(pauses[key], 1))
        text = f"{FIELD_MANAGER} and somebody else rewrite in turn: {'; '.join(sorted(told)[:5])}"
        if (stalled := self._stalled(application)) is None or stalled[0] != _FIGHT:
            memory.stalled = stalled
        if not memory.disturbed:
            self._tools.reporter.event(application, _FIGHT, text, warning=True, action="SelfHeal")
        memory.disturbed = True
        self._tools.reporter.observe(application, sync=SyncStatus.OUT_OF_SYNC, stalled=(_FIGHT, text))
        self._again(application, min(pauses.values()))

    # ------------------------------------------------------------------ blame

    def _changed(self, drift: Drift, reply: Json | None) -> Sequence[Culprit]:
        """Who changed what. ``reply`` is the server's answer to what we (would) send: it tells what a webhook does."""
        sent = self.follower.expects(drift.ref)
        if drift.live is None or sent is None:
            return ()
        fields: Sequence[FieldChange] = drifted(sent, reply if reply is not None else sent, drift.live)
        return blame(drift.live, [each.path for each in fields])

    def _told(self, drift: Drift, changed: Sequence[Culprit]) -> str:
        """One line: which field, who, when. What was removed names nobody; then it is the time at which it was seen."""
        if drift.live is None:
            return f"{drift.ref} was deleted, seen at {timestamp(drift.at)}"
        parts = [_culprit(each, drift.at) for each in changed[:10]]
        more = f" and {len(changed) - 10} more" if len(changed) > 10 else ""
        return f"{drift.ref} was changed: {', '.join(parts)}{more}"

    async def mend(self, prepared: Prepared, memory: Memory, run: Run) -> None:
        """Put fields and objects back. No attempt is recorded: it is the last good state that is sent again.

        Raises ``Transient``, as ``repair`` does, and has told it.
        """
        application, target = prepared.application, prepared.target
        record = await self._ledger.current(application, memory)
        index = memory.index if memory.index and memory.index.record is record else Index.of(record)
        known = [index.inventory[change.manifest.ref.key] for change in prepared.plan.changes
                 if change.manifest.ref.key in index.inventory]  # fmt: skip
        drifts, memory.drifts = memory.drifts, {}
        self.follower.attend(application.key, [change.manifest.ref.key for change in prepared.plan.changes])
        landed: list[Applied] = []
        try:
            await apply_wave(target, prepared.plan.changes, inventory=known, on_applied=landed.append)
            if memory.unmended:
                memory.unmended = False
                self._tools.reporter.recovered(application)
        except GitsyncError as error:
            memory.unmended = True
            trouble = _luck(error) if isinstance(error, Invalid) else error
            run.found(str(prepared.plan.revision))
            run.failed(trouble)
            if trouble is error:
                raise
            raise trouble from error
        finally:
            now, repaired = time.monotonic(), 0
            for applied in landed:
                drift = drifts.get(applied.ref.key)
                scaled = applied.ref.key in target.autoscaled
                sent = self.follower.expects(applied.ref)
                self.follower.accept(
                    applied.ref, applied.object, sent=without_replicas(sent) if scaled and sent else None
                )
                changed = self._changed(drift, applied.object) if drift else ()
                if drift is None or (drift.live is not None and not changed):
                    continue
                repaired += 1
                memory.fights.setdefault(applied.ref.key, Fight()).repaired(now)
                text = self._told(drift, changed)
                run.log.warning("drift repaired", object=str(drift.ref), what=text)
                self._tools.reporter.event(
                    application, "DriftRepaired", f"{text}; put back", warning=True, action="SelfHeal", about=drift.ref
                )
            if {each.uid for each in landed} - {item.uid for item in known}:
                await self._ledger.take_stock(application, memory, landed, 0)
            self._tools.reporter.metrics.repaired(application.namespace, application.name, repaired)
        if memory.disturbed or self.follower.drifted(application.key):
            self._tools.wake(application.key)


def _fields(sent: Json, live: Json) -> str:
    """Half of a digest tells thousands of objects apart, and a Record holds one of each."""
    return owned_digest(sent, live)[:32]


def _luck(error: Invalid) -> Transient:
    hint = error.hint or "it is tried again, ever more rarely; a commit that changes it goes first"
    return Transient(
        error.message, doing=error.doing, ref=error.ref, origin=error.origin, hint=hint, reason=error.reason
    )


def _culprit(culprit: Culprit, seen: datetime) -> str:
    if not culprit.manager or culprit.manager == FIELD_MANAGER:
        return f"{culprit.path} (removed, seen at {timestamp(seen)})"
    return f"{culprit.path} ({culprit.manager}{f' at {culprit.time}' if culprit.time else ''})"
