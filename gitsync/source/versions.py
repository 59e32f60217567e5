"""Semantic version ranges as Flux and npm users write them. Pure.

``>=1.2.0 <2.0.0`` or ``>=1.2.0, <2.0.0`` (and) · ``1.x || 2.x`` (or) · ``^1.2`` · ``~1.2`` · ``1.2.x`` · ``*`` ·
``1.2 - 2.0``. A pre-release is chosen only by a range that itself names one (``>=1.0.0-0``).
"""

import re
from collections.abc import Callable, Iterable
from functools import partial

from semver import Version

_NUMBER = r"(\d{1,9}|[xX*])"
_PARTIAL = rf"[vV]?{_NUMBER}(?:\.{_NUMBER})?(?:\.{_NUMBER})?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?"
_TERM = re.compile(rf"(\^|~>?|>=|<=|!=|=|>|<)?\s*{_PARTIAL}(?=[\s,]|$)[\s,]*")
_HYPHEN = re.compile(r"(\S+)\s+-\s+(\S+)")
_MAX_RANGE = 256  # characters; a range is written by a person

Test = Callable[[Version], bool]


def parse_version(tag: str) -> Version | None:
    """``v1.2.3`` or ``1.2.3``; ``None`` for any other tag name."""
    text = tag.removeprefix("v")
    return Version.parse(text) if Version.is_valid(text) else None


def highest(tags: Iterable[str], range_: str) -> str | None:
    """The tag with the highest version in the range. ``ValueError`` when the range cannot be read."""
    matches = parse_range(range_)
    versions = ((version, tag) for tag in tags if (version := parse_version(tag)) is not None)
    # Of v1.2.3 and 1.2.3 (or of two builds) the later name wins, so that every replica chooses the same.
    found = max(((version, tag) for version, tag in versions if matches(version)), default=None)
    return found[1] if found else None


def parse_range(text: str) -> Test:
    """A predicate. ``ValueError`` names the part that cannot be read."""
    if len(text) > _MAX_RANGE:
        raise ValueError("the range is too long")
    return partial(_any, [_comparators(part.strip()) for part in text.split("||")])


def _any(alternatives: list[tuple[list[Test], bool]], version: Version) -> bool:
    return any(
        (prereleases or not version.prerelease) and all(test(version) for test in tests)
        for tests, prereleases in alternatives
    )


def _comparators(text: str) -> tuple[list[Test], bool]:
    """All of these must hold; and whether one of them names a pre-release."""
    text = _HYPHEN.sub(r">=\1 <=\2", text)
    tests: list[Test] = []
    prereleases = False
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if not match:
            raise ValueError(f"cannot read {text[position:]!r}")
        operator, *numbers, prerelease = match.groups()
        prereleases = prereleases or prerelease is not None
        tests.extend(_tests(operator or "=", [int(n) if n and n.isdigit() else None for n in numbers], prerelease))
        position = match.end()
    if not tests:
        raise ValueError("the range is empty")
    return tests, prereleases


def _tests(operator: str, numbers: list[int | None], prerelease: str | None) -> list[Test]:
    """One comparator as half-open bounds: a partial version (``1.2``) stands for everything that begins with it."""
    known: list[int] = []
    for number in numbers:
        if number is None:
            break
        known.append(number)
    low = Version(*[*known, 0, 0, 0][:3], prerelease=prerelease)
    match operator:
        case "^":  # up to the next change of the first number that is not zero
            significant = next((i for i, n in enumerate(known) if n), max(len(known) - 1, 0))
            high = _next(known[: significant + 1])
        case "~" | "~>":
            high = _next(known[:2])
        case _ if len(known) == 3:
            high = None
        case _:
            high = _next(known)

    def at_least(v: Version) -> bool:
        return v >= low

    def below(v: Version) -> bool:
        return high is None or v < high

    match operator:
        case "^" | "~" | "~>":
            return [at_least, below]
        case ">=":
            return [at_least]
        case "<":
            return [lambda v: v < low]
        case ">":
            return [lambda v: v >= high if high else len(known) == 3 and v > low]
        case "<=":
            return [lambda v: v < high if high else len(known) < 3 or v <= low]
        case "!=":
            return [lambda v: v != low if len(known) == 3 else not (at_least(v) and below(v))]
        case _:
            return [lambda v: v == low] if len(known) == 3 else [at_least, below]


def _next(prefix: list[int]) -> Version | None:
    """The first version above every one that begins with ``prefix``, its pre-releases excluded; ``None``: no bound."""
    if not prefix:
        return None
    return Version(*[*prefix[:-1], prefix[-1] + 1, 0, 0][:3], prerelease="0")
