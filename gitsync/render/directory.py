"""A directory on disk as a ``Snapshot``: for ``gitsync render DIR``, where there is no commit.

Links are followed as ``kubectl`` would follow them, but only to files inside the directory.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from gitsync.errors import Invalid
from gitsync.model import FileMode, Origin, Revision, TreeEntry
from gitsync.render.kustomize import FILES


class Directory:
    """Reads as it is asked: a file that changes meanwhile is read as it is then. Blob ids are empty (never cached)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    async def around(cls, path: Path) -> tuple[Directory, str]:
        """The snapshot and the path in it. A kustomization may need its siblings: then the root is the repository's."""
        return await asyncio.to_thread(cls._around, path)

    @classmethod
    def _around(cls, path: Path) -> tuple[Directory, str]:
        try:
            real = path.resolve(strict=True)
        except OSError as error:
            raise Invalid(
                error.strerror or "cannot be read", doing="rendering", origin=Origin(file=str(path))
            ) from error
        if real.is_file():
            return cls(real.parent), real.name
        if any((real / name).is_file() for name in FILES):
            for parent in real.parents:
                if (parent / ".git").exists():
                    return cls(parent), real.relative_to(parent).as_posix()
        return cls(real), ""

    @property
    def revision(self) -> Revision:
        return Revision(repository="", ref="", sha="")

    def entries(self, under: str = "") -> Iterator[TreeEntry]:
        top = self._root / under
        found = sorted(
            posixpath.join(os.path.relpath(folder, self._root).replace(os.sep, "/"), name)
            for folder, folders, names in os.walk(top)
            for name in [*names, *(name for name in folders if os.path.islink(os.path.join(folder, name)))]
            if ".git" not in folder.split(os.sep)
        )
        for path in found:
            entry = self.entry(posixpath.normpath(path))
            if entry is not None:
                yield entry

    def entry(self, path: str) -> TreeEntry | None:
        full = self._root / path
        try:
            status = full.lstat()
            if stat.S_ISLNK(status.st_mode):
                real = full.resolve(strict=True)
                if not real.is_relative_to(self._root) or not real.is_file():
                    return TreeEntry(path=path, mode=FileMode.SYMLINK, id="")
                status = real.stat()
        except (OSError, RuntimeError):
            return TreeEntry(path=path, mode=FileMode.SYMLINK, id="") if full.is_symlink() else None
        if not stat.S_ISREG(status.st_mode):
            return None
        mode = FileMode.EXECUTABLE if status.st_mode & 0o111 else FileMode.FILE
        return TreeEntry(path=path, mode=mode, id="", size=status.st_size)

    async def read(self, entries: Iterable[TreeEntry], *, limit: int = 64 << 20) -> dict[str, bytes]:
        return await asyncio.to_thread(self._read, list(entries), limit)

    def _read(self, entries: list[TreeEntry], limit: int) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        for entry in entries:
            try:
                with open(self._root / entry.path, "rb") as file:
                    data = file.read(limit + 1)
            except OSError as error:
                raise Invalid(
                    error.strerror or "cannot be read", doing="reading", origin=Origin(file=entry.path)
                ) from error
            limit -= len(data)
            if limit < 0:
                raise Invalid("is too large", doing="reading", origin=Origin(file=entry.path))
            contents[entry.path] = data
        return contents

    async def export(self, under: str, destination: str, *, only: Iterable[TreeEntry] | None = None) -> None:
        await asyncio.to_thread(self._export, under, destination, self.entries(under) if only is None else only)

    def _export(self, under: str, destination: str, entries: Iterable[TreeEntry]) -> None:
        for entry in entries:
            target = Path(destination, posixpath.relpath(entry.path, under or "."))
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.mode is FileMode.SYMLINK:
                target.symlink_to(os.readlink(self._root / entry.path))
            else:
                shutil.copyfile(self._root / entry.path, target)
