"""Where one Application's objects go, and as whom. What the steps of a rollout share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from gitsync.cluster.answers import Conflict, Rejected
from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError
from gitsync.model import LABEL_APPLICATION, LABEL_NAMESPACE, Json, Manifest, ObjectRef

Key = tuple[str, str, str, str]
"""``ObjectRef.key``: (group, kind, namespace, name)."""

Place = tuple[str, str, str]
"""(group, kind, namespace): what a right is given for."""

WORKERS = 32
"""Requests at once; more is no faster against one API server (measured: 1.9 times kubectl with 32)."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """``impersonate``: user whose rights apply (see ``cluster.client.service_account``), "" for gitsync's own.

    ``autoscaled``: keys of the objects whose ``spec.replicas`` belongs to an autoscaler (``plan.autoscaled``).
    """

    cluster: Cluster
    application: ObjectRef
    impersonate: str = ""
    autoscaled: frozenset[Key] = frozenset()

    @property
    def selector(self) -> str:
        """Label selector of everything that we applied for the Application."""
        return f"{LABEL_APPLICATION}={self.application.name},{LABEL_NAMESPACE}={self.application.namespace}"

    def owns(self, live: Json) -> bool:
        """Whether a live object names this Application as its owner."""
        labels = part(live, "metadata", "labels")
        mine = (self.application.name, self.application.namespace)
        return (labels.get(LABEL_APPLICATION), labels.get(LABEL_NAMESPACE)) == mine

    def owned_by_another(self, live: Json) -> bool:
        """Whether a live object names another Application."""
        return LABEL_APPLICATION in part(live, "metadata", "labels") and not self.owns(live)


def place_of(ref: ObjectRef) -> Place:
    return (ref.group, ref.kind, ref.namespace)


def part(obj: Json, *path: str) -> Json:
    """The map at a path of a manifest or a live object; an empty one where there is none."""
    value: Any = obj
    for key in path:
        value = cast(Json, value).get(key) if isinstance(value, dict) else None
    return cast(Json, value) if isinstance(value, dict) else {}


def maps(obj: Json, key: str) -> list[Json]:
    """The maps in a list of a manifest; what else stands there is the server's to refuse."""
    value = obj.get(key)
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast(Json, item) for item in items if isinstance(item, dict)]


def located(error: GitsyncError, manifest: Manifest) -> GitsyncError:
    """The same error, saying where in the repository it comes from."""
    if error.origin is None:
        causes = error.causes if isinstance(error, Rejected | Conflict) else ()
        error.origin = manifest.at(causes[0][0]) if causes else manifest.origin
    return error


async def on_each(items: Iterable[Item], act: Callable[[Item], Awaitable[Result]]) -> list[Result | GitsyncError]:
    """``act`` on every item, ``WORKERS`` at a time; results in order, a ``GitsyncError`` in the place of its item's."""
    todo = list(enumerate(items))
    results: dict[int, Result | GitsyncError] = {}
    queue = iter(todo)

    async def worker() -> None:
        for number, item in queue:
            try:
                results[number] = await act(item)
            except GitsyncError as error:
                results[number] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(min(WORKERS, len(todo))):
            group.create_task(worker())
    return [results[number] for number, _ in todo]
