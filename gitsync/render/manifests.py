"""A directory of a commit to ``Desired``: which files count, what an object must have, what is dropped.

A directory is one of three: a kustomization (kustomize.py), a chart (helm.py), or plain ``*.yaml``, ``*.yml`` and
``*.json``, recursively, without names that begin with a dot. A kustomization or chart in mid-tree of a plain directory
is an error, not a guess. Whatever is wrong is found before anything is sent, and named by file, line and field.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import orjson

from gitsync.errors import Invalid
from gitsync.model import (
    Desired,
    FileMode,
    Json,
    JsonValue,
    Manifest,
    ObjectRef,
    Origin,
    Snapshot,
    TreeEntry,
)
from gitsync.render import helm, kustomize
from gitsync.render.directory import Directory
from gitsync.render.pin import references
from gitsync.render.reader import Reader
from gitsync.render.tool import Bounds
from gitsync.render.yaml import MAX_BYTES, Document, LineMap

SUFFIXES: Final = (".yaml", ".yml", ".json")
#: Bytes of one object as JSON: what etcd takes by default.
MAX_OBJECT: Final = 3 << 19
_KUSTOMIZE_GROUP: Final = "kustomize.config.k8s.io/"


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """``reader`` is shared by the process (``None``: one per call). ``files`` and ``size`` (bytes) bound a commit."""

    reader: Reader | None = None
    files: int = 20_000
    size: int = 64 << 20
    bounds: Bounds = field(default_factory=Bounds)
    release: str = "release"  # for a chart: the release's name, its namespace, values files in the chart
    namespace: str = ""
    values: tuple[str, ...] = ()


async def render(snapshot: Snapshot, path: str, *, options: RenderOptions | None = None) -> Desired:
    """What the directory (or single file) ``path`` of a commit wants, unpinned, in file order.

    Namespaces stay as written: ``with_namespace`` fills them when the kinds' scopes are known. What only a server may
    write (``status``, ``metadata.uid``, …) is dropped. Raises ``Invalid``; never returns an empty ``Desired``.
    """
    manifests = tuple(
        replace(manifest, object=_cleaned(manifest.object)) for manifest in await _render(snapshot, path, options)
    )
    return Desired(revision=snapshot.revision, manifests=manifests)


async def render_directory(path: Path) -> tuple[Manifest, ...]:
    """The objects of a directory (or file) on disk, exactly as ``kubectl`` would read them; git is not needed."""
    root, below = await Directory.around(path)
    return tuple(await _render(root, below, None))


def with_namespace(desired: Desired, namespace: str, is_namespaced: Callable[[ObjectRef], bool]) -> Desired:
    """Fill ``namespace`` where a namespaced object has none; take it away from cluster-scoped ones, as the server does.

    Raises ``Invalid`` if that makes two objects the same.
    """

    def placed(manifest: Manifest) -> Manifest:
        wanted = (manifest.ref.namespace or namespace) if is_namespaced(manifest.ref) else ""
        if wanted == manifest.ref.namespace:
            return manifest
        metadata = {key: value for key, value in manifest.object["metadata"].items() if key != "namespace"}
        if wanted:
            metadata["namespace"] = wanted
        return replace(
            manifest, ref=replace(manifest.ref, namespace=wanted), object={**manifest.object, "metadata": metadata}
        )

    manifests = tuple(placed(manifest) for manifest in desired.manifests)
    _check_unique(manifests)
    return replace(desired, manifests=manifests)


# ---------------------------------------------------------------- files


async def _render(snapshot: Snapshot, path: str, options: RenderOptions | None) -> list[Manifest]:
    options = options or RenderOptions()
    directory = _normal(path)
    base = Origin(repository=snapshot.revision.repository, sha=snapshot.revision.sha, file=directory)
    if options.reader is None:
        async with Reader() as reader:
            found = await _found(snapshot, directory, reader, options, base)
    else:
        found = await _found(snapshot, directory, options.reader, options, base)
    manifests = list(found)
    if not manifests:
        raise Invalid("holds no object, only comments or empty documents", doing="rendering", origin=_whole(base),
                      hint="to remove everything, delete the Application", reason="Empty")  # fmt: skip
    _check_unique(manifests)
    return manifests


def _normal(path: str) -> str:
    normal = posixpath.normpath(path or ".")
    if normal.startswith(("..", "/")) or "\0" in path:
        raise Invalid(f"the path '{path}' leaves the repository", doing="rendering", hint="give a path inside it")
    return "" if normal == "." else normal


def _whole(base: Origin) -> Origin:
    """The place of what concerns the directory as a whole; the root has a name too."""
    return replace(base, file=base.file or ".")


async def _found(
    snapshot: Snapshot, directory: str, reader: Reader, options: RenderOptions, base: Origin
) -> list[Manifest]:
    if kustomize.at(snapshot, directory):
        output = await kustomize.build(snapshot, directory, bounds=options.bounds, size=options.size)
        return await _from_kustomize(snapshot, directory, output, reader, base)
    if snapshot.entry(posixpath.join(directory, helm.FILE)):
        output = await helm.build(
            snapshot,
            directory,
            release=options.release,
            namespace=options.namespace,
            values=options.values,
            bounds=options.bounds,
            size=options.size,
        )
        sources = helm.Sources(output, directory)
        documents, size = await _read_output(output, reader, base, helm.FILE)
        return [
            manifest
            for document in documents
            if helm.is_released(document.value)
            for manifest in _manifests(_unplaced(document.value), replace(base, file=sources.at(document.line)), size)
        ]
    entries = _select(snapshot, directory, options, base)
    if not entries:
        raise Invalid(f"holds no file that ends in {', '.join(SUFFIXES)}", doing="rendering", origin=_whole(base),
                      reason="Empty")  # fmt: skip
    parsed = await _read(snapshot, entries, reader, options, base)
    return [
        manifest
        for path, (documents, size) in parsed.items()
        for document in documents
        for manifest in _manifests(document, replace(base, file=path), size)
    ]


async def _read(
    snapshot: Snapshot, entries: Iterable[TreeEntry], reader: Reader, options: RenderOptions, base: Origin
) -> dict[str, tuple[list[Document], int]]:
    wanted = list(entries)
    # Two passes at most: the cache may drop a blob while the others are being read.
    unknown = [entry for entry in wanted if not reader.knows(entry.id)]
    data = await snapshot.read(unknown, limit=options.size) if unknown else {}
    gone = [entry for entry in wanted if entry.path not in data and not reader.knows(entry.id)]
    if gone:
        data |= await snapshot.read(gone, limit=options.size)
        if any(entry.path not in data for entry in wanted):
            data = await snapshot.read(wanted, limit=options.size)
    return await reader.documents({entry.path: (entry.id, data.get(entry.path)) for entry in wanted}, base)


def _select(snapshot: Snapshot, directory: str, options: RenderOptions, base: Origin) -> list[TreeEntry]:
    """The files that count. Refuses, by name, what cannot be read as a plain file."""

    def refuse(message: str, path: str, hint: str = "") -> Invalid:
        return Invalid(message, doing="rendering", origin=replace(base, file=path), hint=hint)

    single = snapshot.entry(directory) if directory else None
    listed = [single] if single else list(islice(snapshot.entries(directory), options.files + 1))
    if not listed and directory:
        for parent in _parents(directory):
            entry = snapshot.entry(parent)
            if entry is not None:
                raise refuse(*_reason(entry, "is a file, not a directory"))
        raise Invalid("is not in the commit", doing="rendering", origin=base,
                      hint="name the directory of the manifests as `path`", reason="PathNotFound")  # fmt: skip
    if len(listed) > options.files:
        raise refuse(f"holds more than {options.files} files", directory, "name a smaller directory as `path`")

    selected: list[TreeEntry] = []
    total = 0
    prefix = len(directory) + 1 if directory else 0
    for entry in listed:
        relative = entry.path[prefix:] if not single else posixpath.basename(entry.path)
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        name = posixpath.basename(relative)
        suffixed = name.lower().endswith(SUFFIXES) if single else name.endswith(SUFFIXES)
        if (entry.mode is FileMode.SYMLINK and (suffixed or "." not in name)) or entry.mode is FileMode.SUBMODULE:
            raise refuse(*_reason(entry, ""))
        if (name in kustomize.FILES or name == helm.FILE) and not single:
            inner = posixpath.dirname(entry.path)
            kind = "chart" if name == helm.FILE else "kustomization"
            raise refuse(f"is a {kind} within the plain directory '{directory or '.'}'", entry.path,
                         f"name '{inner}' as `path`, or move it out")  # fmt: skip
        if entry.mode is FileMode.SYMLINK or not (suffixed or single):
            continue
        if not name.isprintable():
            raise refuse("has a name with unprintable characters", ascii(entry.path)[1:-1], "rename it")
        total += max(entry.size, 0)
        if entry.size > MAX_BYTES or total > options.size:
            raise refuse(f"is {entry.size} bytes, beyond what a manifest may be", entry.path, "move it elsewhere")
        selected.append(entry)
    return selected


def _reason(entry: TreeEntry, otherwise: str) -> tuple[str, str, str]:
    message, hint = kustomize.refusal(entry) or (otherwise, "")
    return message, entry.path, hint


def _parents(path: str) -> Iterator[str]:
    while path:
        path = posixpath.dirname(path)
        if path:
            yield path


async def _read_output(data: bytes, reader: Reader, base: Origin, name: str) -> tuple[list[Document], int]:
    path = posixpath.join(base.file, name)
    return (await reader.documents({path: ("", data)}, base))[path]


async def _from_kustomize(
    snapshot: Snapshot, directory: str, output: bytes, reader: Reader, base: Origin
) -> list[Manifest]:
    """Objects of a build, each placed at the file that it came from; the line is that of the object before patches."""
    root = kustomize.at(snapshot, directory)
    documents, size = await _read_output(output, reader, base, posixpath.basename(root))
    origins = [kustomize.take_origin(document.value, directory) for document in documents]
    entries = {path: entry for _, path in origins if path and (entry := snapshot.entry(path)) is not None}
    sources = await _read(snapshot, entries.values(), reader, RenderOptions(), base)
    manifests: list[Manifest] = []
    for obj, path in origins:
        source = _before(obj, sources[path][0] if path in sources else [])
        placed = Document(obj, source.line, source.column, source.lines) if source else _unplaced(obj)
        manifests += _manifests(placed, replace(base, file=path or root), size)
    return manifests


def _unplaced(value: JsonValue) -> Document:
    """A generated document: no file has its lines."""
    return Document(value, 0, 0, LineMap())


def _before(obj: JsonValue, candidates: list[Document]) -> Document | None:
    """The only document that may have become this object: same kind, its name within the new one."""

    def name(value: Json) -> str:
        return str(_dict(value.get("metadata")).get("name") or "")

    now = _dict(obj)
    matching = [
        document
        for document in candidates
        if (was := _dict(document.value)).get("kind") == now.get("kind") and name(was) in name(now)
    ]
    return matching[0] if len(matching) == 1 else None


# ---------------------------------------------------------------- objects


def _manifests(document: Document, file: Origin, size: int) -> Iterator[Manifest]:
    """A document's object, or those of its List."""
    origin = replace(file, line=document.line, column=document.column)
    yield from _objects(document.value, origin, document.lines, size, inherited=("", ""))


def _objects(
    value: JsonValue, origin: Origin, lines: LineMap, size: int, inherited: tuple[str, str]
) -> Iterator[Manifest]:
    if not isinstance(value, dict):
        shown = {list: "a list", str: "a string", bool: "a boolean"}.get(cast("type[Any]", type(value)), "a number")
        raise Invalid(f"a document must be an object, this is {shown}", doing="rendering", origin=origin)
    obj = cast("Json", value)
    obj = obj if obj.get("kind") or not inherited[1] else {"apiVersion": inherited[0], "kind": inherited[1], **obj}
    items: JsonValue = obj.get("items")
    kind: JsonValue = obj.get("kind")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, list):
        below = (str(obj.get("apiVersion") or ""), kind.removesuffix("List"))
        for index, item in enumerate(cast("list[JsonValue]", items)):
            place = f"items[{index}]"
            at = replace(
                origin,
                line=lines.get(place, origin.line),
                column=0,
                field=f"{origin.field}.{place}" if origin.field else place,
            )
            yield from _objects(item, at, lines.below(place), size, inherited=below)
        return
    if str(obj.get("apiVersion") or "").startswith(_KUSTOMIZE_GROUP):
        return
    yield _checked(obj, origin, lines, size)


def _checked(obj: Json, origin: Origin, lines: LineMap, size: int) -> Manifest:
    def refuse(message: str, path: str = "", hint: str = "") -> Invalid:
        line = lines.get(path, 0) if path else 0
        place = replace(origin, line=line or origin.line, column=0 if line else origin.column,
                        field=".".join(part for part in (origin.field, path) if part))  # fmt: skip
        kind, name = obj.get("kind"), metadata.get("name")
        ref = ObjectRef.of(obj) if isinstance(kind, str) and isinstance(name, str) and obj.get("apiVersion") else None
        return Invalid(message, doing="rendering", ref=ref, origin=place, hint=hint)

    raw: JsonValue = obj.get("metadata")
    metadata: Json = cast("Json", raw) if isinstance(raw, dict) else {}
    if "apiVersion" not in obj and "kind" not in obj:
        raise refuse("is no Kubernetes object: it has neither apiVersion nor kind",
                     hint="move it out of the directory, or name another directory as `path`")  # fmt: skip
    for name in ("apiVersion", "kind"):
        text: JsonValue = obj.get(name)
        if not isinstance(text, str) or not text:
            raise refuse(f"{name} is missing" if text is None else f"{name} must be a string", name)
    if not _API_VERSION.fullmatch(obj["apiVersion"]):
        raise refuse(f"'{obj['apiVersion']}' is no apiVersion", "apiVersion", _template_hint(obj["apiVersion"]))
    if raw is not None and not isinstance(raw, dict):
        raise refuse("must be an object", "metadata")
    _check_metadata(obj, metadata, refuse)
    manifest = Manifest(ref=ObjectRef.of(obj), object=obj, origin=origin, lines=lines)
    if size > MAX_OBJECT and (own := len(orjson.dumps(obj))) > MAX_OBJECT:
        raise refuse(f"is {own} bytes long, more than the {MAX_OBJECT} that Kubernetes stores")
    _check_selector(obj, refuse)
    if manifest.ref.group in _WORKLOAD_GROUPS:
        for use in references((manifest,)):
            if "{{" in use.image:
                raise refuse(f"'{use.image}' is no image", use.path, _template_hint(use.image))
    return manifest


_Refuse = Callable[[str, str, str], Invalid]
_API_VERSION = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[a-z][a-z0-9]*")
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_SEGMENT = re.compile(r"(?!\.{1,2}$)[^/%]+")
_WORKLOAD_GROUPS: Final = frozenset({"", "apps", "batch"})
#: Groups whose objects' names may be any path segment, with colons for instance.
_FREE_NAMES: Final = frozenset({"rbac.authorization.k8s.io", "certificates.k8s.io", "networking.k8s.io"})


def _template_hint(text: str) -> str:
    return "it looks like a template that was not rendered: commit what the template gives" if "{{" in text else ""


def _check_metadata(obj: Json, metadata: Json, refuse: Callable[..., Invalid]) -> None:
    name: JsonValue = metadata.get("name")
    if name is None or name == "":
        if metadata.get("generateName"):
            raise refuse("generateName would make a new object at every synchronisation", "metadata.generateName",
                         "give it a metadata.name")  # fmt: skip
        raise refuse("metadata.name is missing", "metadata.name" if "name" in metadata else "metadata")
    for key in ("name", "namespace"):
        text: JsonValue = metadata.get(key)
        if text is not None and not isinstance(text, str):
            raise refuse(f"must be a string, not {_shown(text)}", f"metadata.{key}", "quote it")
    group, _, _ = str(obj["apiVersion"]).rpartition("/")
    rule, words = _name_rule(group, str(obj["kind"]))
    if not rule.fullmatch(name):
        raise refuse(f"'{name}' is no name for a {obj['kind']}: {words}", "metadata.name", _template_hint(name))
    namespace = str(metadata.get("namespace") or "")
    if namespace and not _LABEL.fullmatch(namespace):
        raise refuse(f"'{namespace}' is no name for a Namespace: {_LABEL_WORDS}", "metadata.namespace",
                     _template_hint(namespace))  # fmt: skip
    for key in ("labels", "annotations"):
        entries: JsonValue = metadata.get(key)
        if entries is not None and not isinstance(entries, dict):
            raise refuse("must be an object", f"metadata.{key}")
        for entry, text in cast("Json", entries or {}).items():
            if text is not None and not isinstance(text, str):
                place = f"metadata.{key}.{entry}"
                bracketed = f"metadata.{key}[{entry}]"
                raise refuse(f"must be a string, not {_shown(text)}",
                             place if re.fullmatch(r"[A-Za-z0-9_$-]+", entry) else bracketed, "quote it")  # fmt: skip


_LABEL_WORDS: Final = "lower-case letters, digits and '-', at most 63 characters"


def _name_rule(group: str, kind: str) -> tuple[re.Pattern[str], str]:
    if group == "" and kind in ("Namespace", "Service"):
        return _LABEL, _LABEL_WORDS
    if (group in _WORKLOAD_GROUPS or "." not in group or group.endswith(".k8s.io")) and group not in _FREE_NAMES:
        return _SUBDOMAIN, "lower-case letters, digits, '-' and '.', at most 253 characters"
    return _SEGMENT, "it must not contain '/' or '%'"


def _shown(value: JsonValue) -> str:
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    return {dict: "an object", list: "a list", type(None): "null"}.get(
        cast("type[Any]", type(value)), f"the number {value}"
    )


def _check_selector(obj: Json, refuse: Callable[..., Invalid]) -> None:
    """A workload's selector must match its own template's labels, or the server refuses it, or it adopts nothing."""
    group, _, _ = str(obj["apiVersion"]).rpartition("/")
    spec: JsonValue = obj.get("spec")
    if not isinstance(spec, dict) or not (group == "apps" or obj["kind"] == "ReplicationController"):
        return
    selector = _dict(cast("Json", spec).get("selector"))
    template = _dict(cast("Json", spec).get("template"))
    if not template or not selector:
        return
    labels = _dict(_dict(template.get("metadata")).get("labels"))
    plain = group != "apps"
    wanted = selector if plain else _dict(selector.get("matchLabels"))
    for key, value in wanted.items():
        if labels.get(key) != value:
            path = "spec.selector" if plain else "spec.selector.matchLabels"
            have = f"'{labels[key]}'" if key in labels else "no such label"
            raise refuse(
                f"the selector wants {key}='{value}', but the pod template has {have}",
                f"{path}.{key}" if re.fullmatch(r"[A-Za-z0-9_$-]+", key) else f"{path}[{key}]",
                "make spec.selector and spec.template.metadata.labels the same",
            )
    expressions: JsonValue = None if plain else selector.get("matchExpressions")
    for index, item in enumerate(cast("list[JsonValue]", expressions) if isinstance(expressions, list) else ()):
        if not _matches(_dict(item), labels):
            raise refuse("the expression does not match the labels of the pod template",
                         f"spec.selector.matchExpressions[{index}]",
                         "make spec.selector and spec.template.metadata.labels agree")  # fmt: skip


def _matches(expression: Json, labels: Json) -> bool:
    key: str = str(expression.get("key"))
    values: JsonValue = expression.get("values") or []
    match expression.get("operator"):
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            return True  # the server's to refuse


def _dict(value: JsonValue) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _check_unique(manifests: Iterable[Manifest]) -> None:
    first: dict[tuple[str, str, str, str], Manifest] = {}
    for manifest in manifests:
        other = first.setdefault(manifest.ref.key, manifest)
        if other is not manifest:
            raise Invalid(
                f"is there twice, first at {_short(other.origin)}",
                doing="rendering",
                ref=manifest.ref,
                origin=manifest.origin,
                hint="keep one of them",
                reason="Duplicate",
            )


def _short(origin: Origin) -> str:
    return str(replace(origin, repository="", sha=""))


# ---------------------------------------------------------------- what the server writes

_SERVER_METADATA: Final = frozenset(
    {"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "managedFields",
     "resourceVersion", "selfLink", "uid"}
)  # fmt: skip


def _cleaned(obj: Json) -> Json:
    """Without ``status`` and the metadata that only a server writes: an object read from a cluster may be committed."""
    metadata: Mapping[str, JsonValue] = obj["metadata"]
    changed: Json = {}
    if not _SERVER_METADATA.isdisjoint(metadata):
        changed["metadata"] = {key: value for key, value in metadata.items() if key not in _SERVER_METADATA}
    spec = _dict(obj.get("spec"))
    template = _dict(spec.get("template"))
    inner = _dict(template.get("metadata"))
    if "creationTimestamp" in inner and inner["creationTimestamp"] is None:
        kept = {key: value for key, value in inner.items() if key != "creationTimestamp"}
        changed["spec"] = {**spec, "template": {**template, "metadata": kept}}
    if not changed and "status" not in obj:
        return obj
    return {key: changed.get(key, value) for key, value in obj.items() if key != "status"}
