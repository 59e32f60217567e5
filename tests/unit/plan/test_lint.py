"""The rules of zero downtime: a good application, one thing made worse, and the finding that names it."""
# ruff: noqa: E501  (a row of the table is one line)

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from gitsync.model import Desired, Json, ObjectRef
from gitsync.plan.lint import lint, references, share

from .objects import as_live, cluster, desired, manifest, objects

GOOD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  minReadySeconds: 2
  strategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec:
      terminationGracePeriodSeconds: 60
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway}]
      containers:
      - name: web
        image: kubetm/hello@sha256:aa
        imagePullPolicy: IfNotPresent
        ports: [{name: http, containerPort: 8000}]
        readinessProbe: {httpGet: {path: /ready, port: http}}
        livenessProbe: {httpGet: {path: /live, port: http}}
        lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
        resources: {requests: {cpu: 10m}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8000}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: shop}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
"""
WEB = ("apps", "Deployment", "shop", "web")
SERVICE = ("", "Service", "shop", "web")
BUDGET = ("policy", "PodDisruptionBudget", "shop", "web")
POD = "spec.template.spec"
ONE = f"{POD}.containers[name=web]"


def merged(base: Any, patch: Any) -> Any:
    """A merge patch; ``containers: [...]`` with one item is merged into the first container."""
    if isinstance(base, dict) and isinstance(patch, dict):
        result = dict(cast(Json, base))
        for key, value in cast(Json, patch).items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = merged(result.get(key), value)
        return result
    if isinstance(base, list) and isinstance(patch, list) and len(cast("list[Any]", patch)) == 1:
        items = cast("list[Any]", base)
        return [merged(items[0], patch[0]), *items[1:]]
    return cast(Any, patch)


def app(patch: str = "{}", service: str = "{}", more: str = "") -> Desired:
    deployment, svc, budget = objects(GOOD)
    parts = [merged(deployment, yaml.safe_load(patch)), merged(svc, yaml.safe_load(service)), budget, *objects(more)]
    return Desired(revision=desired(GOOD).revision, manifests=tuple(manifest(each) for each in parts))


def container(patch: str) -> str:
    return f"{{spec: {{template: {{spec: {{containers: [{patch}]}}}}}}}}"


def pods(patch: str) -> str:
    return f"{{spec: {{template: {{spec: {patch}}}}}}}"


def verdicts(given: Desired, previous: dict[Any, Json] | None = None, **more: Any) -> list[tuple[str, str, str]]:
    return [(each.rule, each.level, each.origin.field) for each in lint(given, previous, **more)]


def test_a_good_application_has_no_findings() -> None:
    assert verdicts(app()) == []
    assert verdicts(app(), cluster(GOOD)) == []


CLAIM = (
    "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data, namespace: shop}, spec: {accessModes: [%s]}}"
)
HPA = """{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: web, namespace: shop},
 spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, minReplicas: %s, maxReplicas: %s}}"""
E, W = "error", "warning"

# name, patch of the Deployment, further objects, findings
TABLE: list[tuple[str, str, str, list[tuple[str, str, str]]]] = [
    # strategy
    ("recreate", "{spec: {strategy: {type: Recreate, rollingUpdate: null}}}", "", [("strategy", E, "spec.strategy.type")]),
    ("rolling is the default", "{spec: {strategy: {type: null}}}", "", []),
    # maxUnavailable, maxSurge
    ("default of two", "{spec: {strategy: null}}", "", []),
    ("default of three", "{spec: {replicas: 3, strategy: null}}", "", []),
    ("default of four", "{spec: {replicas: 4, strategy: null}}", "", [("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable")]),
    ("percent of three", "{spec: {replicas: 3, strategy: {rollingUpdate: {maxUnavailable: 34%}}}}", "",
     [("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable")]),
    ("one", "{spec: {strategy: {rollingUpdate: {maxUnavailable: 1}}}}", "", [("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable")]),
    ("no surge", "{spec: {strategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 0}}}}", "",
     [("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable"), ("max-surge", E, "spec.strategy.rollingUpdate.maxSurge")]),
    ("two percentages that come to nothing", "{spec: {strategy: {rollingUpdate: {maxUnavailable: 10%, maxSurge: 0%}}}}", "",
     [("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable"), ("max-surge", E, "spec.strategy.rollingUpdate.maxSurge")]),
    ("surge is rounded up", "{spec: {strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1%}}}}", "", []),
    ("scaled to nothing", "{spec: {replicas: 0, strategy: null}}", "", [("replicas", W, "spec.replicas")]),
    ("an autoscaler may make it four", "{spec: {replicas: null, strategy: null}}", HPA % (2, 4),
     [("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable")]),
    ("an autoscaler may make it three", "{spec: {replicas: null, strategy: null}}", HPA % (2, 3), []),
    ("a surge that is no percentage", "{spec: {strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: lots}}}}", "", []),
    ("what is no percentage is the server's business", "{spec: {strategy: {rollingUpdate: {maxUnavailable: lots}}}}", "", []),
    # readiness
    ("no readiness probe", container("{readinessProbe: null}"), "", [("readiness-probe", E, f"{ONE}.readinessProbe")]),
    ("the same probe twice", container("{livenessProbe: {httpGet: {path: /ready, port: http}}}"), "",
     [("readiness-is-liveness", E, f"{ONE}.livenessProbe")]),
    ("the same probe with more patience", container("{livenessProbe: {httpGet: {path: /ready, port: http}, failureThreshold: 10}}"), "", []),
    ("slow start of the liveness probe", container("{livenessProbe: {initialDelaySeconds: 60}}"), "", [("startup-probe", E, f"{ONE}.startupProbe")]),
    ("slow start of the readiness probe", container("{readinessProbe: {initialDelaySeconds: 30}}"), "", [("startup-probe", E, f"{ONE}.startupProbe")]),
    ("slow start with a startup probe", container("{livenessProbe: {initialDelaySeconds: 60}, startupProbe: {httpGet: {port: http}}}"), "", []),
    ("quick start", container("{livenessProbe: {initialDelaySeconds: 29}}"), "", []),
    # draining
    ("no preStop", container("{lifecycle: null}"), "", [("pre-stop", E, f"{ONE}.lifecycle.preStop")]),
    ("only postStart", container("{lifecycle: {preStop: null, postStart: {exec: {command: ['true']}}}}"), "", [("pre-stop", E, f"{ONE}.lifecycle.preStop")]),
    ("preStop of no time", container("{lifecycle: {preStop: {exec: {command: [sleep, '0']}}}}"), "", [("pre-stop", E, f"{ONE}.lifecycle.preStop")]),
    ("preStop sleep", container("{lifecycle: {preStop: {exec: null, sleep: {seconds: 5}}}}"), "", []),
    ("preStop shell", container("{lifecycle: {preStop: {exec: {command: [sh, -c, 'sleep 5 && kill 1']}}}}"), "", []),
    ("preStop of unknown length", container("{lifecycle: {preStop: {exec: null, httpGet: {path: /stop, port: 1}}}}"), "", []),
    ("grace period too short", pods("{terminationGracePeriodSeconds: 5}"), "", [("grace-period", E, f"{POD}.terminationGracePeriodSeconds")]),
    ("default grace period too short", "{spec: {template: {spec: {terminationGracePeriodSeconds: null, containers: [{lifecycle: {preStop: {exec: null, sleep: "
     "{seconds: 30}}}}]}}}}", "", [("grace-period", E, f"{POD}.terminationGracePeriodSeconds")]),
    ("grace period just longer", pods("{terminationGracePeriodSeconds: 6}"), "", []),
    # progressDeadlineSeconds
    ("deadline before a slow start", "{spec: {progressDeadlineSeconds: 60, template: {spec: {containers: [{startupProbe: {periodSeconds: 10, failureThreshold: 30}}]}}}}",
     "", [("progress-deadline", E, "spec.progressDeadlineSeconds")]),
    ("deadline is just the start", "{spec: {progressDeadlineSeconds: 32, template: {spec: {containers: [{startupProbe: {periodSeconds: 10}}]}}}}",
     "", [("progress-deadline", E, "spec.progressDeadlineSeconds")]),
    ("deadline after the start", "{spec: {progressDeadlineSeconds: 33, template: {spec: {containers: [{startupProbe: {periodSeconds: 10}}]}}}}", "", []),
    ("default deadline", container("{startupProbe: {periodSeconds: 10, failureThreshold: 60}}"), "", [("progress-deadline", E, "spec.progressDeadlineSeconds")]),
    ("deadline before minReadySeconds", "{spec: {progressDeadlineSeconds: 10, minReadySeconds: 10}}", "", [("progress-deadline", E, "spec.progressDeadlineSeconds")]),
    # what only one pod can have
    ("ReadWriteOnce", pods("{volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}"), CLAIM % "ReadWriteOnce",
     [("rwo-claim", E, f"{POD}.volumes[name=d].persistentVolumeClaim.claimName")]),
    ("ReadWriteOncePod", pods("{volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}"), CLAIM % "ReadWriteOncePod",
     [("rwo-claim", E, f"{POD}.volumes[name=d].persistentVolumeClaim.claimName")]),
    ("ReadWriteMany", pods("{volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}"), CLAIM % "ReadWriteOnce, ReadWriteMany", []),
    ("an unknown claim", pods("{volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}"), "",
     [("missing-reference", W, f"{POD}.volumes[name=d].persistentVolumeClaim")]),
    ("host port", container("{ports: [{hostPort: 80}]}"), "", [("host-port", E, f"{ONE}.ports[containerPort=8000].hostPort")]),
    ("host network", pods("{hostNetwork: true}"), "", [("host-port", E, f"{ONE}.ports[containerPort=8000].hostPort")]),
    ("strict anti-affinity", pods("{affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, "
     "labelSelector: {matchLabels: {app: web}}}]}}}"), "",
     [("strict-anti-affinity", E, f"{POD}.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]")]),
    ("strict anti-affinity by expression", pods("{affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, "
     "labelSelector: {matchExpressions: [{key: app, operator: In, values: [web, x]}, {key: b, operator: DoesNotExist}]}}]}}}"), "",
     [("strict-anti-affinity", E, f"{POD}.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]")]),
    ("strict anti-affinity to others", pods("{affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, "
     "labelSelector: {matchLabels: {app: db}}}]}}}"), "", []),
    ("strict anti-affinity by zone", pods("{affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, "
     "labelSelector: {matchLabels: {app: web}}}]}}}"), "", []),
    # images
    ("a tag", container("{image: 'kubetm/hello:1'}"), "", [("image-digest", E, f"{ONE}.image")]),
    ("no tag", container("{image: kubetm/hello}"), "", [("image-digest", E, f"{ONE}.image")]),
    ("a tag in an init container", pods("{initContainers: [{name: init, image: 'db:1'}]}"), "", [("image-digest", E, f"{POD}.initContainers[name=init].image")]),
    ("always pulled", container("{imagePullPolicy: Always}"), "", [("image-pull-policy", E, f"{ONE}.imagePullPolicy")]),
    ("pull policy by default", container("{imagePullPolicy: null}"), "", []),
    # selectors
    ("its own selector", "{spec: {selector: {matchLabels: {app: other}}}}", "", [("selector-mismatch", E, "spec.selector")]),
    ("its own selector by expression", "{spec: {selector: {matchLabels: null, matchExpressions: [{key: app, operator: Exists}, {key: tier, operator: NotIn, values: [back]}]}}}", "", []),
    ("its own wrong expression", "{spec: {selector: {matchLabels: null, matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}}", "", [("selector-mismatch", E, "spec.selector")]),
    ("its own strange expression", "{spec: {selector: {matchLabels: null, matchExpressions: [{key: app, operator: Like}]}}}", "", [("selector-mismatch", E, "spec.selector")]),
    # the bad day
    ("one replica", "{spec: {replicas: 1}}", "", [("replicas", W, "spec.replicas")]),
    ("one replica by default", "{spec: {replicas: null}}", "", [("replicas", W, "spec.replicas")]),
    ("an autoscaler may make it one", "{spec: {replicas: null}}", HPA % (1, 5), [("replicas", W, "spec.replicas")]),
    ("no minReadySeconds", "{spec: {minReadySeconds: null}}", "", [("min-ready-seconds", W, "spec.minReadySeconds")]),
    ("no requests", container("{resources: {requests: null, limits: {cpu: 1}}}"), "", [("requests", W, f"{ONE}.resources.requests")]),
    ("no spread", pods("{topologySpreadConstraints: null}"), "", [("topology-spread", W, f"{POD}.topologySpreadConstraints")]),
    ("spread by anti-affinity", pods("{topologySpreadConstraints: null, affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1}]}}}"), "", []),
    ("ConfigMap of the commit", container("{envFrom: [{configMapRef: {name: settings}}]}"), "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings, namespace: shop}}",
     [("config-in-place", W, f"{ONE}.envFrom[0].configMapRef")]),
    ("ConfigMap by hash", container("{envFrom: [{configMapRef: {name: settings-9k2m4h7t5b}}]}"),
     "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings-9k2m4h7t5b, namespace: shop}}", []),
    ("immutable Secret", pods("{volumes: [{name: s, secret: {secretName: keys}}]}"), "{apiVersion: v1, kind: Secret, metadata: {name: keys, namespace: shop}, immutable: true}", []),
    ("ConfigMap of nobody", container("{env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: a}}}]}"), "",
     [("missing-reference", W, f"{ONE}.env[name=A].valueFrom.configMapKeyRef")]),
    ("optional Secret of nobody", container("{env: [{name: A, valueFrom: {secretKeyRef: {name: keys, key: a, optional: true}}}]}"), "", []),
    ("projected Secret of nobody", pods("{volumes: [{name: p, projected: {sources: [{secret: {name: keys}}, {configMap: {name: kube-root-ca.crt}}]}}]}"), "",
     [("missing-reference", W, f"{POD}.volumes[name=p].projected.secret")]),
    ("ConfigMap in another namespace", container("{envFrom: [{configMapRef: {name: settings}}]}"), "{apiVersion: v1, kind: ConfigMap, metadata: {name: settings, namespace: other}}",
     [("missing-reference", W, f"{ONE}.envFrom[0].configMapRef")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "patch", "more", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_one_thing_made_worse(name: str, patch: str, more: str, expected: list[tuple[str, str, str]]) -> None:
    assert verdicts(app(patch, more=more)) == expected


def with_sidecar(sidecar: str, service: str = "{}") -> list[tuple[str, str, str]]:
    good = objects(GOOD)[0]["spec"]["template"]["spec"]["containers"][0]
    return verdicts(app(pods(f"{{containers: [{json.dumps(good)}, {sidecar}]}}"), service))


def test_only_containers_that_a_service_sends_to_need_a_probe() -> None:
    log = "{name: log, image: 'log@sha256:bb', resources: {requests: {cpu: 1m}}, ports: [{name: metrics, containerPort: 9}]}"
    bare = [
        ("readiness-probe", E, f"{POD}.containers[name=log].readinessProbe"),
        ("pre-stop", E, f"{POD}.containers[name=log].lifecycle.preStop"),
    ]
    assert with_sidecar(log) == []
    assert with_sidecar(log, "{spec: {ports: [{targetPort: http}]}}") == []
    assert with_sidecar(log, "{spec: {ports: [{targetPort: metrics}]}}") == bare
    assert with_sidecar(log, "{spec: {ports: [{port: 9, targetPort: null}]}}") == bare
    assert with_sidecar(log, "{spec: {ports: [{targetPort: 7000}]}}") == bare, "nobody declares the port: it may be any"


def test_every_rule_of_the_table_appears() -> None:
    assert {rule for *_, rows in TABLE for rule, _, _ in rows} == {
        "strategy", "max-unavailable", "max-surge", "readiness-probe", "readiness-is-liveness", "startup-probe", "pre-stop", "grace-period",
        "progress-deadline", "rwo-claim", "host-port", "strict-anti-affinity", "image-digest", "image-pull-policy", "selector-mismatch",
        "replicas", "min-ready-seconds", "requests", "topology-spread", "config-in-place", "missing-reference",
    }  # fmt: skip


# ---------------------------------------------------------------- Services


def test_a_worker_without_a_service_needs_no_probe_and_no_spare() -> None:
    worker = desired(
        GOOD.split("---")[0]
        .replace("replicas: 2", "replicas: 1")
        .replace("readinessProbe", "x")
        .replace("lifecycle", "y")
    )
    assert verdicts(worker) == []


SELECTS: list[tuple[str, list[tuple[str, str, str]]]] = [
    ("{spec: {selector: {app: nobody}}}", [("service-selects-nothing", E, "spec.selector")]),
    ("{spec: {selector: {app: web, tier: back}}}", [("service-selects-nothing", E, "spec.selector")]),
    ("{spec: {selector: {app: web, tier: front}}}", []),
    ("{metadata: {namespace: other}}", [("service-selects-nothing", E, "spec.selector")]),
    ("{spec: {selector: null}}", []),
    ("{spec: {selector: {}}}", []),
    ("{spec: {selector: {app: nobody}, type: ExternalName, externalName: example.org}}", []),
]


@pytest.mark.parametrize(("patch", "expected"), SELECTS)
def test_a_service_that_selects_nothing(patch: str, expected: list[tuple[str, str, str]]) -> None:
    found = verdicts(app(service=patch))
    assert [each for each in found if each[0] == "service-selects-nothing"] == expected


SET_PODS = """{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db, namespace: shop}, spec: {replicas: 3,
 selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db}]}}}}"""


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("{statefulset.kubernetes.io/pod-name: db-0}", []),  # a Service per pod, as databases and brokers have them
        ("{app: db, statefulset.kubernetes.io/pod-name: db-0}", []),
        ("{app: db, apps.kubernetes.io/pod-index: '0'}", []),
        ("{app: dba, apps.kubernetes.io/pod-index: '0'}", [E]),
        ("{app: db, role: primary}", [W]),  # the program in the pod says so of itself, as Patroni does
        ("{app: dba, role: primary}", [E]),
        ("{role: primary}", [E]),
    ],
)
def test_labels_that_pods_get_only_when_they_run(selector: str, expected: list[str]) -> None:
    service = (
        f"{{apiVersion: v1, kind: Service, metadata: {{name: o, namespace: shop}}, spec: {{selector: {selector}}}}}"
    )
    found = lint(desired("\n---\n".join([SET_PODS, service])))
    assert [each.level for each in found if each.rule == "service-selects-nothing"] == expected


def test_what_an_operator_may_make_is_only_a_warning() -> None:
    more = "{apiVersion: db.example.org/v1, kind: Database, metadata: {name: db, namespace: shop}}"
    assert ("service-selects-nothing", W, "spec.selector") in verdicts(
        app(service="{spec: {selector: {app: db}}}", more=more)
    )


@pytest.mark.parametrize(
    "kind",
    ["apps/v1 StatefulSet", "apps/v1 DaemonSet", "apps/v1 ReplicaSet", "v1 ReplicationController", "batch/v1 Job"],
)
def test_whatever_makes_pods_can_be_selected(kind: str) -> None:
    version, name = kind.split()
    more = f"{{apiVersion: {version}, kind: {name}, metadata: {{name: o, namespace: shop}}, spec: {{template: {{metadata: {{labels: {{app: o}}}}}}}}}}"
    assert "service-selects-nothing" not in {
        rule for rule, *_ in verdicts(app(service="{spec: {selector: {app: o}}}", more=more))
    }


def test_pods_of_a_cron_job_and_bare_pods_too() -> None:
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: o, namespace: shop, labels: {app: o}}}"
    cron = "{apiVersion: batch/v1, kind: CronJob, metadata: {name: o, namespace: shop}, spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: o}}}}}}}"
    for more in (pod, cron):
        assert "service-selects-nothing" not in {
            rule for rule, *_ in verdicts(app(service="{spec: {selector: {app: o}}}", more=more))
        }


def test_a_selector_that_leaves_the_running_pods() -> None:
    old = cluster(GOOD.replace("app: web, tier: front", "app: web"))
    given = app(service="{spec: {selector: {app: web, tier: front}}}")
    assert verdicts(given, old) == [("service-selector", E, "spec.selector")]
    assert verdicts(given, cluster(GOOD)) == []
    old.pop(SERVICE)
    assert verdicts(given, old) == [], "a new Service has nothing to lose"


def test_new_pods_that_leave_their_service() -> None:
    other = "{apiVersion: v1, kind: Pod, metadata: {name: o, namespace: shop, labels: {app: web}}, spec: {restartPolicy: Never}}"
    given = app("{spec: {selector: {matchLabels: {app: w2}}, template: {metadata: {labels: {app: w2}}}}}", more=other)
    assert ("service-selector", E, "spec.template.metadata.labels") in verdicts(given, cluster(GOOD))
    assert "service-selector" not in {rule for rule, *_ in verdicts(given)}


# ---------------------------------------------------------------- other workloads


def other(kind: str, patch: str = "{}") -> Desired:
    obj = merged(objects(GOOD)[0], yaml.safe_load(patch)) | {"kind": kind}
    obj["spec"].pop("strategy")
    return Desired(revision=desired(GOOD).revision, manifests=(manifest(obj), *app().manifests[1:]))


def test_stateful_sets() -> None:
    assert verdicts(other("StatefulSet")) == []
    assert ("strategy", E, "spec.replicas") in verdicts(other("StatefulSet", "{spec: {replicas: 1}}"))
    assert ("strategy", E, "spec.updateStrategy.type") in verdicts(
        other("StatefulSet", "{spec: {updateStrategy: {type: OnDelete}}}")
    )


def test_daemon_sets() -> None:
    both = [
        ("max-unavailable", E, "spec.updateStrategy.rollingUpdate.maxUnavailable"),
        ("max-surge", E, "spec.updateStrategy.rollingUpdate.maxSurge"),
    ]
    assert verdicts(other("DaemonSet")) == both
    assert (
        verdicts(other("DaemonSet", "{spec: {updateStrategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}}}"))
        == []
    )


def test_a_bare_pod_is_said_to_be_one() -> None:
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: hello}, spec: {containers: [{name: a, image: 'a@sha256:b'}]}}"
    assert verdicts(desired(pod)) == [("bare-pod", W, "kind")]
    assert "cannot roll without an interruption" in lint(desired(pod))[0].message
    assert verdicts(desired(pod.replace("containers:", "restartPolicy: Never, containers:"))) == []


def test_the_message_says_whose_number_it_is() -> None:
    (default,) = lint(app("{spec: {replicas: 4, strategy: null}}"))
    assert default.message == "the default maxUnavailable 25% takes 1 of 4 replicas away before the new pods are ready"
    (own,) = lint(app("{spec: {replicas: 4, strategy: {rollingUpdate: {maxUnavailable: 2}}}}"))
    assert own.message == "maxUnavailable 2 takes 2 of 4 replicas away before the new pods are ready"
    assert lint(other("DaemonSet"))[0].message.startswith("the default maxUnavailable 1 takes a node's only pod away")


def test_the_path_in_a_bare_pod() -> None:
    pod = "{apiVersion: v1, kind: Pod, metadata: {name: hello}, spec: {containers: [{name: a, image: a}]}}"
    assert ("image-digest", E, "spec.containers[name=a].image") in verdicts(desired(pod))


def test_what_does_not_roll_by_itself_is_left_alone() -> None:
    assert {
        rule
        for rule, *_ in verdicts(other("ReplicaSet", container("{readinessProbe: null, lifecycle: null, image: a}")))
    } == set()
    daemon = other("DaemonSet")
    assert verdicts(replace(daemon, manifests=daemon.manifests[:1])) == [], "no Service: nobody waits for its answer"


def test_jobs_have_no_rollout() -> None:
    job = "{apiVersion: batch/v1, kind: Job, metadata: {name: m}, spec: {template: {spec: {containers: [{name: a, image: a}]}}}}"
    assert verdicts(desired(job)) == []


def test_a_cron_job_is_looked_into() -> None:
    cron = """{apiVersion: batch/v1, kind: CronJob, metadata: {name: m, namespace: n}, spec: {jobTemplate: {spec: {template: {spec:
      {containers: [{name: a, image: a, envFrom: [{secretRef: {name: s}}]}]}}}}}}"""
    path = "spec.jobTemplate.spec.template.spec.containers[name=a].envFrom[0].secretRef"
    assert verdicts(desired(cron)) == [("missing-reference", W, path)]
    assert references(desired(cron).manifests[0]) == {("", "Secret", "n", "s")}


def test_autoscalers_of_the_cluster_count() -> None:
    given = app("{spec: {replicas: 2, strategy: null}}")
    assert verdicts(given, autoscalers=[yaml.safe_load(HPA % (2, 8))]) == [
        ("max-unavailable", E, "spec.strategy.rollingUpdate.maxUnavailable")
    ]
    keda = "{apiVersion: keda.sh/v1, kind: ScaledObject, metadata: {name: a, namespace: shop}, spec: {scaleTargetRef: {name: web}, minReplicaCount: 2, maxReplicaCount: 8}}"
    assert verdicts(given, autoscalers=[yaml.safe_load(keda)])[0][0] == "max-unavailable"


def test_the_cluster_holds_what_the_commit_refers_to() -> None:
    secret = as_live({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": "shop"}}, "")
    known = {ObjectRef.of(secret).key: secret}
    given = app(container("{envFrom: [{secretRef: {name: keys}}]}"))
    assert verdicts(given, known) == []
    assert [rule for rule, *_ in verdicts(given)] == ["missing-reference"]
    claim = yaml.safe_load(CLAIM % "ReadWriteOnce")
    mounted = app(pods("{volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]}"))
    assert [rule for rule, *_ in verdicts(mounted, {ObjectRef.of(claim).key: claim})] == ["rwo-claim"]


@pytest.mark.parametrize(("budget", "expected"), [
    ("{maxUnavailable: 1}", []), ("{maxUnavailable: 0}", ["disruption-budget"]), ("{maxUnavailable: 0%}", ["disruption-budget"]),
    ("{minAvailable: 1}", []), ("{minAvailable: 2}", ["disruption-budget"]), ("{minAvailable: 100%}", ["disruption-budget"]),
    ("{minAvailable: 50%}", []), ("{maxUnavailable: 1, selector: {matchLabels: {app: x}}}", ["disruption-budget"]),
])  # fmt: skip
def test_disruption_budgets(budget: str, expected: list[str]) -> None:
    spec = {"selector": {"matchLabels": {"app": "web"}}, **yaml.safe_load(budget)}
    parts = [
        *objects(GOOD)[:2],
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": spec,
        },
    ]
    given = Desired(revision=desired(GOOD).revision, manifests=tuple(manifest(each) for each in parts))
    assert [rule for rule, *_ in verdicts(given)] == expected


# ---------------------------------------------------------------- places and numbers


def test_the_line_is_that_of_the_item_though_the_path_names_it() -> None:
    deployment = merged(objects(GOOD)[0], yaml.safe_load(container("{image: 'hello:1'}")))
    lines = {
        "spec": 4,
        "spec.template.spec.containers": 10,
        "spec.template.spec.containers[0]": 11,
        "spec.template.spec.containers[0].image": 12,
    }
    subject = replace(manifest(deployment), lines=lines)
    found = lint(Desired(revision=desired(GOOD).revision, manifests=(subject,)))
    assert [str(each.origin) for each in found if each.rule == "image-digest"] == [
        "shop@1111111 app.yaml:12 spec.template.spec.containers[name=web].image"
    ]


@pytest.mark.parametrize(("value", "of", "up", "expected"), [
    ("25%", 3, False, 0), ("25%", 4, False, 1), ("25%", 1, True, 1), ("0%", 9, True, 0), ("100%", 3, False, 3), (2, 9, True, 2), (0, 9, True, 0),
    (None, 3, True, None), ("2", 3, True, None), (True, 3, True, None), ("25 %", 3, True, None), ("99999%", 3, True, None),
])  # fmt: skip
def test_share(value: Any, of: int, up: bool, expected: int | None) -> None:
    assert share(value, of, up=up) == expected


def test_the_sample_hello_can_be_rolled() -> None:
    folder = Path(__file__).parents[3] / "manifests" / "hello" / "manifests"
    text = "\n---\n".join(
        path.read_text() for path in sorted(folder.glob("*.yaml")) if path.name != "kustomization.yaml"
    )
    pinned = text.replace("image: kubetm/hello", "image: kubetm/hello@sha256:00")
    assert verdicts(desired(pinned)) == []
