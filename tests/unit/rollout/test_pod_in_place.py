"""A bare Pod gets its new image in place: the kubelet ends the container, and says Ready until it has."""

import pytest

from gitsync.model import HealthStatus, Json, ObjectRef
from gitsync.rollout.serving import World, judge

REF = ObjectRef(version="v1", kind="Pod", namespace="shop", name="web")
OLD, NEW = "sha256:" + "1" * 64, "sha256:" + "2" * 64
RUNS: Json = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
KILLED: Json = {"terminated": {"exitCode": 137, "reason": "Error"}}
LOOPS: Json = {"waiting": {"reason": "CrashLoopBackOff"}}


def pod(image_id: str, *, ready: bool = True, state: Json = RUNS, last: Json | None = None) -> Json:
    status = {"name": "web", "imageID": image_id, "state": state, "lastState": last or {}, "restartCount": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "web", "labels": {"app": "web"}},
        "spec": {"restartPolicy": "Always", "containers": [{"name": "web", "image": f"registry/web@{NEW}"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [status],
        },
    }


@pytest.mark.parametrize(
    ("obj", "status", "lingering"),
    [
        (pod(f"registry/web@{OLD}"), HealthStatus.PROGRESSING, True),
        (pod(f"registry/web@{OLD}", ready=False, state=KILLED, last=KILLED), HealthStatus.PROGRESSING, False),
        (pod(f"registry/web@{NEW}", ready=False, last=KILLED), HealthStatus.PROGRESSING, False),
        (pod(f"registry/web@{NEW}", ready=False, state=LOOPS, last=KILLED), HealthStatus.DEGRADED, False),
        (pod(f"registry/web@{NEW}", last=KILLED), HealthStatus.HEALTHY, False),
        (pod("docker://sha256:of-a-runtime-without-digests"), HealthStatus.HEALTHY, False),
        (pod(""), HealthStatus.HEALTHY, False),
    ],
    ids=["still-old", "killed", "starts", "crashes", "new", "unknown-id", "no-id"],
)
def test_it_serves_when_the_new_image_runs_and_a_restart_alone_is_no_failure(
    obj: Json, status: HealthStatus, lingering: bool
) -> None:
    judgement = judge(obj, REF, World())
    assert (judgement.health.status, judgement.lingering) == (status, lingering)
