"""A cluster whose node is the test: pods become what a test says that they are."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gitsync.cluster.cache import Observed, Watcher
from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError
from gitsync.model import Change, Json, Manifest, ObjectRef, Origin
from gitsync.rollout.apply import label
from gitsync.rollout.target import Target
from tests.unit.cluster.conftest import cluster, namespace

__all__ = ["cluster", "namespace"]

IP = itertools.count(1)
NODE = "test-node"


def ready(pod: Json) -> Json:
    return status_of(pod, ready=True)


def status_of(pod: Json, *, ready: bool, **container: Any) -> Json:
    """A status as a kubelet writes it: one started container, ready or not, or as ``container`` says."""
    state: Json = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    told: Json = {"restartCount": 0, "state": state, "started": True, "ready": ready} | container
    names = [each["name"] for each in pod["spec"]["containers"]]
    number = next(IP)
    flag = "True" if ready else "False"
    return {
        "phase": "Running",
        "podIP": f"10.99.{number // 250}.{number % 250 + 1}",
        "podIPs": [{"ip": f"10.99.{number // 250}.{number % 250 + 1}"}],
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": "True"},
            {"type": "ContainersReady", "status": flag},
            {"type": "Ready", "status": flag},
        ],
        "containerStatuses": [{"name": name, "image": "x", "imageID": "y", **told} for name in names],
    }


class Node:
    """Gives each pod of the namespace the status that ``decide`` returns for it (``None``: none)."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.decide: Callable[[Json], Json | None] = ready
        self.cluster, self.namespace = cluster, namespace
        self.queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.told: dict[str, Json | None] = {}

    def observe(self, seen: Observed) -> None:
        if seen.entry is not None:
            self.queue.put_nowait(seen.key)

    async def run(self) -> None:
        await self.cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        resource = await self.cluster.resource("", "v1", "Pod")
        watcher = Watcher(self.cluster, resource, self.observe, namespace=self.namespace)
        async with asyncio.TaskGroup() as group:
            group.create_task(watcher.run())
            while True:
                key = await self.queue.get()
                with contextlib.suppress(GitsyncError):
                    await self.tell(resource.ref(*key))

    async def tell(self, ref: ObjectRef) -> None:
        pod = await self.cluster.get(ref)
        if pod is None or pod["spec"].get("nodeName") != NODE:
            return
        if "deletionTimestamp" in pod["metadata"]:  # as a kubelet does once the containers have ended
            path = (await self.cluster.resource_of(ref)).path(ref.namespace, ref.name)
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
            await self.cluster._call("DELETE", path, sent=options, doing="ending")
            return
        if pod["metadata"]["uid"] in self.told:
            return
        status = self.decide(pod)
        self.told[pod["metadata"]["uid"]] = status
        if status is not None:
            await self.cluster.apply(body(ref) | {"status": status}, subresource="status", manager="node")


def body(ref: ObjectRef, **fields: Any) -> Json:
    metadata = {"name": ref.name} | ({"namespace": ref.namespace} if ref.namespace else {})
    return {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, **fields}


@pytest.fixture
def target(cluster: Cluster, namespace: str) -> Target:
    application = ObjectRef(
        group="gitsync.dev", version="v1alpha1", kind="Application", namespace=namespace, name="shop"
    )
    return Target(cluster=cluster, application=application)


@pytest.fixture
async def node(cluster: Cluster, namespace: str) -> AsyncIterator[Node]:
    made = Node(cluster, namespace)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def manifest(target: Target, obj: Json, *, line: int = 1) -> Manifest:
    """As the pipeline hands it over: with a namespace where one belongs, and labelled."""
    plain = Manifest(
        ref=ObjectRef.of(obj), object=obj, origin=Origin(repository="shop", sha="abc1234", file="a.yaml", line=line)
    )
    return label(plain, target.application)


def change(target: Target, obj: Json, action: Any = "create") -> Change:
    return Change(action=action, manifest=manifest(target, obj))


def deployment(
    namespace: str, name: str = "web", *, image: str = "web:1", replicas: int | None = 1, deadline: int = 60
) -> Json:
    container: Json = {"name": "web", "image": image, "readinessProbe": {"httpGet": {"path": "/", "port": 80}}}
    spec: Json = {
        "selector": {"matchLabels": {"app": name}},
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": deadline,
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, "nodeName": NODE},
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def service(namespace: str, name: str = "web") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    }


def config_map(namespace: str, name: str, **data: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }
