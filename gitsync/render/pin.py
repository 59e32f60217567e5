"""Image references in pod templates: found, and pinned to digests; config digests stamped on templates. Pure.

A pod template is recognised by its shape, not by its kind: a mapping with a list ``containers`` of what has a name or
an image, at any depth, so that a custom resource's template is found like a Deployment's (Knative wants no names).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import orjson

from gitsync.model import ANNOTATION_CONFIG_DIGEST, Desired, Json, JsonValue, Manifest, ObjectRef, Origin

_LISTS: Final = ("initContainers", "containers")
#: Kinds whose pods are not rolled: a bare Pod is no template, a Job ran already, a CronJob's next run reads anew.
_NOT_ROLLED: Final = frozenset({("", "Pod"), ("batch", "Job"), ("batch", "CronJob")})
_BUILT_IN: Final = frozenset({"", "apps", "batch"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUse:
    """One container's or volume's image. ``path`` is like ``spec.template.spec.containers[0].image``."""

    ref: ObjectRef
    path: str
    image: str
    origin: Origin


def references(manifests: tuple[Manifest, ...]) -> tuple[ImageUse, ...]:
    """Every image of every container, init container and volume, in the manifests' order."""
    return tuple(
        ImageUse(ref=manifest.ref, path=path, image=image, origin=manifest.at(path))
        for manifest in manifests
        for path, image in _images(manifest.object)
    )


def pin(desired: Desired, images: Mapping[str, str]) -> Desired:
    """Replace references as written by what they are pinned to (``repo@sha256:…``). The unchanged keep identity."""

    def pinned(manifest: Manifest) -> Manifest:
        changed: Json = _pinned(manifest.object, images)
        return manifest if changed is manifest.object else replace(manifest, object=changed)

    return replace(desired, manifests=tuple(pinned(manifest) for manifest in desired.manifests))


def stamp(desired: Desired, *, key: bytes = b"") -> Desired:
    """Annotate pod templates with a digest of the ConfigMaps and Secrets of this commit that they read.

    A change of these then rolls the pods. ``key`` (at most 64 bytes) keys the digest, so that it says nothing about a
    Secret of few possible values to those who may read the Deployment alone. Jobs, CronJobs and bare Pods are left.
    """
    configs = {
        (m.ref.kind, m.ref.namespace, m.ref.name): m.object
        for m in desired.manifests
        if m.ref.group == "" and m.ref.kind in ("ConfigMap", "Secret")
    }

    def stamped(manifest: Manifest) -> Manifest:
        ref = manifest.ref
        if (ref.group, ref.kind) in _NOT_ROLLED:
            return manifest
        digests: dict[str, str] = {}
        for path, spec in _pod_specs(manifest.object, ""):
            read = {
                name: configs[name]
                for kind, config in _reads(spec)
                if (name := (kind, ref.namespace, config)) in configs
            }
            if read:
                digests[path] = _digest(read, key)
        changed = _annotated(manifest.object, "", digests, ref.group in _BUILT_IN) if digests else manifest.object
        return manifest if changed is manifest.object else replace(manifest, object=changed)

    return replace(desired, manifests=tuple(stamped(manifest) for manifest in desired.manifests))


# ---------------------------------------------------------------- shapes


def _is_pod_spec(node: Mapping[str, JsonValue]) -> bool:
    containers = node.get("containers")
    if not isinstance(containers, list) or not containers:
        return False
    return all(
        isinstance(container, dict)
        and any(isinstance(cast("Json", container).get(key), str) for key in ("name", "image"))
        for container in cast("list[JsonValue]", containers)
    )


def _containers(spec: Mapping[str, JsonValue]) -> Iterator[tuple[str, Json]]:
    for name in _LISTS:
        listed = spec.get(name)
        for index, container in enumerate(cast("list[JsonValue]", listed) if isinstance(listed, list) else ()):
            if isinstance(container, dict):
                yield f"{name}[{index}]", cast("Json", container)


def _pod_specs(node: JsonValue, path: str) -> Iterator[tuple[str, Json]]:
    """Every pod spec with its path, parents before children."""
    if isinstance(node, dict):
        mapping = cast("Json", node)
        if _is_pod_spec(mapping):
            yield path, mapping
        for key, child in mapping.items():
            if isinstance(child, dict | list) and (path or key not in ("metadata", "status")):
                yield from _pod_specs(child, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for index, child in enumerate(cast("list[JsonValue]", node)):
            yield from _pod_specs(child, f"{path}[{index}]")


def _images(obj: Json) -> Iterator[tuple[str, str]]:
    for path, spec in _pod_specs(obj, ""):
        for place, container in _containers(spec):
            image = container.get("image")
            if isinstance(image, str) and image:
                yield f"{path}.{place}.image", image
        volumes = spec.get("volumes")
        for index, volume in enumerate(cast("list[JsonValue]", volumes) if isinstance(volumes, list) else ()):
            reference = _mapping(volume, "image").get("reference")
            if isinstance(reference, str) and reference:
                yield f"{path}.volumes[{index}].image.reference", reference


def _pinned(node: JsonValue, images: Mapping[str, str], *, top: bool = True) -> Any:
    """The node itself where nothing changes, else a copy of what leads to a change."""
    if isinstance(node, dict):
        mapping = cast("Json", node)
        changed = {
            key: new
            for key, child in mapping.items()
            if isinstance(child, dict | list)
            and not (top and key in ("metadata", "status"))
            and (new := _pinned(child, images, top=False)) is not child
        }
        if _is_pod_spec(mapping):
            for name, with_image in ((_LISTS[0], _container), (_LISTS[1], _container), ("volumes", _volume)):
                listed = changed.get(name, mapping.get(name))
                if isinstance(listed, list):
                    items = [with_image(child, images) for child in cast("list[JsonValue]", listed)]
                    if any(new is not old for new, old in zip(items, cast("list[Any]", listed), strict=True)):
                        changed[name] = items
        return {**mapping, **changed} if changed else mapping
    if isinstance(node, list):
        old = cast("list[JsonValue]", node)
        new = [_pinned(child, images, top=False) if isinstance(child, dict | list) else child for child in old]
        return new if any(a is not b for a, b in zip(new, old, strict=True)) else old
    return node


def _container(node: JsonValue, images: Mapping[str, str]) -> JsonValue:
    if not isinstance(node, dict):
        return node
    container = cast("Json", node)
    image = container.get("image")
    wanted = images.get(image) if isinstance(image, str) else None
    return container if wanted is None or wanted == image else {**container, "image": wanted}


def _volume(node: JsonValue, images: Mapping[str, str]) -> JsonValue:
    image = _mapping(node, "image")
    reference = image.get("reference")
    wanted = images.get(reference) if isinstance(reference, str) else None
    changes = wanted is not None and wanted != reference
    return {**cast("Json", node), "image": {**image, "reference": wanted}} if changes else node


# ---------------------------------------------------------------- config digests


def _mapping(node: JsonValue, *keys: str) -> Json:
    for key in keys:
        node = cast("Json", node).get(key) if isinstance(node, dict) else None
    return cast("Json", node) if isinstance(node, dict) else {}


def _items(node: JsonValue, *keys: str) -> list[Json]:
    parent: JsonValue = _mapping(node, *keys[:-1]).get(keys[-1])
    listed = cast("list[JsonValue]", parent) if isinstance(parent, list) else []
    return [cast("Json", item) for item in listed if isinstance(item, dict)]


def _reads(spec: Json) -> Iterator[tuple[str, str]]:
    """Kind and name of what a pod spec reads. Pull secrets are the kubelet's, not the pod's."""
    for _, container in _containers(spec):
        for variable in _items(container, "env"):
            yield "ConfigMap", str(_mapping(variable, "valueFrom", "configMapKeyRef").get("name", ""))
            yield "Secret", str(_mapping(variable, "valueFrom", "secretKeyRef").get("name", ""))
        for source in _items(container, "envFrom"):
            yield "ConfigMap", str(_mapping(source, "configMapRef").get("name", ""))
            yield "Secret", str(_mapping(source, "secretRef").get("name", ""))
    for volume in _items(spec, "volumes"):
        yield "ConfigMap", str(_mapping(volume, "configMap").get("name", ""))
        yield "Secret", str(_mapping(volume, "secret").get("secretName", ""))
        for source in _items(volume, "projected", "sources"):
            yield "ConfigMap", str(_mapping(source, "configMap").get("name", ""))
            yield "Secret", str(_mapping(source, "secret").get("name", ""))


def _digest(read: Mapping[tuple[str, str, str], Json], key: bytes) -> str:
    content = [
        [kind, name, {part: obj[part] for part in ("data", "binaryData", "stringData") if part in obj}]
        for (kind, _, name), obj in sorted(read.items(), key=lambda item: item[0])
    ]
    return hashlib.blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16, key=key).hexdigest()


def _annotated(node: JsonValue, path: str, digests: Mapping[str, str], built_in: bool) -> Any:
    if isinstance(node, dict):
        mapping = cast("Json", node)
        changed = {
            key: new
            for key, child in mapping.items()
            if (new := _annotated(child, f"{path}.{key}" if path else key, digests, built_in)) is not child
        }
        digest = digests.get(f"{path}.spec")
        # A custom resource's template may have no metadata in its schema: it must show that it does.
        if digest and (built_in or isinstance(mapping.get("metadata"), dict)):
            metadata = _mapping(mapping, "metadata")
            annotations = _mapping(metadata, "annotations")
            if annotations.get(ANNOTATION_CONFIG_DIGEST) != digest:
                changed["metadata"] = {**metadata, "annotations": {**annotations, ANNOTATION_CONFIG_DIGEST: digest}}
        return {**mapping, **changed} if changed else mapping
    if isinstance(node, list):
        old = cast("list[JsonValue]", node)
        new = [_annotated(child, f"{path}[{index}]", digests, built_in) for index, child in enumerate(old)]
        return new if any(a is not b for a, b in zip(new, old, strict=True)) else old
    return node
