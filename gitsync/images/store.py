"""Finds or builds the images of one commit. The thin, acting part of this package.

For each image: read what goes in → fingerprint → ask the registry for that tag → found, or built and pushed once,
however many ask at the same time. Nothing is remembered between calls but the builds under way: the registry is the
memory, so "pushed, but the answer was lost" is simply found the next time.
"""

import asyncio
import contextlib
import fcntl
import os
import platform as machine
import posixpath
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from gitsync.errors import GitsyncError, Invalid, Transient, Waiting
from gitsync.failpoints import failpoint
from gitsync.images import process
from gitsync.images.builder import BuildRequest, ImageBuilder
from gitsync.images.credentials import RegistryCredentials
from gitsync.images.dockerfile import Dockerfile, Use, parse_for
from gitsync.images.fingerprint import Inputs, fingerprint, inside, touched
from gitsync.images.ignore import ignore_file, matcher
from gitsync.images.reference import parse_reference
from gitsync.images.registry import Access, Registry
from gitsync.model import FileMode, Fingerprint, Image, ImageSet, ImageSpec, Origin, Snapshot, TreeEntry

Log = Callable[[str, str], None]  # image name, line

_LOG_BYTES = 8 << 20  # of one build
_LOGS_KEPT = 100
_NO_BASES: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an Application's images go. ``push`` and ``pull`` are prefixes like ``registry:5000/team``.

    ``pull`` is the same registry as the cluster's nodes name it ("": like ``push``). ``platforms`` are the default
    for images that name none.
    """

    push: str = ""
    pull: str = ""
    credentials: RegistryCredentials = field(default_factory=RegistryCredentials)
    platforms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One image, read and understood, before its bases are known."""

    spec: ImageSpec
    dockerfile: Dockerfile
    inputs: Inputs
    platforms: tuple[str, ...]

    @property
    def bases(self) -> tuple[Use, ...]:
        return self.dockerfile.bases(self.spec.target)

    def tagged(self, to: "Destination", bases: Mapping[str, str]) -> str:
        return f"{_push_name(self.spec, to.push)}:{self.fingerprint(bases).tag}"

    def platforms_of(self, base: Use) -> tuple[str, ...]:
        """For which platforms the build wants this base."""
        if base.platform:
            return (base.platform,)
        read = (replace(self.dockerfile, variants=()), *self.dockerfile.variants)
        return tuple(
            platform
            for platform, each in zip(self.platforms, read, strict=True)
            if any(use.name == base.name for use in each.bases(self.spec.target))
        )

    def fingerprint(self, bases: Mapping[str, str]) -> Fingerprint:
        assert self.inputs.dockerfile
        return fingerprint(
            self.spec,
            self.inputs.context,
            dockerfile_id=self.inputs.dockerfile.id,
            bases={use.name: bases.get(use.name) or parse_reference(use.name).digest for use in self.bases},
            platform=",".join(sorted(self.platforms)),
            output_format=self.dockerfile.output_format,
        )


_Start = Callable[[Callable[[str], None]], Coroutine[Any, Any, str]]


class _Flight:
    """A build under way, and who waits for it."""

    def __init__(self, start: _Start) -> None:
        self.waiting = 0
        self._logs: list[Callable[[str], None]] = []
        self.task = asyncio.create_task(start(self._note))

    async def join(self, log: Callable[[str], None]) -> str:
        self.waiting += 1
        self._logs.append(log)
        try:
            await asyncio.wait([self.task])  # our own cancellation ends the wait, not the build
        finally:
            self.waiting -= 1
            self._logs.remove(log)
        if self.task.cancelled():
            raise Transient("the build was stopped", doing="waiting for an image")
        return self.task.result()

    def _note(self, line: str) -> None:
        for log in self._logs:
            log(line)


class Images:
    """Finds or builds images for any number of Applications. Use as ``async with``; on exit builds are cancelled.

    ``work`` is a directory for contexts and logs (``logs/<tag>.log``, the newest hundred are kept); ``concurrency``
    bounds the builds under way (several at once are no faster than one after another on the same machine).
    """

    def __init__(
        self,
        builder: ImageBuilder,
        work: Path,
        *,
        access: Access | None = None,
        concurrency: int = 1,
        build_timeout: float = 1800.0,
        registry_timeout: float = 30.0,
    ) -> None:
        self._builder = builder
        self._work = work
        self._access = access or Access()
        self._own = replace(self._access, mirrors={})  # what we push is where we push it, whoever mirrors that host
        self._slots = asyncio.Semaphore(concurrency)
        self._build_timeout = build_timeout
        self._registry_timeout = registry_timeout
        self._flights: dict[str, _Flight] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Images":
        await asyncio.to_thread(self._remove_left)
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session:
            await self._session.close()

    async def ensure(
        self,
        snapshot: Snapshot,
        specs: Sequence[ImageSpec],
        *,
        to: Destination,
        bases: Mapping[str, str] = _NO_BASES,
        log: Log = lambda image, line: None,
    ) -> ImageSet:
        """All of the commit's images, found or built; in the order of ``specs``.

        ``bases`` are the locked digests of base images by the name in the Dockerfile: those are used and never asked
        for again, only missing ones are resolved, and one that a build wanted and its registry has thrown away. The
        result names every base that was used. ``Invalid`` for one image ends the builds of the others; after
        ``Transient`` they go on to their end first.
        """
        sources, registry = self._sources(to.credentials), self._registry(to.credentials, self._own)
        plans = [await _plan(snapshot, spec, to.platforms) for spec in specs]
        locked = await self._lock(sources, plans, bases)
        try:
            return await self._all(snapshot, plans, to, locked, registry, log)
        except (Invalid, Transient) as error:
            # Not every builder says plainly that an image is not there: the registry does.
            if isinstance(error, Waiting) or (isinstance(error, Invalid) and error.reason != "UnknownBase"):
                raise
            try:
                wanting = [plan for plan in plans if not await registry.resolve(plan.tagged(to, locked))]
                kept = await self._kept(sources, wanting, locked, log)
            except GitsyncError:
                raise error from None
            if kept == locked:
                raise
        locked = await self._lock(sources, plans, kept)
        return await self._all(snapshot, plans, to, locked, registry, log)

    async def _all(
        self,
        snapshot: Snapshot,
        plans: Sequence[_Plan],
        to: Destination,
        locked: Mapping[str, str],
        registry: Registry,
        log: Log,
    ) -> ImageSet:
        failed: list[Transient] = []

        async def one(plan: _Plan) -> Image | None:
            try:
                return await self._one(snapshot, plan, to, locked, registry, log)
            except Transient as error:
                failed.append(error)  # the others go on: what they build is found the next time
                return None

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(plan)) for plan in plans]
        except ExceptionGroup as several:
            known, unknown = several.split(GitsyncError)
            if unknown or not known:
                raise
            raise known.exceptions[0] from None
        if failed:
            raise failed[0]
        return ImageSet(images=tuple(image for task in tasks if (image := task.result())), bases=locked)

    async def lock(
        self, snapshot: Snapshot, specs: Sequence[ImageSpec], *, to: Destination, bases: Mapping[str, str] = _NO_BASES
    ) -> Mapping[str, str]:
        """Only the base images: those locked in ``bases``, and the digests of now for the others. Builds nothing."""
        plans = [await _plan(snapshot, spec, to.platforms) for spec in specs]
        return await self._lock(self._sources(to.credentials), plans, bases)

    async def found(
        self, snapshot: Snapshot, specs: Sequence[ImageSpec], *, to: Destination, bases: Mapping[str, str] = _NO_BASES
    ) -> Mapping[str, str]:
        """Name → reference of every image: by digest if the registry has it, else by the tag it would be built as."""
        registry = self._registry(to.credentials, self._own)
        plans = [await _plan(snapshot, spec, to.platforms) for spec in specs]
        locked = await self._lock(self._sources(to.credentials), plans, bases)
        references: dict[str, str] = {}
        for plan in plans:
            push, tag = _push_name(plan.spec, to.push), plan.fingerprint(locked).tag
            digest = await registry.resolve(f"{push}:{tag}")
            references[plan.spec.name] = (
                f"{_pull_name(push, to)}@{digest}" if digest else f"{_pull_name(push, to)}:{tag}"
            )
        return references

    # ------------------------------------------------------------------ bases

    def _sources(self, credentials: RegistryCredentials) -> Registry:
        return self._registry(credentials, self._access)

    def _registry(self, credentials: RegistryCredentials, access: Access) -> Registry:
        assert self._session, "use Images as a context manager"
        return Registry(self._session, credentials=credentials, access=access, deadline=self._registry_timeout)

    async def _lock(self, registry: Registry, plans: Sequence[_Plan], bases: Mapping[str, str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for plan in plans:
            for use in plan.bases:
                if use.name not in found:
                    found[use.name] = bases.get(use.name) or await self._resolve(registry, plan, use)
        return found

    async def _kept(
        self, registry: Registry, plans: Sequence[_Plan], locked: Mapping[str, str], log: Log
    ) -> dict[str, str]:
        """Those that their registries still have. Many clean up what no tag names: there is no building on it again."""
        gone: set[str] = set()
        for plan in plans:
            for name in {use.name for use in plan.bases} - gone:
                if parse_reference(name).digest:
                    continue  # the Dockerfile itself says so
                if await registry.resolve(f"{parse_reference(name).name}@{locked[name]}") is None:
                    gone.add(name)
                    log(plan.spec.name, f"{name} as {locked[name]} is not in its registry any more")
        return {name: digest for name, digest in locked.items() if name not in gone}

    async def _resolve(self, registry: Registry, plan: _Plan, use: Use) -> str:
        origin = plan.dockerfile.at(use.line)
        doing = f"resolving base image {use.name} of {plan.spec.name}"
        try:
            digest = parse_reference(use.name).digest or await registry.resolve(use.name)
            if not digest:
                raise Invalid("there is no such image in its registry", hint="correct its name", reason="UnknownBase")
            place = parse_reference(use.name).name
            has = await registry.platforms(f"{place}@{digest}")
        except GitsyncError as error:
            error.doing, error.origin = doing, origin  # said of the base image that was wanted
            raise
        for wanted in plan.platforms_of(use):
            if has and not any(_same_platform(wanted, one) for one in has):
                raise Invalid(
                    f"it is for {', '.join(has)}, not for {wanted}",
                    doing=doing,
                    origin=origin,
                    hint="use another base image, or set the image's platforms",
                    reason="WrongPlatform",
                )
        return digest

    # ------------------------------------------------------------------ one image

    async def _one(
        self, snapshot: Snapshot, plan: _Plan, to: Destination, bases: Mapping[str, str], registry: Registry, log: Log
    ) -> Image:
        started = time.monotonic()
        print_ = plan.fingerprint(bases)
        push = _push_name(plan.spec, to.push)
        tagged = f"{push}:{print_.tag}"
        digest, built = await self._found(registry, plan, tagged), False
        if digest is None:
            digest = await self._fly(
                tagged,
                lambda note: self._build(snapshot, plan, to, bases, registry, tagged, print_, note),
                lambda line: log(plan.spec.name, line),
            )
            built = True
        return Image(
            name=plan.spec.name,
            reference=f"{_pull_name(push, to)}@{digest}",
            digest=digest,
            fingerprint=print_.value,
            built=built,
            seconds=time.monotonic() - started,
        )

    async def _fly(self, key: str, start: _Start, log: Callable[[str], None]) -> str:
        """Joins the build of ``key`` or starts it. It is cancelled only when nobody waits for it any more."""
        while True:
            flight = self._flights.get(key)
            mine = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight(start)
                flight.task.add_done_callback(partial(self._landed, key, flight))
            try:
                return await flight.join(log)
            except Waiting:
                if mine:
                    raise
                # Refused with the login of another Application: try with ours.
            finally:
                if flight.waiting == 0 and not flight.task.done():
                    self._landed(key, flight)  # nobody may join it any more
                    flight.task.cancel()
                    await asyncio.wait([flight.task])

    def _landed(self, key: str, flight: _Flight, _: object = None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _build(
        self,
        snapshot: Snapshot,
        plan: _Plan,
        to: Destination,
        bases: Mapping[str, str],
        registry: Registry,
        tagged: str,
        print_: Fingerprint,
        note: Callable[[str], None],
    ) -> str:
        waited = self._slots.locked()
        async with self._slots:
            if waited and (found := await self._found(registry, plan, tagged)):
                return found  # another replica pushed it meanwhile
            try:
                with self._log_file(print_.tag) as keep:

                    def both(line: str) -> None:
                        keep(line)
                        note(line)

                    async with self._prepared(snapshot, plan, print_.tag) as (context, scratch):
                        request = BuildRequest(
                            image=plan.spec.name,
                            dockerfile=plan.dockerfile,
                            context=context,
                            push=tagged,
                            references={use.name: self._pinned(use.name, bases[use.name]) for use in plan.bases},
                            target=plan.spec.target,
                            args=plan.spec.args,
                            platforms=plan.platforms,
                            access=self._access,
                            credentials=to.credentials,
                            scratch=scratch,
                            timeout=self._build_timeout,
                        )
                        digest = await self._builder.build(request, both)
                        failpoint("image.pushed")
            except OSError as error:
                raise Transient(
                    f"what it needs cannot be written: {error.strerror}", doing=f"building image {plan.spec.name}"
                ) from error
        return await self._verified(registry, plan, tagged, digest)

    def _pinned(self, name: str, digest: str) -> str:
        return f"{self._access.locate(name).name}@{digest}"

    async def _found(self, registry: Registry, plan: _Plan, tagged: str) -> str | None:
        """What was pushed once is there also if it was refused then."""
        digest = await registry.resolve(tagged)
        if digest and plan.dockerfile.chooses_platform(plan.spec.target):
            await self._suits(registry, plan, tagged, digest)
        return digest

    async def _verified(self, registry: Registry, plan: _Plan, tagged: str, digest: str) -> str:
        """What the registry has under the tag now is what was pushed, and for the machine it is meant for."""
        found = await registry.resolve(tagged)
        if found != digest:
            raise Transient(
                f"the registry has {found or 'nothing'} instead of {digest}",
                doing=f"checking pushed image {tagged}",
                origin=plan.dockerfile.origin,
            )
        await self._suits(registry, plan, tagged, digest)
        return digest

    async def _suits(self, registry: Registry, plan: _Plan, tagged: str, digest: str) -> None:
        has = await registry.platforms(f"{parse_reference(tagged).name}@{digest}")
        for wanted in plan.platforms:
            if has and not any(_same_platform(wanted, one) for one in has):
                raise Invalid(
                    f"it is for {', '.join(has)}, not for {wanted}",
                    doing=f"checking pushed image {tagged}",
                    origin=plan.dockerfile.origin,
                    hint="remove --platform from FROM, or set the image's platforms",
                    reason="WrongPlatform",
                )

    # ------------------------------------------------------------------ on disk

    @contextlib.asynccontextmanager
    async def _prepared(self, snapshot: Snapshot, plan: _Plan, tag: str) -> AsyncGenerator[tuple[Path, Path]]:
        """The context with exactly the files that the fingerprint counts, and a directory for the builder's own use."""
        home, lock = await asyncio.to_thread(self._make_home, tag)
        context, scratch = home / "context", home / "scratch"
        try:
            await snapshot.export(plan.spec.context, str(context), only=plan.inputs.context)
            yield context, scratch
        finally:
            try:
                await asyncio.shield(asyncio.to_thread(process.remove, home))
            finally:
                os.close(lock)

    def _make_home(self, tag: str) -> tuple[Path, int]:
        """A directory, and the descriptor whose lock says that its build lives."""
        (self._work / "builds").mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix=f"{tag[:11]}-", dir=self._work / "builds"))
        for name in ("context", "scratch"):
            (home / name).mkdir()
            (home / name).chmod(0o755)
        lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return home, lock

    def _remove_left(self) -> None:
        """What builds of processes that were killed have left: contexts, and logins."""
        for home in (self._work / "builds").glob("*"):
            with contextlib.suppress(OSError, Transient):
                lock = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    process.remove(home)
                finally:
                    os.close(lock)

    @contextlib.contextmanager
    def _log_file(self, tag: str) -> Generator[Callable[[str], None]]:
        """Keeps a build's output as far as there is room: a log is not worth a build."""
        file, written = self._open_log(tag), 0

        def keep(line: str) -> None:
            nonlocal written
            if file and written < _LOG_BYTES:
                written += len(line) + 1
                try:
                    file.write(line + "\n" if written < _LOG_BYTES else "… (the log is cut here)\n")
                    file.flush()
                except OSError:
                    written = _LOG_BYTES

        try:
            yield keep
        finally:
            with contextlib.suppress(OSError):
                if file:
                    file.close()

    def _open_log(self, tag: str) -> TextIO | None:
        folder = self._work / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            old = sorted(folder.glob("gs-*.log"), key=lambda path: path.stat().st_mtime)
            for path in old[: -_LOGS_KEPT + 1]:
                path.unlink(missing_ok=True)
            return open(folder / f"{tag}.log", "w", encoding="utf-8")
        except OSError:
            return None


# ---------------------------------------------------------------- reading a commit


async def _plan(snapshot: Snapshot, spec: ImageSpec, platforms: Sequence[str]) -> _Plan:
    """Reads what the image is made from. ``Invalid`` if its Dockerfile or directory is missing or wrong."""
    inputs, contents = await _inputs(snapshot, spec)
    if inputs.dockerfile is None or inputs.dockerfile.mode not in (FileMode.FILE, FileMode.EXECUTABLE):
        raise Invalid(
            f"image {spec.name} has no Dockerfile there" if inputs.dockerfile is None else "it is no plain file",
            doing="reading the Dockerfile",
            origin=_origin(snapshot, spec.dockerfile),
            hint="correct the images: entry",
        )
    if not inputs.context and not inputs.ignored:
        raise Invalid(
            f"the directory “{spec.context}” of image {spec.name} is not in the repository",
            doing="reading the build context",
            origin=_origin(snapshot, spec.dockerfile),
            hint="correct the context of the images: entry",
        )
    wanted = spec.platforms or tuple(platforms) or (host_platform(),)
    text, origin = contents[inputs.dockerfile.path], _origin(snapshot, spec.dockerfile)
    dockerfile = parse_for(text, wanted, origin=origin, args=dict(spec.args))
    dockerfile.bases(spec.target)  # a target that is no stage is told now
    return _Plan(spec=spec, dockerfile=dockerfile, inputs=inputs, platforms=wanted)


async def _inputs(snapshot: Snapshot, spec: ImageSpec) -> tuple[Inputs, Mapping[str, bytes]]:
    """The image's files and the contents of the two that decide what is in: Dockerfile and .dockerignore."""
    dockerfile = snapshot.entry(spec.dockerfile)
    rules = next(filter(None, map(snapshot.entry, ignore_file(spec.dockerfile, spec.context))), None)
    if rules and rules.mode is FileMode.SYMLINK:  # what is read of a link is its target's name, which ignores nothing
        raise Invalid(
            "it is no plain file",
            doing="reading .dockerignore",
            origin=_origin(snapshot, rules.path),
            hint="commit the rules themselves instead of a link",
        )
    contents = await snapshot.read([entry for entry in (dockerfile, rules) if entry], limit=1 << 20)
    text = contents[rules.path].decode("utf-8", "replace") if rules else ""
    ignored = matcher(text, _origin(snapshot, rules.path) if rules else None)
    kept: list[TreeEntry] = []
    left: list[TreeEntry] = []
    for entry in snapshot.entries(spec.context):
        (left if ignored(inside(entry.path, spec.context)) else kept).append(entry)
    return Inputs(context=tuple(kept), ignored=tuple(left), dockerfile=dockerfile, rules=rules), contents


async def describe(
    snapshot: Snapshot,
    specs: Sequence[ImageSpec],
    *,
    bases: Mapping[str, str] = _NO_BASES,
    since: Snapshot | None = None,
    platforms: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What would be built, as JSON objects, without registry, builder and cluster.

    ``fingerprint`` is the one that a build uses if ``resolved``; else some base image's digest is not known (null in
    ``bases``), and it can only be compared with others of this function. With ``since``: ``touched``, and the
    ``files`` whose change touches the image.
    """
    rows: list[dict[str, Any]] = []
    for spec in specs:
        plan = await _plan(snapshot, spec, platforms)
        found = plan.fingerprint(bases)
        digests = {use.name: bases.get(use.name) or parse_reference(use.name).digest or None for use in plan.bases}
        row: dict[str, Any] = {
            "name": spec.name,
            "context": posixpath.normpath(spec.context),
            "dockerfile": spec.dockerfile,
            "target": spec.target,
            "args": dict(spec.args),
            "platforms": list(plan.platforms),
            "format": plan.dockerfile.output_format,
            "bases": digests,
            "resolved": all(digests.values()),
            "fingerprint": found.value,
            "tag": found.tag,
            "inputs": len(plan.inputs.context),
        }
        if since is not None:
            try:
                before, _ = await _inputs(since, spec)
            except Invalid:
                before = Inputs(context=())  # nothing could be built of it: all is new
            files = touched(before, plan.inputs)
            row |= {"touched": bool(files), "files": list(files)}
        rows.append(row)
    return rows


def _origin(snapshot: Snapshot, file: str) -> Origin:
    return Origin(repository=snapshot.revision.repository, sha=snapshot.revision.sha, file=file)


# ---------------------------------------------------------------- names and platforms


def _push_name(spec: ImageSpec, prefix: str) -> str:
    if not spec.repository and not prefix:
        raise Invalid(
            f"there is no registry to push image {spec.name} to",
            doing="naming an image",
            hint="set a registry, or the repository of the images: entry",
        )
    name = spec.repository or f"{prefix.rstrip('/')}/{parse_reference(spec.name).path}"
    return parse_reference(name).name


def _pull_name(push: str, to: Destination) -> str:
    prefix = to.push.rstrip("/")
    return to.pull.rstrip("/") + push.removeprefix(prefix) if to.pull and push.startswith(f"{prefix}/") else push


def host_platform() -> str:
    """This machine's, as images name it: ``linux/amd64``."""
    names = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}
    return f"linux/{names.get(machine.machine(), machine.machine())}"


def _same_platform(wanted: str, has: str) -> bool:
    """``linux/arm64`` is served by ``linux/arm64/v8``, and the other way round."""
    shorter, longer = sorted((wanted, has), key=len)
    return longer == shorter or longer.startswith(f"{shorter}/")
