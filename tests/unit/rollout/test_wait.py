"""A wave is over when its pods serve; a failure is told from bad luck."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from gitsync.cluster.answers import Forbidden
from gitsync.cluster.cache import Entry, Observed
from gitsync.cluster.client import Cluster
from gitsync.errors import Transient
from gitsync.model import Applied, Health, HealthStatus, Json, ObjectRef
from gitsync.report.redact import Redactor
from gitsync.rollout import watch
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.health import Blame
from gitsync.rollout.target import Target
from gitsync.rollout.watch import Outcome, Verdict, wait_healthy
from tests.unit.rollout.conftest import Node, body, change, config_map, deployment, ready, service, status_of


async def roll(target: Target, *objects: Json, action: str = "create", **options: Any) -> Outcome:
    applied = await apply_wave(target, [change(target, obj, action) for obj in objects])
    return await asyncio.wait_for(wait_healthy(target, applied, **options), 60)


async def test_a_deployment_behind_a_service_becomes_healthy(target: Target, node: Node, namespace: str) -> None:
    heard: list[Health] = []
    outcome = await roll(
        target,
        service(namespace),
        config_map(namespace, "c"),
        deployment(namespace, replicas=2),
        on_health=heard.append,
    )
    assert outcome.verdict is Verdict.HEALTHY
    assert outcome.lowest_ready_share is None  # nothing served before
    assert [each.status for each in outcome.health.values()] == [HealthStatus.HEALTHY]
    assert heard[-1].status is HealthStatus.HEALTHY


async def test_an_update_ends_when_the_old_pods_are_gone(
    target: Target, node: Node, namespace: str, cluster: Cluster
) -> None:
    await roll(target, service(namespace), deployment(namespace, replicas=2))
    outcome = await roll(target, deployment(namespace, replicas=2, image="web:2"), action="update")
    assert outcome.verdict is Verdict.HEALTHY
    assert outcome.lowest_ready_share == 1.0
    pods = await cluster.list(await cluster.resource("", "v1", "Pod"), namespace=namespace)
    assert {pod["spec"]["containers"][0]["image"] for pod in pods.items} == {"web:2"}


async def test_the_lowest_share_of_ready_endpoints_is_measured(target: Target, node: Node, namespace: str) -> None:
    outage = deployment(namespace, replicas=2)
    outage["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    await roll(target, service(namespace), outage)
    outage["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2"
    outcome = await roll(target, outage, action="update")
    assert outcome.verdict is Verdict.HEALTHY
    assert outcome.lowest_ready_share == 0.5


async def test_a_dip_in_the_middle_of_a_rollout_is_measured(
    target: Target, node: Node, namespace: str, cluster: Cluster
) -> None:
    old = deployment(namespace, replicas=2)
    await roll(target, service(namespace), old)
    pods = await cluster.resource("", "v1", "Pod")
    first, _ = (await cluster.list(pods, namespace=namespace)).items
    held: list[Json] = []

    def hold(pod: Json) -> None:
        held.append(pod)

    async def report(pod: Json, *, ready: bool) -> None:
        about = body(ObjectRef.of(pod), status=status_of(pod, ready=ready))
        await cluster.apply(about, subresource="status", manager="node")

    node.decide = hold
    old["spec"]["template"]["spec"]["containers"][0]["image"] = "web:2"
    applied = await apply_wave(target, [change(target, old, "update")])
    synced = asyncio.Event()
    waiting = asyncio.create_task(wait_healthy(target, applied, on_health=lambda _: synced.set()))
    async with asyncio.timeout(30):
        await synced.wait()
        await report(first, ready=False)
        slices = await cluster.resource("discovery.k8s.io", "v1", "EndpointSlice")
        while all(e["conditions"]["ready"] for s in (await cluster.list(slices, namespace=namespace)).items
                  for e in s["endpoints"] or ()):  # fmt: skip
            await asyncio.sleep(0.05)
        await report(first, ready=True)
        node.decide = ready
        for pod in held:
            await report(pod, ready=True)
        outcome = await waiting
    assert outcome.verdict is Verdict.HEALTHY
    assert outcome.lowest_ready_share == 0.5


async def test_crash_loops_speak_against_the_commit(target: Target, node: Node, namespace: str) -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting, restartCount=3)
    outcome = await roll(target, deployment(namespace))
    assert (outcome.verdict, outcome.blame) == (Verdict.FAILED, Blame.COMMIT)
    assert outcome.ref is not None
    assert outcome.ref.name == "web"
    assert "CrashLoopBackOff" in outcome.message


async def test_the_last_words_of_a_container_are_told_without_what_is_secret(
    target: Target, node: Node, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting, restartCount=3)

    async def logs(*_: object, **__: object) -> str:
        return "swordfish" + "x" * (watch.LOG_LIMIT - 5)  # cut first, half of it would not be known any more

    monkeypatch.setattr(target.cluster, "logs", logs)
    outcome = await roll(target, deployment(namespace), redact=Redactor(["swordfish"]))
    assert "the last lines of container web" in outcome.message
    assert "fish" not in outcome.message
    assert len(outcome.message) < 2 * watch.LOG_LIMIT


async def test_a_start_that_no_probe_confirms_has_to_last(
    target: Target, node: Node, namespace: str, cluster: Cluster
) -> None:
    unprobed = deployment(namespace)
    del unprobed["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]
    available = asyncio.Event()

    def hear(health: Health) -> None:
        if health.status is HealthStatus.HEALTHY:
            available.set()

    applied = await apply_wave(target, [change(target, unprobed)])
    waiting = asyncio.create_task(wait_healthy(target, applied, on_health=hear))
    async with asyncio.timeout(30):
        await available.wait()  # a kubelet says so of a container that has started and is about to crash
        (pod,) = (await cluster.list(await cluster.resource("", "v1", "Pod"), namespace=namespace)).items
        crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}}
        about = body(ObjectRef.of(pod), status=status_of(pod, ready=False, state=crash, restartCount=3))
        await cluster.apply(about, subresource="status", manager="node")
        outcome = await waiting
    assert (outcome.verdict, outcome.blame) == (Verdict.FAILED, Blame.COMMIT)


async def test_one_crash_proves_nothing_yet(target: Target, node: Node, namespace: str) -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting, restartCount=1)
    applied = await apply_wave(target, [change(target, deployment(namespace))])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait_healthy(target, applied), 2)


async def test_a_probe_that_never_passes_fails_at_the_progress_deadline(
    target: Target, node: Node, namespace: str
) -> None:
    node.decide = lambda pod: status_of(pod, ready=False)
    outcome = await roll(target, deployment(namespace, deadline=2))
    assert (outcome.verdict, outcome.blame) == (Verdict.FAILED, Blame.COMMIT)
    assert "readinessProbe" in outcome.message


async def test_an_image_that_cannot_be_pulled_is_bad_luck(target: Target, node: Node, namespace: str) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "registry is away"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting, started=False)
    outcome = await roll(target, deployment(namespace, deadline=2))
    assert (outcome.verdict, outcome.blame) == (Verdict.LUCK, Blame.LUCK)
    assert "registry is away" in outcome.message


@pytest.mark.parametrize("recovers", [True, False])
async def test_time_that_bad_luck_took_is_not_held_against_the_commit(
    target: Target, node: Node, namespace: str, cluster: Cluster, recovers: bool
) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "registry is away"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting, started=False)
    wanted = deployment(namespace, deadline=2)
    assert (await roll(target, wanted)).verdict is Verdict.LUCK
    pod = (await cluster.list(await cluster.resource("", "v1", "Pod"), namespace=namespace)).items[0]

    async def report(*, ready: bool) -> None:
        running = {"running": {"startedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}}
        told = body(ObjectRef.of(pod), status=status_of(pod, ready=ready, state=running))
        await cluster.apply(told, subresource="status", manager="node")

    await report(ready=False)
    began = time.monotonic()
    waits = asyncio.create_task(roll(target, wanted, action="update"))
    await asyncio.sleep(1.0)
    assert not waits.done(), "it has just begun to run"
    if recovers:
        await report(ready=True)
    outcome = await waits
    assert outcome.verdict is (Verdict.HEALTHY if recovers else Verdict.FAILED)
    assert time.monotonic() - began < 30


async def test_what_keeps_the_pods_is_told_long_before_the_deadline(
    target: Target, node: Node, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SLOW", 0.2)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image helo"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting)
    heard: asyncio.Queue[Health] = asyncio.Queue()
    applied = await apply_wave(target, [change(target, deployment(namespace))])
    wait = asyncio.create_task(wait_healthy(target, applied, on_health=heard.put_nowait))
    async with asyncio.timeout(30):
        while "ImagePullBackOff: no such image helo" not in (await heard.get()).message:
            pass
    assert heard.empty(), "once is enough"
    assert not wait.done()
    wait.cancel()


async def test_a_commit_is_not_blamed_while_the_old_version_fails_too(
    target: Target, node: Node, namespace: str, cluster: Cluster
) -> None:
    await roll(target, deployment(namespace))
    (old,) = (await cluster.list(await cluster.resource("", "v1", "Pod"), namespace=namespace)).items
    sick = {"status": status_of(old, ready=False)}
    ref = ObjectRef.of(old)
    await cluster.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": ref.name, "namespace": namespace}} | sick,
        subresource="status",
        manager="node",
    )
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    node.decide = lambda pod: status_of(pod, ready=False, state=waiting, restartCount=9)
    outcome = await roll(target, deployment(namespace, image="web:2", deadline=2), action="update")
    assert outcome.verdict is Verdict.LUCK


async def test_what_never_changes_is_not_waited_for(target: Target, namespace: str) -> None:
    outcome = await roll(target, config_map(namespace, "c"), service(namespace))
    assert outcome == Outcome(verdict=Verdict.HEALTHY, health={})


@pytest.mark.parametrize(
    ("version", "kind", "fields", "waits"),
    [
        ("v1", "ConfigMap", {}, False),
        ("v1", "Namespace", {"status": {"phase": "Active"}}, True),
        ("example.org/v1", "Widget", {}, True),  # its operator has not looked at it yet
        ("apps/v1", "Deployment", {}, True),
        ("networking.k8s.io/v1", "Ingress", {"status": {}}, False),
    ],
)
def test_what_is_waited_for(version: str, kind: str, fields: Json, waits: bool) -> None:
    obj: Json = {"apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": "shop"}} | fields
    assert (
        watch._may_wait(Applied(ref=ObjectRef.of(obj), uid="1", resource_version="1", changed=True, object=obj))
        is waits
    )


def test_a_pod_that_is_made_again_under_its_name_is_the_only_one(target: Target) -> None:
    wait = watch._Wait(target, [], [], [], [], 1.0, 3, lambda _: None)
    hear = wait._on_owned(wait._world.pods)
    for uid in ("first", "second"):
        raw = orjson.dumps({"metadata": {"name": "db-0", "namespace": "shop", "uid": uid}})
        hear(Observed(key=("shop", "db-0"), entry=Entry(uid, "1", b""), raw=raw))
    assert list(wait._world.pods) == ["second"]
    hear(Observed(key=("shop", "db-0"), entry=None))
    assert wait._world.pods == {}


async def test_unchanged_workloads_never_fail_a_wave(target: Target, node: Node, namespace: str) -> None:
    node.decide = lambda pod: status_of(pod, ready=False)
    (applied,) = await apply_wave(target, [change(target, deployment(namespace, deadline=2))])
    outcome = await asyncio.wait_for(wait_healthy(target, [], unchanged=[applied.ref]), 60)
    assert outcome.verdict is Verdict.HEALTHY
    assert outcome.health[applied.ref.key].status is HealthStatus.DEGRADED


def job(namespace: str) -> Json:
    pod = {"restartPolicy": "Never", "containers": [{"name": "m", "image": "m"}]}
    spec = {"backoffLimit": 0, "template": {"metadata": {"labels": {"app": "migrate"}}, "spec": pod}}
    metadata = {"name": "migrate", "namespace": namespace}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


async def end(cluster: Cluster, namespace: str, code: int) -> None:
    """The Job's pod ends."""
    resource = await cluster.resource("", "v1", "Pod")
    while not (pods := (await cluster.list(resource, namespace=namespace, label_selector="app=migrate")).items):
        await asyncio.sleep(0.05)
    reason, phase = ("Error", "Failed") if code else ("Completed", "Succeeded")
    ended = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T00:00:00Z"}}
    status = status_of(pods[0], ready=False, state=ended) | {"phase": phase}
    await cluster.apply(body(ObjectRef.of(pods[0]), status=status), subresource="status", manager="node")


async def clean(cluster: Cluster, applied: Applied) -> None:
    """As ``ttlSecondsAfterFinished`` does."""
    await cluster.delete(applied.ref, applied.uid, propagation="Foreground")
    while await cluster.get(applied.ref) is not None:
        await asyncio.sleep(0.05)


async def test_a_failed_job_speaks_against_the_commit(target: Target, namespace: str, cluster: Cluster) -> None:
    (applied,) = await apply_wave(target, [change(target, job(namespace))])
    waiting = asyncio.create_task(wait_healthy(target, [applied]))
    await end(cluster, namespace, 1)
    outcome = await asyncio.wait_for(waiting, 60)
    assert outcome.verdict is Verdict.FAILED
    assert outcome.ref == applied.ref


async def test_a_job_that_ended_well_may_be_cleaned_away_before_the_others_are_ready(
    target: Target, node: Node, namespace: str, cluster: Cluster
) -> None:
    node.decide = lambda _: None
    ended = asyncio.Event()

    def hear(health: Health) -> None:
        if health.ref is not None and health.ref.kind == "Job" and health.status is HealthStatus.HEALTHY:
            ended.set()

    web, done = await apply_wave(target, [change(target, deployment(namespace)), change(target, job(namespace))])
    waiting = asyncio.create_task(wait_healthy(target, [web, done], on_health=hear))
    await end(cluster, namespace, 0)
    await asyncio.wait_for(ended.wait(), 30)
    await clean(cluster, done)
    node.told.clear()
    node.decide = ready
    resource = await cluster.resource("", "v1", "Pod")
    for pod in (await cluster.list(resource, namespace=namespace, label_selector="app=web")).items:
        await node.tell(ObjectRef.of(pod))
    assert (await asyncio.wait_for(waiting, 30)).verdict is Verdict.HEALTHY


async def test_a_job_of_an_earlier_commit_that_was_cleaned_away_is_not_waited_for(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    (applied,) = await apply_wave(target, [change(target, job(namespace))])
    await end(cluster, namespace, 0)
    await clean(cluster, applied)
    outcome = await asyncio.wait_for(wait_healthy(target, [], unchanged=[applied.ref]), 30)
    assert outcome.verdict is Verdict.HEALTHY


async def test_a_server_that_cannot_be_read_is_no_verdict(
    target: Target, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MARGIN", 0.2)
    (applied,) = await apply_wave(target, [change(target, deployment(namespace))])

    async def refuse(*_: object, **__: object) -> AsyncIterator[None]:
        raise Transient("it is away", doing="listing")
        yield

    monkeypatch.setattr(target.cluster, "pages", refuse)
    with pytest.raises(Transient, match="it is away"):
        await wait_healthy(target, [applied])


async def test_what_happens_while_the_server_is_not_seen_counts_for_nothing(
    target: Target, node: Node, namespace: str
) -> None:
    node.decide = lambda pod: status_of(pod, ready=False)
    (applied,) = await apply_wave(target, [change(target, deployment(namespace, deadline=1))])
    wait = watch._Wait(target, [applied], [applied], [], [applied.ref.key], 0.1, 3, lambda _: None)
    await wait._prepare()
    now = time.monotonic()
    for watcher in wait._watchers:
        watcher.stale_since = None
    assert wait._evaluate(now) is None
    wait._watchers[0].stale_since = now
    wait._watchers[0].last_error = Forbidden("no right", doing="watching")
    assert wait._evaluate(now + watch.MARGIN / 2) is None, "a server that starts knows no rights yet"
    with pytest.raises(Forbidden):
        wait._evaluate(now + 2 * watch.MARGIN)
    wait._watchers[0].last_error = None
    assert wait._evaluate(now + 3600) is None, "it was blind for an hour"
    wait._watchers[0].stale_since = None
    assert wait._evaluate(now + 3601) is None, "the hour does not count"
    outcome = wait._evaluate(now + 7300)
    assert outcome is not None
    assert outcome.verdict is not Verdict.HEALTHY
