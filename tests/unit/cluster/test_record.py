"""The Record survives crashes, damage and rivals, and is never read as empty."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gitsync import failpoints
from gitsync.cluster import record as module
from gitsync.cluster.answers import Conflict
from gitsync.cluster.client import Cluster
from gitsync.cluster.record import (
    Attempt,
    Corrupt,
    GoodState,
    HistoryEntry,
    Quarantined,
    Record,
    Records,
    pack,
    unpack,
)
from gitsync.model import Image, InventoryItem, Json, ObjectRef, Origin, Revision, Stage

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
REVISION = Revision(repository="https://git.example/shop.git", ref="main", sha="a" * 40, committed_at=NOW)


def application(namespace: str, name: str = "shop") -> ObjectRef:
    return ObjectRef(group="gitsync.dev", version="v1alpha1", kind="Application", namespace=namespace, name=name)


def deployment(number: int) -> Json:
    noise = random.Random(number).randbytes(220).hex()
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"web-{number}", "namespace": "shop", "annotations": {"noise": noise}},
        "spec": {"replicas": number, "template": {"spec": {"containers": [{"name": "web", "image": "web"}]}}},
    }


def full(app: ObjectRef, count: int) -> Record:
    objects = tuple(deployment(number) for number in range(count))
    item = InventoryItem(ref=ObjectRef.of(objects[0]), uid="1-2-3")
    image = Image(name="web", reference="r/web@sha256:1", digest="sha256:1", fingerprint="f", built=True)
    return Record(
        application=app,
        inventory=(item,),
        last_good=GoodState(revision=REVISION, objects=objects, images=(image,), bases={"node": "sha256:2"}, at=NOW),
        attempt=Attempt(
            revision=REVISION,
            phase=Stage.ROLLOUT,
            wave=2,
            objects=(*objects[1:], deployment(count)),
            origins=(Origin(file="manifests/web.yaml", line=3),),
            creates=(item.ref,),
            images=(image,),
            started_at=NOW,
            generation=7,
        ),
        quarantine=(Quarantined(digest="d", generation=7, revision=REVISION, stage=Stage.PLAN, message="no", at=NOW),),
        history=(
            HistoryEntry(
                revision=REVISION, started_at=NOW, finished_at=NOW, outcome="Succeeded", lowest_ready_share=0.75,
                objects=objects[:1],
            ),
        ),
        bases={"node:slim": "sha256:2"},
        approvals=("b" * 40,),
    )  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4000)


async def secrets_of(cluster: Cluster, namespace: str) -> dict[str, Json]:
    listing = await cluster.list(await cluster.resource("", "v1", "Secret"), namespace=namespace)
    return {item["metadata"]["name"]: item for item in listing.items}


async def test_what_was_saved_is_loaded(cluster: Cluster, namespace: str) -> None:
    # Any object can own one; Applications are not installed here.
    body: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop", "namespace": namespace}}
    owner = await cluster.apply(body)
    record = full(owner.ref, 3)
    saved = await Records(cluster).save(record, owner_uid=owner.uid)
    loaded = await Records(cluster).load(record.application)
    assert loaded == saved
    assert replace(loaded, stored=record.stored) == record
    assert loaded.stored.generation == 1
    (secret,) = (await secrets_of(cluster, namespace)).values()
    assert secret["type"] == "gitsync.dev/record"
    assert secret["metadata"]["ownerReferences"][0]["uid"] == owner.uid
    assert "gitsync.dev/application" not in secret["metadata"]["labels"]  # no drift watch sees it


async def test_an_application_without_a_record_gets_a_new_one(cluster: Cluster, namespace: str) -> None:
    assert await Records(cluster).load(application(namespace)) == Record(application=application(namespace))


def test_states_that_share_objects_cost_them_once() -> None:
    record = full(application("shop"), 500)
    assert len(pack(record)) < 1.1 * len(pack(replace(record, attempt=None)))


@pytest.mark.usefixtures("small_chunks")
async def test_a_large_record_is_chunked_and_old_chunks_go(cluster: Cluster, namespace: str) -> None:
    records = Records(cluster)
    first = await records.save(full(application(namespace), 100))
    assert len(first.stored.chunks) > 3
    second = await records.save(replace(first, approvals=("c",)))
    assert set(await secrets_of(cluster, namespace)) == {"shop.gitsync-record", *second.stored.chunks}
    assert await records.load(first.application) == second
    third = await records.save(Record(application=first.application, stored=second.stored))
    assert set(await secrets_of(cluster, namespace)) == {"shop.gitsync-record"}
    assert await records.load(first.application) == third


async def test_five_thousand_objects_fit(cluster: Cluster, namespace: str) -> None:
    saved = await Records(cluster).save(full(application(namespace), 5000))
    assert len(saved.stored.chunks) >= 2
    loaded = await Records(cluster).load(saved.application)
    assert loaded.attempt == saved.attempt
    await Records(cluster).delete(saved.application)
    assert await secrets_of(cluster, namespace) == {}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("damage", ["chunk gone", "chunk swapped", "chunk emptied", "head's data gone", "head gone"])
async def test_damage_is_an_error_and_never_empty(cluster: Cluster, namespace: str, damage: str) -> None:
    records = Records(cluster)
    saved = await records.save(full(application(namespace), 60))
    saved = await records.save(saved)  # the second generation, so that a missing head is not a crashed first save
    live = await secrets_of(cluster, namespace)
    head, chunk, other = live["shop.gitsync-record"], live[saved.stored.chunks[0]], live[saved.stored.chunks[1]]
    victim = head if damage.startswith("head") else chunk
    await cluster.delete(ObjectRef.of(victim), victim["metadata"]["uid"])
    made: Json = {key: victim[key] for key in ("apiVersion", "kind", "type")}
    made["metadata"] = {key: victim["metadata"][key] for key in ("name", "namespace", "labels")}
    if damage == "chunk swapped":
        await cluster.create(made | {"data": other["data"]})
    elif damage == "chunk emptied":
        await cluster.create(made | {"data": {"chunk": ""}})
    elif damage == "head's data gone":
        await cluster.create(made | {"data": {"head": victim["data"]["head"][:40]}})
    with pytest.raises(Corrupt) as caught:
        await records.load(saved.application)
    assert "shop" in str(caught.value)
    assert "backup" in str(caught.value)


@pytest.mark.parametrize("another", [True, False])
async def test_content_that_lies_about_its_checksum_is_refused(cluster: Cluster, namespace: str, another: bool) -> None:
    record = full(application(namespace), 1)
    await Records(cluster).save(record)
    (secret,) = (await secrets_of(cluster, namespace)).values()
    content = pack(Record(application=record.application)) if another else pack(record)[:-1] + b"!"
    await cluster.patch(ObjectRef.of(secret), {"data": {"record": b64encode(content).decode()}})
    with pytest.raises(Corrupt, match="checksum"):
        await Records(cluster).load(record.application)


@pytest.mark.parametrize("text", [b"", b"garbage", pack(Record(application=application("x")))[:-9]])
def test_what_is_no_record_is_corrupt(text: bytes) -> None:
    with pytest.raises(Corrupt):
        unpack(text)


def test_a_newer_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    packed = pack(Record(application=application("x")))
    monkeypatch.setattr(module, "FORMAT", 1)
    with pytest.raises(Corrupt, match="format 2"):
        unpack(packed)


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 100)
    with pytest.raises(Corrupt, match="larger"):
        unpack(pack(full(application("x"), 10)))


@pytest.mark.usefixtures("small_chunks")
async def test_of_two_writers_one_is_told(cluster: Cluster, namespace: str) -> None:
    records = Records(cluster)
    start = await records.save(full(application(namespace), 60))
    mine = await records.save(replace(start, approvals=("mine",)))
    with pytest.raises(Conflict, match="somebody else"):
        await records.save(replace(start, approvals=("theirs",)))
    assert await records.load(start.application) == mine


async def test_of_two_first_writers_one_is_told(cluster: Cluster, namespace: str) -> None:
    start = Record(application=application(namespace))
    await Records(cluster).save(start)
    with pytest.raises(Conflict):
        await Records(cluster).save(replace(start, approvals=("theirs",)))


@pytest.mark.usefixtures("small_chunks")
async def test_the_record_of_another_application_is_refused(cluster: Cluster, namespace: str) -> None:
    saved = await Records(cluster).save(Record(application=application(namespace, "other")))
    (secret,) = (await secrets_of(cluster, namespace)).values()
    body = {key: secret[key] for key in ("apiVersion", "kind", "type", "data")}
    await cluster.create(body | {"metadata": {"namespace": namespace, "name": "shop.gitsync-record"}})
    with pytest.raises(Corrupt, match=f"Record of {saved.application}"):
        await Records(cluster).load(application(namespace))


@pytest.mark.usefixtures("small_chunks")
async def test_records_of_many_namespaces_share_one(cluster: Cluster, namespace: str) -> None:
    records = Records(cluster, namespace=namespace)
    one = await records.save(full(application("team-a"), 60), owner_uid="cannot own across namespaces")
    two = await records.save(full(application("team-b"), 61))
    one = await records.save(replace(one, approvals=("c",)))
    assert await records.load(one.application) == one
    assert await records.load(two.application) == two
    assert all("ownerReferences" not in each["metadata"] for each in (await secrets_of(cluster, namespace)).values())


async def test_chunks_are_never_taken_for_what_their_name_says(cluster: Cluster, namespace: str) -> None:
    records, app = Records(cluster), application(namespace)
    await records._write_chunk(app, "chunk", b"half", 1, "")
    await records._write_chunk(app, "chunk", b"whole", 1, "")
    assert await records._read_chunk(app, "chunk", "reading") == b"whole"


@pytest.mark.usefixtures("small_chunks")
async def test_chunks_of_a_writer_that_has_loaded_ours_are_left(cluster: Cluster, namespace: str) -> None:
    records, app = Records(cluster), application(namespace)
    await records._write_chunk(app, "theirs", b"x", 2, "")
    await records.save(full(app, 60))
    assert "theirs" in await secrets_of(cluster, namespace)


@pytest.mark.usefixtures("small_chunks")
async def test_the_head_goes_first(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = await Records(cluster).save(full(application(namespace), 60))
    delete, names = cluster.delete, list[str]()

    async def heard(ref: ObjectRef, uid: str) -> bool:
        names.append(ref.name)
        return await delete(ref, uid)

    monkeypatch.setattr(cluster, "delete", heard)
    await Records(cluster).delete(saved.application)
    assert names[0] == "shop.gitsync-record"
    assert set(names[1:]) == set(saved.stored.chunks)


SAVE_TWICE = """
import asyncio, sys
from gitsync.cluster import record as module
from gitsync.cluster.client import Cluster
from tests.unit.cluster.test_record import application, full
from dataclasses import replace

async def main():
    module.CHUNK = 4000
    async with await Cluster.connect(sys.argv[1]) as cluster:
        records = module.Records(cluster)
        record = await records.load(application(sys.argv[2]))
        await records.save(replace(full(record.application, 60), stored=record.stored, approvals=("new",)))

asyncio.run(main())
"""


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("point", "approvals"),
    [
        ("record.chunk-written@2", ("old",)),
        ("record.chunks-written", ("old",)),
        ("record.saved", ("new",)),
        ("record.cleaned", ("new",)),
    ],
)
async def test_a_kill_leaves_the_old_or_the_new_one_whole(
    cluster: Cluster, namespace: str, tmp_path: Path, point: str, approvals: tuple[str, ...]
) -> None:
    records = Records(cluster)
    old = await records.save(replace(full(application(namespace), 60), approvals=("old",)))
    kubeconfig = tmp_path / "kubeconfig"
    real = os.environ.get("GITSYNC_TEST_KUBECONFIG")
    kubeconfig.write_text(Path(real).read_text() if real else plain_kubeconfig(cluster.host))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SAVE_TWICE, str(kubeconfig), namespace,
        env=os.environ | {failpoints.VARIABLE: point}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL
    found = await records.load(old.application)
    assert found.approvals == approvals
    assert found.last_good == old.last_good
    after = await records.save(replace(found, approvals=("after",)))  # the same content's left-over chunks do no harm
    assert await records.load(old.application) == after
    assert set(await secrets_of(cluster, namespace)) == {"shop.gitsync-record", *after.stored.chunks}


def plain_kubeconfig(host: str) -> str:
    return (
        f'{{"clusters":[{{"name":"c","cluster":{{"server":"{host}"}}}}],"users":[],"current-context":"c",'
        '"contexts":[{"name":"c","context":{"cluster":"c","user":""}}]}'
    )
