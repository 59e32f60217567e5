"""Deployments, Jobs and Services of real containers: rollouts that lose nothing, and what happens when they fail."""

import asyncio
from typing import Any

import aiohttp
import pytest

from gitsync.sandbox.engine import Engine, find
from tests.sandbox.conftest import Cluster, deployment, service

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]

#: Answers ``$TEXT``; httpd exits at once on SIGTERM, so only preStop keeps it serving until nobody asks any more.
SERVE = 'mkdir -p /tmp/w 2>/dev/null; busybox mkdir -p /tmp/w; echo "$TEXT" > /tmp/w/index.html; exec httpd -f -p 8000 -h /tmp/w'  # noqa: E501
READY: Json = {
    "ports": [{"containerPort": 8000, "name": "http"}],
    "readinessProbe": {"httpGet": {"port": "http"}, "periodSeconds": 1},
    "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
}
NO_GAP: Json = {"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}


def web(name: str, image: str, text: str, **more: Any) -> Json:
    options: Json = {**READY, "env": [{"name": "TEXT", "value": text}], "spec": NO_GAP, **more}
    return deployment(name, image, SERVE, replicas=options.pop("replicas", 2), **options)


async def fetch(url: str) -> str:
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        return (await response.text()).strip()


async def test_a_rollout_loses_no_request(cluster: Cluster, image: str) -> None:
    await cluster.apply(web("web", image, "one"), service("web", 18200, "http"))
    await cluster.rolled_out("web")
    address = cluster.sandbox.service_address(cluster.api.namespace, "web", 18200)
    answers: list[str] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            answers.append(await fetch(f"http://{address}/"))

    available: set[int] = set()

    async def look() -> None:
        while not stop.is_set():
            status = (await cluster.get("deployments", "web", "apps/v1"))["status"]
            available.add(status.get("availableReplicas", 0))
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as load:
        load.create_task(look())
        for _ in range(3):
            load.create_task(ask())
        await cluster.apply(web("web", image, "two"))
        await cluster.rolled_out("web")
        for pod in await cluster.pods("app=web"):
            if pod["metadata"].get("deletionTimestamp"):
                await cluster.gone("pods", pod["metadata"]["name"])
        stop.set()
    assert set(answers) == {"one", "two"}
    assert min(available) == 2, "the rollout took an old pod before a new one was available"
    assert await fetch(f"http://{address}/") == "two"
    sets = {each["metadata"]["annotations"]["deployment.kubernetes.io/revision"]: each["spec"]["replicas"]
            for each in (await cluster.api.get(cluster.api.path("apps/v1", "replicasets"))).body["items"]}  # fmt: skip
    assert sets == {"1": 0, "2": 2}


async def test_without_draining_requests_are_lost(cluster: Cluster, image: str) -> None:
    """The control of the test above: the proxy hides nothing that a pod does to its connections."""
    script = "#!/bin/sh\nsleep 2\nprintf 'Content-Type: text/plain\\n\\nlate\\n'\n"
    config = {"kind": "ConfigMap", "metadata": {"name": "slow"}, "data": {"slow": script}}
    files = {"volumes": [{"name": "cgi", "configMap": {"name": "slow", "defaultMode": 0o755}}]}
    slow = "exec httpd -f -p 8000 -h /www"
    probe = {"tcpSocket": {"port": 8000}, "periodSeconds": 1}
    pod = files | {"terminationGracePeriodSeconds": 0}
    mounts = [{"name": "cgi", "mountPath": "/www/cgi-bin"}]
    body = deployment("late", image, slow, readinessProbe=probe, volumeMounts=mounts, pod=pod)
    await cluster.apply(config, body, service("late", 18201, 8000))
    await cluster.rolled_out("late")
    address = cluster.sandbox.service_address(cluster.api.namespace, "late", 18201)
    assert await fetch(f"http://{address}/cgi-bin/slow") == "late"
    asked = asyncio.create_task(fetch(f"http://{address}/cgi-bin/slow"))
    await asyncio.sleep(0.5)
    await cluster.api.delete(cluster.api.path("v1", "pods", (await cluster.pods())[0]["metadata"]["name"]))
    with pytest.raises(aiohttp.ClientError):
        await asked


async def test_a_rollout_that_fails_keeps_the_old_pods(cluster: Cluster, image: str) -> None:
    quick = {"spec": NO_GAP | {"progressDeadlineSeconds": 3}}
    await cluster.apply(web("web", image, "one", **quick), service("web", 18202, 8000))
    await cluster.rolled_out("web")
    broken = {"readinessProbe": {"httpGet": {"port": "http", "path": "/nothing-here"}, "periodSeconds": 1}}
    await cluster.apply(web("web", image, "two", **quick, **broken))

    def failed(value: Json) -> bool:
        return any(each["reason"] == "ProgressDeadlineExceeded" for each in value["status"].get("conditions", []))

    found = await cluster.until("deployments", "web", failed, "apps/v1")
    progressing = next(each for each in found["status"]["conditions"] if each["type"] == "Progressing")
    assert progressing["status"] == "False"
    assert "has timed out progressing" in progressing["message"]
    assert found["status"]["availableReplicas"] == 2
    assert await fetch(f"http://{cluster.sandbox.service_address(cluster.api.namespace, 'web', 18202)}/") == "one"
    reasons = {each["reason"] for each in (await cluster.api.get(cluster.api.path("v1", "events"))).body["items"]}
    assert "Unhealthy" in reasons
    await cluster.apply(web("web", image, "one", **quick))  # back: the old ReplicaSet is still there
    await cluster.rolled_out("web")
    assert len((await cluster.api.get(cluster.api.path("apps/v1", "replicasets"))).body["items"]) == 2


async def test_recreate_stops_the_old_pods_first(cluster: Cluster, image: str) -> None:
    recreate = {"spec": {"strategy": {"type": "Recreate"}}}
    await cluster.apply(web("web", image, "one", **recreate))
    await cluster.rolled_out("web")
    old = {each["metadata"]["uid"] for each in await cluster.pods()}
    await cluster.apply(web("web", image, "two", **recreate))
    both = False
    async with asyncio.timeout(30):
        while True:
            pods = {each["metadata"]["uid"] for each in await cluster.pods()}
            both |= bool(pods & old) and bool(pods - old)
            if len(pods) == 2 and not pods & old:
                break
            await asyncio.sleep(0.02)
    assert not both
    await cluster.rolled_out("web")


async def test_scaling_and_orphaning(cluster: Cluster, image: str) -> None:
    await cluster.apply(deployment("plain", image, "sleep 300", replicas=3))
    await cluster.rolled_out("plain")
    await cluster.kubectl("scale", "deployment/plain", "--replicas=1")
    await cluster.rolled_out("plain")
    await cluster.until("deployments", "plain", lambda it: it["status"]["replicas"] == 1, "apps/v1")
    await cluster.kubectl("delete", "deployment/plain", "--cascade=orphan")
    assert len([each for each in await cluster.pods() if not each["metadata"].get("deletionTimestamp")]) == 1
    found = (await cluster.api.get(cluster.api.path("apps/v1", "replicasets"))).body["items"]
    assert [each["metadata"].get("ownerReferences") for each in found] == [None]
    await cluster.apply(deployment("plain", image, "sleep 300"))


async def test_deleting_in_the_foreground_waits_for_the_pods(cluster: Cluster, image: str) -> None:
    await cluster.apply(deployment("plain", image, "sleep 300"))
    await cluster.rolled_out("plain")
    path = cluster.api.path("apps/v1", "deployments", "plain")
    await cluster.api.delete(path, {"propagationPolicy": "Foreground"})
    held = (await cluster.api.get(path)).body
    assert held["metadata"]["finalizers"] == ["foregroundDeletion"]
    await cluster.gone("deployments", "plain", "apps/v1")
    assert await cluster.pods() == []
    assert (await cluster.api.get(cluster.api.path("apps/v1", "replicasets"))).body["items"] == []


async def test_jobs_complete_and_fail(cluster: Cluster, image: str) -> None:
    def job(name: str, script: str, **spec: Any) -> Json:
        container = {"name": "main", "image": image, "command": ["sh", "-c", script]}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        return {"kind": "Job", "metadata": {"name": name}, "spec": {"template": template} | spec}

    await cluster.apply(job("good", "echo done", completions=2), job("bad", "exit 3", backoffLimit=0))
    await cluster.apply(job("slow", "sleep 100", activeDeadlineSeconds=1))

    def has(kind: str, reason: str) -> Any:
        def true(it: Json) -> bool:
            found: list[Json] = it["status"].get("conditions", [])
            return any((each["type"], each["reason"]) == (kind, reason) for each in found)

        return true

    found = await cluster.until("jobs", "good", has("Complete", "CompletionsReached"), "batch/v1")
    assert found["status"]["succeeded"] == 2
    assert found["status"]["completionTime"]
    found = await cluster.until("jobs", "bad", has("Failed", "BackoffLimitExceeded"), "batch/v1")
    assert found["status"]["failed"] == 1
    await cluster.until("jobs", "slow", has("Failed", "DeadlineExceeded"), "batch/v1")
    assert "done" in await cluster.kubectl("logs", "job/good")


async def test_services_resolve_inside_pods_even_on_the_same_port(cluster: Cluster, image: str) -> None:
    await cluster.apply(web("one", image, "first", replicas=1), web("two", image, "second", replicas=1))
    await cluster.apply(service("one", 8000, 8000), service("two", 8000, "http"))  # the port that all pods use
    await cluster.rolled_out("one")
    await cluster.rolled_out("two")
    space = cluster.api.namespace
    script = (
        "mkdir /tmp/www; echo own >/tmp/www/index.html; httpd -p 8000 -h /tmp/www; wget -qO- http://127.0.0.1:8000/; "
        f"wget -qO- http://one:8000/; wget -qO- http://two.{space}.svc.cluster.local:8000/; "
        "wget -qO- http://$ONE_SERVICE_HOST:$ONE_SERVICE_PORT/"
    )
    job: Json = {
        "restartPolicy": "Never",
        "containers": [{"name": "c", "image": image, "command": ["sh", "-c", script]}],
    }
    await cluster.apply(
        {"kind": "Job", "metadata": {"name": "ask"}, "spec": {"template": {"spec": job}, "backoffLimit": 0}}
    )
    await cluster.until("jobs", "ask", lambda it: it.get("status", {}).get("succeeded"), "batch/v1")
    assert (await cluster.kubectl("logs", "job/ask")).split() == ["own", "first", "second", "first"]


async def test_a_service_without_ready_endpoints_refuses(cluster: Cluster, image: str) -> None:
    await cluster.apply(service("nobody", 18203, 8000))
    async with asyncio.timeout(10):
        while not (address := cluster.sandbox.service_address(cluster.api.namespace, "nobody", 18203)):
            await asyncio.sleep(0.02)
    with pytest.raises(aiohttp.ClientError):
        await fetch(f"http://{address}/")


async def test_endpoint_slices_follow_readiness(cluster: Cluster, image: str) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    await cluster.apply(deployment("slow", image, "sleep 300", readinessProbe=probe), service("slow", 18204, 8000))

    async def ready() -> list[bool]:
        found = await cluster.api.get(
            cluster.api.path("discovery.k8s.io/v1", "endpointslices"), labelSelector="kubernetes.io/service-name=slow"
        )
        slices: list[Json] = found.body["items"]
        endpoints: list[Json] = [it for each in slices for it in each.get("endpoints", [])]
        return [it["conditions"]["ready"] for it in endpoints]

    async def becomes(wanted: list[bool]) -> None:
        async with asyncio.timeout(20):
            while await ready() != wanted:
                await asyncio.sleep(0.05)

    await becomes([False])
    [pod] = await cluster.pods()
    containers = pod["status"]["containerStatuses"]
    assert [each["ready"] for each in containers] == [False]
    running = await cluster.until(
        "pods", pod["metadata"]["name"], lambda it: "running" in it["status"]["containerStatuses"][0]["state"]
    )
    identity = running["status"]["containerStatuses"][0]["containerID"].rpartition("/")[2]
    engine = Engine(find(), "")
    await engine.execute(identity, ["sh", "-c", "echo > /tmp/ready"], 10)
    await becomes([True])
    await engine.execute(identity, ["busybox", "rm", "/tmp/ready"], 10)
    await becomes([False])
