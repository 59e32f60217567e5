"""What gitsync promises, with real git, builds, a registry and containers, in seconds: see DESIGN's P1 to P10."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gitsync.sandbox.registry import Options
from tests.registry import TestRegistry
from tests.sandbox.conftest import Cluster, deployment, service
from tests.sandbox.project import Project, asked_by, condition, config_map, teach

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestRegistry]:
    async with TestRegistry(tmp_path_factory.mktemp("registry"), login=False) as found:
        await found.push_image("base", "1")
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def project(
    cluster: Cluster, registry: TestRegistry, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Project]:
    await teach(cluster)
    made = Project(cluster, registry, tmp_path_factory.mktemp("project"))
    yield made
    made.clean()


def web(text: str = "one", **container: Any) -> dict[str, Any]:
    """An image of one file, its Deployment and its Service."""
    ready: Json = {"readinessProbe": {"httpGet": {"port": 8000}, "periodSeconds": 1}} | container
    made = deployment("web", "web", "exec httpd -f -p 8000 -h /www", **ready)
    return {
        "web/index.html": text,
        "manifests/web.yaml": {"apiVersion": "apps/v1"} | made,
        "manifests/service.yaml": {"apiVersion": "v1"} | service("web", 80, 8000),
    }


def dockerfile(project: Project) -> dict[str, str]:
    return {"web/Dockerfile": f"FROM {project.registry.host}/base:1\nCOPY index.html /www/index.html\n"}


def job(name: str, script: str, wave: str = "0") -> Json:
    container = {"name": "main", "image": "localhost/gitsync/sandbox-test:1", "command": ["sh", "-c", script]}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}
    metadata = {"name": name, "annotations": {"gitsync.dev/sync-wave": wave}}
    spec = {"backoffLimit": 0, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


async def test_a_commit_that_fails_goes_back_whole_and_is_not_tried_again(project: Project) -> None:
    files = {
        "manifests/settings.yaml": config_map("settings", mode="one"),
        "manifests/old.yaml": config_map("old", a="b"),
    }
    first = project.commit(dockerfile(project) | web() | files)
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
        pods = await project.pods()
        assert all("@sha256:" in image for image in pods.values())
        old = await project.cluster.get("configmaps", "old")
        bad = project.commit(
            web("two")
            | {"manifests/settings.yaml": config_map("settings", mode="two"), "manifests/old.yaml": None}
            | {"manifests/new.yaml": config_map("new", a="b"), "manifests/job.yaml": job("fails", "false")}
            | {"manifests/after.yaml": job("after", "true", "1")}
        )
        status = await project.refuses(bad)
        assert status["revision"].endswith(first)
        assert [entry["revision"].rpartition(":")[2] for entry in status["quarantined"]] == [bad]
        assert (await project.data("settings"), await project.data("new")) == ({"mode": "one"}, None)
        assert await project.cluster.get("configmaps", "old") == old, "a failed wave has pruned"
        assert [name for name in await project.jobs() if "after" in name] == [], "the next wave was sent"
        assert set((await project.pods()).values()) == set(pods.values()), "not all of it went back"
        generation = (await project.cluster.get("deployments", "web", "apps/v1"))["metadata"]["generation"]
        assert [entry.outcome for entry in (await project.record()).history] == ["Restored", "Deployed"]

    async with project.gitsync():
        await project.look()
        assert (await project.cluster.get("deployments", "web", "apps/v1"))["metadata"]["generation"] == generation
        assert len((await project.record()).history) == 2
        await project.annotate(retry="please")
        async with asyncio.timeout(90):
            while len((await project.record()).history) < 3:
                await asyncio.sleep(0.1)
        fix = project.commit({"manifests/job.yaml": None, "manifests/after.yaml": None})
        await project.serves(fix)
        assert (await project.data("settings"), await project.data("new")) == ({"mode": "two"}, {"a": "b"})
        assert await project.data("old") is None
        assert project.pushes() == 2


async def test_nothing_is_written_unless_all_of_it_may_be(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")})
    await project.follow()
    async with project.gitsync() as running:
        await project.serves(first)
        untouched = await project.cluster.get("configmaps", "a")
        wrong = deployment("wrong", "localhost/none:1", "true")
        wrong["spec"]["replcias"] = 2
        refused = project.commit(
            {"manifests/a.yaml": config_map("a", k="2"), "manifests/wrong.yaml": {"apiVersion": "apps/v1"} | wrong}
        )
        status = await project.refuses(refused)
        assert "replcias" in status["lastAttempt"]["message"]
        assert "manifests/wrong.yaml:" in status["lastAttempt"]["message"]
        assert await project.cluster.get("configmaps", "a") == untouched

        step = "RUN echo tried token=swordfish && false"
        unbuilt = web() | {"web/Dockerfile": f"FROM {project.registry.host}/base:1\n{step}\n"}
        broken = project.commit({"manifests/a.yaml": config_map("a", k="3"), "manifests/wrong.yaml": None} | unbuilt)
        status = await project.refuses(broken)
        assert status["lastAttempt"]["stage"] == "images"
        assert await project.cluster.get("configmaps", "a") == untouched
        shown = running.pipeline.build_log(f"{project.namespace}/shop") + str(status)
        assert "tried token=***" in shown
        assert "swordfish" not in shown
        logs = list((project.place / "cache" / "images" / "logs").iterdir())
        assert len(logs) == 1
        written = logs[0].stat().st_mtime_ns

    async with project.gitsync():  # not even after a restart is it built again
        await project.look()
        assert logs[0].stat().st_mtime_ns == written
        assert "quarantined" in (await project.refuses(broken))["lastAttempt"]["message"]


async def test_the_same_input_is_built_once(project: Project) -> None:
    first = project.commit(dockerfile(project) | web())
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
        image = (await project.pods()).popitem()[1]
        assert project.pushes() == 1
    shutil.rmtree(project.place / "cache" / "images")  # a cache may vanish
    await project.registry.push_image("base", "1", {"etc/newer": b"base"})  # and a base's tag move
    try:
        project.git("branch", "other")
        second = project.commit({"manifests/a.yaml": config_map("a", k="v"), "README": "not an input"})
        await project.follow("other", source={"ref": {"branch": "other"}}, targetNamespace="other")
        async with project.gitsync():
            await project.serves(second)
            assert set((await project.pods()).values()) == {image}
            assert project.pushes() == 1
            await project.annotate(**{"refresh-bases": "please"})  # until somebody asks for it
            async with asyncio.timeout(60):
                while project.pushes() == 1 or image in (await project.pods()).values():
                    await asyncio.sleep(0.1)
            newer = set((await project.pods()).values())
            await project.serves(project.commit({"manifests/a.yaml": config_map("a", k="w")}))
            assert set((await project.pods()).values()) == newer
            assert project.pushes() == 2
    finally:
        await project.registry.push_image("base", "1")


async def test_a_killed_rollout_goes_on_from_the_record_alone(project: Project) -> None:
    files = {"manifests/b.yaml": config_map("b", k="1"), "manifests/job.yaml": job("first", "true", "-1")}
    sha = project.commit(dockerfile(project) | web() | files)
    await project.follow()
    await project.killed_at("apply.started")
    record = await project.record()
    assert record.attempt is not None
    assert record.attempt.revision.sha == sha
    assert {ref.kind for ref in record.attempt.creates} == {"ConfigMap", "Job", "Deployment", "Service"}
    assert await project.data("b") is None, "something was written before the attempt was recorded"
    await project.killed_at("wait.started@2")
    assert await project.data("b") == {"k": "1"}
    uid = (await project.cluster.get("configmaps", "b"))["metadata"]["uid"]
    project.repository.rename(project.place / "away")  # and no git
    async with project.gitsync():
        async with asyncio.timeout(90):
            while (good := (await project.record()).last_good) is None:
                await asyncio.sleep(0.1)
        assert good.revision.sha == sha
        record = await project.record()
        assert record.attempt is None
        assert uid in {item.uid for item in record.inventory}
        assert project.pushes() == 1
        assert len(await project.jobs()) == 1


async def test_a_killed_restore_is_a_restore_again(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")})
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
    bad = project.commit(
        {"manifests/a.yaml": config_map("a", k="2"), "manifests/b.yaml": config_map("b", k="2")}
        | {"manifests/job.yaml": job("fails", "false", "1")}
    )
    await project.killed_at("restore.applied")
    path = project.cluster.api.path("v1", "configmaps")
    version = (await project.cluster.api.get(path)).body["metadata"]["resourceVersion"]
    async with project.gitsync():
        await project.refuses(bad)
        async with project.cluster.api.watch(path, resourceVersion=version, timeoutSeconds="1") as events:
            seen = [event["object"] async for event in events]
        again = [each for each in seen if each.get("data") == {"k": "2"} and each["metadata"]["name"] == "a"]
        assert again == [], "what was condemned was rolled out once more"
        assert (await project.data("a"), await project.data("b")) == ({"k": "1"}, None)
        assert [entry.outcome for entry in (await project.record()).history] == ["Restored", "Deployed"]


async def test_what_a_killed_process_made_is_known_although_its_plan_has_no_future(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")})
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
    project.commit({"manifests/b.yaml": config_map("b", k="1")})
    await project.killed_at("apply.object-sent")
    assert await project.data("b") == {"k": "1"}
    newest = project.commit({"manifests/b.yaml": None})
    await project.follow(sync={"timeout": "5m"})  # another spec: what was begun is not gone on with
    async with project.gitsync():
        await project.serves(newest)
        assert await project.data("b") is None


async def test_a_newer_commit_takes_over_a_rollout_and_answers_for_it(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")})
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
        project.commit(
            {"manifests/a.yaml": config_map("a", k="2"), "manifests/b.yaml": config_map("b", k="2")}
            | {"manifests/job.yaml": job("long", "sleep 600", "1"), "manifests/c.yaml": late(config_map("c", k="2"))}
        )
        async with asyncio.timeout(90):
            while not await project.pods():
                await asyncio.sleep(0.05)
        assert await project.data("c") is None, "a wave began before the one before it was healthy"
        newest = project.commit({"manifests/b.yaml": None, "manifests/job.yaml": None, "manifests/c.yaml": None})
        await project.serves(newest)
        assert (await project.data("a"), await project.data("b")) == ({"k": "2"}, None)
        assert await project.jobs() == []


def late(obj: Json) -> Json:
    return obj | {"metadata": obj["metadata"] | {"annotations": {"gitsync.dev/sync-wave": "2"}}}


async def test_only_what_was_made_here_is_pruned_and_much_only_if_approved(project: Project) -> None:
    many = {f"manifests/m{number}.yaml": config_map(f"m{number}", k="v") for number in range(7)}
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")} | many)
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
        labels = (await project.cluster.get("configmaps", "a"))["metadata"]["labels"]
        await project.cluster.apply(
            {"kind": "ConfigMap", "metadata": {"name": "planted", "labels": labels}, "data": {"k": "v"}}
        )
        some = project.commit({"manifests/m0.yaml": None})
        await project.serves(some)
        assert (await project.data("m0"), await project.data("planted")) == (None, {"k": "v"})
        held = project.commit(dict.fromkeys(list(many)[1:]))
        status = await project.until(lambda status: status.get("counts", {}).get("held") == 6)
        assert "gitsync approve" in str(status["conditions"])
        assert await project.data("m1") == {"k": "v"}
        await project.annotate(approve=held)
        await project.serves(held)
        assert [await project.data(f"m{number}") for number in range(1, 7)] == [None] * 6
        assert (await project.data("a"), await project.data("planted")) == ({"k": "1"}, {"k": "v"})

        project.repository.rename(project.place / "away")  # a failed fetch is no empty repository
        await project.until(lambda status: condition(status, "Ready") == "False")
        assert await project.data("a") == {"k": "1"}


async def test_drift_is_put_back_and_blamed_and_nothing_else_is_touched(project: Project) -> None:
    scaled: Json = {"apiVersion": "apps/v1"} | deployment("scaled", "localhost/gitsync/sandbox-test:1", "sleep 600")
    scaled["spec"]["minReadySeconds"] = 1
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"}
    scaler = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "scaled"},
              "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3}}  # fmt: skip
    made = await project.cluster.api.post(
        project.cluster.api.path("autoscaling/v2", "horizontalpodautoscalers"), scaler
    )
    assert made.code == 201, made.text
    first = project.commit(
        {"manifests/a.yaml": config_map("a", k="1"), "manifests/b.yaml": config_map("b", k="1")}
        | {"manifests/scaled.yaml": scaled}
    )
    await project.follow()
    api = project.cluster.api
    async with project.gitsync() as running:
        await project.serves(first)
        deployed = api.path("apps/v1", "deployments", "scaled")
        await api.patch(deployed, {"spec": {"replicas": 2}}, fieldManager="autoscaler")
        await api.patch(api.path("v1", "configmaps", "a"), {"data": {"k": "9", "mine": "x"}}, fieldManager="mallory")
        await api.delete(api.path("v1", "configmaps", "b"))
        async with asyncio.timeout(90):
            while (await project.data("a"), await project.data("b")) != ({"k": "1", "mine": "x"}, {"k": "1"}):
                await asyncio.sleep(0.05)
        async with asyncio.timeout(90):
            while not any("data.k (mallory" in each for each in await project.events()):
                await asyncio.sleep(0.1)
        assert (await project.cluster.get("deployments", "scaled", "apps/v1"))["spec"]["replicas"] == 2
        scaled["metadata"]["annotations"] = {"changed": "yes"}
        changed = project.commit({"manifests/scaled.yaml": scaled})
        await project.serves(changed)
        assert (await project.cluster.get("deployments", "scaled", "apps/v1"))["spec"]["replicas"] == 2

        with asked_by(running) as asked:
            await asyncio.sleep(2.2)  # two polls
        assert asked == [], "a reconcile with nothing to do has asked the API server"


async def test_a_commit_that_wants_what_serves_asks_nothing_of_the_cluster(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")})
    await project.follow()
    async with project.gitsync() as running:
        await project.serves(first)
        async with asyncio.timeout(30):
            while not running.pipeline.follower.sees(f"{project.namespace}/shop"):
                await asyncio.sleep(0.01)
        with asked_by(running) as asked:
            noted = project.commit({"README.md": "what it is\n"})
            await project.serves(noted)
        assert {(verb, path.rpartition("/")[2]) for verb, path, *_ in asked} <= {
            ("PUT", "shop.gitsync-record"),
            ("PATCH", "status"),
            ("POST", "events"),
        }
        record = await project.record()
        assert record.last_good is not None
        assert record.last_good.revision.sha == noted

        refused = project.commit({"manifests/a.yaml": config_map("a", k="2") | {"dtaa": {}}})
        await project.refuses(refused)
        back = project.commit({"manifests/a.yaml": config_map("a", k="1")})
        status = await project.serves(back)
        assert condition(status, "Stalled") == "False"
        assert status["lastGood"].endswith(back)

        await project.cluster.api.patch(
            project.cluster.api.path("v1", "configmaps", "a"), {"data": {"k": "9"}}, fieldManager="mallory"
        )
        more = project.commit({"README.md": "what it is, and more\n"})
        await project.serves(more)
        async with asyncio.timeout(90):
            while await project.data("a") != {"k": "1"}:
                await asyncio.sleep(0.05)


async def test_bad_luck_is_waited_out_until_a_commit_that_is_refused_takes_it_back(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1")})
    await project.follow(sync={"timeout": "5s"})
    async with project.gitsync():
        await project.serves(first)
        container = {"name": "main", "image": "127.0.0.1:1/nobody/there:1"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}}
        unlucky = project.commit({"manifests/a.yaml": config_map("a", k="2"), "manifests/pod.yaml": pod})
        status = await project.until(lambda status: status.get("lastAttempt", {}).get("reason") == "RolloutWaits")
        assert status["lastAttempt"]["revision"].endswith(unlucky)
        assert await project.data("a") == {"k": "2"}
        record = await project.record()
        assert record.quarantine == ()
        assert record.attempt is not None
        refused = project.commit({"manifests/a.yaml": config_map("a", k="3") | {"dtaa": {}}})
        await project.refuses(refused)
        async with asyncio.timeout(90):
            while (await project.record()).attempt is not None:
                await asyncio.sleep(0.1)
        assert (await project.data("a"), await project.pods()) == ({"k": "1"}, {})


async def test_a_person_goes_back_and_it_stays_so(project: Project) -> None:
    first = project.commit({"manifests/a.yaml": config_map("a", k="1"), "manifests/job.yaml": job("once", "true")})
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
        second = project.commit({"manifests/a.yaml": config_map("a", k="2"), "manifests/job.yaml": None})
        await project.serves(second)
        await project.annotate(rollback="@one")
        await project.until(lambda status: str(status.get("revision")).endswith(first))
        assert (await project.data("a"), await project.jobs()) == ({"k": "1"}, []), "a Job of long ago ran again"
    async with project.gitsync():
        await project.look()
        assert await project.data("a") == {"k": "1"}
        third = project.commit({"manifests/a.yaml": config_map("a", k="3")})
        await project.serves(third)
    async with project.gitsync():
        await project.look()
        assert await project.data("a") == {"k": "3"}, "the request was followed a second time"


async def test_no_secret_is_told(project: Project) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "key"},
        "stringData": {"key": "hunter2-hunter2"},
    }
    first = project.commit({"manifests/secret.yaml": secret})
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
        wrong = secret | {"stringData": {"key": "swordfish-swordfish"}, "immutable": "swordfish-swordfish"}
        refused = project.commit({"manifests/secret.yaml": wrong})
        status = await project.refuses(refused)
        await project.cluster.kubectl("patch", "secret/key", "--patch", '{"stringData":{"key":"mallory-mallory"}}')
        async with asyncio.timeout(90):
            while not any("DriftRepaired" in each for each in await project.events()):
                await asyncio.sleep(0.1)
        told = str(status) + str(await project.events())
        assert not [word for word in ("hunter2", "swordfish", "mallory-") if word in told], told


async def test_an_application_that_goes_leaves_or_takes_its_objects_as_it_says(project: Project) -> None:
    room: Json = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept-room"}}
    first = project.commit({"manifests/a.yaml": config_map("a", k="1"), "manifests/room.yaml": room})
    await project.follow(sync={"deletionPolicy": "delete"})
    path = project.cluster.api.path("gitsync.dev/v1alpha1", "applications", "shop")
    async with project.gitsync():
        async with asyncio.timeout(90):
            while (await project.record()).last_good is None:
                await asyncio.sleep(0.1)
        await project.cluster.api.delete(path)
        await project.cluster.gone("applications", "shop", "gitsync.dev/v1alpha1")
        assert await project.data("a") is None
        kept = (await project.cluster.api.get("/api/v1/namespaces/kept-room")).body
        assert kept["status"]["phase"] == "Active"
        await project.follow()
        await project.serves(first)
        await project.cluster.api.delete(path)
        await project.cluster.gone("applications", "shop", "gitsync.dev/v1alpha1")
        assert await project.data("a") == {"k": "1"}


async def test_the_digest_of_a_secret_is_keyed_by_a_secret_that_lasts(project: Project) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pin"}, "stringData": {"pin": "1234"}}
    reader: Json = {"apiVersion": "apps/v1"} | deployment("reader", "web", "true")
    reader["spec"]["replicas"] = 0
    pod = reader["spec"]["template"]["spec"]
    pod["containers"][0]["envFrom"] = [{"secretRef": {"name": "pin"}}]

    async def stamped() -> str:
        live = await project.cluster.get("deployments", "reader", "apps/v1")
        return live["spec"]["template"]["metadata"]["annotations"]["gitsync.dev/config-digest"]

    first = project.commit({"manifests/secret.yaml": secret, "manifests/reader.yaml": reader})
    await project.follow()
    async with project.gitsync():
        await project.serves(first)
    digest, seed = await stamped(), (await project.record()).seed
    assert len(seed) == 32
    assert digest
    async with project.gitsync():  # which remembers nothing
        await project.serves(project.commit({"README.md": "Nothing new"}))
    assert (await stamped(), (await project.record()).seed) == (digest, seed)
    async with project.gitsync():
        await project.serves(project.commit({"manifests/secret.yaml": secret | {"stringData": {"pin": "4321"}}}))
    assert await stamped() != digest


async def test_no_attempt_stays_as_a_half_whatever_a_person_does_meanwhile(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node_port(name: str) -> Json:
        spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30987}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}

    registry = project.cluster.sandbox.registry

    def keep(name: str) -> None:
        """Between the plan and the deletion that it holds, somebody says that the object is to stay."""

        def annotate(live: Json) -> Json:
            live["metadata"].setdefault("annotations", {})["gitsync.dev/prune"] = "disabled"
            return live

        if name == "prune.started":
            registry.modify(
                registry.resource("services"), project.namespace, "old", annotate, Options(manager="person")
            )

    first = project.commit({"manifests/service.yaml": node_port("old")})
    await project.follow(sync={"acceptInterruption": True})
    async with project.gitsync():
        await project.serves(first)
        monkeypatch.setattr("gitsync.rollout.prune.failpoint", keep)
        project.commit({"manifests/service.yaml": node_port("new")})
        async with asyncio.timeout(30):
            while (await project.record()).attempt is None:
                await asyncio.sleep(0.05)
            while (await project.record()).attempt is not None:
                await asyncio.sleep(0.2)
    assert (await project.cluster.get("services", "old"))["metadata"]["name"] == "old"
