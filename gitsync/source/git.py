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
import os
import shutil
import tempfile
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import git
from gitdb.exc import ODBError

from gitsync.errors import GitsyncError, Invalid, Transient
from gitsync.model import Origin, Revision, TreeEntry
from gitsync.source import commits, process
from gitsync.source.commits import DamagedError
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
from gitsync.source.snapshot import PIECE, GitSnapshot, size_of
from gitsync.source.tree import Listing, Malformed, parse_listing, printable
from gitsync.source.versions import highest

Relation = Literal["same", "ahead", "behind", "diverged", "unrelated", "unknown"]

_LISTING_BYTES = 256 << 20
_ANSWER_BYTES = 32 << 20  # ls-remote of a repository with 400,000 refs
_PACKS = 40  # a mirror with more is repacked
_FEW = 64  # objects that are looked for in files of their own, one by one
_LISTED = 50_000  # paths, in all trees together that are remembered
_COMMITS = 1024  # of which tree and parents are remembered
_UNREACHABLE_KEPT = "2.weeks.ago"  # after a rewritten history, the old one can still be compared with


class GitSource:
    """Follows repositories through one cache directory. One event loop; several processes may share the directory."""

    def __init__(self, cache_dir: Path, policy: GitPolicy | None = None) -> None:
        self._mirrors = cache_dir / "git"
        self._policy = policy or GitPolicy()
        self._locks: dict[Path, asyncio.Lock] = {}
        self._opened: dict[str, Path] = {}  # repositories of the user's own, read in place and never written
        self._commits: OrderedDict[str, commits.Commit] = OrderedDict()  # as last read, by sha
        self._listings: OrderedDict[str, Listing] = OrderedDict()  # by the tree's id: many follow one repository

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
                    with contextlib.suppress(DamagedError):
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
                    except DamagedError as error:
                        await asyncio.to_thread(_discard, mirror)
                        if last:
                            raise Transient(f"the cache is damaged: {error}", doing=remote.doing) from error
        raise AssertionError("unreachable")

    async def _bring(self, remote: "_Remote", mirror: Path, found: "_Found", kept: str, lock: int) -> Revision:
        """Fetch into the mirror, whose lock is held."""
        packs, before = await asyncio.to_thread(_prepare, mirror)
        result = await process.run(
            ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc",
             "--no-recurse-submodules", "--update-shallow", "--refmap=", "--",
             remote.location.url, f"+{found.full}:{kept}"],
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
                f"more than {size_of(self._policy.max_bytes)} would have to be stored",
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
            raise DamagedError(words)
        if revision := await self._commit(mirror, kept, remote.location.url, found.name):
            return revision
        kind = await process.run(["cat-file", "-t", f"{kept}^{{}}"], env=process.local_env(mirror), cwd=mirror)
        if kind.stdout.strip() in (b"tree", b"blob"):
            raise Invalid(f"{found.name} names a {kind.stdout.strip().decode()}, not a commit", doing=remote.doing)
        raise DamagedError(said(kind.stderr, ()))

    async def _known(self, mirror: Path, kept: str, repository: str, found: "_Found") -> Revision | None:
        """What was found, if it is in the mirror already."""
        with contextlib.suppress(DamagedError):
            revision = await self._commit(mirror, kept, repository, found.name)
            return revision if revision and revision.sha == found.sha else None
        return None

    async def _commit(self, mirror: Path, kept: str, repository: str, name: str) -> Revision | None:
        """The commit that a ref of a mirror names; ``None`` if it names none."""
        commit = await asyncio.to_thread(commits.loose_commit, mirror, kept) or await commits.read(mirror, kept)
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
        except DamagedError as error:
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
        root = await self._root(git_dir, _checked(revision.sha))
        listing = self._listings.pop(root, None)
        if listing is None or not await asyncio.to_thread(git_dir.is_dir):
            listing = await self._list(git_dir, root, revision)
        self._listings[root] = listing
        while sum(len(each.paths) for each in self._listings.values()) > _LISTED:
            self._listings.popitem(last=False)
        return GitSnapshot(self, self._policy, git_dir, revision, listing)

    async def _list(self, git_dir: Path, root: str, revision: Revision) -> Listing:
        """Everything below a tree; ``revision`` is for telling what is wrong with it."""
        origin, doing = Origin(repository=revision.repository, sha=revision.sha), "reading the commit's tree"
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
        return listing

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
        result = await process.run(
            ["merge-base", _checked(old_sha), _checked(new_sha)], env=process.local_env(git_dir), cwd=git_dir
        )
        base = result.stdout.decode().strip()
        if result.code == 1 and not base:  # that of a shallow clone was cut somewhere
            return "unknown" if await asyncio.to_thread((git_dir / "shallow").exists) else "unrelated"
        if result.code:
            return "unknown"
        return "ahead" if base == old_sha else "behind" if base == new_sha else "diverged"

    async def collect_garbage(self, keep: Collection[str], *, unused: float = 0.0) -> int:
        """Remove mirrors of repositories that are not in ``keep``, repack the others. Returns the bytes freed.

        ``unused``: seconds for which nobody must have written to one that is removed: processes share the directory.
        """
        kept = {self._mirror(repository) for repository in keep}
        found = await asyncio.to_thread(lambda: {path.with_suffix(".git") for path in self._mirrors.glob("*.*")})
        freed = 0
        for mirror in sorted(found):
            if mirror not in kept and await asyncio.to_thread(_age, mirror) < unused:
                continue
            async with self._locked(mirror, "cleaning the git cache") as lock:
                before, packs = await asyncio.to_thread(_measured, mirror)
                if mirror not in kept:
                    await asyncio.to_thread(_discard, mirror)
                elif packs > _PACKS:
                    await process.run(
                        ["gc", "--quiet", f"--prune={_UNREACHABLE_KEPT}"],
                        env=process.local_env(mirror),
                        cwd=mirror,
                        timeout=10 * process.READ_TIMEOUT,
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
    ) -> process.Result:  # fmt: skip
        """A local git that must succeed. A mirror that fails it is discarded, so that the next fetch heals it."""
        if not await asyncio.to_thread(git_dir.is_dir):
            raise Transient("the commit is no longer in the cache", doing="reading git objects", hint="fetch it again")
        result = await process.run(
            arguments, env=process.local_env(git_dir), cwd=git_dir, limit=limit, rows=rows, stdin=stdin, stdout=stdout
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
            contents = await asyncio.to_thread(commits.loose, git_dir, sizes, "blob", PIECE)
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
                limit=sum(max(size, 0) + 80 for size in sizes.values()) + process.STDERR_BYTES,
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
                    os.utime(descriptor)
            except TimeoutError as error:
                raise Transient("another process has been writing the cache for too long", doing=doing) from error
            except OSError as error:
                raise Transient(f"the cache cannot be written: {error.strerror}", doing=doing) from error
            yield descriptor


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
        result = await process.run(
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


def _age(mirror: Path) -> float:
    """Seconds since somebody last held the mirror's lock."""
    try:
        return time.time() - mirror.with_suffix(".lock").stat().st_mtime
    except OSError:
        return float("inf")


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


def _read_commit(git_dir: Path, name: str, repository: str, ref: str) -> Revision | None:
    """A commit's own words; ``None`` when the name is not there. ``ref`` "" is found from the name."""
    try:
        with git.Repo(git_dir) as repo:
            # GitPython adds to this process's environment: unset by naming what a hook or a shell may have left there.
            repo.git.update_environment(
                **process.local_env(git_dir),
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
        raise DamagedError(f"{type(error).__name__}: {printable(str(error))[:200]}") from error


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


# ---------------------------------------------------------------- small


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _checked(sha: str) -> str:
    if not SHA.fullmatch(sha):
        raise Invalid(f"{printable(sha)} is not a whole commit id", doing="reading git objects")
    return sha


def _http_credentials(credentials: GitCredentials) -> bool:
    return bool(credentials.password or credentials.bearer_token)


def _write_private(path: Path, text: str) -> Path:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path
