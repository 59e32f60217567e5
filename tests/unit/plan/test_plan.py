"""The plan: what is done to each object, what is refused before anything is written, what may be deleted."""
# ruff: noqa: E501  (a row of a table is one line)

import copy
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gitsync.errors import GitsyncError, Invalid, Refused, Waiting
from gitsync.model import (
    LABEL_APPLICATION,
    LABEL_NAMESPACE,
    Action,
    Change,
    Desired,
    InventoryItem,
    Json,
    ObjectRef,
    Plan,
)
from gitsync.plan import PlanOptions, autoscaled, plan
from gitsync.plan.waves import name_jobs

from .objects import OWNER, REVISION, as_live, cluster, desired, inventory, manifest, objects

Key = tuple[str, str, str, str]


def make(
    text: str | Desired, live: dict[Key, Json] | None = None, items: list[InventoryItem] | None = None, **more: Any
) -> Plan:
    options = PlanOptions(**{key: more.pop(key) for key in list(more) if key in PlanOptions.__dataclass_fields__})
    live = live or {}
    wanted = desired(text) if isinstance(text, str) else text
    return plan(wanted, live, inventory(live) if items is None else items, owner=OWNER, options=options, **more)


def refused(text: str, live: dict[Key, Json] | None = None, **more: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        make(text, live, **more)
    return caught.value


def only(result: Plan) -> Change:
    (change,) = result.changes
    return change


CONFIG = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}, data: {a: b}}"
MINE = {LABEL_APPLICATION: "shop", LABEL_NAMESPACE: "prod"}


# ---------------------------------------------------------------- actions


def test_create() -> None:
    change = only(make(CONFIG))
    assert (change.action, change.fields) == (Action.CREATE, ())
    assert change.manifest.object["metadata"]["labels"] == MINE


def test_what_is_sent_carries_our_labels_and_the_manifest_is_left_alone() -> None:
    given = desired(CONFIG.replace("namespace: shop", "namespace: shop, labels: {x: y}"))
    before = copy.deepcopy(given.manifests[0].object)
    assert only(make(given)).manifest.object["metadata"]["labels"] == MINE | {"x": "y"}
    assert given.manifests[0].object == before


def test_unchanged() -> None:
    result = make(CONFIG, cluster(CONFIG))
    assert only(result).action is Action.UNCHANGED
    assert result.empty


def test_update_names_the_fields() -> None:
    change = only(make(CONFIG, cluster(CONFIG.replace("a: b", "a: old"))))
    assert change.action is Action.UPDATE
    assert [(field.path, field.before, field.after) for field in change.fields] == [("data.a", "old", "b")]


def test_what_git_no_longer_says_is_an_update_too() -> None:
    live = cluster(CONFIG.replace("a: b", "a: b, gone: x"))
    next(iter(live.values()))["metadata"]["managedFields"] = [
        {"manager": "gitsync", "operation": "Apply", "fieldsV1": {"f:data": {"f:a": {}, "f:gone": {}}}}
    ]
    change = only(make(CONFIG, live))
    assert [(field.path, field.before, field.after) for field in change.fields] == [("data.gone", "x", None)]
    assert change.action is Action.UPDATE


def test_adoption_is_an_update() -> None:
    change = only(make(CONFIG, cluster(CONFIG, owner="")))
    assert change.action is Action.UPDATE
    assert change.fields[0].after == MINE


def test_secrets_are_masked() -> None:
    secret = "{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, stringData: {password: hunter2}}"
    live = cluster("{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, data: {password: b2xk}}")
    change = only(make(secret, live))
    assert change.action is Action.UPDATE
    assert "hunter2" not in repr(change.fields)
    assert "aHVudGVyMg==" not in repr(change.fields)
    assert change.manifest.object["stringData"] == {"password": "hunter2"}


@pytest.mark.parametrize("where", ["git", "live"])
def test_reconcile_disabled_is_applied_once(where: str) -> None:
    marked = CONFIG.replace(
        "namespace: shop", "namespace: shop, annotations: {gitsync.dev/reconcile: disabled}"
    ).replace("a: b", "a: z")
    git, there = (marked, CONFIG) if where == "git" else (CONFIG, marked)
    assert only(make(git, cluster(there))).action is Action.UNCHANGED
    assert only(make(marked)).action is Action.CREATE
    other = marked.replace("disabled", "enabled")
    assert only(make(other, cluster(CONFIG))).action is Action.UPDATE


def test_what_is_being_deleted_is_waited_for() -> None:
    live = {key: as_live(obj, deletionTimestamp="2024-01-01T00:00:00Z") for key, obj in cluster(CONFIG).items()}
    with pytest.raises(Waiting, match="still being deleted"):
        make(CONFIG, live)


def test_a_revision_without_objects_is_refused() -> None:
    with pytest.raises(Invalid, match="no objects"):
        make(Desired(revision=REVISION, manifests=()), cluster(CONFIG))


def test_waves_are_kept() -> None:
    result = make(CONFIG + "\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
    assert [[change.manifest.ref.kind for change in wave] for wave in result.waves] == [["Namespace"], ["ConfigMap"]]
    assert result.revision == REVISION


# ---------------------------------------------------------------- whose it is


def test_an_object_of_another_application_is_refused_naming_both() -> None:
    error = refused(CONFIG, cluster(CONFIG, owner="prod/other"))
    assert error.reason == "OwnedByAnother"
    assert "prod/other" in str(error)
    assert "prod/shop" in str(error)
    assert "shop@1111111 app.yaml:1" in str(error)


def test_what_an_application_that_is_gone_left_is_taken_over() -> None:
    taken = plan(
        desired(CONFIG), cluster(CONFIG, owner="prod/other"), [], owner=OWNER,
        options=PlanOptions(gone=frozenset({"prod/other"})),
    )  # fmt: skip
    assert {change.action for change in taken.changes} == {Action.UPDATE}
    assert not taken.prunes


def test_the_same_name_in_another_namespace_is_another_application() -> None:
    assert "test/shop" in str(refused(CONFIG, cluster(CONFIG, owner="test/shop")))


def test_half_a_label_is_nobodys() -> None:
    live = cluster(CONFIG, owner="")
    next(iter(live.values()))["metadata"]["labels"] = {LABEL_APPLICATION: "other"}
    assert only(make(CONFIG, live)).action is Action.UPDATE


def test_all_refusals_are_named_at_once() -> None:
    both = CONFIG + "\n---\n" + CONFIG.replace("name: c", "name: d")
    error = refused(both, cluster(both, owner="prod/other"))
    assert error.ref == ObjectRef(version="v1", kind="ConfigMap", namespace="shop", name="c")
    assert "also refused: ConfigMap/shop/d (shop@1111111 app.yaml:2)" in error.message
    many = "\n---\n".join(CONFIG.replace("name: c", f"name: c{index}") for index in range(15))
    assert refused(many, cluster(many, owner="prod/other")).message.endswith(" and 5 more")


def test_the_rules_that_a_cluster_role_gathers_from_others_are_not_taken_from_it() -> None:
    role = """{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: a}, rules: [],
     aggregationRule: {clusterRoleSelectors: [{matchLabels: {a: b}}]}}"""
    assert "rules" not in only(make(role)).manifest.object
    live = cluster(role)
    (obj,) = live.values()
    obj["rules"] = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    assert only(make(role, live)).action is Action.UNCHANGED
    alone = role.replace("aggregationRule", "x")
    assert only(make(alone, live)).action is Action.UPDATE


# ---------------------------------------------------------------- immutable fields

DEPLOYMENT = """{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {replicas: 2, selector: {matchLabels: {app: web}},
 template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: "a@sha256:1"}]}}}}"""
STATEFUL = DEPLOYMENT.replace("Deployment", "StatefulSet").replace("replicas: 2", "replicas: 2, serviceName: web, podManagementPolicy: OrderedReady, "
                              "volumeClaimTemplates: [{metadata: {name: d}, spec: {resources: {requests: {storage: 1Gi}}}}]")  # fmt: skip
SERVICE = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}}"
CLAIM = "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: d, namespace: shop}, spec: {accessModes: [ReadWriteOnce], storageClassName: a, resources: {requests: {storage: 2Gi}}}}"
VOLUME = "{apiVersion: v1, kind: PersistentVolume, metadata: {name: v}, spec: {capacity: {storage: 1Gi}, hostPath: {path: /a}}}"
CLASS = "{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: fast}, provisioner: a.b, parameters: {x: '1'}, allowVolumeExpansion: false}"
BINDING = "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: b, namespace: shop}, roleRef: {kind: Role, name: a}, subjects: [{kind: User, name: x}]}"
JOB = "{apiVersion: batch/v1, kind: Job, metadata: {name: j, namespace: shop}, spec: {parallelism: 1, template: {spec: {containers: [{name: a, image: b}]}}}}"
SECRET = "{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: shop}, type: a/b, data: {x: YQ==}}"
SEALED = CONFIG.replace(", data:", ", immutable: true, data:")
DEFINITION = "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: a.b.c}, spec: {scope: Namespaced, group: b.c, names: {plural: a, kind: A, shortNames: [x]}}}"

# live, what git changes in it, the field that is refused ("" for none)
FROZEN: list[tuple[str, str, str, str]] = [
    (DEPLOYMENT, "matchLabels: {app: web}", "matchLabels: {app: web, tier: front}", "spec.selector.matchLabels.tier"),
    (DEPLOYMENT, "replicas: 2", "replicas: 3", ""),
    (DEPLOYMENT, "sha256:1", "sha256:2", ""),
    (DEPLOYMENT.replace("kind: Deployment", "kind: DaemonSet"), "matchLabels: {app: web}", "matchLabels: {app: web, tier: front}", "spec.selector.matchLabels.tier"),
    (STATEFUL, "serviceName: web", "serviceName: other", "spec.serviceName"),
    (STATEFUL, "OrderedReady", "Parallel", "spec.podManagementPolicy"),
    (STATEFUL, "storage: 1Gi", "storage: 2Gi", "spec.volumeClaimTemplates[0].spec.resources.requests.storage"),
    (STATEFUL, "storage: 1Gi", "storage: 1024Mi", "same"),
    (STATEFUL, "replicas: 2", "replicas: 3, minReadySeconds: 3, revisionHistoryLimit: 2, updateStrategy: {type: OnDelete}", ""),
    (STATEFUL, "sha256:1", "sha256:2", ""),
    (SERVICE, "10.0.0.1", "10.0.0.2", "spec.clusterIP"),
    (SERVICE, "10.0.0.1", "None", "spec.clusterIP"),
    (SERVICE, "10.0.0.1", "''", "same"),
    (SERVICE, "port: 80", "port: 81", ""),
    (SERVICE.replace("clusterIP: 10.0.0.1, ", ""), "ports", "clusterIP: 10.0.0.1, ports", ""),
    (CLAIM, "storage: 2Gi", "storage: 3Gi", ""),
    (CLAIM, "storage: 2Gi", "storage: 2000Mi", "spec.resources.requests.storage"),
    (CLAIM, "namespace: shop", "namespace: shop, labels: {a: b}", ""),
    (CLAIM, "storageClassName: a", "storageClassName: b", "spec.storageClassName"),
    (CLAIM, "ReadWriteOnce", "ReadWriteMany", "spec.accessModes[0]"),
    (VOLUME, "path: /a", "path: /b", "spec.hostPath.path"),
    (VOLUME, "storage: 1Gi", "storage: 2Gi", ""),
    (CLASS, "a.b", "c.d", "provisioner"),
    (CLASS, "x: '1'", "x: '2'", "parameters.x"),
    (CLASS, "allowVolumeExpansion: false", "allowVolumeExpansion: true", ""),
    (BINDING, "name: a", "name: c", "roleRef.name"),
    (BINDING.replace("RoleBinding", "ClusterRoleBinding").replace(", namespace: shop", ""), "name: a", "name: c", "roleRef.name"),
    (BINDING, "name: x", "name: y", ""),
    (JOB, "image: b", "image: c", "spec.template.spec.containers[name=a].image"),
    (JOB, "parallelism: 1", "parallelism: 2", ""),
    (SECRET, "type: a/b", "type: c/d", "type"),
    (SECRET, "YQ==", "Yg==", ""),
    (SECRET.replace("type:", "immutable: true, type:"), "YQ==", "Yg==", "data.x"),
    (SEALED, "a: b", "a: c", "data.a"),
    (SEALED, "immutable: true", "immutable: false", "immutable"),
    (SEALED, "namespace: shop", "namespace: shop, labels: {a: b}", ""),
    (CONFIG, "a: b", "a: c", ""),
    (DEFINITION, "Namespaced", "Cluster", "spec.scope"),
    (DEFINITION, "shortNames: [x]", "shortNames: [y]", ""),
    ("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: p}, value: 1}", "value: 1", "value: 2", "value"),
    ("{apiVersion: example.org/v1, kind: Widget, metadata: {name: p}, spec: {selector: {a: b}}}", "a: b", "a: c", ""),
]  # fmt: skip
KEPT = {"PersistentVolumeClaim", "PersistentVolume", "CustomResourceDefinition"}


@pytest.mark.parametrize(("live", "old", "new", "field"), FROZEN)
def test_immutable_fields(live: str, old: str, new: str, field: str) -> None:
    assert old in live
    git, there = live.replace(old, new), cluster(live)
    if field in ("", "same"):
        assert only(make(git, there)).action is (Action.UPDATE if field == "" else Action.UNCHANGED)
        return
    if "matchLabels" in old:  # the template still has to match
        git = git.replace("labels: {app: web}", "labels: {app: web, tier: front}")
    error = refused(git, there)
    assert error.reason == "ImmutableField"
    assert error.message.startswith(f"{field} cannot be changed")
    assert error.origin is not None
    assert error.origin.field == field
    assert error.hint
    if error.ref and error.ref.kind in KEPT:
        refused(git, there, accept_interruption=True)
    else:
        result = make(git, there, accept_interruption=True)
        assert only(result).action is Action.REPLACE
        assert ("replaced", "warning") in [(finding.rule, finding.level) for finding in result.findings]


# a manifest, what git leaves out of it, what of it is ours
GIVEN: list[tuple[str, str, str]] = [
    (STATEFUL, "podManagementPolicy: OrderedReady, ", "{f:spec: {f:podManagementPolicy: {}}}"),
    (STATEFUL.replace("{metadata: {name: d}", "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: d}"),
     "apiVersion: v1, kind: PersistentVolumeClaim, ", "{f:spec: {f:volumeClaimTemplates: {}}}"),
    (STATEFUL.replace("spec: {resources", "status: {phase: Pending}, spec: {resources"), "status: {phase: Pending}, ",
     "{f:spec: {f:volumeClaimTemplates: {}}}"),
    (STATEFUL.replace("spec: {resources", "spec: {volumeMode: Filesystem, resources"), "volumeMode: Filesystem, ",
     "{f:spec: {f:volumeClaimTemplates: {}}}"),
    (CLAIM.replace("storageClassName: a", "volumeMode: Filesystem"), "volumeMode: Filesystem, ", "{f:spec: {f:volumeMode: {}}}"),
    (VOLUME.replace("hostPath", "volumeMode: Filesystem, hostPath"), "volumeMode: Filesystem, ", "{f:spec: {f:volumeMode: {}}}"),
    (CLASS.replace("parameters", "reclaimPolicy: Delete, parameters"), "reclaimPolicy: Delete, ", "{f:reclaimPolicy: {}}"),
    (CLASS.replace("parameters", "volumeBindingMode: Immediate, parameters"), "volumeBindingMode: Immediate, ", "{f:volumeBindingMode: {}}"),
    ("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: p}, preemptionPolicy: PreemptLowerPriority, value: 1}",
     "preemptionPolicy: PreemptLowerPriority, ", "{f:preemptionPolicy: {}}"),
    (BINDING.replace("kind: Role,", "apiGroup: rbac.authorization.k8s.io, kind: Role,"), "apiGroup: rbac.authorization.k8s.io, ", "{f:roleRef: {}}"),
    (SECRET.replace("a/b", "Opaque"), "type: Opaque, ", "{f:type: {}}"),
]  # fmt: skip


@pytest.mark.parametrize(("live", "default", "owned"), GIVEN)
def test_a_default_that_git_no_longer_spells_out_is_no_change_of_an_immutable_field(
    live: str, default: str, owned: str
) -> None:
    assert default in live
    there = cluster(live)
    (obj,) = there.values()
    obj["metadata"]["managedFields"] = [{"manager": "gitsync", "operation": "Apply", "fieldsV1": yaml.safe_load(owned)}]
    git, previous = live.replace(default, ""), cluster(live)
    for accepted in (False, True):
        change = only(make(git, there, previous=previous, accept_interruption=accepted))
        assert change.action is Action.UPDATE  # which a dry run shows to have no effect


def test_no_value_of_a_secret_is_in_a_refusal() -> None:
    sealed = SECRET.replace("type:", "immutable: true, type:")
    error = refused(sealed.replace("data: {x: YQ==}", "stringData: {x: hunter2}"), cluster(sealed))
    assert "hunter2" not in repr(vars(error))


# ---------------------------------------------------------------- bare Pods

POD = """{apiVersion: v1, kind: Pod, metadata: {name: hello, labels: {app: hello}}, spec: {activeDeadlineSeconds: 9, tolerations: [{key: a, operator: Exists}],
 initContainers: [{name: i, image: i1}], containers: [{name: web, image: "w1", env: [{name: A, value: "1"}]}]}}"""
IN_PLACE = [
    ("image: \"w1\"", "image: \"w2\"", Action.UPDATE),
    ("image: i1", "image: i2", Action.UPDATE),
    ("labels: {app: hello}", "labels: {app: hello, x: y}", Action.UPDATE),
    ("activeDeadlineSeconds: 9", "activeDeadlineSeconds: 8", Action.UPDATE),
    ("value: \"1\"", "value: \"2\"", Action.REPLACE),
    ("image: \"w1\"", "command: [x], image: \"w2\"", Action.REPLACE),
    ("key: a", "key: b", Action.REPLACE),
    ("name: web", "name: other", Action.REPLACE),
]  # fmt: skip


def pod_in_cluster(**status: Any) -> dict[Key, Json]:
    live = cluster(POD)
    (obj,) = live.values()
    obj["spec"]["tolerations"].append(
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}
    )
    obj["spec"]["nodeName"] = "node-1"
    obj["status"] = {"phase": "Running", **status}
    return live


def test_what_admission_adds_to_a_pod_is_no_change() -> None:
    assert only(make(POD, pod_in_cluster())).action is Action.UNCHANGED


@pytest.mark.parametrize(("old", "new", "action"), IN_PLACE)
def test_a_bare_pod(old: str, new: str, action: Action) -> None:
    assert old in POD
    result = make(POD.replace(old, new), pod_in_cluster())
    assert only(result).action is action
    assert [finding.level for finding in result.findings if finding.rule == "bare-pod"] == ["warning"]
    assert ("replaced" in {finding.rule for finding in result.findings}) == (action is Action.REPLACE)


def test_a_pod_that_ended_does_not_start_again_for_an_image() -> None:
    for phase in ("Succeeded", "Failed"):
        assert only(make(POD.replace("w1", "w2"), pod_in_cluster(phase=phase))).action is Action.REPLACE
    assert only(make(POD.replace("app: hello", "app: x"), pod_in_cluster(phase="Failed"))).action is Action.UPDATE


@pytest.mark.parametrize(("old", "new", "action"), IN_PLACE)
def test_enforced_zero_downtime_forbids_to_interrupt_a_bare_pod(old: str, new: str, action: Action) -> None:
    pinned = POD.replace("w1", "w1@sha256:1").replace("i1", "i1@sha256:1")
    changed = (
        POD.replace(old, new)
        .replace("w1", "w1@sha256:1")
        .replace("i1", "i1@sha256:1")
        .replace("w2", "w2@sha256:2")
        .replace("i2", "i2@sha256:2")
    )
    live = cluster(pinned)
    if "labels" in old:
        assert only(make(changed, live, zero_downtime="enforce")).action is Action.UPDATE
        return
    error = refused(changed, live, zero_downtime="enforce")
    assert error.reason == "BarePod"
    assert "cannot roll without an interruption" in error.message
    assert only(make(changed, live, zero_downtime="enforce", accept_interruption=True)).action is action


# ---------------------------------------------------------------- autoscalers

HPA = "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: web, namespace: shop}, spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}}"
KEDA = "{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: web, namespace: shop}, spec: {scaleTargetRef: {name: web}}}"
WEB: Key = ("apps", "Deployment", "shop", "web")


@pytest.mark.parametrize("scaler", [HPA, KEDA])
@pytest.mark.parametrize("where", ["git", "cluster"])
def test_replicas_of_an_autoscaled_object_are_where_it_starts_and_no_more(scaler: str, where: str) -> None:
    there = cluster(DEPLOYMENT.replace("replicas: 2", "replicas: 7"))
    there[WEB]["metadata"]["managedFields"] = [
        {"manager": "gitsync", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    text = DEPLOYMENT + ("\n---\n" + scaler if where == "git" else "")
    result = make(text, there, autoscalers=objects(scaler) if where == "cluster" else ())
    change = next(each for each in result.changes if each.manifest.ref.key == WEB)
    assert change.action is Action.UNCHANGED
    created = next(each for each in make(text, autoscalers=objects(scaler)).changes if each.manifest.ref.key == WEB)
    assert created.manifest.object["spec"]["replicas"] == 2


def test_an_autoscaler_in_another_namespace_scales_nothing_here() -> None:
    there = cluster(DEPLOYMENT.replace("replicas: 2", "replicas: 7"))
    other = objects(HPA.replace("namespace: shop", "namespace: x"))
    assert only(make(DEPLOYMENT, there, autoscalers=other)).action is Action.UPDATE


def test_an_autoscaler_that_goes_gives_the_replicas_back() -> None:
    there = cluster(DEPLOYMENT.replace("replicas: 2", "replicas: 7") + "\n---\n" + HPA)
    result = make(DEPLOYMENT, there)
    assert [item.ref.kind for item in result.prunes] == ["HorizontalPodAutoscaler"]
    assert [field.path for field in only(result).fields] == ["spec.replicas"]
    held = make(DEPLOYMENT, there, max_delete_count=0, max_delete_share=0.0)
    assert held.held
    assert only(held).action is Action.UNCHANGED


def test_autoscaled_keys() -> None:
    assert autoscaled(desired(HPA).manifests, []) == {WEB}
    assert autoscaled([], objects(KEDA)) == {WEB}
    assert autoscaled(desired(CONFIG).manifests, [{}, {"spec": 3}, {"spec": {"scaleTargetRef": "web"}}]) == frozenset()
    replica_set = HPA.replace("kind: Deployment", "kind: ReplicationController").replace("apps/v1", "v1")
    assert autoscaled(desired(replica_set).manifests, []) == {("", "ReplicationController", "shop", "web")}


# ---------------------------------------------------------------- pruning


def configs(*names: str, kind: str = "ConfigMap") -> str:
    return "\n---\n".join(CONFIG.replace("name: c", f"name: {name}").replace("ConfigMap", kind) for name in names)


def pruned(result: Plan) -> list[str]:
    return [item.ref.name for item in result.prunes]


def held(result: Plan) -> list[str]:
    return [item.ref.name for item in result.held]


def test_what_git_no_longer_has_is_pruned_from_the_inventory() -> None:
    result = make(CONFIG, cluster(configs("c", "old")))
    assert (pruned(result), held(result), result.empty) == (["old"], [], False)


def test_labels_alone_make_nothing_prunable() -> None:
    assert pruned(make(CONFIG, cluster(configs("c", "copied")), items=[])) == []


def test_no_pruning() -> None:
    result = make(CONFIG, cluster(configs("c", "old")), prune=False)
    assert (pruned(result), held(result)) == ([], [])


OLD: Key = ("", "ConfigMap", "shop", "old")


@pytest.mark.parametrize("spoil", [
    {"uid": "another"}, {"labels": {}}, {"labels": {LABEL_APPLICATION: "other", LABEL_NAMESPACE: "prod"}},
    {"labels": {LABEL_APPLICATION: "shop"}}, {"annotations": {"gitsync.dev/prune": "disabled"}}, {"uid": ""},
    {"annotations": {"helm.sh/resource-policy": "keep"}},
])  # fmt: skip
def test_what_is_not_surely_ours_stays(spoil: Json) -> None:
    live = cluster(configs("c", "old"))
    items = inventory(live)
    live[OLD]["metadata"].update(spoil)
    if spoil.get("uid") == "":
        items = [replace(item, uid="") for item in items]
    result = make(CONFIG, live, items)
    assert (pruned(result), held(result)) == ([], [])


def test_what_is_gone_already_is_not_pruned() -> None:
    live = cluster(configs("c", "old"))
    items = inventory(live)
    del live[OLD]
    assert pruned(make(CONFIG, live, items)) == []


def test_one_object_under_two_groups_is_one_object() -> None:
    new = "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: i, namespace: shop}, spec: {}}"
    live = cluster(new + "\n---\n" + new.replace("networking.k8s.io/v1", "extensions/v1beta1"))
    assert pruned(make(new, live)) == []


def test_pruning_goes_in_reverse() -> None:
    old = DEPLOYMENT + "\n---\n" + SECRET + "\n---\n" + SERVICE
    assert [item.ref.kind for item in make(CONFIG, cluster(old)).prunes] == ["Deployment", "Service", "Secret"]


@pytest.mark.parametrize(
    ("size", "gone", "is_held"),
    [(6, 5, False), (7, 6, True), (30, 6, False), (30, 7, True), (100, 20, False), (100, 21, True)],
)
def test_the_budget_of_deletions(size: int, gone: int, is_held: bool) -> None:
    names = [f"c{index:03}" for index in range(size)]
    result = make(configs(*names[gone:]), cluster(configs(*names)))
    assert (len(result.held), len(result.prunes)) == ((gone, 0) if is_held else (0, gone))
    assert result.empty is is_held


def test_what_is_only_read_does_not_widen_the_budget() -> None:
    names = [f"c{index}" for index in range(10)]
    mine, others = cluster(configs(*names)), cluster(configs(*(f"x{index}" for index in range(100))), owner="")
    assert len(make(configs(*names[6:]), mine | others, inventory(mine)).held) == 6


PRECIOUS = [
    CLAIM,
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}",
    DEFINITION,
]


@pytest.mark.parametrize("precious", PRECIOUS)
def test_what_holds_others_waits_for_approval_and_holds_all(precious: str) -> None:
    live = cluster(configs("c", "old") + "\n---\n" + precious)
    result = make(CONFIG, live)
    assert (pruned(result), len(held(result))) == ([], 2)
    for approved in (REVISION.sha, str(REVISION), REVISION.sha[:7]):
        agreed = make(CONFIG, live, approved=approved)
        assert (len(pruned(agreed)), held(agreed)) == (2, [])
    for other in ("", "2" * 40, REVISION.sha[:6], "yes", "true"):
        assert len(held(make(CONFIG, live, approved=other))) == 2


def test_a_rename_is_shown() -> None:
    new = DEPLOYMENT.replace("name: web, namespace", "name: shopfront, namespace")
    result = make(new, cluster(DEPLOYMENT))
    found = [finding for finding in result.findings if finding.rule == "renamed"]
    assert [(each.level, each.ref.name, "Deployment/shop/web" in each.message) for each in found] == [
        ("warning", "shopfront", True)
    ]
    other = (
        new.replace("a@sha256:1", "b@sha256:2")
        .replace("app: web", "app: b")
        .replace("replicas: 2", "replicas: 1")
        .replace("name: web", "name: b")
    )
    assert "renamed" not in {finding.rule for finding in make(other, cluster(DEPLOYMENT)).findings}


def test_names_that_follow_content_are_no_renames() -> None:
    text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c-1, namespace: shop}, data: {a: b, c: d, e: f}}"
    assert make(text, cluster(text.replace("c-1", "c-2"))).findings == ()


# ---------------------------------------------------------------- what two cannot have at once

NODE_PORT = "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {type: NodePort, ports: [{port: 80, nodePort: 30080}]}}"
HOST_PORT = DEPLOYMENT.replace("name: web, image", "name: web, ports: [{containerPort: 80, hostPort: 8080}], image")
MOUNT = DEPLOYMENT.replace(
    "spec: {containers", "spec: {volumes: [{name: d, persistentVolumeClaim: {claimName: d}}], containers"
)
INGRESS = "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: web, namespace: shop}, spec: {rules: [{host: a.example, http: {paths: [{path: /}]}}]}}"
EXCLUSIVE = [
    (NODE_PORT, "", "node port 30080 is held by Service/shop/web"),
    (HOST_PORT, "", "host port 8080/TCP is held by Deployment/shop/web"),
    (MOUNT, CLAIM, "the volume of shop/d is held by Deployment/shop/web"),
    (INGRESS, "", "ingress host a.example/ is held by Ingress/shop/web"),
    (INGRESS.replace("host: a.example, ", ""), "", "ingress host */ is held by"),
    (MOUNT, CLAIM.replace("ReadWriteOnce", "ReadWriteMany"), ""),
    (MOUNT, "", ""),
    (SERVICE, "", ""),
]


@pytest.mark.parametrize(("old", "also", "message"), EXCLUSIVE)
def test_exclusive_claims_between_an_old_and_a_new_name(old: str, also: str, message: str) -> None:
    new = old.replace("name: web, namespace", "name: web2, namespace")
    both = f"{new}\n---\n{also}" if also else new
    live = cluster(f"{old}\n---\n{also}" if also else old)
    if message:
        error = refused(both, live)
        assert (error.reason, message in error.message) == ("ExclusiveClaim", True)
        accepted = make(both, live, accept_interruption=True)
        (taker,) = [change for change in accepted.changes if change.instead_of]
        assert (taker.manifest.ref.name, taker.action) == ("web2", Action.CREATE)
        assert [item.ref.name for item in taker.instead_of] == ["web"]
        assert (accepted.prunes, accepted.deletions) == ((), taker.instead_of)
        assert "handed-over" in {finding.rule for finding in accepted.findings}
    else:
        assert make(both, live).prunes
    assert not make(old + (f"\n---\n{also}" if also else ""), live).prunes


def test_what_waits_for_approval_is_not_taken_from() -> None:
    many = "\n---\n".join(CONFIG.replace("name: c,", f"name: c{number},") for number in range(8))
    new = NODE_PORT.replace("name: web, namespace", "name: web2, namespace")
    error = refused(new, cluster(f"{NODE_PORT}\n---\n{many}"), accept_interruption=True)
    assert error.reason == "ExclusiveClaim"
    assert "approve" in error.hint


def test_a_claim_is_known_from_git_or_from_the_cluster() -> None:
    new = MOUNT.replace("name: web, namespace", "name: web2, namespace")
    assert refused(f"{new}\n---\n{CLAIM}", cluster(MOUNT)).reason == "ExclusiveClaim"
    foreign = cluster(CLAIM, owner="")
    assert refused(new, cluster(MOUNT) | foreign).reason == "ExclusiveClaim"


# ---------------------------------------------------------------- Jobs


def test_a_job_runs_once() -> None:
    wanted = name_jobs(desired(JOB))
    (job,) = wanted.manifests
    done = {job.ref.key: as_live(job.object)}
    assert only(make(wanted)).action is Action.CREATE
    assert only(make(wanted, done)).action is Action.UNCHANGED
    assert only(make(wanted, previous=done)).action is Action.UNCHANGED, "cleaned away, not to be run again"
    config = desired(CONFIG)
    assert only(make(config, previous=cluster(CONFIG))).action is Action.CREATE


def test_the_successor_of_a_job_is_no_deletion_to_approve() -> None:
    old = name_jobs(desired("\n---\n".join(JOB.replace("name: j", f"name: j{index}") for index in range(8))))
    new = name_jobs(
        desired(
            "\n---\n".join(
                JOB.replace("name: j", f"name: j{index}").replace("image: b", "image: c") for index in range(8)
            )
        )
    )
    live = {each.ref.key: as_live(each.object) for each in old.manifests}
    result = make(new, live)
    assert (len(result.prunes), len(result.held)) == (8, 0)
    assert len(make(CONFIG, live).held) == 8


# ---------------------------------------------------------------- policy

DROPS = DEPLOYMENT.replace("replicas: 2", "replicas: 2, strategy: {type: Recreate}")


def rules(result: Plan) -> set[str]:
    return {finding.rule for finding in result.findings}


def test_zero_downtime_warns() -> None:
    assert "strategy" in rules(make(DROPS))


def test_zero_downtime_off() -> None:
    assert rules(make(DROPS, zero_downtime="off")) == set()


def test_zero_downtime_enforced() -> None:
    error = refused(DROPS, zero_downtime="enforce")
    assert (error.reason, error.origin and error.origin.field) == ("ZeroDowntime", "spec.strategy.type")
    assert "strategy" in rules(make(DROPS, zero_downtime="enforce", accept_interruption=True))
    refused(DROPS, cluster(DROPS.replace("replicas: 2", "replicas: 3")), zero_downtime="enforce")
    assert make(DROPS, cluster(DROPS), zero_downtime="enforce").empty, "what does not change does not roll"


def test_warnings_refuse_nothing() -> None:
    pod = POD.replace("w1", "w1@sha256:1").replace("i1", "i1@sha256:1")
    assert "bare-pod" in rules(make(pod, zero_downtime="enforce"))


@pytest.mark.parametrize("zero_downtime", ["enforce", "warn", "off"])
def test_a_service_that_selects_nothing_is_refused_whatever_the_policy(zero_downtime: str) -> None:
    service = SERVICE.replace("spec: {", "spec: {selector: {app: nobody}, ")
    error = refused(DEPLOYMENT + "\n---\n" + service, zero_downtime=zero_downtime, accept_interruption=True)
    assert (error.reason, "app=nobody" in error.message) == ("BadInput", True)


def test_the_running_pods_are_known_to_the_rules() -> None:
    service = SERVICE.replace("spec: {", "spec: {selector: {app: web}, ")
    live = cluster(DEPLOYMENT + "\n---\n" + service)
    moved = (DEPLOYMENT + "\n---\n" + service).replace(
        "template: {metadata: {labels: {app: web}}", "template: {metadata: {labels: {app: web, v: '2'}}"
    )
    moved = moved.replace("selector: {app: web}", "selector: {app: web, v: '2'}")
    assert "service-selector" in rules(make(moved, live))


# ---------------------------------------------------------------- anything at all

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.sampled_from(["web", "25%", "1Gi", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "app", "spec", "template", "ports", "selector", "containers",
        "metadata", "labels", "matchLabels", "volumes", "strategy", "rollingUpdate", "maxUnavailable", "accessModes", "env", "host", "rules"]), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip
KINDS = [
    "apps/v1 Deployment", "apps/v1 StatefulSet", "apps/v1 DaemonSet", "v1 Pod", "v1 Service", "v1 Secret", "v1 ConfigMap", "batch/v1 Job", "batch/v1 CronJob",
    "networking.k8s.io/v1 Ingress", "v1 PersistentVolumeClaim", "policy/v1 PodDisruptionBudget", "autoscaling/v2 HorizontalPodAutoscaler", "example.org/v1 Widget",
]  # fmt: skip


def shaped(kind: str, spec: Any, data: Any, labels: Any) -> Json:
    version, name = kind.split()
    return {
        "apiVersion": version,
        "kind": name,
        "metadata": {"name": "web", "namespace": "shop", "labels": labels, "annotations": labels},
        "spec": spec,
        "data": data,
    }


OBJECT = st.builds(shaped, st.sampled_from(KINDS), JSON, JSON, JSON)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=200)
@given(
    st.lists(OBJECT, min_size=1, max_size=3, unique_by=lambda obj: obj["kind"]),
    st.lists(OBJECT, max_size=3, unique_by=lambda obj: obj["kind"]),
)
def test_malformed_objects_are_left_to_the_server(git: list[Json], there: list[Json]) -> None:
    """Strange types are refused with a reason or passed on, and never end the planning with a stack trace."""
    live = {ObjectRef.of(obj).key: obj for obj in there}
    wanted = Desired(revision=REVISION, manifests=tuple(manifest(obj) for obj in git))
    try:
        result = plan(name_jobs(wanted), live, [], owner=OWNER)
    except GitsyncError:
        return
    assert len(result.changes) == len(git)


def test_yaml_of_the_tables_is_what_it_seems() -> None:
    assert yaml.safe_load(DEPLOYMENT)["spec"]["selector"] == {"matchLabels": {"app": "web"}}


# ---------------------------------------------------------------- other tools


@pytest.mark.parametrize(
    ("metadata", "tool"),
    [
        ({"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/web"}}, "Argo CD"),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "shop"}}, "Flux"),
        ({"annotations": {"meta.helm.sh/release-name": "shop"}}, "Helm"),
        ({"managedFields": [{"manager": "argocd-controller", "operation": "Apply"}]}, "Argo CD"),
        ({"managedFields": [{"manager": "kustomize-controller", "operation": "Apply"}]}, "Flux"),
        ({"managedFields": [{"manager": "kubectl", "operation": "Apply"}]}, ""),
        ({}, ""),
    ],
)
def test_another_tool_that_keeps_the_object_is_named_before_anything_is_written(metadata: Any, tool: str) -> None:
    there = cluster(DEPLOYMENT)
    there[WEB]["metadata"] |= metadata
    for setting in ("warn", "off"):
        found = [each for each in make(DEPLOYMENT, there, zero_downtime=setting).findings if each.rule == "other-tool"]
        assert [each.message.partition(" keeps")[0] for each in found] == ([tool] if tool else [])


def test_a_mark_that_git_sets_is_no_sign_of_another_tool() -> None:
    marked = DEPLOYMENT.replace("name: web,", "name: web, labels: {kapp.k14s.io/app: x},", 1)
    found = make(marked, cluster(marked)).findings
    assert "other-tool" not in {each.rule for each in found}
