"""What the API server's answers mean: their shapes, and its refusals as gitsync's errors. Pure, no I/O.

Transient        unreachable, 5xx, 401: nothing is known to be wrong with what was sent
├── Waiting      429 (Retry-After), quota, something that is missing or terminating
│   └── Forbidden  403 of the authorizer: a right is missing, which only somebody else can give
├── Conflict     409: somebody else wrote first, or owns a field
└── Expired      410: list again
Refused
└── Rejected     400, 403, 422 …: the server refused the object; ``causes`` name fields
Invalid
└── NoKind       the server does not serve this kind
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import msgspec
import orjson

from gitsync.errors import GitsyncError, Invalid, Refused, Transient, Waiting
from gitsync.model import Json, ObjectRef

Sent = Json | list[Json] | None
"""A request's body, to read paths in and to keep a Secret's values out of messages."""


class Conflict(Transient):
    """409. ``causes`` are (field, message that names the manager) when field managers conflict."""

    reason = "Conflict"
    causes: tuple[tuple[str, str], ...] = ()


class Expired(Transient):
    """410: the resource version or continue token is too old."""

    reason = "Expired"


class NoKind(Invalid):
    """The server does not serve this kind (a missing CRD, a removed API version)."""

    reason = "NoKind"


class Rejected(Refused):
    """The server refused what was sent. ``causes`` are (field path, message); ``status`` is the HTTP status."""

    causes: tuple[tuple[str, str], ...] = ()
    status: int = 0


class Forbidden(Waiting):
    """403 because a right is missing: nothing was judged, so nothing speaks against what was sent.

    An admission plugin, policy or webhook that denies an object is a 403 too, but it has judged it: ``Rejected``.
    """

    reason = "Forbidden"

    @property
    def of_ours(self) -> bool:
        """Whether it is gitsync that lacks it: it may not act as the account."""
        return " cannot impersonate " in self.message

    def refusal(self) -> Rejected:
        """The same as evidence, for who knows that the right was never there: the commit asks for too much."""
        hint = "take it out of git; or grant that right, and sync with --retry"
        rejected = Rejected(self.message, doing=self.doing, ref=self.ref, origin=self.origin, hint=hint)
        rejected.reason, rejected.status = self.reason, 403
        return rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """How a kind is addressed. ``verbs`` as discovery lists them."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    verbs: frozenset[str] = frozenset()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def ref(self, namespace: str, name: str) -> ObjectRef:
        space = namespace if self.namespaced else ""
        return ObjectRef(group=self.group, version=self.version, kind=self.kind, namespace=space, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A whole list at one resource version. Items carry ``apiVersion`` and ``kind``."""

    items: tuple[Json, ...]
    resource_version: str


class WatchEvent(msgspec.Struct, frozen=True, gc=False):
    """``type`` is ADDED, MODIFIED, DELETED or BOOKMARK; ``object`` its JSON, not decoded."""

    type: str
    object: msgspec.Raw


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Page(msgspec.Struct):
    """One page of a list; items not decoded."""

    kind: str
    metadata: _ListMeta
    items: list[msgspec.Raw] | None


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, rename="camel"):
    kind: str = ""
    name: str = ""
    causes: list[_Cause] | None = None
    retry_after_seconds: float = 0


class Status(msgspec.Struct):
    """The API server's own way to say no; ``kind`` is "" when a body is none."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_decode_event = msgspec.json.Decoder(WatchEvent).decode
_decode_page = msgspec.json.Decoder(Page).decode
_decode_status = msgspec.json.Decoder(Status).decode


def read_object(body: bytes, doing: str, ref: ObjectRef | None = None) -> Json:
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Transient("the answer is not JSON", doing=doing, ref=ref) from error
    if not isinstance(value, dict):
        raise Transient("the answer is not an object", doing=doing, ref=ref)
    return cast(Json, value)


def read_page(body: bytes, doing: str) -> Page:
    try:
        page = _decode_page(body)
    except msgspec.DecodeError as error:
        raise Transient(f"the answer is not a list: {error}", doing=doing) from error
    if not page.kind.endswith("List") or not page.metadata.resource_version:
        raise Transient(f"the answer is not a list but a {page.kind[:60]!r}", doing=doing)
    return page


def read_event(line: bytes, doing: str) -> WatchEvent:
    """One line of a watch. Raises ``Expired`` or ``Transient`` for an ERROR event."""
    try:
        event = _decode_event(line)
    except msgspec.DecodeError as error:
        raise Transient(f"an event is not JSON: {error}", doing=doing) from error
    if event.type == "ERROR":
        status = read_status(bytes(event.object))
        if status.code == 410:
            raise Expired(status.message or "too old resource version", doing=doing)
        raise Transient(f"the server ended the watch: {status.code} {status.message}", doing=doing)
    return event


def read_status(body: bytes) -> Status:
    try:
        status = _decode_status(body)
    except msgspec.DecodeError:
        return Status()
    return status if status.kind == "Status" else Status()


# ---------------------------------------------------------------- refusals


def failure_of(
    code: int, content_type: str, retry_after: str, body: bytes, *, doing: str, ref: ObjectRef | None, sent: Sent
) -> GitsyncError:
    """An answer's meaning. Only the API server's own Status is quoted, never a page of something in between."""
    status = read_status(body) if content_type == "application/json" else Status()
    ours = bool(status.kind)
    details = status.details or _Details()
    message = status.message if ours else f"HTTP {code} ({content_type})"
    causes = causes_of(message, ((cause.field, cause.message) for cause in details.causes or ()), sent)
    if ref is not None and ref.kind == "Secret" and ref.group == "":
        message = without_values(message, sent)
        causes = tuple((path, without_values(text, sent)) for path, text in causes)

    def waiting(reason: str, seconds: float, hint: str = "") -> Waiting:
        return Waiting(message, doing=doing, ref=ref, reason=reason, hint=hint, retry_after=seconds)

    match code:
        case 401:
            message = "the cluster does not accept the credentials"
            return Transient(message, doing=doing, ref=ref, reason="Unauthorized", hint="renew them")
        case 404 if ours and details.kind == "namespaces" and ref is not None and ref.kind != "Namespace":
            hint = f"create namespace {details.name}, or add it to the repository"
            return waiting("NamespaceNotFound", 15, hint)
        case 404 if ours and (details.name or details.kind):
            return waiting("NotFound", 15)
        case 404 if content_type != "text/html":  # a page would be somebody else's answer
            message = f"the cluster does not serve {f'{ref.api_version} {ref.kind}' if ref else 'this'}"
            return NoKind(message, doing=doing, ref=ref, hint="install its CustomResourceDefinition")
        case 409:
            conflict = Conflict(message, doing=doing, ref=ref, reason=status.reason)
            conflict.causes = causes
            return conflict
        case 410:
            return Expired(message, doing=doing, ref=ref)
        case 429:
            return waiting("TooManyRequests", _seconds(retry_after, details.retry_after_seconds))
        case 403 if any(cause.reason == "NamespaceTerminating" for cause in details.causes or ()):
            return waiting("NamespaceTerminating", 10)
        case 403 if "exceeded quota" in message:
            return waiting("QuotaExceeded", 30, "raise the quota, or ask for less")
        case 403 if "error looking up service account" in message:
            return waiting("ServiceAccountNotFound", 15, "create it, or add it to the repository")
        case 403 if ours and _NO_RIGHT.match(message):
            return Forbidden(message, doing=doing, ref=ref, hint="it goes on once that is granted", retry_after=15)
        case _ if (400 <= code < 500 and ours) or _UNCLASSIFIED.search(message):
            message = "; ".join(f"{path}: {text}" for path, text in causes) or message
            rejected = Rejected(message, doing=doing, ref=ref, reason="Forbidden" if code == 403 else "")
            rejected.causes, rejected.status = causes, code
            return rejected
        case _:
            return Transient(message, doing=doing, ref=ref, reason=status.reason)


def _seconds(header: str, body: float) -> float:
    """``Retry-After`` as 0.1 to 60 seconds; a date or nonsense counts as one second."""
    try:
        seconds = float(header)
    except ValueError:
        seconds = body or 1.0
    return min(max(seconds, 0.1), 60.0) if seconds == seconds else 1.0


#: The authorizer's words, and those of RBAC about who may grant what; admission's begin otherwise, whatever they quote.
_NO_RIGHT = re.compile(
    r'(\S+( "[^"]*")? is )?forbidden: '
    r'(User "[^"]*" cannot \w+ (resource|path) "|user "[^"]*" \(groups=\[.*\]\) is attempting to grant )'
)
#: Server-side apply reports what does not fit the schema as a 500: nobody has classified it.
_UNCLASSIFIED = re.compile("failed to create typed patch object|unable to convert unstructured object")
_TYPED = re.compile(r"^\s*\.(?P<path>[A-Za-z]\S*?): (?P<text>.+)$", re.MULTILINE)
_STRICT = re.compile(r'(?P<text>unknown field|duplicate field) "(?P<path>[^"]+)"')
_MISTYPED = re.compile(r"(?P<text>cannot unmarshal .+? into Go struct field \w+\.(?P<path>[\w.]+) of type [\w.\[\]]+)")
_KEYED = re.compile(r"\[(\w+)=\"?([^\]\",]*)\"?(?:,[^\]]*)?\]")


def causes_of(message: str, causes: Iterable[tuple[str, str]], sent: Sent) -> tuple[tuple[str, str], ...]:
    """(field path, text) of a refusal: as the Status lists them, else as its message spells them.

    Paths are those of manifests (``spec.template.spec.containers[0].image``): a list's key is turned into an index.
    """
    found = [(path, text) for path, text in causes if path]
    if not found:
        typed = message.partition("failed to create typed patch object")[2].partition("): ")[2]
        rules = (_TYPED,) if typed else (_STRICT, _MISTYPED)
        text = typed.removeprefix("errors:") or message
        found = [(match["path"], match["text"]) for rule in rules for match in rule.finditer(text)]
    return tuple((_indexed(path.removeprefix("."), sent), text) for path, text in found)


def _indexed(path: str, sent: Sent) -> str:
    """``containers[name="web"].image`` → ``containers[0].image``, by looking into what was sent."""
    while match := _KEYED.search(path):
        before, after = path[: match.start()], path[match.end() :]
        items = _walk(sent, before)
        index = "0"
        if isinstance(items, list):
            for number, item in enumerate(cast(list[Any], items)):
                if isinstance(item, dict) and str(cast(Json, item).get(match[1])) == match[2]:
                    index = str(number)
                    break
        path = f"{before}[{index}]{after}"
    return path


def _walk(value: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, dict):
            value = cast(Json, value).get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(cast(list[Any], value)):
            value = cast(list[Any], value)[int(step)]
        else:
            return None
    return value


def without_values(text: str, sent: Sent) -> str:
    """``text`` with every value of a Secret's data replaced; a server's message may quote what it could not read."""
    if not isinstance(sent, dict):
        return text
    values: set[str] = set()
    pending: list[Any] = [sent.get("data"), sent.get("stringData")]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += cast(Json, value).values()
        elif isinstance(value, list):
            pending += cast(list[Any], value)
        elif value is not None and value != "":
            values |= {str(value), orjson.dumps(value).decode().strip('"')}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
