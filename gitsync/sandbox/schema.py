"""Field schemas: what an object of a kind may hold, for built-in kinds and custom resources alike.

Built-in kinds borrow names, types, required fields and descriptions from kubernetes_asyncio's generated models, which
are read as data (nothing is ever sent through them). What those models do not tell — list keys, atomic fields, Go's
zero values — is the small table at the top, from the ``x-kubernetes-*`` extensions of Kubernetes' OpenAPI document.
Never reads or changes stored objects.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Literal, cast

from kubernetes_asyncio.client import models

Json = dict[str, Any]
Path = tuple[str | int, ...]

#: Associative lists: "Model.field" → key fields. Lists that are not here (nor in SETS) are atomic.
KEYS: Mapping[str, tuple[str, ...]] = {
    "V1PodSpec.containers": ("name",),
    "V1PodSpec.initContainers": ("name",),
    "V1PodSpec.ephemeralContainers": ("name",),
    "V1PodSpec.volumes": ("name",),
    "V1PodSpec.imagePullSecrets": ("name",),
    "V1PodSpec.hostAliases": ("ip",),
    "V1PodSpec.resourceClaims": ("name",),
    "V1PodSpec.schedulingGates": ("name",),
    "V1PodSpec.topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "V1Container.env": ("name",),
    "V1Container.ports": ("containerPort", "protocol"),
    "V1Container.volumeMounts": ("mountPath",),
    "V1Container.volumeDevices": ("devicePath",),
    "V1ResourceRequirements.claims": ("name",),
    "V1ServiceSpec.ports": ("port", "protocol"),
    "V1ServiceAccount.secrets": ("name",),
    "V1ObjectMeta.ownerReferences": ("uid",),
    "V1PodStatus.podIPs": ("ip",),
    "V1HorizontalPodAutoscalerStatus.conditions": ("type",),
    **{
        f"V1{kind}Status.conditions": ("type",)
        for kind in ("Pod", "Deployment", "ReplicaSet", "Namespace", "Node", "Service", "PodDisruptionBudget")
    },
    "V2HorizontalPodAutoscalerStatus.conditions": ("type",),
    "V1CustomResourceDefinitionStatus.conditions": ("type",),
    "V1NodeStatus.addresses": ("type",),
}
SETS = {"V1ObjectMeta.finalizers", "V1NodeSpec.podCIDRs"}
ATOMIC_MODELS = {
    "V1LabelSelector", "V1ObjectReference", "V1LocalObjectReference", "V1SecretKeySelector", "V1ConfigMapKeySelector",
    "V1ObjectFieldSelector", "V1ResourceFieldSelector", "V1NodeSelector", "V1NodeSelectorTerm", "V1RoleRef",
    "V1TypedLocalObjectReference", "V1SecretReference",
}  # fmt: skip
ATOMIC_FIELDS = {"V1PodSpec.nodeSelector", "V1ServiceSpec.selector"}
#: Fields whose Go type is no pointer: their zero value disappears when the API server decodes the object.
ZERO_OMITTED = {
    "hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty", "readOnly", "paused", "publishNotReadyAddresses",
    "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold",
    "minReadySeconds", "hostPort", "nodePort", "healthCheckNodePort", "observedGeneration", "fullyLabeledReplicas",
    "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas", "active", "succeeded", "failed",
}  # fmt: skip
#: Strings whose Go type is a pointer: an empty one is kept. Every other empty string disappears.
EMPTY_KEPT = {"ingressClassName", "storageClassName", "loadBalancerClass", "appProtocol", "holderIdentity", "service"}
#: Lists without omitempty: kept even when empty.
EMPTY_LIST_KEPT = {"containers", "rules"}
QUANTITY_MAPS = {"limits", "requests", "capacity", "allocatable", "hard", "used", "overhead"}
QUANTITIES = {"sizeLimit", "divisor", "averageValue", "value@V2MetricTarget"}
#: Required by validation although the OpenAPI document does not say so, and the other way round.
REQUIRED_EXTRA = {"V1Container": {"image"}, "V1JobSpec": {"template"}, "V1ServiceSpec": {"ports"}}
REQUIRED_NOT = {"V1ServiceSpec": {"ports"}, "V1EndpointSlice": {"endpoints"}}


class Schema:
    """One node. ``fields`` and ``required`` of an object are computed when first looked at."""

    __slots__ = ("_load", "atomic", "item", "keys", "kind", "open", "raw", "text", "title", "unique", "zero_kept")

    def __init__(
        self,
        kind: Literal["object", "map", "list", "string", "integer", "number", "boolean", "any", "int-or-string",
                      "quantity", "bytes", "time"],
        *,
        load: "Callable[[], tuple[dict[str, Schema], frozenset[str]]] | None" = None,
        item: "Schema | None" = None,
        keys: tuple[str, ...] = (),
        unique: bool = False,
        atomic: bool = False,
        open_: bool = False,
        raw: Json | None = None,
        title: str = "",
        text: Callable[[str], str] | None = None,
        zero_kept: bool = True,
    ) -> None:  # fmt: skip
        self.kind = kind
        self._load = cache(load) if load else None
        self.item = item
        self.keys = keys
        self.unique = unique
        self.atomic = atomic
        self.open = open_
        self.raw = raw
        self.title = title
        self.text = text
        self.zero_kept = zero_kept

    @property
    def fields(self) -> "Mapping[str, Schema]":
        return self._load()[0] if self._load else {}

    @property
    def required(self) -> frozenset[str]:
        return self._load()[1] if self._load else frozenset()

    @property
    def associative(self) -> bool:
        """A list that merges item by item (by key or by value) instead of as one value."""
        return bool(self.keys) or self.unique

    def child(self, name: str) -> "Schema":
        """The schema below a field; ``ANY`` where nothing is declared."""
        if self.kind == "object" and (found := self.fields.get(name)) is not None:
            return found
        return self.item or ANY

    def named(self, name: str) -> bool:
        """Whether the field is declared, rather than a key of a map."""
        return self.kind == "object" and name in self.fields


ANY = Schema("any", open_=True)
STRING = Schema("string", zero_kept=False)


# ---------------------------------------------------------------- built-in kinds


@cache
def builtin(model: str) -> Schema:
    """The schema of one generated model, e.g. ``V1Deployment``."""

    def load() -> tuple[dict[str, Schema], frozenset[str]]:
        cls = getattr(models, model)
        names = cast("dict[str, str]", cls.attribute_map)
        fields: dict[str, Schema] = {}
        required: set[str] = set(REQUIRED_EXTRA.get(model, ()))
        for attribute, type_name in cast("dict[str, str]", cls.openapi_types).items():
            name = names[attribute]
            fields[name] = _field(model, name, type_name)
            # The generated setter refuses None for a required field: its message is the one trace of `required`.
            constants = cast("tuple[object, ...]", getattr(cls, attribute).fset.__code__.co_consts)
            if any(isinstance(each, str) and "must not be `None`" in each for each in constants):
                required.add(name)
        return fields, frozenset(required - REQUIRED_NOT.get(model, set()))

    def text(field: str) -> str:
        cls = getattr(models, model)
        attribute = {name: attribute for attribute, name in cls.attribute_map.items()}.get(field, "")
        lines = str(getattr(cls, attribute).__doc__ or "").split("\n\n") if attribute else []
        return lines[1].split("  # noqa")[0].strip() if len(lines) > 1 else ""

    return Schema("object", load=load, atomic=model in ATOMIC_MODELS, title=model, text=text)


def _field(model: str, name: str, type_name: str) -> Schema:
    place = f"{model}.{name}"
    scalars: dict[str, Literal["string", "boolean", "number", "integer", "time"]] = {
        "str": "string", "bool": "boolean", "float": "number", "int": "integer", "datetime": "time",
    }  # fmt: skip
    if name in QUANTITIES or f"{name}@{model}" in QUANTITIES:
        return Schema("quantity")
    if type_name in scalars:
        kind = scalars[type_name]
        kept = name in EMPTY_KEPT if kind == "string" else name not in ZERO_OMITTED
        return Schema(kind, zero_kept=kept)
    if type_name == "object":
        structured = model.endswith(("JSONSchemaProps", "ManagedFieldsEntry", "SubresourceStatus"))
        return ANY if structured or model == "V1CustomResourceSubresources" else Schema("int-or-string")
    if found := re.fullmatch(r"list\[(.+)\]", type_name):
        keys = KEYS.get(place, ())
        unique = place in SETS
        return Schema("list", item=_field(model, "", found[1]), keys=keys, unique=unique, atomic=not (keys or unique))
    if found := re.fullmatch(r"dict\(str, (.+)\)", type_name):
        item = Schema("quantity") if name in QUANTITY_MAPS else _field(model, "", found[1])
        if item.kind == "string":
            item = Schema("bytes" if place == "V1Secret.data" else "string")
        return Schema("map", item=item, atomic=place in ATOMIC_FIELDS)
    return builtin(type_name)


# ---------------------------------------------------------------- custom resources


def structural(raw: Json, *, top: bool = False) -> Schema:
    """The schema of a CustomResourceDefinition's ``openAPIV3Schema``; ``top`` adds apiVersion, kind and metadata."""
    kind = raw.get("type")
    if raw.get("x-kubernetes-int-or-string"):
        return Schema("int-or-string", raw=raw)
    if kind == "array":
        how = raw.get("x-kubernetes-list-type", "atomic")
        keys = tuple(raw.get("x-kubernetes-list-map-keys", ())) if how == "map" else ()
        item = structural(raw.get("items") or {})
        return Schema("list", item=item, keys=keys, unique=how == "set", atomic=how == "atomic", raw=raw)
    if kind == "object" or (kind is None and "properties" in raw):
        atomic = raw.get("x-kubernetes-map-type") == "atomic"
        extra = raw.get("additionalProperties")
        if isinstance(extra, dict):
            return Schema("map", item=structural(cast("Json", extra)), atomic=atomic, raw=raw)
        open_ = bool(raw.get("x-kubernetes-preserve-unknown-fields")) or extra is True

        def load() -> tuple[dict[str, Schema], frozenset[str]]:
            fields = {name: structural(each) for name, each in at(raw, "properties").items()}
            if top or raw.get("x-kubernetes-embedded-resource"):
                fields |= {"apiVersion": STRING, "kind": STRING, "metadata": builtin("V1ObjectMeta")}
            return fields, frozenset(raw.get("required", ()))

        def text(field: str) -> str:
            return str(at(raw, "properties", field).get("description", ""))

        return Schema("object", load=load, atomic=atomic, open_=open_, raw=raw, text=text)
    if kind in ("string", "integer", "number", "boolean"):
        return Schema(cast("Any", kind), raw=raw)
    return Schema("any", open_=True, raw=raw)


def fill_defaults(value: Any, schema: Schema) -> Any:
    """A custom resource with its schema's ``default`` values filled in; a null that has a default becomes it."""
    if isinstance(value, dict) and schema.kind in ("object", "map"):
        given = cast("Json", value)
        out = {name: fill_defaults(each, schema.child(name)) for name, each in given.items()}
        for name, each in schema.fields.items():
            if each.raw and "default" in each.raw and out.get(name) is None:
                out[name] = fill_defaults(copy(each.raw["default"]), each)
        return out
    if isinstance(value, list) and schema.kind == "list" and schema.item:
        return [fill_defaults(each, schema.item) for each in cast("list[Any]", value)]
    return cast("Any", value)


# ---------------------------------------------------------------- checking


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``what``: "unknown" (an undeclared field), "type", "required" or "invalid" (a constraint of a custom schema)."""

    what: Literal["unknown", "type", "required", "invalid", "unsupported", "duplicate", "long"]
    path: Path
    message: str = ""
    expected: str = ""
    got: Any = None

    @property
    def field(self) -> str:
        return dotted(self.path)


def dotted(path: Path) -> str:
    """``spec.containers[0].image``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


_PYTHON = {"string": str, "bytes": str, "time": str, "boolean": bool, "object": dict, "map": dict, "list": list}


def check(value: Any, schema: Schema, path: Path = ()) -> Iterator[Problem]:
    """Unknown fields and wrong types. A null fits everywhere, as in Kubernetes' own decoding."""
    kind = schema.kind
    if value is None or kind == "any":
        return
    if kind in ("integer", "number"):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if good and kind == "integer":
            good = float(value).is_integer()
    elif kind in ("int-or-string", "quantity"):
        good = isinstance(value, (str, int)) or (kind == "quantity" and isinstance(value, float))
        good = good and not isinstance(value, bool)
        if good and kind == "quantity":
            try:
                quantity(value)
            except ValueError as error:
                yield Problem(what="type", path=path, expected="quantity", got=value, message=str(error))
                return
    else:
        good = isinstance(value, _PYTHON[kind])
    if not good:
        yield Problem(what="type", path=path, expected=kind, got=value)
    elif kind == "list" and schema.item:
        for index, each in enumerate(cast("list[Any]", value)):
            yield from check(each, schema.item, (*path, index))
    elif kind == "map" and schema.item:
        for name, each in cast("Json", value).items():
            yield from check(each, schema.item, (*path, name))
    elif kind == "object":
        fields = schema.fields
        for name, each in cast("Json", value).items():
            if (found := fields.get(name)) is not None:
                yield from check(each, found, (*path, name))
            elif not schema.open:
                yield Problem(what="unknown", path=(*path, name))


def missing(value: Any, schema: Schema, path: Path = ()) -> Iterator[Problem]:
    """Required fields that are absent or null, at every level that is present."""
    if schema.kind == "object" and isinstance(value, dict):
        given = cast("Json", value)
        for name in sorted(schema.required):
            # A null in a custom resource is there, and of the wrong type.
            if name not in given or (schema.raw is None and given[name] in (None, "")):
                yield Problem(what="required", path=(*path, name))
        for name, each in given.items():
            yield from missing(each, schema.child(name), (*path, name))
    elif schema.kind == "map" and isinstance(value, dict) and schema.item:
        for name, each in cast("Json", value).items():
            yield from missing(each, schema.item, (*path, name))
    elif schema.kind == "list" and isinstance(value, list) and schema.item:
        for index, each in enumerate(cast("list[Any]", value)):
            yield from missing(each, schema.item, (*path, index))


def nulls(value: Any, schema: Schema, path: Path = ()) -> Iterator[Problem]:
    """Nulls in a custom resource where its schema has a type and does not say ``nullable``."""
    if value is None:
        if schema.raw is not None and schema.kind != "any" and not schema.raw.get("nullable"):
            yield Problem(what="type", path=path, expected=schema.kind)
    elif isinstance(value, dict):
        for name, each in cast("Json", value).items():
            yield from nulls(each, schema.child(name), (*path, name))
    elif isinstance(value, list) and schema.item:
        for index, each in enumerate(cast("list[Any]", value)):
            yield from nulls(each, schema.item, (*path, index))


def without_nulls(value: Any, schema: Schema) -> Any:
    """A custom resource as it is decoded: nulls go where the schema has a type, no default and no ``nullable``."""
    if isinstance(value, dict):
        found = cast("Json", value)
        return {
            name: without_nulls(each, schema.child(name))
            for name, each in found.items()
            if each is not None
            or "default" in (schema.child(name).raw or {})
            or not any(nulls(None, schema.child(name)))
        }
    if isinstance(value, list) and schema.item:
        return [without_nulls(each, schema.item) for each in cast("list[Any]", value)]
    return cast("Any", value)


def constraints(value: Any, schema: Schema, path: Path = ()) -> Iterator[Problem]:
    """The value rules of a custom schema: enum, pattern, bounds, lengths, unique items."""
    raw = schema.raw or {}
    if value is None:
        return
    place = dotted(path)

    def wrong(rule: str) -> Problem:
        return Problem(what="invalid", path=path, got=value, message=f"{place} in body {rule}")

    if "enum" in raw and value not in raw["enum"]:
        allowed = ", ".join(f'"{each}"' for each in raw["enum"])
        yield Problem(what="unsupported", path=path, got=value, message=f"supported values: {allowed}")
    if isinstance(value, str):
        if "pattern" in raw and not re.search(raw["pattern"], value):
            yield wrong(f"should match '{raw['pattern']}'")
        if len(value) < raw.get("minLength", 0):
            yield wrong(f"should be at least {raw['minLength']} chars long")
        if len(value) > raw.get("maxLength", math.inf):
            yield Problem(what="long", path=path, message=f"may not be more than {raw['maxLength']} bytes", got=value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < raw.get("minimum", -math.inf):
            yield wrong(f"should be greater than or equal to {raw['minimum']}")
        if value > raw.get("maximum", math.inf):
            yield wrong(f"should be less than or equal to {raw['maximum']}")
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        if len(items) < raw.get("minItems", 0):
            yield wrong(f"should have at least {raw['minItems']} items")
        if len(items) > raw.get("maxItems", math.inf):
            yield Problem(
                what="invalid", path=path, got=len(items), message=f"must have at most {raw['maxItems']} items"
            )
        seen: list[Any] = []
        for index, each in enumerate(items):
            if schema.associative:
                key = {name: each.get(name) for name in schema.keys} if schema.keys else each
                if key in seen:
                    yield Problem(what="duplicate", path=(*path, index), got=key)
                seen.append(key)
            if schema.item:
                yield from constraints(each, schema.item, (*path, index))
    elif isinstance(value, dict):
        for name, each in cast("Json", value).items():
            yield from constraints(each, schema.child(name), (*path, name))


# ---------------------------------------------------------------- one form of a value


def at(value: Mapping[str, Any], *names: str) -> Json:
    """The object below some names; ``{}`` where there is none."""
    node: Any = value
    for name in names:
        node = cast("Json", node).get(name) if isinstance(node, dict) else None
    return cast("Json", node) if isinstance(node, dict) else {}


def many(value: Mapping[str, Any], name: str) -> list[Any]:
    """The list under a name; ``[]`` where there is none."""
    found = value.get(name)
    return cast("list[Any]", found) if isinstance(found, list) else []


def copy(value: Any) -> Any:
    """A deep copy of JSON, several times faster than ``copy.deepcopy``."""
    if isinstance(value, dict):
        return {name: copy(each) for name, each in cast("Json", value).items()}
    if isinstance(value, list):
        return [copy(each) for each in cast("list[Any]", value)]
    return value


def prune(value: Any, schema: Schema) -> Any:
    """Without undeclared fields, as storage keeps it."""
    if isinstance(value, dict) and schema.kind in ("object", "map"):
        return {
            name: prune(each, schema.child(name))
            for name, each in cast("Json", value).items()
            if schema.kind == "map" or schema.open or schema.named(name)
        }
    if isinstance(value, list) and schema.kind == "list" and schema.item:
        return [prune(each, schema.item) for each in cast("list[Any]", value)]
    return cast("Any", value)


def normal(value: Any, schema: Schema) -> Any:
    """As a built-in object comes out of the server's decoding: no nulls, no omitted zero values, one form of quantity.

    Custom resources keep what they hold, apart from their metadata: they are never decoded into a struct.
    """
    if schema.kind == "quantity":
        return quantity(value)
    if schema.raw is not None:
        if "metadata" in schema.fields and isinstance(value, dict):
            custom = cast("Json", value)
            return custom | {"metadata": normal(custom.get("metadata") or {}, schema.fields["metadata"])}
        return value
    if schema.kind in ("object", "map") and isinstance(value, dict):
        out: Json = {}
        for name, each in cast("Json", value).items():
            below = schema.child(name)
            if each is None and schema.kind == "map" and below.kind in ("string", "bytes"):
                each = ""  # Go decodes a null in map[string]string as its zero value
            each = normal(each, below)
            if each is None or (each == [] and name not in EMPTY_LIST_KEPT):
                continue
            if each == {} and below.kind == "map":
                continue
            if not below.zero_kept and each in ("", 0, False):
                continue
            out[name] = each
        return out
    if schema.kind == "list" and isinstance(value, list) and schema.item:
        return [normal(each, schema.item) for each in cast("list[Any]", value) if each is not None]
    if schema.kind == "integer" and isinstance(value, float):
        return int(value)
    return cast("Any", value)


_SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


@cache
def quantity(value: str | int | float) -> str:
    """A resource quantity in Kubernetes' canonical form: "1000m" → "1", "1024Mi" → "1Gi". ``ValueError`` if none."""
    found = re.fullmatch(r"([+-]?[0-9.]+)(?:([KMGTPE]i)|([numkMGTPE]?)|[eE]([+-]?[0-9]+))", str(value))
    try:
        number = Decimal(found[1]) if found else Decimal("nan")
    except InvalidOperation:
        found = None
        number = Decimal(0)
    if found is None:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    if found[2]:
        power, amount = _BINARY[found[2]], number * 1024 ** _BINARY[found[2]]
        if amount == amount.to_integral() and abs(amount) >= 1024:
            power, whole = 0, int(amount)
            while whole and whole % 1024 == 0 and power < 6:
                whole, power = whole // 1024, power + 1
            return f"{whole}{['', *_BINARY][power]}"
        number = amount
    exponent = int(found[4]) if found[4] else _SUFFIXES[found[3] or ""]
    number = number if found[2] else number * Decimal(10) ** exponent
    if not number:
        return "0"
    if found[4]:
        steps, style = range(18, -10, -3), {step: f"e{step}" if step else "" for step in range(-9, 19, 3)}
    else:
        steps, style = range(18, -10, -3), {step: suffix for suffix, step in _SUFFIXES.items()}
    for step in steps:
        scaled = number / Decimal(10) ** step
        if scaled == scaled.to_integral():
            return f"{int(scaled)}{style[step]}"
    return f"{math.ceil(number * 10**9)}n"


# ---------------------------------------------------------------- OpenAPI


def openapi(schema: Schema, found: dict[str, Json], prefix: str) -> Json:
    """The node as an OpenAPI v3 schema; built-in structures are put into ``found`` and referred to."""
    if schema.title:
        if schema.title not in found:
            found[schema.title] = {}
            found[schema.title].update(_object(schema, found, prefix))
        return {"$ref": f"{prefix}{schema.title}"}
    if schema.kind == "object":
        return _object(schema, found, prefix)
    description = {"description": schema.raw["description"]} if schema.raw and "description" in schema.raw else {}
    if schema.kind == "list" and schema.item:
        out: Json = {"type": "array", "items": openapi(schema.item, found, prefix)}
        if schema.keys:
            out |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(schema.keys)}
            out |= {"x-kubernetes-patch-merge-key": schema.keys[0], "x-kubernetes-patch-strategy": "merge"}
        elif schema.atomic:
            out |= {"x-kubernetes-list-type": "atomic"}
        return out | description
    if schema.kind == "map" and schema.item:
        return {"type": "object", "additionalProperties": openapi(schema.item, found, prefix)} | description
    if schema.kind in ("any", "int-or-string"):
        open_ = {"x-kubernetes-preserve-unknown-fields": True} if schema.kind == "any" else {}
        return {"x-kubernetes-int-or-string": True} if not open_ else open_ | description
    formats = {"time": {"type": "string", "format": "date-time"}, "bytes": {"type": "string", "format": "byte"}}
    return formats.get(schema.kind, {"type": "string" if schema.kind == "quantity" else schema.kind}) | description


def _object(schema: Schema, found: dict[str, Json], prefix: str) -> Json:
    properties: Json = {}
    for name, each in schema.fields.items():
        below = openapi(each, found, prefix)
        text = schema.text(name) if schema.text else ""
        if "$ref" in below and text:
            below = {"allOf": [below]}
        properties[name] = (below | {"description": text}) if text else below
    out: Json = {"type": "object", "properties": properties}
    if schema.required:
        out["required"] = sorted(schema.required)
    text = (schema.raw or {}).get("description") or (
        (getattr(models, schema.title).__doc__ or "").strip().split("\n")[0] if schema.title else ""
    )
    if text and not text.startswith("NOTE: This class"):
        out["description"] = text
    return out
