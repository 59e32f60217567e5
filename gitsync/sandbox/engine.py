"""The container engine, podman or docker, through its command line: the two agree on everything used here.

Owns the subprocesses and what differs between machines (limits, runtimes), which it finds out by trying. Knows
containers, not pods. No secret is an argument unless the pod makes it one: values go through files and the engine's own
environment.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import orjson

from gitsync.sandbox.schema import at

Json = dict[str, Any]

OWNER_LABEL = "gitsync.sandbox"
_LIMITS = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1024:4096")
_OUTPUT = 4 << 20
_TIE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else it died before we asked to be told
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class SandboxError(Exception):
    """The sandbox cannot start; the message says what to do."""


class EngineError(SandboxError):
    """A command of the engine failed; the message is its own."""


def find(wanted: str = "") -> str:
    """Path of podman or docker (the first that is there, unless one is named). ``EngineError`` if there is none."""
    for name in [wanted] if wanted else ["podman", "docker"]:
        if path := shutil.which(name):
            return path
    raise EngineError(
        f"{wanted or 'neither podman nor docker'} {'is not' if wanted else 'is'} on PATH: install podman "
        "(https://podman.io) or docker, or start the sandbox with engine 'none' to have the API alone"
    )


def _reason(text: str) -> str:
    """The last line of what an engine said that is no advice on how to call it."""
    advice = ("Usage:", "See '", "Run '")
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith(advice)]
    return lines[-1].removeprefix("Error: ").removeprefix("docker: ") if lines else ""


def _gateway(configuration: bytes) -> str:
    """The address of docker's bridge on this machine. A daemon that has just made it names the network alone."""
    networks: list[Json] = orjson.loads(configuration) or []
    for each in networks:
        if ":" not in each["Subnet"]:
            return str(each.get("Gateway") or ip_network(each["Subnet"])[1])
    raise EngineError("docker has no bridge network, by which pods would reach Services: start dockerd with one")


def tied(*command: str) -> list[str]:
    """The command as one that dies with this process, however that ends. Elsewhere than on Linux: as it is."""
    if sys.platform != "linux":
        return [*command]
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *command]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerState:
    """What ``inspect`` says. Times as the engine prints them; ``exit_code`` counts once it is not running."""

    id: str
    running: bool
    exit_code: int
    oom_killed: bool
    started: str
    finished: str
    stop_signal: str
    ports: Mapping[int, int]
    """Published: container port → port on loopback."""


class Engine:
    """One engine. ``label`` marks all containers made through it."""

    def __init__(self, path: str, label: str) -> None:
        self._path = path
        self.podman = Path(path).name.startswith("podman")
        self._label = f"{OWNER_LABEL}={label}"
        self._global: list[str] = []
        self._create: list[str] = []
        self._slots = asyncio.Semaphore(4)

    async def call(
        self, *args: str, timeout: float = 60.0, env: Mapping[str, str] | None = None, globals_: Sequence[str] = ()
    ) -> bytes:
        """Run one command and return its output. ``EngineError`` when it fails or takes longer than ``timeout``."""
        process = await asyncio.create_subprocess_exec(
            self._path,
            *self._global,
            *globals_,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **env} if env else None,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate()
        except BaseException as error:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise EngineError(f"{args[0]} took longer than {timeout:.0f} s") from error
            raise
        if process.returncode:
            raise EngineError(_reason(err.decode(errors="replace")) or f"exit code {process.returncode}")
        return out[:_OUTPUT]

    async def create(self, args: Sequence[str], *, env: Mapping[str, str]) -> str:
        """Create and start a container; returns its id. Learns once which options this machine needs."""
        while True:
            made, options = "", [*self._create, *self._global]
            try:
                async with self._slots:
                    out = await self.call("create", "--label", self._label, *self._create, *args, env=env)
                    made = out.decode().strip().splitlines()[-1]
                    await self.call("start", made)
            except EngineError as error:
                if made:
                    await self.remove(made)
                text = str(error)
                if "rlimit" in text:
                    self._create = list(_LIMITS)  # without CAP_SYS_RESOURCE the engine's own limits cannot be raised to
                elif "crun" in text and "cgroup" in text and self.podman:
                    self._global = ["--runtime", "runc"]  # crun refuses a mixed hierarchy of control groups
                if options == [*self._create, *self._global]:
                    raise
            else:
                return made

    async def state(self, container: str) -> ContainerState | None:
        """``None`` if there is no such container."""
        try:
            found: Json = orjson.loads(await self.call("container", "inspect", container))[0]
        except EngineError:
            return None
        state, published = found["State"], at(found, "NetworkSettings", "Ports")
        return ContainerState(
            id=found["Id"],
            running=bool(state["Running"]),
            exit_code=int(state["ExitCode"]),
            oom_killed=bool(state.get("OOMKilled")),
            started=state["StartedAt"],
            finished=state["FinishedAt"],
            stop_signal=str(found["Config"].get("StopSignal") or "TERM"),
            ports={int(key.partition("/")[0]): int(each[0]["HostPort"]) for key, each in published.items() if each},
        )

    async def signal(self, container: str, signal: str) -> None:
        with suppress(EngineError):
            await self.call("kill", "--signal", signal, container)

    async def remove(self, *containers: str) -> None:
        """Kill and remove; what is gone already is no error."""
        with suppress(EngineError):
            grace = ["--time", "0"] if self.podman else []
            await self.call("rm", "--force", "--volumes", *grace, *containers)

    async def execute(self, container: str, command: Sequence[str], timeout: float) -> tuple[bool, str]:
        """Whether the command succeeded inside the container, and what it said when not."""
        try:
            await self.call("exec", container, *command, timeout=timeout)
        except EngineError as error:
            return False, str(error)
        return True, ""

    async def has_image(self, reference: str) -> tuple[str, str]:
        """The image's id and its name by digest (``repository@sha256:…`` if it has one); "" twice if it is not here."""
        try:
            found = orjson.loads(await self.call("image", "inspect", reference))[0]
        except EngineError:
            return "", ""
        names = found.get("RepoDigests") or [f"sha256:{found['Id'].removeprefix('sha256:')}"]
        return found["Id"], next((each for each in names if each == reference), names[0])

    async def pull(self, reference: str, auth: Path | None) -> None:
        """``auth``: a directory with a docker ``config.json``."""
        host = reference.partition("/")[0]
        args, globals_ = ["pull", "--quiet"], []
        if self.podman:
            if host.partition(":")[0] in ("localhost", "127.0.0.1"):
                args.append("--tls-verify=false")
            if auth:
                args += ["--authfile", str(auth / "config.json")]
        elif auth:
            globals_ = ["--config", str(auth)]
        await self.call(*args, reference, timeout=900.0, globals_=globals_)

    async def deaths(self) -> AsyncIterator[str]:
        """Ids of containers that ended, as it happens; ends with the engine's event stream."""
        filters = ["--filter", f"label={self._label}", "--filter", "event=die" if not self.podman else "event=died"]
        template = "{{.ID}}"
        process = await asyncio.create_subprocess_exec(
            *tied(self._path, "events", *filters, "--format", template),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout
        try:
            async for line in process.stdout:
                yield line.decode().strip()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def running(self) -> set[str]:
        """Full ids of this sandbox's running containers."""
        out = await self.call("ps", "--quiet", "--no-trunc", "--filter", f"label={self._label}")
        return set(out.decode().split())

    async def owners(self) -> dict[str, list[str]]:
        """Containers of all sandboxes, by the label's value."""
        label = f'{{{{index .Labels "{OWNER_LABEL}"}}}}' if self.podman else f'{{{{.Label "{OWNER_LABEL}"}}}}'
        shown = ("--format", f"{{{{.ID}}}} {label}")
        out = await self.call("ps", "--all", "--no-trunc", "--filter", f"label={OWNER_LABEL}", *shown)
        found: dict[str, list[str]] = {}
        for line in out.decode().splitlines():
            identity, _, owner = line.partition(" ")
            found.setdefault(owner, []).append(identity)
        return found

    async def logs(self, container: str, args: Sequence[str]) -> AsyncIterator[bytes]:
        """Both streams of a container's output, as they come."""
        process = await asyncio.create_subprocess_exec(
            *tied(self._path, "logs", *args, container),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout
        try:
            while chunk := await process.stdout.read(65536):
                yield chunk
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def network(self) -> tuple[list[str], str]:
        """Options of a container that publishes ports, and the address at which it reaches this machine's loopback.

        ``EngineError`` if podman lacks the program that does it: its own words would not name that.
        """
        if not self.podman:
            if sys.platform != "linux":
                return [], "host-gateway"
            return [], _gateway(await self.call("network", "inspect", "bridge", "--format", "{{json .IPAM.Config}}"))
        if sys.platform != "linux":
            return [], "host-gateway"
        if shutil.which("slirp4netns"):
            return ["--network", "slirp4netns:allow_host_loopback=true"], "10.0.2.2"
        if not shutil.which("pasta"):
            raise EngineError("podman publishes no ports without slirp4netns or pasta: install one of the two")
        return ["--network", "pasta:-a,10.0.2.100,-n,24,-g,10.0.2.2,--map-gw"], "10.0.2.2"
