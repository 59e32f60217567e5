"""Which paths changed between two commits, and which of many contexts a change touches. Pure, no I/O.

Git names every directory by a digest of all below it. So a context changed exactly if its id did: 200 contexts cost
200 comparisons whatever the number of files, and nothing can be missed (modes, renames and deletions are in the id).
"""

from collections.abc import Callable, Iterable, Sequence

from gitsync.model import Snapshot, TreeEntry

Identity = Callable[[str], str | None]
"""From a path to what identifies everything at and below it (``GitSnapshot.identity``); ``None``: nothing there."""


def touched(old: Identity, new: Identity, paths: Iterable[str]) -> tuple[str, ...]:
    """Those of ``paths`` (directories or files, "" the root) whose content, mode or existence differs. Keeps order."""
    return tuple(path for path in paths if old(path) != new(path))


def changed_paths(old: Snapshot, new: Snapshot, under: str = "") -> tuple[str, ...]:
    """Leaves below a directory that were added, removed or changed (content or mode), sorted."""
    before = {entry.path: _content(entry) for entry in old.entries(under)}
    after = {entry.path: _content(entry) for entry in new.entries(under)}
    return tuple(sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)))


def by_context(paths: Iterable[str], contexts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each context that holds one of ``paths``, with those paths. Nested contexts hold a path both.

    ``contexts`` are normalized directories ("" is the root) or single files.
    """
    found: dict[str, list[str]] = {context: [] for context in contexts}
    for path in paths:
        place = path
        while True:
            if place in found:
                found[place].append(path)
            if not place:
                break
            place = place.rpartition("/")[0]
    return {context: tuple(files) for context, files in found.items() if files}


def _content(entry: TreeEntry) -> tuple[str, str]:
    return entry.mode, entry.id
