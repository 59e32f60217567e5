"""Does a workload serve what was applied? Pure: objects as read from a cluster in, a verdict out.

``health`` says what a controller claims. A rollout is over only when that is also true of the world: no old pod is
left, not even one that is shutting down, and every Service that selects the new pods sends to them and to none that is
gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gitsync.model import Health, HealthStatus, Json, ObjectRef
from gitsync.rollout.health import Explanation, explain_pods, former_image, health, starts_again
from gitsync.rollout.target import Key, part

DEPLOYMENT = ("apps", "Deployment")
JOB = ("batch", "Job")
#: Kinds that own pods, or are one.
WORKLOADS = frozenset(
    {
        DEPLOYMENT,
        ("apps", "StatefulSet"),
        ("apps", "DaemonSet"),
        ("apps", "ReplicaSet"),
        ("", "ReplicationController"),
        ("", "Pod"),
        JOB,
    }
)
#: Kinds that are healthy only if every one of their pods is ready.
_COUNTED = frozenset({DEPLOYMENT, ("apps", "StatefulSet"), ("apps", "ReplicaSet"), ("", "ReplicationController")})
SERVICE_OF_SLICE = "kubernetes.io/service-name"
_REVISION = "deployment.kubernetes.io/revision"


@dataclass(slots=True)
class World:
    """What is around the workloads of a rollout: maps by UID (Services and slices by (namespace, name)).

    ``owners`` remembers who controlled each pod and ReplicaSet that was ever seen, also after it is gone.
    """

    pods: dict[str, Json] = field(default_factory=dict[str, Json])
    replica_sets: dict[str, Json] = field(default_factory=dict[str, Json])
    services: dict[tuple[str, str], Json] = field(default_factory=dict[tuple[str, str], Json])
    slices: dict[tuple[str, str], Json] = field(default_factory=dict[tuple[str, str], Json])
    owners: dict[str, str] = field(default_factory=dict[str, str])

    def root(self, uid: str) -> str:
        """UID of the workload at the top of a pod's chain of owners; its own if it has none."""
        for _ in range(3):  # pod, ReplicaSet, Deployment
            if uid not in self.owners:
                break
            uid = self.owners[uid]
        return uid

    def endpoints(self, service: Json) -> tuple[frozenset[str], frozenset[str]]:
        """UIDs of the pods behind a Service: (ready ones, all)."""
        metadata = service["metadata"]
        ready: set[str] = set()
        everyone: set[str] = set()
        for (namespace, _), each in self.slices.items():
            if namespace != metadata["namespace"] or labels_of(each).get(SERVICE_OF_SLICE) != metadata["name"]:
                continue
            entries: list[Json] = each.get("endpoints") or []
            for endpoint in entries:
                uid = str(part(endpoint, "targetRef").get("uid", ""))
                everyone.add(uid)
                if part(endpoint, "conditions").get("ready") is not False:  # absent means ready
                    ready.add(uid)
        return frozenset(ready), frozenset(everyone)

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> list[Json]:
        """The Services of the namespace whose selector matches the labels."""
        found: list[Json] = []
        for (space, _), service in self.services.items():
            selector = part(service, "spec", "selector")
            if space == namespace and selector and selector.items() <= labels.items():
                found.append(service)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """``lingering``: it serves, and only old pods that are shutting down are left."""

    health: Health
    explanation: Explanation | None = None
    lingering: bool = False
    old_serve: bool = True  # False: the old version's pods are not well either, so its failure proves nothing


def judge(obj: Json | None, ref: ObjectRef, world: World, *, ours: Collection[Key] = ()) -> Judgement:
    """Whether one applied object serves. ``ours``: keys of the commit's objects (see ``explain_pods``)."""
    verdict = health(obj, ref)
    if obj is None or (ref.group, ref.kind) not in WORKLOADS:
        return Judgement(health=verdict)
    new, old = pods_of(obj, world)
    if ref.kind == "Pod" and verdict.status is HealthStatus.DEGRADED and starts_again(obj):
        verdict = replace(verdict, status=HealthStatus.PROGRESSING)  # an update in place restarts it
    if verdict.status is HealthStatus.HEALTHY and (ref.group, ref.kind) in _COUNTED and (name := _unready(new)):
        # A pod tells before its controller has counted it.
        verdict = Health(status=HealthStatus.PROGRESSING, message=f"pod {name} is not ready", ref=ref)
    if verdict.status is not HealthStatus.HEALTHY:
        workload = None if ref.kind == "Pod" else obj
        standing = [pod for pod in old if not _is_terminating(pod)]
        return Judgement(
            health=verdict,
            explanation=explain_pods(new, workload=workload, ours=ours),
            old_serve=not standing or any(_is_ready(pod) for pod in standing),
        )
    if ref.kind == "Pod" and (container := former_image(obj)):
        # The kubelet takes its time (the grace period), and says Ready meanwhile.
        message = f"container {container} still runs its former image"
        return Judgement(health=Health(status=HealthStatus.PROGRESSING, message=message, ref=ref), lingering=True)
    waiting = _unserved(new, world)
    if waiting:
        return Judgement(health=Health(status=HealthStatus.PROGRESSING, message=waiting, ref=ref))
    if old:
        message = f"{len(old)} old pod{'s are' if len(old) > 1 else ' is'} still shutting down"
        return Judgement(health=Health(status=HealthStatus.PROGRESSING, message=message, ref=ref), lingering=True)
    gone = _dead_endpoints(obj, new, world)
    if gone:
        return Judgement(health=Health(status=HealthStatus.PROGRESSING, message=gone, ref=ref), lingering=True)
    return Judgement(health=verdict)


def started(workload: Json, world: World) -> frozenset[tuple[str, int]]:
    """The pods of the applied version whose readiness says only that their processes were started: (UID, restarts).

    The kubelet calls a container without a readiness or startup probe ready in the moment in which it starts, and one
    that crashes at once is for that moment as available as one that serves. Not so where a controller counts only what
    has stayed ready (``minReadySeconds``), nor for pods that are meant to end.
    """
    if part(workload, "spec").get("minReadySeconds") or workload["kind"] == "Job":
        return frozenset()
    found: set[tuple[str, int]] = set()
    for pod in pods_of(workload, world)[0]:
        containers: list[Json] = part(pod, "spec").get("containers") or []
        probed = all("readinessProbe" in each or "startupProbe" in each for each in containers)
        if not probed and _is_ready(pod):
            statuses: list[Json] = part(pod, "status").get("containerStatuses") or []
            restarts = sum(int(each.get("restartCount") or 0) for each in statuses)
            found.add((pod["metadata"]["uid"], restarts))
    return frozenset(found)


def pods_of(workload: Json, world: World) -> tuple[list[Json], list[Json]]:
    """(pods of the applied version, pods of older ones or shutting down)."""
    uid = workload["metadata"]["uid"]
    pods = [pod for key, pod in world.pods.items() if world.root(key) == uid]
    newest = _newest_replica_set(workload, world)
    revision = str(part(workload, "status").get("updateRevision") or "")
    new: list[Json] = []
    old: list[Json] = []
    for pod in pods:
        owner = world.owners.get(pod["metadata"]["uid"], "")
        outdated = (newest and owner != newest) or (
            workload["kind"] == "StatefulSet" and labels_of(pod).get("controller-revision-hash", revision) != revision
        )
        # A StatefulSet with a partition keeps its old pods; that they are meant to stay, its health says.
        stays = outdated and workload["kind"] == "StatefulSet" and health(workload).status is HealthStatus.HEALTHY
        (old if (outdated and not stays) or _is_terminating(pod) else new).append(pod)
    return new, old


def _newest_replica_set(workload: Json, world: World) -> str:
    """UID of the ReplicaSet of a Deployment's current revision; "" for other kinds and before it exists."""
    if workload["kind"] != "Deployment":
        return ""
    uid = workload["metadata"]["uid"]
    mine = [each for key, each in world.replica_sets.items() if world.owners.get(key) == uid]
    wanted = part(workload, "metadata", "annotations").get(_REVISION)

    def revision(each: Json) -> int:
        text = str(part(each, "metadata", "annotations").get(_REVISION, ""))
        return int(text) if text.isdigit() else 0

    for each in mine:
        if wanted and part(each, "metadata", "annotations").get(_REVISION) == wanted:
            return str(each["metadata"]["uid"])
    return str(max(mine, key=revision)["metadata"]["uid"]) if mine else ""


def _unready(pods: Iterable[Json]) -> str:
    """The name of a pod that is meant to run and is not ready, or "". One that failed or was evicted is replaced."""
    ended = ("Failed", "Succeeded")
    waits = (pod for pod in pods if part(pod, "status").get("phase") not in ended and not _is_ready(pod))
    return next((pod["metadata"]["name"] for pod in waits), "")


def _unserved(pods: Iterable[Json], world: World) -> str:
    """Which ready pod a Service that selects it does not send to yet, or ""."""
    known: dict[tuple[str, str], frozenset[str]] = {}
    for pod in pods:
        metadata = pod["metadata"]
        if not _is_ready(pod):
            continue
        for service in world.selecting(metadata["namespace"], labels_of(pod)):
            name = (service["metadata"]["namespace"], service["metadata"]["name"])
            if name not in known:
                known[name] = world.endpoints(service)[0]
            if metadata["uid"] not in known[name]:
                return f"Service {name[1]} does not send to pod {metadata['name']} yet"
    return ""


def _dead_endpoints(workload: Json, pods: Sequence[Json], world: World) -> str:
    """Which Service still lists a pod of this workload that is gone, or ""."""
    uid = workload["metadata"]["uid"]
    seen: set[str] = set()
    for pod in pods:
        for service in world.selecting(pod["metadata"]["namespace"], labels_of(pod)):
            if service["metadata"]["name"] in seen:
                continue
            seen.add(service["metadata"]["name"])
            listed = world.endpoints(service)[1]
            if any(each not in world.pods and world.root(each) == uid for each in listed):
                return f"Service {service['metadata']['name']} still lists a pod that is gone"
    return ""


def ready_share(workload: Json, wanted: int, world: World) -> float | None:
    """Share (0 to 1) of ``wanted`` that is ready behind the worst of the workload's Services; ``None`` without any."""
    uid = workload["metadata"]["uid"]
    template = part(workload, "spec", "template", "metadata", "labels")
    services = world.selecting(workload["metadata"]["namespace"], template)
    if not services or wanted <= 0:
        return None
    counts = [sum(world.root(each) == uid for each in world.endpoints(service)[0]) for service in services]
    return min(1.0, min(counts) / wanted)


def serving_before(reply: Json) -> int:
    """How many replicas the answer to an apply still reports of the version before, capped by what is wanted now."""
    ready = int(part(reply, "status").get("readyReplicas") or 0)
    return min(ready, int(part(reply, "spec").get("replicas", 1)))


def labels_of(obj: Json) -> Json:
    return part(obj, "metadata", "labels")


def _is_ready(pod: Json) -> bool:
    conditions: list[Json] = part(pod, "status").get("conditions") or []
    return not _is_terminating(pod) and any(
        each.get("type") == "Ready" and each.get("status") == "True" for each in conditions
    )


def _is_terminating(pod: Json) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def common_selector(selectors: Sequence[Mapping[str, str]]) -> str:
    """A label selector that matches whatever any of the selectors does (and perhaps more); "" is everything."""
    if not selectors:
        return ""
    shared = set(selectors[0]).intersection(*selectors[1:])
    parts: list[str] = []
    for key in sorted(shared):
        values = sorted({selector[key] for selector in selectors})
        parts.append(f"{key} in ({','.join(values)})" if len(values) <= 50 else key)
    return ",".join(parts)
