"""What only one object can have passes from an old name to a new one only if a person accepts it, and comes back."""

import json

import pytest

from tests.e2e.world import Json, Project, World, eventually

pytestmark = pytest.mark.e2e

PORT = 30090


def service(name: str) -> str:
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": PORT}]}
    return json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}) + "\n"


def crashing() -> str:
    container: Json = {"name": "web", "image": "busybox", "command": ["false"]}
    spec: Json = {
        "progressDeadlineSeconds": 15,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}},
    }
    return json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}) + "\n"


def push(project: Project, name: str, *more: str) -> str:
    project.repository.write("manifests/all.yaml", "---\n".join((service(name), *more)))
    sha = project.repository.commit(f"Call it {name}")
    project.repository.push()
    return sha


def holders(project: Project) -> dict[str, int]:
    services = json.loads(project.kubectl("get", "services", "-o", "json"))["items"]
    return {each["metadata"]["name"]: port["nodePort"] for each in services for port in each["spec"]["ports"]}


def test_a_node_port_passes_to_another_name_if_that_is_accepted_and_comes_back(world: World) -> None:
    with world.project(name="claims") as project:
        push(project, "old")
        project.follow()
        project.wait_for(project.repository.head)

        renamed = push(project, "new")
        status = project.wait_stalled(renamed)
        assert status["lastAttempt"]["reason"] == "ExclusiveClaim"
        assert f"node port {PORT} is held by Service/{project.namespace}/old" in status["lastAttempt"]["message"]
        assert holders(project) == {"old": PORT}

        project.follow(sync={"acceptInterruption": True})
        eventually(lambda: holders(project) == {"new": PORT}, "the new one has the port", seconds=60)
        status = project.wait_for(renamed)
        assert "handed-over" in {finding["rule"] for finding in status["findings"]}

        broken = push(project, "newest", crashing())
        status = project.wait_stalled(broken)
        assert status["lastAttempt"]["reason"] == "RolloutFailed"
        assert status["revision"].endswith(renamed)
        assert holders(project) == {"new": PORT}
