"""Renders a chart with ``helm template``: no cluster, no network, no post-renderer, dependencies only if committed."""

from __future__ import annotations

import bisect
import os
import posixpath
import re
import tempfile
from collections.abc import Sequence
from typing import Any, Final, cast

from gitsync.errors import Invalid
from gitsync.model import FileMode, Json, JsonValue, Origin, Snapshot
from gitsync.render.kustomize import check_files
from gitsync.render.tool import Bounds, find, run
from gitsync.render.yaml import MAX_BYTES, load

FILE: Final = "Chart.yaml"
_HOOK: Final = "helm.sh/hook"
_RELEASING: Final = frozenset({"crd-install", "pre-install", "post-install", "pre-upgrade", "post-upgrade"})
_SOURCE = re.compile(r"^# Source: [^/\s]+/(\S+)$", re.MULTILINE)


def command(binary: str, *, release: str, namespace: str, values: Sequence[str]) -> list[str]:
    """The argument list; the chart is the working directory, ``values`` are paths in it."""
    return [
        binary,
        "template",
        release,
        ".",
        "--include-crds",
        "--skip-tests",
        *(["--namespace", namespace] if namespace else []),
        *(argument for path in values for argument in ("--values", path)),
    ]


async def build(
    snapshot: Snapshot,
    directory: str,
    *,
    release: str,
    namespace: str = "",
    values: Sequence[str] = (),
    bounds: Bounds,
    size: int,
) -> bytes:
    """The YAML that the chart renders to. Raises ``Invalid``."""
    revision = snapshot.revision
    file = posixpath.join(directory, FILE)
    origin = Origin(repository=revision.repository, sha=revision.sha, file=file)
    await _check_dependencies(snapshot, directory, file, origin)
    binary = find("helm")
    if binary is None:
        raise Invalid(
            "helm is not on PATH",
            doing="rendering the chart",
            origin=origin,
            hint="install it beside gitsync, or commit what `helm template` gives",
            reason="ToolMissing",
        )
    for path in values:
        if path.startswith("-") or posixpath.normpath(path).startswith(("..", "/")):
            raise Invalid(f"the values file '{path}' is outside the chart", doing="rendering the chart", origin=origin)
    await check_files(snapshot, [directory], size, doing="exporting the chart")
    with tempfile.TemporaryDirectory(prefix="gitsync-helm-") as private:
        chart = os.path.join(private, "chart")
        os.mkdir(chart)
        os.mkdir(os.path.join(private, "home"))
        await snapshot.export(directory, chart)
        return await run(
            command(binary, release=release, namespace=namespace, values=values),
            directory=chart,
            private=private,
            bounds=bounds,
            doing="rendering the chart",
            origin=origin,
        )


def is_released(obj: JsonValue) -> bool:
    """Whether installing or upgrading the release sends the object.

    ``helm template`` prints all hooks: also those of a deletion, which undo what the chart has made, or of a rollback.
    """
    value: JsonValue = obj
    for key in ("metadata", "annotations", _HOOK):
        value = cast("Json", value).get(key) if isinstance(value, dict) else None
    events = {event.strip() for event in value.split(",")} if isinstance(value, str) and value else _RELEASING
    return not _RELEASING.isdisjoint(events)


class Sources:
    """Which template each line of the output came from, by helm's own comments."""

    def __init__(self, output: bytes, directory: str) -> None:
        text = output.decode("utf-8", "replace")
        found = [(text.count("\n", 0, match.start()) + 1, match[1]) for match in _SOURCE.finditer(text)]
        self._lines = [line for line, _ in found]
        self._paths = [posixpath.join(directory, path) for _, path in found]

    def at(self, line: int) -> str:
        index = bisect.bisect_right(self._lines, line) - 1
        return self._paths[index] if index >= 0 else ""


async def _check_dependencies(snapshot: Snapshot, directory: str, file: str, origin: Origin) -> None:
    entry = snapshot.entry(file)
    if entry is None or entry.mode not in (FileMode.FILE, FileMode.EXECUTABLE):
        raise Invalid("is no regular file", doing="reading the chart", origin=origin)
    documents = load((await snapshot.read([entry], limit=MAX_BYTES))[file], origin)
    chart: JsonValue = documents[0].value if len(documents) == 1 else None
    if not isinstance(chart, dict):
        raise Invalid("must hold exactly one object", doing="reading the chart", origin=origin)
    dependencies: JsonValue = cast("Json", chart).get("dependencies") or []
    for index, item in enumerate(cast("list[Any]", dependencies) if isinstance(dependencies, list) else ()):
        name = str(cast("Json", item).get("name", "")) if isinstance(item, dict) else ""
        below = posixpath.join(directory, "charts")
        if not any(
            entry.path.startswith((f"{below}/{name}/", f"{below}/{name}-")) for entry in snapshot.entries(below)
        ):
            line = documents[0].lines.get(f"dependencies[{index}]", 0)
            raise Invalid(
                f"the dependency '{name}' is not in the commit",
                doing="reading the chart",
                origin=Origin(repository=origin.repository, sha=origin.sha, file=file, line=line,
                              field=f"dependencies[{index}]"),
                hint="commit charts/ as `helm dependency build` fills it: nothing is downloaded",
            )  # fmt: skip
