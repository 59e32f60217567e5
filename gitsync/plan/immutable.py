"""What the API server will not change in place, known before anything is written. Pure.

A dry run would say the same, but one object at a time and in the server's words; here the whole commit is judged at
once, by field, with what to do instead. The table need not be complete: what it does not know, the dry run refuses.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, cast

from gitsync.model import FieldChange, Json, JsonValue, ObjectRef
from gitsync.plan.diff import quantity
from gitsync.plan.lint import as_list, as_map


class Frozen(NamedTuple):
    """A change that cannot be made in place."""

    path: str
    hint: str


_ASIDE = "give the object another name, so that both run side by side, or accept an interruption"
_ANEW = "give it another name"

#: By group and kind: which paths cannot change once they have a value, and what to do instead.
_TABLE: dict[tuple[str, str], tuple[str, str]] = {
    ("apps", "Deployment"): (r"spec\.selector\b", _ASIDE),
    ("apps", "ReplicaSet"): (r"spec\.selector\b", _ASIDE),
    ("apps", "DaemonSet"): (r"spec\.selector\b", _ASIDE),
    ("apps", "StatefulSet"): (
        r"spec\.(?!(replicas|ordinals|template|updateStrategy|revisionHistoryLimit|minReadySeconds"
        r"|persistentVolumeClaimRetentionPolicy)\b)",
        _ASIDE,
    ),
    ("batch", "Job"): (
        r"spec\.(template|selector|completions|completionMode|podFailurePolicy|successPolicy|backoffLimitPerIndex"
        r"|managedBy|podReplacementPolicy)\b",
        _ANEW,
    ),
    ("", "Service"): (r"spec\.(clusterIP|clusterIPs|ipFamilies\[0\])(\b|$)", "leave the address to the cluster"),
    ("", "PersistentVolumeClaim"): (
        r"spec\.(?!(resources|volumeAttributesClassName)\b)",
        "make a claim of another name and move the data; a claim is never replaced",
    ),
    ("", "PersistentVolume"): (
        r"spec\.(?!(capacity|accessModes|claimRef|persistentVolumeReclaimPolicy|mountOptions|storageClassName"
        r"|volumeAttributesClassName|nodeAffinity)\b)",
        "make a volume of another name; a volume is never replaced",
    ),
    ("storage.k8s.io", "StorageClass"): (r"(provisioner|parameters|reclaimPolicy|volumeBindingMode)\b", _ANEW),
    ("scheduling.k8s.io", "PriorityClass"): (r"(value|preemptionPolicy)\b", _ANEW),
    ("networking.k8s.io", "IngressClass"): (r"spec\.controller\b", _ANEW),
    ("node.k8s.io", "RuntimeClass"): (r"handler\b", _ANEW),
    ("rbac.authorization.k8s.io", "RoleBinding"): (r"roleRef\b", _ANEW),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): (r"roleRef\b", _ANEW),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): (
        r"spec\.(scope|group|names\.(plural|kind))\b",
        "a definition is never replaced: that would delete every object of its kind",
    ),
    ("", "Secret"): (r"type\b", _ANEW),
}
_SEALED = re.compile(r"(data|binaryData|immutable)\b")
#: What the API server writes into these itself when they are left out, by the last name of the path.
_GIVEN: dict[str, JsonValue] = {
    "type": "Opaque",
    "podManagementPolicy": "OrderedReady",
    "volumeMode": "Filesystem",
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
    "preemptionPolicy": "PreemptLowerPriority",
    "apiGroup": "rbac.authorization.k8s.io",
    "apiVersion": "v1",  # of a claim's template, as are the next ones
    "kind": "PersistentVolumeClaim",
    "status": {"phase": "Pending"},
}

#: Deleting one of these deletes what cannot be made again.
_NEVER_REPLACED = frozenset(
    {
        ("", "Namespace"),
        ("", "PersistentVolume"),
        ("", "PersistentVolumeClaim"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
    }
)


def replaceable(ref: ObjectRef) -> bool:
    """Whether deleting and creating it anew loses nothing but time."""
    return (ref.group, ref.kind) not in _NEVER_REPLACED


def frozen(ref: ObjectRef, desired: Json, live: Json, fields: Sequence[FieldChange]) -> tuple[Frozen, ...]:
    """Which of the changes the API server would refuse for an object that exists."""
    kind = (ref.group, ref.kind)
    pattern, hint = _TABLE.get(kind, ("$.", ""))
    found = [
        Frozen(change.path, hint)
        for change in fields
        if re.match(pattern, change.path) and not _may_be_set_once(kind, change) and not _comes_back(change)
    ]
    if kind in (("", "ConfigMap"), ("", "Secret")) and live.get("immutable") is True:
        found += [Frozen(change.path, f"it is immutable: {_ANEW}") for change in fields if _SEALED.match(change.path)]
    if kind == ("", "PersistentVolumeClaim") and _shrinks(desired, live):
        found.append(Frozen("spec.resources.requests.storage", "a claim can grow, never shrink"))
    return tuple(found)


def _may_be_set_once(kind: tuple[str, str], change: FieldChange) -> bool:
    """An address that the Service did not have yet, or that it gives up with its type, is no change of one."""
    return kind == ("", "Service") and (change.before is None or change.after is None)


def _comes_back(change: FieldChange) -> bool:
    """Whether git leaves out only what the server writes there anyway: then nothing changes."""
    name = change.path.rpartition(".")[2]
    return change.after is None and name in _GIVEN and change.before == _GIVEN[name]


def _shrinks(desired: Json, live: Json) -> bool:
    wanted, has = _storage(desired), _storage(live)
    return wanted is not None and has is not None and wanted < has


def _storage(claim: Json) -> Fraction | None:
    value: JsonValue = claim
    for key in ("spec", "resources", "requests", "storage"):
        value = cast(Json, value).get(key) if isinstance(value, dict) else None
    return quantity(value)


# ---------------------------------------------------------------- bare Pods

_POD_IN_PLACE = re.compile(
    r"metadata\b|spec\.(containers|initContainers)\[name=[^]]*\]\.image$|spec\.activeDeadlineSeconds$"
)


def pod_fields(desired: Json, live: Json, fields: Sequence[FieldChange]) -> tuple[FieldChange, ...]:
    """The changes without those that only undo what admission added to the Pod's tolerations."""
    wanted, has = _tolerations(desired), _tolerations(live)
    added = all(any(each.items() <= other.items() for other in has) for each in wanted)
    return tuple(change for change in fields if not (added and change.path.startswith("spec.tolerations")))


def pod_in_place(live: Json, fields: Sequence[FieldChange]) -> bool:
    """Whether the changes can be made in a Pod that exists: of its spec, the images are nearly all that can change.

    A Pod that has ended does not start again for a new image.
    """
    ended = as_map(live, "status").get("phase") in ("Succeeded", "Failed")
    if ended and any(change.path.startswith("spec") for change in fields):
        return False
    return all(_POD_IN_PLACE.match(change.path) for change in fields)


def _tolerations(pod: Json) -> list[Json]:
    return as_list(as_map(pod, "spec"), "tolerations")
