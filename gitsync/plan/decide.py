"""The plan itself: for every object, what is done to it, or why the whole revision is refused. Pure.

Everything is decided before the first write, so that a refusal leaves no trace. All refusals of a revision are named
in one error: a person wants to mend the commit once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, cast

from gitsync.errors import Invalid, Refused, Waiting
from gitsync.model import (
    ANNOTATION_HELM_POLICY,
    ANNOTATION_PRUNE,
    LABEL_APPLICATION,
    LABEL_NAMESPACE,
    Action,
    Change,
    Desired,
    FieldChange,
    Finding,
    InventoryItem,
    Json,
    Manifest,
    Plan,
    Revision,
    left_alone,
)
from gitsync.plan.diff import diff, removed
from gitsync.plan.immutable import frozen, pod_fields, pod_in_place, replaceable
from gitsync.plan.lint import BAD_INPUT, access_modes, as_list, as_map, lint, scale_target
from gitsync.plan.waves import LABEL_JOB, prune_order, waves

Key = tuple[str, str, str, str]
Objects = Mapping[Key, Json]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the Application allows. ``approved`` is the revision (sha, or as it prints) whose deletions are approved."""

    prune: bool = True
    approved: str = ""
    zero_downtime: Literal["enforce", "warn", "off"] = "warn"
    accept_interruption: bool = False
    gone: frozenset[str] = frozenset()  # Applications that no longer exist: what they left may be taken
    max_delete_share: float = 0.2  # of the inventory; more than this and more than the count waits for approval
    max_delete_count: int = 5


def plan(
    desired: Desired,
    live: Objects,
    inventory: Sequence[InventoryItem],
    *,
    owner: str,
    previous: Objects | None = None,
    begun: Objects | None = None,
    autoscalers: Iterable[Json] = (),
    options: PlanOptions | None = None,
) -> Plan:
    """What brings the cluster from ``live`` to ``desired``.

    ``desired`` is rendered and pinned, its Jobs named (``waves.name_jobs``). ``live`` holds, by ``ObjectRef.key``, what
    exists of the desired objects, the inventory and what they refer to; a key that is absent does not exist (a failed
    read must never get here). ``previous`` is the last good state, ``begun`` what an attempt under way may have sent
    since. ``autoscalers`` are objects of the cluster with a ``scaleTargetRef`` that may belong to anybody. ``owner`` is
    ``namespace/name`` of the Application.

    Raises ``Refused`` naming everything that cannot be done, ``Invalid`` for a revision without objects or with a bad
    wave, ``Waiting`` while an object that is wanted is still being deleted.
    """
    options, previous = options or PlanOptions(), previous or {}
    if not desired.manifests:
        raise Invalid("the revision holds no objects: nothing is applied, nothing is deleted", doing="planning")
    prunes, held = _deletions(desired, live, inventory, owner, options)
    going = {item.ref.key for item in prunes}
    scaled = autoscaled(desired.manifests, chain(autoscalers, _staying(live, going)))
    manifests = [_sent(manifest, owner) for manifest in desired.manifests]
    refusals = [
        _foreign(manifest, live[manifest.ref.key], owner, options.gone)
        for manifest in manifests
        if manifest.ref.key in live
    ]
    vetoes = [refusal for refusal in refusals if refusal]
    changes: dict[Key, Change] = {}
    for manifest in manifests:
        before = [objects[manifest.ref.key] for objects in (previous, begun or {}) if manifest.ref.key in objects]
        change, refused = _change(manifest, live.get(manifest.ref.key), previous, before, scaled, options)
        changes[manifest.ref.key] = change
        vetoes += refused
    findings = [
        *lint(replace(desired, manifests=tuple(manifests)), {**previous, **live}, autoscalers=tuple(autoscalers)),
        *(finding for change in changes.values() for finding in _replacement(change)),
        *_renames(changes.values(), [*prunes, *held], {**previous, **live}),
        *_other_tools(manifests, live),
    ]
    passing = list(_exclusive_claims(changes.values(), [*prunes, *held], live, manifests))
    if not options.accept_interruption or held:
        vetoes += [each.refused(approve=options.accept_interruption) for each in passing]
    findings += [each.finding for each in passing]
    vetoes += _forbidden(findings, changes, options)
    if vetoes:
        raise _all_of(vetoes)
    if options.zero_downtime == "off":
        findings = [finding for finding in findings if finding.rule in _ALWAYS_TOLD]
    ordered = waves(manifests)
    takers: dict[InventoryItem, Key] = {}  # the first of them
    for key in (manifest.ref.key for wave in ordered for manifest in wave):
        mine = [each.item for each in passing if each.change.manifest.ref.key == key and each.item not in takers]
        if mine:
            takers |= dict.fromkeys(mine, key)
            changes[key] = replace(changes[key], instead_of=tuple(dict.fromkeys(mine)))
    return Plan(
        revision=desired.revision,
        waves=tuple(tuple(changes[manifest.ref.key] for manifest in wave) for wave in ordered),
        prunes=tuple(item for item in prunes if item not in takers),
        held=held,
        findings=tuple(findings),
    )


def autoscaled(manifests: Iterable[Manifest], live: Iterable[Json]) -> frozenset[Key]:
    """Keys of the objects that some autoscaler scales: whatever has a ``scaleTargetRef`` (HPA, KEDA, …).

    Git's ``replicas`` are where they start when they are created; they are never sent to one that exists. Whoever
    applies those first has a second manager claim the live value: to drop the field alone would scale to 1.
    """
    scalers = chain((manifest.object for manifest in manifests), live)
    return frozenset(target for scaler in scalers if (target := scale_target(scaler)))


# ---------------------------------------------------------------- one object


_CLUSTER_ROLE = ("rbac.authorization.k8s.io", "ClusterRole")


def _sent(manifest: Manifest, owner: str) -> Manifest:
    """What is really sent: with our labels. The rules of a ClusterRole that gathers those of others are the server's:
    git's ``rules: []`` would take them from everybody who has the role, until its controller writes them again."""
    namespace, _, name = owner.partition("/")
    if (manifest.ref.group, manifest.ref.kind) == _CLUSTER_ROLE and as_map(manifest.object, "aggregationRule"):
        manifest = replace(manifest, object={key: value for key, value in manifest.object.items() if key != "rules"})
    metadata = as_map(manifest.object, "metadata")
    if not isinstance(metadata.get("labels") or {}, dict):  # the server says what is wrong with them
        return manifest
    labels = as_map(metadata, "labels") | {LABEL_APPLICATION: name, LABEL_NAMESPACE: namespace}
    return replace(manifest, object=manifest.object | {"metadata": metadata | {"labels": labels}})


def _foreign(manifest: Manifest, live: Json, owner: str, gone: Collection[str]) -> Refused | None:
    other = owner_of(live)
    if not other or other == owner or other in gone:
        return None
    return Refused(
        f"it belongs to the Application {other}, not to {owner}",
        doing="planning",
        ref=manifest.ref,
        origin=manifest.origin,
        hint="remove it from one of the two",
        reason="OwnedByAnother",
    )


def _change(
    manifest: Manifest,
    live: Json | None,
    previous: Objects,
    before: Sequence[Json],
    scaled: frozenset[Key],
    options: PlanOptions,
) -> tuple[Change, list[Refused]]:
    ref, obj = manifest.ref, manifest.object
    is_job = (ref.group, ref.kind) == ("batch", "Job")
    if live is None:
        # A Job that the last good state holds has run; that it was cleaned away since is no reason to run it again.
        ran = is_job and ref.key in previous
        return Change(action=Action.UNCHANGED if ran else Action.CREATE, manifest=manifest), []
    if as_map(live, "metadata").get("deletionTimestamp"):
        raise Waiting(
            "it is still being deleted", doing="planning", ref=ref, origin=manifest.origin, reason="Terminating"
        )
    # A mark in the cluster is a person's, unless git made it: then git takes it back.
    if left_alone(obj) or (left_alone(live) and not any(left_alone(each) for each in before)):
        return Change(action=Action.UNCHANGED, manifest=manifest), []
    secret = ref.kind == "Secret" and not ref.group
    fields = diff(obj, live, secret=secret) + removed(obj, live, secret=secret, before=before)
    if ref.key in scaled:
        fields = tuple(field for field in fields if field.path != "spec.replicas")
    if is_bare_pod := (ref.group, ref.kind) == ("", "Pod"):
        fields = pod_fields(obj, live, fields)
    if not fields:
        return Change(action=Action.UNCHANGED, manifest=manifest), []
    if is_bare_pod:
        return _pod_change(manifest, live, fields, options)
    stuck = frozen(ref, obj, live, fields)
    if not stuck:
        return Change(action=Action.UPDATE, manifest=manifest, fields=fields), []
    if options.accept_interruption and replaceable(ref):
        return Change(action=Action.REPLACE, manifest=manifest, fields=fields), []
    refused = [
        _refusal(manifest, path, f"{path} cannot be changed in an object that exists", hint, "ImmutableField")
        for path, hint in stuck
    ]
    return Change(action=Action.REPLACE, manifest=manifest, fields=fields), refused


def _pod_change(
    manifest: Manifest, live: Json, fields: tuple[FieldChange, ...], options: PlanOptions
) -> tuple[Change, list[Refused]]:
    """A bare Pod has no rollout: every change to its spec is an interruption, which only ``enforce`` forbids."""
    action = Action.UPDATE if pod_in_place(live, fields) else Action.REPLACE
    change = Change(action=action, manifest=manifest, fields=fields)
    interrupts = [field.path for field in fields if not field.path.startswith("metadata")] or (
        [fields[0].path] if action is Action.REPLACE else []
    )
    if not interrupts or options.accept_interruption or options.zero_downtime != "enforce":
        return change, []
    hint = "use a Deployment, or accept an interruption"
    return change, [
        _refusal(manifest, interrupts[0], "a bare Pod cannot roll without an interruption", hint, "BarePod")
    ]


def _refusal(manifest: Manifest, path: str, message: str, hint: str, reason: str) -> Refused:
    return Refused(message, doing="planning", ref=manifest.ref, origin=manifest.at(path), hint=hint, reason=reason)


def _all_of(refusals: Sequence[Refused]) -> Refused:
    """One error for all: the first with its place, the others in its message."""
    first, others = refusals[0], refusals[1:]
    if not others:
        return first
    listed = "; ".join(f"{other.ref} ({other.origin}): {other.message}" for other in others[:9])
    more = f" and {len(others) - 9} more" if len(others) > 9 else ""
    return Refused(
        f"{first.message}; also refused: {listed}{more}",
        doing=first.doing,
        ref=first.ref,
        origin=first.origin,
        hint=first.hint,
        reason=first.reason,
    )


# ---------------------------------------------------------------- deletions

_PRECIOUS = frozenset(
    {("", "Namespace"), ("", "PersistentVolumeClaim"), ("apiextensions.k8s.io", "CustomResourceDefinition")}
)


def _deletions(
    desired: Desired, live: Objects, inventory: Sequence[InventoryItem], owner: str, options: PlanOptions
) -> tuple[tuple[InventoryItem, ...], tuple[InventoryItem, ...]]:
    """What may be pruned, and what waits for approval: only what we made, that is still the same and still ours."""
    if not options.prune:
        return (), ()
    wanted = {manifest.ref.key for manifest in desired.manifests}
    # The same object can be read under two API groups: by its UID it is still wanted.
    uids = {as_map(live[key], "metadata").get("uid") for key in wanted if key in live}
    going = [
        item
        for item in inventory
        if item.ref.key not in wanted
        and item.uid not in uids
        and (obj := live.get(item.ref.key)) is not None
        and item.uid
        and as_map(obj, "metadata").get("uid") == item.uid
        and owner_of(obj) == owner
        and _annotation(obj, ANNOTATION_PRUNE) != "disabled"
        and _annotation(obj, ANNOTATION_HELM_POLICY) != "keep"
    ]
    ordered = prune_order(going)
    # A Job's successor has another name by design; that is no deletion a person needs to look at.
    jobs = {(each.ref.namespace, _label(each.object, LABEL_JOB)) for each in desired.manifests}
    counted = [
        item
        for item in going
        if not (
            item.ref.kind == "Job"
            and (item.ref.namespace, name := _label(live[item.ref.key], LABEL_JOB)) in jobs
            and name
        )
    ]
    budget = max(options.max_delete_count, options.max_delete_share * len(inventory))
    precious = any((item.ref.group, item.ref.kind) in _PRECIOUS for item in going)
    if (len(counted) > budget or precious) and not _approved(desired.revision, options.approved):
        return (), ordered
    return ordered, ()


def _approved(revision: Revision, approved: str) -> bool:
    if approved in (revision.sha, str(revision)):
        return True
    return len(approved) >= 7 and revision.sha.startswith(approved)


# ---------------------------------------------------------------- what a person should know


def _replacement(change: Change) -> Iterator[Finding]:
    if change.action is Action.REPLACE:
        manifest, path = change.manifest, change.fields[0].path
        yield Finding(
            rule="replaced",
            level="warning",
            ref=manifest.ref,
            origin=manifest.at(path),
            message=f"it is deleted and created again, because {path} cannot be changed in place",
        )


_CONTENT_IN_NAME = frozenset({"ConfigMap", "Secret", "Job"})  # their names change with their content


def _renames(changes: Iterable[Change], going: Sequence[InventoryItem], known: Objects) -> Iterator[Finding]:
    """A new object that is, but for its name, one that goes."""
    for change in changes:
        ref = change.manifest.ref
        if change.action is not Action.CREATE or ref.kind in _CONTENT_IN_NAME:
            continue
        for item in going:
            old = known.get(item.ref.key)
            same_kind = (item.ref.group, item.ref.kind) == (ref.group, ref.kind)
            if same_kind and old is not None and _alike(change.manifest.object, old, ref.name, item.ref.name):
                yield Finding(
                    rule="renamed",
                    level="warning",
                    ref=ref,
                    origin=change.manifest.at("metadata.name"),
                    message=f"looks like {item.ref} under a new name: the old one goes once the new one is healthy",
                )


def _alike(new: Json, old: Json, new_name: str, old_name: str) -> bool:
    """Whether most of what is sent of the new object stands in the old one, or is the own name of each."""
    mine, theirs = dict(_leaves(new)), dict(_leaves(old))
    same = sum(
        path in theirs and (value == theirs[path] or (value, theirs[path]) == (new_name, old_name))
        for path, value in mine.items()
    )
    return len(mine) > 2 and same >= 0.7 * len(mine)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in cast(Json, value).items():
            if (path, key) != ("", "metadata"):
                yield from _leaves(child, f"{path}.{key}")
    elif isinstance(value, list):
        for index, child in enumerate(cast("list[Any]", value)):
            yield from _leaves(child, f"{path}[{index}]")
    else:
        yield path, value


OTHER_TOOL = "other-tool"
"""Rule of the finding that another GitOps tool keeps the same object."""

_ALWAYS_TOLD = frozenset({"replaced", "renamed", "handed-over", OTHER_TOOL})
"""Rules that are no matter of zero downtime."""

#: Labels and annotations by which other tools mark what they keep, and the field managers under which they write.
_MARKS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
    "meta.helm.sh/release-name": "Helm",
    "werf.io/version": "werf",
    "kapp.k14s.io/app": "kapp",
}
_MANAGERS = {
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
}


def _other_tools(manifests: Iterable[Manifest], live: Objects) -> Iterator[Finding]:
    """Two that keep one object equal to two repositories never end. Marks that git itself sets are git's business."""
    for manifest in manifests:
        metadata = as_map(live.get(manifest.ref.key, {}), "metadata")
        own = as_map(manifest.object, "metadata")
        written = {key for field in ("labels", "annotations") for key in as_map(own, field)}
        marks = {key: tool for key, tool in _MARKS.items() if key not in written and _marked(metadata, key)}
        managers = {
            name: _MANAGERS[name] for name in map(_manager, as_list(metadata, "managedFields")) if name in _MANAGERS
        }
        if marks or managers:
            tool, signs = next(iter({**managers, **marks}.values())), ", ".join([*marks, *managers])
            yield Finding(
                rule=OTHER_TOOL,
                level="warning",
                ref=manifest.ref,
                origin=manifest.origin,
                message=f"{tool} keeps it, too ({signs}): the two will undo each other's work",
                hint=f"take it away from {tool}, and its mark from the object",
            )


def _marked(metadata: Json, key: str) -> bool:
    return any(as_map(metadata, field).get(key) for field in ("labels", "annotations"))


def _manager(entry: Json) -> str:
    return str(entry.get("manager") or "")


# ---------------------------------------------------------------- what two cannot have at once


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passing:
    """Something that only one object can have is to pass from one that goes to one that comes."""

    thing: str  # node port 30080
    item: InventoryItem
    change: Change

    def refused(self, *, approve: bool) -> Refused:
        return Refused(
            f"{self.thing} is held by {self.item.ref} until this one is healthy, which needs it",
            doing="planning",
            ref=self.change.manifest.ref,
            origin=self.change.manifest.origin,
            hint="approve the deletions of this commit" if approve else "keep the old name, or accept an interruption",
            reason="ExclusiveClaim",
        )

    @property
    def finding(self) -> Finding:
        manifest = self.change.manifest
        message = f"{self.thing} passes to it from {self.item.ref}, which is deleted first: nobody serves it meanwhile"
        return Finding(rule="handed-over", level="warning", ref=manifest.ref, origin=manifest.origin, message=message)


def _exclusive_claims(
    changes: Iterable[Change], going: Sequence[InventoryItem], live: Objects, manifests: Sequence[Manifest]
) -> Iterator[_Passing]:
    """A new object that needs what one that goes still holds: the old one goes only when the new one is healthy."""
    claims = {key: obj for key, obj in live.items() if key[1] == "PersistentVolumeClaim"}
    claims |= {each.ref.key: each.object for each in manifests if each.ref.kind == "PersistentVolumeClaim"}
    holders = {thing: item for item in going if item.ref.key in live for thing in _holds(live[item.ref.key], claims)}
    for change in changes:
        if change.action is Action.CREATE:
            for thing in _holds(change.manifest.object, claims):
                if thing in holders:
                    yield _Passing(thing=thing, item=holders[thing], change=change)


def _holds(obj: Json, claims: Objects) -> list[str]:
    kind, spec = obj.get("kind"), as_map(obj, "spec")
    namespace = str(as_map(obj, "metadata").get("namespace") or "")
    if kind == "Service":
        return [f"node port {port['nodePort']}" for port in as_list(spec, "ports") if port.get("nodePort")]
    if kind == "Ingress":
        return [
            f"ingress host {rule.get('host') or '*'}{path.get('path') or '/'}"
            for rule in as_list(spec, "rules")
            for path in as_list(as_map(rule, "http"), "paths")
        ]
    pod = spec if kind == "Pod" else as_map(as_map(spec, "template"), "spec")
    ports = [port for each in as_list(pod, "containers") for port in as_list(each, "ports")]
    found = [f"host port {port['hostPort']}/{port.get('protocol', 'TCP')}" for port in ports if port.get("hostPort")]
    for volume in as_list(pod, "volumes"):
        name = str(as_map(volume, "persistentVolumeClaim").get("claimName") or "")
        modes = access_modes(claims.get(("", "PersistentVolumeClaim", namespace, name), {}))
        if modes and not {"ReadWriteMany", "ReadOnlyMany"} & modes:
            found.append(f"the volume of {namespace}/{name}")
    return found


# ---------------------------------------------------------------- policy


def _forbidden(findings: Sequence[Finding], changes: Mapping[Key, Change], options: PlanOptions) -> Iterator[Refused]:
    """Findings that refuse the revision: bad input always, zero downtime where it is enforced and something rolls."""
    enforced = options.zero_downtime == "enforce" and not options.accept_interruption
    for finding in findings:
        rolls = changes[finding.ref.key].action is not Action.UNCHANGED
        if finding.level == "error" and (finding.rule in BAD_INPUT or (enforced and rolls)):
            yield Refused(
                finding.message,
                doing="planning",
                ref=finding.ref,
                origin=finding.origin,
                hint=finding.hint,
                reason="BadInput" if finding.rule in BAD_INPUT else "ZeroDowntime",
            )


# ---------------------------------------------------------------- reading


def _staying(live: Objects, going: set[Key]) -> Iterator[Json]:
    return (obj for key, obj in live.items() if key not in going)


def _label(obj: Json, key: str) -> str:
    return str(as_map(as_map(obj, "metadata"), "labels").get(key) or "")


def _annotation(obj: Json, key: str) -> str:
    return str(as_map(as_map(obj, "metadata"), "annotations").get(key) or "")


def owner_of(live: Json) -> str:
    """``namespace/name`` of the Application that the live labels name, "" without both of them."""
    namespace, name = _label(live, LABEL_NAMESPACE), _label(live, LABEL_APPLICATION)
    return f"{namespace}/{name}" if namespace and name else ""
