"""Deletes what a commit no longer has: only recorded objects, only these very ones, only while they say so too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from gitsync.cluster.answers import Conflict
from gitsync.errors import GitsyncError, Held
from gitsync.failpoints import failpoint
from gitsync.model import ANNOTATION_HELM_POLICY, ANNOTATION_PRUNE, InventoryItem
from gitsync.rollout.target import Target, on_each, part


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An object that was not deleted, stays in the inventory, and why."""

    item: InventoryItem
    error: GitsyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """``removed`` leave the inventory: deleted, gone before, or no longer this Application's. ``kept`` stay."""

    removed: tuple[InventoryItem, ...] = ()
    kept: tuple[Kept, ...] = ()


async def prune(
    target: Target,
    items: Sequence[InventoryItem],
    *,
    on_removed: Callable[[InventoryItem], None] = lambda _: None,
) -> Pruned:
    """Delete the items in the plan's order; neighbours of one kind at once.

    A denied or failed delete keeps its object in the inventory and does not stop the others. An object that another
    Application has taken over, or that a chart wants to stay (``helm.sh/resource-policy: keep``), is let go without
    being touched; one that says ``gitsync.dev/prune: disabled`` is kept.
    """
    failpoint("prune.started")

    async def remove(item: InventoryItem) -> InventoryItem:
        await _remove(target, item)
        on_removed(item)
        failpoint("prune.object-deleted")
        return item

    removed: list[InventoryItem] = []
    kept: list[Kept] = []
    for _, run in groupby(items, key=lambda item: (item.ref.group, item.ref.kind)):
        batch = list(run)
        for item, answer in zip(batch, await on_each(batch, remove), strict=True):
            if isinstance(answer, GitsyncError):
                kept.append(Kept(item=item, error=answer))
            else:
                removed.append(item)
    failpoint("prune.ended")
    return Pruned(removed=tuple(removed), kept=tuple(kept))


async def _remove(target: Target, item: InventoryItem) -> None:
    """Decide on what was read, and delete only that: if it is written in between, read again."""
    for last in (False, False, False, False, True):
        try:
            return await _remove_as_read(target, item)
        except Conflict:
            if last:
                raise
    return None


async def _remove_as_read(target: Target, item: InventoryItem) -> None:
    live = await target.cluster.get(item.ref, impersonate=target.impersonate)
    if live is None or live["metadata"]["uid"] != item.uid:
        return
    annotations = part(live, "metadata", "annotations")
    if annotations.get(ANNOTATION_HELM_POLICY) == "keep":
        return
    if annotations.get(ANNOTATION_PRUNE) == "disabled":
        raise Held(f"it says {ANNOTATION_PRUNE}: disabled", doing="pruning", ref=item.ref)
    if not target.owns(live):
        if target.owned_by_another(live):
            return
        raise Held(
            "its owner labels were removed",
            doing="pruning",
            ref=item.ref,
            hint="delete it yourself, or put the labels back",
        )
    await target.cluster.delete(
        item.ref,
        item.uid,
        resource_version=str(live["metadata"]["resourceVersion"]),
        impersonate=target.impersonate,
    )
