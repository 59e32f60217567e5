"""The patch formats other than apply: merge patch (RFC 7386), JSON patch (RFC 6902), strategic merge patch. Pure."""

from collections.abc import Callable, Iterable
from typing import Any, cast

from gitsync.sandbox.schema import Schema, copy, many

Json = dict[str, Any]


class PatchError(Exception):
    """The patch cannot be applied to this object; ``code`` is the HTTP status that says so."""

    def __init__(self, message: str, code: int = 422) -> None:
        super().__init__(message)
        self.code = code


def merge_patch(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    out: Json = dict(cast("Json", target)) if isinstance(target, dict) else {}
    for name, each in cast("Json", patch).items():
        if each is None:
            out.pop(name, None)
        else:
            out[name] = merge_patch(out.get(name), each)
    return out


def json_patch(target: Any, operations: Any) -> Any:
    if not isinstance(operations, list):
        raise PatchError("json: cannot unmarshal object into Go value of type jsonpatch.Patch", 400)
    document = copy(target)
    for step in cast("list[Json]", operations):
        operation, path = step.get("op"), str(step.get("path", ""))
        if operation in ("add", "replace", "test") and "value" not in step:
            raise PatchError(f"{operation} operation does not apply: value is missing: {path}")
        if operation == "add":
            document = _put(document, _pointer(path), copy(step["value"]), insert=True)
        elif operation == "replace":
            _look(document, path, "replace")
            document = _put(document, _pointer(path), copy(step["value"]), insert=False)
        elif operation == "remove":
            _look(document, path, "remove")
            _take(document, _pointer(path))
        elif operation in ("move", "copy"):
            value = copy(_look(document, str(step.get("from", "")), operation))
            if operation == "move":
                _take(document, _pointer(str(step["from"])))
            document = _put(document, _pointer(path), value, insert=True)
        elif operation == "test":
            try:
                same = _look(document, path, "test") == step["value"]
            except PatchError:
                same = step["value"] is None
            if not same:
                raise PatchError(f"testing value {path} failed: test failed")
        else:
            raise PatchError(f"Unexpected kind: {operation}", 400)
    return document


def _pointer(path: str) -> list[str]:
    if path and not path.startswith("/"):
        raise PatchError(f"invalid JSON pointer: {path!r}", 400)
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _look(document: Any, path: str, operation: str) -> Any:
    node = document
    for part in _pointer(path):
        try:
            node = cast("list[Any]", node)[int(part)] if isinstance(node, list) else node[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise PatchError(
                f"{operation} operation does not apply: doc is missing path: {path}: missing value"
            ) from None
    return node


def _put(document: Any, parts: list[str], value: Any, *, insert: bool) -> Any:
    if not parts:
        return value
    node = _look(document, "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts[:-1]), "add")
    last = parts[-1]
    if isinstance(node, list):
        items = cast("list[Any]", node)
        if not (last == "-" or (last.isdigit() and int(last) <= len(items))):
            raise PatchError(f"add operation does not apply: index out of range: {last}")
        if last == "-":
            items.append(value)
        elif insert:
            items.insert(int(last), value)
        else:
            items[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise PatchError("add operation does not apply: doc is missing path")
    return document


def _take(document: Any, parts: list[str]) -> None:
    node: Any = document
    for part in parts[:-1]:
        node = cast("list[Any]", node)[int(part)] if isinstance(node, list) else cast("Json", node)[part]
    if isinstance(node, list):
        del cast("list[Any]", node)[int(parts[-1])]
    else:
        del node[parts[-1]]


def strategic_merge(target: Any, patch: Any, schema: Schema) -> Any:
    """A merge patch in which associative lists merge by their first key and ``$patch`` directives are obeyed."""
    if not isinstance(patch, dict) or schema.kind not in ("object", "map"):
        return merge_patch(target, patch)
    given = cast("Json", patch)
    directive = given.get("$patch")
    if directive == "replace":
        return {name: each for name, each in given.items() if name != "$patch"}
    if directive == "delete":
        return {}
    out: Json = dict(cast("Json", target)) if isinstance(target, dict) else {}
    if "$retainKeys" in given:
        out = {name: each for name, each in out.items() if name in given["$retainKeys"]}
    for name, each in given.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            out[field] = [item for item in many(out, field) if item not in each]
        elif name.startswith("$"):
            continue
        elif each is None:
            out.pop(name, None)
        elif isinstance(each, list) and (below := schema.child(name)).kind == "list" and below.associative:
            out[name] = _merge_list(out.get(name) or [], cast("list[Any]", each), below)
        else:
            out[name] = strategic_merge(out.get(name), each, schema.child(name))
    for name, order in given.items():
        if name.startswith("$setElementOrder/") and out.get(field := name.partition("/")[2]):
            out[field] = _ordered(out[field], order, schema.child(field))
    return out


def _key(schema: Schema) -> Callable[[Any], Any]:
    return (lambda item: item.get(schema.keys[0])) if schema.keys else lambda item: item


def _merge_list(live: list[Any], patch: list[Any], schema: Schema) -> list[Any]:
    key, item = _key(schema), schema.item
    assert item is not None
    if schema.unique:
        return [*live, *(each for each in patch if each not in live)]
    if any(each.get("$patch") == "replace" for each in patch):
        return [each for each in patch if "$patch" not in each]
    out = list(live)
    for each in patch:
        place = next((index for index, old in enumerate(out) if key(old) == key(each)), None)
        if each.get("$patch") == "delete":
            if place is not None:
                del out[place]
        elif place is None:
            out.append(strategic_merge({}, each, item))
        else:
            out[place] = strategic_merge(out[place], each, item)
    return out


def _ordered(items: list[Any], order: Iterable[Any], schema: Schema) -> list[Any]:
    key = _key(schema)
    wanted = [key(each) for each in order]
    first = [each for name in wanted for each in items if key(each) == name]
    return first + [each for each in items if key(each) not in wanted]
