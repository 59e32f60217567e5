"""Server-side apply: who owns which field, and what an object becomes when one manager applies its view of it.

Pure functions over JSON and ``Schema``. A set of fields is a ``frozenset`` of paths; a path is a tuple of the elements
that ``fieldsV1`` writes (``f:name``, ``k:{"name":"web"}``, ``v:"value"``), so ownership is plain set arithmetic.
The rules are those of Kubernetes' structured merge; the contract suite compares them with a real API server.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import orjson

from gitsync.sandbox.schema import Schema

Json = dict[str, Any]
Element = str
FieldPath = tuple[Element, ...]
Fields = frozenset[FieldPath]

_NOTHING: Fields = frozenset()
#: Fields that nobody owns.
_UNOWNED: Fields = frozenset(
    {("f:apiVersion",), ("f:kind",), ("f:metadata",)}
    | {
        ("f:metadata", f"f:{name}")
        for name in ("name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation",
                     "managedFields", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds")
    }
)  # fmt: skip


# ---------------------------------------------------------------- managers


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Identity of an entry in ``managedFields``. ``version`` is "" for appliers: they are the same across versions."""

    manager: str
    operation: str  # "Apply" | "Update"
    version: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        """As conflicts name it."""
        sub = f' with subresource "{self.subresource}"' if self.subresource else ""
        using = f" using {self.version}" if self.operation == "Update" else ""
        return f'"{self.manager}"{sub}{using}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What one manager owns, in which version it wrote it, and when its set last changed (RFC 3339)."""

    fields: Fields
    version: str
    time: str = ""


Managers = Mapping[Owner, Owned]


@dataclass(frozen=True, slots=True)
class Conflict(Exception):
    """Fields that the applier sets to another value than their owners did."""

    conflicts: tuple[tuple[Owner, FieldPath], ...] = field(default=())

    @property
    def message(self) -> str:
        owners: dict[Owner, list[str]] = {}
        for owner, path in self.conflicts:
            owners.setdefault(owner, []).append(printed(path))
        if len(self.conflicts) == 1:
            owner, path = self.conflicts[0]
            return f"Apply failed with 1 conflict: conflict with {owner}: {printed(path)}"
        parts = [f"conflicts with {owner}:\n" + "\n".join(f"- {each}" for each in owners[owner]) for owner in owners]
        return f"Apply failed with {len(self.conflicts)} conflicts: " + "\n".join(parts)

    @property
    def causes(self) -> list[Json]:
        return [
            {"reason": "FieldManagerConflict", "message": f"conflict with {owner}", "field": printed(path)}
            for owner, path in self.conflicts
        ]


class Malformed(Exception):
    """The applied object cannot be read with the kind's schema; the message names field and reason."""


def decode(entries: Iterable[Json]) -> dict[Owner, Owned]:
    """``metadata.managedFields`` as sets. ``Malformed`` if an entry is not one."""
    found: dict[Owner, Owned] = {}
    for entry in entries:
        operation = entry.get("operation")
        if operation not in ("Apply", "Update") or entry.get("fieldsType") != "FieldsV1":
            raise Malformed(f"metadata.managedFields: operation {operation!r}, type {entry.get('fieldsType')!r}")
        owner = Owner(
            manager=entry.get("manager", ""),
            operation=operation,
            version="" if operation == "Apply" else entry.get("apiVersion", ""),
            subresource=entry.get("subresource", ""),
        )
        fields = _decoded(orjson.dumps(entry.get("fieldsV1") or {}))
        found[owner] = Owned(fields=fields, version=entry.get("apiVersion", ""), time=entry.get("time", ""))
    return found


@lru_cache(4096)
def _decoded(raw: bytes) -> Fields:
    """Cached by content: most objects of a cluster share their set with many others."""
    return frozenset(_paths(orjson.loads(raw), ()))


def _paths(node: Json, prefix: FieldPath) -> Iterator[FieldPath]:
    for name, below in node.items():
        if name == ".":
            yield prefix
            continue
        path = (*prefix, name)
        if below:
            yield from _paths(below, path)
        else:
            yield path


def encode(managers: Managers) -> list[Json]:
    """The entries in the server's order: appliers first, then by time and name."""

    def order(item: tuple[Owner, Owned]) -> tuple[str, ...]:
        owner, owned = item
        return (owner.operation, owned.time, owner.manager, owned.version, owner.subresource)

    entries: list[Json] = []
    for owner, owned in sorted(managers.items(), key=order):
        entry: Json = {"manager": owner.manager, "operation": owner.operation, "apiVersion": owned.version}
        entry |= {"time": owned.time, "fieldsType": "FieldsV1", "fieldsV1": _encoded(owned.fields)}
        if owner.subresource:
            entry["subresource"] = owner.subresource
        entries.append(entry)
    return entries


@lru_cache(4096)
def _encoded(fields: Fields) -> Json:
    root: Json = {}
    for path in sorted(fields):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    _trim(root)
    return root


def _trim(node: Json) -> None:
    for below in node.values():
        if len(below) == 1 and "." in below:
            below.clear()
        else:
            _trim(below)


def printed(path: FieldPath) -> str:
    """``.spec.template.spec.containers[name="web"].image``."""
    text = ""
    for element in path:
        what, _, rest = element.partition(":")
        if what == "f":
            text += f".{rest}"
        elif what == "k":
            keys = cast("Json", orjson.loads(rest))
            text += "[" + ",".join(f"{name}={orjson.dumps(keys[name]).decode()}" for name in sorted(keys)) + "]"
        else:
            text += f"[={rest}]"
    return text


# ---------------------------------------------------------------- walking


def element_of(item: Any, schema: Schema) -> Element:
    """The path element of a list's item: by its keys (with their defaults), or by value in a set."""
    if schema.unique:
        return "v:" + orjson.dumps(item).decode()
    if not isinstance(item, dict):
        raise Malformed("associative list without keys has an element that's a map type")
    given = cast("Json", item)
    found: Json = {}
    for key in schema.keys:
        value = given.get(key)
        if value is None:
            below = schema.item.fields.get(key) if schema.item else None
            if below and below.raw is None:  # Go's zero value, but for the one key that has a default
                value = "TCP" if key == "protocol" else 0 if below.kind == "integer" else ""
            else:
                value = (below.raw or {}).get("default") if below else None
        if value is not None:
            found[key] = value
    if not found:
        names = ", ".join(f'"{key}"' for key in schema.keys)
        raise Malformed(
            f"associative list with keys has an element that omits key field {names} (and doesn't have default value)"
        )
    return "k:" + orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()


def _items(values: Any, schema: Schema) -> dict[Element, Any]:
    return {element_of(each, schema): each for each in _list(values)}


def _leaf(schema: Schema, *values: Any) -> bool:
    """Whether a value is owned and compared as a whole: scalars, atomic structures, and empty ones on all sides."""
    if schema.kind in ("object", "map"):
        shape: type = dict
    elif schema.kind == "list":
        shape = list
    elif schema.kind == "any":
        # Undeclared structure is deduced: maps merge, lists are atomic.
        if not any(isinstance(each, dict) for each in values):
            return True
        shape = dict
    else:
        return True
    return schema.atomic or not any(isinstance(each, shape) and each for each in values)


def fields_of(value: Any, schema: Schema, path: FieldPath = ()) -> Iterator[FieldPath]:
    """The set of an applied object: every leaf, every item of an associative list, every key of a map."""
    if _leaf(schema, value):
        if value == {} and not schema.atomic and not path:
            return
        if schema.kind == "list" and not schema.atomic:
            return
        yield path
    elif schema.kind == "list":
        item = cast("Schema", schema.item)
        seen: set[Element] = set()
        for each in value:
            element = element_of(each, schema)
            if element in seen:
                raise Malformed(f"{printed(path)}: duplicate entries for key {printed((element,))}")
            seen.add(element)
            yield (*path, element)
            yield from fields_of(each, item, (*path, element))
    else:
        for name, each in value.items():
            below = (*path, f"f:{name}")
            yield from fields_of(each, schema.child(name), below)
            if each is None or each == {} or not schema.named(name):
                yield below


class _Absent:
    """Stands for a value that is not there; ``None`` is JSON's null, which is there."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()


def merge(live: Any, applied: Any, schema: Schema) -> Any:
    """``live`` with ``applied`` laid over it. Either may be ``ABSENT``, and so may the result."""
    if _leaf(schema, live, applied) or (schema.kind == "any" and applied is not ABSENT and not _map(applied)):
        return live if applied is ABSENT else applied
    if schema.kind == "list":
        return _merge_lists(_list(live), _list(applied), schema)
    left, right = _map(live), _map(applied)
    out: Json = {}
    for name in (*left, *(each for each in right if each not in left)):
        merged = merge(left.get(name, ABSENT), right.get(name, ABSENT), schema.child(name))
        if merged is not ABSENT:
            out[name] = merged
    return out or ABSENT


def _map(value: Any) -> Json:
    """A value of the other shape counts as empty, as null and absence do."""
    return cast("Json", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _merge_lists(live: list[Any], applied: list[Any], schema: Schema) -> Any:
    """Items of both: the applied order rules, and items of others keep their place before the next shared item."""
    item = cast("Schema", schema.item)
    left, right = [element_of(each, schema) for each in live], _items(applied, schema)
    order = list(right)
    first = dict(zip(reversed(left), reversed(live), strict=True))
    shared = [each for each in order if each in first]
    out: list[Any] = []
    done: set[Element] = set()
    i = j = 0

    def take(element: Element) -> None:
        done.add(element)
        merged = merge(first.get(element, ABSENT), right[element], item)
        if merged is not ABSENT:
            out.append(merged)
        if shared and shared[0] == element:
            shared.pop(0)

    while i < len(left) or j < len(order):
        if i < len(left) and j < len(order):
            if left[i] == order[j]:
                take(order[j])
                i, j = i + 1, j + 1
                continue
            if left[i] in right and shared and shared[0] != left[i]:
                i += 1
                continue
        if i < len(left):
            if left[i] not in right:
                out.append(live[i])
                i += 1
                continue
            if left[i] in done:
                i += 1
        if j < len(order):
            take(order[j])
            j += 1
    return out or ABSENT


@dataclass(frozen=True, slots=True)
class Difference:
    """Fields that came, changed and went between two objects."""

    added: Fields = _NOTHING
    modified: Fields = _NOTHING
    removed: Fields = _NOTHING

    @property
    def same(self) -> bool:
        return not (self.added or self.modified or self.removed)


def compare(old: Any, new: Any, schema: Schema) -> Difference:
    added: set[FieldPath] = set()
    modified: set[FieldPath] = set()
    removed: set[FieldPath] = set()

    def walk(left: Any, right: Any, schema: Schema, path: FieldPath) -> None:
        if left is right or _same(left, right):
            return
        here = added if left is ABSENT else removed if right is ABSENT else None
        if _leaf(schema, left, right):
            (modified if here is None else here).add(path)
            return
        if schema.kind == "list":
            lefts, rights, item = _items(left, schema), _items(right, schema), cast("Schema", schema.item)
            for element in (*lefts, *(each for each in rights if each not in lefts)):
                walk(lefts.get(element, ABSENT), rights.get(element, ABSENT), item, (*path, element))
        else:
            lefts, rights = _map(left), _map(right)
            for name in (*lefts, *(each for each in rights if each not in lefts)):
                walk(lefts.get(name, ABSENT), rights.get(name, ABSENT), schema.child(name), (*path, f"f:{name}"))
            if schema.kind == "any" and here is None and not (isinstance(left, dict) and isinstance(right, dict)):
                modified.add(path)  # undeclared structure took another shape
        if here is not None:
            here.add(path)

    walk(old, new, schema, ())
    for each in (added, modified, removed):
        each.discard(())
    return Difference(frozenset(added), frozenset(modified), frozenset(removed))


def _same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from true but not 1 from 1.0."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def remove(value: Any, gone: Fields, schema: Schema) -> Any:
    """``value`` without the given fields; ``None`` if nothing is left of it."""
    if not gone:
        return value
    tree: dict[Any, Any] = {}
    for path in gone:
        node = tree
        for element in path:
            node = node.setdefault(element, {})
        node[None] = True
    return _removed(value, tree, schema)


def _removed(value: Any, gone: dict[Any, Any], schema: Schema) -> Any:
    if not value or not isinstance(value, (dict, list)) or schema.atomic:
        return None
    if isinstance(value, list):
        if not schema.associative or schema.item is None:
            return None
        kept: list[Any] = []
        for each in cast("list[Any]", value):
            below = gone.get(element_of(each, schema), {})
            if None not in below:
                kept.append(_removed(each, below, schema.item) if below else each)
        return kept or None
    out: Json = {}
    for name, each in cast("Json", value).items():
        below = gone.get(f"f:{name}", {})
        if None not in below:
            # What is emptied stays as a null, so that an owner of the emptied structure itself keeps it.
            out[name] = _removed(each, below, schema.child(name)) if below else each
    return out or None


def _with_parents(fields: Fields, schema: Schema) -> Fields:
    """Also the declared fields on the way to each member: structs have no entry of their own in a set."""
    out = set(fields)
    for path in fields:
        node = schema
        for depth, element in enumerate(path):
            if element.startswith("f:"):
                if node.named(element[2:]):
                    out.add(path[: depth + 1])
                node = node.child(element[2:])
            else:
                node = node.item or node
    return frozenset(out)


# ---------------------------------------------------------------- the two operations


def apply(
    live: Json,
    applied: Json,
    schema: Schema,
    managers: Managers,
    owner: Owner,
    version: str,
    *,
    force: bool,
    reset: Iterable[FieldPath] = (),
) -> tuple[Json, dict[Owner, Owned]]:
    """The new object and its managers. ``live`` is ``{}`` when it does not exist yet; ``reset`` are fields (with all
    below) that this endpoint ignores. Raises ``Conflict`` (unless ``force``) and ``Malformed``.
    """
    ignored = tuple(reset)
    mine = _ownable(frozenset(fields_of(applied, schema)), ignored)
    before = managers.get(owner)
    updated = {**managers, owner: Owned(fields=mine, version=version, time=before.time if before else "")}
    merged = _map(merge(live, applied, schema))
    dropped = bool(before and before.fields - mine)
    result = _prune(merged, schema, updated, before.fields) if before and dropped else merged
    _settle(updated, owner, _seen(compare(live, result, schema), ignored), force=force)
    return result, {each: owned for each, owned in updated.items() if owned.fields}


def update(
    live: Json,
    new: Json,
    schema: Schema,
    managers: Managers,
    owner: Owner,
    version: str,
    *,
    reset: Iterable[FieldPath] = (),
) -> dict[Owner, Owned]:
    """The managers after ``owner`` replaced ``live`` by ``new``: what it changed is its own now, and nobody else's."""
    difference = _seen(compare(live, new, schema), tuple(reset))
    updated = dict(managers)
    _settle(updated, owner, difference, force=True)
    before = updated.get(owner, Owned(fields=_NOTHING, version=version))
    fields = (before.fields - difference.removed) | difference.modified | difference.added
    updated[owner] = replace(before, fields=_ownable(fields, tuple(reset)), version=version)
    return {each: owned for each, owned in updated.items() if owned.fields}


def stamped(before: Managers, after: Managers, now: str) -> dict[Owner, Owned]:
    """``after`` with the time of every manager whose set changed."""
    return {
        owner: owned
        if (old := before.get(owner)) and (old.fields, old.version) == (owned.fields, owned.version) and owned.time
        else replace(owned, time=now)
        for owner, owned in after.items()
    }


def _ownable(fields: Fields, reset: tuple[FieldPath, ...]) -> Fields:
    kept = fields - _UNOWNED
    return frozenset(path for path in kept if not any(path[: len(each)] == each for each in reset)) if reset else kept


def _seen(difference: Difference, reset: tuple[FieldPath, ...]) -> Difference:
    """Without what this endpoint ignores."""
    if not reset:
        return difference
    added, modified, removed = (
        frozenset(path for path in fields if not any(path[: len(each)] == each for each in reset))
        for fields in (difference.added, difference.modified, difference.removed)
    )
    return Difference(added, modified, removed)


def _settle(managers: dict[Owner, Owned], owner: Owner, difference: Difference, *, force: bool) -> None:
    """Take what changed from the other managers; ``Conflict`` instead, unless forced."""
    written = difference.modified | difference.added
    conflicts: list[tuple[Owner, FieldPath]] = []
    for other, owned in list(managers.items()):
        if other == owner:
            continue
        lost = owned.fields & written
        conflicts += [(other, path) for path in sorted(lost, key=_leaves_first)]
        managers[other] = replace(owned, fields=owned.fields - lost - difference.removed)
    if conflicts and not force:
        raise Conflict(tuple(conflicts))


def _leaves_first(path: FieldPath) -> tuple[tuple[int, Element], ...]:
    """The server's order: at each level the fields that are in the set, then those that have some below."""
    return (*((1, element) for element in path[:-1]), (0, path[-1]))


def _prune(merged: Json, schema: Schema, managers: Managers, last: Fields) -> Json:
    """Without what the applier owned before and no manager (itself included) owns now."""
    candidates = _with_parents(last, schema)
    pruned = _map(remove(merged, candidates, schema))
    owned = frozenset[FieldPath]().union(*(each.fields for each in managers.values()))
    everything = _with_parents(frozenset(fields_of(merged, schema)), schema)
    kept = _with_parents(frozenset(fields_of(pruned, schema)), schema) | _with_parents(owned, schema)
    pruned = _map(remove(merged, everything - kept, schema))
    # What vanished only because it lay inside something removed, and was never the applier's, is added back.
    present = _with_parents(frozenset(fields_of(pruned, schema)), schema)
    return _map(remove(merged, (everything - present) & candidates, schema))
