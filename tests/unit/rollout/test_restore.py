"""After a failed attempt the last good objects are back, what it created is gone, and nothing else is touched."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from gitsync.cluster.client import Cluster
from gitsync.cluster.record import Attempt, GoodState
from gitsync.errors import Held
from gitsync.model import Applied, InventoryItem, Json, ObjectRef, Revision, Stage
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.prune import prune
from gitsync.rollout.restore import remove_created, restore
from gitsync.rollout.target import Target
from tests.unit.rollout.conftest import body, change, config_map, deployment, manifest, service

NOW = datetime(2026, 1, 2, tzinfo=UTC)
OLD = Revision(repository="shop", ref="main", sha="a" * 40)
NEW = Revision(repository="shop", ref="main", sha="b" * 40)


def good(target: Target, *objects: Json) -> GoodState:
    return GoodState(revision=OLD, objects=tuple(manifest(target, each).object for each in objects), at=NOW)


def attempt(target: Target, *objects: Json, creates: tuple[Json, ...] = ()) -> Attempt:
    return Attempt(
        revision=NEW,
        phase=Stage.ROLLOUT,
        objects=tuple(manifest(target, each).object for each in objects),
        creates=tuple(ObjectRef.of(each) for each in creates),
        started_at=NOW,
    )


async def send(target: Target, *objects: Json) -> list[InventoryItem]:
    applied = await apply_wave(target, [change(target, each) for each in objects])
    return [InventoryItem(ref=each.ref, uid=each.uid) for each in applied]


async def alive(cluster: Cluster, obj: Json) -> Json | None:
    live = await cluster.get(ObjectRef.of(obj))
    return None if live is None or "deletionTimestamp" in live["metadata"] else live


async def test_changed_objects_go_back_and_created_ones_go_away(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    old = (config_map(namespace, "c", a="1"), deployment(namespace), service(namespace))
    new = (config_map(namespace, "c", a="2"), deployment(namespace, image="web:2"), service(namespace))
    extra = config_map(namespace, "extra")
    before = good(target, *old)
    await send(target, *old)
    inventory = await send(target, *new, extra)
    tried = attempt(target, *new, extra, creates=(extra,))
    landed: list[Applied] = []
    restored = await restore(target, before, tried, inventory=inventory, on_applied=landed.append)
    assert [each.ref.kind for each in restored.applied] == ["ConfigMap", "Deployment"]  # the Service was not changed
    assert landed == list(restored.applied)
    assert restored.statements == ()
    live = await alive(cluster, old[0])
    assert live is not None
    assert live["data"] == {"a": "1"}
    assert await alive(cluster, extra) is not None  # only once the old state serves
    removed = await remove_created(target, before, tried, inventory=inventory)
    assert [item.ref.name for item in removed.removed] == ["extra"]
    assert await alive(cluster, extra) is None
    again = await remove_created(target, before, tried, inventory=inventory)
    assert [item.ref.name for item in again.removed] == ["extra"]  # as after a crash


async def test_what_was_created_goes_in_the_opposite_order(
    target: Target, namespace: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (config_map(namespace, "c"), service(namespace))
    inventory = await send(target, *made)
    get, looked = cluster.get, list[str]()

    async def heard(ref: ObjectRef, **options: Any) -> Json | None:
        looked.append(ref.kind)
        return await get(ref, **options)

    monkeypatch.setattr(cluster, "get", heard)
    await remove_created(target, good(target), attempt(target, *made, creates=made), inventory=inventory)
    assert looked == ["Service", "ConfigMap"]


async def test_one_that_overtook_another_puts_back_what_that_one_changed(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    old, half = config_map(namespace, "c", a="1"), config_map(namespace, "c", a="of the other")
    before = good(target, old)
    inventory = await send(target, half)
    tried = attempt(target, old)  # it wanted the old content again, and failed before it was sent
    assert (await restore(target, before, tried, inventory=inventory)).applied == ()
    restored = await restore(target, before, replace(tried, overtook=True), inventory=inventory)
    assert [each.ref.name for each in restored.applied] == ["c"]
    live = await alive(cluster, old)
    assert live is not None
    assert live["data"] == {"a": "1"}


async def test_what_is_left_alone_is_not_put_back(target: Target, namespace: str, cluster: Cluster) -> None:
    def marked(value: str, annotation: str = "disabled") -> Json:
        obj = config_map(namespace, "c", a=value)
        return obj | {"metadata": obj["metadata"] | {"annotations": {"gitsync.dev/reconcile": annotation}}}

    before = good(target, marked("1"))
    inventory = await send(target, marked("of a person"))
    tried = replace(attempt(target, marked("2")), overtook=True)
    assert (await restore(target, before, tried, inventory=inventory)).applied == ()
    live = await alive(cluster, marked(""))
    assert live is not None
    assert live["data"] == {"a": "of a person"}
    lifted = attempt(target, marked("2", "enabled"))  # this one was sent
    assert [each.ref.name for each in (await restore(target, before, lifted, inventory=inventory)).applied] == ["c"]


async def test_what_cannot_be_undone_is_said(target: Target, namespace: str, cluster: Cluster) -> None:
    immutable = config_map(namespace, "fixed", a="2") | {"immutable": True}
    job: Json = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "migrate", "namespace": namespace},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "m"}]}}},
    }
    space: Json = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"{namespace}-made"}}
    inventory = await send(target, immutable, job, space)
    before = good(target, config_map(namespace, "fixed", a="1"), config_map(namespace, "c", b="1"))
    volume: Json = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{namespace}-volume"}}
    tried = attempt(target, immutable, job, space, creates=(job, space, volume))
    restored = await restore(target, before, tried, inventory=inventory)
    assert [each.ref.name for each in restored.applied] == ["c"]  # the refusal did not stop the rest
    assert len(restored.statements) == 4
    assert "ConfigMap" in restored.statements[0]
    assert "immutable" in restored.statements[0]
    assert "may have run" in restored.statements[1]
    assert "Namespace" in restored.statements[2]
    assert "PersistentVolume" in restored.statements[3]
    removed = await remove_created(target, before, tried, inventory=inventory)
    assert [item.ref.kind for item in removed.removed] == ["Job"]
    assert await alive(cluster, space) is not None
    await cluster.delete(inventory[2].ref, inventory[2].uid)


async def test_jobs_are_never_run_again(target: Target, namespace: str, cluster: Cluster) -> None:
    job: Json = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "done", "namespace": namespace},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "m"}]}}},
    }
    restored = await restore(target, good(target, job), attempt(target))
    assert restored.applied == ()
    assert await alive(cluster, job) is None


async def test_a_first_deployment_is_left_alone(target: Target, namespace: str, cluster: Cluster) -> None:
    made = config_map(namespace, "c")
    await send(target, made)
    restored = await restore(target, None, attempt(target, made, creates=(made,)))
    assert restored.applied == ()
    assert "no earlier state" in restored.statements[0]
    assert await alive(cluster, made) is not None


async def test_only_what_the_attempt_created_is_removed(target: Target, namespace: str, cluster: Cluster) -> None:
    adopted, foreign, lost = (config_map(namespace, name) for name in ("adopted", "foreign", "lost"))
    before = good(target)
    inventory = await send(target, adopted)  # it was there before: the plan did not create it
    await cluster.apply(foreign, manager="somebody")  # took the name before we came to it
    await send(target, lost)  # a crash kept it out of the inventory
    removed = await remove_created(target, before, attempt(target, creates=(foreign, lost)), inventory=inventory)
    assert [item.ref.name for item in removed.removed] == ["lost"]
    assert await alive(cluster, adopted) is not None
    assert await alive(cluster, foreign) is not None


async def test_what_is_good_or_somebody_elses_or_done_is_not_removed(
    target: Target, namespace: str, cluster: Cluster
) -> None:
    again, recreated, moved, namesake = (
        config_map(namespace, name) for name in ("again", "recreated", "moved", "namesake")
    )
    job: Json = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "done", "namespace": namespace},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "m", "image": "m"}]}}},
    }
    made = (again, recreated, moved, job, namesake)
    items = await send(target, *made)
    items[1] = replace(items[1], uid="of-what-we-made")
    await cluster.patch(items[2].ref, {"metadata": {"labels": {"gitsync.dev/application": "blog"}}})
    await cluster.patch(items[4].ref, {"metadata": {"labels": {"gitsync.dev/application-namespace": "elsewhere"}}})
    times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:01Z", "succeeded": 1}
    complete = {"conditions": [{"type": "Complete", "status": "True"}]} | times
    await cluster.apply(body(items[3].ref, status=complete), subresource="status", manager="node")
    tried = attempt(target, *made, creates=made)
    removed = await remove_created(target, good(target, again), tried, inventory=items)
    assert removed.removed == (items[1],), "only our record of what is gone"
    assert removed.kept == ()
    for each in made:
        assert await alive(cluster, each) is not None


async def test_a_replaced_object_is_replaced_back(target: Target, namespace: str, cluster: Cluster) -> None:
    old, new = config_map(namespace, "c", a="1"), config_map(namespace, "c", a="2") | {"immutable": True}
    (item,) = await send(target, new)
    tried = replace(attempt(target, new), replaces=(item.ref,))
    restored = await restore(target, good(target, old), tried, inventory=[item])
    assert restored.statements == ()
    assert restored.applied[0].uid != item.uid
    live = await alive(cluster, old)
    assert live is not None
    assert live["data"] == {"a": "1"}


# ---------------------------------------------------------------- prune


async def test_prune_deletes_recorded_objects_in_order(target: Target, namespace: str, cluster: Cluster) -> None:
    items = await send(target, config_map(namespace, "a"), service(namespace), config_map(namespace, "b"))
    heard: list[str] = []
    pruned = await prune(target, items, on_removed=lambda item: heard.append(item.ref.name))
    assert heard == ["a", "web", "b"]
    assert pruned.removed == tuple(items)
    assert pruned.kept == ()
    assert [await alive(cluster, body(item.ref)) for item in items] == [None, None, None]


async def test_prune_touches_nothing_that_is_not_ours(target: Target, namespace: str, cluster: Cluster) -> None:
    ours, recreated, moved, unlabelled, kept = (
        config_map(namespace, name) for name in ("ours", "recreated", "moved", "unlabelled", "kept")
    )
    kept["metadata"]["annotations"] = {"gitsync.dev/prune": "disabled"}
    items = await send(target, ours, recreated, moved, unlabelled, kept)
    items[1] = replace(items[1], uid="another-uid")
    await cluster.patch(items[2].ref, {"metadata": {"labels": {"gitsync.dev/application": "blog"}}})
    await cluster.patch(items[3].ref, {"metadata": {"labels": None}})
    pruned = await prune(target, items)
    assert [item.ref.name for item in pruned.removed] == ["ours", "recreated", "moved"]  # they leave the inventory
    assert [each.item.ref.name for each in pruned.kept] == ["unlabelled", "kept"]
    assert all(isinstance(each.error, Held) for each in pruned.kept)
    assert await alive(cluster, ours) is None
    for untouched in (recreated, moved, unlabelled, kept):
        assert await alive(cluster, untouched) is not None


async def test_what_is_written_between_the_look_and_the_deletion_is_looked_at_again(
    target: Target, namespace: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = await send(target, config_map(namespace, "a"))
    delete, pending = cluster.delete, [{"metadata": {"annotations": {"gitsync.dev/prune": "disabled"}}}]

    async def overtaken(ref: ObjectRef, uid: str, **options: Any) -> bool:
        if pending:
            await cluster.patch(ref, pending.pop())
        return await delete(ref, uid, **options)

    monkeypatch.setattr(cluster, "delete", overtaken)
    assert [each.item for each in (await prune(target, [item])).kept] == [item]
    assert await alive(cluster, body(item.ref)) is not None


async def test_a_denied_delete_stays_in_the_inventory(target: Target, namespace: str, cluster: Cluster) -> None:
    items = await send(target, config_map(namespace, "a"), config_map(namespace, "b"))
    real = cluster.delete

    async def deny(ref: ObjectRef, uid: str, **options: object) -> bool:
        if ref.name == "a":
            raise Held("denied", doing="deleting", ref=ref)
        return await real(ref, uid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "delete", deny)
        pruned = await prune(target, items)
    assert [each.item.ref.name for each in pruned.kept] == ["a"]
    assert [item.ref.name for item in pruned.removed] == ["b"]
