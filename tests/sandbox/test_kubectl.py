"""A person with kubectl: the commands that the sandbox promises, and helpful words for what it does not have."""

import json
from typing import Any, cast

import pytest
import yaml

from tests.sandbox.conftest import Cluster, deployment, service

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_kubectl_works(cluster: Cluster, image: str) -> None:
    body = deployment("web", image, "echo listening; exec httpd -f -p 8000 -h /tmp", replicas=2)
    objects = [{"apiVersion": "apps/v1"} | body, {"apiVersion": "v1"} | service("web", 18300, 8000)]
    manifest = yaml.safe_dump_all(objects)
    said = await cluster.kubectl("apply", "--server-side", "-f", "-", stdin=manifest)
    assert "deployment.apps/web serverside-applied" in said
    assert "successfully rolled out" in await cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    table = await cluster.kubectl("get", "deployment,replicaset,pod,service", "-o", "wide")
    assert "2/2" in table
    assert table.count("1/1     Running") == 2
    assert "18300/TCP" in table
    assert (await cluster.kubectl("get", "pods", "-o", "jsonpath={.items[*].status.phase}")) == "Running Running"
    described = await cluster.kubectl("describe", "deployment", "web")
    assert "2 desired | 2 updated | 2 total | 2 available | 0 unavailable" in described
    assert "Scaled up replica set" in described
    assert "listening" in await cluster.kubectl("logs", "deployment/web")
    assert "labeled" in await cluster.kubectl("label", "deployment/web", "team=a")
    assert "web" in await cluster.kubectl("get", "deployments", "-l", "team=a", "-o", "name")
    assert "annotated" in await cluster.kubectl("annotate", "deployment/web", "note=b")
    assert "scaled" in await cluster.kubectl("scale", "deployment/web", "--replicas=1")
    assert "restarted" in await cluster.kubectl("rollout", "restart", "deployment/web")
    await cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    assert "2" in await cluster.kubectl("rollout", "history", "deployment/web")
    assert "rolled back" in await cluster.kubectl("rollout", "undo", "deployment/web")
    await cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
    assert "condition met" in await cluster.kubectl(
        "wait", "--for=condition=Available", "deployment/web", "--timeout=20s"
    )
    changed = yaml.safe_dump_all([objects[0] | {"metadata": {"name": "web", "labels": {"app": "web", "new": "1"}}}])
    assert "+    new:" in await cluster.kubectl(
        "diff", "--server-side", "--force-conflicts", "-f", "-", stdin=changed, ok=False
    )
    assert "minReadySeconds" in await cluster.kubectl("explain", "deployment.spec")
    assert "Normal" in await cluster.kubectl("get", "events")
    assert "deleted" in await cluster.kubectl("delete", "deployment,service", "web", "--timeout=30s")


async def test_client_side_apply_and_create(cluster: Cluster) -> None:
    config = yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}})
    assert "created" in await cluster.kubectl("apply", "-f", "-", stdin=config)
    assert "unchanged" in await cluster.kubectl("apply", "-f", "-", stdin=config)
    assert "configured" in await cluster.kubectl("apply", "-f", "-", stdin=config.replace("'1'", "'2'"))
    forced = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    assert "serverside-applied" in await cluster.kubectl(*forced, stdin=config)
    assert 'unknown field "dta"' in await cluster.kubectl(
        "create", "-f", "-", stdin=config.replace("data", "dta"), ok=False
    )


async def test_kubectl_create_makes_what_it_says(cluster: Cluster) -> None:
    """It sends protobuf; with ``--dry-run=client`` it prints the same as JSON."""
    for command in (
        "namespace made-by-kubectl",
        "configmap c --from-literal=a=1 --from-literal=empty=",
        "secret generic g --from-literal=a=b=c",
        "secret docker-registry d --docker-server=h --docker-username=u --docker-password=p",
        "serviceaccount s",
        "deployment web --image=a:1 --replicas=0 --port=80 -- sh -c true",
        "job j --image=a:1 -- true",
        "service clusterip one --tcp=80:8080 --tcp=81:http",
        "service nodeport two --tcp=80 --node-port=30999",
        "service externalname three --external-name=example.com",
        "role r --verb=get,list --resource=pods,deployments.apps --resource-name=x",
        "clusterrole made-by-kubectl --verb=get --non-resource-url=/x",
        "clusterrole aggregated-by-kubectl --aggregation-rule=a=b",
        "rolebinding b --role=r --serviceaccount=default:s --user=u --group=g",
        "clusterrolebinding made-by-kubectl --clusterrole=made-by-kubectl --user=u",
        "poddisruptionbudget p --selector=a=b --min-available=50%",
        "poddisruptionbudget q --selector=a=b --max-unavailable=1",
    ):
        words = command.split()
        rest = words.index("--") if "--" in words else len(words)
        said, made = [
            json.loads(await cluster.kubectl("create", *words[:rest], "-o", "json", *dry, *words[rest:]))
            for dry in (["--dry-run=client"], [])
        ]
        said.pop("status", None)  # the server's to say
        assert not _leaves(said) - _leaves(made), command


def _leaves(value: Any, place: str = "") -> set[tuple[str, Any]]:
    if not isinstance(value, (dict, list)):
        return set() if value is None else {(place, value)}
    parts = cast("dict[Any, Any]", value if isinstance(value, dict) else dict(enumerate(cast("list[Any]", value))))
    return {leaf for key, each in parts.items() for leaf in _leaves(each, f"{place}.{key}")}


async def test_what_is_not_there_is_said_plainly(cluster: Cluster) -> None:
    assert 'doesn\'t have a resource type "statefulsets"' in await cluster.kubectl("get", "statefulsets", ok=False)
    body = yaml.safe_dump({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d"}})
    assert 'no matches for kind "DaemonSet" in version "apps/v1"' in await cluster.kubectl(
        "apply", "-f", "-", stdin=body, ok=False
    )
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "localhost/none:1"}]}}
    await cluster.apply({"kind": "Pod"} | pod)
    said = await cluster.kubectl("exec", "p", "--", "true", ok=False)
    assert "the sandbox has no pods/exec: podman or docker exec takes the Container ID" in said
    answer = await cluster.api.request("POST", cluster.api.path("v1", "pods", "p") + "/portforward")
    assert "the annotation sandbox.gitsync.dev/address of a Service says where" in answer.message
    path, media = cluster.api.path("v1", "configmaps"), "application/vnd.kubernetes.protobuf"
    for raw in (b"", b"k8s\x00", b"k8s\x00\x0a\x7f", b"k8s\x00\x0a\x09\x12\x07Nothing\x12\x02\x08\x01"):
        answer = await cluster.api.request("POST", path, raw, media=media)
        assert (answer.code, answer.reason) == (415, "UnsupportedMediaType")
        assert "--dry-run=client" in answer.message
    assert 'namespaces "nope" not found' in await cluster.kubectl("get", "namespace", "nope", ok=False)
