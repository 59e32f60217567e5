"""In which order objects are applied and pruned, and under which name a Job runs. Pure.

Waves, each of which is healthy before the next one begins:

1. Namespaces, then CustomResourceDefinitions, whatever their annotations say: the rest cannot even be checked before.
2. The others by ``gitsync.dev/sync-wave``, lowest first; without it an object is in wave 0. Argo CD's
   ``argocd.argoproj.io/sync-wave`` is read where ours is absent, so that a repository can be moved as it is.
   A chart's hooks that have neither go before all of these if they are for before an installation, and after all of
   them if they are for afterwards only, by ``helm.sh/hook-weight``.

Within a wave, by kind: what is referred to comes before what refers to it. Pruning goes the other way round.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

import orjson

from gitsync.errors import Invalid
from gitsync.model import ANNOTATION_REVISION, ANNOTATION_WAVE, Desired, InventoryItem, Manifest, ObjectRef
from gitsync.plan.lint import as_map

ANNOTATION_WAVE_OF_ARGO = "argocd.argoproj.io/sync-wave"
ANNOTATION_HOOK, ANNOTATION_HOOK_WEIGHT = "helm.sh/hook", "helm.sh/hook-weight"
LABEL_JOB = "gitsync.dev/job"  # on Jobs: the name that git gives them

_ORDER = (
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "RuntimeClass",
    "StorageClass",
    "ResourceQuota",
    "LimitRange",
    "NetworkPolicy",
    "ServiceAccount",
    "ClusterRole",
    "Role",
    "ClusterRoleBinding",
    "RoleBinding",
    "ConfigMap",
    "Secret",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "Endpoints",
    "EndpointSlice",
    "Service",
    "DaemonSet",
    "StatefulSet",
    "ReplicationController",
    "ReplicaSet",
    "Deployment",
    "Pod",
    "Job",
    "CronJob",
    "HorizontalPodAutoscaler",
    "",  # every kind that is not named: custom resources
    "IngressClass",
    "Ingress",
    "APIService",
    "MutatingWebhookConfiguration",  # last: a webhook whose server does not run yet refuses everything
    "ValidatingWebhookConfiguration",
)
_RANK = {kind: rank for rank, kind in enumerate(_ORDER)}
_FIRST = ("Namespace", "CustomResourceDefinition")
_API = re.compile(r"([^.]*|.*\.k8s\.io)")


def waves(manifests: Iterable[Manifest]) -> tuple[tuple[Manifest, ...], ...]:
    """The manifests, grouped and ordered as above; equals keep the order of the files.

    ``Invalid`` with the annotation's place if a wave is no integer.
    """
    groups: dict[tuple[int, int, int], list[Manifest]] = {}
    for manifest in manifests:
        rank = _rank(manifest.ref)
        first = _ORDER[rank] in _FIRST
        place = (rank, 0, 0) if first else (len(_FIRST), *_wave(manifest))
        groups.setdefault(place, []).append(manifest)
    return tuple(tuple(sorted(group, key=lambda each: _rank(each.ref))) for _, group in sorted(groups.items()))


def prune_order(items: Iterable[InventoryItem]) -> tuple[InventoryItem, ...]:
    """What refers goes before what is referred to; CustomResourceDefinitions and Namespaces go last."""
    return tuple(sorted(items, key=lambda item: (-_rank(item.ref), item.ref)))


def name_jobs(desired: Desired) -> Desired:
    """Jobs renamed to ``<name>-<8 hex digits of their spec>``: a Job cannot be changed, and runs once per content.

    ``LABEL_JOB`` keeps the name that git gave it. Which revision a pod came from is not part of the content.
    """
    return replace(
        desired,
        manifests=tuple(
            _named_by_content(manifest) if (manifest.ref.group, manifest.ref.kind) == ("batch", "Job") else manifest
            for manifest in desired.manifests
        ),
    )


def _named_by_content(manifest: Manifest) -> Manifest:
    spec = orjson.dumps(_without_revision(manifest.object.get("spec")), option=orjson.OPT_SORT_KEYS)
    name = f"{manifest.ref.name[:54].rstrip('-.')}-{hashlib.sha256(spec).hexdigest()[:8]}"  # its pods' label holds 63
    metadata = as_map(manifest.object, "metadata")
    labelled = metadata | {"name": name, "labels": as_map(metadata, "labels") | {LABEL_JOB: manifest.ref.name}}
    renamed = manifest.object | {"metadata": labelled}
    return replace(manifest, ref=replace(manifest.ref, name=name), object=renamed)


def _without_revision(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_revision(item) for key, item in value.items() if key != ANNOTATION_REVISION}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return value


def _rank(ref: ObjectRef) -> int:
    """By kind, for kinds of the Kubernetes API: a custom resource may be called Service too."""
    return _RANK.get(ref.kind if _API.fullmatch(ref.group) else "", _RANK[""])


def _wave(manifest: Manifest) -> tuple[int, int]:
    """Before (-1), among (0) or after (1) all that are no hooks, and the number of the wave there."""
    annotations = as_map(as_map(manifest.object, "metadata"), "annotations")
    phase = _phase(annotations.get(ANNOTATION_HOOK))
    for key in (ANNOTATION_WAVE, ANNOTATION_WAVE_OF_ARGO, *([ANNOTATION_HOOK_WEIGHT] if phase else [])):
        text = annotations.get(key)
        if text is None:
            continue
        if isinstance(text, str) and re.fullmatch(r"[+-]?[0-9]{1,9}", text.strip()):
            return phase if key == ANNOTATION_HOOK_WEIGHT else 0, int(text)
        if key == ANNOTATION_HOOK_WEIGHT:
            break  # to helm, what is no number weighs nothing
        raise Invalid(
            f"{key} must be a whole number in quotes, such as '-1' or '5', not {text!r}",
            doing="ordering",
            ref=manifest.ref,
            origin=manifest.at(f"metadata.annotations[{key}]"),
        )
    return phase, 0


def _phase(hook: object) -> int:
    """Where helm would run it. What it runs before an upgrade only may need what the installation brings: among."""
    events = {event.strip() for event in hook.split(",")} if isinstance(hook, str) else set[str]()
    if "pre-install" in events:
        return -1
    # Hooks of a deletion, a rollback or a test are no part of a rollout: what else a hook is for says where it goes.
    sent = events & {"crd-install", "pre-upgrade", "post-install", "post-upgrade"}
    return 1 if sent and sent <= {"post-install", "post-upgrade"} else 0
