"""Cases of server-side apply: sequences of writes by several managers, the same for every run, and how to play one.

``python -m tests.contract.applycases KUBECONFIG`` plays them on a real API server and records its answers in
``apply_answers.json``, which ``test_apply_table`` compares with.
"""

import asyncio
import copy
import random
import sys
from pathlib import Path
from typing import Any

import orjson

from tests.contract.client import APPLY, MERGE, Access, Answer, Api

Json = dict[str, Any]

ANSWERS = Path(__file__).with_name("apply_answers.json")
RANDOM_CASES = 80

WIDGET_VERSION, WIDGETS = "contract.gitsync.dev/v1", "widgets"
WIDGET_DEFINITION: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.contract.gitsync.dev"},
    "spec": {
        "group": "contract.gitsync.dev",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"},
                },
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "required": ["spec"],
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "title": {"type": "string", "maxLength": 20, "description": "What it is called."},
                                    "mode": {"type": "string", "enum": ["fast", "slow"]},
                                    "code": {"type": "string", "pattern": "^[a-z]+$"},
                                    "size": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
                                    "args": {"type": "array", "items": {"type": "string"}},
                                    "tags": {
                                        "type": "array",
                                        "items": {"type": "string"},
                                        "x-kubernetes-list-type": "set",
                                    },
                                    "parts": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {
                                                "name": {"type": "string"},
                                                "value": {"type": "string"},
                                                "weight": {"type": "integer", "default": 1},
                                            },
                                        },
                                    },
                                    "whole": {
                                        "type": "object",
                                        "x-kubernetes-map-type": "atomic",
                                        "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                                    },
                                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "any": {"x-kubernetes-int-or-string": True},
                                    "words": {"type": "object", "additionalProperties": {"type": "string"}},
                                },
                            },
                            "status": {
                                "type": "object",
                                "properties": {"size": {"type": "integer"}, "note": {"type": "string"}},
                            },
                        },
                    }
                },
            }
        ],
    },
}

KINDS: dict[str, tuple[str, str]] = {
    "Deployment": ("apps/v1", "deployments"),
    "Service": ("v1", "services"),
    "ConfigMap": ("v1", "configmaps"),
    "Widget": (WIDGET_VERSION, WIDGETS),
}


# ---------------------------------------------------------------- cases


def _head(kind: str) -> Json:
    return {"apiVersion": KINDS[kind][0], "kind": kind, "metadata": {"name": "x"}}


def _some(rng: random.Random, choices: list[Any], most: int = 3) -> list[Any]:
    return copy.deepcopy(rng.sample(choices, rng.randint(0, min(most, len(choices)))))


def _container(rng: random.Random, name: str, *, full: bool) -> Json:
    env = [
        {"name": "A", "value": rng.choice(["1", "2", ""])},
        {"name": "B", "value": "b"},
        {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "D"},
    ]
    ports: list[Json] = [
        {"containerPort": 80},
        {"containerPort": 80, "protocol": "UDP"},
        {"containerPort": 81, "name": rng.choice(["http", "web"])},
        {"containerPort": 82, "protocol": "TCP"},
    ]
    found: Json = {"name": name}
    if full or rng.random() < 0.6:
        found["image"] = f"example.test/{name}:{rng.choice('12')}"
    options: list[Json] = [
        {"env": _some(rng, env)},
        {"ports": _some(rng, ports)},
        {"command": rng.choice([["a"], ["a", "b"], []])},
        {"resources": {"limits": {"cpu": rng.choice(["1", "1000m", "0.5"]), "memory": rng.choice(["1Gi", "1024Mi"])}}},
        {"resources": rng.choice([{}, {"requests": {"cpu": "100m"}}])},
        {"readinessProbe": {"httpGet": {"port": rng.choice([80, "http"])}, "periodSeconds": rng.choice([1, 10])}},
        {"securityContext": rng.choice([{}, {"runAsUser": 1, "capabilities": {"drop": ["ALL"]}}])},
        {"env": None},
        {"imagePullPolicy": "Always"},
        {"volumeMounts": [{"name": "v", "mountPath": rng.choice(["/a", "/b"])}]},
        {"stdin": rng.choice([True, False])},
    ]
    for each in _some(rng, options, 4):
        found |= each
    return found


def _deployment(rng: random.Random, *, full: bool) -> Json:
    value = _head("Deployment")
    spec: Json = {}
    template: Json = {}
    names = ["web", "side"]
    rng.shuffle(names)
    chosen = names[: rng.randint(1 if full else 0, 2)]
    if full:
        spec |= {"paused": True, "selector": {"matchLabels": {"app": "x"}}}
        template |= {"metadata": {"labels": {"app": "x"}}}
    containers = [_container(rng, name, full=full) for name in chosen]
    pod: Json = {"containers": containers} if chosen else {}
    mounted = any(each.get("volumeMounts") for each in containers)
    if mounted or rng.random() < 0.3:
        sources: list[Json] = [{"emptyDir": {}}, {"configMap": {"name": "c"}}]
        volumes = [{"name": "v"} | rng.choice(sources)]
        if rng.random() < 0.3:
            volumes.append({"name": "w", "emptyDir": {"medium": "Memory"}})
        pod["volumes"] = volumes
    options: list[Json] = [
        {"tolerations": [{"key": rng.choice("kl"), "operator": "Exists"}]},
        {"nodeSelector": rng.choice([{"a": "1"}, {"b": "1"}, {"a": "1", "b": "1"}])},
        {"imagePullSecrets": _some(rng, [{"name": "p"}, {"name": "q"}])},
        {"terminationGracePeriodSeconds": rng.choice([5, 30])},
        {"serviceAccountName": rng.choice(["default", "robot"])},
        {"hostAliases": [{"ip": "10.0.0.1", "hostnames": [rng.choice("ab")]}]},
        {"securityContext": rng.choice([{}, {"fsGroup": 2}])},
    ]
    for each in _some(rng, options, 2):
        pod |= each
    if pod:
        template["spec"] = pod
    if template:
        spec["template"] = template
    more: list[Json] = [
        {"replicas": rng.choice([0, 1, 2, None])},
        {"minReadySeconds": rng.choice([0, 5])},
        {"strategy": {"type": "Recreate"}},
        {"strategy": {"rollingUpdate": {"maxSurge": rng.choice([1, "50%"])}}},
        {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}},
        {"revisionHistoryLimit": rng.choice([2, None])},
        {"progressDeadlineSeconds": 60},
    ]
    for each in _some(rng, more, 3):
        spec |= each
    if spec:
        value["spec"] = spec
    return _meta(rng, value)


def _meta(rng: random.Random, value: Json) -> Json:
    options: list[Json] = [
        {"labels": {"a": rng.choice(["1", "2"])}},
        {"labels": {"a": "1", "b": "1"}},
        {"labels": {}},
        {"labels": {"a": None, "c": ""}},
        {"annotations": {"n": rng.choice(["x", ""])}},
        {"annotations": {"m": "y", "n": "x"}},
    ]
    for each in _some(rng, options, 2):
        value["metadata"] |= each
    return value


def _service(rng: random.Random, *, full: bool) -> Json:
    value = _head("Service")
    ports: list[Json] = [
        {"port": 80, "name": "a", "targetPort": rng.choice([8080, "http"])},
        {"port": 81, "name": "b"},
        {"port": 81, "name": "u", "protocol": "UDP"},
        {"port": 82, "name": "c", "protocol": "TCP", "appProtocol": "http"},
    ]
    spec: Json = {"ports": _some(rng, ports) or [ports[0]]} if full or rng.random() < 0.7 else {}
    options: list[Json] = [
        {"selector": rng.choice([{"a": "1"}, {"a": "1", "b": "2"}, {"c": "3"}])},
        {"type": rng.choice(["ClusterIP", "NodePort"])},
        {"externalIPs": rng.choice([["192.0.2.1"], ["192.0.2.1", "192.0.2.2"]])},
        {"sessionAffinity": "None"},
        {"publishNotReadyAddresses": rng.choice([True, False])},
    ]
    for each in _some(rng, options, 3):
        spec |= each
    if spec:
        value["spec"] = spec
    return _meta(rng, value)


def _config_map(rng: random.Random, *, full: bool) -> Json:
    value = _head("ConfigMap")
    options: list[Json] = [
        {"data": {"a": rng.choice(["1", "2", ""])}},
        {"data": {"a": "1", "b": "2"}},
        {"data": {"b": "2", "c": None}},
        {"data": {}},
        {"data": None},
        {"binaryData": {"x": "AAE="}},
    ]
    for each in _some(rng, options, 2):
        value |= each
    return _meta(rng, value)


def _widget(rng: random.Random, *, full: bool) -> Json:
    value = _head("Widget")
    parts: list[Json] = [
        {"name": "a", "value": rng.choice("12")},
        {"name": "b"},
        {"name": "c", "value": "3", "weight": rng.choice([1, 2])},
    ]
    spec: Json = {}
    options: list[Json] = [
        {"title": rng.choice(["t", "u", "", None])},
        {"size": rng.choice([3, 4, None])},
        {"args": rng.choice([["a"], ["a", "b"], []])},
        {"tags": _some(rng, ["x", "y", "z"])},
        {"parts": _some(rng, parts)},
        {"whole": rng.choice([{"a": "1"}, {"b": "2"}, {"a": "1", "b": "2"}, {}])},
        {"free": rng.choice([{"p": 1}, {"p": {"q": [1, 2]}}, {"p": {"q": [1]}, "r": None}, {}])},
        {"any": rng.choice([1, "one"])},
        {"words": rng.choice([{"k": "v"}, {"k": "w", "l": ""}, {}])},
    ]
    for each in _some(rng, options, 4):
        spec |= each
    if spec or full:
        value["spec"] = spec
    return _meta(rng, value)


_MAKERS = {"Deployment": _deployment, "Service": _service, "ConfigMap": _config_map, "Widget": _widget}


def _random_case(seed: int) -> Json:
    rng = random.Random(seed)
    kind = ["Deployment", "Widget", "Service", "ConfigMap", "Deployment"][seed % 5]
    make = _MAKERS[kind]
    steps: list[Json] = []
    for index in range(rng.randint(3, 6)):
        body = make(rng, full=index == 0 or rng.random() < 0.5)
        if index and rng.random() < 0.2:
            del body["apiVersion"], body["kind"]
            steps.append({"do": "merge", "manager": f"u{rng.randint(1, 2)}", "body": body})
        elif index == 0 and rng.random() < 0.25:
            steps.append({"do": "create", "manager": "u1", "body": body})
        else:
            step: Json = {"do": "apply", "manager": f"m{rng.randint(1, 3)}", "body": body}
            steps.append(step | ({"force": True} if rng.random() < 0.5 else {}))
    return {"name": f"random-{seed}-{kind.lower()}", "kind": kind, "steps": steps}


def _apply(manager: str, body: Json, *, force: bool = False) -> Json:
    return {"do": "apply", "manager": manager, "body": body} | ({"force": True} if force else {})


def _named_cases() -> list[Json]:
    config = _head("ConfigMap")
    base = {
        **_head("Deployment"),
        "spec": {
            "paused": True,
            "replicas": 2,
            "selector": {"matchLabels": {"app": "x"}},
            "template": {
                "metadata": {"labels": {"app": "x"}},
                "spec": {"containers": [{"name": "web", "image": "i:1", "env": [{"name": "A", "value": "1"}]}]},
            },
        },
    }

    def with_(path: str, value: Any) -> Json:
        out = copy.deepcopy(base)
        node: Any = out
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        if value is ...:
            del node[last]
        else:
            node[last] = value
        return out

    env = "spec.template.spec.containers.0.env"
    scale = _head("Deployment") | {"spec": {"replicas": 5}}
    cases: dict[str, list[Json]] = {
        "ownership of what is sent alone": [_apply("m1", base)],
        "the same again changes nothing": [_apply("m1", base), _apply("m1", base)],
        "another value conflicts": [_apply("m1", base), _apply("m2", scale)],
        "force takes the field": [_apply("m1", base), _apply("m2", scale, force=True), _apply("m1", base)],
        "the same value is shared": [
            _apply("m1", base),
            _apply("m2", _head("Deployment") | {"spec": {"replicas": 2}}),
            _apply("m1", with_("spec.replicas", ...)),
            _apply("m2", _head("Deployment")),
        ],
        "dropping the only owner's field falls back to the default": [
            _apply("m1", base),
            _apply("m1", with_("spec.replicas", ...)),
        ],
        "null is owned and defaulted": [_apply("m1", base), _apply("m1", with_("spec.replicas", None))],
        "null from the start": [_apply("m1", with_("spec.replicas", None))],
        "an environment variable goes with its owner": [
            _apply("m1", with_(env, [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}])),
            _apply("m1", with_(env, [{"name": "B", "value": "2"}])),
            _apply("m1", with_(env, ...)),
        ],
        "items keep the applier's order": [
            _apply("m1", with_(env, [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}])),
            _apply("m2", with_(env, [{"name": "C", "value": "3"}, {"name": "A", "value": "1"}]), force=True),
            _apply("m1", with_(env, [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}])),
        ],
        "items of others keep their place between shared ones": [
            _apply("m1", with_(env, [{"name": name, "value": "1"} for name in "ABCD"])),
            _apply("m2", with_(env, [{"name": name, "value": "2"} for name in ("X", "C", "Y", "A", "Z")]), force=True),
            _apply("m1", with_(env, [{"name": name, "value": "1"} for name in "DBCA"]), force=True),
            _apply("m3", with_(env, [{"name": name, "value": "3"} for name in ("B", "W", "D")]), force=True),
        ],
        "an injected sidecar is left alone": [
            _apply("m1", base),
            {
                "do": "merge",
                "manager": "u1",
                "body": {"spec": {"template": {"spec": {"containers": [
                    {"name": "web", "image": "i:1", "env": [{"name": "A", "value": "1"}]}, {"name": "side", "image": "s:1"},  # noqa: E501
                ]}}}},
            },
            _apply("m1", with_("spec.template.spec.containers.0.image", "i:2"), force=True),
        ],
        "an update takes fields from an applier": [
            _apply("m1", base),
            {"do": "merge", "manager": "u1", "body": {"spec": {"replicas": 7}}},
            _apply("m1", base),
            _apply("m1", base, force=True),
        ],
        "duplicate keys are refused": [
            _apply("m1", with_(env, [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]))
        ],
        "a list item without its key is refused": [_apply("m1", with_(env, [{"value": "1"}]))],
        "an unknown field is refused": [_apply("m1", with_("spec.replica", 1))],
        "a nested unknown field is refused": [_apply("m1", with_("spec.template.spec.containers.0.imagee", "x"))],
        "a wrong type is refused": [_apply("m1", with_("spec.replicas", "three"))],
        "a map where a list belongs is refused": [_apply("m1", with_(env, {"A": "1"}))],
        "an atomic list is taken whole": [
            _apply("m1", with_("spec.template.spec.containers.0.command", ["a", "b"])),
            _apply("m2", with_("spec.template.spec.containers.0.command", ["a"]), force=True),
            _apply("m1", with_("spec.template.spec.containers.0.command", ["a", "b"])),
        ],
        "a new selector is refused": [_apply("m1", base), _apply("m1", with_("spec.selector.matchLabels", {"app": "y"}))],  # noqa: E501
        "several conflicts at once": [
            _apply("m1", base),
            _apply("m2", with_("spec.replicas", 9)),
            _apply("m2", with_("spec.template.spec.containers.0.image", "i:9") | {"metadata": {"name": "x", "labels": {"a": "1"}}}),  # noqa: E501
            _apply("m3", {**_head("Deployment"), "spec": {"replicas": 8, "template": {"spec": {"containers": [
                {"name": "web", "image": "i:8"}]}}}}),
        ],
        "metadata.name alone": [_apply("m1", config), _apply("m2", config)],
        "a data key of two owners": [
            _apply("m1", config | {"data": {"a": "1", "b": "2"}}),
            _apply("m2", config | {"data": {"a": "1"}}),
            _apply("m1", config | {"data": {"b": "2"}}),
            _apply("m2", config),
            _apply("m1", config),
        ],
        "managedFields may not be applied": [
            _apply("m1", config | {"metadata": {"name": "x", "managedFields": [{"manager": "z"}]}})
        ],
        "a stale resourceVersion conflicts": [
            _apply("m1", config | {"data": {"a": "1"}}),
            _apply("m1", {**config, "metadata": {"name": "x", "resourceVersion": "1"}}),
        ],
        "another name than the path's": [_apply("m1", {**config, "metadata": {"name": "other"}})],
        "another kind than the path's": [_apply("m1", config | {"kind": "Secret"})],
        "a finalizer set": [
            _apply("m1", {**config, "metadata": {"name": "x", "finalizers": ["test.gitsync.dev/a"]}}),
            _apply("m2", {**config, "metadata": {"name": "x", "finalizers": ["test.gitsync.dev/b"]}}),
            _apply("m1", config),
            _apply("m2", config),
        ],
        "a created object is adopted": [
            {"do": "create", "manager": "u1", "body": base},
            _apply("m1", base),
            _apply("m1", with_("spec.replicas", 4)),
            _apply("m1", with_("spec.replicas", 4), force=True),
        ],
        "managedFields can be reset": [
            _apply("m1", config | {"data": {"a": "1"}}),
            {"do": "merge", "manager": "u1", "body": {"metadata": {"managedFields": [{}]}}},
            _apply("m2", config | {"data": {"a": "2"}}),
        ],
        "ownership can be migrated by a JSON patch": [
            {"do": "create", "manager": "u1", "body": config | {"data": {"a": "1", "b": "2"}}},
            {"do": "json", "manager": "u2", "body": [
                {"op": "replace", "path": "/metadata/managedFields/0/operation", "value": "Apply"},
                {"op": "replace", "path": "/metadata/managedFields/0/manager", "value": "m1"},
            ]},
            _apply("m1", config | {"data": {"a": "1"}}),
        ],
        "status is not owned through the object": [
            _apply("m1", _head("Widget") | {"spec": {"title": "t"}, "status": {"size": 3}}),
            {"do": "apply", "manager": "m2", "body": _head("Widget") | {"status": {"size": 7}}, "sub": "status"},
            _apply("m1", _head("Widget") | {"spec": {"title": "u"}}),
            {"do": "apply", "manager": "m2", "body": _head("Widget") | {"spec": {"title": "v"}, "status": {"note": "n"}}, "sub": "status"},  # noqa: E501
        ],
        "quantities are kept equal": [
            _apply("m1", with_("spec.template.spec.containers.0.resources", {"limits": {"cpu": "1000m"}})),
            _apply("m2", with_("spec.template.spec.containers.0.resources", {"limits": {"cpu": "1"}})),
        ],
        "a removed container keeps what others own in it": [
            _apply("m1", with_("spec.template.spec.containers", [{"name": "web", "image": "i:1"}, {"name": "b", "image": "b:1"}])),  # noqa: E501
            _apply("m2", {**_head("Deployment"), "spec": {"template": {"spec": {"containers": [
                {"name": "b", "env": [{"name": "Z", "value": "1"}]}]}}}}),
            _apply("m1", with_("spec.template.spec.containers", [{"name": "web", "image": "i:1"}])),
        ],
    }  # fmt: skip
    found: list[Json] = []
    for name, steps in cases.items():
        kind = next(each["body"]["kind"] for each in steps if "kind" in each["body"])
        found.append({"name": name, "kind": "ConfigMap" if kind == "Secret" else kind, "steps": steps})
    return found


def cases() -> list[Json]:
    """Named cases first, then random ones; each has a name, a kind and steps."""
    return [*_named_cases(), *(_random_case(seed) for seed in range(RANDOM_CASES))]


# ---------------------------------------------------------------- playing


async def play(api: Api, case: Json) -> list[Json]:
    """Every step's answer, reduced to what does not differ between two clusters."""
    version, plural = KINDS[case["kind"]]
    collection, name = api.path(version, plural), api.path(version, plural, "x")
    found: list[Json] = []
    for step in case["steps"]:
        query = {"fieldManager": step["manager"]} | ({"force": "true"} if step.get("force") else {})
        body = step["body"]
        if step["do"] == "create":
            answer = await api.post(collection, body, **query)
        elif step["do"] == "merge":
            answer = await api.patch(name, body, MERGE, **query)
        elif step["do"] == "json":
            answer = await api.patch(name, body, "application/json-patch+json", **query)
        else:
            place = f"{name}/{step['sub']}" if "sub" in step else name
            answer = await api.patch(place, body, APPLY, **query)
        found.append(reduced(answer, api.namespace))
    await api.patch(name, {"metadata": {"finalizers": None}}, MERGE)
    await api.delete(name)
    return found


def reduced(answer: Answer, namespace: str) -> Json:
    body = answer.body
    if body.get("kind") == "Status":
        details: Json = body.get("details") or {}
        causes: list[dict[str, str]] = details.get("causes") or []
        shown: Json = {"code": answer.code, "reason": answer.reason}
        if causes:
            shown["causes"] = sorted(causes, key=lambda each: sorted(each.items()))
        if len(causes) < 2 or answer.code == 409:  # the order in which a validation names several is no promise
            shown["message"] = answer.message.replace(namespace, "NS")
        return shown
    metadata = body["metadata"]
    kept = {key: metadata[key] for key in ("labels", "annotations", "finalizers", "generation") if key in metadata}
    # Controllers of a whole cluster may write meanwhile; they are no part of the case.
    annotations = {key: each for key, each in kept.pop("annotations", {}).items() if "kubernetes.io" not in key}
    kept |= {"annotations": annotations} if annotations else {}
    managers = [
        {key: each for key, each in entry.items() if key != "time"}
        for entry in metadata.get("managedFields", [])
        if entry["manager"][:1] in "mu" or entry["manager"] == "before-first-apply"
    ]
    managers.sort(key=lambda each: (each["operation"], each["manager"], each.get("subresource", "")))
    content = {key: each for key, each in body.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    if body["kind"] == "Service":
        content = copy.deepcopy(content)
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            content["spec"].pop(key, None)
        for port in content["spec"].get("ports", []):
            if "nodePort" in port:
                port["nodePort"] = "some"
    return {"code": answer.code, "metadata": kept, "managers": managers, "content": content}


async def _record(kubeconfig: Path) -> None:
    async with Access.read(kubeconfig).connect("apply-answers") as api:
        path = api.path("apiextensions.k8s.io/v1", "customresourcedefinitions", namespace="")
        await api.post(path, WIDGET_DEFINITION)
        while (await api.get(api.path(WIDGET_VERSION, WIDGETS))).code != 200:
            await asyncio.sleep(0.2)
        answers = {case["name"]: await play(api, case) for case in cases()}
    lines = [f"{orjson.dumps(name).decode()}: {orjson.dumps(each).decode()}" for name, each in answers.items()]
    ANSWERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(answers)} cases recorded")


if __name__ == "__main__":
    asyncio.run(_record(Path(sys.argv[1])))
