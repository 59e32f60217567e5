"""What a small fetch brought is read without a process: as git would read it, or not at all."""

import os
import zlib
from pathlib import Path

import pytest

from gitsync.source.commits import loose, loose_commit, read
from tests.unit.source.conftest import Repository, make_repository

AUTHOR = b"author Ada <ada@example.test> 1700000000 +0100\n"
COMMITTER = b"committer Bo <bo@example.test> 1700000001 -0800\n"
SIGNATURE = b"gpgsig -----BEGIN PGP SIGNATURE-----\n \n author Eve <eve> 1 +0000\n -----END PGP SIGNATURE-----\n"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path / "repository")
    made.write("a", "x\n")
    made.commit()
    return made


def commit(repository: Repository, words: bytes) -> Path:
    """Write a commit object, literally, and name it ``refs/it``; returns the git directory."""
    head, tree = (repository.git("rev-parse", name).encode() for name in ("HEAD", "HEAD^{tree}"))
    words = words.replace(b"HEAD", head)
    sha = repository.git(
        "hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=b"tree " + tree + b"\n" + words
    )
    git_dir = repository.path / ".git"
    (git_dir / "refs" / "it").write_text(f"{sha}\n")
    return git_dir


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (AUTHOR + COMMITTER + b"\nsubject\n\nbody\n", True),
        (AUTHOR + COMMITTER + b"\nover\ntwo lines\n\nbody\n", True),
        (AUTHOR + COMMITTER + b"\n\n \n\nlate  \n\tand on \n \t\nbody\n", True),
        (AUTHOR + COMMITTER + b"\n", True),
        (AUTHOR + COMMITTER + b"\nno end", True),
        (b"parent HEAD\nparent HEAD\n" + AUTHOR + COMMITTER + b"\nmerge\n", True),
        (AUTHOR + COMMITTER + SIGNATURE + b"\nsigned\n", True),
        ("author Ædà Ö. <> 1700000000 +0100\n".encode() + COMMITTER + "\n“ünï” \x01\n".encode(), True),
        (b"author \xff\xfe <x> 1 +0000\n" + COMMITTER + b"\n\xff\n", True),
        (b"author  <nobody@example.test> 1 +0000\n" + COMMITTER + b"\nx\n", True),
        (AUTHOR + b"committer Bo <bo> 99999999999999 +0000\n\nin a far future\n", True),
        (AUTHOR + COMMITTER + b"encoding ISO-8859-1\n\n\xfc\n", False),
        (AUTHOR + COMMITTER + b"\nsub\0ject\n", False),
        (AUTHOR + b"committer Bo <bo> yesterday +0000\n\nx\n", False),
        (b"author Ada <ada<@x> 1 +0000\n" + COMMITTER + b"\nx\n", False),
        (COMMITTER + b"\nby nobody\n", False),
    ],
)
async def test_a_commit_says_what_git_says_of_it(repository: Repository, words: bytes, whole: bool) -> None:
    git_dir = commit(repository, words)
    told = await read(git_dir, "refs/it")
    assert told is not None
    assert loose_commit(git_dir, "refs/it") == (told if whole else None)


def test_what_is_not_whole_is_left_to_git(repository: Repository) -> None:
    git_dir = repository.path / ".git"
    id_ = repository.blob(b"content")
    place = git_dir / "objects" / id_[:2] / id_[2:]
    assert loose(git_dir, [id_], "blob", 100) == {id_: b"content"}
    assert loose(git_dir, [id_], "commit", 100) == {}
    assert loose(git_dir, [id_, "0" * 40], "blob", 6) == {}
    whole = place.read_bytes()
    os.chmod(place, 0o644)
    for damaged in (
        whole[:-8], b"", b"garbage", zlib.compress(b"blob 7\0CONTENT"), zlib.compress(b"blob 9\0content"),
    ):  # fmt: skip
        place.write_bytes(damaged)
        assert loose(git_dir, [id_], "blob", 100) == {}, damaged


def test_a_bomb_is_not_unpacked(repository: Repository) -> None:
    id_ = repository.blob(b"\0" * (1 << 20))
    assert loose(repository.path / ".git", [id_], "blob", 64 << 10) == {}


def test_neither_a_packed_ref_nor_one_that_names_no_commit_is_guessed_at(repository: Repository) -> None:
    git_dir = repository.path / ".git"
    for text in ("", "ref: refs/heads/main\n", "../../etc/passwd\n", f"{repository.blob(b'x')}\n", "\udcff"):
        (git_dir / "refs" / "it").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert loose_commit(git_dir, "refs/it") is None
    assert loose_commit(git_dir, "refs/not-there") is None
