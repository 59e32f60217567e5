"""The decisions of the workload controllers: how many replicas each ReplicaSet gets, which pods go first, what the
conditions say. Pure functions over objects; ``controllers`` carries them out.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from gitsync.sandbox.schema import at, many

Json = dict[str, Any]
HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


def template_hash(template: Json) -> str:
    """Ten characters that stand for a pod template, of the alphabet that spells no words."""
    number = int.from_bytes(hashlib.sha256(orjson.dumps(template, option=orjson.OPT_SORT_KEYS)).digest()[:8])
    return "".join(_SAFE[number // 27**place % 27] for place in range(10))


def bare_template(replica_set: Json) -> Json:
    """A ReplicaSet's pod template as its Deployment wrote it."""
    template = replica_set["spec"]["template"]
    labels = {key: each for key, each in at(template["metadata"], "labels").items() if key != HASH_LABEL}
    return template | {"metadata": template["metadata"] | {"labels": labels}}


def condition(value: Json, kind: str) -> Json:
    for each in many(at(value, "status"), "conditions"):
        if each["type"] == kind:
            return each
    return {}


def is_true(value: Json, kind: str) -> bool:
    return condition(value, kind).get("status") == "True"


def active(pod: Json) -> bool:
    return not pod["metadata"].get("deletionTimestamp") and at(pod, "status").get("phase") not in (
        "Succeeded",
        "Failed",
    )


def seconds_since(stamp: str | None) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds() if stamp else math.inf


def available_in(pod: Json, min_ready: int) -> float:
    """Seconds until a pod counts as available; 0 if it does, infinity if it is not ready."""
    ready = condition(pod, "Ready")
    if ready.get("status") != "True":
        return math.inf
    return max(0.0, min_ready - seconds_since(ready.get("lastTransitionTime"))) if min_ready else 0.0


def share(value: int | str, total: int, *, up: bool) -> int:
    """maxSurge (rounded up) or maxUnavailable (down) as a number of pods."""
    if isinstance(value, int):
        return value
    amount = total * int(value.rstrip("%")) / 100
    return math.ceil(amount) if up else math.floor(amount)


def bounds(deployment: Json) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; never both zero."""
    spec = deployment["spec"]
    if spec["strategy"]["type"] == "Recreate":
        return 0, spec["replicas"]
    rolling, total = spec["strategy"]["rollingUpdate"], spec["replicas"]
    surge, unavailable = share(rolling["maxSurge"], total, up=True), share(rolling["maxUnavailable"], total, up=False)
    return surge, (1 if surge == unavailable == 0 else min(unavailable, total) if total else unavailable)


def deletion_order(pods: Iterable[Json]) -> list[Json]:
    """Pods in the order in which a ReplicaSet gives them up: unscheduled, pending, not ready, youngest first."""

    def rank(pod: Json) -> tuple[bool, bool, bool, int, str]:
        status = pod.get("status", {})
        restarts = sum(each.get("restartCount", 0) for each in many(status, "containerStatuses"))
        ready = is_true(pod, "Ready")
        return (
            bool(pod["spec"].get("nodeName")),
            status.get("phase") == "Running",
            ready,
            -restarts,
            _reversed(condition(pod, "Ready").get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]),
        )

    return sorted(pods, key=rank)


def _reversed(stamp: str) -> str:
    return "".join(chr(0x10FFFF - ord(each)) for each in stamp)


@dataclass(frozen=True, slots=True)
class Scaling:
    """Wanted ``spec.replicas`` of ReplicaSets, by name; only those that change."""

    sizes: dict[str, int]


def roll(deployment: Json, new: Json, old: Sequence[Json], *, old_pods_alive: bool) -> Scaling:
    """The next safe step of a rollout; called again whenever something changed."""
    wanted = deployment["spec"]["replicas"]
    size = new["spec"]["replicas"]
    sizes: dict[str, int] = {}
    if deployment["spec"]["strategy"]["type"] == "Recreate":
        sizes = {each["metadata"]["name"]: 0 for each in old if each["spec"]["replicas"]}
        if not sizes and not old_pods_alive and size != wanted:
            sizes[new["metadata"]["name"]] = wanted
        return Scaling(sizes)
    surge, unavailable = bounds(deployment)
    total = size + sum(each["spec"]["replicas"] for each in old)
    if size > wanted:
        sizes[new["metadata"]["name"]] = wanted
    elif size < wanted and wanted + surge > total:
        sizes[new["metadata"]["name"]] = size + min(wanted + surge - total, wanted - size)
    if sizes:
        return Scaling(sizes)
    floor = wanted - unavailable
    room = total - floor - (size - at(new, "status").get("availableReplicas", 0))
    if room <= 0:
        return Scaling({})
    left = {each["metadata"]["name"]: each["spec"]["replicas"] for each in old}
    # Pods of old ReplicaSets that serve nobody go first: they are no loss.
    for each in _oldest_first(old):
        idle = each["spec"]["replicas"] - at(each, "status").get("availableReplicas", 0)
        step = min(room, max(0, idle))
        left[each["metadata"]["name"]] -= step
        room -= step
    serving = sum(at(each, "status").get("availableReplicas", 0) for each in (new, *old))
    spare = serving - floor
    for each in _oldest_first(old):
        step = min(max(0, spare), left[each["metadata"]["name"]])
        left[each["metadata"]["name"]] -= step
        spare -= step
    before = {each["metadata"]["name"]: each["spec"]["replicas"] for each in old}
    return Scaling({name: amount for name, amount in left.items() if amount != before[name]})


def _oldest_first(replica_sets: Iterable[Json]) -> list[Json]:
    return sorted(replica_sets, key=lambda each: (each["metadata"]["creationTimestamp"], revision_of(each)))


def revision_of(value: Json) -> int:
    return int(at(value["metadata"], "annotations").get(REVISION, 0))


def conditions(old: Sequence[Json], now: str, *wanted: tuple[str, str, str, str], progress: bool = False) -> list[Json]:
    """Conditions (type, status, reason, message) with the times of the old ones kept where nothing changed.

    ``progress`` renews lastUpdateTime of Progressing: the deadline counts from it.
    """
    by_type = {each["type"]: each for each in old}
    for kind, status, reason, message in wanted:
        before = by_type.get(kind, {})
        same = (before.get("status"), before.get("reason"), before.get("message")) == (status, reason, message)
        renewed = not same or (progress and kind == "Progressing")
        by_type[kind] = {
            "type": kind,
            "status": status,
            "lastUpdateTime": now if renewed else before["lastUpdateTime"],
            "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == status else now,
            "reason": reason,
            "message": message,
        }
    return list(by_type.values())
