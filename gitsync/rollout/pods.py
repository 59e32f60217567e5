"""The pods of an Application, read when somebody looks: for showing, never for deciding."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import orjson

from gitsync.errors import GitsyncError
from gitsync.model import Json, ObjectRef
from gitsync.rollout.target import Target, part

MOST_PODS = 100  # of one workload
_DEADLINE = 3.0  # seconds
_SELECTING = frozenset({("apps", "Deployment"), ("apps", "StatefulSet"), ("apps", "DaemonSet"), ("apps", "ReplicaSet")})


async def pods_of_objects(target: Target, objects: Iterable[Json]) -> tuple[Json, ...]:
    """Live pods of these workloads and bare Pods, by name. What cannot be read in time is left out."""

    async def read(obj: Json) -> list[Json]:
        try:
            async with asyncio.timeout(_DEADLINE):
                return await _pods(target, obj)
        except (GitsyncError, TimeoutError):
            return []

    found = await asyncio.gather(*(read(obj) for obj in objects))
    return tuple(sorted((pod for pods in found for pod in pods), key=lambda pod: str(pod["metadata"]["name"])))


async def _pods(target: Target, obj: Json) -> list[Json]:
    ref = ObjectRef.of(obj)
    if (ref.group, ref.kind) == ("", "Pod"):
        pod = await target.cluster.get(ref, impersonate=target.impersonate)
        return [pod] if pod else []
    if (ref.group, ref.kind) == ("batch", "Job"):
        selector = f"batch.kubernetes.io/job-name={ref.name}"
    elif (ref.group, ref.kind) in _SELECTING:
        selector = ",".join(_requirements(part(obj, "spec", "selector")))
    else:
        return []
    pages = target.cluster.pages(
        await target.cluster.resource("", "v1", "Pod"),
        namespace=ref.namespace,
        label_selector=selector,
        limit=MOST_PODS,
        impersonate=target.impersonate,
    )
    async for page in pages:
        items: list[Json] = [orjson.loads(memoryview(item)) for item in (page.items if page else None) or ()]
        return [pod | {"apiVersion": "v1", "kind": "Pod"} for pod in items if _belongs(pod, ref.name)]
    return []


def _requirements(selector: Json) -> list[str]:
    """A label selector as the API's query wants it."""
    words = [f"{key}={value}" for key, value in part(selector, "matchLabels").items()]
    expressions: list[Json] = selector.get("matchExpressions") or []
    for each in expressions:
        key, values = each["key"], ",".join(each.get("values") or ())
        match each["operator"]:
            case "Exists":
                words.append(f"{key}")
            case "DoesNotExist":
                words.append(f"!{key}")
            case operator:
                words.append(f"{key} {str(operator).lower()} ({values})")
    return words


def _belongs(pod: Json, workload: str) -> bool:
    """Another workload's pods may bear the same labels: its name begins the names of what it makes."""
    owners: list[Json] = pod["metadata"].get("ownerReferences") or []
    return any(each["name"] == workload or str(each["name"]).startswith(f"{workload}-") for each in owners)
