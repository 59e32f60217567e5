"""What a builder is asked and answers, and what its failures mean. The backends are in files of their own.

A backend turns one prepared directory and one pinned Dockerfile into a pushed image and returns its digest. It never
decides whether to build, never resolves a tag, and leaves no process and no file of the build behind.
"""

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gitsync.errors import BuildFailed, GitsyncError, Invalid, Transient, Waiting
from gitsync.images.credentials import RegistryCredentials
from gitsync.images.dockerfile import Dockerfile, Instruction
from gitsync.images.process import CUT, Finished
from gitsync.images.reference import Reference, parse_reference
from gitsync.images.registry import Access
from gitsync.model import Origin

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One image to build and push. Labels are none of it: a commit in them would give equal inputs unequal digests."""

    image: str  # as manifests write it, for messages
    dockerfile: Dockerfile
    context: Path  # holds the files of the context and no other
    push: str  # registry/repository:tag
    references: Mapping[str, str] = field(default_factory=dict[str, str])  # base as written → where it is, @sha256:…
    target: str = ""
    args: tuple[tuple[str, str], ...] = ()
    platforms: tuple[str, ...] = ("linux/amd64",)
    access: Access = field(default_factory=Access)
    credentials: RegistryCredentials = field(default_factory=RegistryCredentials)
    scratch: Path  # an empty directory of this build's own; the caller removes it
    timeout: float = 1800.0  # seconds

    @property
    def place(self) -> Reference:
        return parse_reference(self.push).normal

    def hosts(self) -> dict[str, list[str]]:
        """Registries that the build talks to, each with its repositories; the one to push to is the last."""
        found: dict[str, list[str]] = {}
        for text in (*self.references.values(), self.push):
            reference = parse_reference(text).normal
            found.setdefault(reference.host, []).append(reference.path)
        return found

    def write_dockerfile(self) -> Path:
        path = self.scratch / "Dockerfile"
        path.write_text(self.dockerfile.pinned(self.target, self.references), encoding="utf-8", newline="\n")
        return path


class ImageBuilder(Protocol):
    name: str

    async def available(self) -> str | None:
        """None if it can be used here, else why not and what to do."""
        ...

    async def build(self, request: BuildRequest, log: Log) -> str:
        """Builds, pushes, returns ``sha256:…`` as the registry has it. ``log`` gets every line of output.

        Raises ``BuildFailed`` (the Dockerfile's own doing), ``Invalid`` (asks for what this backend cannot do),
        ``Transient`` and ``Waiting``. When cancelled, nothing of the build goes on.
        """
        ...


async def choose(builders: Sequence[ImageBuilder]) -> ImageBuilder:
    """The first that can be used here. ``Invalid`` lists why each cannot."""
    reasons: list[str] = []
    for builder in builders:
        reason = await builder.available()
        if reason is None:
            return builder
        reasons.append(f"{builder.name}: {reason}")
    raise Invalid(f"no image builder can be used here ({'; '.join(reasons)})", doing="choosing an image builder")


def unsupported(request: BuildRequest, builder: str, what: str, line: int, able: str) -> Invalid:
    """The refusal of a Dockerfile that is right, but not for this backend."""
    return Invalid(
        f"{builder} does not know {what}",
        doing=f"building image {request.image}",
        origin=request.dockerfile.at(line),
        hint=f"use {able}, or write it otherwise",
    )


@contextlib.asynccontextmanager
async def deadline(request: BuildRequest, log: Log) -> AsyncGenerator[Log]:
    """Bounds a build. Yields the log to use inside, so that a build which never ends can say where it was."""
    tail: deque[str] = deque(maxlen=400)

    def note(line: str) -> None:
        tail.append(line)
        log(line)

    try:
        async with asyncio.timeout(request.timeout):
            yield note
    except TimeoutError:
        step = _step(request.dockerfile, tuple(tail))
        raise BuildFailed(
            f"not done after {request.timeout:.0f} s{_tail(tuple(tail))}",
            doing=f"building image {request.image}",
            origin=request.dockerfile.at(step.line) if step else request.dockerfile.origin,
            hint="make the step end, or raise the build's deadline",
            reason="BuildTimeout",
        ) from None


# ---------------------------------------------------------------- what a failure means

_RAN = re.compile(
    r"building at STEP \"(?:RUN|ONBUILD).*\": (?:while running runtime: )?exit status (\d+)"  # buildah, podman
    r"|returned a non-zero code: (\d+)"  # docker
    r"|did not complete successfully: exit code: (\d+)"  # BuildKit
)
_KILLED = re.compile(r"process exited on killed|signal: killed")
_STEP_FAILED = re.compile(
    r"building at STEP \"|failed to (?:calculate checksum|compute cache key)|COPY failed|ADD failed"
)
_UNKNOWN_IMAGE = re.compile(
    r"manifest unknown|name unknown|name invalid|manifest for .* not found|repository does not exist"
    r"|reading manifest \S+ in \S+: .*not found|(?:docker\.io|docker-image)\S*: not found"
    r"|@sha256:[0-9a-f]{64}: not found|no such image",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"unauthorized|authentication required|access denied|denied:|insufficient_scope|403 Forbidden"
    r"|no basic auth credentials",
    re.IGNORECASE,
)
_FULL = re.compile(r"no space left on device|disk quota exceeded|ENOSPC", re.IGNORECASE)
_NETWORK = re.compile(
    r"connection (?:refused|reset|timed out)|no such host|i/o timeout|TLS handshake timeout|network is unreachable"
    r"|temporary failure (?:in name resolution|resolving)|could not resolve host|EAI_AGAIN|ECONNRE(?:FUSED|SET)"
    r"|ETIMEDOUT|ENOTFOUND|context deadline exceeded|(?:50[0234]|429) (?:Internal|Bad|Service|Gateway|Too)",
    re.IGNORECASE,
)
_WRONG_MACHINE = re.compile(
    r"exec format error|no match for platform|does not match the specified platform", re.IGNORECASE
)
_SYNTAX = re.compile(r"dockerfile parse error|unknown instruction|unknown flag", re.IGNORECASE)


def failure(finished: Finished, request: BuildRequest, builder: str) -> GitsyncError:
    """Reads the end of a failed build's output. Evidence against the commit only if a step itself said no."""
    lines = finished.lines
    doing = f"building image {request.image} with {builder}"
    said = "\n".join(line for line in lines[-12:])
    step = _step(request.dockerfile, lines)
    origin = request.dockerfile.at(step.line) if step else request.dockerfile.origin
    ran = _RAN.search(said)
    code = next((int(group) for group in ran.groups() if group), 0) if ran else 0
    if finished.code < 0 or code == 137 or _KILLED.search(said):
        return Transient(
            f"it was killed{_tail(lines)}",
            doing=doing, origin=origin, hint="look for too little memory; it is tried again",
        )  # fmt: skip
    if _FULL.search(said):
        return Transient(f"the disk is full{_tail(lines)}", doing=doing, origin=origin, reason="DiskFull")
    if _WRONG_MACHINE.search(said):
        return BuildFailed(
            f"a program is for another architecture than {', '.join(request.platforms)}{_tail(lines)}",
            doing=doing, origin=origin, hint="use a base image and files for that platform",
        )  # fmt: skip
    if ran:
        if _NETWORK.search("\n".join(lines[-40:])):
            return Transient(f"{_name(step)} failed for want of the network{_tail(lines)}", doing=doing, origin=origin)
        return BuildFailed(f"{_name(step)} failed with exit code {code}{_tail(lines)}", doing=doing, origin=origin)
    if _SYNTAX.search(said):
        hint = "another builder (BuildKit by buildctl) may know it"
        return BuildFailed(f"{builder} cannot read the Dockerfile{_tail(lines)}", doing=doing, origin=origin, hint=hint)
    if _UNKNOWN_IMAGE.search(said):
        return Invalid(
            f"a base image is not in its registry{_tail(lines)}",
            doing=doing, origin=origin, hint="correct its name", reason="UnknownBase",
        )  # fmt: skip
    if _DENIED.search(said):
        return _login(request, doing, origin, lines)
    if _NETWORK.search(said):
        return Transient(f"a registry cannot be reached{_tail(lines)}", doing=doing, origin=origin)
    if _STEP_FAILED.search(said):
        return BuildFailed(f"{_name(step)} failed{_tail(lines)}", doing=doing, origin=origin)
    return Transient(f"it ended with code {finished.code}{_tail(lines)}", doing=doing, origin=origin)


def push_failure(finished: Finished, request: BuildRequest, builder: str) -> GitsyncError:
    """A push that failed is nobody's fault in the commit."""
    doing = f"pushing image {request.push} with {builder}"
    said = "\n".join(finished.lines[-12:])
    if _DENIED.search(said):
        return _login(request, doing, request.dockerfile.origin, finished.lines)
    full = "the disk is full" if _FULL.search(said) else "the registry did not take it"
    return Transient(f"{full}{_tail(finished.lines, 5)}", doing=doing, origin=request.dockerfile.origin)


def _login(request: BuildRequest, doing: str, origin: Origin, lines: Sequence[str]) -> Waiting:
    source = request.credentials.source
    return Waiting(
        f"a registry refuses the login{_tail(lines, 3)}",
        retry_after=60.0,
        doing=doing,
        origin=origin,
        hint=f"check the login in {source}" if source else "log in: no login is set",
        reason="RegistryLoginRefused",
    )


def _tail(lines: Sequence[str], count: int = 20) -> str:
    return ":\n" + "\n".join(f"  {line[:500]}" for line in lines[-count:]) if lines else ""


def _name(step: Instruction | None) -> str:
    return f"“{step.text[:100]}{'…' if len(step.text) > 100 else ''}”" if step else "a step"


_STEP = re.compile(r"^(?:\[[^\]]*\] )?(?:STEP|Step) \d+/\d+ ?: (.*)")
_BUILDKIT_LINE = re.compile(r"^Dockerfile:(\d+)\s*$")


def _step(dockerfile: Dockerfile, lines: Sequence[str]) -> Instruction | None:
    """The instruction that ran last: BuildKit names its line, the others print each step's text."""
    for line in reversed(lines):
        if match := _BUILDKIT_LINE.match(line):
            number = int(match[1])
            return next((item for item in dockerfile.instructions if item.line <= number <= item.end), None)
        if match := _STEP.match(line):
            head, cut, tail = match[1].partition(CUT)
            begins, ends = _squeeze(head), _squeeze(tail)
            for item in dockerfile.instructions:
                text = _squeeze(item.text)
                if text == begins or (cut and text.startswith(begins) and text.endswith(ends)):
                    return item
            return None
    return None


def _squeeze(text: str) -> str:
    return " ".join(text.split())
