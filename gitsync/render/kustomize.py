"""Builds a kustomization with the tool's own binary, from a private copy of just the directories it names.

What a kustomization refers to is read first, file by file, through the snapshot: whatever is not in the commit (a
remote base above all) is refused before anything runs. Plugins, functions and helm inflation stay off.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final, cast

import orjson

from gitsync.errors import Invalid
from gitsync.model import FileMode, Json, JsonValue, Origin, Snapshot, TreeEntry
from gitsync.render.tool import Bounds, find, run
from gitsync.render.yaml import LFS, MAX_BYTES, Document, load

FILES: Final = ("kustomization.yaml", "kustomization.yml", "Kustomization")
ORIGIN: Final = "config.kubernetes.io/origin"
_REFERENCES: Final = ("resources", "bases", "components", "crds", "configurations", "generators", "transformers",
                      "validators")  # fmt: skip
_MAY_BE_INLINE: Final = frozenset({"generators", "transformers", "validators"})
_REFUSED: Final = ("helmCharts", "helmChartInflationGenerator", "helmGlobals")
_PATH_FIELDS: Final = frozenset({"path", "files", "env", "envs", "patchesStrategicMerge"})
_REMOTE = re.compile(r"(?:[^=]*=)?(?:[a-z][a-z0-9+.-]*://|[^/\s]+@[^/\s]+:|git::)", re.IGNORECASE)
_LFS_SIZE: Final = 1024
_MAX_DIRECTORIES: Final = 500


def at(snapshot: Snapshot, directory: str) -> str:
    """The path of a directory's kustomization file, or ""."""
    return next((path for name in FILES if snapshot.entry(path := posixpath.join(directory, name))), "")


async def build(snapshot: Snapshot, directory: str, *, bounds: Bounds, size: int) -> bytes:
    """The YAML that ``kustomize build`` gives, each object annotated with ``ORIGIN``.

    ``size`` bounds the bytes of all files below the directories used. Raises ``Invalid``.
    """
    root, documents = await _closure(snapshot, directory)
    origin = _origin(snapshot, root)
    binary = find("kustomize", "kubectl")
    if binary is None:
        raise Invalid(
            "neither kustomize nor kubectl is on PATH",
            doing="building the kustomization",
            origin=origin,
            hint="install one of them beside gitsync, or commit plain YAML",
            reason="ToolMissing",
        )
    directories = _outermost(documents)
    await check_files(snapshot, directories, size, doing="exporting the kustomization")
    verb = ["kustomize"] if os.path.basename(binary).startswith("kubectl") else ["build"]
    with tempfile.TemporaryDirectory(prefix="gitsync-kustomize-") as private:
        tree = os.path.join(private, "tree")
        os.mkdir(tree)
        os.mkdir(os.path.join(private, "home"))
        for used in directories:
            target = os.path.join(tree, used)
            os.makedirs(target, exist_ok=True)
            await snapshot.export(used, target)
        with open(os.path.join(tree, root), "wb") as file:  # noqa: ASYNC230 -- a small file in a directory of our own
            file.write(orjson.dumps(_with_origins(documents[directory])))
        return await run(
            [binary, *verb, "--load-restrictor=LoadRestrictionsRootOnly", "."],
            directory=os.path.join(tree, directory),
            private=private,
            bounds=bounds,
            doing="building the kustomization",
            origin=origin,
            clean=partial(_without_secrets, kustomizations=tuple(documents.values())),
        )


def _without_secrets(said: str, kustomizations: Iterable[Json]) -> str:
    """What kustomize says, which quotes all literals of a generator and whole patches: they may be of a Secret."""
    said = re.sub(r"with config: `.*\n\s*`: ", "", said, flags=re.DOTALL)
    said = re.sub(r'\[patch: ".*"', "[patch", said, flags=re.DOTALL)
    for kustomization in kustomizations:
        generators: JsonValue = kustomization.get("secretGenerator")
        for generator in cast("list[Any]", generators) if isinstance(generators, list) else ():
            listed: JsonValue = cast("Json", generator).get("literals") if isinstance(generator, dict) else None
            literals = [str(each) for each in cast("list[Any]", listed)] if isinstance(listed, list) else []
            for literal in sorted(filter(None, literals), key=len, reverse=True):
                name, equals, _ = literal.partition("=")
                said = said.replace(literal, f"{name}=***" if equals else "***")
    return said


def take_origin(obj: JsonValue, directory: str) -> tuple[JsonValue, str]:
    """The object without ``ORIGIN``, and the path from the root of the repository that it named ("": none)."""
    if not isinstance(obj, dict):
        return obj, ""
    whole = cast("Json", obj)
    metadata: JsonValue = whole.get("metadata")
    annotations: JsonValue = cast("Json", metadata).get("annotations") if isinstance(metadata, dict) else None
    if not isinstance(annotations, dict) or ORIGIN not in annotations:
        return whole, ""
    kept: Json = {key: value for key, value in cast("Json", annotations).items() if key != ORIGIN}
    rest: Json = {key: value for key, value in cast("Json", metadata).items() if key != "annotations"}
    found = re.search(r"^(?:path|configuredIn): (.+)$", str(cast("Json", annotations)[ORIGIN]), re.MULTILINE)
    path = posixpath.normpath(posixpath.join(directory, found[1])) if found else ""
    return {**whole, "metadata": {**rest, "annotations": kept} if kept else rest}, path


def _with_origins(kustomization: Json) -> Json:
    metadata: JsonValue = kustomization.get("buildMetadata") or []
    listed = cast("list[Any]", metadata) if isinstance(metadata, list) else []
    return {**kustomization, "buildMetadata": [*(item for item in listed if item != "originAnnotations"),
                                               "originAnnotations"]}  # fmt: skip


def _origin(snapshot: Snapshot, file: str, line: int = 0, field: str = "") -> Origin:
    revision = snapshot.revision
    return Origin(repository=revision.repository, sha=revision.sha, file=file, line=line, field=field)


def _outermost(directories: dict[str, Any]) -> list[str]:
    """Those that no other contains."""
    kept: list[str] = []
    for path in sorted(directories):
        if not any(path == other or other == "" or path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


async def _closure(snapshot: Snapshot, directory: str) -> tuple[str, dict[str, Json]]:
    """The root's file, and the kustomization of every directory it needs, by directory."""
    documents: dict[str, Json] = {}
    first, todo = "", [directory]
    while todo:
        current = todo.pop()
        if current in documents:
            continue
        if len(documents) >= _MAX_DIRECTORIES:
            raise Invalid(f"uses more than {_MAX_DIRECTORIES} directories", doing="building the kustomization",
                          origin=_origin(snapshot, first))  # fmt: skip
        file = at(snapshot, current)
        if not file:
            raise Invalid("has no kustomization file", doing="building the kustomization",
                          origin=_origin(snapshot, current))  # fmt: skip
        first = first or file
        document = await _read(snapshot, file)
        documents[current] = cast("Json", document.value)
        todo.extend(_local(snapshot, current, file, document))
    return first, documents


async def _read(snapshot: Snapshot, file: str) -> Document:
    entry = snapshot.entry(file)
    origin = _origin(snapshot, file)
    if entry is None or entry.mode not in (FileMode.FILE, FileMode.EXECUTABLE):
        raise Invalid("is no regular file", doing="reading the kustomization", origin=origin)
    data = (await snapshot.read([entry], limit=MAX_BYTES))[file]
    documents = load(data, origin)
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise Invalid("must hold exactly one object", doing="reading the kustomization", origin=origin)
    return documents[0]


def _local(snapshot: Snapshot, directory: str, file: str, document: Document) -> Iterator[str]:
    """Directories it refers to. Refuses what is not in the commit."""

    def refuse(message: str, field: str, hint: str = "") -> Invalid:
        line = document.lines.get(field, 0)
        return Invalid(message, doing="reading the kustomization", origin=_origin(snapshot, file, line, field),
                       hint=hint)  # fmt: skip

    value: Json = document.value
    for field in _REFUSED:
        if field in value:
            raise refuse("inflating a Helm chart from a kustomization is not allowed", field,
                         "commit the chart and name its directory as `path`")  # fmt: skip
    for field, text in _paths(value, ""):
        if _REMOTE.match(text):
            raise refuse(f"'{text}' is remote; only files of the commit are read", field, "commit a copy of it")
    for name in _REFERENCES:
        listed: JsonValue = value.get(name) or []
        for index, entry in enumerate(cast("list[Any]", listed) if isinstance(listed, list) else ()):
            field = f"{name}[{index}]"
            if not isinstance(entry, str):
                raise refuse("must be a path", field)
            if name in _MAY_BE_INLINE and "\n" in entry:
                continue
            target = posixpath.normpath(posixpath.join(directory, entry))
            target = "" if target == "." else target
            if not _REMOTE.match(entry) and not entry.startswith("/") and not target.startswith(".."):
                if snapshot.entry(target) is not None:
                    continue
                if next(iter(snapshot.entries(target)), None) is not None:
                    yield target
                    continue
            raise refuse(f"'{entry}' is not in the commit", field,
                         "commit it: remote bases are never fetched")  # fmt: skip


def _paths(node: JsonValue, path: str, inside: bool = False) -> Iterator[tuple[str, str]]:
    """Strings of fields from which kustomize would load a file."""
    if isinstance(node, dict):
        for key, child in cast("Json", node).items():
            yield from _paths(child, f"{path}.{key}" if path else key, inside=key in _PATH_FIELDS)
    elif isinstance(node, list):
        for index, child in enumerate(cast("list[Any]", node)):
            yield from _paths(child, f"{path}[{index}]", inside)
    elif inside and isinstance(node, str) and "\n" not in node:
        yield path, node


async def check_files(snapshot: Snapshot, directories: list[str], size: int, *, doing: str) -> None:
    """Before anything is exported: only regular files, not more than ``size`` bytes, no LFS pointers."""
    total, small = 0, list[TreeEntry]()
    for directory in directories:
        for entry in snapshot.entries(directory):
            refused = refusal(entry)
            total += max(entry.size, 0)
            if not refused and total > size:
                refused = (f"its directories hold more than {size} bytes", "")
            if refused:
                raise Invalid(refused[0], doing=doing, origin=_origin(snapshot, entry.path), hint=refused[1])
            if entry.size <= _LFS_SIZE:
                small.append(entry)
    for path, data in (await snapshot.read(small, limit=size)).items():
        if data.startswith(LFS):
            raise Invalid("is a Git LFS pointer, not the file itself", doing=doing,
                          origin=_origin(snapshot, path), hint="store it in git, not in LFS")  # fmt: skip


def refusal(entry: TreeEntry) -> tuple[str, str] | None:
    """Why a tree's entry is not to be read, and what to do about it."""
    if entry.mode is FileMode.SYMLINK:
        return "is a symbolic link", "commit the file itself"
    if entry.mode is FileMode.SUBMODULE:
        return "is a submodule", "commit its files"
    return None
