"""Asks the API server what it would say, before the first write of a commit.

An object that needs a namespace, definition, role or service account of the same commit cannot be judged before that
exists. Such a refusal is not one yet: the object is *deferred*, to be asked again as soon as the wave that brings what
it needs has been applied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from gitsync.cluster.answers import Forbidden, NoKind, Rejected
from gitsync.errors import GitsyncError, Invalid, Waiting
from gitsync.failpoints import failpoint
from gitsync.model import Applied, Json, Manifest, ObjectRef
from gitsync.rollout.ownership import without_replicas
from gitsync.rollout.target import Key, Place, Target, located, maps, on_each, part, place_of

RBAC = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """``refusals`` speak against the commit, their origins name file and line. ``deferred`` must be asked again later.

    ``replies`` are the server's answers (with defaults and webhooks applied), by ``ObjectRef.key``; ``unchecked`` are
    those that a webhook cannot dry-run.
    """

    refusals: tuple[Invalid, ...] = ()
    deferred: tuple[Manifest, ...] = ()
    replies: Mapping[Key, Applied]
    unchecked: tuple[Manifest, ...] = ()


async def dry_run(
    target: Target,
    manifests: Sequence[Manifest],
    *,
    commit: Sequence[Manifest] | None = None,
    replaces: Collection[ObjectRef] = (),
    permitted: Collection[Place] = (),
) -> DryRun:
    """Dry-run the manifests. ``commit`` is everything that comes with them and does not exist yet (default: all).

    ``replaces`` are tried under another name, because what they change cannot be changed in place. ``permitted`` is
    where the Application had the right to write before: if it has no more, somebody took it, and that is no refusal.
    Raises ``Transient`` if the server could not be asked about some object and refused none; a quota, a missing
    dependency or a right that was taken is ``Waiting``.
    """
    coming = _Coming.of(manifests if commit is None else commit, target.impersonate)
    replaced = {ref.key for ref in replaces}

    async def ask(manifest: Manifest) -> Applied:
        obj = without_replicas(manifest.object) if manifest.ref.key in target.autoscaled else manifest.object
        if manifest.ref.key in replaced:
            obj = _probe(obj)
        return await target.cluster.apply(obj, dry_run=True, impersonate=target.impersonate)

    answers = await on_each(manifests, ask)
    refusals: list[Invalid] = []
    deferred: list[Manifest] = []
    unchecked: list[Manifest] = []
    replies: dict[Key, Applied] = {}
    trouble: GitsyncError | None = None
    for manifest, answer in zip(manifests, answers, strict=True):
        if isinstance(answer, Applied):
            replies[manifest.ref.key] = replace(answer, ref=manifest.ref)
        elif isinstance(answer, Rejected) and "does not support dry run" in answer.message:
            unchecked.append(manifest)
        elif coming.explains(manifest, answer):
            deferred.append(manifest)
        elif isinstance(answer, Forbidden) and not answer.of_ours and place_of(manifest.ref) not in permitted:
            located(answer, manifest)
            refusals.append(answer.refusal())
        elif isinstance(answer, Invalid):
            located(answer, manifest)
            refusals.append(answer)
        else:
            trouble = trouble or located(answer, manifest)
    if trouble and not refusals:
        raise trouble
    failpoint("dryrun.done")
    return DryRun(refusals=tuple(refusals), deferred=tuple(deferred), replies=replies, unchecked=tuple(unchecked))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coming:
    """What a commit brings that its other objects may need."""

    namespaces: frozenset[str]
    kinds: frozenset[tuple[str, str]]  # (group, kind) of its definitions
    roles: frozenset[tuple[str, str, str]]  # (kind, namespace, name)
    accounts: frozenset[tuple[str, str]]  # (namespace, name)
    priorities: frozenset[str]
    grants: bool  # whether it gives rights to the very user that applies it

    @classmethod
    def of(cls, manifests: Sequence[Manifest], user: str) -> _Coming:
        refs = [manifest.ref for manifest in manifests]
        definitions = [
            part(manifest.object, "spec")
            for manifest in manifests
            if (manifest.ref.group, manifest.ref.kind) == ("apiextensions.k8s.io", "CustomResourceDefinition")
        ]
        return cls(
            namespaces=frozenset(ref.name for ref in refs if (ref.group, ref.kind) == ("", "Namespace")),
            kinds=frozenset((str(spec.get("group")), str(part(spec, "names").get("kind"))) for spec in definitions),
            roles=frozenset((ref.kind, ref.namespace, ref.name) for ref in refs if ref.group == RBAC),
            accounts=frozenset((ref.namespace, ref.name) for ref in refs if ref.kind == "ServiceAccount"),
            priorities=frozenset(ref.name for ref in refs if ref.kind == "PriorityClass"),
            grants=any(_grants(manifest, user) for manifest in manifests),
        )

    def explains(self, manifest: Manifest, error: GitsyncError) -> bool:
        """Whether the refusal may end once the rest of the commit exists."""
        ref = manifest.ref
        pod = part(manifest.object, "spec") if ref.kind == "Pod" else {}
        if (ref.group, ref.kind) in self.kinds and isinstance(error, NoKind | Rejected | Forbidden):
            return True  # not served yet, or served by the definition's older schema
        if isinstance(error, Forbidden) or (isinstance(error, Rejected) and error.status == 403):
            priority = pod.get("priorityClassName")
            return self.grants or self._brings_role_of(manifest) or (bool(priority) and priority in self.priorities)
        if isinstance(error, Waiting):
            if error.reason == "NamespaceNotFound":
                return ref.namespace in self.namespaces
            if error.reason == "ServiceAccountNotFound":
                return (ref.namespace, str(pod.get("serviceAccountName") or "default")) in self.accounts
            return error.reason == "NotFound" and self._brings_role_of(manifest)
        return False

    def _brings_role_of(self, manifest: Manifest) -> bool:
        role = part(manifest.object, "roleRef") if manifest.ref.group == RBAC else {}
        space = manifest.ref.namespace if role.get("kind") == "Role" else ""
        return (str(role.get("kind")), space, str(role.get("name"))) in self.roles


def _grants(manifest: Manifest, user: str) -> bool:
    if not user or manifest.ref.group != RBAC:
        return False
    subjects = maps(manifest.object, "subjects")
    names = {f"system:serviceaccount:{subject.get('namespace')}:{subject.get('name')}" for subject in subjects}
    return user in names or any(subject.get("name") == user for subject in subjects)


def _probe(obj: Json) -> Json:
    """The object as if it were new: under another name, and without what only one object can hold."""
    metadata: Json = obj["metadata"]
    renamed = obj | {"metadata": metadata | {"name": f"{metadata['name'][:40].rstrip('.-')}-gitsync-probe"}}
    if obj["kind"] != "Service":
        return renamed
    spec = {key: value for key, value in part(obj, "spec").items() if key not in ("clusterIP", "clusterIPs")}
    if ports := maps(spec, "ports"):
        spec["ports"] = [{key: value for key, value in port.items() if key != "nodePort"} for port in ports]
    return renamed | {"spec": spec}
