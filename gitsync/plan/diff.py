"""What differs between what git says and what the cluster holds, field by field. Pure: JSON in, paths and values out.

Only the fields *we send* are compared: what the server, a webhook or an autoscaler adds beside them is not ours to
judge. Lists that the Kubernetes API merges by a key (containers by name, ports by number and protocol) are compared by
that key, every other list as a whole. Paths print as ``spec.template.spec.containers[name=web].image``; a key that is
no plain word stands in brackets, ``metadata.labels[app.kubernetes.io/name]``, as in ``Manifest.lines``.

Two comparisons with two purposes:

- ``diff`` sets git beside the cluster. They were written by different hands, so spellings of the same value (``1000m``
  and ``1``, absent and empty) are equal.
- ``drifted`` and ``owned_digest`` set the server's answer to our last apply beside what it answers now. Both were
  written by the server, so nothing is forgiven, and defaults and mutating webhooks cancel out.

A value of a Secret never leaves this module: it is masked before it reaches a ``FieldChange``.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, cast

import orjson

from gitsync.model import FIELD_MANAGER, FieldChange, Json, JsonValue

# ---------------------------------------------------------------- public


def diff(desired: Json, live: Json | None, *, secret: bool) -> tuple[FieldChange, ...]:
    """What applying ``desired`` would set: ``before`` is live, ``after`` is wanted. In the order of the manifest.

    ``live=None``: all of it is new. ``secret=True`` masks every value outside ``metadata``.
    """
    schema = _Schema.of(desired)
    sent = _sendable(desired)
    wanted = cast(Json, _project(sent, sent, schema, ()))
    found = cast(Json, _project(sent, _sendable(live) if live else {}, schema, ()))
    changes: list[FieldChange] = []
    _compare(found, wanted, "", (), lambda fields, a, b: _equivalent(a, b, fields, schema), changes, schema)
    return _masked(changes, secret=secret)


def removed(
    desired: Json, live: Json, *, secret: bool, before: Iterable[Json] = (), manager: str = FIELD_MANAGER
) -> tuple[FieldChange, ...]:
    """What applying ``desired`` would take away: what ``manager`` applied before, alone, and git no longer says.

    Server-side apply decides by managedFields; so does this. Only the highest removed path is named. Of what one owner
    has as a whole (a Role's rules) they do not name the parts; there, what is in neither ``desired`` nor one of the
    objects that were sent ``before`` is the server's own default.
    """
    schema = _Schema.of(desired)
    sent = cast(Json, _project(_sendable(desired), _sendable(desired), schema, ()))
    kept = {path for path, _ in _walk(sent, "")}
    mine: dict[str, bool] = {}
    others: dict[str, bool] = {}
    for entry in _managed(live):
        own = entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource")
        (mine if own else others).update(_owned_paths(entry.get("fieldsV1"), schema))
    found = cast(Json, _project(live, live, schema, ()))
    values = dict(_walk(found, ""))
    gone: list[str] = []
    for path in sorted(mine.keys() - others.keys() - kept):
        if path in values and not any(_inside(path, other) for other in gone):
            gone.append(path)
    wholes = [path for path, leaf in mine.items() if leaf]
    parts: dict[str, JsonValue] = {}
    for earlier in before:
        if earlier != desired:
            was = _project(_sendable(earlier), _sendable(earlier), schema, ())
            parts |= _left_out(was, sent, found, "", (), schema)
    for path, value in parts.items():
        if any(_inside(path, whole) for whole in wholes) and not any(_inside(path, other) for other in gone):
            values[path] = value
            gone.append(path)
    return _masked([FieldChange(path=path, before=_plain(values[path])) for path in gone], secret=secret)


def owned_digest(sent: Json, reply: Json) -> str:
    """64 hex digits that stand for the values, in ``reply``, of the fields in ``sent``; order of keys is no matter."""
    projected = _project(_sendable(sent), reply, _Schema.of(sent)._replace(exact=True), ())
    return hashlib.sha256(orjson.dumps(projected, option=orjson.OPT_SORT_KEYS)).hexdigest()


def drifted(sent: Json, reply: Json, live: Json) -> tuple[FieldChange, ...]:
    """What somebody else has changed since our apply, in the fields of ``sent``: ``before`` is ours, ``after`` theirs.

    ``reply`` is the server's answer to that apply (where it is not at hand, ``sent`` itself: then what the server has
    added to a list cannot be told from what somebody else has). Values of a Secret are masked.
    """
    schema, ours = _Schema.of(sent)._replace(exact=reply is not sent), _sendable(sent)
    before = cast(Json, _project(ours, reply, schema, ()))
    after = cast(Json, _project(ours, live, schema, ()))
    changes: list[FieldChange] = []
    _compare(before, after, "", (), lambda _, a, b: type(a) is type(b) and a == b, changes, None)
    return _masked(changes, secret=schema.kind == "Secret")


class Culprit(NamedTuple):
    """Who last set a path, by the object's managedFields. ``manager`` is "" where nobody owns it (it was removed)."""

    path: str
    manager: str
    operation: str  # "Update", "Apply", or with a subresource "Update/scale"
    time: str  # RFC 3339, as the server wrote it


def blame(live: Json, paths: Iterable[str], *, manager: str = FIELD_MANAGER) -> tuple[Culprit, ...]:
    """For each path, the latest owner other than ``manager``, or ``manager`` itself if it is the only one."""
    schema = _Schema.of(live)
    entries = [(entry, dict(_owned_paths(entry.get("fieldsV1"), schema))) for entry in _managed(live)]
    found: list[Culprit] = []
    for path in paths:
        owners = [
            entry
            for entry, owned in entries
            if path in owned or any((leaf and _inside(path, at)) or _inside(at, path) for at, leaf in owned.items())
        ]
        owners.sort(key=lambda entry: (entry.get("manager") != manager, str(entry.get("time") or "")))
        last: Json = owners[-1] if owners else {}
        operation = "/".join(str(last[key]) for key in ("operation", "subresource") if last.get(key))
        found.append(Culprit(path, str(last.get("manager") or ""), operation, str(last.get("time") or "")))
    return tuple(found)


def join(path: str, key: str) -> str:
    """The path of a key below ``path``."""
    if not _WORD.fullmatch(key):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def same_quantity(one: JsonValue, other: JsonValue) -> bool:
    """``1000m`` is ``1``. Values that are no quantities are not the same."""
    a, b = quantity(one), quantity(other)
    return a is not None and a == b


def quantity(value: JsonValue) -> Fraction | None:
    """A Kubernetes quantity as an exact number; ``None`` if it is none."""
    match = _QUANTITY.fullmatch(str(value).strip()) if isinstance(value, (int, float, str)) else None
    if match is None:
        return None
    number, suffix, exponent = match.groups()
    scale = _SUFFIXES[suffix or ""] if exponent is None else Fraction(10) ** int(exponent)
    return Fraction(number) * scale


# ---------------------------------------------------------------- what the API's schema says

_WORD = re.compile(r"[A-Za-z0-9_$-]+")
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d{1,2}))?")
_SUFFIXES = {
    "": Fraction(1),
    **{unit: Fraction(10) ** (3 * power) for power, unit in enumerate("num", -3)},
    **{unit: Fraction(10) ** (3 * power) for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": Fraction(1024) ** power for power, unit in enumerate("KMGTPE", 1)},
}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_SECONDS = {"h": Fraction(3600), "m": Fraction(60), "s": Fraction(1), "ms": Fraction(1, 1000)}

#: Keys by which the built-in API merges a list, sorted. Lists that are not named here are atomic: one owner has all.
_MERGE_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "imagePullSecrets": ("name",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
    "schedulingGates": ("name",),
    "claims": ("name",),
    "webhooks": ("name",),
    "secrets": ("name",),
    "ownerReferences": ("uid",),
}
_CONTAINERS = frozenset({"containers", "initContainers", "ephemeralContainers"})
#: Merged lists whose order means something: an init container waits for the one before.
_ORDERED = frozenset({"containers", "initContainers"})
_SET: tuple[str, ...] = ()  # a list without order, where the value is its own key
_DEFAULTS = {"protocol": "TCP"}  # of a merge key that was not written

#: Maps that one owner has as a whole: a key that git does not name does not belong there.
_ATOMIC_MAPS = frozenset({"selector", "labelSelector", "namespaceSelector", "podSelector", "nodeSelector"})

_INT_OR_STRING = frozenset({"targetPort", "port", "maxSurge", "maxUnavailable", "minAvailable"})
_QUANTITIES_BELOW = frozenset(
    {"limits", "requests", "hard", "capacity", "podFixed", "default", "defaultRequest", "max", "min"}
)
_QUANTITIES = frozenset({"sizeLimit", "divisor", "averageValue"})
#: Fields that the API server leaves out when they are false, zero or empty, and for which absent means just that.
_OMITTED_WHEN_ZERO = frozenset(
    {
        "hostNetwork",
        "hostPID",
        "hostIPC",
        "initialDelaySeconds",
        "minReadySeconds",
        "paused",
        "publishNotReadyAddresses",
        "readOnly",
        "stdin",
        "stdinOnce",
        "tty",
        "value",
        "nodePort",
        "hostPort",
        "subPath",
        "clusterIP",
    }
)

_NOT_SENT = frozenset({"apiVersion", "kind", "status"})
_NOT_COMPARED = frozenset(
    {
        "name",
        "namespace",
        "generateName",
        "creationTimestamp",
        "deletionTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)


class _Schema(NamedTuple):
    """All that is known of a kind's schema. ``builtin``: the tables above hold.

    ``exact``: both sides are the server's, so what one owner has as a whole is compared as a whole, defaults and all.
    """

    builtin: bool
    kind: str
    exact: bool = False

    @classmethod
    def of(cls, obj: Json) -> "_Schema":
        group = str(obj.get("apiVersion") or "").rpartition("/")[0]
        builtin = "." not in group or (group.endswith(".k8s.io") and group not in _CUSTOM_GROUPS)
        return cls(builtin, str(obj.get("kind") or ""))

    def merge_keys(self, fields: tuple[str, ...]) -> tuple[str, ...] | None:
        """How the list at ``fields`` merges: by keys, as a set (``()``), or not at all (``None``)."""
        if fields == ("metadata", "finalizers"):
            return _SET
        if not self.builtin and fields != ("metadata", "ownerReferences"):
            return None
        if fields[-1] == "ports":
            if len(fields) > 1 and fields[-2] in _CONTAINERS:
                return ("containerPort", "protocol")
            return ("port", "protocol") if self.kind == "Service" else None
        if fields[-1] == "imagePullSecrets" and self.kind == "ServiceAccount":
            return None
        return _MERGE_KEYS.get(fields[-1])

    def whole(self, fields: tuple[str, ...]) -> bool:
        return self.builtin and bool(fields) and fields[-1] in _ATOMIC_MAPS

    def is_quantity(self, fields: tuple[str, ...]) -> bool:
        below, name = ("", "", *fields)[-2:]
        if not self.builtin:
            return below in ("limits", "requests")
        return below in _QUANTITIES_BELOW or name in _QUANTITIES or (below, name) == ("target", "value")


#: Published as CustomResourceDefinitions, in spite of their name.
_CUSTOM_GROUPS = frozenset({"gateway.networking.k8s.io", "snapshot.storage.k8s.io", "metrics.k8s.io"})


# ---------------------------------------------------------------- the canonical form


class _Keyed(dict[str, Any]):
    """A merged list, as a map from its printed segment (``[name=web]``) to the item."""


def _project(sent: JsonValue, found: JsonValue, schema: _Schema, fields: tuple[str, ...]) -> JsonValue:
    """``found`` cut down to the fields of ``sent``, merged lists turned into ``_Keyed``. ``null`` is not a field."""
    if isinstance(sent, dict) and isinstance(found, dict):
        wanted, there = cast(Json, sent), cast(Json, found)
        if schema.exact and schema.whole(fields):
            return there
        cut: Json = {
            key: _project(value, there[key], schema, (*fields, key))
            for key, value in wanted.items()
            if value is not None and there.get(key) is not None and _is_ours(key, fields)
        }
        if schema.whole(fields):
            cut |= {key: value for key, value in there.items() if key not in wanted and value is not None}
        return cut
    if isinstance(sent, list) and isinstance(found, list):
        wants, has = cast("list[JsonValue]", sent), cast("list[JsonValue]", found)
        keys = schema.merge_keys(fields)
        if keys is not None:
            items, others = _keyed(wants, keys), _keyed(has, keys)
            if items is not None and others is not None:
                return _Keyed(
                    {
                        segment: _project(items[segment], other, schema, fields)
                        for segment, other in others.items()
                        if segment in items
                    }
                )
        if schema.exact and schema.builtin:
            return has
        cuts = [_project(one, other, schema, fields) for one, other in zip(wants, has, strict=False)]
        return cuts + has[len(wants) :]
    return found


def _is_ours(key: str, fields: tuple[str, ...]) -> bool:
    return key not in _NOT_SENT if not fields else fields != ("metadata",) or key not in _NOT_COMPARED


def _keyed(items: list[JsonValue], keys: tuple[str, ...]) -> _Keyed | None:
    """``None`` when the items do not have their keys, or share them (as two variables of one name may)."""
    found = _Keyed()
    for item in items:
        if keys == _SET:
            segment = f"[={item}]"
        elif not isinstance(item, dict):
            return None
        else:
            fields = cast(Json, item)
            values = {key: fields.get(key, _DEFAULTS.get(key)) for key in keys}
            if None in values.values():
                return None
            segment = _segment(values)
        if segment in found:
            return None
        found[segment] = cast(JsonValue, item)
    return found


def _segment(keys: Mapping[str, JsonValue]) -> str:
    return f"[{','.join(f'{key}={keys[key]}' for key in sorted(keys))}]"


def _plain(value: JsonValue) -> JsonValue:
    """Back to the form in which people wrote it."""
    if isinstance(value, _Keyed):
        return [_plain(item) for item in value.values()]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in cast(Json, value).items()}
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[JsonValue]", value)]
    return value


def _walk(value: JsonValue, path: str) -> Iterator[tuple[str, JsonValue]]:
    """Every path of a canonical form with its value, parents first; atomic lists are not entered."""
    if isinstance(value, dict):
        for key, child in cast(Json, value).items():
            below = f"{path}{key}" if isinstance(value, _Keyed) else join(path, key)
            yield below, child
            yield from _walk(child, below)


# ---------------------------------------------------------------- comparing


_Same = Callable[[tuple[str, ...], JsonValue, JsonValue], bool]


def _compare(
    before: JsonValue,
    after: JsonValue,
    path: str,
    fields: tuple[str, ...],
    same: _Same,
    into: list[FieldChange],
    lenient: _Schema | None,
) -> None:
    """Add what differs; a subtree that only one side has is one change. ``lenient``: absent is like empty."""
    if _alike(before, after) and isinstance(before, dict):
        old, new = cast(Json, before), cast(Json, after)
        keyed = isinstance(before, _Keyed)
        for key in [*new, *(key for key in old if key not in new)]:
            below = f"{path}{key}" if keyed else join(path, key)
            names = fields if keyed else (*fields, key)
            if key in old and key in new:
                _compare(old[key], new[key], below, names, same, into, lenient)
            elif key in old or lenient is None or not _means_absent(new[key], names, lenient):
                into.append(FieldChange(path=below, before=_plain(old.get(key)), after=_plain(new.get(key))))
        if keyed and lenient is not None and (fields[-1] in _ORDERED or (fields[-1] == "env" and _refer(new))):
            has, wants = ([key[1:-1] for key in one if key in other] for one, other in ((old, new), (new, old)))
            if has != wants:
                into.append(FieldChange(path=path, before=has, after=wants))
        return
    if isinstance(before, list) and isinstance(after, list):
        has, wants = cast("list[JsonValue]", before), cast("list[JsonValue]", after)
        if len(has) == len(wants):
            for index, (one, other) in enumerate(zip(has, wants, strict=True)):
                _compare(one, other, f"{path}[{index}]", fields, same, into, lenient)
        else:
            into.append(FieldChange(path=path, before=_plain(has), after=_plain(wants)))
        return
    if not same(fields, before, after):
        into.append(FieldChange(path=path, before=_plain(before), after=_plain(after)))


def _refer(variables: Json) -> bool:
    """Whether some variable is made of others, which must come before it."""
    return any("$(" in str(cast(Json, each).get("value")) for each in variables.values())


def _alike(*values: object) -> bool:
    """Whether all are maps, or all are merged lists: ``_Keyed`` is a ``dict``, too."""
    return len({type(each) for each in values}) == 1


def _left_out(
    was: JsonValue, now: JsonValue, found: JsonValue, path: str, fields: tuple[str, ...], schema: _Schema
) -> dict[str, JsonValue]:
    """What ``found`` has by path, of what ``was`` said and ``now`` does not say; all are canonical forms."""
    left: dict[str, JsonValue] = {}
    if _alike(was, now, found) and isinstance(was, dict):
        keyed = isinstance(was, _Keyed)
        wanted, there = cast(Json, now), cast(Json, found)
        for key, value in cast(Json, was).items():
            below = f"{path}{key}" if keyed else join(path, key)
            if key in wanted and key in there:
                names = fields if keyed else (*fields, key)
                left |= _left_out(value, wanted[key], there[key], below, names, schema)
            elif key in there and not schema.whole(fields):  # of these ``diff`` names every key
                left[below] = there[key]
    elif isinstance(was, list) and isinstance(now, list) and isinstance(found, list):
        lists = cast("tuple[list[JsonValue], ...]", (was, now, found))
        for index, (old, new, has) in enumerate(zip(*lists, strict=False)):
            left |= _left_out(old, new, has, f"{path}[{index}]", fields, schema)
    return left


def _means_absent(value: JsonValue, fields: tuple[str, ...], schema: _Schema) -> bool:
    if isinstance(value, _Keyed):
        return not value
    if isinstance(value, dict):
        return all(_means_absent(item, (*fields, key), schema) for key, item in cast(Json, value).items())
    if value in (None, []):
        return True
    zero = value in ("", 0)  # False is 0
    return zero and schema.builtin and fields[-1] in _OMITTED_WHEN_ZERO and not _free_form(fields)


def _free_form(fields: tuple[str, ...]) -> bool:
    """Below here the user chooses the keys, so no key has a meaning of its own."""
    return any(name in ("data", "binaryData", "labels", "annotations", "matchLabels") for name in fields)


def _equivalent(a: JsonValue, b: JsonValue, fields: tuple[str, ...], schema: _Schema) -> bool:
    """Whether the API reads both spellings as one value."""
    if type(a) is type(b) and a == b:
        return True
    if _free_form(fields):
        return False
    if _is_number(a) and _is_number(b):
        return a == b
    if schema.is_quantity(fields):
        return same_quantity(a, b)
    if schema.builtin:
        if fields[-1] == "clusterIP" and b == "":  # "" asks for any
            return True
        return fields[-1] in _INT_OR_STRING and {type(a), type(b)} == {int, str} and str(a) == str(b)
    seconds = _seconds(a)
    return seconds is not None and seconds == _seconds(b)


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _seconds(value: JsonValue) -> Fraction | None:
    """A Go duration (``1h30m``); custom resources spell them as they like."""
    if not isinstance(value, str) or len(value) > 40 or not _DURATION.fullmatch(value):
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", value)
    return sum((Fraction(number) * _SECONDS[unit] for number, unit in parts), Fraction(0))


# ---------------------------------------------------------------- Secrets


def _sendable(obj: Json) -> Json:
    """A Secret's stringData as the server will store it: in data. Other objects as they are."""
    if not _is_secret(obj):
        return obj
    strings, data = obj.get("stringData"), obj.get("data")
    if isinstance(strings, dict) and (data is None or isinstance(data, dict)):
        texts = {key: value for key, value in cast(Json, strings).items() if value is not None}
        encoded = {key: base64.b64encode(str(value).encode()).decode() for key, value in texts.items()}
        rest = {key: value for key, value in obj.items() if key != "stringData"}
        obj = rest | {"data": cast(Json, data or {}) | encoded}
    return _with_clean_data(obj)


def _with_clean_data(obj: Json) -> Json:
    """Base64 in one spelling: wrapped lines and missing padding are read as the server reads them."""
    if not _is_secret(obj) or not isinstance(obj.get("data"), dict):
        return obj
    return obj | {"data": {key: _clean(value) for key, value in cast(Json, obj["data"]).items()}}


def _clean(value: JsonValue) -> JsonValue:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64encode(base64.b64decode("".join(value.split()), validate=True)).decode()
    except (binascii.Error, ValueError):
        return value


def _is_secret(obj: Json) -> bool:
    return obj.get("kind") == "Secret" and obj.get("apiVersion") == "v1"


_OPEN = re.compile(r"(metadata|type|immutable)\b")
_COPY_OF_ALL = "kubectl.kubernetes.io/last-applied-configuration"


def _masked(changes: list[FieldChange], *, secret: bool) -> tuple[FieldChange, ...]:
    """All values of a Secret but its metadata, type and immutability; never the copy that kubectl leaves in there."""
    if not secret:
        return tuple(changes)
    masked: list[FieldChange] = []
    for change in changes:
        hidden = not _OPEN.match(change.path) or _COPY_OF_ALL in change.path
        before, after = _mask(change.before, "before", hidden), _mask(change.after, "after", hidden)
        masked.append(FieldChange(path=change.path, before=before, after=after))
    return tuple(masked)


def _mask(value: JsonValue, side: str, hidden: bool) -> JsonValue:
    if isinstance(value, dict):
        return {key: _mask(item, side, hidden or key == _COPY_OF_ALL) for key, item in cast(Json, value).items()}
    if isinstance(value, list):
        return [_mask(item, side, hidden) for item in cast("list[JsonValue]", value)]
    return f"*** ({side})" if hidden and value is not None else value


# ---------------------------------------------------------------- managedFields


def _managed(live: Json) -> list[Json]:
    metadata = cast(Json, live.get("metadata") or {})
    return cast("list[Json]", metadata.get("managedFields") or [])


def _owned_paths(
    fields: JsonValue, schema: _Schema, path: str = "", names: tuple[str, ...] = ()
) -> Iterator[tuple[str, bool]]:
    """The paths of a FieldsV1 set, and whether all below is owned with them.

    ``f:`` is a field, ``k:`` an item by its keys, ``v:`` one by its value, ``.`` the thing itself. An item of a list
    that we take as a whole belongs to the list's own path; a map that was only created (``.``) may hold others' keys.
    """
    if not isinstance(fields, dict):
        return
    children = cast(Json, fields)
    leaf = children.keys() <= {"."}
    if path and (leaf or ("." in children and path.endswith("]"))):
        yield path, leaf
    for key, below in children.items():
        kind, _, name = key.partition(":")
        if kind == "f":
            child = (*names, name)
            yield from _owned_paths(below, schema, join(path, name), child)
        elif kind in ("k", "v"):
            merged = schema.merge_keys(names) is not None if names else False
            segment = _item_segment(kind, name)
            if merged and segment:
                yield from _owned_paths(below, schema, f"{path}{segment}", names)
            else:
                yield path, True
        elif kind == "i":
            yield path, True


def _item_segment(kind: str, text: str) -> str:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return ""
    if kind == "v":
        return f"[={value}]"
    return _segment(cast(Json, value)) if isinstance(value, dict) else ""


def _inside(path: str, ancestor: str) -> bool:
    return path.startswith(ancestor) and path[len(ancestor) : len(ancestor) + 1] in (".", "[")
