"""The identity of a build: what goes in, and the hash over it. Pure.

Two clones, two branches, two replicas that hold the same inputs get the same value, whatever the order in which the
inputs arrive; any input that differs gives another. The name of the image and the place of its directory are not
inputs: the same content elsewhere builds the same image.
"""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from gitsync.model import FileMode, Fingerprint, ImageSpec, TreeEntry

#: Raise when a change in gitsync changes what a builder makes of the same inputs: everything is built once more.
ALGORITHM = "gitsync-image-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The files of one image at one commit; paths from the root of the repository."""

    context: tuple[TreeEntry, ...]  # what .dockerignore leaves in
    ignored: tuple[TreeEntry, ...] = ()  # what it takes out
    dockerfile: TreeEntry | None = None  # None: not there at this commit
    rules: TreeEntry | None = None  # the .dockerignore in force


def inside(path: str, context: str) -> str:
    """``path`` relative to the context it lies in. Both are relative to the root; the context may be "" or "."."""
    return path.removeprefix(_prefix(context))


@lru_cache
def _prefix(context: str) -> str:
    normal = posixpath.normpath(context or ".")
    return "" if normal == "." else f"{normal}/"


def fingerprint(
    spec: ImageSpec,
    context: Iterable[TreeEntry],
    *,
    dockerfile_id: str,
    bases: Mapping[str, str],
    platform: str,
    output_format: str,
) -> Fingerprint:
    """``context`` as in ``Inputs``, ``dockerfile_id`` the Dockerfile's blob id, ``platform`` like ``linux/amd64``.

    ``bases`` maps each external image to its digest. With "" for a digest that is not known (no registry at hand) the
    value is still comparable between commits, but is not the one that a build will use.
    """
    inputs = [
        ("algorithm", ALGORITHM),
        ("dockerfile", dockerfile_id),
        ("target", spec.target),
        ("platform", platform),
        ("format", output_format),
        *(("arg " + name, value) for name, value in sorted(dict(spec.args).items())),
        *(("base " + name, digest or "not resolved") for name, digest in sorted(bases.items())),
        *sorted(
            ("file " + inside(entry.path, spec.context), f"{FileMode(entry.mode).value} {entry.id}")
            for entry in context
        ),
    ]
    digest = hashlib.sha256()
    for name, value in inputs:
        for part in (name, value):  # the length first, so that no two lists of parts hash alike
            data = part.encode("utf-8", "surrogateescape")
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return Fingerprint(value=digest.hexdigest(), inputs=tuple(inputs))


def touched(old: Inputs, new: Inputs) -> tuple[str, ...]:
    """Which files (paths from the root, sorted) make ``new`` another image's input than ``old``.

    Files that changed and are inputs on either side, the Dockerfile, and a .dockerignore whose change lets other
    files in or out.
    """
    before, after = _by_path(old.context), _by_path(new.context)
    whole_before, whole_after = before | _by_path(old.ignored), after | _by_path(new.ignored)
    changed: set[str] = set()
    for path in before.keys() | after.keys():
        if before.get(path) == after.get(path):
            continue
        if whole_before.get(path) != whole_after.get(path):
            changed.add(path)
        else:  # the file is as it was: other rules let it in or out
            changed |= {entry.path for entry in (old.rules, new.rules) if entry}
    if _id(old.dockerfile) != _id(new.dockerfile):
        changed |= {entry.path for entry in (old.dockerfile, new.dockerfile) if entry}
    return tuple(sorted(changed))


def _by_path(entries: Iterable[TreeEntry]) -> dict[str, tuple[str, str]]:
    return {entry.path: (entry.mode, entry.id) for entry in entries}


def _id(entry: TreeEntry | None) -> str:
    return entry.id if entry else ""
