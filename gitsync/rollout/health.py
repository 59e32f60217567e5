"""Is it healthy, and if not, who is to blame? A pure table by kind: an object as read from a cluster in, a verdict out.

Nothing here reads a cluster, a clock or a file, and nothing raises on a strange object: a field of the wrong type is
``Unknown`` with the field's name, because a health check that throws stops the rollout that it watches.

The words are Argo CD's, the rigour is kstatus's: a status that describes an older generation counts as Progressing, so
that no rollout is called finished before it began. Where the two disagree:

====================================  ==============================  ==========================================
object                                they say                        here
====================================  ==============================  ==========================================
Ingress, LoadBalancer without address Progressing / Current           Progressing, but it gates nothing (``gates``)
Deployment, counts done, condition    Healthy / InProgress            Progressing: the controller has not said so yet
  not NewReplicaSetAvailable
Job that runs                         Progressing / Current           Progressing
Pod that failed                       Degraded / Current              Degraded
Pod that no node takes                Progressing / Failed            Progressing: it may yet be scheduled
Pod that ends by itself, running      Progressing / Current           Progressing, unless a readiness probe says server
pods refused (quota, webhook, …)      Degraded / InProgress           Progressing if it may pass, else Degraded
StatefulSet or DaemonSet, OnDelete    Healthy / Current               Healthy once ready: the person replaces the pods
custom resource, Ready=False          (script) / InProgress           Progressing; Stalled or Failed is Degraded
====================================  ==============================  ==========================================
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, cast

from gitsync.model import Health, HealthStatus, Json, ObjectRef

HEALTHY, PROGRESSING, DEGRADED = HealthStatus.HEALTHY, HealthStatus.PROGRESSING, HealthStatus.DEGRADED
SUSPENDED, MISSING, UNKNOWN = HealthStatus.SUSPENDED, HealthStatus.MISSING, HealthStatus.UNKNOWN

#: Worst first, as Argo CD orders them: what cannot be judged must not pass for less than what failed.
WORST_FIRST = (UNKNOWN, DEGRADED, MISSING, PROGRESSING, SUSPENDED, HEALTHY)

_MESSAGE_LIMIT = 500  # characters; controllers put whole stack traces into conditions


def health(obj: Json | None, ref: ObjectRef | None = None) -> Health:
    """Judge one object. ``None`` is Missing. ``ref`` is attached to the answer; without it, the object's own."""
    if obj is None:
        return Health(status=MISSING, message="the object does not exist", ref=ref)
    try:
        ref = ref or _ref(obj)
        verdict = _judge(obj)
    except _MalformedError as error:
        verdict = Health(status=UNKNOWN, message=str(error))
    return replace(verdict, ref=ref, message=_brief(verdict.message))


def aggregate(items: Iterable[Health]) -> Health:
    """The worst of many, by ``WORST_FIRST``; the first of equals, named in the message. Nothing at all is Healthy."""
    ranked = sorted(items, key=lambda item: WORST_FIRST.index(item.status))
    if not ranked or ranked[0].status is HEALTHY:
        return Health(status=HEALTHY)
    worst = ranked[0]
    message = ": ".join(part for part in (str(worst.ref) if worst.ref else "", worst.message) if part)
    others = sum(item.status is worst.status for item in ranked) - 1
    if others:
        message += f" (and {others} more {worst.status})"
    return replace(worst, message=message)


def describe(obj: Any) -> dict[str, str]:
    """``{apiVersion, kind, namespace, name, status, message}``: the row that ``gitsync health`` prints."""
    verdict = health(obj)
    row: dict[str, str] = {}
    for path in ("apiVersion", "kind", "metadata.namespace", "metadata.name"):
        try:
            row[path.removeprefix("metadata.")] = _text(obj, path)
        except _MalformedError:
            row[path.removeprefix("metadata.")] = ""
    return row | {"status": verdict.status.value, "message": verdict.message}


#: Their health tells about the world around the cluster (an address, metrics, a volume that waits for its first
#: consumer), not whether the commit serves. A wave that waited for them could wait for ever.
_GATES_NOTHING = frozenset(
    {
        ("", "Service"),
        ("", "PersistentVolumeClaim"),
        ("", "PersistentVolume"),
        ("", "Node"),
        ("networking.k8s.io", "Ingress"),
        ("extensions", "Ingress"),
        ("autoscaling", "HorizontalPodAutoscaler"),
        ("policy", "PodDisruptionBudget"),
    }
)


def gates(ref: ObjectRef) -> bool:
    """Whether the next wave waits for this object to be healthy."""
    return (ref.group, ref.kind) not in _GATES_NOTHING


# ---------------------------------------------------------------- reading without trusting


class _MalformedError(Exception):
    """A field has a type that the API would never give it."""


_WORDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    bool: "a boolean",
    float: "a number",
}


def _at(obj: Json, path: str) -> Any:
    """The value at a dotted path, ``None`` where any step is absent or null."""
    value: Any = obj
    for key in path.split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _MalformedError(f"{_above(obj, path)} is {_word(cast(object, value))}, expected an object")
        value = value.get(key)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - a cast costs more
    return value  # pyright: ignore[reportUnknownVariableType]


def _above(obj: Any, path: str) -> str:
    """The first step of a path that is no object."""
    walked: list[str] = []
    for key in path.split("."):
        if not isinstance(obj, dict):
            break
        obj = cast(Json, obj).get(key)
        walked.append(key)
    return ".".join(walked) or "the object"


def _word(value: object) -> str:
    return _WORDS.get(type(value), type(value).__name__)


def _typed(obj: Json, path: str, kind: type) -> Any:
    value = _at(obj, path)
    if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise _MalformedError(f"{path} is {_word(value)}, expected {_WORDS[kind]}")
    return value


def _map(obj: Json, path: str) -> Json:
    return _typed(obj, path, dict) or {}


def _int(obj: Json, path: str, default: int = 0) -> int:
    value: int | None = _typed(obj, path, int)
    return default if value is None else value


def _text(obj: Json, path: str) -> str:
    return _typed(obj, path, str) or ""


def _flag(obj: Json, path: str) -> bool:
    return bool(_typed(obj, path, bool))


def _objects(obj: Json, path: str) -> list[Json]:
    items: list[Any] = _typed(obj, path, list) or []
    for position, item in enumerate(items):
        if not isinstance(item, dict):
            raise _MalformedError(f"{path}[{position}] is {_word(item)}, expected an object")
    return items


def _conditions(obj: Json) -> dict[str, Json]:
    return {_text(condition, "type"): condition for condition in _objects(obj, "status.conditions")}


def _is(condition: Json | None, status: str) -> bool:
    return condition is not None and _text(condition, "status") == status


def _why(condition: Json | None, otherwise: str = "") -> str:
    """``Reason: message`` of a condition."""
    if condition is None:
        return otherwise
    return ": ".join(part for part in (_text(condition, "reason"), _text(condition, "message")) if part) or otherwise


def _ref(obj: Json) -> ObjectRef | None:
    kind, version, name = _text(obj, "kind"), _text(obj, "apiVersion"), _text(obj, "metadata.name")
    return ObjectRef.of(obj, namespace=_text(obj, "metadata.namespace")) if kind and version and name else None


def _brief(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…"


def _say(status: HealthStatus, message: str = "") -> Health:
    return Health(status=status, message=message)


# ---------------------------------------------------------------- the table


def _judge(obj: Json) -> Health:
    if not _text(obj, "kind") or not _text(obj, "apiVersion"):
        raise _MalformedError("not a Kubernetes object: apiVersion or kind is missing")
    if _at(obj, "metadata.deletionTimestamp") is not None:
        held: list[Any] = _typed(obj, "metadata.finalizers", list) or []
        finalizers = [str(each) for each in held]
        return _say(PROGRESSING, "terminating" + (f", held by {', '.join(finalizers)}" if finalizers else ""))
    stale = _stale(obj)
    if stale:
        return _say(PROGRESSING, stale)
    group = _text(obj, "apiVersion").rpartition("/")[0]
    return _TABLE.get((group, _text(obj, "kind")), _by_conditions)(obj)


def _stale(obj: Json) -> str:
    """Why the status does not describe this generation yet, or ""."""
    wanted, seen = _typed(obj, "metadata.generation", int), _at(obj, "status.observedGeneration")
    if isinstance(seen, str):  # an Argo Rollout has it as text, and once had a hash there
        seen = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 20 else None
    else:
        seen = _typed(obj, "status.observedGeneration", int)
    if wanted is not None and seen is not None and seen < wanted:
        return f"waiting for the controller to observe generation {wanted} (it has seen {seen})"
    return ""


def _unseen(obj: Json) -> str:
    """The same for built-in workloads, whose controllers always write observedGeneration: absent is behind."""
    if not _map(obj, "status"):
        return "waiting for the controller to observe it"
    wanted = _typed(obj, "metadata.generation", int)
    if wanted is not None and _typed(obj, "status.observedGeneration", int) is None:
        return f"waiting for the controller to observe generation {wanted}"
    return ""


def _by_conditions(obj: Json) -> Health:
    """Any other kind, as kstatus reads it. Without conditions it is healthy by existing (ConfigMap, Role, webhook…)."""
    conditions = _conditions(obj)
    if _is(conditions.get("Stalled"), "True"):
        return _say(DEGRADED, _why(conditions["Stalled"], "stalled"))
    if _is(conditions.get("Reconciling"), "True"):
        return _say(PROGRESSING, _why(conditions["Reconciling"], "reconciling"))
    if _is(conditions.get("Failed"), "True"):
        return _say(DEGRADED, _why(conditions["Failed"], "failed"))
    ready = conditions.get("Ready")
    if ready is None:
        return _say(HEALTHY)
    seen, wanted = _typed(ready, "observedGeneration", int), _int(obj, "metadata.generation")
    if seen is not None and seen < wanted:
        return _say(PROGRESSING, f"Ready describes generation {seen} of {wanted}")
    return _say(HEALTHY) if _is(ready, "True") else _say(PROGRESSING, _why(ready, "not ready"))


def _deployment(obj: Json) -> Health:
    if _flag(obj, "spec.paused"):
        return _say(SUSPENDED, "the Deployment is paused")
    if unseen := _unseen(obj):
        return _say(PROGRESSING, unseen)
    conditions = _conditions(obj)
    progressing, failure = conditions.get("Progressing"), conditions.get("ReplicaFailure")
    if progressing and _text(progressing, "reason") == "ProgressDeadlineExceeded":
        cause = f"; {_why(failure)}" if _is(failure, "True") else ""
        return _say(DEGRADED, _why(progressing) + cause)
    wanted = _int(obj, "spec.replicas", 1)
    total, updated = _int(obj, "status.replicas"), _int(obj, "status.updatedReplicas")
    ready, available = _int(obj, "status.readyReplicas"), _int(obj, "status.availableReplicas")
    waiting = ""
    if updated < wanted:
        waiting = f"{updated} of {wanted} replicas are updated"
    elif total > updated:
        waiting = f"{total - updated} old replicas still run"
    elif updated > wanted:
        waiting = f"{updated - wanted} surplus replicas still run"
    elif min(ready, available) < wanted:
        waiting = f"{min(ready, available)} of {wanted} replicas are available"
    if waiting:
        if _is(failure, "True"):
            return _refused_pods(failure, waiting)
        return _say(PROGRESSING, waiting)
    if progressing and _text(progressing, "reason") != "NewReplicaSetAvailable":
        return _say(PROGRESSING, _why(progressing, "the rollout is not complete"))
    if _is(conditions.get("Available"), "False"):
        return _say(PROGRESSING, _why(conditions["Available"], "not available"))
    return _say(HEALTHY)


def _refused_pods(failure: Json | None, waiting: str) -> Health:
    """The API server refused to create pods: some refusals pass (a quota, a webhook that is away), others do not."""
    message = f"{waiting}: {_why(failure)}"
    return _say(PROGRESSING if _refusal_may_pass(_why(failure)) else DEGRADED, message)


def _replica_set(obj: Json) -> Health:
    if unseen := _unseen(obj):
        return _say(PROGRESSING, unseen)
    wanted, total = _int(obj, "spec.replicas", 1), _int(obj, "status.replicas")
    available = min(_int(obj, "status.availableReplicas"), _int(obj, "status.readyReplicas"))
    failure = _conditions(obj).get("ReplicaFailure")
    if available < wanted:
        waiting = f"{available} of {wanted} replicas are available"
        return _refused_pods(failure, waiting) if _is(failure, "True") else _say(PROGRESSING, waiting)
    if total > wanted:
        return _say(PROGRESSING, f"{total - wanted} surplus replicas still run")
    return _say(HEALTHY)


def _stateful_set(obj: Json) -> Health:
    if unseen := _unseen(obj):
        return _say(PROGRESSING, unseen)
    wanted, total = _int(obj, "spec.replicas", 1), _int(obj, "status.replicas")
    ready, updated = _int(obj, "status.readyReplicas"), _int(obj, "status.updatedReplicas")
    available = _int(obj, "status.availableReplicas", ready)
    if min(ready, available) < wanted:
        return _say(PROGRESSING, f"{min(ready, available)} of {wanted} replicas are available")
    if total > wanted:
        return _say(PROGRESSING, f"{total - wanted} surplus replicas still run")
    if _text(obj, "spec.updateStrategy.type") == "OnDelete":
        return _say(HEALTHY)
    current, update = _text(obj, "status.currentRevision"), _text(obj, "status.updateRevision")
    partition = _int(obj, "spec.updateStrategy.rollingUpdate.partition")
    if current == update:
        return _say(HEALTHY)
    if partition and updated >= wanted - partition:
        return _say(HEALTHY)  # the ordinals below the partition are meant to keep the old revision
    return _say(PROGRESSING, f"{updated} of {max(wanted - partition, 0)} replicas are updated")


def _daemon_set(obj: Json) -> Health:
    if unseen := _unseen(obj):
        return _say(PROGRESSING, unseen)
    wanted = _typed(obj, "status.desiredNumberScheduled", int)
    if wanted is None:
        return _say(PROGRESSING, "waiting for the controller to count the nodes")
    current, updated = _int(obj, "status.currentNumberScheduled"), _int(obj, "status.updatedNumberScheduled")
    available = min(_int(obj, "status.numberAvailable"), _int(obj, "status.numberReady"))
    if current < wanted:
        return _say(PROGRESSING, f"{current} of {wanted} nodes run a pod")
    if updated < wanted and _text(obj, "spec.updateStrategy.type") != "OnDelete":
        return _say(PROGRESSING, f"{updated} of {wanted} pods are updated")
    if available < wanted:
        return _say(PROGRESSING, f"{available} of {wanted} pods are available")
    return _say(HEALTHY)


def _pod(obj: Json) -> Health:
    stuck = "; ".join(_stuck(status) for status in _container_statuses(obj) if _stuck(status))
    if stuck:
        return _say(DEGRADED, stuck)
    match phase := _text(obj, "status.phase"):
        case "Succeeded":
            return _say(HEALTHY)
        case "Failed":
            own = ": ".join(part for part in (_text(obj, "status.reason"), _text(obj, "status.message")) if part)
            ended = "; ".join(filter(None, (_ended(each, "state") for each in _container_statuses(obj))))
            return _say(DEGRADED, own or ended or "the pod failed")
        case "Running":
            return _running_pod(obj)
        case "Pending" | "":
            scheduled = _conditions(obj).get("PodScheduled")
            if _is(scheduled, "False"):
                return _say(PROGRESSING, _why(scheduled, "waiting for a node"))
            waits = (_waiting(status) for status in _container_statuses(obj))
            return _say(PROGRESSING, _text(obj, "status.message") or next(filter(None, waits), "waiting to start"))
        case _:
            return _say(UNKNOWN, _text(obj, "status.message") or f"phase {phase}")


def _running_pod(obj: Json) -> Health:
    ready = _conditions(obj).get("Ready")
    if _is(ready, "True"):
        ends = _text(obj, "spec.restartPolicy") in ("Never", "OnFailure")
        serves = any(_map(container, "readinessProbe") for container in _objects(obj, "spec.containers"))
        return _say(PROGRESSING, "running until its containers end") if ends and not serves else _say(HEALTHY)
    ended = "; ".join(filter(None, (_ended(each, "lastState") for each in _statuses(obj, "containerStatuses"))))
    if ended and _text(obj, "spec.restartPolicy") not in ("Never", "OnFailure"):
        return _say(DEGRADED, ended)
    return _say(PROGRESSING, _why(ready, "not ready"))


def _job(obj: Json) -> Health:
    conditions = _conditions(obj)
    for kind in ("Failed", "FailureTarget"):
        if _is(conditions.get(kind), "True"):
            return _say(DEGRADED, _why(conditions[kind], "the Job failed"))
    if _is(conditions.get("Complete"), "True"):
        return _say(HEALTHY)
    if _is(conditions.get("Suspended"), "True") or _flag(obj, "spec.suspend"):
        return _say(SUSPENDED, _why(conditions.get("Suspended"), "the Job is suspended"))
    succeeded, wanted = _int(obj, "status.succeeded"), _int(obj, "spec.completions", 1)
    active, failed = _int(obj, "status.active"), _int(obj, "status.failed")
    return _say(PROGRESSING, f"{succeeded} of {wanted} completions, {active} pods active, {failed} failed")


def _cron_job(obj: Json) -> Health:
    return _say(SUSPENDED, "the CronJob is suspended") if _flag(obj, "spec.suspend") else _say(HEALTHY)


def _claim(obj: Json) -> Health:
    match phase := _text(obj, "status.phase"):
        case "Bound":
            return _say(HEALTHY)
        case "Lost":
            return _say(DEGRADED, "the claim lost its volume")
        case "Pending" | "":
            # A claim of a WaitForFirstConsumer class looks the same; that is why claims gate nothing.
            return _say(PROGRESSING, "waiting for a volume, or for the first pod that uses it")
        case _:
            return _say(UNKNOWN, f"phase {phase}")


def _volume(obj: Json) -> Health:
    match phase := _text(obj, "status.phase"):
        case "Available" | "Bound" | "Released":
            return _say(HEALTHY)
        case "Failed":
            return _say(DEGRADED, _text(obj, "status.message") or "reclaiming the volume failed")
        case "Pending" | "":
            return _say(PROGRESSING, "the volume is not available yet")
        case _:
            return _say(UNKNOWN, f"phase {phase}")


def _service(obj: Json) -> Health:
    if _text(obj, "spec.type") == "LoadBalancer" and not _objects(obj, "status.loadBalancer.ingress"):
        return _say(PROGRESSING, "waiting for the address of the load balancer")
    return _say(HEALTHY)


def _ingress(obj: Json) -> Health:
    if not _objects(obj, "status.loadBalancer.ingress"):
        return _say(PROGRESSING, "waiting for the ingress controller to publish an address")
    return _say(HEALTHY)


def _autoscaler(obj: Json) -> Health:
    conditions = _conditions(obj) or _conditions_of_v1(obj)
    able, active = conditions.get("AbleToScale"), conditions.get("ScalingActive")
    if _is(able, "False"):
        return _say(DEGRADED, _why(able, "cannot scale its target"))
    if _is(active, "False") and active and _text(active, "reason") != "ScalingDisabled":  # disabled: target is at 0
        return _say(DEGRADED, _why(active, "scaling is not active"))
    return _say(HEALTHY) if conditions else _say(PROGRESSING, "waiting for the autoscaler's first look")


def _conditions_of_v1(obj: Json) -> dict[str, Json]:
    """autoscaling/v1 keeps its conditions, as JSON, in an annotation."""
    path = "autoscaling.alpha.kubernetes.io/conditions"
    text = _map(obj, "metadata.annotations").get(path)
    if text is None:
        return {}
    try:
        return _conditions({"status": {"conditions": json.loads(text)}})
    except (TypeError, ValueError, RecursionError) as error:
        raise _MalformedError(f"the annotation {path} is not JSON") from error


def _disruption_budget(obj: Json) -> Health:
    allowed = _conditions(obj).get("DisruptionAllowed")
    if allowed and _text(allowed, "reason") == "SyncFailed":
        return _say(DEGRADED, _why(allowed))
    wanted, current = _int(obj, "status.desiredHealthy"), _int(obj, "status.currentHealthy")
    if not allowed and not wanted and _typed(obj, "status.observedGeneration", int) is None:
        return _say(PROGRESSING, "waiting for the controller's first look")
    if current < wanted:
        return _say(PROGRESSING, f"{current} of {wanted} required pods are healthy")
    return _say(HEALTHY)


def _api_service(obj: Json) -> Health:
    available = _conditions(obj).get("Available")
    return _say(HEALTHY) if _is(available, "True") else _say(PROGRESSING, _why(available, "not available yet"))


def _definition(obj: Json) -> Health:
    conditions = _conditions(obj)
    names, established = conditions.get("NamesAccepted"), conditions.get("Established")
    if _is(conditions.get("Terminating"), "True"):
        return _say(PROGRESSING, _why(conditions["Terminating"], "terminating"))
    if _is(names, "False"):
        return _say(DEGRADED, _why(names, "its names were not accepted"))
    if _is(conditions.get("NonStructuralSchema"), "True"):
        return _say(DEGRADED, _why(conditions["NonStructuralSchema"], "its schema is not structural"))
    if _is(established, "True"):
        return _say(HEALTHY)
    if _is(established, "False") and established and _text(established, "reason") != "Installing":
        return _say(DEGRADED, _why(established, "not established"))
    return _say(PROGRESSING, _why(established, "waiting to be established"))


def _namespace(obj: Json) -> Health:
    if _text(obj, "status.phase") != "Terminating":
        return _say(HEALTHY)
    reasons = [_why(condition) for condition in _conditions(obj).values() if _is(condition, "True")]
    return _say(PROGRESSING, "; ".join(["terminating", *reasons]))


def _node(obj: Json) -> Health:
    ready = _conditions(obj).get("Ready")
    if ready is None:
        return _say(PROGRESSING, "waiting for the kubelet's first report")
    if not _is(ready, "True"):
        return _say(DEGRADED, _why(ready, "not ready"))
    return _say(SUSPENDED, "cordoned") if _flag(obj, "spec.unschedulable") else _say(HEALTHY)


_TABLE: dict[tuple[str, str], Callable[[Json], Health]] = {
    ("apps", "Deployment"): _deployment,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("apps", "ReplicaSet"): _replica_set,
    ("", "ReplicationController"): _replica_set,
    ("", "Pod"): _pod,
    ("batch", "Job"): _job,
    ("batch", "CronJob"): _cron_job,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "PersistentVolume"): _volume,
    ("", "Service"): _service,
    ("networking.k8s.io", "Ingress"): _ingress,
    ("extensions", "Ingress"): _ingress,
    ("autoscaling", "HorizontalPodAutoscaler"): _autoscaler,
    ("policy", "PodDisruptionBudget"): _disruption_budget,
    ("apiregistration.k8s.io", "APIService"): _api_service,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _definition,
    ("", "Namespace"): _namespace,
    ("", "Node"): _node,
}


# ---------------------------------------------------------------- containers


def _statuses(pod: Json, field: str) -> list[Json]:
    return _objects(pod, f"status.{field}")


def _container_statuses(pod: Json) -> list[Json]:
    return _statuses(pod, "initContainerStatuses") + _statuses(pod, "containerStatuses")


def starts_again(pod: Json) -> bool:
    """Whether a pod that is not ready lacks nothing but time: a container that ended runs or starts again."""
    return _text(pod, "status.phase") == "Running" and not any(map(_stuck, _container_statuses(pod)))


def former_image(pod: Json) -> str:
    """The first container that still runs another digest than its pod asks for since an update in place, or ""."""
    running = {_text(each, "name"): _text(each, "imageID") for each in _statuses(pod, "containerStatuses")}
    for container in _objects(pod, "spec.containers"):
        wanted = _text(container, "image").partition("@")[2]
        name = _text(container, "name")
        runs = running.get(name, "").partition("@")[2]
        if wanted and runs and wanted != runs:
            return name
    return ""


def _stuck(status: Json) -> str:
    """``container web: CrashLoopBackOff, exit code 1`` when the kubelet waits because something failed, else ""."""
    reason = _text(status, "state.waiting.reason")
    failed = reason.startswith("Err") or reason.endswith(("Error", "BackOff")) or reason == "InvalidImageName"
    return _waiting(status) if failed else ""


def _waiting(status: Json) -> str:
    reason = _text(status, "state.waiting.reason")
    if not reason:
        return ""
    detail = _text(status, "state.waiting.message")
    if reason == "CrashLoopBackOff":  # its own message says only how long the kubelet waits; how it ended says more
        detail = _ended(status, "lastState").partition(": ")[2] or detail
    separator = ", " if reason == "CrashLoopBackOff" else ": "
    return f"container {_text(status, 'name')}: {reason}" + (separator + detail if detail else "")


def _ended(status: Json, state: str) -> str:
    """``container web: exit code 1 (Error), 3 restarts, last words: …`` for one that failed, else "".

    A container that ended well (0) and then runs again has also failed at what a server is for.
    """
    terminated = _map(status, f"{state}.terminated")
    code, reason = _int(terminated, "exitCode"), _text(terminated, "reason")
    if not terminated or (state == "state" and code == 0):
        return ""
    text = f"container {_text(status, 'name')}: exit code {code}"
    if reason and reason not in ("Error", "Completed"):
        text += f" ({reason})"
    restarts = _int(status, "restartCount")
    if restarts:
        text += f", {restarts} restart{'s' if restarts > 1 else ''}"
    words = _text(terminated, "message").strip()
    return f"{text}, last words: {words[-200:]}" if words else text


# ---------------------------------------------------------------- evidence against the commit


class Blame(StrEnum):
    """Whether a rollout that is stuck is evidence against the commit."""

    COMMIT = "commit"  # what the commit says fails: it may be quarantined
    LUCK = "luck"  # the world around it: keep the old version, wait, retry
    NONE = "none"  # nothing is wrong (yet)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why pods are not ready. ``conclusive``: more time cannot help; otherwise it counts only at the deadline.

    ``container`` and ``field`` ("readinessProbe") say what of the pod's spec speaks so, where that is known.
    """

    blame: Blame
    message: str = ""
    conclusive: bool = False
    pod: str = ""
    container: str = ""
    field: str = ""
    restarts: int = 0  # the most that one container of the blamed pod has had


_REFUSALS_THAT_PASS = re.compile(
    r"exceeded quota|failed quota|failed calling webhook|context deadline exceeded|timed? ?out|connection refused"
    r"|error looking up service account|no API token found|being terminated|try again|not yet ready to handle request"
    r"|no such host|EOF|no endpoints available|Internal error|etcdserver",
    re.IGNORECASE,
)

#: Reasons of a pod that was taken away, not of one that failed.
_TAKEN_AWAY = frozenset(
    {
        "ContainerStatusUnknown",
        "Evicted",
        "NodeAffinity",
        "NodeLost",
        "NodeShutdown",
        "OutOfcpu",
        "OutOfephemeral-storage",
        "OutOfmemory",
        "OutOfpods",
        "Preempted",
        "Preempting",
        "Shutdown",
        "Terminated",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
    }
)

_MISSING_OBJECT = re.compile(r'(configmap|secret) "(?:[^"/]+/)?([^"/]+)" not found', re.IGNORECASE)
_MISSING_KEY = re.compile(r"couldn't find key \S+ in (configmap|secret) [^/\s]+/(\S+)", re.IGNORECASE)
_RUNTIME_IS_BUSY = re.compile(r"context deadline|is reserved for|DeadlineExceeded|Unavailable|timeout", re.IGNORECASE)


def _refusal_may_pass(message: str) -> bool:
    return bool(_REFUSALS_THAT_PASS.search(message))


def explain_pods(
    pods: Sequence[Json], *, workload: Json | None = None, ours: Collection[tuple[str, str, str, str]] = ()
) -> Explanation:
    """Why the pods *of the new version* are not ready, and whom that speaks against.

    ``workload`` (Deployment, ReplicaSet, …) explains pods that do not even exist; ``ours`` are the keys
    (``ObjectRef.key``) of the commit's objects: a key that is missing in a ConfigMap of the commit is the commit's
    fault, one that is missing in somebody else's is not. The strongest evidence wins: conclusive and COMMIT first.
    """
    found: list[Explanation] = []
    for pod in pods:
        try:
            name = _text(pod, "metadata.name")
            found += [replace(each, pod=name, message=f"Pod {name} {each.message}") for each in _evidence(pod, ours)]
        except _MalformedError as error:
            found.append(Explanation(blame=Blame.NONE, message=f"a pod could not be read: {error}"))
    if workload is not None:
        try:
            failure = _conditions(workload).get("ReplicaFailure")
            if _is(failure, "True"):
                passes = _refusal_may_pass(_why(failure))
                blame = Blame.LUCK if passes else Blame.COMMIT
                found.append(Explanation(blame=blame, message=_why(failure), conclusive=not passes))
        except _MalformedError as error:
            found.append(Explanation(blame=Blame.NONE, message=f"the workload could not be read: {error}"))
    order = (Blame.COMMIT, Blame.LUCK, Blame.NONE)
    found.sort(key=lambda each: (order.index(each.blame), not each.conclusive, -each.restarts, each.pod))
    return replace(found[0], message=_brief(found[0].message)) if found else Explanation(blame=Blame.NONE)


def _evidence(pod: Json, ours: Collection[tuple[str, str, str, str]]) -> list[Explanation]:
    conditions = _conditions(pod)
    if _at(pod, "metadata.deletionTimestamp") is not None or _is(conditions.get("Ready"), "True"):
        return []
    reason = _text(pod, "status.reason")
    disrupted = conditions.get("DisruptionTarget")
    if reason in _TAKEN_AWAY or _is(disrupted, "True"):
        taken = ": ".join(part for part in (reason, _text(pod, "status.message")) if part) or _why(disrupted)
        return [_blamed(Blame.LUCK, f"was taken away: {taken}")]
    if reason == "DeadlineExceeded":  # activeDeadlineSeconds of the manifest
        return [_blamed(Blame.COMMIT, f"{reason}: {_text(pod, 'status.message')}", conclusive=True)]
    scheduled = conditions.get("PodScheduled")
    if _is(scheduled, "False"):
        return [_blamed(Blame.LUCK, f"has no node: {_why(scheduled)}")]
    statuses = _container_statuses(pod)
    found = [
        replace(each, container=_text(status, "name"))
        for status in statuses
        for each in _container_evidence(pod, status, ours)
    ]
    if found or _text(pod, "status.phase") == "Succeeded":
        return found
    running = [status for status in statuses if _at(status, "state.running") is not None]
    if not running:  # volumes, network, node: nothing of the commit has run
        waits = [_waiting(status) for status in statuses if _waiting(status)]
        return [_blamed(Blame.LUCK, waits[0] if waits else "waiting to start")]
    return _probe_evidence(pod, running, conditions)


def _blamed(blame: Blame, message: str, *, conclusive: bool = False, restarts: int = 0) -> Explanation:
    return Explanation(blame=blame, message=message, conclusive=conclusive, restarts=restarts)


def _container_evidence(pod: Json, status: Json, ours: Collection[tuple[str, str, str, str]]) -> list[Explanation]:
    reason, restarts = _text(status, "state.waiting.reason"), _int(status, "restartCount")
    detail, message = _text(status, "state.waiting.message"), _waiting(status)
    match reason:
        case "CrashLoopBackOff":
            if _text(status, "lastState.terminated.reason") in _TAKEN_AWAY:
                return [_blamed(Blame.LUCK, message, restarts=restarts)]
            return [_blamed(Blame.COMMIT, message, conclusive=True, restarts=restarts)]
        case "CreateContainerConfigError":
            blame = _config_blame(pod, detail, ours)
            return [_blamed(blame, message, conclusive=blame is Blame.COMMIT, restarts=restarts)]
        case "RunContainerError" | "CreateContainerError" | "StartError" | "PostStartHookError" | "PreStartHookError":
            busy = bool(_RUNTIME_IS_BUSY.search(detail))
            return [_blamed(Blame.LUCK if busy else Blame.COMMIT, message, conclusive=not busy, restarts=restarts)]
        case "InvalidImageName":
            return [_blamed(Blame.COMMIT, message, conclusive=True)]
        case "" | "ContainerCreating" | "PodInitializing":
            pass
        case _:  # ImagePullBackOff, ErrImagePull, RegistryUnavailable, ImageInspectError, ErrImageNeverPull, …
            return [_blamed(Blame.LUCK, message, restarts=restarts)]
    # Between two starts: it has ended, and the kubelet has not yet called it a loop.
    for state in ("state", "lastState"):
        terminated = _map(status, f"{state}.terminated")
        ended = _ended(status, state)
        if ended and (state == "state" or restarts):
            if _text(terminated, "reason") in _TAKEN_AWAY:
                return [_blamed(Blame.LUCK, ended, restarts=restarts)]
            if _is_init(pod, status) and _int(terminated, "exitCode") == 0:
                return []  # init containers are meant to end
            final = _text(pod, "status.phase") == "Failed"
            return [_blamed(Blame.COMMIT, ended, conclusive=final, restarts=restarts)]
    return []


def _is_init(pod: Json, status: Json) -> bool:
    return any(_text(each, "name") == _text(status, "name") for each in _objects(pod, "spec.initContainers"))


def _config_blame(pod: Json, detail: str, ours: Collection[tuple[str, str, str, str]]) -> Blame:
    """A wrong setting is the commit's; an object or a key that somebody else has to provide is not (yet) there."""
    kinds = {"configmap": "ConfigMap", "secret": "Secret"}
    if missing := _MISSING_KEY.search(detail):
        key = ("", kinds[missing[1].lower()], _text(pod, "metadata.namespace"), missing[2])
        return Blame.COMMIT if key in ours else Blame.LUCK
    return Blame.LUCK if _MISSING_OBJECT.search(detail) or _RUNTIME_IS_BUSY.search(detail) else Blame.COMMIT


def _probe_evidence(pod: Json, running: list[Json], conditions: dict[str, Json]) -> list[Explanation]:
    """Containers run, yet the pod is not ready: a probe or a readiness gate says no, or an init container waits."""
    specs = _objects(pod, "spec.containers") + _objects(pod, "spec.initContainers")
    probed = {_text(each, "name"): each for each in specs}
    for status in running:
        if _flag(status, "ready"):
            continue
        name, container = _text(status, "name"), probed.get(_text(status, "name"), {})
        restarts = _int(status, "restartCount")
        for probe, applies in (("startupProbe", _at(status, "started") is False), ("readinessProbe", True)):
            if applies and _map(container, probe):
                found = _blamed(Blame.COMMIT, f"container {name}: its {probe} does not pass", restarts=restarts)
                return [replace(found, container=name, field=probe)]
        # Without a probe the kubelet or the node, not the container, has the say.
        return [_blamed(Blame.LUCK, f"container {name}: not ready, {_why(conditions.get('Ready'))}", restarts=restarts)]
    gates_open = [_text(gate, "conditionType") for gate in _objects(pod, "spec.readinessGates")]
    closed = [gate for gate in gates_open if not _is(conditions.get(gate), "True")]
    if closed:
        return [_blamed(Blame.LUCK, f"waits for the readiness gate {', '.join(closed)}")]
    return [_blamed(Blame.LUCK, _why(conditions.get("Ready"), "is not ready"))]
