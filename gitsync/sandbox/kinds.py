"""The kinds that are served: a table of built-in ones, and those that CustomResourceDefinitions add while it runs.

What is not in the table does not exist here, and is answered as Kubernetes answers for a resource it does not have.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from gitsync.sandbox.schema import Schema, at, builtin, many, structural

Json = dict[str, Any]

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One version of one resource as clients address it."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    schema: Schema = field(repr=False)
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: frozenset[str] = frozenset()
    generation: bool = False
    columns: tuple[Json, ...] = ()
    """A custom resource's additionalPrinterColumns."""
    scale: Json = field(default_factory=dict[str, Any])
    """Paths of the scale subresource, as a CustomResourceDefinition writes them."""
    custom: bool = False
    view_of: str = ""
    """Id of the resource whose objects these are, under other names of fields."""

    @property
    def id(self) -> str:
        """The same for all versions: plural.group, which is also what messages name."""
        if self.view_of:
            return self.view_of
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As in ``Deployment.apps "web" is invalid``."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


def _kind(
    api_version: str,
    kind: str,
    plural: str,
    *short: str,
    model: str = "",
    cluster: bool = False,
    status: bool = False,
    scale: bool = False,
    more: Iterable[str] = (),
    generation: bool = False,
    all_: bool = False,
    view_of: str = "",
) -> Resource:
    group, _, version = api_version.rpartition("/")
    paths = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    return Resource(
        group=group,
        version=version,
        kind=kind,
        plural=plural,
        singular=kind.lower(),
        namespaced=not cluster,
        schema=builtin(model or f"V1{kind}"),
        short=short,
        categories=("all",) if all_ else (),
        subresources=frozenset(
            ({"status"} if status else set[str]()) | ({"scale"} if scale else set[str]()) | set(more)
        ),
        generation=generation,
        scale=paths if scale else {},
        view_of=view_of,
    )


_RBAC = "rbac.authorization.k8s.io/v1"
BUILT_IN: tuple[Resource, ...] = (
    _kind("v1", "Namespace", "namespaces", "ns", cluster=True, status=True, more=["finalize"]),
    _kind("v1", "Node", "nodes", "no", cluster=True, status=True),
    _kind("v1", "Pod", "pods", "po", status=True, more=["log", "eviction"], generation=True, all_=True),
    _kind("v1", "Service", "services", "svc", status=True, all_=True),
    _kind("v1", "Endpoints", "endpoints", "ep"),
    _kind("v1", "ConfigMap", "configmaps", "cm"),
    _kind("v1", "Secret", "secrets"),
    _kind("v1", "ServiceAccount", "serviceaccounts", "sa"),
    _kind("v1", "Event", "events", "ev", model="CoreV1Event"),
    _kind("events.k8s.io/v1", "Event", "events", "ev", model="EventsV1Event", view_of="events"),
    _kind("apps/v1", "Deployment", "deployments", "deploy", status=True, scale=True, generation=True, all_=True),
    _kind("apps/v1", "ReplicaSet", "replicasets", "rs", status=True, scale=True, generation=True, all_=True),
    _kind("batch/v1", "Job", "jobs", status=True, generation=True, all_=True),
    _kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", generation=True),
    _kind("coordination.k8s.io/v1", "Lease", "leases"),
    _kind(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "hpa",
        model="V2HorizontalPodAutoscaler",
        status=True,
        all_=True,
    ),
    _kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", "pdb", status=True, generation=True),
    _kind(_RBAC, "Role", "roles"),
    _kind(_RBAC, "RoleBinding", "rolebindings"),
    _kind(_RBAC, "ClusterRole", "clusterroles", cluster=True),
    _kind(_RBAC, "ClusterRoleBinding", "clusterrolebindings", cluster=True),
    _kind(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "crd",
        "crds",
        cluster=True,
        status=True,
        generation=True,
    ),
)


def custom(definition: Json) -> list[Resource]:
    """The resources that a CustomResourceDefinition serves, one for each served version."""
    spec = definition["spec"]
    names = spec["names"]
    found: list[Resource] = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        sub = at(version, "subresources")
        found.append(
            Resource(
                group=spec["group"],
                version=version["name"],
                kind=names["kind"],
                plural=names["plural"],
                singular=names.get("singular") or names["kind"].lower(),
                namespaced=spec["scope"] == "Namespaced",
                schema=structural(at(version, "schema").get("openAPIV3Schema") or {}, top=True),
                short=tuple(many(names, "shortNames")),
                categories=tuple(many(names, "categories")),
                subresources=frozenset(sub),
                generation=True,
                columns=tuple(many(version, "additionalPrinterColumns")),
                scale=at(sub, "scale"),
                custom=True,
            )
        )
    return found


class Kinds:
    """What is served now. Built-in kinds always; custom ones from ``define`` until ``withdraw``."""

    def __init__(self) -> None:
        self._by_path = {(each.group, each.version, each.plural): each for each in BUILT_IN}
        self.stamp = 0
        """Changes with every change of the table: discovery and OpenAPI documents are cached by it."""

    def all(self) -> list[Resource]:
        return list(self._by_path.values())

    def at(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def by_id(self, identity: str) -> Resource | None:
        return next((each for each in self._by_path.values() if each.id == identity), None)

    def by_kind(self, group: str, kind: str) -> Resource | None:
        return next((each for each in self._by_path.values() if (each.group, each.kind) == (group, kind)), None)

    def define(self, definition: Json) -> None:
        """Serve a CustomResourceDefinition, in place of what it served before."""
        self.withdraw(definition)
        for each in custom(definition):
            self._by_path[(each.group, each.version, each.plural)] = each
        self.stamp += 1

    def withdraw(self, definition: Json) -> None:
        group, plural = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        self._by_path = {
            path: each
            for path, each in self._by_path.items()
            if not (each.custom and (each.group, each.plural) == (group, plural))
        }
        self.stamp += 1
