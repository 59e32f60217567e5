"""What differs between git and the cluster: YAML beside YAML, beside the paths that are named."""
# ruff: noqa: E501  (a row of the table is one line)

import base64
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gitsync.model import FieldChange, Json
from gitsync.plan.diff import Culprit, blame, diff, drifted, owned_digest, quantity, removed, same_quantity

DEPLOYMENT, SERVICE, SECRET = "apps/v1 Deployment", "v1 Service", "v1 Secret"
CONFIG_MAP, CLAIM, CUSTOM = "v1 ConfigMap", "v1 PersistentVolumeClaim", "example.org/v1 Widget"
POD = "v1 Pod"


def build(kind: str, text: str) -> Json:
    version, name = kind.split()
    return {"apiVersion": version, "kind": name, **yaml.safe_load(text)}


def pods(text: str) -> str:
    return f"{{spec: {{template: {{spec: {text}}}}}}}"


# kind, what git says, what the cluster says, what changes: {path: (before, after)}
SAME: dict[str, Any] = {}
TABLE: list[tuple[str, str, str, dict[str, Any]]] = [
    # scalars and what is not ours
    (DEPLOYMENT, "{spec: {replicas: 3}}", "{spec: {replicas: 3}}", SAME),
    (DEPLOYMENT, "{spec: {replicas: 3}}", "{spec: {replicas: 5}}", {"spec.replicas": (5, 3)}),
    (DEPLOYMENT, "{spec: {replicas: 3}}", "{spec: {}}", {"spec.replicas": (None, 3)}),
    (DEPLOYMENT, "{spec: {}}", "{spec: {replicas: 5}, status: {replicas: 5}}", SAME),
    (DEPLOYMENT, "{spec: {paused: true}}", "{spec: {paused: 1}}", {"spec.paused": (1, True)}),
    (DEPLOYMENT, "{metadata: {name: a, namespace: b, creationTimestamp: null, uid: x}}", "{metadata: {name: a, uid: y}}", SAME),
    (DEPLOYMENT, "{spec: {replicas: 1}, status: {replicas: 9}}", "{spec: {replicas: 1}, status: {replicas: 1}}", SAME),
    (DEPLOYMENT, "{metadata: {labels: {app: web}}}", "{metadata: {labels: {app: web, foreign: x}}}", SAME),
    (DEPLOYMENT, "{metadata: {labels: {app.kubernetes.io/name: web}}}", "{metadata: {labels: {app.kubernetes.io/name: x}}}",
     {"metadata.labels[app.kubernetes.io/name]": ("x", "web")}),
    (DEPLOYMENT, "{metadata: {labels: {a: b}}}", "{metadata: {}}", {"metadata.labels": (None, {"a": "b"})}),
    (DEPLOYMENT, "{spec: {a: {b: 1}}}", "{spec: {a: 1}}", {"spec.a": (1, {"b": 1})}),
    (DEPLOYMENT, "{spec: {a: 1}}", "{spec: {a: {b: 1}}}", {"spec.a": ({"b": 1}, 1)}),
    # absent, null and empty
    (DEPLOYMENT, "{spec: {replicas: null}}", "{spec: {replicas: 3}}", SAME),
    (DEPLOYMENT, "{metadata: {annotations: {}}, spec: {a: [], b: {c: {}}}}", "{metadata: {}}", SAME),
    (DEPLOYMENT, pods("{securityContext: {}, volumes: []}"), pods("{securityContext: {runAsUser: 1}}"), SAME),
    (DEPLOYMENT, pods("{tolerations: []}"), pods("{tolerations: [{key: a}]}"),
     {"spec.template.spec.tolerations": ([{"key": "a"}], [])}),
    (DEPLOYMENT, pods("{hostNetwork: false, containers: [{name: a, tty: false}]}"), pods("{containers: [{name: a}]}"), SAME),
    (DEPLOYMENT, pods("{hostNetwork: true}"), pods("{}"), {"spec.template.spec.hostNetwork": (None, True)}),
    (DEPLOYMENT, pods("{hostUsers: false}"), pods("{}"), {"spec.template.spec.hostUsers": (None, False)}),
    (CUSTOM, "{spec: {hostNetwork: false}}", "{spec: {}}", {"spec.hostNetwork": (None, False)}),
    (DEPLOYMENT, pods("{containers: [{name: a, env: [{name: E, value: ''}]}]}"), pods("{containers: [{name: a, env: [{name: E}]}]}"), SAME),
    (CONFIG_MAP, "{data: {value: ''}}", "{data: {}}", {"data.value": (None, "")}),
    ("networking.k8s.io/v1 NetworkPolicy", "{spec: {ingress: [{}]}}", "{spec: {}}", {"spec.ingress": (None, [{}])}),
    # lists merged by a key
    (DEPLOYMENT, pods("{containers: [{name: web, image: b}]}"), pods("{containers: [{name: mesh, image: m}, {name: web, image: a}]}"),
     {"spec.template.spec.containers[name=web].image": ("a", "b")}),
    (DEPLOYMENT, pods("{containers: [{name: web, image: b}]}"), pods("{containers: [{name: old, image: m}]}"),
     {"spec.template.spec.containers[name=web]": (None, {"name": "web", "image": "b"})}),
    (DEPLOYMENT, pods("{containers: [{name: web, ports: [{containerPort: 80}]}]}"),
     pods("{containers: [{name: web, ports: [{containerPort: 80, protocol: TCP, name: http}]}]}"), SAME),
    (DEPLOYMENT, pods("{containers: [{name: web, ports: [{containerPort: 80, protocol: UDP}]}]}"),
     pods("{containers: [{name: web, ports: [{containerPort: 80, protocol: TCP}]}]}"),
     {"spec.template.spec.containers[name=web].ports[containerPort=80,protocol=UDP]": (None, {"containerPort": 80, "protocol": "UDP"})}),
    (DEPLOYMENT, pods("{containers: [{name: web, ports: [{containerPort: 80}]}]}"), pods("{}"),
     {"spec.template.spec.containers": (None, [{"name": "web", "ports": [{"containerPort": 80}]}])}),
    (SERVICE, "{spec: {ports: [{port: 80, targetPort: 8000}]}}", "{spec: {ports: [{port: 80, protocol: TCP, targetPort: 9000, nodePort: 30000}]}}",
     {"spec.ports[port=80,protocol=TCP].targetPort": (9000, 8000)}),
    (DEPLOYMENT, pods("{containers: [{name: a, env: [{name: X, value: '1'}, {name: Y, value: '2'}]}]}"),
     pods("{containers: [{name: a, env: [{name: Y, value: '2'}, {name: Z}, {name: X, value: '3'}]}]}"),
     {"spec.template.spec.containers[name=a].env[name=X].value": ("3", "1")}),
    (DEPLOYMENT, pods("{containers: [{name: a, env: [{name: X, value: '1'}, {name: X, value: '2'}]}]}"),
     pods("{containers: [{name: a, env: [{name: X, value: '1'}, {name: X, value: '3'}]}]}"),
     {"spec.template.spec.containers[name=a].env[1].value": ("3", "2")}),
    (DEPLOYMENT, pods("{volumes: [{name: v, configMap: {name: b}}], hostAliases: [{ip: 1.1.1.1, hostnames: [a]}]}"),
     pods("{volumes: [{name: v, configMap: {name: a, defaultMode: 420}}], hostAliases: [{ip: 1.1.1.1, hostnames: [b]}]}"),
     {"spec.template.spec.volumes[name=v].configMap.name": ("a", "b"), "spec.template.spec.hostAliases[ip=1.1.1.1].hostnames[0]": ("b", "a")}),
    (DEPLOYMENT, pods("{containers: [{name: a, volumeMounts: [{mountPath: /d, name: v}]}]}"),
     pods("{containers: [{name: a, volumeMounts: [{mountPath: /t, name: t}, {mountPath: /d, name: w}]}]}"),
     {"spec.template.spec.containers[name=a].volumeMounts[mountPath=/d].name": ("w", "v")}),
    (DEPLOYMENT, pods("{topologySpreadConstraints: [{topologyKey: z, whenUnsatisfiable: DoNotSchedule, maxSkew: 2}]}"),
     pods("{topologySpreadConstraints: [{topologyKey: z, whenUnsatisfiable: DoNotSchedule, maxSkew: 1}]}"),
     {"spec.template.spec.topologySpreadConstraints[topologyKey=z,whenUnsatisfiable=DoNotSchedule].maxSkew": (1, 2)}),
    ("v1 ServiceAccount", "{imagePullSecrets: [{name: a}]}", "{imagePullSecrets: [{name: a}, {name: b}]}",
     {"imagePullSecrets": ([{"name": "a"}, {"name": "b"}], [{"name": "a"}])}),
    (CONFIG_MAP, "{metadata: {finalizers: [a/b]}}", "{metadata: {finalizers: [c/d, a/b]}}", SAME),
    (CONFIG_MAP, "{metadata: {finalizers: [a/b]}}", "{metadata: {finalizers: [c/d]}}", {"metadata.finalizers[=a/b]": (None, "a/b")}),
    # lists merged by a key whose order means something: a step comes after another, a variable refers to another
    (DEPLOYMENT, pods("{initContainers: [{name: a}, {name: b}]}"), pods("{initContainers: [{name: b}, {name: mesh}, {name: a}]}"),
     {"spec.template.spec.initContainers": (["name=b", "name=a"], ["name=a", "name=b"])}),
    (DEPLOYMENT, pods("{initContainers: [{name: a}, {name: b}]}"), pods("{initContainers: [{name: mesh}, {name: a}, {name: b}]}"), SAME),
    (DEPLOYMENT, pods("{containers: [{name: w, env: [{name: A, value: x}, {name: B, value: $(A)}]}]}"),
     pods("{containers: [{name: w, env: [{name: B, value: $(A)}, {name: A, value: x}]}]}"),
     {"spec.template.spec.containers[name=w].env": (["name=B", "name=A"], ["name=A", "name=B"])}),
    (DEPLOYMENT, pods("{volumes: [{name: a}, {name: b}]}"), pods("{volumes: [{name: b}, {name: a}]}"), SAME),
    # lists and maps that one owner has as a whole
    (DEPLOYMENT, pods("{containers: [{name: a, args: [x, y]}]}"), pods("{containers: [{name: a, args: [x, z]}]}"),
     {"spec.template.spec.containers[name=a].args[1]": ("z", "y")}),
    (DEPLOYMENT, pods("{containers: [{name: a, args: [x]}]}"), pods("{containers: [{name: a, args: [x, z]}]}"),
     {"spec.template.spec.containers[name=a].args": (["x", "z"], ["x"])}),
    (DEPLOYMENT, pods("{tolerations: [{key: a}]}"), pods("{tolerations: [{key: a, operator: Equal}]}"), SAME),
    (SERVICE, "{spec: {selector: {app: web}}}", "{spec: {selector: {app: web, tier: x}}}", {"spec.selector.tier": ("x", None)}),
    (DEPLOYMENT, pods("{nodeSelector: {a: b}}"), pods("{nodeSelector: {a: b, c: d}}"), {"spec.template.spec.nodeSelector.c": ("d", None)}),
    (CUSTOM, "{spec: {selector: {app: web}}}", "{spec: {selector: {app: web, tier: x}}}", SAME),
    (CUSTOM, "{spec: {containers: [{name: a}]}}", "{spec: {containers: [{name: b}]}}", {"spec.containers[0].name": ("b", "a")}),
    ("gateway.networking.k8s.io/v1 Gateway", "{spec: {containers: [{name: a}]}}", "{spec: {containers: [{name: b}]}}",
     {"spec.containers[0].name": ("b", "a")}),
    ("networking.k8s.io/v1 NetworkPolicy", "{spec: {egress: [{ports: [{port: 53}]}]}}", "{spec: {egress: [{ports: [{port: 53, protocol: TCP}]}]}}", SAME),
    ("networking.k8s.io/v1 NetworkPolicy", "{spec: {egress: [{ports: [{port: 53}]}]}}", "{spec: {egress: [{ports: [{port: 54}]}]}}",
     {"spec.egress[0].ports[0].port": (54, 53)}),
    # spellings
    (DEPLOYMENT, pods("{containers: [{name: a, resources: {limits: {cpu: 1000m, memory: 1024Mi}, requests: {cpu: 0.5}}}]}"),
     pods("{containers: [{name: a, resources: {limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 500m}}}]}"), SAME),
    (DEPLOYMENT, pods("{containers: [{name: a, resources: {limits: {cpu: 1000m}}}]}"), pods("{containers: [{name: a, resources: {limits: {cpu: 2}}}]}"),
     {"spec.template.spec.containers[name=a].resources.limits.cpu": (2, "1000m")}),
    (CLAIM, "{spec: {resources: {requests: {storage: 1024Mi}}}}", "{spec: {resources: {requests: {storage: 1Gi}}}}", SAME),
    ("autoscaling/v2 HorizontalPodAutoscaler", "{spec: {metrics: [{target: {averageValue: 1000m}}]}}", "{spec: {metrics: [{target: {averageValue: '1'}}]}}", SAME),
    ("autoscaling/v2 HorizontalPodAutoscaler", "{spec: {metrics: [{object: {target: {value: 2k}}}]}}", "{spec: {metrics: [{object: {target: {value: '2000'}}}]}}", SAME),
    (CONFIG_MAP, "{data: {limits: 1000m, cpu: '1.0'}}", "{data: {limits: '1', cpu: '1'}}", {"data.limits": ("1", "1000m"), "data.cpu": ("1", "1.0")}),
    (CUSTOM, "{spec: {resources: {limits: {cpu: 1000m}}}}", "{spec: {resources: {limits: {cpu: 1}}}}", SAME),
    (CUSTOM, "{spec: {max: 1000m}}", "{spec: {max: '1'}}", {"spec.max": ("1", "1000m")}),
    (SERVICE, "{spec: {ports: [{port: 80, targetPort: '8000'}]}}", "{spec: {ports: [{port: 80, targetPort: 8000}]}}", SAME),
    (SERVICE, "{spec: {ports: [{port: 80, targetPort: http}]}}", "{spec: {ports: [{port: 80, targetPort: 8000}]}}",
     {"spec.ports[port=80,protocol=TCP].targetPort": (8000, "http")}),
    (DEPLOYMENT, "{spec: {strategy: {rollingUpdate: {maxSurge: '1'}}}}", "{spec: {strategy: {rollingUpdate: {maxSurge: 1}}}}", SAME),
    (CONFIG_MAP, "{data: {port: '1'}}", "{data: {port: 1}}", {"data.port": (1, "1")}),
    (CUSTOM, "{spec: {interval: 1h, timeout: 90s}}", "{spec: {interval: 60m0s, timeout: 1m30s}}", SAME),
    (CUSTOM, "{spec: {interval: 1h}}", "{spec: {interval: 2h}}", {"spec.interval": ("2h", "1h")}),
    (CONFIG_MAP, "{data: {interval: 1h}}", "{data: {interval: 60m}}", {"data.interval": ("60m", "1h")}),
    (CUSTOM, "{spec: {weight: 1}}", "{spec: {weight: 1.0}}", SAME),
    (CUSTOM, "{spec: {weight: 1}}", "{spec: {weight: true}}", {"spec.weight": (True, 1)}),
    (SERVICE, "{spec: {clusterIP: ''}}", "{spec: {clusterIP: 10.0.0.1}}", SAME),
    (SERVICE, "{spec: {clusterIP: None}}", "{spec: {clusterIP: 10.0.0.1}}", {"spec.clusterIP": ("10.0.0.1", "None")}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "git", "cluster", "expected"), TABLE)
def test_diff(kind: str, git: str, cluster: str, expected: dict[str, Any]) -> None:
    changes = diff(build(kind, git), build(kind, cluster), secret=False)
    assert {change.path: (change.before, change.after) for change in changes} == expected
    for change in changes:  # Python calls 1 and True equal, JSON does not
        assert type(change.before) is type(expected[change.path][0])


def test_a_new_object_is_named_by_its_top_fields() -> None:
    changes = diff(build(DEPLOYMENT, "{metadata: {name: a, labels: {b: c}}, spec: {replicas: 1}}"), None, secret=False)
    assert changes == (
        FieldChange(path="metadata", after={"labels": {"b": "c"}}),
        FieldChange(path="spec", after={"replicas": 1}),
    )


# ---------------------------------------------------------------- Secrets


def test_string_data_is_data() -> None:
    live = build(SECRET, f"{{data: {{password: {base64.b64encode(b'hunter2').decode()}}}}}")
    assert diff(build(SECRET, "{stringData: {password: hunter2}}"), live, secret=True) == ()
    assert diff(build(SECRET, "{data: {password: aHVudGVy\n    Mg==\n}}"), live, secret=True) == ()


def test_values_of_a_secret_are_masked() -> None:
    git = build(SECRET, "{metadata: {labels: {a: b}}, type: Opaque, stringData: {password: hunter2, new: s3cr3t}}")
    live = build(SECRET, "{metadata: {labels: {a: c}}, type: Opaque, data: {password: b2xk}}")
    assert diff(git, live, secret=True) == (
        FieldChange(path="metadata.labels.a", before="c", after="b"),
        FieldChange(path="data.password", before="*** (before)", after="*** (after)"),
        FieldChange(path="data.new", before=None, after="*** (after)"),
    )
    new = {change.path: change.after for change in diff(git, None, secret=True)}
    assert new == {
        "metadata": {"labels": {"a": "b"}},
        "type": "Opaque",
        "data": {"password": "*** (after)", "new": "*** (after)"},
    }


def test_the_copy_that_kubectl_keeps_is_masked_too() -> None:
    key = "kubectl.kubernetes.io/last-applied-configuration"
    git = build(SECRET, f"{{metadata: {{annotations: {{{key}: hunter2}}}}}}")
    for live in (
        None,
        build(SECRET, "{metadata: {}}"),
        build(SECRET, f"{{metadata: {{annotations: {{{key}: other}}}}}}"),
    ):
        changes = diff(git, live, secret=True)
        assert changes
        assert "hunter2" not in repr(changes)
        assert "other" not in repr(changes)


@pytest.mark.parametrize(
    "broken", ["{stringData: [a]}", "{data: 3, stringData: {a: b}}", "{data: {a: '%%%'}}", "{data: {a: 5}}"]
)
def test_a_malformed_secret_is_compared_as_it_is(broken: str) -> None:
    assert diff(build(SECRET, broken), build(SECRET, broken), secret=True) == ()
    assert diff(build(SECRET, broken), build(SECRET, "{}"), secret=True)


def test_null_in_string_data_is_nothing_and_a_custom_secret_is_no_secret() -> None:
    assert diff(build(SECRET, "{stringData: {a: null}}"), build(SECRET, "{}"), secret=True) == ()
    custom = "example.org/v1 Secret"
    changes = diff(build(custom, "{stringData: {a: b}}"), build(custom, "{stringData: {a: c}}"), secret=False)
    assert [change.path for change in changes] == ["stringData.a"]


def test_who_came_before_our_own_latest_write_is_blamed_all_the_same() -> None:
    fields: Json = {"f:data": {"f:a": {}}}
    entries: list[Json] = [
        {"manager": "mallory", "operation": "Update", "time": "2026-01-01T00:00:00Z", "fieldsV1": fields},
        {"manager": "gitsync", "operation": "Apply", "time": "2026-01-02T00:00:00Z", "fieldsV1": fields},
    ]
    live: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "managedFields": entries}}
    assert [each.manager for each in blame(live, ["data.a"])] == ["mallory"]


def test_drift_of_a_secret_is_masked() -> None:
    sent = build(SECRET, "{stringData: {password: hunter2}}")
    reply, live = build(SECRET, "{data: {password: aHVudGVyMg==}}"), build(SECRET, "{data: {password: b2xk}}")
    assert drifted(sent, reply, live) == (
        FieldChange(path="data.password", before="*** (before)", after="*** (after)"),
    )


# ---------------------------------------------------------------- drift


REPLY = build(
    DEPLOYMENT,
    "{spec: {replicas: 3, revisionHistoryLimit: 10, template: {spec: {containers: [{name: web, image: a, imagePullPolicy: Always, "
    "resources: {limits: {cpu: '1'}}}]}}}}",
)
SENT = build(
    DEPLOYMENT,
    "{spec: {replicas: 3, template: {spec: {containers: [{name: web, image: a, resources: {limits: {cpu: 1000m}}}]}}}}",
)
WEB = "spec.template.spec.containers[name=web]"
DRIFT: list[tuple[str, dict[str, Any]]] = [
    ("{spec: {replicas: 3, template: {spec: {containers: [{name: web, image: a, resources: {limits: {cpu: '1'}}}]}}}}", SAME),
    ("{spec: {replicas: 3, revisionHistoryLimit: 2, template: {spec: {containers: [{name: mesh}, {name: web, image: a, resources: {limits: "
     "{cpu: '1', memory: 1Gi}}}]}}}, status: {replicas: 3}}", SAME),
    ("{spec: {replicas: 5, template: {spec: {containers: [{name: web, image: a, resources: {limits: {cpu: '1'}}}]}}}}", {"spec.replicas": (3, 5)}),
    ("{spec: {replicas: 3, template: {spec: {containers: [{name: web, image: b, resources: {limits: {cpu: '1'}}}]}}}}", {f"{WEB}.image": ("a", "b")}),
    ("{spec: {replicas: 3, template: {spec: {containers: [{name: web, image: a, resources: {}}]}}}}", {f"{WEB}.resources.limits": ({"cpu": "1"}, None)}),
    ("{spec: {replicas: 3, template: {spec: {containers: [{name: web, image: a, resources: {limits: {cpu: 1000m}}}]}}}}",
     {f"{WEB}.resources.limits.cpu": ("1", "1000m")}),  # the server never answers so: somebody changed the schema
    ("{spec: {replicas: 3, template: {spec: {containers: [{name: mesh}]}}}}",
     {WEB: ({"name": "web", "image": "a", "resources": {"limits": {"cpu": "1"}}}, None)}),
]  # fmt: skip


@pytest.mark.parametrize(("live", "expected"), DRIFT)
def test_drift(live: str, expected: dict[str, Any]) -> None:
    now = build(DEPLOYMENT, live)
    changes = drifted(SENT, REPLY, now)
    assert {change.path: (change.before, change.after) for change in changes} == expected
    assert (owned_digest(SENT, REPLY) == owned_digest(SENT, now)) == (not expected)


def test_a_default_that_is_changed_is_drift_when_we_sent_the_zero() -> None:
    sent = build(DEPLOYMENT, "{spec: {minReadySeconds: 0}}")
    changes = drifted(sent, build(DEPLOYMENT, "{spec: {}}"), build(DEPLOYMENT, "{spec: {minReadySeconds: 30}}"))
    assert changes == (FieldChange(path="spec.minReadySeconds", before=None, after=30),)


def test_the_digest_is_64_hex_digits_and_blind_to_order() -> None:
    one = owned_digest(SENT, build(DEPLOYMENT, "{spec: {replicas: 3, template: {}}}"))
    assert one == owned_digest(SENT, build(DEPLOYMENT, "{spec: {template: {}, replicas: 3}}"))
    assert len(one) == 64
    assert int(one, 16)


# ---------------------------------------------------------------- properties

LEAF: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=4)
NAMES = st.sampled_from(["name", "replicas", "containers", "env", "ports", "limits", "selector", "data", "x", "a.b/c"])
VALUE: st.SearchStrategy[Any] = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


def shaped(kind: str, rest: Json) -> Json:
    return build(kind, "{}") | rest


OBJECT: st.SearchStrategy[Json] = st.builds(
    shaped,
    st.sampled_from([DEPLOYMENT, SERVICE, SECRET, CONFIG_MAP, CUSTOM]),
    st.dictionaries(st.sampled_from(["metadata", "spec", "data", "stringData"]), st.dictionaries(NAMES, VALUE, max_size=4)),
)  # fmt: skip


@given(OBJECT)
def test_nothing_differs_from_itself(obj: Json) -> None:
    assert diff(obj, obj, secret=False) == ()
    assert drifted(obj, obj, obj) == ()


def paths_of(value: Any, path: str = "") -> set[str]:
    """Every field that is sent, without the segments of lists."""
    if isinstance(value, dict):
        return {path}.union(*(paths_of(child, f"{path}.{key}") for key, child in cast(Json, value).items()))
    if isinstance(value, list):
        return {path}.union(*(paths_of(child, path) for child in cast("list[Any]", value)))
    return {path}


@given(OBJECT, OBJECT)
def test_only_paths_that_we_send_are_named(git: Json, cluster: Json) -> None:
    cluster = cluster | {"apiVersion": git["apiVersion"], "kind": git["kind"]}
    sent = paths_of(git) | {path.replace(".stringData", ".data") for path in paths_of(git)}
    for change in diff(git, cluster, secret=False):
        top = "." + change.path.split("[")[0]
        # A selector is owned as a whole: there a foreign key is a difference too.
        assert any(path == top or path.startswith((top + ".", top + "[")) for path in sent) or "selector" in top, change


@given(OBJECT, OBJECT, OBJECT)
def test_the_digest_changes_exactly_when_something_drifted(git: Json, reply: Json, live: Json) -> None:
    same = owned_digest(git, reply) == owned_digest(git, live)
    assert same == (drifted(git, reply, live) == ())


@given(OBJECT)
def test_what_git_does_not_say_never_matters(git: Json) -> None:
    spec: Any = git.get("spec") or {}
    more = git | {"spec": {**spec, "foreign": 1}, "status": {"a": 1}}
    assert diff(git, more, secret=False) == ()
    assert owned_digest(git, git) == owned_digest(git, more) or "spec" not in git


# ---------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1000m", "1", True), ("1Gi", "1024Mi", True), (1, "1", True), ("0.5", "500m", True), ("1e3", "1k", True), ("1E", "1e18", True),
     ("1000000u", "1", True), ("1Gi", "1G", False), ("1", "2", False), ("web", "web", False), (True, 1, False), (None, None, False),
     ("1e999999999", "1", False), (".5", "500m", True), ("-1", "1", False)],
)  # fmt: skip
def test_quantities(one: Any, other: Any, same: bool) -> None:
    assert same_quantity(one, other) is same


def test_a_quantity_is_exact() -> None:
    assert quantity("100n") == quantity("0.0000001")
    assert quantity("8Ei") == 2**63


# ---------------------------------------------------------------- ownership

OWNED = build(
    DEPLOYMENT,
    """
metadata:
  labels: {app: web, old: x, theirs: y, foreign: z}
  managedFields:
  - manager: gitsync
    operation: Apply
    time: "2024-01-01T00:00:00Z"
    fieldsV1:
      f:metadata: {f:labels: {.: {}, f:app: {}, f:old: {}, f:theirs: {}}}
      f:spec:
        f:selector: {.: {}}
        f:template:
          f:spec:
            f:containers:
              'k:{"name":"web"}':
                .: {}
                f:name: {}
                f:image: {}
                f:args: {}
                f:env: {'k:{"name":"OLD"}': {.: {}, f:name: {}, f:value: {}}}
                f:ports: {'k:{"containerPort":80,"protocol":"TCP"}': {.: {}, f:containerPort: {}}}
              'k:{"name":"old"}': {.: {}, f:name: {}, f:image: {}}
  - manager: kubectl-edit
    operation: Update
    time: "2024-01-02T00:00:00Z"
    fieldsV1:
      f:metadata: {f:labels: {f:theirs: {}}}
      f:spec: {f:template: {f:spec: {f:containers: {'k:{"name":"web"}': {f:image: {}}}}}}
  - manager: kube-controller-manager
    operation: Update
    subresource: scale
    time: "2024-01-03T00:00:00Z"
    fieldsV1: {f:spec: {f:replicas: {}}}
  - manager: earlier
    operation: Update
    time: "2023-01-01T00:00:00Z"
    fieldsV1: {f:spec: {f:replicas: {}}}
spec:
  replicas: 5
  selector: {matchLabels: {app: web}}
  template:
    spec:
      containers:
      - {name: web, image: b, args: [x, y], env: [{name: OLD, value: "1"}], ports: [{containerPort: 80, protocol: TCP}]}
      - {name: old, image: c}
""",
)


def test_what_only_we_applied_and_no_longer_say_is_removed() -> None:
    git = build(
        DEPLOYMENT,
        "{metadata: {labels: {app: web}}, spec: {selector: {matchLabels: {app: web}}, template: {spec: {containers: "
        "[{name: web, image: b, ports: [{containerPort: 80}]}]}}}}",
    )
    changes = {change.path: (change.before, change.after) for change in removed(git, OWNED, secret=False)}
    assert changes == {
        "metadata.labels.old": ("x", None),
        f"{WEB}.args": (["x", "y"], None),
        f"{WEB}.env[name=OLD]": ({"name": "OLD", "value": "1"}, None),
        "spec.template.spec.containers[name=old]": ({"name": "old", "image": "c"}, None),
    }


def test_a_map_that_we_made_stays_for_those_who_also_use_it() -> None:
    git = build(
        DEPLOYMENT, "{spec: {selector: {}, template: {spec: {containers: [{name: web, image: b, args: [x, y]}]}}}}"
    )
    paths = [change.path for change in removed(git, OWNED, secret=False)]
    assert [path for path in paths if path.startswith("metadata")] == ["metadata.labels.app", "metadata.labels.old"]


ATOMIC: list[tuple[str, str, str, str, str, dict[str, Any]]] = [
    # kind, what we own, what we sent before, what git says now, what lives, what goes
    ("rbac.authorization.k8s.io/v1 Role", "{f:rules: {}}",
     "{rules: [{resources: [secrets], verbs: [get], resourceNames: [a]}]}",
     "{rules: [{resources: [secrets], verbs: [get]}]}",
     "{rules: [{resources: [secrets], verbs: [get], resourceNames: [a]}]}",
     {"rules[0].resourceNames": ["a"]}),
    ("networking.k8s.io/v1 NetworkPolicy", "{f:spec: {f:podSelector: {}}}",
     "{spec: {podSelector: {matchLabels: {app: web, tier: x}}}}",
     "{spec: {podSelector: {matchLabels: {app: web}}}}",
     "{spec: {podSelector: {matchLabels: {app: web, tier: x}}}}",
     {"spec.podSelector.matchLabels.tier": "x"}),
    ("networking.k8s.io/v1 NetworkPolicy", "{f:spec: {f:ingress: {}}}",
     "{spec: {ingress: [{ports: [{port: 80, endPort: 90}]}]}}",
     "{spec: {ingress: [{ports: [{port: 80}]}]}}",
     "{spec: {ingress: [{ports: [{port: 80, endPort: 90, protocol: TCP}]}]}}",
     {"spec.ingress[0].ports[0].endPort": 90}),
    (DEPLOYMENT, "{f:spec: {f:template: {f:spec: {f:tolerations: {}}}}}",
     pods("{tolerations: [{key: a, operator: Exists, effect: NoSchedule}]}"),
     pods("{tolerations: [{key: a, operator: Exists}]}"),
     pods("{tolerations: [{key: a, operator: Exists, effect: NoSchedule}]}"),
     {"spec.template.spec.tolerations[0].effect": "NoSchedule"}),
    (SERVICE, "{f:spec: {f:selector: {}}}",  # told by ``diff`` already
     "{spec: {selector: {app: web, tier: x}}}", "{spec: {selector: {app: web}}}", "{spec: {selector: {app: web, tier: x}}}", {}),
    (CUSTOM, "{f:spec: {f:parts: {}}}",
     "{spec: {parts: [{a: 1, b: 2}]}}", "{spec: {parts: [{a: 1}]}}", "{spec: {parts: [{a: 1, b: 2, c: 3}]}}",
     {"spec.parts[0].b": 2}),
    (CONFIG_MAP, "{f:data: {f:a: {}}}",  # somebody else's by now
     "{data: {a: x, b: y}}", "{data: {a: x}}", "{data: {a: x, b: z}}", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "owned", "before", "git", "live", "expected"), ATOMIC)
def test_what_git_takes_out_of_a_list_or_map_that_we_own_as_a_whole_is_removed(
    kind: str, owned: str, before: str, git: str, live: str, expected: dict[str, Any]
) -> None:
    found = build(kind, live)
    entry = {"manager": "gitsync", "operation": "Apply", "fieldsV1": yaml.safe_load(owned)}
    found["metadata"] = {"managedFields": [entry]}
    changes = removed(build(kind, git), found, secret=False, before=[build(kind, before)])
    assert {change.path: change.before for change in changes} == expected
    assert all(change.after is None for change in changes)
    assert removed(build(kind, before), found, secret=False, before=[build(kind, before)]) == ()


@pytest.mark.parametrize(
    ("kind", "sent", "reply", "live", "expected"),
    [
        ("rbac.authorization.k8s.io/v1 Role", "{rules: [{verbs: [get]}]}", "{rules: [{verbs: [get]}]}",
         "{rules: [{verbs: [get], resourceNames: [a]}]}", {"rules[0].resourceNames": (None, ["a"])}),
        ("networking.k8s.io/v1 NetworkPolicy", "{spec: {podSelector: {matchLabels: {a: b}}}}",
         "{spec: {podSelector: {matchLabels: {a: b}}}}", "{spec: {podSelector: {matchLabels: {a: b, c: d}}}}",
         {"spec.podSelector.matchLabels.c": (None, "d")}),
        ("networking.k8s.io/v1 NetworkPolicy", "{spec: {egress: [{ports: [{port: 53}]}]}}",
         "{spec: {egress: [{ports: [{port: 53, protocol: TCP}]}]}}", "{spec: {egress: [{ports: [{port: 53, protocol: TCP}]}]}}", SAME),
        (CUSTOM, "{spec: {parts: [{a: 1}]}}", "{spec: {parts: [{a: 1}]}}", "{spec: {parts: [{a: 1, b: 2}]}}", SAME),
    ],
)  # fmt: skip
def test_what_is_put_into_a_list_or_map_that_we_own_as_a_whole_is_drift(
    kind: str, sent: str, reply: str, live: str, expected: dict[str, Any]
) -> None:
    ours, answer, now = build(kind, sent), build(kind, reply), build(kind, live)
    assert {change.path: (change.before, change.after) for change in drifted(ours, answer, now)} == expected
    assert (owned_digest(ours, answer) == owned_digest(ours, now)) == (not expected)


def test_nothing_is_removed_without_an_entry_of_ours() -> None:
    assert removed(build(DEPLOYMENT, "{}"), build(DEPLOYMENT, "{spec: {replicas: 1}}"), secret=False) == ()
    assert removed(build(DEPLOYMENT, "{}"), OWNED, secret=False, manager="somebody") == ()


def test_items_of_a_custom_list_are_not_taken_for_removed() -> None:
    live = build(
        CUSTOM,
        "{metadata: {managedFields: [{manager: gitsync, operation: Apply, fieldsV1: {f:spec: {f:parts: "
        '{\'k:{"name":"a"}\': {.: {}, f:size: {}}}}}}]}, spec: {parts: [{name: a, size: 1}]}}',
    )
    assert removed(build(CUSTOM, "{spec: {parts: [{name: a, size: 1}]}}"), live, secret=False) == ()
    assert [change.path for change in removed(build(CUSTOM, "{spec: {}}"), live, secret=False)] == ["spec.parts"]


BLAME = [
    (f"{WEB}.image", ("kubectl-edit", "Update", "2024-01-02T00:00:00Z")),
    ("spec.replicas", ("kube-controller-manager", "Update/scale", "2024-01-03T00:00:00Z")),
    ("metadata.labels.theirs", ("kubectl-edit", "Update", "2024-01-02T00:00:00Z")),
    (f"{WEB}.args[0]", ("gitsync", "Apply", "2024-01-01T00:00:00Z")),
    ("spec.selector.matchLabels", ("gitsync", "Apply", "2024-01-01T00:00:00Z")),
    (f"{WEB}.ports[containerPort=80,protocol=TCP]", ("gitsync", "Apply", "2024-01-01T00:00:00Z")),
    ("spec.template.spec.containers[name=web]", ("kubectl-edit", "Update", "2024-01-02T00:00:00Z")),
    ("metadata.labels.gone", ("", "", "")),
    ("spec.rep", ("", "", "")),
]


@pytest.mark.parametrize(("path", "expected"), BLAME)
def test_blame(path: str, expected: tuple[str, str, str]) -> None:
    assert blame(OWNED, [path]) == (Culprit(path, *expected),)


def test_blame_keeps_the_order_of_the_paths() -> None:
    assert [culprit.path for culprit in blame(OWNED, ["spec.replicas", "a", "metadata"])] == [
        "spec.replicas",
        "a",
        "metadata",
    ]
    assert blame(build(POD, "{}"), ["spec"]) == (Culprit("spec", "", "", ""),)


@pytest.mark.parametrize("fields", ["{f:a: 3}", "{'k:{': {}}", "{'k:[1]': {}}", "{'i:0': {}}", "[]", "{'': {}}"])
def test_strange_ownership_is_survived(fields: str) -> None:
    live = build(
        POD,
        f"{{metadata: {{managedFields: [{{manager: x, operation: Update, fieldsV1: {{f:spec: {{f:containers: {fields}}}}}}}]}}}}",
    )
    assert blame(live, ["spec.containers"])[0].path == "spec.containers"
