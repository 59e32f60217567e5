"""From an Application to a plan: the acting half of source, render, images and plan, step by step.

Writes nothing but caches, images and what the Record must remember first (a released quarantine, objects that a crash
kept out of the inventory). Everything here may be cancelled at any instruction.
"""

from __future__ import annotations

import asyncio
import contextlib
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import replace

from gitsync.application import FINALIZER, Application
from gitsync.attempt import (
    MOST_GETS,
    Decision,
    Memory,
    Prepared,
    answered,
    approved,
    decision_of,
    image_specs,
    input_digest,
    manifests_path,
    merged,
    needed,
    permitted_before,
    ref_of,
    rollback_target,
    without_effectless,
)
from gitsync.cluster.answers import Forbidden, NoKind
from gitsync.cluster.client import service_account
from gitsync.cluster.record import Record
from gitsync.errors import BuildFailed, GitsyncError, Held, Invalid, Refused, Waiting
from gitsync.images import Destination, ImageUse, RegistryCredentials, describe, left_alone, select
from gitsync.ledger import Ledger, Tools
from gitsync.model import (
    ANNOTATION_ROLLBACK,
    Action,
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
)
from gitsync.plan import OTHER_TOOL, PlanOptions, autoscaled, owner_of, plan
from gitsync.plan.waves import name_jobs
from gitsync.render import RenderOptions, pin, references, render, stamp, with_namespace
from gitsync.report.reporter import Run
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.ownership import autoscalers
from gitsync.rollout.target import Key, part, place_of
from gitsync.rollout.target import Target as ClusterTarget
from gitsync.source import GitCredentials, Ref


class Preparing:
    """The steps before the first write."""

    def __init__(self, tools: Tools, ledger: Ledger) -> None:
        self._tools = tools
        self._ledger = ledger

    def require_dependencies(self, application: Application) -> None:
        for dependency in application.spec.sync.depends_on:
            key = f"{dependency.namespace or application.namespace}/{dependency.name}"
            said = self._tools.reporter.said(key)
            observed = said.observation if said else None
            if observed is None or not observed.well:
                raise Waiting(
                    f"it waits for Application {key}, which is not synced and healthy",
                    retry_after=30.0,
                    doing="looking at dependencies of",
                    ref=application.ref,
                    hint=f"'gitsync get {key}' says how that one is",
                    reason="DependencyNotReady",
                )

    async def fetch(self, application: Application) -> Revision:
        credentials = await self.git_credentials(application)
        return await self._tools.source.fetch(application.spec.source.repository, ref_of(application), credentials)

    async def git_credentials(self, application: Application) -> GitCredentials | None:
        wanted = application.spec.source.secret_ref
        if wanted is None:
            return None
        credentials = GitCredentials.from_secret(await self._secret(application, wanted.name, "source.secretRef"))
        self._tools.reporter.redactor.learn(*credentials.secrets)
        return credentials

    async def _secret(self, application: Application, name: str, field_path: str) -> Mapping[str, bytes]:
        ref = ObjectRef(version="v1", kind="Secret", namespace=application.namespace, name=name)
        secret = await self._tools.cluster.get(ref)
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

    async def release(self, application: Application, memory: Memory, record: Record, decision: Decision) -> Record:
        """``gitsync sync --retry`` empties the quarantine, ``--refresh-bases`` unlocks the base images; each once: the
        Record remembers that it did."""

        def asked(kind: str, value: str) -> str:
            mark = f"{kind}:{value}"
            return mark if value and mark not in record.approvals else ""

        retry, refresh = asked("retry", decision.retried), asked("refresh", decision.refreshed)

        def released(now: Record) -> Record:
            if retry:
                now = replace(now, quarantine=(), approvals=answered(now, retry))
            if refresh:
                now = replace(now, bases={}, approvals=answered(now, refresh))
            return now

        return await self._ledger.save(application, memory, released) if retry or refresh else record

    async def check_history(self, application: Application, record: Record, revision: Revision) -> None:
        good = record.last_good
        if good is None or good.revision.repository != revision.repository or approved(application, revision):
            return
        pair = revision.repository, good.revision.sha, revision.sha
        relation = await self._tools.source.relation(*pair)
        if relation == "unknown":  # the cache is new, and the branch no longer leads to it: hosts keep it for a while
            with contextlib.suppress(Invalid):  # some for no time at all
                credentials = await self.git_credentials(application)
                await self._tools.source.fetch(pair[0], Ref(commit=good.revision.sha), credentials)
                relation = await self._tools.source.relation(*pair)
        if relation == "unrelated":
            raise Held(
                f"{revision} has no history in common with what is deployed, {good.revision}",
                doing="following the history of",
                ref=application.ref,
                hint=f"if that is meant: 'gitsync approve {application.key}'",
                reason=Held.unrelated,
            )

    async def render(self, application: Application, record: Record, snapshot: Snapshot) -> Desired:
        path = application.spec.source.path or manifests_path(snapshot)
        options = RenderOptions(
            reader=self._tools.reader, release=application.name, namespace=application.target_namespace
        )
        desired = await render(snapshot, path, options=options)
        scopes = await self._scopes(application, desired)
        return stamp(
            with_namespace(desired, application.target_namespace, lambda ref: scopes[ref.group, ref.kind]),
            key=record.seed.encode(),
        )

    async def _scopes(self, application: Application, desired: Desired) -> Mapping[tuple[str, str], bool]:
        """Which kinds are namespaced: the server's word, or that of a CustomResourceDefinition of the same commit."""
        scopes = {
            (str(spec.get("group")), str(part(spec, "names").get("kind"))): spec.get("scope") == "Namespaced"
            for m in desired.manifests
            if m.ref.kind == "CustomResourceDefinition" and (spec := part(m.object, "spec"))
        }
        for manifest in desired.manifests:
            kind = (manifest.ref.group, manifest.ref.kind)
            if kind not in scopes:
                try:
                    scopes[kind] = (await self._tools.cluster.resource_of(manifest.ref)).namespaced
                except Invalid as error:
                    error.origin, error.ref = manifest.at("kind"), manifest.ref
                    raise
        return scopes

    async def build(
        self,
        application: Application,
        memory: Memory,
        record: Record,
        snapshot: Snapshot,
        desired: Desired,
        run: Run,
    ) -> ImageSet:
        """The images of the commit, found or built. A quarantined commit is refused before anything is built."""
        specs = self._specs(application, snapshot, desired, run)
        to = await self._destination(application)
        bases = await self._tools.images.lock(snapshot, specs, to=to, bases=record.bases)
        rows = await describe(snapshot, specs, bases=bases, platforms=to.platforms)
        memory.digest = input_digest(desired, {str(row["name"]): str(row["fingerprint"]) for row in rows})
        self._refuse_quarantined(application, record, memory.digest)

        memory.build_log.clear()

        def heard(image: str, line: str) -> None:
            memory.build_log.append(f"{image}: {self._tools.reporter.redactor(line)}")
            run.log.debug("build", image=image, line=line)

        if specs:
            run.tell(f"finding or building {', '.join(spec.name for spec in specs)}")
        try:
            images = await self._tools.images.ensure(snapshot, specs, to=to, bases=bases, log=heard)
        except BuildFailed:
            self._tools.reporter.metrics.built(0.0, succeeded=False)
            raise
        for image in images.images:
            if image.built:
                self._tools.reporter.metrics.built(image.seconds, succeeded=True)
        if images.bases != bases:  # one was gone: the next time, the commit is known by what it is built on now
            memory.digest = input_digest(desired, {image.name: image.fingerprint for image in images.images})
        return images

    def _specs(
        self, application: Application, snapshot: Snapshot, desired: Desired, run: Run | None = None
    ) -> tuple[ImageSpec, ...]:
        """The images that the repository builds. ``run`` hears of those that it seems to build, but does not: else all
        there is to see is that nobody has one."""
        uses = [ImageUse(reference=use.image, origin=use.origin) for use in references(desired.manifests)]
        dockerfiles = [entry.path for entry in snapshot.entries() if entry.path.endswith("Dockerfile")]
        given, repository = image_specs(application), snapshot.revision.repository
        if run is not None:
            for use, why in left_alone(dockerfiles, uses, given, repository=repository):
                run.log.info("an image is left alone", image=use.reference, at=str(use.origin), says=why)
                text = f"image {use.reference} ({use.origin}) {why}"
                self._tools.reporter.event(application, "ImageLeftAlone", text, action="Build")
        return select(dockerfiles, uses, given, repository=repository)

    async def preview(self, application: Application, run: Run) -> Plan:
        """What the newest commit would change, without building, writing or remembering anything."""
        record = await self._tools.records.load(application.ref)
        snapshot = await self._tools.source.snapshot(await self.fetch(application))
        desired = await self.render(application, record, snapshot)
        specs = self._specs(application, snapshot, desired)
        to = await self._destination(application)
        images = await self._tools.images.found(snapshot, specs, to=to, bases=record.bases)
        pinned, decision = name_jobs(pin(desired, images)), decision_of(application, snapshot.revision)
        return (await self.plan(application, Memory(), record, decision, pinned, ImageSet(), "", run)).plan

    async def _destination(self, application: Application) -> Destination:
        registry = application.spec.registry
        try:
            if registry.secret_ref is None:
                login = await asyncio.to_thread(self._tools.defaults.login)
            else:
                secret = await self._secret(application, registry.secret_ref.name, "registry.secretRef")
                login = RegistryCredentials.from_dockerconfigjson(
                    secret.get(".dockerconfigjson", b""),
                    source=f"Secret {application.namespace}/{registry.secret_ref.name}",
                )
        except Invalid as error:  # not the commit's doing: it is mended without another one
            raise Waiting(
                error.message,
                retry_after=30.0,
                doing=error.doing,
                ref=application.ref,
                hint=error.hint,
                reason="RegistryLoginUnreadable",
            ) from error
        self._tools.reporter.redactor.learn(*login.secrets)
        push = registry.repository or self._tools.defaults.push
        pull = registry.pull_repository or ("" if registry.repository else self._tools.defaults.pull)
        return Destination(push=push, pull=pull, credentials=login)

    def _refuse_quarantined(self, application: Application, record: Record, digest: str) -> None:
        for entry in record.quarantine:
            if entry.digest == digest and entry.generation == application.generation:
                raise Refused(
                    f"quarantined since {entry.stage.value} of {entry.revision}: {entry.message}",
                    doing="deciding about",
                    ref=application.ref,
                    hint=f"push a fix, or 'gitsync sync --retry {application.key}'",
                    reason="Quarantined",
                )

    async def plan(
        self,
        application: Application,
        memory: Memory,
        record: Record,
        decision: Decision,
        desired: Desired,
        images: ImageSet,
        digest: str,
        run: Run,
    ) -> Prepared:
        """``desired`` is pinned. Reads the live state, decides, and asks the server about all that would be sent."""
        target, permitted = self.target(application), permitted_before(record)
        refs = [*(m.ref for m in desired.manifests), *(item.ref for item in record.inventory), *needed(desired)]
        try:
            live = await self.live(target, refs)
        except Forbidden as error:
            if error.of_ours or error.ref is None or place_of(error.ref) in permitted:
                raise
            raise error.refusal() from error
        owners = {owner_of(live[m.ref.key]) for m in desired.manifests if m.ref.key in live}
        scalers = await autoscalers(self._tools.cluster, desired.manifests, impersonate=target.impersonate)
        good, attempt = record.last_good, record.attempt
        ran = {ref.key for ref in attempt.ran} if attempt else frozenset[Key]()
        planned = plan(
            desired,
            live,
            record.inventory,
            owner=application.key,
            previous={
                **({ObjectRef.of(obj).key: obj for obj in good.objects} if good else {}),
                **{m.ref.key: m.object for m in desired.manifests if m.ref.key in ran},
            },
            begun={ObjectRef.of(obj).key: obj for obj in attempt.objects} if attempt else {},
            autoscalers=scalers,
            options=PlanOptions(
                prune=application.spec.sync.prune,
                approved=desired.revision.sha if approved(application, desired.revision) else "",
                zero_downtime=application.spec.zero_downtime,
                accept_interruption=application.spec.sync.accept_interruption,
                gone=await self._gone(application, owners),
            ),
        )
        gone = {item.ref.key for item in planned.deletions}
        staying = [obj for key, obj in live.items() if key not in gone]
        target = replace(target, autoscaled=autoscaled(desired.manifests, [*scalers, *staying]))
        sent = [change for change in planned.changes if change.action is not Action.UNCHANGED]
        tried = await dry_run(
            target,
            [change.manifest for change in sent],
            replaces=[change.manifest.ref for change in sent if change.action is Action.REPLACE or change.instead_of],
            permitted=permitted,
        )
        if tried.refusals:
            raise tried.refusals[0]
        planned = without_effectless(planned, live, tried.replies)
        for finding in planned.findings:
            run.log.info(
                "finding", rule=finding.rule, level=finding.level, object=str(finding.ref), says=finding.message
            )
            if finding.rule == OTHER_TOOL:
                text = f"{finding.ref}: {finding.message}; {finding.hint}"
                self._tools.reporter.event(application, "OtherTool", text, warning=True, action="Plan")
        return Prepared(
            application=application,
            decision=decision,
            plan=planned,
            images=images,
            digest=digest,
            target=target,
            deferred=tried.deferred,
            live=live,
            present=tuple(
                InventoryItem(ref=change.manifest.ref, uid=str(live[change.manifest.ref.key]["metadata"]["uid"]))
                for change in planned.changes
                if change.action is Action.UNCHANGED and change.manifest.ref.key in live
            ),
            record_generation=record.stored.generation,
        )

    async def _gone(self, application: Application, owners: Iterable[str]) -> frozenset[str]:
        """Those of the Applications that the server says do not exist. One that was renamed is such a one."""

        async def is_gone(key: str) -> bool:
            namespace, _, name = key.partition("/")
            try:
                return await self._tools.cluster.get(replace(application.ref, namespace=namespace, name=name)) is None
            except (Refused, Forbidden):
                return False  # it is not ours to know

        others = sorted({*owners} - {"", application.key})
        answers = await asyncio.gather(*(is_gone(key) for key in others))
        return frozenset(key for key, gone in zip(others, answers, strict=True) if gone)

    async def plan_again(self, prepared: Prepared, memory: Memory, record: Record, run: Run) -> Prepared:
        desired = Desired(
            revision=prepared.plan.revision, manifests=tuple(change.manifest for change in prepared.plan.changes)
        )
        again = await self.plan(
            prepared.application, memory, record, prepared.decision, desired, prepared.images, prepared.digest, run
        )
        return replace(again, rollback=prepared.rollback)

    def target(self, application: Application) -> ClusterTarget:
        name = application.spec.sync.service_account_name or self._tools.defaults.service_account
        return ClusterTarget(
            cluster=self._tools.cluster,
            application=application.ref,
            impersonate=service_account(application.namespace, name) if name else "",
        )

    async def live(self, target: ClusterTarget, refs: Iterable[ObjectRef]) -> dict[Key, Json]:
        """What exists of these. Many of one kind are read by one list. A failed read is an error, never an absence."""
        groups: dict[tuple[str, str, str, str], dict[str, ObjectRef]] = {}
        for ref in refs:
            groups.setdefault((ref.group, ref.version, ref.kind, ref.namespace), {})[ref.name] = ref

        async def read(wanted: Mapping[str, ObjectRef]) -> list[Json]:
            first = next(iter(wanted.values()))
            try:
                if len(wanted) <= MOST_GETS:
                    gets = [self._tools.cluster.get(ref, impersonate=target.impersonate) for ref in wanted.values()]
                    return [obj for obj in await asyncio.gather(*gets) if obj is not None]
                resource = await self._tools.cluster.resource_of(first)
                listing = await self._tools.cluster.list(
                    resource, namespace=first.namespace, impersonate=target.impersonate
                )
            except NoKind:
                return []  # its definition comes with this commit, or went and took its objects along
            except Forbidden as error:
                error.ref = error.ref or first  # a list names no object
                raise
            return [obj for obj in listing.items if obj["metadata"]["name"] in wanted]

        found = await asyncio.gather(*(read(wanted) for wanted in groups.values()))
        return {ObjectRef.of(obj).key: obj for objects in found for obj in objects}

    async def resume(self, application: Application, memory: Memory, record: Record, run: Run) -> Prepared | None:
        """Go on with what a former process began, from the Record alone. ``None``: nothing, or the spec has changed."""
        attempt = record.attempt
        if attempt is None:
            return None
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
        decision = decision_of(application, attempt.revision)
        images = ImageSet(images=attempt.images, bases=attempt.bases)
        memory.considering, memory.digest = decision, attempt.digest
        async with run.stage(Stage.PLAN, "resuming what was interrupted"):
            prepared = await self.plan(application, memory, record, decision, desired, images, attempt.digest, run)
        return replace(prepared, rollback=attempt.rollback)

    async def rollback(self, application: Application, memory: Memory, record: Record, run: Run) -> Prepared | None:
        """An earlier deployment, from the objects that were kept of it, if a person has asked for that. Once.

        Until it is begun it is planned anew: no commit that comes meanwhile may take the place of what was asked for.
        """
        wanted, _, token = application.annotations.get(ANNOTATION_ROLLBACK, "").rpartition("@")
        mark = f"rollback:{token}"
        if not token or mark in record.approvals or memory.rolling_back == mark:
            return None
        try:
            entry = rollback_target(record, wanted, application.generation)
            run.found(str(entry.revision))
            good = {ObjectRef.of(obj).key for obj in record.last_good.objects} if record.last_good else frozenset[Key]()
            origin = Origin(repository=entry.revision.repository, sha=entry.revision.sha)
            manifests = tuple(
                Manifest(ref=ObjectRef.of(obj), object=obj, origin=origin)
                for obj in entry.objects
                if obj["kind"] != "Job" or ObjectRef.of(obj).key in good  # a Job of long ago is not run again
            )
            desired = Desired(revision=entry.revision, manifests=manifests)
            decision, images = decision_of(application, entry.revision), ImageSet(images=entry.images)
            memory.considering, memory.digest = decision, input_digest(desired, {})
            async with run.stage(Stage.PLAN, f"going back to {entry.revision}"):
                prepared = await self.plan(application, memory, record, decision, desired, images, memory.digest, run)
        except Invalid:
            await self._ledger.save(application, memory, lambda now: replace(now, approvals=answered(now, mark)))
            raise
        return replace(prepared, rollback=mark)

    def abandon(self, application: Application, record: Record, decision: Decision, error: GitsyncError) -> Prepared:
        """What is under way has no future, because what ``decision`` names was refused: take it back."""
        empty = self._nothing(application, decision.sha)
        return replace(empty, decision=decision, record_generation=record.stored.generation, abandons=error)

    def dismantle(self, application: Application) -> Prepared | None:
        """The Application is being deleted. ``None``: its objects stay, and the Record goes with its owner."""
        if FINALIZER not in application.finalizers:
            return None
        return replace(self._nothing(application, ""), dismantles=True)

    def _nothing(self, application: Application, sha: str) -> Prepared:
        """A plan that sends nothing: what it is for is said beside it."""
        source = application.spec.source
        revision = Revision(repository=source.repository, ref=source.ref.value, sha=sha)
        return Prepared(
            application=application,
            decision=decision_of(application, revision),
            plan=Plan(revision=revision, waves=()),
            images=ImageSet(),
            digest="",
            target=self.target(application),
            live={},
        )

    async def settle(self, application: Application, memory: Memory, record: Record) -> Record:
        """A crash may have come between a creation and its record: what we created is ours."""
        attempt, target = record.attempt, self.target(application)
        if attempt is None:
            return record
        known = {item.ref.key for item in record.inventory}
        live = await self.live(target, [ref for ref in attempt.creates if ref.key not in known])
        found = [
            InventoryItem(ref=ref, uid=str(live[ref.key]["metadata"]["uid"]))
            for ref in attempt.creates
            if ref.key in live and target.owns(live[ref.key])
        ]
        if not found:
            return record
        return await self._ledger.save(
            application, memory, lambda now: replace(now, inventory=merged(now.inventory, found))
        )
