"""One pod at a time: what its containers get, how they are probed, restarted, stopped and seen."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from gitsync.sandbox.engine import find
from tests.registry import TestRegistry
from tests.sandbox.conftest import Cluster

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]


def pod(name: str, image: str, script: str, **more: Any) -> Json:
    container: Json = {"name": "main", "image": image, "command": ["sh", "-c", script]}
    spec: Json = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, **more.pop("spec", {})}
    spec["containers"] = [container | more, *spec.pop("containers", [])]
    return {"kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def ended(value: Json) -> bool:
    return value.get("status", {}).get("phase") in ("Succeeded", "Failed")


def waiting_for(value: Json) -> str:
    """The reason why the first container does not run yet."""
    statuses: list[Json] = value.get("status", {}).get("containerStatuses") or [{}]
    return str(statuses[0].get("state", {}).get("waiting", {}).get("reason", ""))


def running(value: Json) -> bool:
    return value.get("status", {}).get("phase") == "Running"


async def test_environment_and_volumes(cluster: Cluster, image: str) -> None:
    await cluster.apply(
        {"kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"COLOR": "red", "file": "two\nlines"}},
        {"kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"password": "hunter2"}},
    )
    env = [
        {"name": "PLAIN", "value": "a b"},
        {"name": "JOINED", "value": "$(PLAIN)-$(COLOR)-$$(PLAIN)"},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "password"}}},
        {"name": "LINES", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "file"}}},
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
        {"name": "MISSING", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k", "optional": True}}},
    ]
    volumes: list[Json] = [
        {
            "name": "conf",
            "configMap": {"name": "conf", "items": [{"key": "COLOR", "path": "sub/color", "mode": 0o600}]},
        },
        {"name": "sec", "secret": {"secretName": "sec"}},
        {"name": "labels", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "shared", "emptyDir": {}},
    ]
    mounts = [{"name": each["name"], "mountPath": f"/{each['name']}"} for each in volumes]
    prepare: Json = {"name": "init", "image": image, "command": ["sh", "-c", "echo prepared > /shared/f"]}
    prepare["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    script = (
        'echo "$PLAIN|$JOINED|$PASSWORD|$LINES|$WHO|$LIMIT|${MISSING-unset}|$COLOR"; cat /conf/sub/color; echo; '
        "cat /sec/password; echo; cat /labels/l; cat /shared/f; ls -l /conf/sub/color; id -u; test -w /sec || echo read-only"  # noqa: E501
    )
    body = pod("all", image, script, env=env, envFrom=[{"configMapRef": {"name": "conf"}}], volumeMounts=mounts)
    body["spec"] |= {"volumes": volumes, "initContainers": [prepare], "securityContext": {"runAsUser": 0}}
    body["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    await cluster.apply(body)
    found = await cluster.until("pods", "all", ended)
    assert found["status"]["phase"] == "Succeeded"
    assert found["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    lines = (await cluster.kubectl("logs", "all", "-c", "main")).splitlines()
    assert lines[:2] == ["a b|a b-red-$(PLAIN)|hunter2|two", f"lines|all|{64 << 20}|unset|red"]
    assert lines[2:6] == ["red", "hunter2", 'app="all"', "prepared"]
    assert lines[6].startswith("-rw-------")
    assert lines[7] == "0"


async def test_what_arguments_and_volumes_refer_to(cluster: Cluster, image: str) -> None:
    await cluster.apply(
        {"kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"COLOR": "red"}},
        {"kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"password": "hunter2$(WHO)"}},
    )
    env = [
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "password"}}},
        {"name": "UNLIMITED", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "0"}}},
    ]
    cpu = {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}
    sources: list[Json] = [
        {"secret": {"name": "sec"}},
        {"downwardAPI": {"items": [{"path": "cpu", "resourceFieldRef": cpu}]}},
        {"serviceAccountToken": {"path": "token"}},
    ]
    volumes: list[Json] = [
        {"name": "all", "projected": {"sources": sources, "defaultMode": 0o400}},
        {"name": "data", "emptyDir": {}},
    ]
    mounts = [
        {"name": "all", "mountPath": "/all"},
        {"name": "data", "mountPath": "/data"},
        {"name": "data", "mountPath": "/own", "subPathExpr": "$(WHO)"},
    ]
    script = 'echo "$0 $1"; test "$UNLIMITED" -gt 1000000 && echo much; cat /all/cpu /all/password; echo; ls /data'
    body = pod("refer", image, script, args=["$(PASSWORD)", "$(COLOR)$(NONE)"], env=env, volumeMounts=mounts)
    # A user who is not root reads what only its owner may: as a member of the group that has the volumes.
    body["spec"] |= {"volumes": volumes, "securityContext": {"runAsUser": 1000, "fsGroup": 2000}}
    body["spec"]["containers"][0] |= {
        "resources": {"limits": {"cpu": "500m"}},
        "envFrom": [{"configMapRef": {"name": "conf"}}],
    }
    await cluster.apply(body)
    await cluster.until("pods", "refer", ended)
    lines = (await cluster.kubectl("logs", "refer")).splitlines()
    assert lines == ["hunter2$(WHO) red$(NONE)", "much", "500hunter2$(WHO)", "refer"]
    assert "TokenExpirationSeconds:  3600" in await cluster.kubectl("describe", "pod", "refer")


async def test_no_secret_is_in_a_command_line(cluster: Cluster, image: str) -> None:
    await cluster.apply(
        {"kind": "Secret", "metadata": {"name": "sec"}, "stringData": {"one": "t0p-s3cret", "two": "t0p\ns3cret"}}
    )
    env = [
        {"name": name.upper(), "valueFrom": {"secretKeyRef": {"name": "sec", "key": name}}} for name in ("one", "two")
    ]
    seen = asyncio.create_task(_command_lines())
    await cluster.apply(pod("quiet", image, 'echo "$ONE $TWO"', env=env))
    await cluster.until("pods", "quiet", ended)
    seen.cancel()
    lines = await asyncio.gather(seen, return_exceptions=True)
    assert _LINES
    assert not [line for line in _LINES if b"t0p" in line], lines
    assert "t0p-s3cret" in await cluster.kubectl("logs", "quiet")


_LINES: set[bytes] = set()


async def _command_lines() -> None:
    while True:
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = place.read_bytes()
            except OSError:
                continue
            if b"podman" in line or b"docker" in line or b"conmon" in line:
                _LINES.add(line)
        await asyncio.sleep(0.005)


async def test_containers_of_a_pod_share_their_network(cluster: Cluster, image: str) -> None:
    server = {
        "name": "server",
        "image": image,
        "command": ["sh", "-c", "echo hello > /tmp/index.html; exec httpd -f -p 127.0.0.1:8000 -h /tmp"],
    }
    ask = "until wget -qO- http://127.0.0.1:8000/; do sleep 0.1; done"
    await cluster.apply(pod("pair", image, ask, spec={"containers": [server]}))

    def asked(value: Json) -> bool:
        statuses = {each["name"]: each["state"] for each in value.get("status", {}).get("containerStatuses", [])}
        return "terminated" in statuses.get("main", {})

    found = await cluster.until("pods", "pair", asked)
    assert "hello" in await cluster.kubectl("logs", "pair", "-c", "main")
    assert found["status"]["phase"] == "Running"
    problem = await cluster.kubectl("get", "--raw", cluster.api.path("v1", "pods", "pair", "log"), ok=False)
    assert "a container name must be specified for pod pair, choose one of: [main server]" in problem


async def test_exit_codes_and_restarts(cluster: Cluster, image: str) -> None:
    await cluster.apply(pod("fails", image, "echo oops; exit 7"))
    found = await cluster.until("pods", "fails", ended)
    assert found["status"]["phase"] == "Failed"
    terminated = found["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (7, "Error")
    await cluster.apply(pod("loops", image, "echo again; exit 1", spec={"restartPolicy": "Always"}))

    def waits(value: Json) -> bool:
        return waiting_for(value) == "CrashLoopBackOff"

    found = await cluster.until("pods", "loops", waits)
    assert found["status"]["containerStatuses"][0]["restartCount"] >= 1
    assert found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    assert "again" in await cluster.kubectl("logs", "loops", "--previous")
    assert "CrashLoopBackOff" in await cluster.kubectl("get", "pods")


async def test_a_liveness_probe_restarts(cluster: Cluster, image: str) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}, "periodSeconds": 1, "failureThreshold": 1}
    body = pod(
        "ill", image, "sleep 1; echo > /tmp/ill; sleep 300", livenessProbe=probe, spec={"restartPolicy": "Always"}
    )
    await cluster.apply(body)
    await cluster.until(
        "pods", "ill", lambda it: it.get("status", {}).get("containerStatuses", [{}])[0].get("restartCount")
    )
    assert "failed liveness probe, will be restarted" in await cluster.kubectl("describe", "pod", "ill")


async def test_another_image_in_place_starts_the_container_again(cluster: Cluster, image: str) -> None:
    tag = await asyncio.create_subprocess_exec(find(), "tag", image, f"{image}-other")
    assert await tag.wait() == 0
    await cluster.apply(pod("renewed", image, "exec sleep 300"))
    await cluster.until("pods", "renewed", running)
    body = pod("renewed", f"{image}-other", "exec sleep 300")
    await cluster.apply(body)
    found = await cluster.until(
        "pods", "renewed", lambda it: it["status"]["containerStatuses"][0]["restartCount"] == 1 and running(it)
    )
    assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
    assert found["status"]["containerStatuses"][0]["image"] == f"{image}-other"
    assert "definition changed, will be restarted" in await cluster.kubectl("describe", "pod", "renewed")


async def test_a_startup_probe_holds_the_others_back(cluster: Cluster, image: str) -> None:
    body = pod(
        "slow",
        image,
        "sleep 2; exec httpd -f -p 8000 -h /tmp",
        startupProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1, "failureThreshold": 30},
        livenessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1, "failureThreshold": 1},
    )
    await cluster.apply(body)
    early = await cluster.until("pods", "slow", running)
    assert early["status"]["containerStatuses"][0]["started"] is False
    found = await cluster.until("pods", "slow", lambda it: it["status"]["containerStatuses"][0]["ready"])
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0


async def test_a_pod_is_stopped_gently_and_then_not(cluster: Cluster, image: str) -> None:
    gentle = pod("gentle", image, 'trap "echo bye; exit 0" TERM; echo hello; while :; do sleep 0.1; done')
    gentle["spec"]["terminationGracePeriodSeconds"] = 20
    stubborn = pod("stubborn", image, 'trap "" TERM; while :; do sleep 0.1; done')
    hooked = pod(
        "hooked",
        image,
        "exec sleep 300",
        lifecycle={"preStop": {"exec": {"command": ["sh", "-c", "echo x > /out/pre"]}}},
    )
    hooked["spec"]["volumes"] = [{"name": "out", "hostPath": {"path": str(cluster.sandbox.kubeconfig.parent)}}]
    hooked["spec"]["containers"][0]["volumeMounts"] = [{"name": "out", "mountPath": "/out"}]
    for body in (gentle, stubborn, hooked):
        await cluster.apply(body)
    for name in ("gentle", "stubborn", "hooked"):
        await cluster.until("pods", name, running)
    follow = await cluster.kubectl_process("logs", "--follow", "gentle")
    assert follow.stdout is not None
    async with asyncio.timeout(20):
        assert await follow.stdout.readline() == b"hello\n"
    loop = asyncio.get_running_loop()
    started = loop.time()
    for name in ("gentle", "stubborn", "hooked"):
        await cluster.api.delete(cluster.api.path("v1", "pods", name))
    terminating = (await cluster.get("pods", "stubborn"))["metadata"]
    assert terminating["deletionGracePeriodSeconds"] == 1
    await cluster.gone("pods", "gentle")
    assert loop.time() - started < 15, "SIGTERM was not delivered"
    await cluster.gone("pods", "stubborn")
    await cluster.gone("pods", "hooked")
    said, _ = await follow.communicate()
    assert said == b"bye\n"
    assert (cluster.sandbox.kubeconfig.parent / "pre").exists()


async def test_what_is_missing_is_waited_for(cluster: Cluster, image: str) -> None:
    env = [{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "k"}}}]
    await cluster.apply(pod("patient", image, 'echo "got $K"', env=env))

    def waits(value: Json) -> bool:
        return waiting_for(value) == "CreateContainerConfigError"

    found = await cluster.until("pods", "patient", waits)
    assert 'configmap "later" not found' in found["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
    await cluster.apply({"kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"k": "it"}})
    await cluster.until("pods", "patient", ended)
    assert await cluster.kubectl("logs", "patient") == "got it\n"


async def test_images_are_pulled_with_the_pod_s_login(cluster: Cluster, tmp_path: Path) -> None:
    async with TestRegistry(tmp_path) as registry:
        await registry.push_image("sandbox/pulled", "1")
        reference = f"{registry.host}/sandbox/pulled:1"
        plain = pod("anonymous", reference, "echo pulled")
        plain["spec"]["restartPolicy"] = "Always"
        await cluster.apply(plain)

        def waits(value: Json) -> bool:
            return waiting_for(value) == "ImagePullBackOff"

        found = await cluster.until("pods", "anonymous", waits)
        assert found["status"]["phase"] == "Pending"
        await cluster.api.delete(cluster.api.path("v1", "pods", "anonymous"), gracePeriodSeconds="0")
        login = base64.b64encode(f"{registry.username}:{registry.password}".encode()).decode()
        config = json.dumps({"auths": {registry.host: {"auth": login}}})
        await cluster.apply({"kind": "Secret", "metadata": {"name": "login"}, "type": "kubernetes.io/dockerconfigjson",
                             "stringData": {".dockerconfigjson": config}})  # fmt: skip
        body = pod("known", reference, "echo pulled", spec={"imagePullSecrets": [{"name": "login"}]})
        await cluster.apply(body)
        found = await cluster.until("pods", "known", ended)
        assert found["status"]["phase"] == "Succeeded", found["status"]
        assert "@sha256:" in found["status"]["containerStatuses"][0]["imageID"]
        assert await cluster.kubectl("logs", "known") == "pulled\n"
