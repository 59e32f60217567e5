"""One commit's tree, read by id from a repository that stays bare, and written out where a build needs files."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gitsync.errors import Invalid, Transient
from gitsync.model import FileMode, Origin, Revision, TreeEntry
from gitsync.source.remote import GitPolicy
from gitsync.source.tree import Listing, is_lfs_pointer, link_fault, normal, printable

if TYPE_CHECKING:
    from gitsync.source.git import GitSource

PIECE = 8 << 20  # blobs are read and written in groups of about this size


class GitSnapshot:
    """A commit's tree, by path (implements ``model.Snapshot``). Listed once; contents are read on demand, by id."""

    def __init__(
        self, source: "GitSource", policy: GitPolicy, git_dir: Path, revision: Revision, listing: Listing
    ) -> None:
        self._source = source
        self._policy = policy
        self._git_dir = git_dir
        self._revision = revision
        self._listing = listing

    @property
    def revision(self) -> Revision:
        return self._revision

    def entries(self, under: str = "") -> Iterator[TreeEntry]:
        """Leaves under a directory ("" or "." is the root), sorted by path; none if it is not there."""
        return self._listing.under(normal(under))

    def entry(self, path: str) -> TreeEntry | None:
        return self._listing.entry(normal(path))

    def tree_id(self, path: str) -> str | None:
        """Identifies everything below a directory; ``None`` if there is no such directory."""
        return self._listing.directories.get(normal(path))

    def identity(self, path: str) -> str | None:
        """The same for a directory or a file (whose mode counts); ``None`` if nothing is there."""
        entry = self.entry(path)
        return f"{entry.mode} {entry.id}" if entry else self.tree_id(path)

    def regular_files(self, under: str = "") -> tuple[TreeEntry, ...]:
        """Like ``entries``, for a path that is used: ``Invalid`` naming each symbolic link, submodule, and name that is
        not printable UTF-8 — whether it lies below ``under``, on the way to it, or is ``under`` itself."""
        under = normal(under)
        on_the_way = [under[:i] for i, c in enumerate(under) if c == "/"]
        found = [entry] if (entry := self.entry(under)) else list(self._listing.under(under))
        checked = [*(entry for path in on_the_way if (entry := self.entry(path))), *found]
        faults = [self._fault(entry, f"is {what}") for entry in checked if (what := _unusual(entry))]
        _raise_faults(faults, doing="reading a directory that must hold plain files")
        return tuple(found)

    async def read(self, entries: Iterable[TreeEntry], *, limit: int = 64 << 20) -> dict[str, bytes]:
        """Contents by path (a symbolic link's is its target). ``Invalid`` if together they exceed ``limit`` bytes, and
        for submodules and Git LFS pointers, which are not here."""
        wanted = list(entries)
        doing = "reading files"
        _raise_faults([self._fault(e, "is a submodule") for e in wanted if e.mode is FileMode.SUBMODULE], doing=doing)
        _raise_faults(self._too_large(wanted), doing=doing)
        total = sum(max(entry.size, 0) for entry in wanted)
        if total > limit:
            largest = max(wanted, key=lambda entry: entry.size)
            raise Invalid(
                f"{len(wanted)} files of {size_of(total)} exceed {size_of(limit)}; "
                f"the largest has {size_of(largest.size)}",
                doing=doing,
                origin=self._origin(largest.path),
                reason="TooLarge",
            )
        contents = await self._source.blobs(self._git_dir, wanted)
        _raise_faults(self._lfs(contents), doing=doing)
        return contents

    async def export(self, under: str, destination: str, *, only: Iterable[TreeEntry] | None = None) -> None:
        """Write a directory's files below an existing empty one: modes 644 and 755 whatever the umask, symbolic links
        as links. ``only``: these of its leaves; nothing is asked of the others. ``Invalid``, before anything is written
        where possible, for submodules, LFS pointers, links that lead out, and too much data."""
        under, root = normal(under), Path(destination)
        doing = f"writing out {printable(under) or 'the repository'}"
        if self.tree_id(under) is None:
            raise Invalid("there is no such directory", doing=doing, origin=self._origin(under))
        wanted = list(self._listing.under(under) if only is None else only)
        cut = len(under) + 1 if under else 0
        _raise_faults([self._fault(e, "is a submodule") for e in wanted if e.mode is FileMode.SUBMODULE], doing=doing)
        _raise_faults(self._too_large(wanted), doing=doing)
        if (total := sum(max(entry.size, 0) for entry in wanted)) > self._policy.max_export:
            raise Invalid(
                f"its files have {size_of(total)}, more than {size_of(self._policy.max_export)}",
                doing=doing,
                origin=self._origin(under),
                reason="TooLarge",
            )
        links = [entry for entry in wanted if entry.mode is FileMode.SYMLINK]
        targets = {
            path[cut:]: content.decode("utf-8", "surrogateescape")
            for path, content in (await self._source.blobs(self._git_dir, links)).items()
        }
        faults = [
            self._fault(entry, f"is a symbolic link that {why}")
            for entry in links
            if (why := _bad_target(targets[entry.path[cut:]]) or link_fault(entry.path[cut:], targets))
        ]
        _raise_faults(faults, doing=doing)
        try:
            if await asyncio.to_thread(os.listdir, root):
                raise ValueError(f"{destination} is not empty")
            files = [entry for entry in wanted if entry.mode is not FileMode.SYMLINK]
            for group in _groups([entry for entry in files if entry.size <= PIECE]):
                contents = await self._source.blobs(self._git_dir, group)
                _raise_faults(self._lfs(contents), doing=doing)
                await asyncio.to_thread(_write_files, root, cut, group, contents)
            for entry in files:
                if entry.size > PIECE:
                    descriptor = _create_file(root, entry, cut)
                    try:
                        await self._source.blob_to(self._git_dir, entry, descriptor)
                    finally:
                        os.close(descriptor)
            # Last, into directories that no link can have replaced: nothing was written through one.
            await asyncio.to_thread(_write_links, root, targets)
        except FileExistsError as error:
            raise Invalid(
                f"two names are one on this machine's disk: {printable(str(error.filename))}", doing=doing
            ) from error
        except OSError as error:
            raise Transient(f"it cannot be written: {error.strerror}", doing=doing) from error

    def _origin(self, path: str) -> Origin:
        return Origin(repository=self._revision.repository, sha=self._revision.sha, file=printable(path))

    def _fault(self, entry: TreeEntry, what: str) -> tuple[Origin, str]:
        return self._origin(entry.path), what

    def _too_large(self, entries: Iterable[TreeEntry]) -> list[tuple[Origin, str]]:
        limit = self._policy.max_blob
        return [self._fault(e, f"has {size_of(e.size)}, more than {size_of(limit)}") for e in entries if e.size > limit]

    def _lfs(self, contents: dict[str, bytes]) -> list[tuple[Origin, str]]:
        return [
            (self._origin(path), "is a Git LFS pointer: its content is not in git")
            for path, content in contents.items()
            if is_lfs_pointer(content)
        ]


def size_of(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB" if count >= 1 << 20 else f"{count:,} bytes"


def _unusual(entry: TreeEntry) -> str:
    match entry.mode:
        case FileMode.SYMLINK:
            return "a symbolic link"
        case FileMode.SUBMODULE:
            return "a submodule"
        case _:
            return "" if printable(entry.path) == entry.path else "a name with control characters or invalid UTF-8"


def _bad_target(target: str) -> str:
    return "has no target" if not target or "\0" in target else ""


def _raise_faults(faults: Sequence[tuple[Origin, str]], *, doing: str) -> None:
    """All at once, so that one commit can mend them all."""
    if not faults:
        return
    (origin, what), more = faults[0], faults[1:]
    others = "".join(f"; {place.file} {why}" for place, why in more[:9])
    others += f"; and {len(more) - 9} more" if len(more) > 9 else ""
    raise Invalid(f"{origin.file} {what}{others}", doing=doing, origin=origin, reason="UnsupportedFile")


def _groups(entries: Sequence[TreeEntry]) -> Iterator[list[TreeEntry]]:
    group: list[TreeEntry] = []
    total = 0
    for entry in entries:
        if group and total + entry.size > PIECE:
            yield group
            group, total = [], 0
        group.append(entry)
        total += max(entry.size, 0)
    if group:
        yield group


def _write_files(root: Path, cut: int, entries: Sequence[TreeEntry], contents: dict[str, bytes]) -> None:
    for entry in entries:
        with os.fdopen(_create_file(root, entry, cut), "wb") as file:
            file.write(contents[entry.path])


def _write_links(root: Path, targets: dict[str, str]) -> None:
    for path, target in targets.items():
        _directories(root, path)
        os.symlink(target, root / path)


def _create_file(root: Path, entry: TreeEntry, cut: int) -> int:
    path = entry.path[cut:]
    _directories(root, path)
    descriptor = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o755 if entry.mode is FileMode.EXECUTABLE else 0o644)
    return descriptor


def _directories(root: Path, path: str) -> None:
    """A file's parents, with mode 755."""
    missing_: list[Path] = []
    parent = (root / path).parent
    while parent != root and not parent.exists():
        missing_.append(parent)
        parent = parent.parent
    for folder in reversed(missing_):
        folder.mkdir()
        folder.chmod(0o755)
