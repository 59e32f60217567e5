"""Between commits the cluster stays what git says: repaired within a second, blamed, and without fighting anybody."""

import asyncio
import base64
import contextlib
import http.server
import json
import os
import re
import signal
import socket
import ssl
import statistics
import threading
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from tests.cluster import Cluster, OwnCluster
from tests.contract.client import MERGE, STRATEGIC, Access, Api
from tests.e2e import outside
from tests.e2e.world import SERVICE, Json, Project, World, eventually

pytestmark = pytest.mark.e2e

CONFIGS = 40
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@contextlib.asynccontextmanager
async def api_of(cluster: Cluster, namespace: str) -> AsyncGenerator[Api]:
    """A client as the cluster's administrator, in a namespace that exists."""
    access = Access.read(cluster.kubeconfig)
    connector = aiohttp.TCPConnector(ssl=access.tls)
    async with aiohttp.ClientSession(headers=access.headers, connector=connector) as session:
        yield Api(session, access.url, namespace)
    await asyncio.sleep(0.1)  # aiohttp closes TLS connections in the loop's next turns


def config(name: str, **data: str) -> str:
    obj = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"tier": "test"}},
        "data": data,
    }
    return json.dumps(obj) + "\n"


def deployment(name: str, *, replicas: int | None, labels: Json | None = None) -> str:
    """Pods that do nothing and are ready at once."""
    spec: Json = {
        "revisionHistoryLimit": 5,
        "selector": {"matchLabels": {"app": name}},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": {"app": name, **(labels or {})}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "pause", "image": "pause:latest", "imagePullPolicy": "IfNotPresent"}],
            },
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}) + "\n"


def push(project: Project, files: dict[str, str]) -> str:
    for name, text in files.items():
        project.repository.write(f"manifests/{name}.json", text)
    sha = project.repository.commit("Change what should be")
    project.repository.push()
    return sha


def following(project: Project, files: dict[str, str], **sync: Any) -> str:
    sha = push(project, files)
    project.follow(interval="2h" if not sync.pop("poll", False) else "5s", sync=sync)
    project.wait_for(sha)
    return sha


def repairs(project: Project, reason: str = "DriftRepaired") -> dict[str, list[str]]:
    """Notes of the Events about drift, by the object's name, oldest first."""
    listed = json.loads(project.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
    found: dict[str, list[str]] = {}
    for each in sorted((each for each in listed if each["reason"] == reason), key=lambda each: each["eventTime"]):
        found.setdefault(each["regarding"]["name"], []).append(each["note"])
    return found


def written_by_us(world: World, namespace: str) -> list[Json]:
    """Audit events of every write of gitsync's in a namespace: objects, Events, status, Record."""
    return [
        event
        for event in world.cluster.audit_events()
        if "serviceaccount:gitsync:gitsync" in event["user"]["username"]
        and event.get("objectRef", {}).get("namespace") == namespace
        and event["stage"] == "ResponseComplete"
    ]


# ---------------------------------------------------------------- edits come back


class Returns:
    """Watches the ConfigMaps of a namespace and tells when one is again as git has it."""

    def __init__(self, api: Api, expected: Callable[[str, Json], bool]) -> None:
        self._api, self._expected = api, expected
        self._back: dict[str, asyncio.Event] = {}

    async def run(self) -> None:
        async with self._api.watch(self._api.path("v1", "configmaps"), timeoutSeconds="280") as events:
            async for event in events:
                name = event["object"]["metadata"]["name"]
                if event["type"] != "DELETED" and name in self._back and self._expected(name, event["object"]):
                    self._back[name].set()

    async def after(self, name: str, strike: Callable[[], Any]) -> float:
        """Seconds from the answer to the strike until the object is as it should be."""
        await strike()
        self._back[name] = asyncio.Event()  # what came before the answer is not counted
        began = time.perf_counter()
        live = await self._api.get(self._api.path("v1", "configmaps", name))
        if live.code != 200 or not self._expected(name, live.body):
            async with asyncio.timeout(30):
                await self._back[name].wait()
        return time.perf_counter() - began


def test_an_edit_a_removed_label_and_a_deletion_come_back_within_a_second(world: World) -> None:
    names = [f"config-{number}" for number in range(CONFIGS)]

    async def strike_all() -> list[float]:
        async with api_of(world.cluster, project.namespace) as api:

            def path(name: str) -> str:
                return api.path("v1", "configmaps", name)

            async def edit(name: str) -> None:
                await api.patch(path(name), {"data": {"key": "theirs"}}, MERGE, fieldManager="kubectl-edit")

            async def unlabel(name: str) -> None:
                await api.patch(
                    path(name), {"metadata": {"labels": {"tier": None}}}, MERGE, fieldManager="kubectl-label"
                )

            async def delete(name: str) -> None:
                await api.delete(path(name))

            def right(name: str, live: Json) -> bool:
                labels: Json = live["metadata"].get("labels") or {}
                return live["data"] == {"key": name} and labels.get("tier") == "test"

            returns = Returns(api, right)
            watching = asyncio.create_task(returns.run())
            await asyncio.sleep(0.5)
            try:
                return [
                    await returns.after(name, lambda strike=strike, name=name: strike(name))
                    for strike in (edit, unlabel, delete)
                    for name in names
                ]
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    with world.project(name="settings") as project:
        following(project, {name: config(name, key=name) for name in names})
        seconds = sorted(asyncio.run(strike_all()))
        print(f"median {statistics.median(seconds):.3f} s, the slowest {seconds[-1]:.3f} s of {len(seconds)}")
        assert seconds[int(len(seconds) * 0.99)] < 1

        notes = eventually(lambda: all_told(repairs(project)), "each repair is told in an Event", seconds=20)
        for name in names:
            edited, unlabelled, deleted = notes[name]
            assert re.search(rf"data\.key \(kubectl-edit at {TIME}\)", edited), edited
            assert re.search(rf"metadata\.labels\.tier \(removed, seen at {TIME}\)", unlabelled), unlabelled
            assert re.search(rf"was deleted, seen at {TIME}", deleted), deleted
        logged = [line for line in project.log() if line["message"] == "drift repaired"]
        assert len(logged) == 3 * CONFIGS
        assert all(re.search(TIME, line["what"]) for line in logged)


def all_told(notes: dict[str, list[str]]) -> dict[str, list[str]] | None:
    return notes if len(notes) == CONFIGS and all(len(each) == 3 for each in notes.values()) else None


def nothing_terminates(world: World, seconds: float = 90) -> None:
    """Until the namespaces of earlier tests are gone."""
    ends = time.monotonic() + seconds
    while "Terminating" in (phases := world.cluster.kubectl("get", "namespaces", "-o", "jsonpath={..status.phase}")):
        assert time.monotonic() < ends, phases
        time.sleep(0.5)


def test_what_others_write_into_a_status_costs_no_request(world: World) -> None:
    async def write_statuses() -> dict[str, float]:
        async with api_of(world.cluster, project.namespace) as api:

            async def requests() -> dict[str, float]:
                text = (await api.get("/metrics")).text
                found = re.findall(r'apiserver_request_total\{(.*resource="deployments".*)\} (\S+)', text)
                return {labels: float(value) for labels, value in found if 'verb="WATCH"' not in labels}

            path = api.path("apps/v1", "deployments", "web", "status")
            before = await requests()
            for number in range(50):
                condition = {"type": "Foreign", "status": "True", "reason": f"Number{number}"}
                answer = await api.patch(path, {"status": {"conditions": [condition]}}, STRATEGIC)
                assert answer.code == 200, answer.text
            await asyncio.sleep(2)
            after = await requests()
            return {
                labels: value - before.get(labels, 0)
                for labels, value in after.items()
                if value != before.get(labels, 0)
            }

    with world.project(name="web") as project:
        following(project, {"web": deployment("web", replicas=0)})
        nothing_terminates(world)  # the namespace controller lists Deployments, too, and the metric has no user
        written = len(written_by_us(world, project.namespace))
        counted = asyncio.run(write_statuses())
        others = {
            labels: count
            for labels, count in counted.items()
            if 'subresource="status"' not in labels  # ours, and the deployment controller's
        }
        assert not others, "requests about Deployments beside the writes of their status"
        assert sum(counted.values()) >= 50
        assert len(written_by_us(world, project.namespace)) == written


# ---------------------------------------------------------------- not fighting


def test_an_autoscaler_keeps_what_it_chose_and_what_never_scaled_keeps_its_number(world: World) -> None:
    def scaler(name: str, least: int) -> str:
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        spec = {"scaleTargetRef": target, "minReplicas": least, "maxReplicas": 10}
        obj = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": spec,
        }
        return json.dumps(obj) + "\n"

    def replicas() -> dict[str, int]:
        items = json.loads(project.kubectl("get", "deployments", "-o", "json"))["items"]
        return {each["metadata"]["name"]: each["spec"]["replicas"] for each in items}

    with world.project(name="scaled") as project:
        following(project, {name: deployment(name, replicas=3) for name in ("scaled", "steady")}, poll=True)
        # The controller scales what is below the least at once; without metrics it leaves the rest alone.
        sha = push(project, {"scaled-hpa": scaler("scaled", 7), "steady-hpa": scaler("steady", 2)})
        project.wait_for(sha)
        eventually(lambda: replicas() == {"scaled": 7, "steady": 3}, "the autoscaler has scaled to 7", seconds=60)
        asyncio.run(sync_often(project, 100))
        assert replicas() == {"scaled": 7, "steady": 3}
        sha = push(project, {name: deployment(name, replicas=None) for name in ("scaled", "steady")})
        project.wait_for(sha)
        assert replicas() == {"scaled": 7, "steady": 3}
        sha = push(
            project, {name: deployment(name, replicas=None, labels={"new": "yes"}) for name in ("scaled", "steady")}
        )
        project.wait_for(sha)
        assert replicas() == {"scaled": 7, "steady": 3}
        assert repairs(project) == {}


async def sync_often(project: Project, times: int) -> None:
    """Ask for a sync, wait until it is done, and again."""
    async with api_of(project.world.cluster, project.namespace) as api:
        path = api.path("gitsync.dev/v1alpha1", "applications", project.name)
        for number in range(times):
            await api.patch(path, {"metadata": {"annotations": {"gitsync.dev/requestedAt": str(number)}}}, MERGE)
            async with asyncio.timeout(30):
                while (await api.get(path)).body["status"].get("lastHandledReconcileAt") != str(number):
                    await asyncio.sleep(0.02)


def test_an_autoscaler_that_nobody_told_git_of_is_left_alone(world: World) -> None:
    def replicas() -> str:
        return project.kubectl("get", "deployment", "web", "-o", "jsonpath={.spec.replicas}")

    with world.project(name="web") as project:
        following(project, {"web": deployment("web", replicas=1)})
        project.kubectl("autoscale", "deployment", "web", "--min=2", "--max=3", "--cpu=80%")
        eventually(lambda: replicas() == "2", "the autoscaler has scaled to 2", seconds=60)
        time.sleep(3)
        assert replicas() == "2"
        assert repairs(project) == {}
        project.kubectl("set", "env", "deployment/web", "KEY=theirs", "--field-manager=kubectl-set")
        project.kubectl("patch", "deployment", "web", "-p", '{"spec": {"revisionHistoryLimit": 9}}')
        eventually(lambda: "web" in repairs(project), "the edit beside it is repaired")
        (note,) = repairs(project)["web"]
        assert "revisionHistoryLimit (kubectl-patch" in note
        assert "replicas" not in note
        assert replicas() == "2"


def test_a_fight_is_backed_off_and_shown_and_disturbs_nobody_else(world: World) -> None:
    strikes, stop = 0, threading.Event()

    async def fight() -> None:
        nonlocal strikes
        async with api_of(world.cluster, contested.namespace) as api:
            while not stop.is_set():
                body = {"data": {"key": f"theirs {strikes}"}}
                await api.patch(api.path("v1", "configmaps", "contested"), body, MERGE, fieldManager="adversary")
                strikes += 1
                await asyncio.sleep(0.1)

    def strike_quietly() -> float:
        quiet.kubectl("patch", "configmap", "quiet", "-p", '{"data": {"key": "theirs"}}')
        began = time.monotonic()
        eventually(
            lambda: quiet.kubectl("get", "configmap", "quiet", "-o", "jsonpath={.data.key}") == "git",
            "the other Application is repaired",
        )
        return time.monotonic() - began

    with world.project(name="contested") as contested, world.project(name="quiet") as quiet:
        following(contested, {"contested": config("contested", key="git")}, poll=True)
        following(quiet, {"quiet": config("quiet", key="git")})
        written = len(written_by_us(world, contested.namespace))
        with ThreadPoolExecutor() as pool:
            began = time.monotonic()
            fighting = pool.submit(lambda: asyncio.run(fight()))
            try:
                stalled = eventually(
                    lambda: each if (each := contested.condition("Stalled"))["status"] == "True" else None,
                    "the fight is shown",
                )
                disturbed = [strike_quietly() for _ in range(3)]
                commit = push(quiet, {"quiet": config("quiet", key="git", more="of it")})
                quiet.kubectl("annotate", "applications.gitsync.dev", "quiet", "gitsync.dev/requestedAt=now")
                quiet.wait_for(commit, seconds=30)
                time.sleep(max(0, 28 - (time.monotonic() - began)))
            finally:
                stop.set()
                fighting.result()
        eventually(lambda: contested.condition("Ready")["status"] == "True", "peace is shown", seconds=60)
        writes = written_by_us(world, contested.namespace)[written:]
        print(f"{strikes} strikes, {len(writes)} writes of ours: {[each['objectRef']['resource'] for each in writes]}")
        assert strikes > 100
        assert 4 <= len(writes) <= 20
        assert stalled["reason"] == "Fight"
        assert "gitsync" in stalled["message"]
        assert "data.key (adversary)" in stalled["message"]
        assert max(disturbed) < 2, "kubectl and all"
        assert quiet.condition("Stalled")["status"] == "False"
        assert contested.kubectl("get", "configmap", "contested", "-o", "jsonpath={.data.key}") == "git"


class Webhook(http.server.BaseHTTPRequestHandler):
    """Rewrites a field that git sets in Deployments and ConfigMaps, and puts a sidecar into pods."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        obj: Json = request["object"]
        patch: list[Json] = []
        if obj["kind"] == "ConfigMap":
            patch = [{"op": "replace", "path": "/data/key", "value": str(obj["data"].get("key", "")).upper()}]
        elif obj["kind"] == "Deployment":
            patch = [{"op": "replace", "path": "/spec/revisionHistoryLimit", "value": 3}]
        elif all(each["name"] != "sidecar" for each in obj["spec"]["containers"]):
            sidecar = {"name": "sidecar", "image": "pause:latest", "imagePullPolicy": "IfNotPresent"}
            patch = [{"op": "add", "path": "/spec/containers/-", "value": sidecar}]
        response: Json = {"uid": request["uid"], "allowed": True}
        if patch:
            response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        body = json.dumps(
            {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass


@contextmanager
def mutating(world: World, namespace: str) -> Generator[None]:
    """A webhook of the cluster for one namespace, served by this process with the cluster's own certificate."""
    pki = world.cluster.work_dir / "pki"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "serving.crt", pki / "serving.key")
    server = http.server.ThreadingHTTPServer((world.cluster.node_ip, 0), Webhook)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, name="webhook")
    thread.start()
    hook = {
        "name": "mutate.test.gitsync.dev",
        "clientConfig": {
            "url": f"https://{world.cluster.node_ip}:{server.server_port}/",
            "caBundle": base64.b64encode((pki / "ca.crt").read_bytes()).decode(),
        },
        "rules": [
            {"operations": ["CREATE", "UPDATE"], "apiGroups": ["", "apps"], "apiVersions": ["v1"],
             "resources": ["configmaps", "deployments", "pods"]}
        ],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "matchConditions": [{"name": "ours", "expression": "object.kind != 'ConfigMap' || has(object.data.key)"}],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
    }  # fmt: skip
    kind = "MutatingWebhookConfiguration"
    obj = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": namespace},
        "webhooks": [hook],
    }
    world.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(obj))
    try:
        yield
    finally:
        world.cluster.kubectl("delete", "mutatingwebhookconfiguration", namespace)
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_a_webhook_makes_of_it_is_no_drift_even_after_a_restart(world: World) -> None:
    def quiet(seconds: float) -> bool:
        before = project.writes()
        time.sleep(seconds)
        return project.writes() == before

    def live(kind: str, name: str, path: str) -> str:
        return project.kubectl("get", kind, name, "-o", f"jsonpath={{{path}}}")

    with world.project(name="mutated") as project, mutating(world, project.namespace):
        time.sleep(1)  # until the API server calls it
        following(
            project,
            {"web": deployment("web", replicas=1), "settings": config("settings", key="git", more="x")},
            poll=True,
        )
        assert live("configmap", "settings", ".data.key") == "GIT"
        assert live("deployment", "web", ".spec.revisionHistoryLimit") == "3"
        pods = json.loads(project.kubectl("get", "pods", "-o", "json"))["items"]
        assert {each["name"] for each in pods[0]["spec"]["containers"]} == {"pause", "sidecar"}
        assert quiet(6)

        container = {"name": "injected", "image": "pause:latest", "imagePullPolicy": "IfNotPresent"}
        patch = json.dumps({"spec": {"template": {"spec": {"containers": [container]}}}})
        project.kubectl("patch", "deployment", "web", "-p", patch)  # foreign, into the template itself
        assert quiet(6)
        assert "injected" in live("deployment", "web", ".spec.template.spec.containers[*].name")

        project.kubectl("patch", "configmap", "settings", "-p", '{"data": {"more": "theirs"}}')
        eventually(lambda: live("configmap", "settings", ".data.more") == "x", "real drift is repaired")
        (note,) = eventually(lambda: repairs(project).get("settings"), "the repair is told")
        assert "data.more (kubectl-patch" in note
        assert "data.key" not in note, "what the webhook did is nobody's drift"

        told, writes = repairs(project), project.writes()
        world.cluster.kubectl("-n", SERVICE, "rollout", "restart", f"deployment/{SERVICE}")
        world.rollout(SERVICE, SERVICE)
        project.kubectl("annotate", "applications.gitsync.dev", "mutated", "gitsync.dev/requestedAt=restarted")
        eventually(
            lambda: project.status().get("lastHandledReconcileAt") == "restarted", "it has looked again", seconds=60
        )
        assert quiet(6)
        assert (repairs(project), project.writes()) == (told, writes)
        assert project.condition("Ready")["status"] == "True"
        assert "injected" in live("deployment", "web", ".spec.template.spec.containers[*].name")
        project.kubectl("patch", "configmap", "settings", "-p", '{"data": {"more": "theirs again"}}')
        eventually(lambda: live("configmap", "settings", ".data.more") == "x", "drift is seen after the restart")


def test_drift_may_be_reported_only_or_be_nobodys_concern(world: World) -> None:
    def value() -> str:
        return project.kubectl("get", "configmap", "settings", "-o", "jsonpath={.data.key}")

    def strike(text: str) -> None:
        project.kubectl("patch", "configmap", "settings", "-p", json.dumps({"data": {"key": text}}))

    with world.project(name="settings") as project:
        following(project, {"settings": config("settings", key="git")}, selfHeal="detect")
        strike("theirs")
        told = eventually(lambda: repairs(project, "DriftDetected").get("settings"), "it is reported")
        assert re.search(rf"data\.key \(kubectl-patch at {TIME}\)", told[0])
        ready = eventually(
            lambda: each if (each := project.condition("Ready"))["reason"] == "OutOfSync" else None, "status says so"
        )
        assert re.search(rf"data\.key \(kubectl-patch at {TIME}\)", ready["message"])
        assert (project.status()["sync"], value()) == ("OutOfSync", "theirs")
        strike("git")
        eventually(lambda: project.status()["sync"] == "Synced", "that it is right again is seen")

        project.follow(interval="2h", sync={"selfHeal": "off"})
        eventually(
            lambda: project.status()["observedGeneration"] == project.application()["metadata"]["generation"],
            "it is read",
        )
        time.sleep(1)
        strike("theirs")
        time.sleep(3)
        assert (project.status()["sync"], value()) == ("Synced", "theirs")
        assert repairs(project) == {}

        project.follow(interval="2h", sync={"selfHeal": "repair"})
        eventually(lambda: value() == "git", "who heals again, heals what is there")


def test_another_tool_is_named_before_the_first_write(world: World) -> None:
    with world.project(name="settings") as project:
        theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": "theirs"}}
        mark = {"labels": {"kustomize.toolkit.fluxcd.io/name": "shop"}}
        body = json.dumps(theirs | {"metadata": {"name": "settings"} | mark})
        project.kubectl("apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-", stdin=body)
        following(project, {"settings": config("settings", key="git")})
        (finding,) = [each for each in project.status()["findings"] if each["rule"] == "other-tool"]
        assert "Flux keeps it, too (kustomize.toolkit.fluxcd.io/name, kustomize-controller)" in finding["message"]
        (event,) = [each for each in project.events() if each["reason"] == "OtherTool"]
        first_write = next(
            each
            for each in world.cluster.audit_events()
            if each["verb"] == "patch"
            and each["objectRef"].get("namespace") == project.namespace
            and each["objectRef"]["resource"] == "configmaps"
            and "gitsync-deployer" in each.get("impersonatedUser", {}).get("username", "")
            and "dryRun" not in each["requestURI"]
        )
        assert event["eventTime"] < first_write["requestReceivedTimestamp"]


# ---------------------------------------------------------------- the API server comes and goes


def compact(cluster: Cluster) -> None:
    """Make etcd forget every version but the present one, as it does by itself every five minutes."""

    def etcd(path: str, body: Json) -> Json:
        request = urllib.request.Request(f"http://127.0.0.1:2379/v3/kv/{path}", json.dumps(body).encode())
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            return json.load(answer)

    present = etcd("range", {"key": "AA==", "limit": 1})["header"]["revision"]
    etcd("compaction", {"revision": present, "physical": True})


def test_a_restarted_api_server_and_a_compacted_etcd_hide_nothing(world: World) -> None:
    names = [f"config-{number}" for number in range(8)]
    cluster = cast(OwnCluster, world.cluster)

    def live() -> dict[str, tuple[str, str]]:
        items = json.loads(project.kubectl("get", "configmaps", "-l", "tier=test", "-o", "json"))["items"]
        return {each["metadata"]["name"]: (each["metadata"]["uid"], each["data"]["key"]) for each in items}

    right = dict.fromkeys(names, "git")
    with world.project(name="settings") as project:
        following(project, {name: config(name, key="git") for name in names})
        before = live()
        for how in ("restarted", "compacted"):
            with stopped(gitsync_process(cluster)):  # it cannot see what happens
                project.kubectl("patch", "configmap", names[0], "-p", json.dumps({"data": {"key": how}}))
                project.kubectl("delete", "configmap", names[1])
                if how == "compacted":
                    for number in range(20):
                        project.kubectl("annotate", "configmap", names[2], "--overwrite", f"number={number}")
                    compact(cluster)
                cluster.restart_apiserver()
            eventually(
                lambda: {name: key for name, (_, key) in live().items()} == right, "all is as in git", seconds=60
            )
        after = live()
        assert {name for name in names if after[name][0] != before[name][0]} == {names[1]}, "deleted and made again"
        deletions = [each for each in project.writes() if each[0] == "delete"]
        assert not deletions


def gitsync_process(cluster: OwnCluster) -> int:
    """The process of the service, by its command line and the cluster's own cgroup."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().split(b"\0")
                service = any(each.endswith(b"/gitsync") for each in line[:2]) and b"run" in line[:4]
                if service and f"/{cluster.name}/" in (entry / "cgroup").read_text():
                    return int(entry.name)
    raise AssertionError("the service does not run")


@contextmanager
def stopped(pid: int) -> Generator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Hose:
    """A TCP proxy that can let what flows through it run dry, while new connections pass: half a network failure."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._dry: list[threading.Event] = []
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                dry = threading.Event()
                self._dry.append(dry)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, dry), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, dry: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if dry.is_set():
                    threading.Event().wait()  # neither data nor an end
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def run_dry(self) -> None:
        """Nothing more comes through the connections that are open."""
        for each in self._dry:
            each.set()

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def test_a_watch_that_falls_silent_is_noticed_within_a_minute(world: World, tmp_path: Path) -> None:
    cluster, namespace = world.cluster, f"silent-{time.time_ns() % 10**6}"
    world.cluster.kubectl("-n", SERVICE, "scale", f"deployment/{SERVICE}", "--replicas=0")
    hose = Hose((cluster.node_ip, 6443))
    try:
        kubeconfig = tmp_path / "kubeconfig"
        text = cluster.kubeconfig.read_text()
        kubeconfig.write_text(text.replace(f"https://{cluster.node_ip}:6443", f"https://127.0.0.1:{hose.port}"))
        outside.prepare_namespace(cluster, world.host, namespace)
        repository = outside.Repository.create(world.host, f"{namespace}/silent", tmp_path / "clone")
        repository.write("manifests/settings.json", config("settings", key="git"))
        sha = repository.commit("Say git")
        repository.push()
        environment = {"KUBECONFIG": str(kubeconfig), "GITSYNC_INTERVAL": "7200"}
        with outside.Follower(
            cluster, tmp_path / "work", url=repository.url, namespace=namespace, environment=environment
        ) as follower:
            follower.served(sha, seconds=60)

            def value() -> str:
                return cluster.kubectl("-n", namespace, "get", "configmap", "settings", "-o", "jsonpath={.data.key}")

            time.sleep(2)
            hose.run_dry()
            silent = time.monotonic()
            cluster.kubectl("-n", namespace, "patch", "configmap", "settings", "-p", '{"data": {"key": "theirs"}}')
            blind = eventually(lambda: told(follower.log(), "a watch is blind"), "it is noticed", seconds=60)
            noticed = time.monotonic() - silent
            assert {line["reason"] for line in blind} == {"Silent"}
            eventually(lambda: value() == "git", "what was not seen is repaired then", seconds=15)
            assert noticed < 60
            eventually(lambda: told(follower.log(), "a watch sees again"), "that it sees again is told")
            assert follower.metric("gitsync_watch_blind_seconds") == 0
    finally:
        hose.close()
        world.cluster.kubectl("delete", "namespace", namespace, "--wait=false", check=False)
        world.cluster.kubectl("-n", SERVICE, "scale", f"deployment/{SERVICE}", "--replicas=1")
        world.rollout(SERVICE, SERVICE)


def told(log: Iterable[Json], message: str) -> list[Json]:
    return [line for line in log if line.get("message") == message]
