"""Why a rollout is stuck, and whether that speaks against the commit (quarantine) or is bad luck (wait)."""
# ruff: noqa: E501  (a row of the table is one line)

import pytest
import yaml

from gitsync.model import Json
from gitsync.rollout.health import Blame, explain_pods

OURS = {("", "ConfigMap", "shop", "settings"), ("", "Secret", "shop", "keys")}
NOT_READY = "{type: Ready, status: 'False', reason: ContainersNotReady}"


def pod(status: str, spec: str = "{containers: [{name: web}]}", metadata: str = "") -> Json:
    return yaml.safe_load(f"""
        apiVersion: v1
        kind: Pod
        metadata: {{name: web-1, namespace: shop, {metadata}}}
        spec: {spec}
        status: {status}
    """)


def waits(reason: str, message: str = "", last: str = "{}", restarts: int = 0) -> str:
    return (
        "{phase: Pending, containerStatuses: [{name: web, "
        f"restartCount: {restarts}, lastState: {last}, state: {{waiting: {{reason: {reason}, message: '{message}'}}}}}}]}}"
    )


PROBED = "{containers: [{name: web, readinessProbe: {httpGet: {path: /, port: 1}}}]}"
STARTING = "{containers: [{name: web, startupProbe: {httpGet: {path: /, port: 1}}}]}"
RUNS = f"{{phase: Running, conditions: [{NOT_READY}], containerStatuses: [{{name: web, ready: false, state: {{running: {{}}}}}}]}}"
OOM = "{terminated: {exitCode: 137, reason: OOMKilled}}"

CASES: list[tuple[str, Json, Blame, bool, str]] = [
    ("crash loop", pod(waits("CrashLoopBackOff", "back-off 10s", "{terminated: {exitCode: 1, message: no db}}", 4)), Blame.COMMIT, True,
     "Pod web-1 container web: CrashLoopBackOff, exit code 1, 4 restarts, last words: no db"),
    ("crash loop out of memory", pod(waits("CrashLoopBackOff", "", OOM, 2)), Blame.COMMIT, True, "OOMKilled"),
    ("crash loop of a server that ends well", pod(waits("CrashLoopBackOff", "", "{terminated: {exitCode: 0}}", 2)), Blame.COMMIT, True,
     "exit code 0"),
    ("crash loop after its node was lost", pod(waits("CrashLoopBackOff", "", "{terminated: {exitCode: 137, "
     "reason: ContainerStatusUnknown}}", 1)), Blame.LUCK, False, "CrashLoopBackOff"),
    ("exited, not yet called a loop", pod("{phase: Running, containerStatuses: [{name: web, restartCount: 0, state: "
     "{terminated: {exitCode: 3}}}]}"), Blame.COMMIT, False, "exit code 3"),
    ("restarted and unready", pod("{phase: Running, containerStatuses: [{name: web, restartCount: 1, lastState: "
     "{terminated: {exitCode: 3}}, state: {running: {}}}]}"), Blame.COMMIT, False, "exit code 3, 1 restart"),
    ("exited for good", pod("{phase: Failed, containerStatuses: [{name: web, state: {terminated: {exitCode: 3}}}]}"), Blame.COMMIT, True,
     "exit code 3"),
    ("too slow for its own deadline", pod("{phase: Failed, reason: DeadlineExceeded, message: took long}"), Blame.COMMIT, True, "took long"),
    ("init container loops", pod("{phase: Pending, initContainerStatuses: [{name: db, restartCount: 3, lastState: {terminated: "
     "{exitCode: 9}}, state: {waiting: {reason: CrashLoopBackOff}}}]}"), Blame.COMMIT, True, "container db: CrashLoopBackOff, exit code 9"),
    ("init container is done, image is not", pod("{phase: Pending, initContainerStatuses: [{name: db, state: {terminated: {exitCode: 0}}}]"
     ", containerStatuses: [{name: web, state: {waiting: {reason: ImagePullBackOff}}}]}"), Blame.LUCK, False, "ImagePullBackOff"),
    ("restarted sidecar ended well", pod("{phase: Pending, initContainerStatuses: [{name: db, restartCount: 1, lastState: {terminated: "
     "{exitCode: 0}}, state: {running: {}}}]}", "{initContainers: [{name: db}], containers: [{name: web}]}"), Blame.LUCK, False, "container db"),
    ("restarted init container failed", pod("{phase: Pending, initContainerStatuses: [{name: db, restartCount: 1, lastState: {terminated: "
     "{exitCode: 4}}, state: {running: {}}}]}", "{initContainers: [{name: db}], containers: [{name: web}]}"), Blame.COMMIT, False, "exit code 4"),
    ("restarted server ended well", pod("{phase: Running, containerStatuses: [{name: web, restartCount: 1, lastState: {terminated: "
     "{exitCode: 0}}, state: {running: {}}}]}", "{initContainers: [{name: db}], containers: [{name: web}]}"), Blame.COMMIT, False, "exit code 0"),
    ("its node was lost while it ran", pod("{phase: Running, containerStatuses: [{name: web, restartCount: 1, lastState: {terminated: "
     "{exitCode: 137, reason: ContainerStatusUnknown}}, state: {running: {}}}]}"), Blame.LUCK, False, "ContainerStatusUnknown"),
    ("start refused", pod(waits("RunContainerError", "exec: nope: not found")), Blame.COMMIT, True, "nope"),
    ("create refused", pod(waits("CreateContainerError", "no command specified")), Blame.COMMIT, True, "no command"),
    ("runtime is busy", pod(waits("CreateContainerError", "context deadline exceeded")), Blame.LUCK, False, "deadline"),
    ("runtime kept the name", pod(waits("CreateContainerError", "name web_1 is reserved for abc")), Blame.LUCK, False, "reserved"),
    ("image name", pod(waits("InvalidImageName", "bad")), Blame.COMMIT, True, "InvalidImageName"),
    ("key missing in our ConfigMap", pod(waits("CreateContainerConfigError", "couldn''t find key port in ConfigMap shop/settings")),
     Blame.COMMIT, True, "settings"),
    ("key missing in our Secret", pod(waits("CreateContainerConfigError", "couldn''t find key port in Secret shop/keys")),
     Blame.COMMIT, True, "keys"),
    ("key missing in a foreign Secret", pod(waits("CreateContainerConfigError", "couldn''t find key port in Secret shop/other")),
     Blame.LUCK, False, "other"),
    ("an operator has not made the Secret yet", pod(waits("CreateContainerConfigError", 'secret "made-by-operator" not found')), Blame.LUCK,
     False, "made-by-operator"),
    ("must not run as root", pod(waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")),
     Blame.COMMIT, True, "runAsNonRoot"),
    ("cache is behind", pod(waits("CreateContainerConfigError", "failed to sync configmap cache: timed out; timeout")), Blame.LUCK,
     False, "timed out"),
    ("readiness probe", pod(RUNS, PROBED), Blame.COMMIT, False, "container web: its readinessProbe does not pass"),
    ("startup probe", pod(RUNS.replace("ready: false", "ready: false, started: false"), STARTING), Blame.COMMIT, False, "startupProbe"),
    ("started, readiness not", pod(RUNS.replace("ready: false", "ready: false, started: true"), PROBED), Blame.COMMIT, False, "readiness"),
    ("runs unready without a probe", pod(RUNS), Blame.LUCK, False, "not ready"),
    ("an init container waits for a database", pod("{phase: Pending, initContainerStatuses: [{name: db, ready: false, state: {running: {}}}]"
     ", containerStatuses: [{name: web, ready: false, state: {waiting: {reason: PodInitializing}}}]}", PROBED), Blame.LUCK, False,
     "container db: not ready"),
    ("readiness gate", pod("{phase: Running, containerStatuses: [{name: web, ready: true, state: {running: {}}}]}",
     "{containers: [{name: web}], readinessGates: [{conditionType: lb.example/ready}]}"), Blame.LUCK, False, "lb.example/ready"),
    ("one of two readiness gates", pod("{phase: Running, conditions: [{type: a, status: 'True'}], containerStatuses: [{name: web, ready: "
     "true, state: {running: {}}}]}", "{containers: [{name: web}], readinessGates: [{conditionType: a}, {conditionType: b}]}"), Blame.LUCK,
     False, "gate b"),
    ("image pull back-off", pod(waits("ImagePullBackOff", "Back-off")), Blame.LUCK, False, "ImagePullBackOff"),
    ("image pull", pod(waits("ErrImagePull", "not found")), Blame.LUCK, False, "not found"),
    ("image may not be pulled", pod(waits("ErrImageNeverPull")), Blame.LUCK, False, "ErrImageNeverPull"),
    ("unschedulable", pod("{phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: 0/1}]}"),
     Blame.LUCK, False, "has no node: Unschedulable: 0/1"),
    ("evicted", pod("{phase: Failed, reason: Evicted, message: disk pressure}"), Blame.LUCK, False, "disk pressure"),
    ("preempted", pod("{phase: Failed, conditions: [{type: DisruptionTarget, status: 'True', reason: PreemptionByScheduler}]}"),
     Blame.LUCK, False, "PreemptionByScheduler"),
    ("node says no", pod("{phase: Failed, reason: OutOfcpu}"), Blame.LUCK, False, "OutOfcpu"),
    ("volume is not attached", pod(waits("ContainerCreating")), Blame.LUCK, False, "ContainerCreating"),
    ("no status yet", pod("{}"), Blame.LUCK, False, "waiting to start"),
    ("ready", pod("{phase: Running, conditions: [{type: Ready, status: 'True'}]}"), Blame.NONE, False, ""),
    ("terminating", pod(waits("CrashLoopBackOff"), metadata="deletionTimestamp: x"), Blame.NONE, False, ""),
    ("succeeded", pod("{phase: Succeeded, containerStatuses: [{name: web, state: {terminated: {exitCode: 0}}}]}"), Blame.NONE, False, ""),
    ("unreadable", pod("{phase: 3, conditions: 4}"), Blame.NONE, False, "status.conditions is an integer"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "subject", "blame", "conclusive", "message"), CASES, ids=[case[0] for case in CASES])
def test_one_pod(name: str, subject: Json, blame: Blame, conclusive: bool, message: str) -> None:
    verdict = explain_pods([subject], ours=OURS)
    assert (verdict.blame, verdict.conclusive) == (blame, conclusive), verdict
    assert message in verdict.message
    assert bool(verdict.message) == bool(message)


REFUSALS = [
    ("pods is forbidden: exceeded quota: q, requested: cpu=1", Blame.LUCK),
    ('Internal error occurred: failed calling webhook "a.b"', Blame.LUCK),
    ("etcdserver: leader changed", Blame.LUCK),
    ('no endpoints available for service "hook"', Blame.LUCK),
    ("Internal error occurred: resource quota evaluation was interrupted", Blame.LUCK),
    ("pods is forbidden: error looking up service account shop/web", Blame.LUCK),
    ("unable to create new content in namespace shop because it is being terminated", Blame.LUCK),
    ('pods "web" is forbidden: violates PodSecurity "restricted:latest"', Blame.COMMIT),
    ('Pod "web-1" is invalid: spec.containers[0].env[0].name: Required value', Blame.COMMIT),
]


@pytest.mark.parametrize(("message", "blame"), REFUSALS)
def test_pods_that_the_server_refused_to_create(message: str, blame: Blame) -> None:
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    verdict = explain_pods([], workload={"status": {"conditions": [condition]}})
    assert (verdict.blame, verdict.conclusive) == (blame, blame is Blame.COMMIT)
    assert verdict.message == f"FailedCreate: {message}"


def test_no_pods_and_no_complaint_blames_nobody() -> None:
    assert explain_pods([]).blame is Blame.NONE
    assert explain_pods([], workload={"status": {"conditions": []}}).blame is Blame.NONE
    assert (
        explain_pods([], workload={"status": 5}).message
        == "the workload could not be read: status is an integer, expected an object"
    )


def test_the_strongest_evidence_wins() -> None:
    pulls = pod(waits("ImagePullBackOff", "no such manifest"))
    probes = pod(RUNS, PROBED)
    crashes = pod(waits("CrashLoopBackOff", "", "{terminated: {exitCode: 1}}", 2))
    assert explain_pods([pulls, probes]).blame is Blame.COMMIT
    verdict = explain_pods([pulls, probes, crashes])
    assert (verdict.conclusive, verdict.restarts, verdict.pod) == (True, 2, "web-1")


def test_a_controllers_story_is_cut() -> None:
    assert len(explain_pods([pod(waits("RunContainerError", "x" * 9000))]).message) == 500
