"""The frozen types that cross stages. Standard library only; no I/O here.

A stage takes some of these and returns others; it never changes one in place. JSON objects (Kubernetes manifests) are
plain ``dict``/``list``/``str``/``int``/``float``/``bool``/``None`` and are treated as immutable: copy before changing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

JsonValue = Any
Json = dict[str, Any]

API_GROUP = "gitsync.dev"
FIELD_MANAGER = "gitsync"

# Labels select what we watch; they never decide what we delete.
LABEL_APPLICATION = "gitsync.dev/application"  # value: the Application's name
LABEL_NAMESPACE = "gitsync.dev/application-namespace"
ANNOTATION_WAVE = "gitsync.dev/sync-wave"
ANNOTATION_PRUNE = "gitsync.dev/prune"  # "disabled": never deleted by us
ANNOTATION_HELM_POLICY = "helm.sh/resource-policy"  # "keep": as helm, we let it stay, and it is nobody's then
ANNOTATION_RECONCILE = "gitsync.dev/reconcile"  # "disabled": applied once, then left alone
ANNOTATION_REQUESTED_AT = "gitsync.dev/requestedAt"
ANNOTATION_RETRY = "gitsync.dev/retry"  # a value not seen before releases the quarantine
ANNOTATION_REFRESH = "gitsync.dev/refresh-bases"  # a value not seen before resolves the tags of base images anew
ANNOTATION_ROLLBACK = "gitsync.dev/rollback"  # "[revision]@token": a token not seen before puts that revision back
ANNOTATION_APPROVE = "gitsync.dev/approve"  # value: the revision whose held deletions are approved
ANNOTATION_FOLLOWED_BY = "gitsync.dev/followed-by"  # by ``gitsync run REPOSITORY``: who follows many leaves it alone
ANNOTATION_REVISION = "gitsync.dev/revision"  # on pod templates: main@sha1:<sha> of the last change to it
ANNOTATION_CONFIG_DIGEST = "gitsync.dev/config-digest"  # on pod templates: digest of the ConfigMaps/Secrets read


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


def left_alone(obj: Mapping[str, Any]) -> bool:
    """Whether an object, as git or the cluster has it, says ``ANNOTATION_RECONCILE: disabled``."""
    annotations: Any = obj["metadata"].get("annotations")
    return isinstance(annotations, Mapping) and (ANNOTATION_RECONCILE, "disabled") in annotations.items()


# ---------------------------------------------------------------- identity and place


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ObjectRef:
    """Names one Kubernetes object. ``namespace`` is "" for cluster-scoped kinds, ``group`` "" for the core group."""

    group: str = ""
    version: str
    kind: str
    namespace: str = ""
    name: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Identity without the version: the same object can be read through several."""
        return (self.group, self.kind, self.namespace, self.name)

    @classmethod
    def of(cls, obj: Mapping[str, Any], *, namespace: str = "") -> ObjectRef:
        """From an object's own ``apiVersion``, ``kind`` and ``metadata``; ``namespace`` fills an absent one."""
        group, _, version = str(obj["apiVersion"]).rpartition("/")
        metadata: Mapping[str, Any] = obj.get("metadata") or {}
        return cls(
            group=group,
            version=version,
            kind=str(obj["kind"]),
            namespace=str(metadata.get("namespace") or namespace),
            name=str(metadata.get("name") or ""),
        )

    def __str__(self) -> str:
        middle = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind}/{middle}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Origin:
    """Where something came from: ``repo@sha file:line:column field``. Lines and columns count from 1; 0 is unknown."""

    repository: str = ""
    sha: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    field: str = ""

    def __str__(self) -> str:
        repo = self.repository.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
        head = f"{repo}@{self.sha[:7]}" if repo and self.sha else repo or self.sha[:7]
        place = self.file
        if self.line:
            place += f":{self.line}" + (f":{self.column}" if self.column else "")
        return " ".join(part for part in (head, place, self.field) if part)


# ---------------------------------------------------------------- source → Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One commit of one repository, as resolved from one ref. Prints as ``main@sha1:<sha>``."""

    repository: str  # the URL without credentials
    ref: str  # short name: main, v1.2.3, or the sha itself
    sha: str
    author: str = ""
    committed_at: datetime | None = None
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.ref}@sha1:{self.sha}" if self.ref != self.sha else f"sha1:{self.sha}"

    @property
    def short(self) -> str:
        return self.sha[:7]


class FileMode(StrEnum):
    """Git's own modes, as ``ls-tree`` prints them."""

    FILE = "100644"
    EXECUTABLE = "100755"
    SYMLINK = "120000"
    SUBMODULE = "160000"


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One leaf of a commit's tree. ``path`` is POSIX, relative to the root; ``size`` in bytes (-1: not known)."""

    path: str
    mode: FileMode
    id: str  # blob id (or, for a submodule, its commit)
    size: int = -1


class Snapshot(Protocol):
    """A commit's tree, readable by path without a checkout. ``source`` implements it, other stages read it."""

    @property
    def revision(self) -> Revision: ...

    def entries(self, under: str = "") -> Iterator[TreeEntry]:
        """Leaves under a directory ("" or "." is the root), sorted by path. No I/O."""
        ...

    def entry(self, path: str) -> TreeEntry | None: ...

    async def read(self, entries: Iterable[TreeEntry], *, limit: int = 64 << 20) -> dict[str, bytes]:
        """Contents by path. ``Invalid`` if together they exceed ``limit`` bytes."""
        ...

    async def export(self, under: str, destination: str, *, only: Iterable[TreeEntry] | None = None) -> None:
        """Write a directory's files (modes 644/755, links kept as links) below an existing empty directory.

        ``only``: these of its leaves and no others."""
        ...


# ---------------------------------------------------------------- render → Desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One object as git wants it. ``lines`` maps a field path ("spec.replicas") to its 1-based line where known."""

    ref: ObjectRef
    object: Json
    origin: Origin
    lines: Mapping[str, int] = field(default_factory=_empty)

    def at(self, field_path: str) -> Origin:
        """The origin narrowed to a field: its line, or the nearest known parent's."""
        path, line = field_path, 0
        while path and not line:
            line = self.lines.get(path, 0)
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return Origin(
            repository=self.origin.repository,
            sha=self.origin.sha,
            file=self.origin.file,
            line=line or self.origin.line,
            column=0 if line else self.origin.column,
            field=field_path,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What one revision wants: objects in file order. Unpinned after ``render``; pinned after ``pin``."""

    revision: Revision
    manifests: tuple[Manifest, ...]


# ---------------------------------------------------------------- images → ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """One image that this repository builds.

    ``name`` is the reference as manifests write it (``kubetm/hello``); ``context`` and ``dockerfile`` are paths from
    the root of the repository; ``repository`` is the push name without tag ("": from the registry and ``name``).
    """

    name: str
    context: str
    dockerfile: str
    repository: str = ""
    target: str = ""
    args: tuple[tuple[str, str], ...] = ()
    platforms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identity of a build's inputs. ``value`` is 64 hex digits; ``inputs`` lists what went in, for ``explain``."""

    value: str
    inputs: tuple[tuple[str, str], ...] = ()

    @property
    def tag(self) -> str:
        return f"gs-{self.value[:32]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A built image. ``reference`` is what pods pull: ``<pull repository>@sha256:…``."""

    name: str
    reference: str
    digest: str
    fingerprint: str
    built: bool  # False: found in the registry, nothing was built
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Every image of ours that the desired objects reference, and the base images that were locked for them."""

    images: tuple[Image, ...] = ()
    bases: Mapping[str, str] = field(default_factory=_empty)  # "node:slim" → "sha256:…"

    def by_name(self) -> dict[str, Image]:
        return {image.name: image for image in self.images}


# ---------------------------------------------------------------- plan → Plan


class Action(StrEnum):
    CREATE = "create"
    UPDATE = "update"
    REPLACE = "replace"  # delete and create: an immutable field changed and an interruption is accepted
    UNCHANGED = "unchanged"
    PRUNE = "prune"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """``path`` as in ``spec.template.spec.containers[name=web].image``; Secret values are masked. ``None``: absent."""

    path: str
    before: JsonValue = None
    after: JsonValue = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object's step. ``manifest.object`` is exactly what will be sent.

    ``instead_of`` are recorded objects that go right before its wave comes: they hold something that only one can have
    (a node port), and the interruption was accepted.
    """

    action: Action
    manifest: Manifest
    fields: tuple[FieldChange, ...] = ()
    instead_of: tuple[InventoryItem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryItem:
    """An object that this Application created or adopted. Only these, with this very UID, may ever be deleted."""

    ref: ObjectRef
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule's verdict about a manifest, e.g. of the zero-downtime lint."""

    rule: str  # kebab-case id
    level: str  # "error" | "warning"
    ref: ObjectRef
    origin: Origin
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Waves in order of application; each is applied, then healthy, before the next. Prunes come last, in order.

    What a change stands ``instead_of`` is not among the ``prunes``.
    """

    revision: Revision
    waves: tuple[tuple[Change, ...], ...]
    prunes: tuple[InventoryItem, ...] = ()
    held: tuple[InventoryItem, ...] = ()  # would be pruned, but need approval
    findings: tuple[Finding, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        return tuple(change for wave in self.waves for change in wave)

    @property
    def deletions(self) -> tuple[InventoryItem, ...]:
        return (*(item for change in self.changes for item in change.instead_of), *self.prunes)

    @property
    def empty(self) -> bool:
        return not self.prunes and all(change.action is Action.UNCHANGED for change in self.changes)


# ---------------------------------------------------------------- rollout → Applied, Health


class HealthStatus(StrEnum):
    """The field's own words, from worst to best when aggregated (see ``rollout.health``)."""

    HEALTHY = "Healthy"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    SUSPENDED = "Suspended"
    MISSING = "Missing"
    UNKNOWN = "Unknown"


class SyncStatus(StrEnum):
    SYNCED = "Synced"
    OUT_OF_SYNC = "OutOfSync"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Health of one object, or of many taken together. ``message`` says why and is empty when healthy."""

    status: HealthStatus
    message: str = ""
    ref: ObjectRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The server's answer to one server-side apply. ``object`` is its reply (absorbs defaults and webhooks)."""

    ref: ObjectRef
    uid: str
    resource_version: str
    changed: bool
    object: Json


# ---------------------------------------------------------------- report


class Stage(StrEnum):
    """Where an attempt is, or where it failed. The order is that of DESIGN's way."""

    SOURCE = "source"
    RENDER = "render"
    IMAGES = "images"
    PLAN = "plan"
    RECORD = "record"
    ROLLOUT = "rollout"
    PRUNE = "prune"
    RESTORE = "restore"
    REPORT = "report"
