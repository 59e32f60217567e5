"""The way of a commit, in order. Read this file first.

``prepare`` goes from a name to a plan and writes nothing but caches and images; it may be cancelled at any instruction.
``apply`` brings a plan to the cluster: record the intent → per wave (apply → wait healthy) → prune → record the result
as last good. It is never cancelled; at its safe points it hands over to a newer plan.

A failed wave stops later waves and never prunes. If the commit is to blame, the last good state comes back and the
commit is quarantined; if it is bad luck, the old version stays and the same plan is tried again.

Every path re-reads the world. What ``_Memory`` holds only spares reading again what this process, the one writer of an
Application, has written itself; it may vanish at any moment.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from gitsync.application import DEFAULT_PATHS, Application
from gitsync.cluster.answers import NoKind, Rejected
from gitsync.cluster.client import Cluster, service_account
from gitsync.cluster.record import Attempt, GoodState, HistoryEntry, Quarantined, Record, Records
from gitsync.errors import BuildFailed, GitsyncError, Held, Invalid, Refused, Waiting
from gitsync.images import Destination, Images, ImageUse, RegistryCredentials, describe, select
from gitsync.model import (
    ANNOTATION_APPROVE,
    ANNOTATION_REQUESTED_AT,
    ANNOTATION_RETRY,
    Action,
    Applied,
    Change,
    Desired,
    Health,
    HealthStatus,
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
    SyncStatus,
)
from gitsync.plan import PlanOptions, autoscaled, lint, plan
from gitsync.plan.waves import name_jobs
from gitsync.render import RenderOptions, pin, references, render, stamp, with_namespace
from gitsync.report.reporter import Reporter, Run
from gitsync.report.status import timestamp
from gitsync.rollout import watch as rollout
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.ownership import autoscalers
from gitsync.rollout.prune import prune
from gitsync.rollout.restore import remove_created, restore
from gitsync.rollout.target import Key
from gitsync.rollout.target import Target as ClusterTarget
from gitsync.rollout.watch import Verdict, wait_healthy
from gitsync.source import GitCredentials, GitSource, Ref

MOST_GETS = 8  # objects of one kind and namespace read one by one; more are read by a list
HANDED_OVER_RETRY = 0.0
MOST_HISTORY = 50
MOST_QUARANTINED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What an Application that is silent about it gets: the process's settings."""

    push: str = ""
    pull: str = ""
    service_account: str = ""
    interval: float = 60.0  # seconds between polls
    login: RegistryCredentials = field(default_factory=RegistryCredentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a run decided about. The same again needs no second look."""

    sha: str
    generation: int
    approved: str = ""
    retried: str = ""


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
    record_generation: int = 0

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
class _Memory:
    record: Record | None = None
    decided: Decision | None = None
    considering: Decision | None = None
    digest: str = ""  # of what is being considered
    applying: Decision | None = None
    resumed: bool = False  # the attempt that a former process left was looked at


class Pipeline:
    """One for the process; implements ``scheduler.Work``. ``applications`` looks an Application up by its key."""

    def __init__(
        self,
        *,
        applications: Callable[[str], Application | None],
        source: GitSource,
        images: Images,
        cluster: Cluster,
        records: Records,
        reporter: Reporter,
        defaults: Defaults,
    ) -> None:
        self._applications = applications
        self._source = source
        self._rendering = RenderOptions()
        self._images = images
        self._cluster = cluster
        self._records = records
        self._reporter = reporter
        self._defaults = defaults
        self._memories: dict[str, _Memory] = {}

    # ------------------------------------------------------------------ what the scheduler asks

    def interval(self, key: str) -> float:
        application = self._applications(key)
        wanted = application.spec.source.interval if application else None
        return wanted.total_seconds() if wanted else self._defaults.interval

    async def head(self, key: str) -> str:
        application = self._applications(key)
        if application is None:
            return ""
        credentials = await self._git_credentials(application)
        return await self._source.resolve(application.spec.source.repository, ref_of(application), credentials) or ""

    def forget(self, key: str) -> None:
        self._memories.pop(key, None)

    async def prepare(self, key: str, target: Target) -> Prepared | None:
        application = self._applications(key)
        if application is None or application.deleting:
            return None
        memory = self._memories.setdefault(key, _Memory())
        run = Run(self._reporter, application)
        try:
            return await self._prepare(application, memory, run, target)
        except (Invalid, Held) as error:  # told already; the same again would say the same again
            await self._remember(application, memory, run, error)
            return None

    async def _prepare(self, application: Application, memory: _Memory, run: Run, target: Target) -> Prepared | None:
        if application.spec.sync.suspend:
            self._reporter.observe(application, suspended=True, **handled(application))
            return None
        async with run.stage(Stage.SOURCE):
            self._require_dependencies(application)
            record = memory.record or await self._load(application, memory)
            first, memory.resumed = not memory.resumed, True
            resumed = await self._resume(application, memory, record, run) if first else None
            if resumed is not None:
                return resumed
            revision = await self._fetch(application)
            target.sha = revision.sha
            decision = self._decision(application, revision)
            if decision in (memory.decided, memory.applying):
                if memory.applying is None:
                    self._reporter.observe(application, suspended=False, **handled(application))
                    self._reporter.recovered(application)
                return None
            run.found(str(revision))
            memory.considering, memory.digest = decision, ""
            record = await self._release(application, memory, self._recorded(memory), decision)
            await self._check_history(application, record, revision)
            snapshot = await self._source.snapshot(revision)
        self._reporter.observe(application, suspended=False)
        async with run.stage(Stage.RENDER):
            desired = await self._render(application, snapshot)
        async with run.stage(Stage.IMAGES):
            images = await self._build(application, memory, record, snapshot, desired, run)
            pinned = name_jobs(pin(desired, {image.name: image.reference for image in images.images}))
        async with run.stage(Stage.PLAN):
            prepared = await self._plan(application, memory, record, decision, pinned, images, memory.digest, run)
            if not prepared.plan.empty or record.attempt is not None or record.last_good is None:
                return prepared
            await self._nothing_changes(prepared, memory, record, run)
            return None

    # ------------------------------------------------------------------ source

    def _require_dependencies(self, application: Application) -> None:
        for dependency in application.spec.sync.depends_on:
            key = f"{dependency.namespace or application.namespace}/{dependency.name}"
            said = self._reporter.said(key)
            observed = said.observation if said else None
            if observed is None or (observed.sync, observed.health.status) != (SyncStatus.SYNCED, HealthStatus.HEALTHY):
                raise Waiting(
                    f"it waits for Application {key}, which is not synced and healthy",
                    retry_after=30.0,
                    doing="looking at dependencies of",
                    ref=application.ref,
                    hint=f"'gitsync get {key}' says how that one is",
                    reason="DependencyNotReady",
                )

    async def _fetch(self, application: Application) -> Revision:
        credentials = await self._git_credentials(application)
        return await self._source.fetch(application.spec.source.repository, ref_of(application), credentials)

    async def _git_credentials(self, application: Application) -> GitCredentials | None:
        wanted = application.spec.source.secret_ref
        if wanted is None:
            return None
        credentials = GitCredentials.from_secret(await self._secret(application, wanted.name, "source.secretRef"))
        self._reporter.redactor.learn(*credentials.secrets)
        return credentials

    async def _secret(self, application: Application, name: str, field_path: str) -> Mapping[str, bytes]:
        ref = ObjectRef(version="v1", kind="Secret", namespace=application.namespace, name=name)
        secret = await self._cluster.get(ref)
        if secret is None:
            raise Waiting(
                f"there is no Secret {application.namespace}/{name}",
                retry_after=30.0,
                doing=f"reading spec.{field_path} of",
                ref=application.ref,
                hint="create it, or correct the name",
                reason="SecretNotFound",
            )
        data: dict[str, str] = secret.get("data") or {}
        return {key: b64decode(value) for key, value in data.items()}

    def _decision(self, application: Application, revision: Revision) -> Decision:
        return Decision(
            sha=revision.sha,
            generation=application.generation,
            approved=application.annotations.get(ANNOTATION_APPROVE, ""),
            retried=application.annotations.get(ANNOTATION_RETRY, ""),
        )

    async def _release(self, application: Application, memory: _Memory, record: Record, decision: Decision) -> Record:
        """``gitsync sync --retry`` empties the quarantine, once: the Record remembers that it did."""
        mark = f"retry:{decision.retried}"
        if not decision.retried or mark in record.approvals:
            return record
        approvals = (*record.approvals[-MOST_QUARANTINED:], mark)
        return await self._save(application, memory, replace(record, quarantine=(), approvals=approvals))

    async def _check_history(self, application: Application, record: Record, revision: Revision) -> None:
        good = record.last_good
        if good is None or good.revision.repository != revision.repository or approved(application, revision):
            return
        relation = await self._source.relation(revision.repository, good.revision.sha, revision.sha)
        if relation == "unrelated":
            raise Held(
                f"{revision} has no history in common with what is deployed, {good.revision}",
                doing="following the history of",
                ref=application.ref,
                hint=f"if that is meant: 'gitsync approve {application.key}'",
                reason="UnrelatedHistory",
            )

    # ------------------------------------------------------------------ render and images

    async def _render(self, application: Application, snapshot: Snapshot) -> Desired:
        path = application.spec.source.path or manifests_path(snapshot)
        options = replace(self._rendering, release=application.name, namespace=application.target_namespace)
        desired = await render(snapshot, path, options=options)
        scopes = await self._scopes(application, desired)
        return stamp(
            with_namespace(desired, application.target_namespace, lambda ref: scopes[ref.group, ref.kind]),
            key=application.key.encode()[:64],
        )

    async def _scopes(self, application: Application, desired: Desired) -> Mapping[tuple[str, str], bool]:
        """Which kinds are namespaced: the server's word, or that of a CustomResourceDefinition of the same commit."""
        scopes = {
            (str(m.object["spec"].get("group")), str(m.object["spec"]["names"].get("kind"))): (
                m.object["spec"].get("scope") == "Namespaced"
            )
            for m in desired.manifests
            if m.ref.kind == "CustomResourceDefinition" and isinstance(m.object.get("spec"), dict)
        }
        for manifest in desired.manifests:
            kind = (manifest.ref.group, manifest.ref.kind)
            if kind not in scopes:
                try:
                    scopes[kind] = (await self._cluster.resource_of(manifest.ref)).namespaced
                except Invalid as error:
                    error.origin, error.ref = manifest.at("kind"), manifest.ref
                    raise
        return scopes

    async def _build(
        self,
        application: Application,
        memory: _Memory,
        record: Record,
        snapshot: Snapshot,
        desired: Desired,
        run: Run,
    ) -> ImageSet:
        """The images of the commit, found or built. A quarantined commit is refused before anything is built."""
        specs = select(
            [entry.path for entry in snapshot.entries()],
            [ImageUse(reference=use.image, origin=use.origin) for use in references(desired.manifests)],
            image_specs(application),
            repository=snapshot.revision.repository,
        )
        to = await self._destination(application)
        bases = await self._images.lock(snapshot, specs, to=to, bases=record.bases)
        rows = await describe(snapshot, specs, bases=bases, platforms=to.platforms)
        memory.digest = input_digest(desired, {str(row["name"]): str(row["fingerprint"]) for row in rows})
        self._refuse_quarantined(application, record, memory.digest)

        def heard(image: str, line: str) -> None:
            run.log.debug("build", image=image, line=line)

        if specs:
            run.tell(f"finding or building {', '.join(spec.name for spec in specs)}")
        try:
            images = await self._images.ensure(snapshot, specs, to=to, bases=bases, log=heard)
        except BuildFailed:
            self._reporter.metrics.built(0.0, succeeded=False)
            raise
        for image in images.images:
            if image.built:
                self._reporter.metrics.built(image.seconds, succeeded=True)
        return images

    async def _destination(self, application: Application) -> Destination:
        registry = application.spec.registry
        login = self._defaults.login
        if registry.secret_ref is not None:
            secret = await self._secret(application, registry.secret_ref.name, "registry.secretRef")
            login = RegistryCredentials.from_dockerconfigjson(
                secret.get(".dockerconfigjson", b""),
                source=f"Secret {application.namespace}/{registry.secret_ref.name}",
            )
        push = registry.repository or self._defaults.push
        pull = registry.pull_repository or ("" if registry.repository else self._defaults.pull)
        return Destination(push=push, pull=pull, credentials=login)

    def _refuse_quarantined(self, application: Application, record: Record, digest: str) -> None:
        for entry in record.quarantine:
            if entry.digest == digest and entry.generation == application.generation:
                raise Refused(
                    f"quarantined, it failed at {entry.stage.value} as {entry.revision}: {entry.message}",
                    doing="deciding about",
                    ref=application.ref,
                    hint=f"push a fix, or 'gitsync sync --retry {application.key}'",
                    reason="Quarantined",
                )

    # ------------------------------------------------------------------ plan

    async def _plan(
        self,
        application: Application,
        memory: _Memory,
        record: Record,
        decision: Decision,
        desired: Desired,
        images: ImageSet,
        digest: str,
        run: Run,
    ) -> Prepared:
        """``desired`` is pinned. Reads the live state, decides, and asks the server about all that would be sent."""
        target = self._target(application)
        refs = [*(m.ref for m in desired.manifests), *(item.ref for item in record.inventory), *needed(desired)]
        live = await self._live(target, refs)
        scalers = await autoscalers(self._cluster, desired.manifests, impersonate=target.impersonate)
        good = record.last_good
        planned = plan(
            desired,
            live,
            record.inventory,
            owner=application.key,
            previous={ObjectRef.of(obj).key: obj for obj in good.objects} if good else {},
            autoscalers=scalers,
            options=PlanOptions(
                prune=application.spec.sync.prune,
                approved=desired.revision.sha if approved(application, desired.revision) else "",
                zero_downtime=application.spec.zero_downtime,
                accept_interruption=application.spec.sync.accept_interruption,
            ),
        )
        gone = {item.ref.key for item in planned.prunes}
        staying = [obj for key, obj in live.items() if key not in gone]
        target = replace(target, autoscaled=autoscaled(desired.manifests, [*scalers, *staying]))
        sent = [change for change in planned.changes if change.action is not Action.UNCHANGED]
        tried = await dry_run(
            target,
            [change.manifest for change in sent],
            replaces=[change.manifest.ref for change in sent if change.action is Action.REPLACE],
        )
        if tried.refusals:
            raise tried.refusals[0]
        planned = without_effectless(planned, live, tried.replies)
        for finding in planned.findings:
            run.log.info(
                "finding", rule=finding.rule, level=finding.level, object=str(finding.ref), says=finding.message
            )
        return Prepared(
            application=application,
            decision=decision,
            plan=planned,
            images=images,
            digest=digest,
            target=target,
            deferred=tried.deferred,
            present=tuple(
                InventoryItem(ref=change.manifest.ref, uid=str(live[change.manifest.ref.key]["metadata"]["uid"]))
                for change in planned.changes
                if change.action is Action.UNCHANGED and change.manifest.ref.key in live
            ),
            record_generation=record.stored.generation,
        )

    def _target(self, application: Application) -> ClusterTarget:
        name = application.spec.sync.service_account_name or self._defaults.service_account
        return ClusterTarget(
            cluster=self._cluster,
            application=application.ref,
            impersonate=service_account(application.namespace, name) if name else "",
        )

    async def _live(self, target: ClusterTarget, refs: Iterable[ObjectRef]) -> dict[Key, Json]:
        """What exists of these. Many of one kind are read by one list. A failed read is an error, never an absence."""
        groups: dict[tuple[str, str, str, str], dict[str, ObjectRef]] = {}
        for ref in refs:
            groups.setdefault((ref.group, ref.version, ref.kind, ref.namespace), {})[ref.name] = ref

        async def read(wanted: Mapping[str, ObjectRef]) -> list[Json]:
            first = next(iter(wanted.values()))
            try:
                if len(wanted) <= MOST_GETS:
                    gets = [self._cluster.get(ref, impersonate=target.impersonate) for ref in wanted.values()]
                    return [obj for obj in await asyncio.gather(*gets) if obj is not None]
                resource = await self._cluster.resource_of(first)
                listing = await self._cluster.list(resource, namespace=first.namespace, impersonate=target.impersonate)
            except NoKind:
                return []  # its definition comes with this commit, or went and took its objects along
            return [obj for obj in listing.items if obj["metadata"]["name"] in wanted]

        found = await asyncio.gather(*(read(wanted) for wanted in groups.values()))
        return {ObjectRef.of(obj).key: obj for objects in found for obj in objects}

    async def _nothing_changes(self, prepared: Prepared, memory: _Memory, record: Record, run: Run) -> None:
        """A commit that changes no object and no image is deployed already: only the Record moves on."""
        revision, good = prepared.plan.revision, record.last_good
        assert good is not None
        if good.revision != revision or record.inventory != merged(record.inventory, prepared.present):
            await self._save(
                prepared.application,
                memory,
                replace(
                    record,
                    last_good=replace(good, revision=revision, images=prepared.images.images),
                    inventory=merged(record.inventory, prepared.present),
                    bases={**record.bases, **prepared.images.bases},
                ),
            )
        memory.decided = prepared.decision
        run.succeeded(f"{revision} changes nothing in the cluster", **self._deployed(prepared))

    async def _resume(self, application: Application, memory: _Memory, record: Record, run: Run) -> Prepared | None:
        """Go on with what a former process began, from the Record alone. ``None``: nothing, or the spec has changed."""
        attempt = record.attempt
        if attempt is None:
            return None
        record = await self._settle(application, memory, record, attempt)
        if attempt.generation != application.generation and attempt.phase is not Stage.RESTORE:
            return None
        run.found(str(attempt.revision))
        origins = attempt.origins or (Origin(),) * len(attempt.objects)
        desired = Desired(
            revision=attempt.revision,
            manifests=tuple(
                Manifest(ref=ObjectRef.of(obj), object=obj, origin=origin)
                for obj, origin in zip(attempt.objects, origins, strict=True)
            ),
        )
        decision = self._decision(application, attempt.revision)
        images = ImageSet(images=attempt.images, bases=attempt.bases)
        memory.considering, memory.digest = decision, attempt.digest
        async with run.stage(Stage.PLAN, "resuming what was interrupted"):
            return await self._plan(application, memory, record, decision, desired, images, attempt.digest, run)

    async def _settle(self, application: Application, memory: _Memory, record: Record, attempt: Attempt) -> Record:
        """A crash may have come between a creation and its record: what we created is ours."""
        target = self._target(application)
        known = {item.ref.key for item in record.inventory}
        live = await self._live(target, [ref for ref in attempt.creates if ref.key not in known])
        found = [
            InventoryItem(ref=ref, uid=str(live[ref.key]["metadata"]["uid"]))
            for ref in attempt.creates
            if ref.key in live and target.owns(live[ref.key])
        ]
        if not found:
            return record
        return await self._save(application, memory, replace(record, inventory=merged(record.inventory, found)))

    # ------------------------------------------------------------------ apply

    async def apply(self, key: str, prepared: Prepared, handover: Handover) -> Outcome:
        memory = self._memories.setdefault(key, _Memory())
        memory.applying = prepared.decision
        run = Run(self._reporter, prepared.application)
        run.found(str(prepared.plan.revision))
        try:
            return await self._apply(prepared, memory, run, handover)
        except (Invalid, Held) as error:  # told already
            memory.considering, memory.digest = prepared.decision, prepared.digest
            await self._remember(prepared.application, memory, run, error)
            return Outcome()
        finally:
            memory.applying = None

    async def _apply(self, prepared: Prepared, memory: _Memory, run: Run, handover: Handover) -> Outcome:
        application = prepared.application
        async with run.stage(Stage.PLAN):
            record = memory.record or await self._load(application, memory)
            if record.stored.generation != prepared.record_generation:  # another rollout came in between
                prepared = await self._plan_again(prepared, memory, record, run)
        if record.attempt is not None and record.attempt.phase is Stage.RESTORE and prepared.resumes(record.attempt):
            return await self._restore(prepared, memory, run, handover, "a restore was interrupted")
        async with run.stage(Stage.RECORD):
            await self._save(application, memory, begun(record, prepared))
        bad = ""
        async with run.stage(Stage.ROLLOUT, summary(prepared.plan)):
            for number in range(len(prepared.plan.waves)):
                if handover.requested:
                    return self._handed_over(run)
                verdict = await self._roll(prepared, memory, run, number, handover)
                if verdict is None:
                    return self._handed_over(run)
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
                    bad = ": ".join(part for part in (str(verdict.ref or ""), verdict.message) if part)
                    break
        if bad:
            return await self._restore(prepared, memory, run, handover, bad)
        async with run.stage(Stage.PRUNE):
            await self._prune(prepared, memory, run)
        async with run.stage(Stage.REPORT):
            await self._delivered(prepared, memory, run)
        return Outcome(delivered=True)

    async def _plan_again(self, prepared: Prepared, memory: _Memory, record: Record, run: Run) -> Prepared:
        desired = Desired(
            revision=prepared.plan.revision, manifests=tuple(change.manifest for change in prepared.plan.changes)
        )
        return await self._plan(
            prepared.application, memory, record, prepared.decision, desired, prepared.images, prepared.digest, run
        )

    async def _roll(
        self, prepared: Prepared, memory: _Memory, run: Run, number: int, handover: Handover
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
            record = self._recorded(memory)
            applied = await apply_wave(target, wave, inventory=record.inventory, on_applied=landed.append)
        except Invalid as error:
            await self._take_stock(application, memory, landed, number)
            return rollout.Outcome(verdict=Verdict.FAILED, health={}, message=str(error))
        except GitsyncError:
            await self._take_stock(application, memory, landed, number)
            raise
        await self._take_stock(application, memory, landed, number)

        def heard(health: Health) -> None:
            run.tell(": ".join(part for part in (str(health.ref or ""), health.message or health.status.value) if part))

        return await unless_handed_over(
            handover,
            wait_healthy(
                target,
                applied,
                unchanged=[change.manifest.ref for change in wave if change.action is Action.UNCHANGED],
                ours=[change.manifest.ref.key for change in prepared.plan.changes],
                deadline=application.spec.sync.timeout.total_seconds(),
                on_health=heard,
                redact=self._reporter.redactor,
            ),
            run,
        )

    async def _take_stock(
        self, application: Application, memory: _Memory, landed: Sequence[Applied], number: int
    ) -> None:
        """Record what was created or adopted, before anything else happens."""
        record = self._recorded(memory)
        inventory = merged(record.inventory, [InventoryItem(ref=each.ref, uid=each.uid) for each in landed])
        if inventory != record.inventory:
            attempt = replace(record.attempt, wave=number) if record.attempt else None
            await self._save(application, memory, replace(record, inventory=inventory, attempt=attempt))

    async def _prune(self, prepared: Prepared, memory: _Memory, run: Run) -> None:
        record = self._recorded(memory)
        if not prepared.plan.prunes:
            return
        run.tell(f"deleting {len(prepared.plan.prunes)} objects that git no longer has")
        pruned = await prune(prepared.target, prepared.plan.prunes)
        gone = {item.ref.key for item in pruned.removed}
        inventory = tuple(item for item in record.inventory if item.ref.key not in gone)
        await self._save(prepared.application, memory, replace(record, inventory=inventory))
        for kept in pruned.kept:
            self._reporter.event(
                prepared.application, "PruneFailed", f"{kept.item.ref} was not deleted: {kept.error}", warning=True,
                action="Prune",
            )  # fmt: skip

    async def _delivered(self, prepared: Prepared, memory: _Memory, run: Run) -> None:
        application, revision, now = prepared.application, prepared.plan.revision, datetime.now(UTC)
        record = self._recorded(memory)
        good = GoodState(
            revision=revision,
            objects=tuple(change.manifest.object for change in prepared.plan.changes),
            images=prepared.images.images,
            bases=prepared.images.bases,
            at=now,
        )
        started = record.attempt.started_at if record.attempt else run.started
        entry = HistoryEntry(
            revision=revision,
            started_at=started,
            finished_at=now,
            outcome="Deployed",
            message=summary(prepared.plan),
            images=prepared.images.images,
            lowest_ready_share=run.lowest_ready,
        )
        await self._save(
            application,
            memory,
            replace(
                record,
                last_good=good,
                attempt=None,
                inventory=merged(record.inventory, prepared.present),
                history=(entry, *record.history)[:MOST_HISTORY],
                bases={**record.bases, **prepared.images.bases},
            ),
        )
        memory.decided = prepared.decision
        metrics = self._reporter.metrics
        metrics.deployed(application.namespace, application.name, "success")
        if run.lowest_ready is not None:
            metrics.lowest_ready(application.namespace, application.name, run.lowest_ready)
        if revision.committed_at is not None:
            metrics.healthy_after_push((now - revision.committed_at).total_seconds())
        text = f"{revision} serves ({summary(prepared.plan)})"
        self._reporter.event(application, "Deployed", text, action="Rollout")
        run.succeeded(text, **self._deployed(prepared))

    def _deployed(self, prepared: Prepared) -> dict[str, Any]:
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

    # ------------------------------------------------------------------ restore

    async def _restore(
        self, prepared: Prepared, memory: _Memory, run: Run, handover: Handover, message: str
    ) -> Outcome:
        """Put the last good state back, remember the commit, and say what cannot be undone."""
        application, target, began = prepared.application, prepared.target, time.monotonic()
        record = self._recorded(memory)
        attempt, good = record.attempt, record.last_good
        assert attempt is not None
        async with run.stage(Stage.RESTORE, message):
            entry = quarantined(prepared, Stage.ROLLOUT, message)
            record = await self._save(
                application,
                memory,
                replace(
                    record,
                    attempt=replace(attempt, phase=Stage.RESTORE),
                    quarantine=remembered(record.quarantine, entry),
                ),
            )
            landed: list[Applied] = []
            restored = await restore(target, good, attempt, inventory=record.inventory, on_applied=landed.append)
            await self._take_stock(application, memory, landed, attempt.wave)
            verdict = await unless_handed_over(handover, wait_healthy(target, restored.applied), run)
            if verdict is None:
                return self._handed_over(run)
            statements = list(restored.statements)
            record = self._recorded(memory)
            if good is not None:
                removed = await remove_created(target, good, attempt, inventory=record.inventory)
                gone = {item.ref.key for item in removed.removed}
                record = replace(record, inventory=tuple(i for i in record.inventory if i.ref.key not in gone))
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
            await self._save(
                application,
                memory,
                replace(record, attempt=None, history=(finished, *record.history)[:MOST_HISTORY]),
            )
        memory.decided = prepared.decision
        back = f"{good.revision} serves again" if good else "nothing was deployed before"
        error = Refused(
            " ".join([message.rstrip(".") + ".", *statements]).strip(),
            doing=f"rolling out {attempt.revision}",
            hint=f"{back}; push a fix, or 'gitsync sync --retry {application.key}'",
            reason="RolloutFailed",
        )
        outcome = "restored" if good else "failed"
        self._reporter.metrics.deployed(application.namespace, application.name, outcome)
        self._reporter.metrics.restored(time.monotonic() - began)
        healthy = verdict.verdict is Verdict.HEALTHY and good is not None
        run.failed(
            error,
            sync=SyncStatus.OUT_OF_SYNC,
            health=Health(status=HealthStatus.HEALTHY if healthy else HealthStatus.DEGRADED),
            revision=str(good.revision) if good else "",
            last_good=str(good.revision) if good else "",
            **self._quarantine_seen(memory),
            **handled(application),
        )
        return Outcome()

    def _handed_over(self, run: Run) -> Outcome:
        run.log.info("handed over to a newer plan")
        return Outcome(retry_after=HANDED_OVER_RETRY)

    # ------------------------------------------------------------------ the Record

    async def _load(self, application: Application, memory: _Memory) -> Record:
        memory.record = await self._records.load(application.ref)
        return memory.record

    async def _save(self, application: Application, memory: _Memory, record: Record) -> Record:
        try:
            memory.record = await self._records.save(record, owner_uid=application.uid)
        except GitsyncError:
            memory.record = None  # what is stored now is not known: read it again
            raise
        return memory.record

    def _recorded(self, memory: _Memory) -> Record:
        assert memory.record is not None, "an apply begins by recording its intent"
        return memory.record

    async def _remember(self, application: Application, memory: _Memory, run: Run, error: GitsyncError) -> None:
        """The same input is not tried again: in memory, and if a build or the server refused it, in the Record."""
        memory.decided = memory.considering
        changes = handled(application)
        evidence = isinstance(error, BuildFailed | Rejected) and memory.digest and memory.considering
        if evidence and memory.record is not None and memory.considering is not None:
            entry = Quarantined(
                digest=memory.digest,
                generation=application.generation,
                revision=Revision(
                    repository=application.spec.source.repository,
                    ref=application.spec.source.ref.value,
                    sha=memory.considering.sha,
                ),
                stage=run.at,
                message=str(error),
                at=datetime.now(UTC),
            )
            quarantine = remembered(memory.record.quarantine, entry)
            try:
                await self._save(application, memory, replace(memory.record, quarantine=quarantine))
            except GitsyncError as trouble:
                run.log.warning("the quarantine could not be recorded", error=str(trouble))
        self._reporter.observe(application, **self._known(memory), **self._quarantine_seen(memory), **changes)

    def _known(self, memory: _Memory) -> dict[str, Any]:
        """What the Record says about what is live, for a status that was lost or never written."""
        good = memory.record.last_good if memory.record else None
        return {"revision": str(good.revision), "last_good": str(good.revision)} if good else {}

    def _quarantine_seen(self, memory: _Memory) -> dict[str, Any]:
        entries = memory.record.quarantine if memory.record else ()
        return {
            "quarantined": [
                {
                    "revision": str(entry.revision),
                    "digest": entry.digest,
                    "stage": entry.stage.value,
                    "reason": "RolloutFailed" if entry.stage is Stage.ROLLOUT else "Refused",
                    "message": entry.message,
                    "at": timestamp(entry.at),
                }
                for entry in entries
            ]
        }

    def remembered(self, key: str) -> Record | None:
        """The Record as last read or written by this process; for showing, not for deciding."""
        memory = self._memories.get(key)
        return memory.record if memory else None


# ---------------------------------------------------------------- pure


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


def merged(inventory: Sequence[InventoryItem], found: Iterable[InventoryItem]) -> tuple[InventoryItem, ...]:
    """The inventory with these in it; the newest UID of an object wins."""
    items = {item.ref.key: item for item in inventory}
    items.update((item.ref.key, item) for item in found)
    return tuple(items.values())


def begun(record: Record, prepared: Prepared) -> Record:
    """The Record with the attempt in it. An attempt that is resumed keeps when it began and what it created."""
    changes = prepared.plan.changes
    former = record.attempt if record.attempt is not None and prepared.resumes(record.attempt) else None
    creates = {change.manifest.ref for change in changes if change.action is Action.CREATE}
    attempt = Attempt(
        revision=prepared.plan.revision,
        phase=Stage.ROLLOUT,
        objects=tuple(change.manifest.object for change in changes),
        origins=tuple(change.manifest.origin for change in changes),
        creates=tuple(sorted(creates | set(former.creates if former else ()))),
        replaces=tuple(change.manifest.ref for change in changes if change.action is Action.REPLACE),
        images=prepared.images.images,
        bases=prepared.images.bases,
        started_at=former.started_at if former else datetime.now(UTC),
        generation=prepared.application.generation,
        digest=prepared.digest,
    )
    return replace(
        record, attempt=attempt, inventory=merged(record.inventory, prepared.present),
        bases={**record.bases, **prepared.images.bases},
    )  # fmt: skip


def quarantined(prepared: Prepared, stage: Stage, message: str) -> Quarantined:
    return Quarantined(
        digest=prepared.digest,
        generation=prepared.application.generation,
        revision=prepared.plan.revision,
        stage=stage,
        message=message,
        at=datetime.now(UTC),
    )


def remembered(entries: Sequence[Quarantined], entry: Quarantined) -> tuple[Quarantined, ...]:
    """One entry per input; the oldest of many are forgotten."""
    others = [each for each in entries if (each.digest, each.generation) != (entry.digest, entry.generation)]
    return (*others, entry)[-MOST_QUARANTINED:]


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
    parts += [f"{len(planned.prunes)} deleted"] if planned.prunes else []
    return ", ".join(parts)


def held_message(prepared: Prepared) -> str:
    held = prepared.plan.held
    names = ", ".join(str(item.ref) for item in held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
    return (
        f"{prepared.plan.revision} would delete {names}; nothing is deleted until a person approves: "
        f"'gitsync approve {prepared.application.key}'"
    )


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


def needed(desired: Desired) -> frozenset[ObjectRef]:
    """The ConfigMaps, Secrets and claims that pods of the commit cannot start without, wherever they come from."""
    keys = frozenset[Key]().union(*(lint.references(manifest) for manifest in desired.manifests))
    return frozenset(
        ObjectRef(group=group, version="v1", kind=kind, namespace=space, name=name) for group, kind, space, name in keys
    )
