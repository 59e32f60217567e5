"""What Kubernetes adds to an object of a built-in kind, and what it refuses in one.

``fill`` sets defaults in place; ``violations`` and ``changes_refused`` say why an object cannot be stored, in the
API server's words. Pure; only rules that deployments meet in practice are here.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from gitsync.sandbox.schema import at, many

Json = dict[str, Any]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_LABEL = re.compile(_LABEL)
DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
_VOLUME_SOURCES = ("emptyDir", "hostPath", "secret", "persistentVolumeClaim", "downwardAPI", "configMap", "projected")
_PATH_SEGMENT_KINDS = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One reason for a 422, as in ``status.details.causes``."""

    reason: Literal[
        "FieldValueRequired", "FieldValueInvalid", "FieldValueForbidden", "FieldValueNotSupported",
        "FieldValueDuplicate", "FieldValueNotFound", "FieldValueTypeInvalid",
        "FieldValueTooLong",
    ]  # fmt: skip
    field: str
    message: str


def required(field: str, why: str = "") -> Violation:
    return Violation(reason="FieldValueRequired", field=field, message=f"Required value{': ' if why else ''}{why}")


def invalid(field: str, value: Any, why: str) -> Violation:
    shown = (
        value
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else json.dumps(value, separators=(",", ":"))
    )
    return Violation(reason="FieldValueInvalid", field=field, message=f"Invalid value: {shown}: {why}")


def forbidden(field: str, why: str) -> Violation:
    return Violation(reason="FieldValueForbidden", field=field, message=f"Forbidden: {why}")


def unsupported(field: str, value: Any, allowed: Iterable[str]) -> Violation:
    names = ", ".join(f'"{each}"' for each in allowed)
    message = f"Unsupported value: {json.dumps(value)}: supported values: {names}"
    return Violation(reason="FieldValueNotSupported", field=field, message=message)


def duplicate(field: str, value: Any) -> Violation:
    return Violation(
        reason="FieldValueDuplicate",
        field=field,
        message=f"Duplicate value: {json.dumps(value, separators=(',', ':'))}",
    )


# ---------------------------------------------------------------- defaults


def fill(kind: str, value: Json) -> None:
    """Set the defaults of a built-in kind, in place."""
    if kind in _DEFAULTS:
        _DEFAULTS[kind](value)


def _default(value: Json, **fields: Any) -> None:
    for name, each in fields.items():
        if value.get(name) is None:
            value[name] = each


def _fill_probe(probe: Json | None) -> None:
    if probe:
        _default(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
        _fill_handler(probe)


def _fill_handler(handler: Json) -> None:
    if "httpGet" in handler:
        _default(handler["httpGet"], path="/", scheme="HTTP")


def _fill_container(container: Json) -> None:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition("@")
    latest = not tag[1] and tag[0].partition(":")[2] in ("", "latest")
    _default(
        container,
        imagePullPolicy="Always" if latest else "IfNotPresent",
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
        resources={},
    )
    for port in many(container, "ports"):
        _default(port, protocol="TCP")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        _fill_probe(container.get(probe))
    for hook in at(container, "lifecycle").values():
        if isinstance(hook, dict):
            _fill_handler(cast("Json", hook))
    for variable in many(container, "env"):
        if reference := at(variable, "valueFrom").get("fieldRef"):
            _default(reference, apiVersion="v1")


def _fill_pod_spec(spec: Json) -> None:
    _default(
        spec,
        restartPolicy="Always",
        dnsPolicy="ClusterFirst",
        schedulerName="default-scheduler",
        terminationGracePeriodSeconds=30,
        securityContext={},
    )
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif "serviceAccount" in spec:
        spec["serviceAccountName"] = spec["serviceAccount"]
    for container in (*many(spec, "initContainers"), *many(spec, "containers")):
        _fill_container(container)
    for volume in many(spec, "volumes"):
        if len(volume) == 1:
            volume["emptyDir"] = {}
        for source in ("configMap", "secret", "downwardAPI", "projected"):
            if volume.get(source) is not None:
                _default(volume[source], defaultMode=420)
        for source in (volume, *many(at(volume, "projected"), "sources")):
            for item in many(at(source, "downwardAPI"), "items"):
                if "fieldRef" in item:
                    _default(item["fieldRef"], apiVersion="v1")
            if token := source.get("serviceAccountToken"):
                _default(token, expirationSeconds=3600)


def _fill_template(spec: Json) -> None:
    template = spec.setdefault("template", {})
    template.setdefault("metadata", {})
    _fill_pod_spec(template.setdefault("spec", {}))


def _fill_pod(pod: Json) -> None:
    spec = pod.setdefault("spec", {})
    _default(
        spec, enableServiceLinks=True, serviceAccountName="default", preemptionPolicy="PreemptLowerPriority", priority=0
    )
    _fill_pod_spec(spec)
    for container in (*many(spec, "initContainers"), *many(spec, "containers")):
        if limits := container["resources"].get("limits"):
            container["resources"]["requests"] = limits | container["resources"].get("requests", {})


def _fill_deployment(deployment: Json) -> None:
    spec = deployment.setdefault("spec", {})
    _default(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    strategy = spec.setdefault("strategy", {})
    _default(strategy, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {})
        _default(strategy["rollingUpdate"], maxSurge="25%", maxUnavailable="25%")
    _fill_template(spec)


def _fill_replica_set(value: Json) -> None:
    spec = value.setdefault("spec", {})
    _default(spec, replicas=1)
    labels = at(spec, "template", "metadata").get("labels")
    if labels and "selector" not in spec:
        spec["selector"] = {"matchLabels": dict(labels)}
    _fill_template(spec)


def _fill_job(job: Json) -> None:
    spec = job.setdefault("spec", {})
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    _default(
        spec, parallelism=1, backoffLimit=6, completionMode="NonIndexed", suspend=False,
        manualSelector=spec.get("manualSelector"), podReplacementPolicy="TerminatingOrFailed",
    )  # fmt: skip
    if spec["manualSelector"] is None:
        del spec["manualSelector"]
    _fill_template(spec)


def _fill_service(service: Json) -> None:
    spec = service.setdefault("spec", {})
    _default(spec, type="ClusterIP", sessionAffinity="None")
    service.setdefault("status", {}).setdefault("loadBalancer", {})
    if spec["type"] == "ExternalName":
        return
    _default(spec, internalTrafficPolicy="Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
        _default(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _default(spec, allocateLoadBalancerNodePorts=True)
    for port in many(spec, "ports"):
        _default(port, protocol="TCP", targetPort=port.get("port"))


def keep_service(live: Json, new: Json) -> None:
    """What an update of a Service that does not speak of them keeps."""
    kind = new.get("type", "ClusterIP")
    if kind == "ExternalName":
        return
    for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if not new.get(key) and live.get(key):
            new[key] = live[key]
    ports = {(each["port"], each["protocol"]): each.get("nodePort") for each in many(live, "ports")}
    for each in many(new, "ports"):
        kept = ports.get((each.get("port"), each.get("protocol") or "TCP"))
        if kept and kind in ("NodePort", "LoadBalancer") and not each.get("nodePort"):
            each["nodePort"] = kept


def _fill_secret(secret: Json) -> None:
    _default(secret, type="Opaque")
    plain = at(secret, "stringData")
    secret.pop("stringData", None)
    for name, text in plain.items():
        secret.setdefault("data", {})[name] = base64.b64encode(str(text).encode()).decode()


def _fill_autoscaler(value: Json) -> None:
    spec = value.setdefault("spec", {})
    _default(spec, minReplicas=1)
    if not spec.get("metrics"):
        resource = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
        spec["metrics"] = [{"type": "Resource", "resource": resource}]


def _fill_binding(binding: Json) -> None:
    if "roleRef" in binding:
        _default(binding["roleRef"], apiGroup="rbac.authorization.k8s.io")
    for subject in many(binding, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            _default(subject, apiGroup="rbac.authorization.k8s.io")


def _fill_definition(definition: Json) -> None:
    spec = definition.setdefault("spec", {})
    names = spec.setdefault("names", {})
    kind = names.get("kind", "")
    _default(names, singular=kind.lower(), listKind=f"{kind}List")
    _default(spec, conversion={"strategy": "None"})
    for version in many(spec, "versions"):
        for column in many(version, "additionalPrinterColumns"):
            column.setdefault("priority", 0)
            if not column["priority"]:
                del column["priority"]


def _fill_namespace(namespace: Json) -> None:
    name = namespace["metadata"].get("name", "")
    namespace["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name
    namespace.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    namespace.setdefault("status", {}).setdefault("phase", "Active")


def _fill_slice(value: Json) -> None:
    for port in many(value, "ports"):
        _default(port, protocol="TCP", name="")


_DEFAULTS: dict[str, Callable[[Json], None]] = {
    "Pod": _fill_pod,
    "Deployment": _fill_deployment,
    "ReplicaSet": _fill_replica_set,
    "Job": _fill_job,
    "Service": _fill_service,
    "Secret": _fill_secret,
    "HorizontalPodAutoscaler": _fill_autoscaler,
    "RoleBinding": _fill_binding,
    "ClusterRoleBinding": _fill_binding,
    "CustomResourceDefinition": _fill_definition,
    "Namespace": _fill_namespace,
    "EndpointSlice": _fill_slice,
}


# ---------------------------------------------------------------- validation


def violations(kind: str, value: Json) -> Iterator[Violation]:
    """Reasons to refuse an object after defaulting. Missing required fields are the schema's business."""
    metadata = at(value, "metadata")
    name = str(metadata.get("name", ""))
    if kind in _PATH_SEGMENT_KINDS:
        if name in (".", "..") or "/" in name or "%" in name:
            yield invalid("metadata.name", name, "may not contain '/' or '%'")
    elif kind in ("Namespace", "Service"):
        if not DNS_LABEL.fullmatch(name) or len(name) > 63:
            yield invalid("metadata.name", name, LABEL_RULE)
    elif not DNS_SUBDOMAIN.fullmatch(name) or len(name) > 253:
        yield invalid("metadata.name", name, SUBDOMAIN_RULE)
    yield from _labels(metadata.get("labels"), "metadata.labels")
    spec = at(value, "spec")
    if kind in ("Deployment", "ReplicaSet", "Job"):
        yield from _workload(kind, spec)
    elif kind == "Pod":
        yield from _pod_spec(spec, "spec")
    elif kind == "Service":
        yield from _service(spec)
    elif kind == "Secret":
        for key, text in at(value, "data").items():
            try:
                base64.b64decode(str(text), validate=True)
            except binascii.Error:
                yield invalid(f"data[{key}]", "<redacted>", "must be base64")
        if value["type"] == "kubernetes.io/dockerconfigjson" and ".dockerconfigjson" not in at(value, "data"):
            yield required("data[.dockerconfigjson]")
    elif kind == "HorizontalPodAutoscaler":
        if spec.get("maxReplicas", 1) < spec.get("minReplicas", 1):
            yield invalid("spec.maxReplicas", spec["maxReplicas"], "must be greater than or equal to `minReplicas`")
    elif kind == "PodDisruptionBudget":
        if "minAvailable" in spec and "maxUnavailable" in spec:
            yield invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set")
    elif kind == "CustomResourceDefinition":
        plural, group = at(spec, "names").get("plural", ""), spec.get("group", "")
        if name != f"{plural}.{group}":
            yield invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
        if sum(1 for each in many(spec, "versions") if each.get("storage")) != 1:
            yield invalid("spec.versions", "", "must have exactly one version marked as storage version")
        for index, each in enumerate(many(spec, "versions")):
            if not at(each, "schema").get("openAPIV3Schema"):
                yield required(f"spec.versions[{index}].schema.openAPIV3Schema", "schemas are required")


def _labels(labels: Json | None, field: str) -> Iterator[Violation]:
    for key, text in (labels or {}).items():
        prefix, slash, rest = key.rpartition("/")
        if not re.fullmatch(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]", rest) or (
            slash and not DNS_SUBDOMAIN.fullmatch(prefix)
        ):
            yield invalid(
                field,
                key,
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",  # noqa: E501
            )
        if not _LABEL_VALUE.fullmatch(str(text)):
            why = "must be no more than 63 characters" if len(str(text)) > 63 else LABEL_VALUE_RULE
            yield invalid(field, text, why)


def selects(selector: Json | None, labels: Json | None) -> bool:
    """Whether a LabelSelector matches. An absent selector matches nothing, an empty one everything."""
    if selector is None:
        return False
    labels = labels or {}
    for key, text in at(selector, "matchLabels").items():
        if labels.get(key) != text:
            return False
    for each in many(selector, "matchExpressions"):
        present, values = each["key"] in labels, many(each, "values")
        operator = each["operator"]
        if (
            (operator == "In" and (not present or labels[each["key"]] not in values))
            or (operator == "NotIn" and present and labels[each["key"]] in values)
            or (operator == "Exists" and not present)
            or (operator == "DoesNotExist" and present)
        ):
            return False
    return True


def _workload(kind: str, spec: Json) -> Iterator[Violation]:
    template = at(spec, "template")
    labels = at(template, "metadata").get("labels")
    for field in ("replicas", "parallelism", "completions", "backoffLimit", "minReadySeconds", "revisionHistoryLimit"):
        if isinstance(spec.get(field), int) and spec[field] < 0:
            yield invalid(f"spec.{field}", spec[field], "must be greater than or equal to 0")
    if kind != "Job":
        if not selects(spec.get("selector"), labels):
            yield invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
        if spec.get("selector") == {}:
            yield invalid("spec.selector", {}, f"empty selector is invalid for {kind.lower()}")
    strategy = at(spec, "strategy")
    if strategy:
        rolling = strategy.get("rollingUpdate")
        if strategy["type"] not in ("Recreate", "RollingUpdate"):
            yield unsupported("spec.strategy.type", strategy["type"], ["Recreate", "RollingUpdate"])
        elif strategy["type"] == "Recreate" and rolling is not None:
            yield forbidden("spec.strategy.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
        elif rolling and all(str(rolling[field]).rstrip("%") == "0" for field in ("maxSurge", "maxUnavailable")):
            yield invalid(
                "spec.strategy.rollingUpdate.maxUnavailable",
                rolling["maxUnavailable"],
                "may not be 0 when `maxSurge` is 0",
            )
        if spec["progressDeadlineSeconds"] <= spec.get("minReadySeconds", 0):
            yield invalid(
                "spec.progressDeadlineSeconds", spec["progressDeadlineSeconds"], "must be greater than minReadySeconds"
            )
    yield from _labels(labels, "spec.template.metadata.labels")
    yield from _pod_spec(template.get("spec") or {}, "spec.template.spec")
    policy = at(template, "spec").get("restartPolicy")
    if kind == "Job" and policy not in ("OnFailure", "Never"):
        yield (
            required("spec.template.spec.restartPolicy", 'valid values: "OnFailure", "Never"')
            if policy is None
            else (unsupported("spec.template.spec.restartPolicy", policy, ["OnFailure", "Never"]))
        )
    if kind != "Job" and policy != "Always":
        yield unsupported("spec.template.spec.restartPolicy", policy, ["Always"])


def _pod_spec(spec: Json, path: str) -> Iterator[Violation]:
    if spec.get("containers") == []:
        yield required(f"{path}.containers")
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        yield unsupported(f"{path}.restartPolicy", spec.get("restartPolicy"), ["Always", "OnFailure", "Never"])
    volumes: set[str] = set()
    for index, volume in enumerate(many(spec, "volumes")):
        sources = [each for each in _VOLUME_SOURCES if each in volume]
        for each in sources[1:]:
            yield forbidden(f"{path}.volumes[{index}].{each}", "may not specify more than 1 volume type")
        if len(sources) < 2:
            volumes.add(volume.get("name", ""))
    seen: set[str] = set()
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group, ())):
            place = f"{path}.{group}[{index}]"
            name = str(container.get("name", ""))
            if name and (not DNS_LABEL.fullmatch(name) or len(name) > 63):
                yield invalid(f"{place}.name", name, LABEL_RULE)
            if name in seen:
                yield duplicate(f"{place}.name", name)
            seen.add(name)
            if container.get("imagePullPolicy") not in ("Always", "IfNotPresent", "Never"):
                yield unsupported(
                    f"{place}.imagePullPolicy", container.get("imagePullPolicy"), ["Always", "IfNotPresent", "Never"]
                )
            for position, port in enumerate(many(container, "ports")):
                number = port.get("containerPort")
                if isinstance(number, int) and not 0 < number < 65536:
                    yield invalid(
                        f"{place}.ports[{position}].containerPort", number, "must be between 1 and 65535, inclusive"
                    )
            for position, mount in enumerate(many(container, "volumeMounts")):
                if mount.get("name") not in volumes:
                    yield Violation(
                        reason="FieldValueNotFound",
                        field=f"{place}.volumeMounts[{position}].name",
                        message=f"Not found: {json.dumps(mount.get('name'))}",
                    )
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                handlers = set(container.get(probe) or {}) & {"httpGet", "tcpSocket", "exec", "grpc"}
                if container.get(probe) is not None and len(handlers) != 1:
                    yield (
                        forbidden(f"{place}.{probe}", "may not specify more than 1 handler type")
                        if handlers
                        else required(f"{place}.{probe}", "must specify a handler type")
                    )
            resources = at(container, "resources")
            for what, amount in at(resources, "requests").items():
                limit = at(resources, "limits").get(what)
                if limit is not None and amount_of(amount) > amount_of(limit):
                    yield invalid(
                        f"{place}.resources.requests", amount, f"must be less than or equal to {what} limit of {limit}"
                    )


def amount_of(quantity: str) -> float:
    """A canonical quantity as a number."""
    found = re.fullmatch(r"([0-9.+-]+)([A-Za-z]*)(-?[0-9]*)", quantity)
    if not found:
        return 0.0
    binary = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
    decimal = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    scale = (
        1024 ** binary[found[2]]
        if found[2] in binary
        else 10.0 ** (int(found[3]) if found[3] else decimal.get(found[2], 0))
    )
    return float(found[1]) * scale


def _service(spec: Json) -> Iterator[Violation]:
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    if spec["type"] not in kinds:
        yield unsupported("spec.type", spec["type"], kinds)
    ports = many(spec, "ports")
    if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
        yield required("spec.ports")
    names: set[str] = set()
    for index, port in enumerate(ports):
        name, number = str(port.get("name", "")), port.get("port")
        if len(ports) > 1 and not name:
            yield required(f"spec.ports[{index}].name")
        if name and name in names:
            yield duplicate(f"spec.ports[{index}].name", name)
        names.add(name)
        if isinstance(number, int) and not 0 < number < 65536:
            yield invalid(f"spec.ports[{index}].port", number, "must be between 1 and 65535, inclusive")
        if port.get("protocol") not in ("TCP", "UDP", "SCTP"):
            yield unsupported(f"spec.ports[{index}].protocol", port.get("protocol"), ["SCTP", "TCP", "UDP"])


# ---------------------------------------------------------------- changes


def changes_refused(kind: str, old: Json, new: Json) -> Iterator[Violation]:
    """Reasons to refuse an update: what may not change once set."""
    before, after = at(old, "spec"), at(new, "spec")
    immutable = "field is immutable"
    if kind in ("Deployment", "ReplicaSet") and before.get("selector") != after.get("selector"):
        yield invalid("spec.selector", after.get("selector"), immutable)
    elif kind == "Job":
        for field in ("selector", "template", "completions"):
            if before.get(field) != after.get(field):
                yield invalid(f"spec.{field}", after.get(field), immutable)
    elif kind == "Pod":
        if _fixed_part(before) != _fixed_part(after):
            yield forbidden(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"  # noqa: E501
                "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n",
            )
    elif kind == "Service":
        asked, given = after.get("clusterIP"), before.get("clusterIP")
        if asked and given and asked != given and "ExternalName" not in (after.get("type"), before.get("type")):
            yield invalid("spec.clusterIPs[0]", [asked], "may not change once set")
    elif kind in ("ConfigMap", "Secret"):
        if kind == "Secret" and old.get("type") != new.get("type"):
            yield invalid("type", new.get("type"), immutable)
        if old.get("immutable"):
            fields = ("data", "binaryData") if kind == "ConfigMap" else ("data",)
            if not new.get("immutable"):
                yield forbidden("immutable", "field is immutable when `immutable` is set")
            for field in fields:
                if old.get(field) != new.get(field):
                    yield forbidden(field, "field is immutable when `immutable` is set")
    elif kind in ("RoleBinding", "ClusterRoleBinding"):
        if old.get("roleRef") != new.get("roleRef"):
            yield invalid("roleRef", new.get("roleRef"), "cannot change roleRef")
    elif kind == "CustomResourceDefinition":
        for field in ("group", "scope"):
            if before.get(field) != after.get(field):
                yield invalid(f"spec.{field}", after.get(field), immutable)


def _fixed_part(spec: Json) -> Json:
    free = {"activeDeadlineSeconds", "tolerations", "nodeName", "initContainers", "containers"}
    fixed = {name: each for name, each in spec.items() if name not in free}
    for group in ("initContainers", "containers"):
        fixed[group] = [each | {"image": ""} for each in spec.get(group, ())]
    return fixed
