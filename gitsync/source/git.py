"""Running git: mirrors, fetches, and reading one commit.

A mirror is a bare repository below the cache directory, one per URL, shared by all who follow that URL. It holds one
ref per thing followed, named by a digest (``refs/gitsync/…``), so that no name on the remote can collide with another.
It is a cache: whatever is wrong with it is cured by discarding it and fetching again.

Writers of a mirror (fetch, clean-up, discarding) hold an flock that their git processes inherit: a git that outlives
a killed gitsync keeps the lock, and a lock file found by the next holder is stale. Readers take no lock.

Every git is a process of its own session with a deadline, killed as a group, and none is started for what is known: a
fetch does not ask first whether there is news, what a commit says never changes, and what a small fetch brought lies in
files that need no process to be read. GitPython reads repositories of the user's own, in a thread, closed after each
use: it is a command runner here, not a cache.
"""

import asyncio
import configparser
import contextlib
import fcntl
import hashlib
import itertools
import operator
import os
import re
import shutil
import signal
import tempfile
import uuid
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import git
from gitdb.exc import ODBError

from gitsync.errors import GitsyncError, Invalid, Transient
from gitsync.model import FileMode, Origin, Revision, TreeEntry
from gitsync.source.remote import (
    SHA,
    GitCredentials,
    GitPolicy,
    Location,
    Ref,
    environment,
    failure,
    locate,
    missing,
    out_of_resources,
    said,
    ssh_config,
)
from gitsync.source.tree import Listing, Malformed, is_lfs_pointer, link_fault, normal, parse_listing, printable
from gitsync.source.versions import highest

Relation = Literal["same", "ahead", "behind", "diverged", "unrelated", "unknown"]

_LISTING_BYTES = 256 << 20
_ANSWER_BYTES = 32 << 20  # ls-remote of a repository with 400,000 refs
_STDERR_BYTES = 32 << 10
_PIECE = 8 << 20  # blobs are read and written in groups of about this size
_READ_TIMEOUT = 120.0  # of a local git process
_TERMINATE = 2.0  # seconds between SIGTERM and SIGKILL
_WATCH = 0.2  # seconds between two looks at a growing mirror
_PACKS = 40  # a mirror with more is repacked
_FEW = 64  # objects that are looked for in files of their own, one by one
_COMMIT_BYTES = 64 << 10
_COMMITS = 1024  # of which tree and parents are remembered
_UNREACHABLE_KEPT = "2.weeks.ago"  # after a rewritten history, the old one can still be compared with


class _DamagedError(Exception):
    """The mirror, not the remote and not the commit, is at fault. Never leaves this module."""


class GitSource:
    """Follows repositories through one cache directory. One event loop; several processes may share the directory."""

    def __init__(self, cache_dir: Path, policy: GitPolicy | None = None) -> None:
        self._mirrors = cache_dir / "git"
        self._policy = policy or GitPolicy()
        self._locks: dict[Path, asyncio.Lock] = {}
        self._opened: dict[str, Path] = {}  # repositories of the user's own, read in place and never written
        self._commits: OrderedDict[str, _Commit] = OrderedDict()  # as last read, by sha

    # ------------------------------------------------------------ the remote

    async def resolve(self, repository: str, ref: Ref, credentials: GitCredentials | None = None) -> str | None:
        """The commit that the ref names on the remote now, by one ``ls-remote``; ``None`` if there is none.

        ``Transient`` (``Waiting`` for credentials) when the remote cannot be asked.
        """
        if ref.commit:
            return ref.commit
        with self._remote(repository, ref, credentials) as remote:
            found = await _find(remote, ref)
        return found.sha if found else None

    async def default_branch(self, repository: str, credentials: GitCredentials | None = None) -> str:
        """The branch that the remote's HEAD names. ``Invalid`` for an empty repository."""
        with self._remote(repository, None, credentials) as remote:
            for line in (await remote.ask("--symref", patterns=["HEAD"])).splitlines():
                if line.startswith("ref: refs/heads/"):
                    return line.removeprefix("ref: refs/heads/").partition("\t")[0]
            raise missing(Ref(branch="HEAD"), *await _names(remote), doing=remote.doing)

    async def fetch(self, repository: str, ref: Ref, credentials: GitCredentials | None = None) -> Revision:
        """Bring one ref's commit, with its history, into the mirror. Nothing is transferred if it is there already.

        ``Invalid`` when the ref is not on the remote, naming what is; ``Transient`` when the remote fails.
        """
        mirror = self._mirror(repository)
        with self._remote(repository, ref, credentials) as remote:
            kept = f"refs/gitsync/{_digest(str(ref))}"
            if ref.branch and not self._lock(mirror).locked():  # else a question is cheaper than waiting for a turn
                async with self._locked(mirror, remote.doing) as lock:
                    with contextlib.suppress(_DamagedError):
                        return await self._bring(remote, mirror, _branch(ref.branch), kept, lock)
            # A commit is asked for too, by HEAD: who may not read the repository gets nothing from a shared mirror.
            found = await _find(remote, ref)
            if found is None:
                raise missing(ref, *await _names(remote), doing=remote.doing)
            if revision := await self._known(mirror, kept, repository, found):
                return revision
            async with self._locked(mirror, remote.doing) as lock:
                # Somebody else may have fetched it meanwhile.
                if revision := await self._known(mirror, kept, repository, found):
                    return revision
                for last in (False, True):
                    try:
                        return await self._bring(remote, mirror, found, kept, lock)
                    except _DamagedError as error:
                        await asyncio.to_thread(_discard, mirror)
                        if last:
                            raise Transient(f"the cache is damaged: {error}", doing=remote.doing) from error
        raise AssertionError("unreachable")

    async def _bring(self, remote: "_Remote", mirror: Path, found: "_Found", kept: str, lock: int) -> Revision:
        """Fetch into the mirror, whose lock is held."""
        packs, before = await asyncio.to_thread(_prepare, mirror)
        result = await _git(
            ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc",
             "--no-recurse-submodules", "--refmap=", "--", remote.location.url, f"+{found.full}:{kept}"],
            env={**remote.env, "GIT_DIR": str(mirror)},
            cwd=mirror,
            timeout=self._policy.fetch_timeout,
            pass_fds=(lock,),
            over=lambda: _bytes(mirror) - before > self._policy.max_bytes,
        )  # fmt: skip
        words = said(result.stderr, remote.secrets)
        if result.exceeded:
            # Not the whole mirror: others follow other refs of it.
            await asyncio.to_thread(_remove_packs, mirror, packs)
            raise Invalid(
                f"more than {_size(self._policy.max_bytes)} would have to be stored",
                doing=remote.doing,
                hint="remove large files from the branch's history, or raise the limit",
                reason="TooLarge",
            )
        if result.timed_out:
            raise Transient(f"not done after {self._policy.fetch_timeout:g} s: {words}", doing=remote.doing)
        if result.code:
            lower = words.lower()
            if any(text in lower for text in ("couldn't find remote ref", "not our ref", "unadvertised object")):
                raise missing(remote.ref or Ref(), *await _names(remote), doing=remote.doing)
            if error := failure(words, doing=remote.doing):
                raise error
            raise _DamagedError(words)
        if revision := await self._commit(mirror, kept, remote.location.url, found.name):
            return revision
        kind = await _git(["cat-file", "-t", f"{kept}^{{}}"], env=_local_env(mirror), cwd=mirror)
        if kind.stdout.strip() in (b"tree", b"blob"):
            raise Invalid(f"{found.name} names a {kind.stdout.strip().decode()}, not a commit", doing=remote.doing)
        raise _DamagedError(said(kind.stderr, ()))

    async def _known(self, mirror: Path, kept: str, repository: str, found: "_Found") -> Revision | None:
        """What was found, if it is in the mirror already."""
        with contextlib.suppress(_DamagedError):
            revision = await self._commit(mirror, kept, repository, found.name)
            return revision if revision and revision.sha == found.sha else None
        return None

    async def _commit(self, mirror: Path, kept: str, repository: str, name: str) -> Revision | None:
        """The commit that a ref of a mirror names; ``None`` if it names none."""
        commit = await asyncio.to_thread(_loose_commit, mirror, kept) or await _read_words(mirror, kept)
        if commit is None:
            return None
        self._commits[commit.sha] = commit
        while len(self._commits) > _COMMITS:
            self._commits.popitem(last=False)
        return Revision(
            repository=repository,
            ref=name,
            sha=commit.sha,
            author=commit.author,
            committed_at=commit.committed_at,
            subject=commit.subject,
        )

    # ------------------------------------------------------------ a repository of the user's own

    async def local(self, path: str | Path, revision: str = "HEAD") -> Revision:
        """A revision of a repository on this machine, a working tree's (as committed) or a bare one, read in place."""
        return await asyncio.to_thread(self._local, Path(path), revision)

    def _local(self, path: Path, name: str) -> Revision:
        doing = f"opening {printable(str(path))}"
        try:
            # Searching upwards would take a directory's own checkout for the one that was meant.
            with git.Repo(path) as repo:
                git_dir = Path(repo.git_dir).resolve()
        except (git.InvalidGitRepositoryError, git.NoSuchPathError, configparser.Error, OSError) as error:
            raise Invalid("there is no git repository", doing=doing, hint="name its directory or its URL") from error
        repository = str(path.resolve())
        try:
            revision = _read_commit(git_dir, name, repository, "")
        except _DamagedError as error:
            raise Invalid(f"it cannot be read: {error}", doing=doing, hint="try git fsck there") from error
        if revision is None:
            raise Invalid(f"{printable(name)} names no commit there", doing=doing, hint="see git log --oneline --all")
        self._opened[repository] = git_dir
        return revision

    async def open(self, repository: str, revision: str = "", credentials: GitCredentials | None = None) -> Revision:
        """For the command line: a directory's or a URL's revision. "" is HEAD; else a branch, a tag or a commit id."""
        if "://" not in repository and await asyncio.to_thread(Path(repository).exists):
            return await self.local(repository, revision or "HEAD")
        if not revision or revision == "HEAD":
            branch = await self.default_branch(repository, credentials)
            return await self.fetch(repository, Ref(branch=branch), credentials)
        if SHA.fullmatch(revision):
            return await self.fetch(repository, Ref(commit=revision), credentials)
        tag = Ref(tag=revision)
        ref = tag if await self.resolve(repository, tag, credentials) else Ref(branch=revision)
        return await self.fetch(repository, ref, credentials)

    # ------------------------------------------------------------ what was fetched or opened

    async def snapshot(self, revision: Revision) -> "GitSnapshot":
        """The revision's tree. ``Invalid`` when it breaks a rule of git or has too many files; ``Transient`` when the
        cache lost it (fetch again)."""
        git_dir = self._where(revision.repository)
        origin, doing = Origin(repository=revision.repository, sha=revision.sha), "reading the commit's tree"
        root = await self._root(git_dir, _checked(revision.sha))
        result = await self._read(
            git_dir,
            ["ls-tree", "-r", "-t", "-z", "-l", "--full-tree", root],
            limit=_LISTING_BYTES,
            rows=2 * self._policy.max_files,
        )
        too_many = Invalid(
            f"it has more than {self._policy.max_files:,} files",
            doing=doing,
            origin=origin,
            reason="TooLarge",
            hint="keep generated files and dependencies out of git",
        )
        if result.exceeded:
            raise too_many
        try:
            listing = await asyncio.to_thread(parse_listing, result.stdout, root)
        except Malformed as error:
            raise Invalid(str(error), doing=doing, origin=origin, reason="MalformedTree") from error
        if len(listing.paths) > self._policy.max_files:
            raise too_many
        return GitSnapshot(self, self._policy, git_dir, revision, listing)

    async def _root(self, git_dir: Path, sha: str) -> str:
        """The id of a commit's tree."""
        if sha in self._commits:
            return self._commits[sha].tree
        result = await self._read(git_dir, ["rev-parse", "--verify", f"{sha}^{{tree}}"], limit=256)
        return result.stdout.decode().strip()

    async def changed(self, repository: str, old_sha: str, new_sha: str) -> tuple[str, ...]:
        """Paths that differ between two commits of one repository, sorted. ``Transient`` if one is not there."""
        result = await self._read(
            self._where(repository),
            ["diff-tree", "-r", "-z", "--name-only", "--no-renames", "--no-ext-diff",
             _checked(old_sha), _checked(new_sha), "--"],
            limit=_LISTING_BYTES,
        )  # fmt: skip
        if result.exceeded:
            raise Invalid("too many paths differ to be listed", doing=f"comparing {old_sha[:7]} with {new_sha[:7]}")
        return tuple(sorted(result.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]))

    async def relation(self, repository: str, old_sha: str, new_sha: str) -> Relation:
        """How the new commit stands to the old one: "ahead" is a fast-forward; "unknown" when one is not there."""
        if old_sha == new_sha:
            return "same"
        if new_sha in self._commits and old_sha in self._commits[new_sha].parents:
            return "ahead"
        git_dir = self._where(repository)
        if not await asyncio.to_thread(git_dir.is_dir):
            return "unknown"
        result = await _git(["merge-base", _checked(old_sha), _checked(new_sha)], env=_local_env(git_dir), cwd=git_dir)
        base = result.stdout.decode().strip()
        if result.code == 1 and not base:
            return "unrelated"
        if result.code:
            return "unknown"
        return "ahead" if base == old_sha else "behind" if base == new_sha else "diverged"

    async def collect_garbage(self, keep: Collection[str]) -> int:
        """Remove mirrors of repositories that are not in ``keep``, repack the others. Returns the bytes freed."""
        kept = {self._mirror(repository) for repository in keep}
        found = await asyncio.to_thread(lambda: {path.with_suffix(".git") for path in self._mirrors.glob("*.*")})
        freed = 0
        for mirror in sorted(found):
            async with self._locked(mirror, "cleaning the git cache") as lock:
                before, packs = await asyncio.to_thread(_measured, mirror)
                if mirror not in kept:
                    await asyncio.to_thread(_discard, mirror)
                elif packs > _PACKS:
                    await _git(
                        ["gc", "--quiet", f"--prune={_UNREACHABLE_KEPT}"],
                        env=_local_env(mirror),
                        cwd=mirror,
                        timeout=10 * _READ_TIMEOUT,
                        pass_fds=(lock,),
                    )
                freed += before - (await asyncio.to_thread(_measured, mirror))[0]
        return freed

    # ------------------------------------------------------------ within

    def _mirror(self, repository: str) -> Path:
        return self._mirrors / f"{_digest(repository)}.git"

    def _where(self, repository: str) -> Path:
        return self._opened.get(repository) or self._mirror(repository)

    async def _read(
        self, git_dir: Path, arguments: Sequence[str], *, limit: int, rows: int = 0, stdin: int | None = None,
        stdout: int | None = None,
    ) -> "_Result":  # fmt: skip
        """A local git that must succeed. A mirror that fails it is discarded, so that the next fetch heals it."""
        if not await asyncio.to_thread(git_dir.is_dir):
            raise Transient("the commit is no longer in the cache", doing="reading git objects", hint="fetch it again")
        result = await _git(
            arguments, env=_local_env(git_dir), cwd=git_dir, limit=limit, rows=rows, stdin=stdin, stdout=stdout
        )
        if result.exceeded or (not result.code and not result.timed_out):
            return result
        words = said(result.stderr, ())
        # Only git's own refusal is evidence of damage: a signal, a deadline or a full disk is not.
        raise await self._blamed(git_dir, words, damaged=result.code > 0 and not out_of_resources(words))

    async def _blamed(self, git_dir: Path, words: str, *, damaged: bool) -> GitsyncError:
        """What to raise for an object that cannot be read."""
        doing = "reading git objects"
        if git_dir.parent != self._mirrors:
            return Invalid(f"the repository lacks or cannot read one: {words}", doing=doing, hint="try git fsck there")
        if damaged:
            async with self._locked(git_dir, doing):
                await asyncio.to_thread(_discard, git_dir)
            return Transient(f"the cache was damaged and is discarded: {words}", doing=doing, hint="fetch it again")
        return Transient(f"git could not read them: {words}", doing=doing)

    async def blobs(self, git_dir: Path, entries: Sequence[TreeEntry]) -> dict[str, bytes]:
        """Contents by path, of entries whose sizes together fit into memory."""
        sizes = {entry.id: entry.size for entry in entries}
        contents: dict[str, bytes] = {}
        if len(sizes) <= _FEW:
            contents = await asyncio.to_thread(_loose, git_dir, sizes, "blob", _PIECE)
            sizes = {id_: size for id_, size in sizes.items() if id_ not in contents}
        if sizes:
            contents |= await self._batch(git_dir, sizes)
        return {entry.path: contents[entry.id] for entry in entries}

    async def _batch(self, git_dir: Path, sizes: Mapping[str, int]) -> dict[str, bytes]:
        """Contents by id, read by one process."""
        with tempfile.TemporaryFile() as questions:  # not a pipe: git answers while it still reads
            questions.write("".join(f"{id_}\n" for id_ in sizes).encode())
            questions.seek(0)
            result = await self._read(
                git_dir,
                ["cat-file", "--batch", "--buffer"],
                limit=sum(max(size, 0) + 80 for size in sizes.values()) + _STDERR_BYTES,
                stdin=questions.fileno(),
            )
        answer, position = memoryview(result.stdout), 0
        contents: dict[str, bytes] = {}
        for id_ in sizes:
            end = result.stdout.find(b"\n", position)
            head = result.stdout[position:end].split() if end >= 0 else []
            if len(head) != 3 or head[0] != id_.encode() or head[1] != b"blob":
                raise await self._blamed(git_dir, f"{id_} is missing", damaged=True)
            position = end + 1 + int(head[2])
            contents[id_] = bytes(answer[end + 1 : position])
            position += 1
        return contents

    async def blob_to(self, git_dir: Path, entry: TreeEntry, destination: int) -> None:
        """One blob's content straight to a file descriptor."""
        await self._read(git_dir, ["cat-file", "blob", entry.id], limit=0, stdout=destination)

    @contextmanager
    def _remote(
        self, repository: str, ref: Ref | None, credentials: GitCredentials | None
    ) -> "Generator[_Remote, None, None]":
        """Everything that contacting a repository takes; its files are gone afterwards."""
        policy, credentials = self._policy, credentials or GitCredentials()
        location = locate(repository, policy)
        doing = f"fetching {ref} of {location}" if ref else f"asking {location}"
        if location.scheme in ("https", "http") and credentials.identity and not _http_credentials(credentials):
            raise Invalid(
                "the Secret holds an ssh key, but the URL is not ssh",
                doing=doing,
                hint="use the repository's ssh URL, or give username and password or bearerToken",
            )
        with contextlib.ExitStack() as stack:
            files: dict[str, Path] = {}
            values = {
                name: getattr(credentials, name)
                for name in (("identity", "known_hosts") if location.scheme == "ssh" else ("ca_file",))
            }
            if any(values.values()):
                private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gitsync-git-")))
                for name, value in values.items():
                    if value:
                        files[name] = _write_private(private / name, value)
                if location.scheme == "ssh" and (text := ssh_config(location, credentials, policy, files)):
                    files["ssh_config"] = _write_private(private / "ssh_config", text)
            elif location.scheme == "ssh":
                ssh_config(location, credentials, policy, files)  # raises when a key is needed
            env = environment(os.environ, location, credentials, policy, files)
            yield _Remote(location=location, ref=ref, env=env, secrets=credentials.secrets, policy=policy, doing=doing)

    def _lock(self, mirror: Path) -> asyncio.Lock:
        return self._locks.setdefault(mirror, asyncio.Lock())

    @asynccontextmanager
    async def _locked(self, mirror: Path, doing: str) -> AsyncGenerator[int, None]:
        """The only writer of a mirror, among tasks and processes. Yields the descriptor that children inherit."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(2 * self._policy.fetch_timeout):
                    await stack.enter_async_context(self._lock(mirror))
                    mirror.parent.mkdir(parents=True, exist_ok=True)
                    descriptor = os.open(mirror.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    stack.callback(os.close, descriptor)  # not unlocked: a child that is still there keeps it
                    while not _try_lock(descriptor):  # noqa: ASYNC110 - another process cannot set an Event
                        await asyncio.sleep(0.05)
            except TimeoutError as error:
                raise Transient("another process has been writing the cache for too long", doing=doing) from error
            except OSError as error:
                raise Transient(f"the cache cannot be written: {error.strerror}", doing=doing) from error
            yield descriptor


class GitSnapshot:
    """A commit's tree, by path (implements ``model.Snapshot``). Listed once; contents are read on demand, by id."""

    def __init__(
        self, source: GitSource, policy: GitPolicy, git_dir: Path, revision: Revision, listing: Listing
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
                f"{len(wanted)} files of {_size(total)} exceed {_size(limit)}; the largest has {_size(largest.size)}",
                doing=doing,
                origin=self._origin(largest.path),
                reason="TooLarge",
            )
        contents = await self._source.blobs(self._git_dir, wanted)
        _raise_faults(self._lfs(contents), doing=doing)
        return contents

    async def export(self, under: str, destination: str) -> None:
        """Write a directory's files below an existing empty one: modes 644 and 755 whatever the umask, symbolic links
        as links. ``Invalid``, before anything is written where possible, for submodules, LFS pointers, links that lead
        out, and too much data."""
        under, root = normal(under), Path(destination)
        doing = f"writing out {printable(under) or 'the repository'}"
        if self.tree_id(under) is None:
            raise Invalid("there is no such directory", doing=doing, origin=self._origin(under))
        wanted = list(self._listing.under(under))
        cut = len(under) + 1 if under else 0
        _raise_faults([self._fault(e, "is a submodule") for e in wanted if e.mode is FileMode.SUBMODULE], doing=doing)
        _raise_faults(self._too_large(wanted), doing=doing)
        if (total := sum(max(entry.size, 0) for entry in wanted)) > self._policy.max_export:
            raise Invalid(
                f"its files have {_size(total)}, more than {_size(self._policy.max_export)}",
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
            for group in _groups([entry for entry in files if entry.size <= _PIECE]):
                contents = await self._source.blobs(self._git_dir, group)
                _raise_faults(self._lfs(contents), doing=doing)
                await asyncio.to_thread(_write_files, root, cut, group, contents)
            for entry in files:
                if entry.size > _PIECE:
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
        return [self._fault(e, f"has {_size(e.size)}, more than {_size(limit)}") for e in entries if e.size > limit]

    def _lfs(self, contents: dict[str, bytes]) -> list[tuple[Origin, str]]:
        return [
            (self._origin(path), "is a Git LFS pointer: its content is not in git")
            for path, content in contents.items()
            if is_lfs_pointer(content)
        ]


# ---------------------------------------------------------------- asking a remote


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    name: str  # short: main, v1.2.3, or the sha
    full: str  # what to ask the remote for
    sha: str = ""  # the commit, tags peeled; "": not asked


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """One repository with what contacting it takes."""

    location: Location
    ref: Ref | None
    env: dict[str, str] = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    policy: GitPolicy
    doing: str

    async def ask(self, *options: str, patterns: Sequence[str] = ()) -> str:
        """``ls-remote``'s output."""
        result = await _git(
            ["ls-remote", "--quiet", *options, "--", self.location.url, *patterns],
            env=self.env,
            cwd=Path("/"),
            timeout=self.policy.poll_timeout,
            limit=_ANSWER_BYTES,
        )
        words = said(result.stderr, self.secrets)
        if result.timed_out:
            raise Transient(f"no answer after {self.policy.poll_timeout:g} s: {words}", doing=self.doing)
        if result.exceeded:
            raise Invalid("it has too many refs", doing=self.doing, reason="TooLarge")
        if result.code:
            raise failure(words, doing=self.doing) or Transient(words, doing=self.doing)
        return result.stdout.decode("utf-8", "surrogateescape")


def _branch(name: str) -> _Found:
    return _Found(name=name, full=f"refs/heads/{name}")


async def _find(remote: _Remote, ref: Ref) -> _Found | None:
    if ref.commit:
        await remote.ask(patterns=["HEAD"])
        return _Found(name=ref.commit, full=ref.commit, sha=ref.commit)
    if ref.branch:
        branch = _branch(ref.branch)
        found = _refs(await remote.ask("--heads", patterns=[branch.full]))
        return replace(branch, sha=found[branch.full]) if branch.full in found else None
    if ref.tag:
        full = f"refs/tags/{ref.tag}"
        found = _refs(await remote.ask("--tags", patterns=[full, f"{full}^{{}}"]))
        tag = ref.tag if full in found else None
    else:
        found = _refs(await remote.ask("--tags"))
        names = (full.removeprefix("refs/tags/") for full in found if not full.endswith("^{}"))
        tag = highest(names, ref.semver)
        full = f"refs/tags/{tag}"
    return _Found(name=tag, full=full, sha=found.get(f"{full}^{{}}", found[full])) if tag else None


async def _names(remote: _Remote) -> tuple[list[str], list[str]]:
    """Every branch and tag of the remote, in its order."""
    found = _refs(await remote.ask("--heads", "--tags"))
    branches = [full.removeprefix("refs/heads/") for full in found if full.startswith("refs/heads/")]
    tags = [full.removeprefix("refs/tags/") for full in found if full.startswith("refs/tags/")]
    return branches, [tag for tag in tags if not tag.endswith("^{}")]


def _refs(output: str) -> dict[str, str]:
    """Full ref name → sha."""
    rows = (line.split("\t") for line in output.splitlines())
    found = {row[1]: row[0] for row in rows if len(row) == 2}
    if any(len(sha) == 64 for sha in found.values()):
        raise Invalid("it names objects by SHA-256, which is not supported", doing="reading a repository's refs")
    return found


# ---------------------------------------------------------------- a mirror on disk


def _prepare(mirror: Path) -> tuple[frozenset[Path], int]:
    """Make the mirror if it is not there and remove what a killed git left; the lock is held. Returns its packs' files
    and its bytes."""
    try:
        if not mirror.is_dir():
            # What init writes, without templates and hooks; whole under another name first.
            new = mirror.with_suffix(f".tmp-{uuid.uuid4().hex}")
            for folder in ("objects/pack", "objects/info", "refs/heads"):
                (new / folder).mkdir(parents=True)
            (new / "HEAD").write_text("ref: refs/heads/main\n")
            (new / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
            new.rename(mirror)
        for left in (*mirror.rglob("*.lock"), *mirror.glob("objects/pack/tmp_*")):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise Transient(f"the cache cannot be written: {error.strerror}", doing="making a git mirror") from error
    return frozenset(mirror.glob("objects/pack/*")), _bytes(mirror)


def _remove_packs(mirror: Path, but: frozenset[Path]) -> None:
    for file in mirror.glob("objects/pack/*"):
        if file not in but:
            file.unlink(missing_ok=True)


def _discard(mirror: Path) -> None:
    """Away at once under its name; what cannot be removed now is removed by the next clean-up."""
    old = mirror.with_suffix(f".tmp-{uuid.uuid4().hex}")
    try:
        os.rename(mirror, old)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Transient(f"the cache cannot be written: {error.strerror}", doing="discarding a git mirror") from error
    shutil.rmtree(old, ignore_errors=True)


def _measured(mirror: Path) -> tuple[int, int]:
    """Bytes and packs, after removing what an interrupted discarding left."""
    for left in mirror.parent.glob(f"{mirror.stem}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    return _bytes(mirror), sum(1 for _ in mirror.glob("objects/pack/*.pack"))


def _bytes(directory: Path) -> int:
    """Bytes of all files below; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Commit:
    """What a commit says."""

    sha: str
    tree: str
    parents: tuple[str, ...]
    author: str
    committed_at: datetime | None
    subject: str

    @classmethod
    def made(cls, *, sha: str, tree: str, parents: tuple[str, ...], author: str, time: str, subject: str) -> "_Commit":
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


def _loose(git_dir: Path, ids: Iterable[str], kind: str, limit: int) -> dict[str, bytes]:
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


def _loose_commit(mirror: Path, ref: str) -> "_Commit | None":
    """What the commit says that a ref names, if ref and commit are files of their own."""
    try:
        sha = (mirror / ref).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    content = _loose(mirror, [sha], "commit", _COMMIT_BYTES).get(sha) if SHA.fullmatch(sha) else None
    return _words(sha, content) if content is not None else None


_SIGNED = re.compile(rb"(?P<name>[^<>]*?) ?<[^<>]*> (?P<time>\d+) [+-]\d{4}")


def _words(sha: str, content: bytes) -> _Commit | None:
    """What a commit says, from its object; ``None`` if that takes git's own knowledge (encodings, oddities)."""
    head, _, message = content.partition(b"\n\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\n"):
        name, _, value = line.partition(b" ")
        fields.setdefault(name, []).append(value)  # a signature's lines go on under the name ""
    author = _SIGNED.fullmatch(fields.get(b"author", [b""])[0])
    committer = _SIGNED.fullmatch(fields.get(b"committer", [b""])[0])
    if author is None or committer is None or b"encoding" in fields or b"\0" in content:
        return None
    lines = [line.rstrip() for line in message.split(b"\n")]
    paragraph = itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines))
    return _Commit.made(
        sha=sha,
        tree=fields[b"tree"][0].decode(),
        parents=tuple(each.decode() for each in fields.get(b"parent", [])),
        author=author["name"].decode("utf-8", "replace"),
        time=committer["time"].decode(),
        subject=b" ".join(paragraph).decode("utf-8", "replace"),
    )


async def _read_words(mirror: Path, name: str) -> _Commit | None:
    """What the commit says that a name stands for; ``None`` if there is no such commit."""
    if not await asyncio.to_thread(mirror.is_dir):
        return None
    result = await _git(
        ["log", "-1", "--no-mailmap", "--no-show-signature", "--encoding=UTF-8",
         "--format=%H%x00%T%x00%P%x00%an%x00%ct%x00%s", name, "--"],
        env=_local_env(mirror),
        cwd=mirror,
    )  # fmt: skip
    if result.code:
        words = said(result.stderr, ())
        if any(text in words for text in ("bad revision", "unknown revision", "ambiguous argument")):
            return None
        raise _DamagedError(words)
    fields = result.stdout.decode("utf-8", "replace").removesuffix("\n").split("\0")
    if len(fields) != 6:
        return None  # a tree or a blob
    sha, tree, parents, author, time, subject = fields
    return _Commit.made(sha=sha, tree=tree, parents=tuple(parents.split()), author=author, time=time, subject=subject)


def _read_commit(git_dir: Path, name: str, repository: str, ref: str) -> Revision | None:
    """A commit's own words; ``None`` when the name is not there. ``ref`` "" is found from the name."""
    try:
        with git.Repo(git_dir) as repo:
            # GitPython adds to this process's environment: unset by naming what a hook or a shell may have left there.
            repo.git.update_environment(
                **_local_env(git_dir),
                GIT_OBJECT_DIRECTORY=str(Path(repo.common_dir) / "objects"),
                GIT_ALTERNATE_OBJECT_DIRECTORIES="",
                GIT_CONFIG_PARAMETERS="",
            )
            commit = repo.commit(name)
            if not ref:
                detached = repo.head.is_detached
                ref = commit.hexsha if name == "HEAD" and detached else repo.head.ref.name if name == "HEAD" else name
            try:
                committed_at = commit.committed_datetime
            except (ValueError, OverflowError, OSError):  # a date that no calendar has
                committed_at = None
            return Revision(
                repository=repository,
                ref=commit.hexsha if ref in (commit.hexsha, commit.hexsha[: len(ref)]) else ref,
                sha=commit.hexsha,
                author=printable(str(commit.author.name or ""))[:200],
                committed_at=committed_at,
                subject=printable(_text(commit.summary))[:200],
            )
    except (ODBError, ValueError, IndexError):
        return None
    except (git.GitError, configparser.Error, OSError, AttributeError, TypeError, AssertionError) as error:
        # What GitPython raises for a repository, or a commit, that is not well formed.
        raise _DamagedError(f"{type(error).__name__}: {printable(str(error))[:200]}") from error


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _local_env(git_dir: Path) -> dict[str, str]:
    """For a git that reads: it may contact nothing, not even for a missing object of a partial clone."""
    return {**environment(os.environ, None, GitCredentials(), GitPolicy(), {}), "GIT_DIR": str(git_dir)}


# ---------------------------------------------------------------- one git process


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    code: int  # negative: killed by that signal
    stdout: bytes
    stderr: str
    exceeded: bool  # a limit, and was killed
    timed_out: bool


async def _git(
    arguments: Sequence[str],
    *,
    env: dict[str, str],
    cwd: Path,
    timeout: float = _READ_TIMEOUT,
    limit: int = 1 << 20,
    rows: int = 0,
    stdin: int | None = None,
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    over: Callable[[], bool] | None = None,
) -> _Result:
    """Run git to its end, its deadline, or a limit: of bytes and NUL-ended rows on stdout, or ``over()``, asked now
    and then. Cancelling ends the whole process group."""
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else stdin,
            stdout=asyncio.subprocess.PIPE if stdout is None else stdout,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise Transient(
            f"git cannot be started: {error.strerror}", doing=f"running git {arguments[0]}", hint="is git installed?"
        ) from error
    exceeded = timed_out = False

    def exceed() -> None:
        nonlocal exceeded
        exceeded = True
        _signal(process, signal.SIGKILL)

    async def head() -> bytes:
        kept, seen, counted = bytearray(), 0, 0
        while process.stdout and (piece := await process.stdout.read(1 << 16)):
            seen += len(piece)
            counted += piece.count(b"\0") if rows else 0
            if seen > limit or (rows and counted > rows):
                kept.clear()
                if not exceeded:
                    exceed()
            else:
                kept += piece
        return bytes(kept)

    async def tail() -> bytes:
        kept = b""
        while process.stderr and (piece := await process.stderr.read(1 << 14)):
            kept = (kept + piece)[-_STDERR_BYTES:]
        return kept

    async def watch() -> None:
        while over and process.returncode is None:
            await asyncio.sleep(_WATCH)
            if await asyncio.to_thread(over):
                exceed()
                return

    output = errors = b""
    ended = False
    try:
        async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
            reading, complaining = group.create_task(head()), group.create_task(tail())
            watching = group.create_task(watch())
            await process.wait()
            watching.cancel()
        output, errors, ended = reading.result(), complaining.result(), True
    except TimeoutError:
        timed_out = True
    finally:
        if not ended:
            await _end(process)
    return _Result(
        code=process.returncode if process.returncode is not None else -signal.SIGKILL,
        stdout=output,
        stderr=errors.decode("utf-8", "replace"),
        exceeded=exceeded,
        timed_out=timed_out,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask the process group to stop, then kill what is left of it. Its pipes are drained: else it could not end."""

    async def drained(stream: asyncio.StreamReader | None) -> None:
        while stream and await stream.read(1 << 16):
            pass

    async def gone() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TERMINATE):
                await asyncio.gather(drained(process.stdout), drained(process.stderr), process.wait())

    try:
        if process.returncode is None:
            _signal(process, signal.SIGTERM)  # git removes its temporary files
            await gone()
    finally:
        _signal(process, signal.SIGKILL)
    await gone()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


# ---------------------------------------------------------------- small


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _checked(sha: str) -> str:
    if not SHA.fullmatch(sha):
        raise Invalid(f"{printable(sha)} is not a whole commit id", doing="reading git objects")
    return sha


def _http_credentials(credentials: GitCredentials) -> bool:
    return bool(credentials.password or credentials.bearer_token)


def _size(count: int) -> str:
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
        if group and total + entry.size > _PIECE:
            yield group
            group, total = [], 0
        group.append(entry)
        total += max(entry.size, 0)
    if group:
        yield group


def _write_private(path: Path, text: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


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
