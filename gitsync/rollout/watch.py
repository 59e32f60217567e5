"""Waits until what was applied serves, and says whose fault it is if it does not.

Follows the applied objects by watches and, while it waits, the pods, ReplicaSets, Services and EndpointSlices of their
namespaces. Fails early on conclusive evidence against the commit; bad luck is waited out until the deadline. Time in
which the API server could not be seen counts for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, cast

import orjson

from gitsync.cluster.answers import Forbidden
from gitsync.cluster.cache import Observed, Watcher
from gitsync.errors import GitsyncError, Transient
from gitsync.failpoints import failpoint
from gitsync.model import Applied, Health, HealthStatus, Json, ObjectRef
from gitsync.rollout.health import Blame, Explanation, gates, health
from gitsync.rollout.serving import (
    DEPLOYMENT,
    JOB,
    SERVICE_OF_SLICE,
    WORKLOADS,
    Judgement,
    World,
    common_selector,
    judge,
    pods_of,
    ready_share,
    serving_before,
    started,
)
from gitsync.rollout.target import Key, Target, part

MARGIN = 60.0
"""Seconds that our own clock waits longer than a controller's or a pod's own deadline."""
STEADY = 5.0
"""Seconds that a pod must have run where nothing but its start says that it serves (``serving.started``)."""
SLOW = 5.0
"""Seconds without a change after which it is told meanwhile, and not only at the deadline, what the pods say."""
LOG_LIMIT = 2000  # characters of a container's log in a message

#: Groups whose kinds are healthy by existing when they have no status; a custom resource may not have one *yet*.
_BUILT_IN = frozenset(
    {
        "",
        "admissionregistration.k8s.io",
        "autoscaling",
        "batch",
        "coordination.k8s.io",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    }
)


_NO_PROGRESS = (HealthStatus.DEGRADED, HealthStatus.MISSING)


class Verdict(StrEnum):
    HEALTHY = "healthy"
    FAILED = "failed"  # evidence against the commit
    LUCK = "luck"  # not serving in time, and nothing speaks against the commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a wave ended. ``health`` is by ``ObjectRef.key``; ``message`` and ``ref`` say which object decided it,
    ``container`` and ``field`` what of its pods' spec, where that is known.

    ``lowest_ready_share`` is the lowest share (0 to 1) of ready endpoints that a workload which served before had while
    it was replaced; ``None`` if none did.
    """

    verdict: Verdict
    health: Mapping[Key, Health]
    message: str = ""
    ref: ObjectRef | None = None
    container: str = ""
    field: str = ""
    blame: Blame = Blame.NONE
    lowest_ready_share: float | None = None
    seconds: float = 0.0


async def wait_healthy(
    target: Target,
    applied: Sequence[Applied],
    *,
    unchanged: Sequence[ObjectRef] = (),
    ours: Collection[Key] = (),
    deadline: float = 600.0,
    crashes: int = 3,
    on_health: Callable[[Health], None] = lambda _: None,
    redact: Callable[[str], str] = lambda text: text,
) -> Outcome:
    """Wait until every applied object serves, or one has failed.

    ``unchanged`` are waited for while they progress (after a restart they may be half way), but never fail the wave.
    ``ours`` are the keys of all the commit's objects. ``deadline``: seconds without progress, where the object itself
    says nothing (``progressDeadlineSeconds``). ``crashes``: restarts of a crashing container that prove something.
    ``on_health`` hears of each change, and of what keeps pods from being ready once that takes a while. ``redact`` is
    applied to quoted log lines. ``Transient`` if nothing can be read.
    """
    waiting = [each for each in applied if _may_wait(each)]
    lenient = [ref for ref in unchanged if (ref.group, ref.kind) in WORKLOADS]
    wait = _Wait(target, applied, waiting, lenient, ours, deadline, crashes, on_health)
    failpoint("wait.started")
    outcome = await wait.run()
    if outcome.verdict is Verdict.FAILED:
        outcome = replace(outcome, message=outcome.message + await wait.last_words(redact))
    failpoint("wait.ended")
    return outcome


def _may_wait(applied: Applied) -> bool:
    """False for what is as good as it will ever be (a ConfigMap), and for what gates nothing (an Ingress)."""
    ref, obj = applied.ref, applied.object
    if not gates(ref):
        return False
    if (ref.group, ref.kind) in WORKLOADS or ref.group not in _BUILT_IN or "status" in obj:
        return True
    return health(obj, ref).status is not HealthStatus.HEALTHY


class _Wait:
    """One wait: what is known, when it last changed, and the watches that tell."""

    def __init__(
        self,
        target: Target,
        applied: Sequence[Applied],
        waiting: Sequence[Applied],
        lenient: Sequence[ObjectRef],
        ours: Collection[Key],
        deadline: float,
        crashes: int,
        on_health: Callable[[Health], None],
    ) -> None:
        self._target = target
        self._refs = {each.ref.key: each.ref for each in waiting} | {ref.key: ref for ref in lenient}
        self._lenient = {ref.key for ref in lenient}
        self._objects: dict[Key, Json] = {each.ref.key: each.object for each in waiting}
        self._before = {each.ref.key: serving_before(each.object) for each in waiting}
        self._ours = ours or frozenset(each.ref.key for each in applied)
        self._deadline, self._crashes, self._on_health = deadline, crashes, on_health
        self._world = World()
        self._watchers: list[Watcher] = []
        self._changed = asyncio.Event()
        self._began = time.monotonic()
        self._health: dict[Key, Health] = {}
        self._told: dict[Key, Health] = {}
        self._since: dict[Key, float] = {}  # when an object's judgement last changed
        self._started: dict[tuple[str, int], float] = {}  # pods that nothing probes, and when they were seen to run
        self._lowest: float | None = None
        self._blamed: tuple[ObjectRef, Explanation] | None = None

    async def run(self) -> Outcome:
        if not self._refs:
            return Outcome(verdict=Verdict.HEALTHY, health={})
        await self._prepare()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(watcher.run()) for watcher in self._watchers]
            try:
                decided = await self._until_decided()
            except Transient as error:  # a group would wrap it
                decided = error
            for task in tasks:
                task.cancel()
        if isinstance(decided, Transient):
            raise decided
        return decided

    # ------------------------------------------------ what is followed

    async def _prepare(self) -> None:
        cluster = self._target.cluster
        for group, version, kind, namespace in sorted(
            {(ref.group, ref.version, ref.kind, ref.namespace) for ref in self._refs.values()}
        ):
            resource = await cluster.resource(group, version, kind)
            self._follow(resource, namespace, self._target.selector, self._on_object(group, kind))
        for namespace in sorted({ref.namespace for ref in self._refs.values() if _has_pods(ref)}):
            selector = await self._pod_selector(namespace)
            pods = await cluster.resource("", "v1", "Pod")
            self._follow(pods, namespace, selector, self._on_owned(self._world.pods))
            if any(ref.kind == "Deployment" and ref.namespace == namespace for ref in self._refs.values()):
                sets = await cluster.resource("apps", "v1", "ReplicaSet")
                self._follow(sets, namespace, selector, self._on_owned(self._world.replica_sets))
            services = await cluster.resource("", "v1", "Service")
            self._follow(services, namespace, "", self._on_named(self._world.services))
            slices = await cluster.resource("discovery.k8s.io", "v1", "EndpointSlice")
            self._follow(slices, namespace, SERVICE_OF_SLICE, self._on_named(self._world.slices))

    async def _pod_selector(self, namespace: str) -> str:
        selectors: list[Mapping[str, str]] = []
        for key, ref in self._refs.items():
            if not _has_pods(ref) or ref.namespace != namespace:
                continue
            obj = self._objects.get(key)
            if obj is None:
                obj = await self._target.cluster.get(ref, impersonate=self._target.impersonate)
                if obj is None:  # a Job that was cleaned away
                    continue
                self._objects[key] = obj
            if ref.kind == "Pod":
                selectors.append(part(obj, "metadata", "labels"))
            elif ref.kind == "ReplicationController":
                selectors.append(part(obj, "spec", "selector"))
            else:
                selectors.append(part(obj, "spec", "selector", "matchLabels"))
        return common_selector(selectors)

    def _follow(self, resource: Any, namespace: str, selector: str, hear: Callable[[Observed], None]) -> None:
        watcher = Watcher(
            self._target.cluster,
            resource,
            hear,
            namespace=namespace,
            label_selector=selector,
            impersonate=self._target.impersonate,
            digests=False,
        )
        self._watchers.append(watcher)

    def _on_object(self, group: str, kind: str) -> Callable[[Observed], None]:
        def hear(seen: Observed) -> None:
            key = (group, kind, *seen.key)
            if key not in self._refs or self._has_ended(key):
                return
            if seen.entry is None:
                self._objects.pop(key, None)
            else:
                self._objects[key] = {"apiVersion": self._refs[key].api_version, "kind": kind} | _loads(seen.raw)
            self._changed.set()

        return hear

    def _has_ended(self, key: Key) -> bool:
        """Whether it is a Job that was seen to complete: it may be cleaned away while the others are waited for."""
        return key[:2] == JOB and key in self._objects and health(self._objects[key]).status is HealthStatus.HEALTHY

    def _on_owned(self, place: dict[str, Json]) -> Callable[[Observed], None]:
        names: dict[tuple[str, str], str] = {}

        def hear(seen: Observed) -> None:
            before = names.pop(seen.key, "")
            if seen.entry is None or before != seen.entry.uid:
                place.pop(before, None)
            if seen.entry is not None:
                obj = _loads(seen.raw)
                names[seen.key] = seen.entry.uid
                place[seen.entry.uid] = obj
                references: list[Json] = obj["metadata"].get("ownerReferences") or []
                for reference in references:
                    if reference.get("controller"):
                        self._world.owners[seen.entry.uid] = reference["uid"]
            self._changed.set()

        return hear

    def _on_named(self, place: dict[tuple[str, str], Json]) -> Callable[[Observed], None]:
        def hear(seen: Observed) -> None:
            if seen.entry is None:
                place.pop(seen.key, None)
            else:
                place[seen.key] = _loads(seen.raw)
            self._measure()
            self._changed.set()

        return hear

    def _measure(self) -> None:
        """At every event of an EndpointSlice, so that no dip between two judgements is missed."""
        if not all(watcher.synced.is_set() for watcher in self._watchers):
            return
        for key, wanted in self._before.items():
            obj = self._objects.get(key)
            share = ready_share(obj, wanted, self._world) if obj is not None and wanted else None
            if share is not None:
                self._lowest = share if self._lowest is None else min(self._lowest, share)

    # ------------------------------------------------ deciding

    async def _until_decided(self) -> Outcome:
        await self._synced()
        self._measure()
        while True:
            self._changed.clear()
            began = time.monotonic()
            outcome = self._evaluate(began)
            if outcome is not None:
                return outcome
            # Judging a large wave takes a while: leave the loop four fifths of the time.
            await asyncio.sleep(4 * (time.monotonic() - began))
            try:
                async with asyncio.timeout(1.0):
                    await self._changed.wait()
            except TimeoutError:
                pass  # deadlines pass without an event

    async def _synced(self) -> None:
        try:
            async with asyncio.timeout(MARGIN):
                for watcher in self._watchers:
                    await watcher.synced.wait()
        except TimeoutError as error:
            trouble = next((watcher.last_error for watcher in self._watchers if watcher.last_error), None)
            if isinstance(trouble, GitsyncError):
                raise Transient(trouble.message, doing="watching the rollout", reason=trouble.reason) from trouble
            raise Transient("the first lists did not arrive in time", doing="watching the rollout") from error

    def _evaluate(self, now: float) -> Outcome | None:
        blind = False
        for watcher in self._watchers:
            if watcher.stale_since is None:
                continue
            blind = True
            if isinstance(watcher.last_error, Forbidden) and now - watcher.stale_since > MARGIN:
                raise watcher.last_error  # a right was taken: only somebody else can end that
        pending = False
        for key, ref in self._refs.items():
            judgement = judge(self._objects.get(key), ref, self._world, ours=self._ours)
            if self._health.get(key) != judgement.health:
                self._health[key] = judgement.health
                self._since[key] = now
                if judgement.health.status is HealthStatus.HEALTHY:
                    failpoint("wait.first-ready")
            self._tell(key, judgement, now)
            if blind:
                self._since[key] = now
                pending = True
                continue
            if _is_settled(judgement.health):
                pending |= key not in self._lenient and not self._steady(key, now)
                continue
            stalled = now - self._since[key] > self._patience(key, judgement)
            if judgement.lingering and stalled:
                continue  # it serves; a pod that does not go away must not hold up the commit
            if key in self._lenient and (stalled or judgement.health.status in _NO_PROGRESS):
                continue
            if not stalled and self._is_young(key, judgement.explanation, now):
                pending = True
                continue
            verdict = self._verdict(ref, judgement, stalled)
            if verdict is not None:
                return self._outcome(now, verdict, ref, judgement)
            pending = True
        return None if pending else self._outcome(now, Verdict.HEALTHY)

    def _tell(self, key: Key, judgement: Judgement, now: float) -> None:
        said, why = judgement.health, judgement.explanation.message if judgement.explanation else ""
        if why and now - self._since[key] > SLOW:
            said = replace(said, message=": ".join(filter(None, (said.message, why))))
        if self._told.get(key) != said:
            self._told[key] = said
            self._on_health(said)

    def _steady(self, key: Key, now: float) -> bool:
        """Whether what runs without a probe has run for a while. By our own clock: a node's may differ."""
        obj = self._objects.get(key)
        if obj is None or key[:2] not in WORKLOADS:
            return True
        since = [self._started.setdefault(start, now) for start in started(obj, self._world)]
        return now - max(since, default=float("-inf")) >= STEADY

    def _is_young(self, key: Key, reason: Explanation | None, now: float) -> bool:
        """Whether the container that is not ready has not run for as long as a Deployment gives it: bad luck, an image
        that could not be pulled for a while, may have taken that. By our own clock, or that of its node. A Deployment
        has not counted pods yet that are ready now."""
        if key[:2] != DEPLOYMENT or reason is None:
            return False
        if reason == Explanation(blame=Blame.NONE):
            return bool(pods_of(self._objects[key], self._world)[0])
        if not reason.field or reason.restarts:
            return False
        names = (key[2], reason.pod)
        for uid, pod in self._world.pods.items():
            if (pod["metadata"]["namespace"], pod["metadata"]["name"]) != names:
                continue
            since = self._started.setdefault((f"{uid}/{reason.container}", 0), now)
            statuses: list[Json] = part(pod, "status").get("containerStatuses") or []
            at = next((part(each, "state", "running").get("startedAt") for each in statuses
                       if each.get("name") == reason.container), None)  # fmt: skip
            age = (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() if isinstance(at, str) else 0.0
            given: float = part(self._objects[key], "spec").get("progressDeadlineSeconds") or self._deadline
            return max(now - since, age) < given
        return False

    def _verdict(self, ref: ObjectRef, judgement: Judgement, stalled: bool) -> Verdict | None:
        reason = judgement.explanation
        against = reason is not None and reason.blame is Blame.COMMIT and judgement.old_serve
        if (
            against
            and reason is not None
            and reason.conclusive
            and (not reason.restarts or reason.restarts >= self._crashes)
        ):
            return Verdict.FAILED
        degraded = judgement.health.status is HealthStatus.DEGRADED
        if not degraded and not stalled:
            return None
        if against:
            return Verdict.FAILED
        # A Deployment is also Degraded when its pods only had bad luck; any other kind says so of itself.
        blameless = (ref.group, ref.kind) == DEPLOYMENT or (reason is not None and reason.blame is Blame.LUCK)
        return Verdict.FAILED if degraded and not blameless else Verdict.LUCK

    def _patience(self, key: Key, judgement: Judgement) -> float:
        """Seconds without any change after which an object is stalled."""
        obj = self._objects.get(key, {})
        if judgement.lingering:
            pod = part(obj, "spec", "template", "spec") or part(obj, "spec")
            return float(pod.get("terminationGracePeriodSeconds") or 30) + MARGIN  # pyright: ignore[reportUnknownArgumentType] - a number by the API
        own: int | None = part(obj, "spec").get("progressDeadlineSeconds")
        return own + MARGIN if own else self._deadline

    def _outcome(
        self, now: float, verdict: Verdict, ref: ObjectRef | None = None, judgement: Judgement | None = None
    ) -> Outcome:
        message, reason = "", Explanation(blame=Blame.NONE)
        if ref is not None and judgement is not None:
            reason = judgement.explanation or reason
            self._blamed = (ref, reason)
            parts = [judgement.health.message, reason.message]
            message = (
                ": ".join(dict.fromkeys(each.rstrip(".") for each in parts if each))
                or "it did not become healthy in time"
            )
        return Outcome(
            verdict=verdict,
            health=dict(self._health),
            message=message,
            ref=ref,
            container=reason.container,
            field=reason.field,
            blame=reason.blame,
            lowest_ready_share=self._lowest,
            seconds=now - self._began,
        )

    async def last_words(self, redact: Callable[[str], str]) -> str:
        """The end of the blamed container's log, to be appended to the message; "" if there is none."""
        if self._blamed is None or not self._blamed[1].pod:
            return ""
        ref, reason = self._blamed
        pods = pods_of(self._objects[ref.key], self._world)[0] if ref.key in self._objects else []
        pod = next((each for each in pods if each["metadata"]["name"] == reason.pod), None)
        statuses: list[Json] = [
            status
            for field in ("initContainerStatuses", "containerStatuses")
            for status in cast(list[Json], part(pod or {}, "status").get(field) or [])
            if not status.get("ready")
        ]
        if pod is None or not statuses:
            return ""
        worst = max(statuses, key=lambda status: int(status.get("restartCount") or 0))
        place = ObjectRef(version="v1", kind="Pod", namespace=ref.namespace, name=reason.pod)
        try:
            text = await self._target.cluster.logs(
                place,
                worst["name"],
                previous=bool(worst.get("restartCount")),
                impersonate=self._target.impersonate,
            )
        except GitsyncError:
            return ""  # the reason stands without its log
        text = redact(text.strip())[-LOG_LIMIT:]
        return f"; the last lines of container {worst['name']}:\n{text}" if text else ""


def _has_pods(ref: ObjectRef) -> bool:
    return (ref.group, ref.kind) in WORKLOADS


def _is_settled(verdict: Health) -> bool:
    return verdict.status in (HealthStatus.HEALTHY, HealthStatus.SUSPENDED)


def _loads(raw: bytes) -> Json:
    return cast(Json, orjson.loads(raw))
