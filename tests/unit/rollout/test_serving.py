"""Controllers may claim what they like: pods, endpoints and the dead decide whether a rollout is over."""

from typing import Any

import pytest

from gitsync.model import HealthStatus, Json, ObjectRef
from gitsync.rollout.serving import World, common_selector, judge, pods_of, ready_share, serving_before, started

WEB = ObjectRef(group="apps", version="v1", kind="Deployment", namespace="shop", name="web")
SET = ObjectRef(group="apps", version="v1", kind="StatefulSet", namespace="shop", name="db")


def deployment(revision: str = "2", replicas: int = 1, **status: Any) -> Json:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), replicas)
    done = [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "web",
            "namespace": "shop",
            "uid": "web",
            "generation": 2,
            "annotations": {"deployment.kubernetes.io/revision": revision},
        },
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"app": "web"}}}},
        "status": {"observedGeneration": 2, "conditions": done, **counts, **status},
    }


def replica_set(revision: str) -> Json:
    annotations = {"deployment.kubernetes.io/revision": revision}
    return {
        "metadata": {"name": f"rs{revision}", "namespace": "shop", "uid": f"rs{revision}", "annotations": annotations}
    }


def pod(name: str, *, ready: bool = True, dying: bool = False, revision: str = "") -> Json:
    metadata: Json = {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}}
    if revision:
        metadata["labels"]["controller-revision-hash"] = revision
    if dying:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {}, "status": {"conditions": [condition]}}


def evicted() -> Json:
    made = pod("evicted", ready=False)
    made["status"]["phase"] = "Failed"
    return made


def world(*pods: tuple[Json, str], endpoints: tuple[str, ...] = (), services: bool = True) -> World:
    """Pods with their owners; ``endpoints`` are UIDs, ``!`` before one that is not ready."""
    made = World(
        pods={each["metadata"]["uid"]: each for each, _ in pods},
        replica_sets={f"rs{revision}": replica_set(revision) for revision in "12"},
        owners={"rs1": "web", "rs2": "web"} | {each["metadata"]["uid"]: owner for each, owner in pods},
    )
    if services:
        made.services["shop", "web"] = {
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}},
        }
    made.slices["shop", "web-x"] = {
        "metadata": {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [
            {"targetRef": {"uid": uid.lstrip("!")}, "conditions": {"ready": not uid.startswith("!")}}
            for uid in endpoints
        ],
    }
    return made


NEW, OLD = pod("new"), pod("old")


@pytest.mark.parametrize(
    ("around", "message", "lingering"),
    [
        (world((NEW, "rs2"), endpoints=("new",)), "", False),
        (world((NEW, "rs2"), services=False), "", False),
        (world((NEW, "rs2")), "Service web does not send to pod new yet", False),
        (world((NEW, "rs2"), endpoints=("!new",)), "Service web does not send to pod new yet", False),
        (world((NEW, "rs2"), (OLD, "rs1"), endpoints=("new", "old")), "1 old pod is still shutting down", True),
        (
            world((NEW, "rs2"), (pod("o1", dying=True), "rs1"), (pod("o2", dying=True), "rs2"), endpoints=("new",)),
            "2 old pods are still shutting down",
            True,
        ),
        (world((NEW, "rs2"), (pod("late", ready=False), "rs2"), endpoints=("new",)), "pod late is not ready", False),
        (world((NEW, "rs2"), (evicted(), "rs2"), endpoints=("new",)), "", False),
    ],
)
def test_a_deployment_that_claims_to_be_done(around: World, message: str, lingering: bool) -> None:
    verdict = judge(deployment(), WEB, around)
    assert (verdict.health.message, verdict.lingering) == (message, lingering)
    assert (verdict.health.status is HealthStatus.HEALTHY) == (not message)


def test_an_endpoint_of_a_pod_that_is_gone_is_not_clean() -> None:
    around = world((NEW, "rs2"), endpoints=("new", "old"))
    around.owners["old"] = "rs1"  # was seen once
    verdict = judge(deployment(), WEB, around)
    assert verdict.health.message == "Service web still lists a pod that is gone"
    around.owners["old"] = "somebody-else"
    assert judge(deployment(), WEB, around).health.status is HealthStatus.HEALTHY


def test_a_service_of_another_namespace_sends_to_nobody_here() -> None:
    around = world((NEW, "rs2"), endpoints=("new",))
    metadata = {"name": "web", "namespace": "other"}
    around.services["other", "web"] = {"metadata": metadata, "spec": {"selector": {"app": "web"}}}
    assert judge(deployment(), WEB, around).health.status is HealthStatus.HEALTHY


def test_what_the_controller_says_comes_first() -> None:
    around = world((NEW, "rs2"), endpoints=("new",))
    verdict = judge(deployment(updatedReplicas=0), WEB, around)
    assert verdict.health.status is HealthStatus.PROGRESSING
    assert verdict.explanation is not None


@pytest.mark.parametrize(
    ("old", "serves"),
    [((), True), ((OLD,), True), ((pod("o", ready=False),), False), ((pod("o", ready=False), OLD), True)],
)
def test_the_old_version_is_a_witness(old: tuple[Json, ...], serves: bool) -> None:
    around = world((pod("new", ready=False), "rs2"), *((each, "rs1") for each in old))
    assert judge(deployment(availableReplicas=0), WEB, around).old_serve is serves


def test_the_current_replica_set_is_that_of_the_revision() -> None:
    around = world((NEW, "rs2"), (OLD, "rs1"))
    assert pods_of(deployment("2"), around) == ([NEW], [OLD])
    assert pods_of(deployment("1"), around) == ([OLD], [NEW])
    assert pods_of(deployment(""), around) == ([NEW], [OLD])  # without an annotation, the newest


def test_a_stateful_set_keeps_the_pods_below_its_partition() -> None:
    first, second = pod("db-0", revision="a"), pod("db-1", revision="b")
    around = world((first, "db"), (second, "db"), services=False)
    obj: Json = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "shop", "uid": "db", "generation": 1},
        "spec": {"replicas": 2, "updateStrategy": {"rollingUpdate": {"partition": 1}}},
        "status": {
            "observedGeneration": 1,
            "replicas": 2,
            "readyReplicas": 2,
            "availableReplicas": 2,
            "updatedReplicas": 1,
            "currentRevision": "a",
            "updateRevision": "b",
        },
    }
    assert judge(obj, SET, around).health.status is HealthStatus.HEALTHY
    obj["status"]["updatedReplicas"] = 0
    assert pods_of(obj, around) == ([second], [first])


def test_shares_count_only_ready_endpoints_of_the_workload() -> None:
    around = world((NEW, "rs2"), (OLD, "rs1"), endpoints=("new", "!old", "stranger"))
    assert ready_share(deployment(), 2, around) == 0.5
    assert ready_share(deployment(), 0, around) is None
    assert ready_share(deployment(), 2, world((NEW, "rs2"), services=False)) is None
    assert ready_share(deployment(), 1, world((NEW, "rs2"), (OLD, "rs1"), endpoints=("new", "old"))) == 1.0
    assert serving_before(deployment(replicas=3, readyReplicas=2)) == 2
    assert serving_before(deployment(replicas=3, readyReplicas=5)) == 3
    assert serving_before({"spec": {"replicas": 3}}) == 0


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [
        ([], ""),
        ([{"app": "a"}], "app in (a)"),
        ([{"app": "a", "x": "1"}, {"app": "b"}], "app in (a,b)"),
        ([{"app": "a"}, {"name": "b"}], ""),
        ([{"app": str(number)} for number in range(60)], "app"),
    ],
)
def test_one_selector_covers_many(selectors: list[dict[str, str]], expected: str) -> None:
    assert common_selector(selectors) == expected


def running(*probes: str, ready: bool = True, restarts: int = 0) -> Json:
    """A pod of one container per probe; "" is a container that has none."""
    made = pod("new", ready=ready)
    made["spec"]["containers"] = [{"name": f"c{n}"} | ({each: {}} if each else {}) for n, each in enumerate(probes)]
    made["status"]["containerStatuses"] = [{"name": f"c{n}", "restartCount": restarts} for n in range(len(probes))]
    return made


@pytest.mark.parametrize(
    ("made", "spec", "expected"),
    [
        (running(""), {}, {("new", 0)}),
        (running("livenessProbe"), {}, {("new", 0)}),
        (running("readinessProbe", ""), {}, {("new", 0)}),
        (running("", "", restarts=1), {}, {("new", 2)}),  # a restart is a start of its own
        (running("readinessProbe", "startupProbe"), {}, set[tuple[str, int]]()),
        (running("", ready=False), {}, set[tuple[str, int]]()),
        (running(""), {"minReadySeconds": 3}, set[tuple[str, int]]()),
    ],
)
def test_whose_readiness_is_only_a_start(made: Json, spec: Json, expected: set[tuple[str, int]]) -> None:
    workload = deployment()
    workload["spec"] |= spec
    assert started(workload, world((made, "rs2"))) == expected
    assert started(workload | {"kind": "Job"}, world((made, "web"))) == frozenset()  # its pods are meant to end
