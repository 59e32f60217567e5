"""What ``kubectl create`` sends: it speaks protobuf only, whatever the server says it reads. Pure.

Holds the fields that its subcommands can set, by number, for the kinds that are served. Anything else is refused, never
left out.
"""

import base64
from collections.abc import Iterator
from typing import Any, cast

Json = dict[str, Any]

_MAGIC = b"k8s\x00"
_TEMPLATED = "1 metadata ObjectMeta, 2 spec {kind}Spec, 3 status Nothing"
#: Number, name and type of each field. ``*``: a list. ``=``: an integer that counts also when it is 0.
_MESSAGES: dict[str, dict[int, tuple[str, str]]] = {
    kind: {int(each.split()[0]): (each.split()[1], each.split()[2]) for each in filter(None, text.split(", "))}
    for kind, text in {
        "Nothing": "",
        "Unknown": "1 typeMeta TypeMeta, 2 raw bytes, 3 contentEncoding str, 4 contentType str",
        "TypeMeta": "1 apiVersion str, 2 kind str",
        "ObjectMeta": "1 name str, 2 generateName str, 3 namespace str, 11 labels map, 12 annotations map",
        "Namespace": "1 metadata ObjectMeta, 2 spec Nothing, 3 status Nothing",
        "ConfigMap": "1 metadata ObjectMeta, 2 data map, 3 binaryData bytesmap, 4 immutable bool",
        "Secret": "1 metadata ObjectMeta, 2 data bytesmap, 3 type str, 4 stringData map, 5 immutable bool",
        "ServiceAccount": "1 metadata ObjectMeta",
        "Service": _TEMPLATED.format(kind="Service"),
        "ServiceSpec": "1 ports *ServicePort, 2 selector map, 3 clusterIP str, 4 type str, 10 externalName str",
        "ServicePort": "1 name str, 2 protocol str, 3 port int, 4 targetPort IntOrString, 5 nodePort int",
        "IntOrString": "1 type int, 2 number int, 3 text str",
        "Deployment": _TEMPLATED.format(kind="Deployment"),
        "DeploymentSpec": "1 replicas =int, 2 selector LabelSelector, 3 template PodTemplateSpec, 4 strategy Nothing",
        "LabelSelector": "1 matchLabels map",
        "PodTemplateSpec": "1 metadata ObjectMeta, 2 spec PodSpec",
        "PodSpec": "2 containers *Container, 3 restartPolicy str",
        "Container": "1 name str, 2 image str, 3 command *str, 4 args *str, 6 ports *ContainerPort, "
        "8 resources Nothing",
        "ContainerPort": "1 name str, 2 hostPort int, 3 containerPort int, 4 protocol str",
        "Job": _TEMPLATED.format(kind="Job"),
        "JobSpec": "6 template PodTemplateSpec",
        "PodDisruptionBudget": _TEMPLATED.format(kind="PodDisruptionBudget"),
        "PodDisruptionBudgetSpec": "1 minAvailable IntOrString, 2 selector LabelSelector, 3 maxUnavailable IntOrString",
        "Role": "1 metadata ObjectMeta, 2 rules *PolicyRule",
        "ClusterRole": "1 metadata ObjectMeta, 2 rules *PolicyRule, 3 aggregationRule AggregationRule",
        "AggregationRule": "1 clusterRoleSelectors *LabelSelector",
        "PolicyRule": "1 verbs *str, 2 apiGroups *str, 3 resources *str, 4 resourceNames *str, 5 nonResourceURLs *str",
        "RoleBinding": "1 metadata ObjectMeta, 2 subjects *Subject, 3 roleRef RoleRef",
        "ClusterRoleBinding": "1 metadata ObjectMeta, 2 subjects *Subject, 3 roleRef RoleRef",
        "Subject": "1 kind str, 2 apiGroup str, 3 name str, 4 namespace str",
        "RoleRef": "1 apiGroup str, 2 kind str, 3 name str",
    }.items()
}


class Unreadable(Exception):
    """No protobuf, or something in it that is not known here."""


def decode(raw: bytes) -> Json:
    """The object in a body of ``application/vnd.kubernetes.protobuf``. ``Unreadable`` unless all of it is known."""
    if not raw.startswith(_MAGIC):
        raise Unreadable("it does not begin as Kubernetes' protobuf does")
    try:
        outer = _message("Unknown", raw[len(_MAGIC) :])
        kind: Json = outer["typeMeta"]
        return kind | _message(kind["kind"], base64.b64decode(outer["raw"]))
    except (KeyError, IndexError, UnicodeDecodeError) as error:
        raise Unreadable(f"no object of a known kind: {error}") from error


def _message(kind: str, raw: bytes) -> Json:
    fields, found = _MESSAGES[kind], cast("Json", {})
    for number, each in _fields(raw):
        name, what = fields.get(number, ("", ""))
        many, what = what.startswith("*"), what.lstrip("*")
        if not what:
            if each:
                raise Unreadable(f"field {number} of {kind}")
            continue
        value = _value(what, each)
        if many:
            found.setdefault(name, []).append(value)
        elif what in ("map", "bytesmap"):
            found.setdefault(name, {}).update(value)
        elif value or isinstance(value, dict) or what == "=int":
            found[name] = value
    return found


def _value(what: str, raw: int | bytes) -> Any:
    if isinstance(raw, int):
        return bool(raw) if what == "bool" else raw
    if what == "str":
        return raw.decode()
    if what == "bytes":
        return base64.b64encode(raw).decode()
    if what in ("map", "bytesmap"):
        entry = dict(_fields(raw))
        return {_value("str", entry.get(1, b"")): _value(what.removesuffix("map") or "str", entry.get(2, b""))}
    value = _message(what, raw)
    if what == "IntOrString":
        return value.get("text", "") if value.get("type") else value.get("number", 0)
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field as it stands on the wire: integers, and what has a length."""
    at = 0
    while at < len(raw):
        key, at = _integer(raw, at)
        value, at = _integer(raw, at)
        if key & 7 == 2:
            if at + value > len(raw):
                raise Unreadable("it ends in the middle of a field")
            yield key >> 3, raw[at : at + value]
            at += value
        elif key & 7 == 0:
            yield key >> 3, value
        else:
            raise Unreadable(f"field {key >> 3} has a type that Kubernetes does not use")


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
