"""Reads YAML and JSON exactly as ``kubectl`` reads them, or says at which line and column it will not.

PyYAML's C parser (libyaml) supplies events; the composer here gives them the meaning that Kubernetes' own reader gives
them (apimachinery's ``YAMLOrJSONDecoder`` over go-yaml v2): ``NO`` is false, ``0777`` is 511, ``22:22`` and
``2001-01-01`` are strings, keys become strings, a merge key takes effect where it stands. Where ``kubectl`` would drop
or guess something in silence, this reader refuses: duplicate keys, tags without a meaning in JSON, text after ``...``.

Values are what the API server would receive: integral numbers of 64 bits are ``int``, all other numbers ``float``.
Pure: bytes in, documents out. Time and memory are bounded by the limits, whatever the input.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from json import JSONDecodeError
from json.decoder import scanstring as _untyped_scanstring  # pyright: ignore -- the stub leaves it out
from typing import Any, Final, cast

import msgspec
import orjson
from yaml import MarkedYAMLError, SafeDumper, ScalarNode, YAMLError
from yaml import dump as _write
from yaml._yaml import CParser  # pyright: ignore[reportMissingModuleSource] -- the compiled half of PyYAML has no stub
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from gitsync.errors import Invalid
from gitsync.model import JsonValue, Origin

#: Deepest nesting of collections. kubectl's is 10,000; the deepest CRD in the wild stays below 60.
MAX_DEPTH: Final = 200
#: Characters that aliases and merge keys of one file may add, roughly as JSON would spell them.
MAX_EXPANSION: Final = 4 << 20
#: Bytes of one file.
MAX_BYTES: Final = 16 << 20

# A line table has, for each child of a collection in order, its line and then, if it is a collection, its own table.


class Unreadable(Exception):
    """The text is not what kubectl reads. ``line`` and ``column`` count from 1 (0: unknown)."""

    def __init__(self, message: str, *, line: int = 0, column: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint

    def within(self, origin: Origin) -> Invalid:
        """The same as an error of this project; ``origin`` names repository, sha and file."""
        place = Origin(
            repository=origin.repository, sha=origin.sha, file=origin.file, line=self.line, column=self.column
        )
        return Invalid(self.message, doing="reading", origin=place, hint=self.hint)


class LineMap(Mapping[str, int]):
    """Field path → line, worked out when first asked: nearly all documents are never asked.

    A key that is no plain word stands in brackets: ``metadata.annotations[gitsync.dev/prune]``. What came through an
    alias or a merge key has the line of that alias or merge key.
    """

    __slots__ = ("_known", "_parent", "_path", "_table", "_value")

    def __init__(
        self, value: JsonValue = None, table: bytes = b"[]", *, parent: LineMap | None = None, path: str = ""
    ) -> None:
        self._value = value
        self._table = table
        self._parent = parent
        self._path = path
        self._known: dict[str, int] | None = None

    def below(self, path: str) -> LineMap:
        """The same seen from one field: ``below("items[0]")["spec"]`` is what ``items[0].spec`` was."""
        return LineMap(parent=self, path=path)

    def _lines(self) -> dict[str, int]:
        if self._known is None:
            self._known = {}
            if self._parent is None:
                _walk(self._value, orjson.loads(self._table), "", self._known)
            else:
                start = len(self._path)
                self._known = {
                    name[start:].removeprefix("."): line
                    for name, line in self._parent.items()
                    if name.startswith(self._path) and name[start : start + 1] in (".", "[")
                }
        return self._known

    def __getitem__(self, path: str) -> int:
        return self._lines()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines())

    def __len__(self) -> int:
        return len(self._lines())

    def __repr__(self) -> str:
        return f"LineMap({self._lines()!r})"


class Document(msgspec.Struct, frozen=True):
    """One document of a file. ``value`` is shared where the text has aliases: never change it in place."""

    value: JsonValue
    line: int  # of its first node
    column: int
    lines: LineMap


class Parsed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A file's documents as bytes: what crosses from a worker process and what the cache keeps."""

    values: bytes  # a JSON array of the documents
    places: tuple[tuple[int, int], ...]  # line and column of each
    tables: tuple[bytes, ...]  # line table of each, as JSON

    def __len__(self) -> int:
        return len(self.values) + sum(map(len, self.tables)) + 100 * len(self.tables) + 200

    def documents(self) -> list[Document]:
        return [
            Document(value, line, column, LineMap(value, table))
            for value, (line, column), table in zip(orjson.loads(self.values), self.places, self.tables, strict=True)
        ]


def parse(data: bytes) -> Parsed:
    """Every document of one file; those that are empty or only comments are left out, as kubectl does.

    A file whose first character is ``{`` is tried as a stream of JSON objects first. Raises ``Unreadable``.
    """
    if data.startswith(LFS):
        raise Unreadable(
            "is a Git LFS pointer, not the file itself", line=1, column=1, hint="store manifests in git, not in LFS"
        )
    if len(data) > MAX_BYTES:
        raise Unreadable(f"is {len(data)} bytes long, more than {MAX_BYTES}", line=1, column=1, hint="split the file")
    text = _decode(data)
    found = [document for document in _documents(text) if document[0] is not None]
    return Parsed(
        values=_dumps([value for value, _, _, _ in found]),
        places=tuple((line, column) for _, line, column, _ in found),
        tables=tuple(_dumps(table) for _, _, _, table in found),
    )


def _dumps(value: Any) -> bytes:
    """JSON in as many bytes as it has: orjson's own take kilobytes for as long as they are kept."""
    return bytes(memoryview(orjson.dumps(value)))


def load(data: bytes, origin: Origin) -> list[Document]:
    """``parse`` for one small file at hand. Raises ``Invalid`` that names ``origin``'s file, line and column."""
    try:
        return parse(data).documents()
    except Unreadable as error:
        raise error.within(origin) from error


def dump(value: JsonValue) -> str:
    """YAML that kubectl reads as this value. PyYAML itself would leave strings like ``1e3`` and ``y`` bare."""
    return _write(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


_RARE_BREAK = re.compile("[\x85\u2028\u2029\ufeff]")


class _Dumper(SafeDumper):
    pass


def _string(dumper: SafeDumper, text: str) -> ScalarNode:
    style = '"' if _RARE_BREAK.search(text) else None if isinstance(_scalar(text), str) else "'"
    # PyYAML's stubs leave the type of a style open.
    return dumper.represent_scalar(_PREFIX + "str", text, style=style)  # pyright: ignore[reportUnknownMemberType]


_Dumper.add_representer(str, _string)


# ---------------------------------------------------------------- text

_Found = tuple[JsonValue, int, int, list[Any]]  # value, line, column, line table

LFS: Final = b"version https://git-lfs.github.com/spec/"
_BAD_SEPARATOR = re.compile(r"^---(?:[^\S\n]*[^\s#]|#)", re.MULTILINE)
_INNER_BOM = re.compile("[\n\r\x85\u2028\u2029]\ufeff")
_JSON_OBJECT = re.compile(r"\s*\{\s*[\"}]")
_TEMPLATE = "{{"


def _shown(text: str) -> str:
    """As much of a text as an error may carry."""
    return text if len(text) <= 80 else text[:77] + "…"


def _decode(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4]:
        raise Unreadable("is UTF-16 or UTF-32, not UTF-8", line=1, column=1, hint="save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        head = data[: error.start]
        raise Unreadable(
            f"byte 0x{data[error.start]:02x} is not UTF-8",
            line=head.count(b"\n") + 1,
            column=error.start - (head.rfind(b"\n") + 1) + 1,
            hint="save it as UTF-8",
        ) from error
    if "\ufeff" in text and (inner := _INNER_BOM.search(text)):
        # libyaml would skip it and read the wrong column.
        line = text.count("\n", 0, inner.end()) + 1
        raise Unreadable("a byte order mark begins a line in mid-file", line=line, column=1, hint="remove it")
    return text


def _documents(text: str) -> list[_Found]:
    stripped = text.lstrip()
    if not stripped.startswith("{"):
        return _Composer(text).documents()
    reader = _JsonReader(text)
    try:
        return reader.documents()
    except Unreadable as error:
        # kubectl goes on in YAML unless two objects have already proved the file to be JSON.
        if len(reader.found) > 1 or reader.fatal:
            raise
        rest = text[reader.consumed :]
        skipped = text.count("\n", 0, reader.consumed)
        try:
            return reader.found + _Composer(rest, skipped).documents()
        except Unreadable:
            if _JSON_OBJECT.match(rest):
                raise error from None
            raise


# ---------------------------------------------------------------- scalars

_ABSENT: Final = object()
_CONSTANTS: Final[dict[str, JsonValue]] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
#: First characters of plain scalars that may be something else than a string ("" for the empty one).
_HINTS: Final = frozenset({"", *"+-.0123456789yYnNtTfFoO~"})
#: The same for keys, where ``<<`` means something too.
_KEY_HINTS: Final = _HINTS | {"<"}
_INTEGER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|[1-9][0-9]*|0)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_POINT_FLOAT = re.compile(r"\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+(?:_[0-9]+)*)?")
_BINARY = re.compile(r"0b[-+][01]+")


def _integer(text: str) -> int | None:
    """Go's ``ParseInt(text, 0, 64)``, then ``ParseUint``; ``None`` when neither takes it."""
    if _BINARY.fullmatch(text):
        number = int(text[2:], 2)
        return number if -(1 << 63) <= number < 1 << 63 else None
    if not _INTEGER.fullmatch(text) or len(text) > 80:
        return None
    digits = text.lstrip("+-")
    sign = -1 if text[0] == "-" else 1
    if digits[:2] in ("0x", "0X", "0o", "0O", "0b", "0B"):
        number = sign * int(digits, 0)
    else:
        number = sign * int(digits, 8 if digits[0] == "0" else 10)
    if -(1 << 63) <= number < 1 << 63 or (text[0] not in "+-" and number < 1 << 64):
        return number
    return None


def _scalar(text: str) -> JsonValue:
    """A plain scalar's value before JSON: big integers stay ``int``, floats stay ``float``."""
    constant = _CONSTANTS.get(text, _ABSENT)
    if constant is not _ABSENT:
        return constant
    head = text[0]
    if head == ".":
        number = float(text) if _POINT_FLOAT.fullmatch(text) else math.inf
        return text if math.isinf(number) else number
    if head not in "+-0123456789":
        return text
    plain = text.replace("_", "")
    integer = _integer(plain)
    if integer is not None:
        return integer
    if _FLOAT.fullmatch(plain):
        number = float(plain)
        return text if math.isinf(number) else number
    return text


def _number(value: float) -> float:
    """What is left of a number after Go has written it as JSON and read it again. Raises ``ValueError``."""
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else float(value)
    if not math.isfinite(value):
        raise ValueError
    if not value.is_integer():
        return value
    integer = int(value) if abs(value) < 2.0**53 else int(Decimal(repr(value)))  # Go writes the shortest digits
    return integer if -(1 << 63) <= integer < 1 << 63 else value


@lru_cache(maxsize=8192)
def _resolve(text: str) -> JsonValue:
    """A plain scalar's value in JSON. Raises ``ValueError`` for what JSON cannot say."""
    value = _scalar(text)
    return _number(value) if type(value) is int or type(value) is float else value


def _single(number: float) -> float:
    """The nearest number of 32 bits."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def _float_key(number: float) -> str:
    """Go's ``FormatFloat(number, 'g', -1, 32)``: how a number becomes a key."""
    if math.isnan(number):
        return ".nan"
    single = _single(number)
    if math.isinf(single):
        return ".inf" if single > 0 else "-.inf"
    text = next(text for digits in range(9) if _single(float(text := f"{single:.{digits}e}")) == single)
    mantissa, _, power = text.partition("e")
    exponent = int(power)
    if -4 <= exponent < 6:
        return f"{single:.{max(len(mantissa.lstrip('-').replace('.', '')) - 1 - exponent, 0)}f}"
    return text


def _key(value: JsonValue) -> str | None:
    """A scalar's value as a JSON key; ``None`` when kubectl has none for it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value < 1 << 63 else None
    return _float_key(value) if isinstance(value, float) else None


# ---------------------------------------------------------------- YAML

_PREFIX: Final = "tag:yaml.org,2002:"
_SCALAR_TAGS: Final = frozenset({"str", "int", "float", "bool", "null"})
_HINT_TEMPLATE: Final = "it looks like a template that was not rendered: commit what the template gives"


_kind: Callable[[Any], object] = type


class _Composer:
    """One pass over the events of one text. ``skipped`` lines stand before it in the file."""

    def __init__(self, text: str, skipped: int = 0) -> None:
        self._text = text
        self._first = skipped + 1
        self._next: Callable[[], Any] = CParser(text).get_event
        self._depth = 0
        self._anchors: dict[str, Any] = {}
        self._sizes: dict[int, int] = {}  # by id of an anchored collection: what it adds where it is repeated
        self._kept: list[Any] = []  # keeps those ids from being used again
        self._expansion = 0

    def documents(self) -> list[_Found]:
        if separator := _BAD_SEPARATOR.search(self._text):
            line = self._text.count("\n", 0, separator.end() - 1)
            raise Unreadable(
                "text follows the separator '---' on its line",
                line=line + self._first,
                column=separator.end() - separator.start(),
                hint="put it on the next line",
            )
        try:
            return list(self._compose())
        except YAMLError as error:
            raise self._translated(error) from error

    def _compose(self) -> Iterator[_Found]:
        while type(event := self._next()) is not StreamEndEvent:
            if type(event) is not DocumentStartEvent:
                continue
            if event.version or event.tags:
                raise self._wrong(event, "a directive (%) has no place in a manifest", "remove it")
            self._anchors = {}
            self._sizes = {}
            self._kept = []
            root = self._next()
            value, table = self._node(root)
            yield value, root.start_mark.line + self._first, root.start_mark.column + 1, table or []

    def _wrong(self, event: Any, message: str, hint: str = "") -> Unreadable:
        mark = event.start_mark
        if not hint and _TEMPLATE in self._line(mark.line):
            hint = _HINT_TEMPLATE
        return Unreadable(message, line=mark.line + self._first, column=mark.column + 1, hint=hint)

    def _name(self, text: str) -> str:
        """What an error calls a tag or an alias. In a Secret, or what generates one, it may be an unquoted password."""
        return "***" if "ecret" in self._text else _shown(text)

    def _line(self, index: int) -> str:
        lines = self._text.splitlines()
        return lines[index] if index < len(lines) else ""

    def _node(self, event: Any) -> tuple[JsonValue, list[Any] | None]:
        kind = _kind(event)
        if kind is ScalarEvent:
            value = self._scalar(event)
            if event.anchor is not None:
                self._anchors[event.anchor] = value
            return value, None
        if kind is AliasEvent:
            return self._alias(event), None
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(event, f"collections are nested deeper than {MAX_DEPTH}")
        tag = event.tag
        if kind is MappingStartEvent:
            if tag is not None and tag not in ("!", _PREFIX + "map"):
                raise self._wrong_tag(event)
            value, table = self._mapping(event)
        else:
            assert kind is SequenceStartEvent
            if tag is not None and tag not in ("!", _PREFIX + "seq"):
                raise self._wrong_tag(event)
            value, table = self._sequence(event)
        self._depth -= 1
        if event.anchor is not None:
            self._anchors[event.anchor] = value
            self._sizes[id(value)] = self._size(value)
            self._kept.append(value)
        return value, table

    def _mapping(self, start: Any) -> tuple[dict[str, JsonValue], list[Any]]:
        if start.anchor is not None:
            self._anchors[start.anchor] = _ABSENT
        following, first = self._next, self._first
        mapping: dict[str, JsonValue] = {}
        table: list[Any] = []
        merged: set[str] | None = None  # keys that only merges have given
        while True:
            event = following()
            kind = _kind(event)
            if kind is ScalarEvent and event.tag is None and event.anchor is None:
                key = event.value
                if event.implicit[0] and key[:1] in _KEY_HINTS:
                    if key == "<<":
                        merged = self._merge(event, mapping, table, merged)
                        continue
                    key = self._key(event)
            elif kind is MappingEndEvent:
                return mapping, table
            elif kind is ScalarEvent and event.tag == _PREFIX + "merge" and event.value == "<<":
                merged = self._merge(event, mapping, table, merged)
                continue
            else:
                key = self._key(event)
            if key in mapping and (merged is None or key not in merged):
                raise self._twice(event, key, mapping, table)
            line = event.start_mark.line + first

            event = following()
            if type(event) is ScalarEvent and event.tag is None and event.anchor is None:
                value = event.value
                nested = None
                if event.implicit[0] and value[:1] in _HINTS:
                    value = self._plain(event)
            else:
                value, nested = self._node(event)
            if merged is not None and key in merged:
                merged.remove(key)
                self._spend(len(mapping), event)
                _replace(table, list(mapping).index(key), line, nested)
            else:
                table.append(line)
                if nested is not None:
                    table.append(nested)
            mapping[key] = value

    def _sequence(self, start: Any) -> tuple[list[JsonValue], list[Any]]:
        if start.anchor is not None:
            self._anchors[start.anchor] = _ABSENT
        following, first = self._next, self._first
        sequence: list[JsonValue] = []
        table: list[Any] = []
        while type(event := following()) is not SequenceEndEvent:
            table.append(event.start_mark.line + first)
            value, nested = self._node(event)
            sequence.append(value)
            if nested is not None:
                table.append(nested)
        return sequence, table

    def _merge(self, key: Any, mapping: dict[str, JsonValue], table: list[Any], merged: set[str] | None) -> set[str]:
        """Put the entries of ``<<`` where it stands: like kubectl, and unlike YAML, over what stands before it."""
        event = self._next()
        value, _ = self._node(event)
        several = isinstance(value, list) and type(event) is not AliasEvent
        sources: list[JsonValue] = cast("list[JsonValue]", value)[::-1] if several else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise self._wrong(event, "the merge key '<<' takes a mapping or a sequence of mappings")
        merged = set() if merged is None else merged
        line = key.start_mark.line + self._first
        for source in cast("list[dict[str, JsonValue]]", sources):
            for name, entry in source.items():
                if name in mapping:
                    self._spend(len(mapping), event)  # what it takes to find the entry in the table
                    _replace(table, list(mapping).index(name), line, None)
                else:
                    merged.add(name)
                    table.append(line)
                mapping[name] = entry
        return merged

    def _alias(self, event: Any) -> JsonValue:
        value = self._anchors.get(event.anchor, self)
        if value is self:
            raise self._wrong(
                event,
                f"the alias '*{self._name(event.anchor)}' has no anchor before it in its document",
                "quote it if it is a string",
            )
        if value is _ABSENT:
            raise self._wrong(event, f"the anchor '&{_shown(event.anchor)}' contains itself")
        self._spend(self._sizes.get(id(value)) or self._size(value), event)
        return value

    def _spend(self, size: int, event: Any) -> None:
        self._expansion += size
        if self._expansion > MAX_EXPANSION:
            raise self._wrong(event, f"aliases repeat more than {MAX_EXPANSION} characters", "write less by alias")

    def _size(self, value: JsonValue) -> int:
        """Roughly the characters of a value's JSON. Linear in the source: a repeated collection's size is known."""
        total, rest = 0, [value]
        while rest:
            node = rest.pop()
            known = self._sizes.get(id(node))
            if known is not None:
                total += known
            elif isinstance(node, dict):
                mapping = cast("dict[str, JsonValue]", node)
                total += 2 + sum(map(len, mapping)) + 4 * len(mapping)
                rest.extend(mapping.values())
            elif isinstance(node, list):
                sequence = cast("list[JsonValue]", node)
                total += 2 + len(sequence)
                rest.extend(sequence)
            else:
                total += len(node) + 2 if isinstance(node, str) else 8
        return total

    def _plain(self, event: Any) -> JsonValue:
        text = event.value
        try:
            # The cache must not keep a file's worth of text.
            return _resolve(text) if len(text) <= 64 else _resolve.__wrapped__(text)
        except ValueError:
            raise self._wrong(event, f"{_shown(text)} has no place in JSON", "quote it if it is a string") from None

    def _scalar(self, event: Any) -> JsonValue:
        if event.tag is None or event.tag == "!":
            return self._plain(event) if event.implicit[0] and event.tag is None else event.value
        value = self._tagged(event)
        try:
            return _number(value) if type(value) is int or type(value) is float else value
        except ValueError:
            raise self._wrong(
                event, f"{_shown(event.value)} has no place in JSON", "quote it if it is a string"
            ) from None

    def _tagged(self, event: Any) -> JsonValue:
        """A scalar with an explicit tag, before JSON."""
        text: str = event.value
        tag = event.tag.removeprefix(_PREFIX)
        if tag == "str":
            return text
        if tag == "binary":
            try:
                return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True).decode("utf-8")
            except ValueError as error:
                raise self._wrong(event, "!!binary is not the base64 of UTF-8 text", "use a Secret's data") from error
        if event.tag == tag or tag not in _SCALAR_TAGS:
            raise self._wrong_tag(event)
        value: Any = _scalar(text)
        actual = "null" if value is None else type(value).__name__
        if tag == "float" and isinstance(value, int) and value < 1 << 63 and not isinstance(value, bool):
            return float(value)
        if actual != tag:
            raise self._wrong(event, f"'{self._name(text)}' is no {tag}, as the tag '!!{tag}' says")
        return value

    def _wrong_tag(self, event: Any) -> Unreadable:
        tag: str = event.tag
        mark, name = ("!!", tag.removeprefix(_PREFIX)) if tag.startswith(_PREFIX) else ("!", tag.removeprefix("!"))
        shown = f"{mark}{self._name(name)}"
        hint = "remove it, or quote it if it begins a string"
        return self._wrong(event, f"the tag '{shown}' means nothing to Kubernetes here", hint)

    def _key(self, event: Any) -> str:
        kind = _kind(event)
        if kind is ScalarEvent:
            if event.tag is None:
                value = _scalar(event.value) if event.implicit[0] else event.value
            else:
                value = event.value if event.tag == "!" else self._tagged(event)
            if event.anchor is not None:
                self._anchors[event.anchor] = value
        elif kind is AliasEvent:
            value = self._alias(event)
        else:
            raise self._wrong(event, "a key must be a single word or a quoted string, not a collection")
        key = _key(value)
        if key is None:
            raise self._wrong(event, f"a key cannot be {'empty or null' if value is None else 'this'}", "quote it")
        return key

    def _twice(self, event: Any, key: str, mapping: dict[str, JsonValue], table: list[Any]) -> Unreadable:
        before = _entry(table, list(mapping).index(key))
        return self._wrong(
            event,
            f"the key '{_shown(key)}' stands here for a second time, first on line {table[before]}",
            "keep one of them: kubectl would silently take the second",
        )

    def _translated(self, error: YAMLError) -> Unreadable:
        """libyaml's own complaint: its words, our place, and a hint for what usually is behind it."""
        if not isinstance(error, MarkedYAMLError):
            return self._bad_character(error)
        problem = str(error.problem or "cannot be read")
        if error.context:
            problem = f"{problem} ({error.context}" + (
                f" that began on line {error.context_mark.line + self._first})" if error.context_mark else ")"
            )
        mark = error.problem_mark or error.context_mark
        if error.problem == "could not find expected ':'":
            mark = error.context_mark or mark  # the word that lacks it, not the line where that was noticed
        if mark is None:
            return Unreadable(problem)
        lines = [self._line(mark.line), self._line(mark.line - 1) if mark.line else ""]
        if error.context_mark:
            lines.append(self._line(error.context_mark.line))
        at = lines[0][mark.column : mark.column + 1]
        hint = ""
        if any(_TEMPLATE in line for line in lines):
            hint = _HINT_TEMPLATE
        elif at == "\t" or "\t" in lines[0][: len(lines[0]) - len(lines[0].lstrip())]:
            problem, hint = f"a tab cannot indent YAML: {problem}", "indent with spaces"
        elif "<document start>" in problem:
            hint = "begin another document with a line '---'"
        elif at and at in "@`%":
            hint = f"quote what begins with '{at}'"
        return Unreadable(problem, line=mark.line + self._first, column=mark.column + 1, hint=hint)

    def _bad_character(self, error: YAMLError) -> Unreadable:
        at = _FORBIDDEN.search(self._text)
        if at is None:
            return Unreadable(str(error))
        before = self._text[: at.start()]
        return Unreadable(
            f"the control character U+{ord(at.group()):04X} has no place in YAML",
            line=before.count("\n") + self._first,
            column=at.start() - (before.rfind("\n") + 1) + 1,
            hint="remove it",
        )


#: What libyaml's reader refuses.
_FORBIDDEN = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _entry(table: list[Any], child: int) -> int:
    """The index in a line table of its nth child."""
    at = 0
    for _ in range(child):
        at += 2 if at + 1 < len(table) and isinstance(table[at + 1], list) else 1
    return at


def _replace(table: list[Any], child: int, line: int, nested: list[Any] | None) -> None:
    at = _entry(table, child)
    end = at + (2 if at + 1 < len(table) and isinstance(table[at + 1], list) else 1)
    table[at:end] = [line] if nested is None else [line, nested]


_WORD = re.compile(r"[A-Za-z0-9_$-]+")


def _walk(value: JsonValue, table: list[Any], path: str, into: dict[str, int]) -> None:
    at = 0
    if isinstance(value, dict):
        mapping = cast("dict[str, JsonValue]", value)
        children = [(f"{path}.{key}" if path else key) if _WORD.fullmatch(key) else f"{path}[{key}]" for key in mapping]
        values = list(mapping.values())
    else:
        values = cast("list[JsonValue]", value) if isinstance(value, list) else []
        children = [f"{path}[{index}]" for index in range(len(values))]
    for name, child in zip(children, values, strict=True):
        into[name] = table[at]
        at += 1
        if at < len(table) and isinstance(table[at], list):
            _walk(child, table[at], name, into)
            at += 1


# ---------------------------------------------------------------- JSON

_SPACE = re.compile(r"[ \t\n\r]*")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_scanstring = cast("Callable[[str, int, bool], tuple[str, int]]", _untyped_scanstring)
_LITERALS: Final[dict[str, JsonValue]] = {"true": True, "false": False, "null": None}
_LITERAL = re.compile("true|false|null")


class _JsonReader:
    """A stream of JSON objects, with lines and without duplicate keys. ``consumed`` is where the next one begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.found: list[_Found] = []
        self.consumed = 0
        self.fatal = False  # what is wrong is no question of syntax: YAML would only hide it

    def documents(self) -> list[_Found]:
        at = self._space(0)
        while at < len(self._text):
            line, column = self._place(at)
            value, table, at = self._value(at, 0)
            self.found.append((value, line, column, table or []))
            self.consumed = at
            at = self._space(at)
        return self.found

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self._starts, at)
        return line, at - self._starts[line - 1] + 1

    def _wrong(self, at: int, message: str, hint: str = "") -> Unreadable:
        line, column = self._place(at)
        if _TEMPLATE in self._text[self._starts[line - 1] :].partition("\n")[0]:
            hint = hint or _HINT_TEMPLATE
        return Unreadable(message, line=line, column=column, hint=hint)

    def _space(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def _string(self, at: int) -> tuple[str, int]:
        try:
            text, end = _scanstring(self._text, at + 1, True)
        except JSONDecodeError as error:
            raise self._wrong(min(error.pos, len(self._text)), f"JSON: {error.msg}") from error
        return _SURROGATE.sub("\ufffd", text), end

    def _value(self, at: int, depth: int) -> tuple[JsonValue, list[Any] | None, int]:
        if depth > MAX_DEPTH:
            raise self._wrong(at, f"collections are nested deeper than {MAX_DEPTH}")
        head = self._text[at : at + 1]
        if head == "{":
            return self._object(at, depth)
        if head == "[":
            return self._array(at, depth)
        if head == '"':
            text, end = self._string(at)
            return text, None, end
        if number := _JSON_NUMBER.match(self._text, at):
            digits = number.group()
            value = float(digits) if number.group(1) or number.group(2) or len(digits) > 20 else int(digits)
            if math.isinf(value):
                self.fatal = True
                raise self._wrong(at, f"JSON: the number {digits[:40]} is too large")
            return _number(value), None, number.end()
        if literal := _LITERAL.match(self._text, at):
            return _LITERALS[literal.group()], None, literal.end()
        raise self._wrong(at, "JSON: a value is expected here" if head else "JSON: the text ends in mid-value")

    def _object(self, at: int, depth: int) -> tuple[JsonValue, list[Any], int]:
        mapping: dict[str, JsonValue] = {}
        table: list[Any] = []
        at = self._space(at + 1)
        if self._text[at : at + 1] == "}":
            return mapping, table, at + 1
        while True:
            if self._text[at : at + 1] != '"':
                raise self._wrong(at, "JSON: a key in double quotes is expected here")
            line, _ = self._place(at)
            start = at
            key, at = self._string(at)
            if key in mapping:
                self.fatal = True
                before = table[_entry(table, list(mapping).index(key))]
                raise self._wrong(
                    start,
                    f"the key '{_shown(key)}' stands here for a second time, first on line {before}",
                    "keep one of them: kubectl would silently take the second",
                )
            at = self._space(at)
            if self._text[at : at + 1] != ":":
                raise self._wrong(at, "JSON: ':' is expected here")
            value, nested, at = self._value(self._space(at + 1), depth + 1)
            mapping[key] = value
            table.append(line)
            if nested is not None:
                table.append(nested)
            at = self._space(at)
            if self._text[at : at + 1] == "}":
                return mapping, table, at + 1
            if self._text[at : at + 1] != ",":
                raise self._wrong(at, "JSON: ',' or '}' is expected here")
            at = self._space(at + 1)

    def _array(self, at: int, depth: int) -> tuple[JsonValue, list[Any], int]:
        sequence: list[JsonValue] = []
        table: list[Any] = []
        at = self._space(at + 1)
        if self._text[at : at + 1] == "]":
            return sequence, table, at + 1
        while True:
            line, _ = self._place(at)
            value, nested, at = self._value(at, depth + 1)
            sequence.append(value)
            table.append(line)
            if nested is not None:
                table.append(nested)
            at = self._space(at)
            if self._text[at : at + 1] == "]":
                return sequence, table, at + 1
            if self._text[at : at + 1] != ",":
                raise self._wrong(at, "JSON: ',' or ']' is expected here")
            at = self._space(at + 1)
