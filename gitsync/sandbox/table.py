"""What ``kubectl get`` prints: the table of each kind, and the columns that a custom resource declares. Pure."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from gitsync.sandbox.kinds import Resource
from gitsync.sandbox.schema import at, many

Json = dict[str, Any]
_Cell = str | int | bool


def age(stamp: str | None, at: datetime | None = None) -> str:
    """``duration.HumanDuration``: 45s, 3m12s, 5h, 12d."""
    if not stamp:
        return "<unknown>"
    seconds = max(0, int(((at or datetime.now(UTC)) - datetime.fromisoformat(stamp)).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d"


def _name(value: Json) -> str:
    return str(value["metadata"]["name"])


def _age(value: Json) -> str:
    return age(value["metadata"].get("creationTimestamp"))


def _status(value: Json, *names: str) -> list[_Cell]:
    return [cast("_Cell", at(value, "status").get(name, 0)) for name in names]


def _containers(spec: Json) -> list[_Cell]:
    containers = many(spec, "containers")
    return [",".join(each["name"] for each in containers), ",".join(each.get("image", "") for each in containers)]


def _selector(selector: Json | None) -> str:
    labels = (selector or {}).get("matchLabels", selector or {})
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels)) or "<none>"


def pod_reason(pod: Json) -> str:
    """The STATUS of a pod as people know it: Running, CrashLoopBackOff, Init:0/1, Terminating, …"""
    status = pod.get("status", {})
    reason = status.get("reason") or status.get("phase", "Unknown")
    inits = many(status, "initContainerStatuses")
    for index, each in enumerate(inits):
        state = each.get("state", {})
        if at(state, "terminated").get("exitCode") == 0:
            continue
        waiting = at(state, "waiting").get("reason", "")
        terminated = at(state, "terminated").get("reason", "")
        shown = terminated or (waiting if waiting != "PodInitializing" else "") or f"{index}/{len(inits)}"
        reason = f"Init:{shown}"
        break
    else:
        running = False
        for each in many(status, "containerStatuses"):
            state = each.get("state", {})
            running = running or (bool(each.get("ready")) and "running" in state)
            reason = at(state, "waiting").get("reason") or at(state, "terminated").get("reason") or reason
        if reason == "Completed" and running:
            reason = "Running"
    return "Terminating" if pod["metadata"].get("deletionTimestamp") else str(reason)


def _pod(pod: Json) -> list[_Cell]:
    statuses = at(pod, "status").get("containerStatuses", [])
    ready = f"{sum(1 for each in statuses if each.get('ready'))}/{len(pod['spec']['containers'])}"
    restarts = sum(each.get("restartCount", 0) for each in statuses)
    spec, status = pod["spec"], pod.get("status", {})
    wide: list[_Cell] = [status.get("podIP", "<none>"), spec.get("nodeName", "<none>"), "<none>", "<none>"]
    return [_name(pod), ready, pod_reason(pod), restarts, _age(pod), *wide]


def _service(service: Json) -> list[_Cell]:
    spec = service["spec"]
    ports = ",".join(
        f"{each['port']}{':' + str(each['nodePort']) if each.get('nodePort') else ''}/{each['protocol']}"
        for each in many(spec, "ports")
    )
    ingress = at(service, "status").get("loadBalancer", {}).get("ingress", [])
    external = [*(each.get("ip") or each.get("hostname", "") for each in ingress), *many(spec, "externalIPs")]
    shown = (
        spec.get("externalName") or ",".join(external) or ("<pending>" if spec["type"] == "LoadBalancer" else "<none>")
    )
    return [
        _name(service),
        spec["type"],
        spec.get("clusterIP", "<none>"),
        shown,
        ports or "<none>",
        _age(service),
        _selector(spec.get("selector")),
    ]


def _deployment(value: Json) -> list[_Cell]:
    status, spec = value.get("status", {}), value["spec"]
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}"
    head: list[_Cell] = [_name(value), ready, *_status(value, "updatedReplicas", "availableReplicas"), _age(value)]
    return [*head, *_containers(spec["template"]["spec"]), _selector(spec.get("selector"))]


def _replica_set(value: Json) -> list[_Cell]:
    spec = value["spec"]
    head: list[_Cell] = [
        _name(value),
        spec.get("replicas", 1),
        *_status(value, "replicas", "readyReplicas"),
        _age(value),
    ]
    return [*head, *_containers(spec["template"]["spec"]), _selector(spec.get("selector"))]


def _job(value: Json) -> list[_Cell]:
    spec, status = value["spec"], value.get("status", {})
    true = {each["type"] for each in many(status, "conditions") if each["status"] == "True"}
    shown = next((each for each in ("Complete", "Failed", "Suspended") if each in true), "Running")
    done = f"{status.get('succeeded', 0)}/{spec.get('completions', 1)}"
    started, ended = status.get("startTime"), status.get("completionTime")
    took = age(started, datetime.fromisoformat(ended) if ended else None) if started else ""
    return [
        _name(value),
        shown,
        done,
        took,
        _age(value),
        *_containers(spec["template"]["spec"]),
        _selector(spec.get("selector")),
    ]


def _event(value: Json) -> list[_Cell]:
    about = value.get("involvedObject", {})
    seen = value.get("lastTimestamp") or value.get("eventTime") or value["metadata"].get("creationTimestamp")
    subject = f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"
    return [age(seen), value.get("type", ""), value.get("reason", ""), subject, value.get("message", "").strip()]


def _endpoints(value: Json) -> list[_Cell]:
    found = [
        f"{address['ip']}:{port['port']}"
        for subset in many(value, "subsets")
        for address in many(subset, "addresses")
        for port in many(subset, "ports")
    ]
    return [_name(value), ",".join(found) or "<none>", _age(value)]


def _slice(value: Json) -> list[_Cell]:
    ports = ",".join(str(each.get("port", "")) for each in many(value, "ports")) or "<unset>"
    ips = ",".join(ip for each in many(value, "endpoints") for ip in each["addresses"]) or "<unset>"
    return [_name(value), value["addressType"], ports, ips, _age(value)]


def _autoscaler(value: Json) -> list[_Cell]:
    spec, target = value["spec"], value["spec"]["scaleTargetRef"]
    bounds: list[_Cell] = [spec.get("minReplicas", 1), spec["maxReplicas"]]
    return [
        _name(value),
        f"{target['kind']}/{target['name']}",
        "<unknown>",
        *bounds,
        *_status(value, "currentReplicas"),
        _age(value),
    ]


def _budget(value: Json) -> list[_Cell]:
    spec = value["spec"]
    return [
        _name(value), spec.get("minAvailable", "N/A"), spec.get("maxUnavailable", "N/A"),
        *_status(value, "disruptionsAllowed"), _age(value),
    ]  # fmt: skip


#: Kind → columns (a leading "-" marks one that only ``-o wide`` shows) and the row's cells.
_TABLES: dict[str, tuple[str, Callable[[Json], Sequence[_Cell]]]] = {
    "Pod": ("Name Ready Status Restarts Age -IP -Node -Nominated_Node -Readiness_Gates", _pod),
    "Service": ("Name Type Cluster-IP External-IP Port(s) Age -Selector", _service),
    "Deployment": ("Name Ready Up-to-date Available Age -Containers -Images -Selector", _deployment),
    "ReplicaSet": ("Name Desired Current Ready Age -Containers -Images -Selector", _replica_set),
    "Job": ("Name Status Completions Duration Age -Containers -Images -Selector", _job),
    "Event": ("Last_Seen Type Reason Object Message", _event),
    "Endpoints": ("Name Endpoints Age", _endpoints),
    "EndpointSlice": ("Name AddressType Ports Endpoints Age", _slice),
    "HorizontalPodAutoscaler": ("Name Reference Targets MinPods MaxPods Replicas Age", _autoscaler),
    "PodDisruptionBudget": ("Name Min_Available Max_Unavailable Allowed_Disruptions Age", _budget),
    "Namespace": ("Name Status Age", lambda it: [_name(it), at(it, "status").get("phase", ""), _age(it)]),
    "Node": (
        "Name Status Roles Age Version",
        lambda it: [_name(it), "Ready", "<none>", _age(it), it["status"]["nodeInfo"]["kubeletVersion"]],
    ),
    "ConfigMap": (
        "Name Data Age",
        lambda it: [_name(it), len(it.get("data", {})) + len(it.get("binaryData", {})), _age(it)],
    ),
    "Secret": ("Name Type Data Age", lambda it: [_name(it), it.get("type", ""), len(it.get("data", {})), _age(it)]),
    "ServiceAccount": ("Name Secrets Age", lambda it: [_name(it), len(many(it, "secrets")), _age(it)]),
    "Lease": ("Name Holder Age", lambda it: [_name(it), at(it, "spec").get("holderIdentity", ""), _age(it)]),
    "RoleBinding": (
        "Name Role Age",
        lambda it: [_name(it), f"{it['roleRef']['kind']}/{it['roleRef']['name']}", _age(it)],
    ),
    "ClusterRoleBinding": (
        "Name Role Age",
        lambda it: [_name(it), f"{it['roleRef']['kind']}/{it['roleRef']['name']}", _age(it)],
    ),
    "Role": ("Name Created_At", lambda it: [_name(it), it["metadata"]["creationTimestamp"]]),
    "ClusterRole": ("Name Created_At", lambda it: [_name(it), it["metadata"]["creationTimestamp"]]),
    "CustomResourceDefinition": ("Name Created_At", lambda it: [_name(it), it["metadata"]["creationTimestamp"]]),
}


def _column(name: str) -> Json:
    wide, name = name.startswith("-"), name.removeprefix("-").replace("_", " ")
    kind = "name" if name == "Name" else ""
    return {"name": name, "type": "string", "format": kind, "description": "", "priority": int(wide)}


def table(resource: Resource, items: Iterable[Json], version: str, include: str = "Metadata") -> Json:
    """A ``meta.k8s.io/v1`` Table. ``include``: None, Metadata or Object, as ``?includeObject=`` says."""
    if resource.custom:
        declared = resource.columns or ({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},)
        columns = [_column("Name")] + [
            {"name": each["name"], "type": each["type"], "format": each.get("format", ""),
             "description": each.get("description", ""), "priority": each.get("priority", 0)}
            for each in declared
        ]  # fmt: skip

        def cells(value: Json, /) -> Sequence[_Cell | None]:
            return [_name(value), *(_printed(value, each) for each in declared)]
    else:
        names, row = _TABLES.get(resource.kind, ("Name Age", lambda it: [_name(it), _age(it)]))
        columns = [_column(name) for name in names.split(" ")]
        cells = row
    rows: list[Json] = []
    for value in items:
        shown: Json | None = value
        if include != "Object":
            shown = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]}
        rows.append({"cells": cells(value), "object": None if include == "None" else shown})
    metadata = {"resourceVersion": version}
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    }


def _printed(value: Json, column: Json) -> _Cell | None:
    found = json_path(value, column["jsonPath"])
    if not found:
        return None
    if column["type"] == "date":
        return age(str(found[0]))
    if column["type"] in ("integer", "number", "boolean"):
        return cast("_Cell", found[0])
    return ",".join(str(each) for each in found)


_STEP = re.compile(
    r"""\.(?P<name>(?:[^.\[\\]|\\.)+)|\[['"](?P<quoted>[^'"]+)['"]\]|\[(?P<index>\d+|\*)\]"""
    r"""|\[\?\(@\.(?P<field>[\w.]+)\s*==\s*['"](?P<value>[^'"]*)['"]\)\]"""
)


def json_path(value: Any, path: str) -> list[Any]:
    """What a printer column's JSONPath finds: names, indices, ``[*]`` and ``[?(@.type=="Ready")]``."""
    found, at = [value], 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return []
        at = step.end()
        following: list[Any] = []
        for node in found:
            name = step["quoted"] or (step["name"] or "").replace("\\", "")
            if isinstance(node, list):
                items = cast("list[Any]", node)
                if step["index"] == "*":
                    following += items
                elif step["index"] and int(step["index"]) < len(items):
                    following.append(items[int(step["index"])])
                elif step["field"]:
                    following += [each for each in items if str(each.get(step["field"])) == step["value"]]
            elif isinstance(node, dict) and name and (below := cast("Json", node).get(name)) is not None:
                following.append(below)
        found = following
    return found
