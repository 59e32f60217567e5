"""Rules about the content of a commit's tree. Pure.

A tree comes from outside and git's own checks are off for history's sake: names may hold anything but a NUL.
"""

import posixpath
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gitsync.model import FileMode, TreeEntry

_LINKS_FOLLOWED = 40  # the kernel's own limit
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024  # the specification's limit
_UNSAFE = re.compile(r"[\t/](?:\.{1,2}|\.git)(?=[/\0])", re.IGNORECASE)
_DIRECTORY = "040000"
_MODES = {mode.value: mode for mode in FileMode}


class Malformed(ValueError):
    """The tree breaks a rule of git; the message names the path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A whole tree: leaves sorted by path, and the id of every directory ("" is the root)."""

    paths: tuple[str, ...]
    leaves: Mapping[str, tuple[FileMode, str, int]]  # mode, id, size
    directories: Mapping[str, str]

    def entry(self, path: str) -> TreeEntry | None:
        leaf = self.leaves.get(path)
        return TreeEntry(path=path, mode=leaf[0], id=leaf[1], size=leaf[2]) if leaf else None

    def under(self, directory: str) -> Iterator[TreeEntry]:
        """Leaves below a normalized directory, in order of their paths."""
        prefix = f"{directory}/" if directory else ""
        start = bisect_left(self.paths, prefix)
        for path in self.paths[start:]:
            if not path.startswith(prefix):
                break
            mode, id_, size = self.leaves[path]
            yield TreeEntry(path=path, mode=mode, id=id_, size=size)


def parse_listing(output: bytes, root: str) -> Listing:
    """From ``git ls-tree -r -t -z -l``. Names that are not UTF-8 keep their bytes as surrogate escapes."""
    text = output.decode("utf-8", "surrogateescape")
    if unsafe := _UNSAFE.search(text):
        row = text[text.rfind("\0", 0, unsafe.end()) + 1 : text.index("\0", unsafe.end())]
        raise Malformed(f"{printable(row.partition(chr(9))[2])} is a name that git forbids")
    leaves: dict[str, tuple[FileMode, str, int]] = {}
    directories = {"": root}
    for row in text.split("\0"):
        if not row:
            continue
        head, _, path = row.partition("\t")
        mode, _, id_, size = head.split()
        if path in leaves or path in directories:
            raise Malformed(f"{printable(path)} is there twice")
        if mode == _DIRECTORY:
            directories[path] = id_
        else:  # very old histories have modes such as 100664: git reads them as 100644
            leaves[path] = (_MODES.get(mode, FileMode.FILE), id_, int(size) if size.isdigit() else -1)
    return Listing(paths=tuple(sorted(leaves)), leaves=leaves, directories=directories)


def normal(path: str) -> str:
    """``./deploy/`` → ``deploy``, ``.`` → "". A path that leaves the root keeps its ``..`` and so names nothing."""
    path = posixpath.normpath(path)
    return "" if path == "." else path


def printable(path: str) -> str:
    """For messages: control characters and bytes that are not UTF-8 as escapes, so that a name cannot forge a line."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def link_fault(path: str, links: Mapping[str, str]) -> str:
    """Why a symbolic link may not be in an exported directory; "" if it may.

    ``links`` maps every link of that directory to its target, both relative to the directory. Links are followed
    through links as the kernel would: ``a/b/..`` is not ``a`` when ``a/b`` is a link.
    """
    here: list[str] = []
    rest = path.split("/")[::-1]
    followed = 0
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not here:
                return "leads out of its directory"
            here.pop()
            continue
        if part.lower() == ".git":
            return "leads into .git"
        here.append(part)
        target = links.get("/".join(here))
        if target is None:
            continue
        followed += 1
        if followed > _LINKS_FOLLOWED:
            return "leads in a loop"
        if target.startswith("/"):
            return "leads to an absolute path"
        here.pop()
        rest.extend(reversed(target.split("/")))
    return ""


def is_lfs_pointer(content: bytes) -> bool:
    return len(content) <= _LFS_POINTER_BYTES and content.startswith(_LFS_POINTER)
