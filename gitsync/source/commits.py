"""What a commit says: from its object, if git has left that in a file of its own, else from ``git log``."""

import asyncio
import hashlib
import itertools
import operator
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gitsync.source import process
from gitsync.source.remote import SHA, said
from gitsync.source.tree import printable

_COMMIT_BYTES = 64 << 10


class DamagedError(Exception):
    """The mirror, not the remote and not the commit, is at fault. Never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a commit says."""

    sha: str
    tree: str
    parents: tuple[str, ...]
    author: str
    committed_at: datetime | None
    subject: str

    @classmethod
    def made(cls, *, sha: str, tree: str, parents: tuple[str, ...], author: str, time: str, subject: str) -> "Commit":
        """From what git tells: ``time`` in seconds since 1970."""
        try:
            committed_at = datetime.fromtimestamp(int(time), UTC)
        except (ValueError, OverflowError, OSError):  # a date that no calendar has
            committed_at = None
        return cls(
            sha=sha,
            tree=tree,
            parents=parents,
            author=printable(author)[:200],
            committed_at=committed_at,
            subject=printable(subject)[:200],
        )


def loose(git_dir: Path, ids: Iterable[str], kind: str, limit: int) -> dict[str, bytes]:
    """Contents by id of those objects that lie in files of their own, whole, and have at most ``limit`` bytes.

    The others are left to git: it has them in a pack, or says what is wrong with them.
    """
    found: dict[str, bytes] = {}
    for id_ in ids:
        try:
            with open(git_dir / "objects" / id_[:2] / id_[2:], "rb") as file:
                whole = zlib.decompressobj().decompress(file.read(limit), limit + len(kind) + 24)
        except (OSError, zlib.error):
            continue
        head, _, content = whole.partition(b"\0")
        named = hashlib.sha1(whole, usedforsecurity=False).hexdigest() == id_  # cut short, it is another
        if named and head == f"{kind} {len(content)}".encode():
            found[id_] = content
    return found


def loose_commit(mirror: Path, ref: str) -> "Commit | None":
    """What the commit says that a ref names, if ref and commit are files of their own."""
    try:
        sha = (mirror / ref).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    content = loose(mirror, [sha], "commit", _COMMIT_BYTES).get(sha) if SHA.fullmatch(sha) else None
    return _words(sha, content) if content is not None else None


_SIGNED = re.compile(rb"(?P<name>[^<>]*?) ?<[^<>]*> (?P<time>\d+) [+-]\d{4}")


def _words(sha: str, content: bytes) -> Commit | None:
    """What a commit says, from its object; ``None`` if that takes git's own knowledge (encodings, oddities)."""
    head, _, message = content.partition(b"\n\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\n"):
        name, _, value = line.partition(b" ")
        fields.setdefault(name, []).append(value)  # a signature's lines go on under the name ""
    author = _SIGNED.fullmatch(fields.get(b"author", [b""])[0])
    committer = _SIGNED.fullmatch(fields.get(b"committer", [b""])[0])
    odd = b"tree" not in fields or b"encoding" in fields or b"\0" in content
    if author is None or committer is None or odd:
        return None
    lines = [line.rstrip() for line in message.split(b"\n")]
    paragraph = itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines))
    return Commit.made(
        sha=sha,
        tree=fields[b"tree"][0].decode(),
        parents=tuple(each.decode() for each in fields.get(b"parent", [])),
        author=author["name"].decode("utf-8", "replace"),
        time=committer["time"].decode(),
        subject=b" ".join(paragraph).decode("utf-8", "replace"),
    )


async def read(mirror: Path, name: str) -> Commit | None:
    """What the commit says that a name stands for; ``None`` if there is no such commit."""
    if not await asyncio.to_thread(mirror.is_dir):
        return None
    result = await process.run(
        ["log", "-1", "--no-mailmap", "--no-show-signature", "--encoding=UTF-8",
         "--format=%H%x00%T%x00%P%x00%an%x00%ct%x00%s", name, "--"],
        env=process.local_env(mirror),
        cwd=mirror,
    )  # fmt: skip
    if result.code:
        words = said(result.stderr, ())
        if any(text in words for text in ("bad revision", "unknown revision", "ambiguous argument")):
            return None
        raise DamagedError(words)
    fields = result.stdout.decode("utf-8", "replace").removesuffix("\n").split("\0")
    if len(fields) != 6:
        return None  # a tree or a blob
    sha, tree, parents, author, time, subject = fields
    return Commit.made(sha=sha, tree=tree, parents=tuple(parents.split()), author=author, time=time, subject=subject)
