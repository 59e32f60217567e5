"""A wave is sent whole, or the error names file and field; what is somebody else's stays theirs."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gitsync.cluster.answers import Conflict, Rejected
from gitsync.cluster.client import Cluster
from gitsync.errors import Held, Transient, Waiting
from gitsync.model import Action, Applied, InventoryItem, Json, ObjectRef
from gitsync.rollout.apply import apply_wave, label
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.ownership import autoscalers, taken_over
from gitsync.rollout.target import WORKERS, Target
from tests.unit.rollout.conftest import Node, body, change, config_map, deployment, manifest, service

CRD_GROUP = "test.gitsync.dev"


def definition(name: str = "Widget") -> Json:
    plural = name.lower() + "s"
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{CRD_GROUP}"},
        "spec": {
            "group": CRD_GROUP,
            "scope": "Namespaced",
            "names": {"kind": name, "plural": plural, "singular": name.lower(), "listKind": f"{name}List"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


def widget(namespace: str, kind: str, **spec: object) -> Json:
    return {
        "apiVersion": f"{CRD_GROUP}/v1",
        "kind": kind,
        "metadata": {"name": "w", "namespace": namespace},
        "spec": spec,
    }


def test_labels_are_added_without_touching_the_manifest(target: Target, namespace: str) -> None:
    plain = manifest(target, config_map(namespace, "c"))
    labelled = label(replace(plain, object=config_map(namespace, "c")), target.application)
    assert labelled.object["metadata"]["labels"] == {
        "gitsync.dev/application": "shop",
        "gitsync.dev/application-namespace": namespace,
    }
    assert "labels" not in config_map(namespace, "c")["metadata"]


async def test_a_definition_and_its_objects_go_in_one_wave(target: Target, namespace: str, cluster: Cluster) -> None:
    wave = [change(target, widget(namespace, "Gadget", size=1)), change(target, definition("Gadget"))]
    applied = await apply_wave(target, wave)
    assert [each.ref.kind for each in applied] == ["Gadget", "CustomResourceDefinition"]
    await cluster.delete(applied[1].ref, applied[1].uid)


async def test_what_landed_is_reported_although_another_object_is_refused(target: Target, namespace: str) -> None:
    bad = deployment(namespace)
    bad["spec"]["replica"] = 3
    landed: list[Applied] = []
    wave = [change(target, config_map(namespace, "good")), change(target, bad)]
    wave[1] = replace(wave[1], manifest=replace(wave[1].manifest, lines={"spec": 7, "spec.replica": 9}))
    with pytest.raises(Rejected) as caught:
        await apply_wave(target, wave, on_applied=landed.append)
    assert [each.ref.name for each in landed] == ["good"]
    assert caught.value.origin is not None
    assert (caught.value.origin.line, caught.value.origin.field) == (9, "spec.replica")
    assert "Deployment" in str(caught.value)
    assert "a.yaml:9 spec.replica" in str(caught.value)


async def test_what_the_server_refuses_weighs_more_than_bad_luck(
    target: Target, namespace: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = deployment(namespace, replicas=-1)
    apply, judged = cluster.apply, asyncio.Event()

    async def unlucky(obj: Json, **options: Any) -> Applied:
        if obj["metadata"]["name"] == "unlucky":
            await judged.wait()
            raise Transient("it is away")
        try:
            return await apply(obj, **options)
        finally:
            judged.set()

    monkeypatch.setattr(cluster, "apply", unlucky)
    with pytest.raises(Rejected):
        await apply_wave(target, [change(target, config_map(namespace, "unlucky")), change(target, bad)])


async def test_after_an_error_nothing_new_is_sent(
    target: Target, namespace: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Json] = []

    async def away(obj: Json, **options: Any) -> Applied:
        sent.append(obj)
        raise Transient("it is away")

    monkeypatch.setattr(cluster, "apply", away)
    with pytest.raises(Transient):
        await apply_wave(target, [change(target, config_map(namespace, f"c{n}")) for n in range(3 * WORKERS)])
    assert len(sent) <= WORKERS


async def test_unchanged_objects_are_not_sent(target: Target, namespace: str) -> None:
    assert await apply_wave(target, [change(target, config_map(namespace, "c"), Action.UNCHANGED)]) == ()


async def test_a_replacement_deletes_and_creates(target: Target, node: Node, namespace: str, cluster: Cluster) -> None:
    (first,) = await apply_wave(target, [change(target, deployment(namespace))])
    other = deployment(namespace)
    other["spec"]["selector"] = {"matchLabels": {"app": "web", "new": "yes"}}
    other["spec"]["template"]["metadata"]["labels"] = {"app": "web", "new": "yes"}
    with pytest.raises(Rejected, match="immutable"):
        await apply_wave(target, [change(target, other, Action.UPDATE)])
    inventory = [InventoryItem(ref=first.ref, uid=first.uid)]
    (second,) = await apply_wave(target, [change(target, other, Action.REPLACE)], inventory=inventory)
    assert second.uid != first.uid
    live = await cluster.get(first.ref)
    assert live is not None
    assert live["spec"]["selector"]["matchLabels"]["new"] == "yes"
    await cluster.patch(first.ref, {"spec": {"replicas": 3}})
    scaled = replace(target, autoscaled=frozenset({first.ref.key}))
    inventory = [InventoryItem(ref=second.ref, uid=second.uid)]
    (third,) = await apply_wave(scaled, [change(target, other, Action.REPLACE)], inventory=inventory)
    assert (third.uid != second.uid, third.object["spec"]["replicas"]) == (True, 3)


async def test_a_foreign_object_is_not_replaced(target: Target, namespace: str, cluster: Cluster) -> None:
    foreign = await cluster.apply(deployment(namespace), manager="somebody")
    predecessor = [InventoryItem(ref=foreign.ref, uid="of-its-predecessor")]
    for inventory in ([], predecessor):
        async with asyncio.timeout(10):  # it would wait for its end
            with pytest.raises(Held):
                await apply_wave(target, [change(target, deployment(namespace), Action.REPLACE)], inventory=inventory)
    live = await cluster.get(foreign.ref)
    assert live is not None
    assert live["metadata"]["uid"] == foreign.uid


async def test_an_autoscaler_keeps_its_replicas(target: Target, namespace: str, cluster: Cluster) -> None:
    await apply_wave(target, [change(target, deployment(namespace, replicas=3))])
    scaled = replace(target, autoscaled=frozenset({("apps", "Deployment", namespace, "web")}))
    for replicas in (3, None, 2):  # as git has it: unchanged, removed, changed
        await apply_wave(scaled, [change(target, deployment(namespace, replicas=replicas), Action.UPDATE)])
        ref = ObjectRef(group="apps", version="v1", kind="Deployment", namespace=namespace, name="web")
        live = await cluster.get(ref)
        assert live is not None
        assert live["spec"]["replicas"] == 3
    # The autoscaler's own write, through another manager:
    await cluster.patch(ref, {"spec": {"replicas": 7}})
    await apply_wave(scaled, [change(target, deployment(namespace, image="web:2"), Action.UPDATE)])
    live = await cluster.get(ref)
    assert live is not None
    assert (live["spec"]["replicas"], live["spec"]["template"]["spec"]["containers"][0]["image"]) == (7, "web:2")


async def test_an_autoscaler_that_acts_while_its_replicas_are_claimed_is_not_undone(
    target: Target, namespace: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply_wave(target, [change(target, deployment(namespace, replicas=3))])
    scaled = replace(target, autoscaled=frozenset({("apps", "Deployment", namespace, "web")}))
    apply, pending = cluster.apply, [7]

    async def overtaken(obj: Json, **options: Any) -> Applied:
        if pending and options.get("manager"):
            await cluster.patch(ObjectRef.of(obj), {"spec": {"replicas": pending.pop()}})
        return await apply(obj, **options)

    monkeypatch.setattr(cluster, "apply", overtaken)
    (applied,) = await apply_wave(scaled, [change(target, deployment(namespace, image="web:2"), Action.UPDATE)])
    assert (pending, applied.object["spec"]["replicas"]) == ([], 7)


async def test_without_an_autoscaler_git_has_the_say(target: Target, namespace: str, cluster: Cluster) -> None:
    await apply_wave(target, [change(target, deployment(namespace, replicas=3))])
    (applied,) = await apply_wave(target, [change(target, deployment(namespace, replicas=None), Action.UPDATE)])
    assert applied.object["spec"]["replicas"] == 1


async def test_live_autoscalers_of_the_workloads_namespaces_are_found(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    scaler: Json = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "live", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 2,
            "maxReplicas": 9,
        },
    }
    await cluster.apply(scaler)
    found = await autoscalers(cluster, [manifest(target, deployment(namespace))])
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [("HorizontalPodAutoscaler", "live")]
    assert await autoscalers(cluster, [manifest(target, config_map(namespace, "c"))]) == ()


async def test_adoption_takes_over_what_kubectl_apply_owned(target: Target, namespace: str, cluster: Cluster) -> None:
    old = config_map(namespace, "c", kept="1", removed="2")
    ref = ObjectRef.of(old)
    await cluster.apply(old, manager="seed")
    live = await cluster.get(ref)
    assert live is not None
    entries = live["metadata"]["managedFields"]
    entries[0] |= {"manager": "kubectl-client-side-apply", "operation": "Update"}
    await cluster.patch(ref, [{"op": "replace", "path": "/metadata/managedFields", "value": entries}])
    await apply_wave(target, [change(target, config_map(namespace, "c", kept="1"), Action.UPDATE)])
    live = await cluster.get(ref)
    assert live is not None
    assert live["data"] == {"kept": "1"}
    assert {entry["manager"] for entry in live["metadata"]["managedFields"]} == {"gitsync"}


def test_only_manifests_of_the_same_version_are_taken_over() -> None:
    kubectl: Json = {
        "manager": "kubectl-client-side-apply",
        "operation": "Update",
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
    }
    ours: Json = {
        "manager": "gitsync",
        "operation": "Apply",
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:paused": {}}},
    }
    scale = kubectl | {"subresource": "scale"}
    controller = kubectl | {"manager": "kube-controller-manager"}
    assert taken_over([controller, ours, scale]) is None
    taken = taken_over([kubectl, controller, ours, scale])
    assert taken == [ours | {"fieldsV1": {"f:spec": {"f:paused": {}, "f:replicas": {}}}}, controller, scale]
    other_version = taken_over([kubectl | {"apiVersion": "apps/v1beta1"}, ours])
    assert other_version == [ours]


async def test_a_dying_object_is_made_anew(target: Target, namespace: str, cluster: Cluster) -> None:
    dying = config_map(namespace, "c", a="1")
    dying["metadata"]["finalizers"] = ["test.gitsync.dev/hold"]
    first = await cluster.apply(dying, manager="somebody")
    await cluster.delete(first.ref, first.uid)
    applying = asyncio.create_task(apply_wave(target, [change(target, config_map(namespace, "c", a="2"))]))
    await asyncio.sleep(0.3)
    assert not applying.done()
    await cluster.patch(first.ref, {"metadata": {"finalizers": None}})
    (applied,) = await asyncio.wait_for(applying, 20)
    assert applied.uid != first.uid
    assert applied.object["data"] == {"a": "2"}


# ---------------------------------------------------------------- dry run


async def test_a_dry_run_reports_every_refusal_and_writes_nothing(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    bad = deployment(namespace, "bad", replicas=-1)
    worse = deployment(namespace, "worse")
    worse["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    good = config_map(namespace, "good")
    answer = await dry_run(target, [manifest(target, each) for each in (good, bad, worse)])
    assert [refusal.origin.field for refusal in answer.refusals if refusal.origin] == [
        "spec.replicas",
        "spec.template.spec.containers[0].imagee",
    ]
    assert list(answer.replies) == [ObjectRef.of(good).key]
    assert await cluster.get(ObjectRef.of(good)) is None


async def test_what_waits_for_the_commit_itself_is_deferred(target: Target, namespace: str) -> None:
    objects = [
        body(ObjectRef(version="v1", kind="Namespace", name="not-yet-there")),
        config_map("not-yet-there", "c"),
        definition(),
        widget(namespace, "Widget", size=1),
        config_map(namespace, "c"),
    ]
    manifests = [manifest(target, each) for each in objects]
    answer = await dry_run(target, manifests)
    assert not answer.refusals
    assert [each.ref.kind for each in answer.deferred] == ["ConfigMap", "Widget"]
    only = await dry_run(target, [manifests[1]], commit=manifests)
    assert only.deferred == (manifests[1],)


async def test_what_the_commit_does_not_bring_is_waited_for_or_refused(target: Target, namespace: str) -> None:
    with pytest.raises(Waiting) as caught:
        await dry_run(target, [manifest(target, config_map("not-yet-there", "c"))])
    assert caught.value.reason == "NamespaceNotFound"
    answer = await dry_run(target, [manifest(target, widget(namespace, "Widget", size=1))])
    assert answer.refusals[0].reason == "NoKind"


async def test_a_new_schema_of_the_commit_is_not_judged_by_the_old_one(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    (made,) = await apply_wave(target, [change(target, definition("Gizmo"))])
    newer = definition("Gizmo")
    schema = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["colour"] = {"type": "string"}
    manifests = [manifest(target, newer), manifest(target, widget(namespace, "Gizmo", colour="red"))]
    answer = await dry_run(target, manifests)
    assert answer.deferred == (manifests[1],)
    alone = await dry_run(target, manifests[1:])
    assert [type(each) for each in alone.refusals] == [Rejected]
    await cluster.delete(made.ref, made.uid)


async def test_a_replacement_is_tried_under_another_name(target: Target, namespace: str, cluster: Cluster) -> None:
    await apply_wave(target, [change(target, deployment(namespace))])
    other = deployment(namespace)
    other["spec"]["selector"] = {"matchLabels": {"app": "web", "new": "yes"}}
    other["spec"]["template"]["metadata"]["labels"] = {"app": "web", "new": "yes"}
    immutable = manifest(target, other)
    assert len((await dry_run(target, [immutable])).refusals) == 1
    assert not (await dry_run(target, [immutable], replaces=[immutable.ref])).refusals
    taken = service(namespace) | {"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 31999}]}}
    (made,) = await apply_wave(target, [change(target, taken)])
    moved = manifest(target, taken)
    answer = await dry_run(target, [moved], replaces=[moved.ref])
    assert not answer.refusals
    broken = manifest(target, service(namespace) | {"spec": {"ports": [{"port": 99999}]}})
    answer = await dry_run(target, [broken], replaces=[broken.ref])
    assert len(answer.refusals) == 1
    await cluster.delete(made.ref, made.uid)


async def test_nothing_goes_into_a_namespace_before_it_is_open(
    target: Target, cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{namespace}-late"
    get, looks = cluster.get, 0

    async def opens_late(ref: ObjectRef, **options: Any) -> Json | None:
        nonlocal looks
        live = await get(ref, **options)
        if ref.kind != "Namespace" or live is None:
            return live
        looks += 1
        assert await get(ObjectRef(version="v1", kind="ConfigMap", namespace=name, name="c")) is None
        return (
            live if looks > 2 else live | {"metadata": live["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}
        )

    monkeypatch.setattr(cluster, "get", opens_late)
    room = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    applied = await apply_wave(target, [change(target, config_map(name, "c")), change(target, room)])
    assert looks == 3
    assert [each.ref.kind for each in applied] == ["ConfigMap", "Namespace"]


async def test_a_deletion_is_of_the_very_object(cluster: Cluster, namespace: str) -> None:
    applied = await cluster.apply(config_map(namespace, "c"))
    assert not await cluster.delete(applied.ref, "of-its-predecessor")
    with pytest.raises(Conflict):  # of the version that was looked at, and that it is no longer is no sign of its end
        await cluster.delete(applied.ref, applied.uid, resource_version="1")
    assert await cluster.get(applied.ref) == applied.object
    assert await cluster.delete(applied.ref, applied.uid)
    assert await cluster.get(applied.ref) is None
