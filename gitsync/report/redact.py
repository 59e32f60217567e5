"""Takes secrets out of texts: the one redactor of logs, Events and status.

The first defence is not to put a secret into a text at all. This is the second: values that the process has read from
Secrets are masked wherever they turn up, and so is whatever looks like a credential.
"""

from __future__ import annotations

import base64
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import quote

MASK = "***"
_SHORTEST = 6  # shorter values would mask ordinary words
_MOST = 32768  # an ssh key has fifty lines, and each is one; hosts want another key for each repository
_DEEPEST = 8

# Each replacement keeps what tells a reader where the secret was. Quantifiers are bounded: texts come from outside.
_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,30}://)[^\s/@'\"<>]{1,1024}@"), rf"\1{MASK}@"),
    (re.compile(r"(?i)\b((?:proxy-)?authorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:basic|bearer|token)\s+)?)"
                r"[^\s'\",;]{1,8192}"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b((?:bearer|basic)\s{1,4})[a-z0-9._~+/-]{12,8192}=*"), rf"\1{MASK}"),
    (re.compile(r"-----BEGIN ([A-Z ]{0,40}PRIVATE KEY)-----.{0,20000}?(?:-----END \1-----|\Z)", re.DOTALL),
     rf"-----BEGIN \1----- {MASK}"),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|gl[a-z]{2,5}-|dckr_pat_|npm_|pypi-|xox[abprs]-|whsec_|AKIA)"
                r"[A-Za-z0-9_-]{10,512}"), MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,4096}"), MASK),
    (re.compile(r"(?i)((?:password|passwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key)"
                r"['\"]?\s{0,4}[:=]\s{0,4})"
                r"(?!\*\*\*)(?:\"[^\"\n]{1,8192}\"|'[^'\n]{1,8192}'|[^\s'\"&,;]{1,8192})"), rf"\1{MASK}"),
)  # fmt: skip

_SECRET_KEY = re.compile(
    r"(?i)(?:^|[_.-])(?:password|passwd|secret|token|authorization|credentials?|identity_key|api_?key|private_?key)$"
)


class Redactor:
    """Masks learned values and whatever has the shape of a credential. Call it with a text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._kept: set[str] = set()
        self._values: OrderedDict[str, None] = OrderedDict()  # the longest unused first
        # How many values have a form, by its beginning. One regular expression of all of them would have to be made
        # anew for each value, and to try thousands of words at each character.
        self._forms: dict[str, Counter[str]] = {}
        self.learn(*values)

    def learn(self, *values: str, keep: bool = False) -> None:
        """Mask these values from now on, also as base64 and percent-encoded.

        Of tens of thousands, those are forgotten that were learned, or learned again, the longest time ago; never those
        to ``keep``.
        """
        lines = {line.strip() for value in values for line in (value, *value.splitlines())}
        for value in sorted(line for line in lines if len(line) >= _SHORTEST):
            if value in self._values:
                self._values.move_to_end(value)
            elif value not in self._kept:
                for form in _forms(value):
                    self._forms.setdefault(form[:_SHORTEST], Counter())[form] += 1
                self._values[value] = None
            if keep and value in self._values:
                del self._values[value]
                self._kept.add(value)
        while len(self._values) > _MOST:
            self._forget(self._values.popitem(last=False)[0])

    def _forget(self, value: str) -> None:
        for form in _forms(value):
            alike = self._forms[form[:_SHORTEST]]
            alike[form] -= 1
            if not alike[form]:
                del alike[form]
            if not alike:
                del self._forms[form[:_SHORTEST]]

    def _masked(self, text: str) -> str:
        known, parts, end = self._forms, list[str](), 0
        for at in [at for at in range(len(text) - _SHORTEST + 1) if text[at : at + _SHORTEST] in known]:
            if at < end:
                continue
            alike = [form for form in known[text[at : at + _SHORTEST]] if text.startswith(form, at)]
            if alike:
                # the longest: a secret that begins with another one must not leave its tail behind
                parts += [text[end:at], MASK]
                end = at + max(map(len, alike))
        return "".join([*parts, text[end:]]) if parts else text

    def __call__(self, text: str) -> str:
        text = self._masked(text)
        for pattern, replacement in _SHAPES:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: object, depth: int = 0) -> Any:
        """The same for a nested value of a log line or a status; a key that names a secret masks what it holds."""
        if isinstance(value, str):
            return self(value)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if depth >= _DEEPEST:
            return "…"
        if isinstance(value, Mapping):
            mapping = cast("Mapping[object, object]", value)
            return {
                str(key): MASK if item and _SECRET_KEY.search(str(key)) else self.value(item, depth + 1)
                for key, item in mapping.items()
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.value(item, depth + 1) for item in cast("Iterable[object]", value)]
        if isinstance(value, bytes):
            return f"<{len(value)} bytes>"
        return self(str(value))


def _forms(value: str) -> set[str]:
    """A learned value as it may turn up."""
    encoded = base64.b64encode(value.encode(errors="replace")).decode().rstrip("=")
    return {value, quote(value, safe="", errors="replace"), encoded}


def shorten(text: str, size: int) -> str:
    """At most ``size`` bytes of UTF-8: beginning and end stay, because the end of a build's output says why."""
    raw = text.encode(errors="replace")  # a file name that is no UTF-8 arrives as lone surrogates
    if len(raw) <= size:
        return raw.decode()
    mark = " … "
    head = (size - len(mark.encode())) // 2
    tail = size - len(mark.encode()) - head
    return raw[:head].decode(errors="ignore") + mark + raw[len(raw) - tail :].decode(errors="ignore")
