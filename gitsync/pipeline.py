"""The way of a commit, in order. Read this file first.

``prepare`` goes from a name to a plan and writes nothing but caches and images; it may be cancelled at any instruction.
``apply`` brings a plan to the cluster: record the intent → per wave (apply → wait healthy) → prune → record the result
as last good. It is never cancelled; at its safe points it hands over to a newer plan.

A failed wave stops later waves and never prunes. If the commit is to blame, the last good state comes back and the
commit is quarantined; if it is bad luck, the old version stays and the same plan is tried again.

Every path re-reads the world. What ``Memory`` holds only spares reading again what this process, the one writer of an
Application, has written itself. The steps stand in ``preparing``, ``delivering`` and ``healing``, the pure decisions in
``attempt``, the Record's reader and writer in ``ledger``.
"""

from __future__ import annotations

import time
from dataclasses import replace

from gitsync.application import Application
from gitsync.attempt import (
    UNFINISHED_RETRY,
    Handover,
    Memory,
    Outcome,
    Prepared,
    Target,
    answered,
    begun,
    decision_of,
    handled,
    placed,
    ref_of,
    summary,
    wanted_again,
)
from gitsync.cluster.record import Record
from gitsync.delivering import Delivering
from gitsync.errors import Held, Invalid, Transient, Waiting
from gitsync.healing import Healing
from gitsync.ledger import Ledger, Tools
from gitsync.model import Json, Plan, Stage
from gitsync.plan.waves import name_jobs
from gitsync.preparing import Preparing
from gitsync.render import pin
from gitsync.report.reporter import Run
from gitsync.rollout.follow import Follower
from gitsync.rollout.pods import pods_of_objects
from gitsync.rollout.watch import Verdict


class Pipeline:
    """One for the process; implements ``scheduler.Work``."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._memories: dict[str, Memory] = {}
        self._ledger = Ledger(tools)
        self._preparing = Preparing(tools, self._ledger)
        self._healing = Healing(tools, self._ledger, self._preparing, self._memories)
        self._delivering = Delivering(tools, self._ledger, self._preparing, self._healing)

    @property
    def follower(self) -> Follower:
        return self._healing.follower

    def interval(self, key: str) -> float:
        application = self._tools.applications(key)
        wanted = application.spec.source.interval if application else None
        return wanted.total_seconds() if wanted else self._tools.defaults.interval

    def urgent(self, prepared: Prepared) -> bool:
        return bool(prepared.rollback) or prepared.dismantles

    async def head(self, key: str) -> str:
        application = self._tools.applications(key)
        if application is None:
            return ""
        credentials = await self._preparing.git_credentials(application)
        return (
            await self._tools.source.resolve(application.spec.source.repository, ref_of(application), credentials) or ""
        )

    async def forget(self, key: str) -> None:
        self._memories.pop(key, None)
        await self.follower.forget(key)

    async def preview(self, application: Application) -> Plan:
        """For ``gitsync diff``: what the newest commit would change. Writes nothing, builds nothing."""
        return await self._preparing.preview(application, Run(self._tools.reporter, application))

    def build_log(self, key: str) -> str:
        """The end of the latest build's output, redacted; for showing."""
        memory = self._memories.get(key)
        return "\n".join(memory.build_log) if memory else ""

    def remembered(self, key: str) -> Record | None:
        """The Record as last read or written by this process; for showing, not for deciding."""
        memory = self._memories.get(key)
        return memory.record if memory else None

    async def pods(self, key: str) -> tuple[Json, ...]:
        """As they live now, of what is rolled out or was last; for showing, not for deciding."""
        application, record = self._tools.applications(key), self.remembered(key)
        state = (record.attempt or record.last_good) if record else None
        if application is None or state is None:
            return ()
        return await pods_of_objects(self._preparing.target(application), state.objects)

    # ------------------------------------------------------------------ from a name to a plan

    async def prepare(self, key: str, target: Target) -> Prepared | None:
        application = self._tools.applications(key)
        if application is None:
            return None
        memory = self._memories.setdefault(key, Memory())
        run = Run(self._tools.reporter, application)
        memory.considering, memory.digest = None, ""  # what ends a run before git has answered speaks of no commit
        try:
            if application.deleting:
                return self._preparing.dismantle(application)
            async with run.stage(Stage.SOURCE):
                await self._delivering.keep_finalizer(application)
            return await self._prepare(application, memory, run, target)
        except (Invalid, Held) as error:  # told already; the same again would say the same again
            decision = memory.considering
            await self._ledger.remember(application, memory, run, error, decision=decision, digest=memory.digest)
            record = memory.record
            if record is None or record.attempt is None or memory.applying is not None:
                return None
            if error.reason == "RevisionNotFound":  # of a person who goes back; it speaks against no commit
                return None
            if record.attempt.rollback and error.reason == "Quarantined":  # that is what a person goes back from
                return await self._preparing.resume(application, memory, record, run)
            # What was begun will not be gone on with: it must not stay as a half.
            decision = decision or decision_of(application, record.attempt.revision)
            return self._preparing.abandon(application, record, decision, error)

    async def _prepare(self, application: Application, memory: Memory, run: Run, target: Target) -> Prepared | None:
        if application.spec.sync.suspend:
            if not memory.following and memory.applying is None:
                async with run.stage(Stage.SOURCE):
                    await self._healing.show(application, memory)
            self._tools.reporter.observe(application, suspended=True, **handled(application))
            return None
        async with run.stage(Stage.SOURCE):
            record = await self._ledger.current(application, memory)
            first = not memory.resumed
            if first:  # what serves is told at once, not only when the first run has ended
                self._tools.reporter.observe(
                    application, **self._ledger.known(memory), **self._ledger.quarantine_seen(memory)
                )
                record = await self._preparing.settle(application, memory, record)
                memory.resumed = True  # once it was settled: a server that is away must not cost what a crash made
            resumed = await self._preparing.resume(application, memory, record, run) if first else None
            if resumed is not None:
                return resumed
            if first and record.last_good is not None:
                await self._healing.take_up(application, memory, record.last_good)
            back = await self._preparing.rollback(application, memory, record, run)  # needs no git either
            if back is not None:
                return back
            starved = memory.unmended or time.monotonic() - memory.fetched > 2 * self.interval(application.key)
            repair, trouble = None, None
            try:
                repair = await self._healing.repair(application, memory, run)  # needs no git: that may be down
            except Transient as error:  # no object may hide a commit, which may be what ends this
                memory.unmended, trouble = True, error
            else:
                memory.unmended = memory.unmended and repair is not None
            if repair is not None and not starved:
                return repair
            memory.fetched = time.monotonic()
            try:
                self._preparing.require_dependencies(application)
                revision = await self._preparing.fetch(application)
            except Transient:  # nobody can say what is newer: the next run goes on with what was begun
                memory.resumed = record.attempt is None or memory.applying is not None
                if repair is None:
                    raise
                return repair
            target.sha = revision.sha
            decision = decision_of(application, revision)
            now = memory.record or record  # a rollout may have ended meanwhile
            stopped = now.attempt if memory.applying is None else None  # bad luck did
            if decision == memory.decided and stopped is not None and stopped.rollback:
                return await self._preparing.resume(application, memory, now, run)
            # Else what was decided has to be looked at again: something else was begun, and must not stay as a half.
            if decision == memory.applying or (decision == memory.decided and stopped is None):
                if trouble is not None:
                    raise trouble
                if memory.applying is None:
                    self._tools.reporter.observe(application, suspended=False, **handled(application))
                    if not memory.unmended:  # else it is told until that is mended
                        self._tools.reporter.recovered(application)
                    self._healing.tell_health(application)
                return repair
            good = record.last_good
            if good and memory.taken_up and decision.delivered(good):
                memory.decided = decision
                if trouble is not None:
                    raise trouble
                self._tools.reporter.observe(application, **self._ledger.taken_up(application, good))
                self._healing.tell_health(application)
                return repair
            run.found(str(revision))
            memory.considering, memory.digest = decision, ""
            record = await self._preparing.release(application, memory, record, decision)
            await self._preparing.check_history(application, record, revision)
            snapshot = await self._tools.source.snapshot(revision)
        self._tools.reporter.observe(application, suspended=False)
        async with run.stage(Stage.RENDER):
            desired = await self._preparing.render(application, record, snapshot)
        async with run.stage(Stage.IMAGES):
            images = await self._preparing.build(application, memory, record, snapshot, desired, run)
            pinned = name_jobs(pin(desired, {image.name: image.reference for image in images.images}))
        async with run.stage(Stage.PLAN):
            again = wanted_again(record, decision, images, memory.digest)
            if again is not None and self._healing.sees_no_difference(application, memory):
                await self._delivering.moves_on(application, memory, again, decision, revision, run)
                return None
            prepared = await self._preparing.plan(
                application, memory, record, decision, pinned, images, memory.digest, run
            )
            if not prepared.plan.empty or record.attempt is not None or record.last_good is None:
                return prepared
            await self._delivering.nothing_changes(prepared, memory, record, run)
            return None

    # ------------------------------------------------------------------ from a plan to pods that serve

    async def apply(self, key: str, prepared: Prepared, handover: Handover) -> Outcome:
        memory = self._memories.setdefault(key, Memory())
        if self._outdated(key, prepared, memory):
            return Outcome(retry_after=0.0)
        memory.applying = prepared.decision
        memory.rolling_back = prepared.rollback or memory.rolling_back
        run = Run(self._tools.reporter, prepared.application)
        if not (prepared.repair or prepared.dismantles):
            run.found(str(prepared.plan.revision))
        try:
            return await self._apply(prepared, memory, run, handover)
        except (Invalid, Held) as error:  # told already
            memory.applying = None
            await self._ledger.remember(
                prepared.application, memory, run, error, decision=prepared.decision, digest=prepared.digest
            )
            if prepared.dismantles:
                return Outcome(retry_after=self.interval(key))
            if mark := prepared.rollback:  # no restart may ask for it once more
                await self._ledger.save(
                    prepared.application, memory, lambda now: replace(now, approvals=answered(now, mark))
                )
            if memory.record is None or memory.record.attempt is None:
                return Outcome()
            memory.decided = None  # what was begun must not stay as a half: it goes on, or is taken back
            return Outcome(retry_after=UNFINISHED_RETRY)
        except Exception:
            if prepared.abandons is not None:
                memory.decided = None  # what was begun is still to be taken back
            if prepared.rollback:
                memory.rolling_back = ""  # unless the Record says that it began, it is still asked for
            raise
        finally:
            memory.applying = None

    def _outdated(self, key: str, prepared: Prepared, memory: Memory) -> bool:
        """Whether the spec says something else by now: while it was built somebody suspended it, or moved its path.

        Or whether it is a second plan for a request to go back that was answered while that was made.
        """
        now, record = self._tools.applications(key), memory.record
        finishes = prepared.dismantles or prepared.abandons is not None
        if not finishes and (now is None or now.generation != prepared.application.generation):
            return True
        return record is not None and record.attempt is None and prepared.rollback in record.approvals

    async def _apply(self, prepared: Prepared, memory: Memory, run: Run, handover: Handover) -> Outcome:
        application = prepared.application
        if prepared.repair:
            await self._healing.mend(prepared, memory, run)
            # Nothing new was delivered: git is asked when it would have been asked anyway.
            due = memory.fetched + self.interval(application.key)
            return Outcome(retry_after=max(0.0, due - time.monotonic()))
        if prepared.dismantles:  # not beside a rollout, which would send what nobody deletes any more
            await self._delivering.dismantle(application, memory, run)
            return Outcome(retry_after=self.interval(application.key))
        if prepared.abandons is not None:
            self._healing.pause(application, memory)
            return await self._delivering.restore(prepared, memory, run, handover, str(prepared.abandons))
        async with run.stage(Stage.PLAN):
            record = await self._ledger.current(application, memory)
            if record.stored.generation != prepared.record_generation:  # another rollout came in between
                prepared = await self._preparing.plan_again(prepared, memory, record, run)
        if record.attempt is not None and record.attempt.phase is Stage.RESTORE and prepared.resumes(record.attempt):
            self._healing.pause(application, memory)
            return await self._delivering.restore(prepared, memory, run, handover, "a restore was interrupted")
        async with run.stage(Stage.RECORD):
            await self._ledger.save(application, memory, lambda record: begun(record, prepared))
        self._healing.pause(application, memory, prepared.plan.changes)  # not before: what is refused changes nothing
        bad = ""
        async with run.stage(Stage.ROLLOUT, summary(prepared.plan)):
            for number in range(len(prepared.plan.waves)):
                if handover.requested:
                    return self._delivering.handed_over(run)
                verdict = await self._delivering.roll(prepared, memory, run, number, handover)
                if verdict is None:
                    return self._delivering.handed_over(run)
                if verdict.verdict is Verdict.LUCK:
                    raise Waiting(
                        verdict.message,
                        doing="waiting for",
                        ref=verdict.ref,
                        retry_after=15.0,
                        hint="nothing speaks against the commit: it is tried again",
                        reason="RolloutWaits",
                    )
                if verdict.verdict is Verdict.FAILED:
                    place = placed(prepared.plan, verdict.ref, verdict.container, verdict.field)
                    bad = ": ".join(filter(None, (place, verdict.message)))
                    break
        if bad:
            return await self._delivering.restore(prepared, memory, run, handover, bad)
        async with run.stage(Stage.PRUNE):
            await self._delivering.prune(prepared, memory, run)
        async with run.stage(Stage.REPORT):
            await self._delivering.delivered(prepared, memory, run)
        return Outcome(delivered=True)
