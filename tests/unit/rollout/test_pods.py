"""What the status page shows of pods: those of the Application's workloads, as they live."""

from gitsync.model import Json
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.pods import pods_of_objects
from gitsync.rollout.target import Target
from gitsync.rollout.watch import wait_healthy
from gitsync.web.board import StepState
from gitsync.web.pictures import pod_view
from tests.unit.rollout.conftest import NODE, Node, change, deployment, ready, service, status_of

DIGEST = "sha256:" + "a" * 64


def told(pod: Json) -> Json:
    if "crashes" not in pod["metadata"]["name"]:
        return ready(pod)
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    return status_of(pod, ready=False, state=waiting, restartCount=3, started=False)


async def test_the_pods_of_an_application_and_of_nobody_else(target: Target, node: Node, namespace: str) -> None:
    node.decide = told
    web = deployment(namespace, replicas=2, image=f"registry.example/web@{DIGEST}")
    web["spec"]["selector"] = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "www"]}]}
    other = deployment(namespace, "other")  # whose pods bear our labels
    other["spec"]["template"]["metadata"]["labels"] |= {"app": "web", "own": "1"}
    other["spec"]["selector"] = {"matchLabels": {"own": "1"}}
    bare: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "crashes", "namespace": namespace},
        "spec": {"nodeName": NODE, "containers": [{"name": "crashes", "image": "broken:1"}]},
    }
    missing = deployment("nowhere")
    applied = await apply_wave(target, [change(target, obj) for obj in (web, other, service(namespace))])
    await wait_healthy(target, applied)
    await apply_wave(target, [change(target, bare)])
    crashes, pods = {}, ()
    while "containerStatuses" not in crashes.get("status", {}):
        pods = await pods_of_objects(target, [web, bare, missing, service(namespace)])
        crashes = next(pod for pod in pods if pod["metadata"]["name"] == "crashes")
    crashed, *served = [pod_view(pod, {DIGEST: "main@sha1:1234"}, str) for pod in pods]
    assert [view.name.rsplit("-", 2)[0] for view in served] == ["web", "web"]
    assert {(view.state, view.revision, view.digest) for view in served} == {(StepState.DONE, "main@sha1:1234", DIGEST)}
    assert (crashed.name, crashed.state, crashed.restarts, crashed.digest) == ("crashes", StepState.FAILED, 3, "")
    assert "CrashLoopBackOff" in crashed.message or "back-off" in crashed.message
