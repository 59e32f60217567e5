""".dockerignore as BuildKit reads it. Pure.

Neither git's rules nor ``fnmatch``: every pattern is anchored at the context, ``**`` crosses directories anywhere, a
pattern that matches a directory matches all below it, and the last pattern that matches decides. Translating each
pattern to a regular expression, as BuildKit itself does, is shorter than bending a gitignore library to these rules.
"""

import posixpath
import re
from collections.abc import Callable

from gitsync.errors import Invalid
from gitsync.model import Origin


def ignore_file(dockerfile: str, context: str) -> tuple[str, str]:
    """Candidates by precedence, as paths from the root: ``<Dockerfile>.dockerignore``, then the context's own."""
    return f"{dockerfile}.dockerignore", posixpath.normpath(posixpath.join(context, ".dockerignore"))


def matcher(text: str, origin: Origin | None = None) -> Callable[[str], bool]:
    """A test whether a file (POSIX path relative to the context) is ignored. ``Invalid`` names a bad pattern's line."""
    rules: list[tuple[bool, re.Pattern[str]]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if line.startswith("#"):
            continue
        pattern = line.strip()
        keep = pattern.startswith("!")
        if keep:
            pattern = pattern[1:].strip()
        if not pattern:
            if not keep:
                continue
            raise _bad(origin, number, line, "“!” needs a pattern")
        pattern = _clean(pattern)
        try:
            rules.append((keep, re.compile(_regex(pattern), re.DOTALL)))
        except (re.error, IndexError):
            raise _bad(origin, number, line, "a pattern of .dockerignore is malformed") from None
    if not rules:
        return lambda path: False

    # Most files share few directories: what the rules say of a directory is worked out once.
    known: dict[str, tuple[bool, ...]] = {"": (False,) * len(rules)}

    def hits(path: str) -> tuple[bool, ...]:
        parent = path.rpartition("/")[0]
        above = known.get(parent)
        if above is None:
            above = known[parent] = hits(parent)
        return tuple(hit or rule.fullmatch(path) is not None for hit, (_, rule) in zip(above, rules, strict=True))

    def ignored(path: str) -> bool:
        found = hits(path)
        for hit, (keep, _) in zip(reversed(found), reversed(rules), strict=True):
            if hit:
                return not keep
        return False

    return ignored


def _clean(pattern: str) -> str:
    """Go's ``filepath.Clean``, then without leading slashes and surrounding blanks."""
    return posixpath.normpath(pattern).lstrip("/").strip() or "/"


def _regex(pattern: str) -> str:
    special = re.compile(r"[*?\[\]\\]")
    if pattern.startswith("**") and not special.search(pattern[2:]) and pattern[2:3] != "/":
        return ".*" + re.escape(pattern[2:])  # BuildKit: “**.log” is any path that ends so
    out: list[str] = []
    i = 0
    while i < len(pattern):
        c = pattern[i]
        i += 1
        if c == "*":
            if pattern[i : i + 1] != "*":
                out.append("[^/]*")
                continue
            i += 2 if pattern[i + 1 : i + 2] == "/" else 1
            out.append("(?:.*/)?" if i < len(pattern) else ".*")
        elif c == "?":
            out.append("[^/]")
        elif c == "\\":
            out.append(re.escape(pattern[i]))  # IndexError: nothing follows
            i += 1
        elif c == "[":
            negated = "^" if pattern[i : i + 1] == "^" else ""
            start = i + len(negated)
            end = pattern.find("]", start)
            if end <= start:
                raise re.error("an empty or unterminated class")
            body = re.sub(r"([\[&~|^])", r"\\\1", pattern[start:end])
            out.append(f"[{negated}{body}]")
            i = end + 1
        else:
            out.append(re.escape(c))
    return "".join(out)


def _bad(origin: Origin | None, number: int, line: str, why: str) -> Invalid:
    place = Origin(
        repository=origin.repository if origin else "",
        sha=origin.sha if origin else "",
        file=origin.file if origin else ".dockerignore",
        line=number,
    )
    return Invalid(f"{why}: {line.strip()[:200]!r}", doing="reading .dockerignore", origin=place)
