"""Whose field is it? Autoscalers keep ``spec.replicas``; adoption takes over what ``kubectl apply`` once owned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from gitsync.cluster.answers import Conflict, NoKind
from gitsync.cluster.client import Cluster
from gitsync.model import FIELD_MANAGER, Json, Manifest, ObjectRef
from gitsync.rollout.target import part

# ---------------------------------------------------------------- autoscalers

#: Live kinds that scale what they name in ``spec.scaleTargetRef``.
_AUTOSCALERS = (("autoscaling", "v2", "HorizontalPodAutoscaler"), ("keda.sh", "v1alpha1", "ScaledObject"))


async def autoscalers(cluster: Cluster, manifests: Iterable[Manifest], *, impersonate: str = "") -> tuple[Json, ...]:
    """The autoscalers that live in the namespaces of the manifests' workloads, whoever made them."""
    namespaces = {
        manifest.ref.namespace
        for manifest in manifests
        if manifest.ref.namespace and "replicas" in part(manifest.object, "spec")
    }

    async def live(kind: tuple[str, str, str], namespace: str) -> tuple[Json, ...]:
        try:
            resource = await cluster.resource(*kind)
        except NoKind:
            return ()
        return (await cluster.list(resource, namespace=namespace, impersonate=impersonate)).items

    answers = await asyncio.gather(*(live(kind, space) for kind in _AUTOSCALERS for space in sorted(namespaces)))
    return tuple(obj for answer in answers for obj in answer)


def without_replicas(obj: Json) -> Json:
    """A copy that leaves ``spec.replicas`` to whoever owns it."""
    spec = part(obj, "spec")
    return obj | {"spec": {key: value for key, value in spec.items() if key != "replicas"}} if spec else obj


# ---------------------------------------------------------------- adoption

#: Managers (operation Update) whose fields were really somebody's manifest.
_MANIFEST_MANAGERS = frozenset({"kubectl-client-side-apply", "kubectl", "kubectl-create", "before-first-apply"})


def taken_over(entries: list[Json]) -> list[Json] | None:
    """managedFields in which gitsync owns what manifests set through kubectl; ``None`` if there is nothing to take.

    After this, a field that git lacks is removed by the next apply. Without it two managers own each field, and what is
    taken out of git stays for ever.
    """
    legacy = [each for each in entries if _is_legacy(each)]
    if not legacy:
        return None
    ours = next((each for each in entries if _is_ours(each)), None)
    base = ours or {
        "manager": FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": legacy[0]["apiVersion"],
        "fieldsType": "FieldsV1",
        "time": legacy[0].get("time"),
        "fieldsV1": {},
    }
    fields: Json = base["fieldsV1"]
    for each in legacy:
        if each["apiVersion"] == base["apiVersion"]:  # paths of another version may mean something else
            fields = _union(fields, each.get("fieldsV1") or {})
    rest = [each for each in entries if each is not ours and each not in legacy]
    return [{key: value for key, value in (base | {"fieldsV1": fields}).items() if value is not None}, *rest]


def _is_legacy(entry: Json) -> bool:
    return (
        entry.get("operation") == "Update"
        and entry.get("manager") in _MANIFEST_MANAGERS
        and not entry.get("subresource")
    )


def _is_ours(entry: Json) -> bool:
    return entry.get("operation") == "Apply" and entry.get("manager") == FIELD_MANAGER and not entry.get("subresource")


def _union(one: Json, other: Json) -> Json:
    merged = dict(one)
    for key, value in other.items():
        merged[key] = _union(merged[key], value) if key in merged else value
    return merged


async def adopt(cluster: Cluster, ref: ObjectRef, *, impersonate: str = "") -> bool:
    """Take over an object that kubectl managed, before the first apply. True if its ownership changed."""
    for _ in range(5):
        live = await cluster.get(ref, impersonate=impersonate)
        if live is None:
            return False
        metadata = live["metadata"]
        entries = taken_over(metadata.get("managedFields") or [])
        if entries is None:
            return False
        operations = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": entries},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        ]
        try:
            await cluster.patch(ref, operations, impersonate=impersonate)
        except Conflict:
            continue
        return True
    raise Conflict("it changes faster than it can be read", doing="adopting", ref=ref)
