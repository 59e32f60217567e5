"""The demo as a story: start, deploy the sample, push a change, show that it serves and that nobody was turned away."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from gitsync.demo import base, home
from gitsync.demo.probe import Probe
from gitsync.demo.registry import registry
from gitsync.errors import GitsyncError, Invalid, Transient
from gitsync.report.log import configure
from gitsync.report.redact import Redactor
from gitsync.sandbox import Sandbox
from gitsync.sandbox.engine import Engine, SandboxError, find
from gitsync.service import Service, run_repository
from gitsync.settings import Settings
from gitsync.web.board import Step, StepState, View
from gitsync.web.push import GitHost, git
from gitsync.web.webhooks import Trigger, normalise

NAME = "hello"
_FILE, _BEFORE, _AFTER = "hello/hello.js", "Hello Kubernetes!", "Hello again!"
_PATIENCE = 600.0  # seconds for one deployment
_WHO = {
    "GIT_AUTHOR_NAME": "gitsync demo",
    "GIT_AUTHOR_EMAIL": "demo@localhost",
    "GIT_COMMITTER_NAME": "gitsync demo",
    "GIT_COMMITTER_EMAIL": "demo@localhost",
}
_T = TypeVar("_T")


class Screen(Protocol):
    """Where the story is told."""

    def line(self, text: str) -> None:
        """Stays."""
        ...

    def now(self, text: str) -> None:
        """What is happening, until the next is said."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``wait``: a person makes the push. ``once``: end when it is served. ``offline``: ask no registry elsewhere.

    ``engine``: podman or docker; "" is whichever is there.
    """

    wait: bool = False
    once: bool = False
    offline: bool = False
    engine: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured, in seconds and requests: those from the first answer to the end of the last old pod."""

    to_first_serve: float  # from the start of everything
    from_push_to_served: float
    to_pushed_change_served: float  # from the start of everything
    answered: int
    failed: int
    versions: Mapping[str, int] = field(default_factory=dict[str, int])  # what was answered → how often
    failures: Mapping[str, int] = field(default_factory=dict[str, int])  # what went wrong → how often
    base_image: str = ""  # pulled, or assembled


async def run(options: Options, screen: Screen) -> Figures:
    """Returns when the push is served, if ``once``; else runs until it is cancelled. Either way nothing is left.

    Raises ``GitsyncError`` when a part cannot start, or the sample or the change does not come to serve.
    """
    # the service speaks up when something is wrong; what goes well is the screen's to tell
    level = os.environ.get("GITSYNC_LOG_LEVEL", "error").lower()
    configure(redactor=Redactor(), level=level)
    try:
        async with AsyncExitStack() as stack:
            return await _Demo(options, screen, level).play(stack)
    except SandboxError as error:
        raise Invalid(str(error), doing="starting the sandbox") from error


def sample() -> Path:
    """The sample repository: beside this module in an installed package, in manifests/ of a checkout."""
    here = Path(__file__).parent
    return next(place for place in (here / "sample", here.parents[1] / "manifests" / NAME) if place.is_dir())


class _Demo:
    def __init__(self, options: Options, screen: Screen, level: str) -> None:
        self._options = options
        self._screen = screen
        self._level = level
        self._began = time.monotonic()
        self._place = Path()
        self._base = "pulled"
        self._service: Service | None = None
        self._probe: Probe | None = None

    def _tell(self, text: str) -> None:
        self._screen.line(f"{time.monotonic() - self._began:6.1f} s  {text}")

    # ------------------------------------------------------------ the parts

    async def play(self, stack: AsyncExitStack) -> Figures:
        stack.callback(self._screen.now, "")
        self._screen.now("starting a cluster, a registry and a git host on this machine")
        self._place = await stack.enter_async_context(home.home())
        preparing = asyncio.create_task(self._prepare_base())
        stack.callback(preparing.cancel)
        directory = home.sandbox(self._place)
        sandbox = await stack.enter_async_context(Sandbox(data_dir=directory, engine=self._options.engine))
        self._tell(f"a cluster answers; for kubectl: export KUBECONFIG={sandbox.kubeconfig}")
        engine = Engine(find(self._options.engine), str(directory))
        host = await stack.enter_async_context(registry(home.registry(self._place), engine))
        home.remember_registry(self._place, host)
        self._tell(f"a registry listens on {host}")
        self._screen.now(f"looking for the base image {base.NAME}")
        if assembled := await preparing:
            self._base = "assembled"
            await base.offer(assembled, host)
            why = "offline" if self._options.offline else "no image registry is reached"
            self._tell(f"{why}: {base.NAME} is assembled from this machine's {assembled.made_of}")
        githost = GitHost(self._place / "git", self._pushed)
        try:
            await stack.enter_async_context(githost.serve("127.0.0.1", 3000))
        except Invalid:  # somebody else has the port
            await stack.enter_async_context(githost.serve("127.0.0.1", 0))
        url = await githost.create(NAME)
        first = await self._commit(url)
        self._tell(f"a git host has the sample: {url}")
        started: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        settings = self._settings(sandbox, host, mirror=assembled is not None)
        serving = asyncio.create_task(_serve(settings, url, started.set_result))
        return await _beside(serving, self._show(sandbox, url, first, started))

    async def _prepare_base(self) -> base.Base | None:
        if not self._options.offline and await base.reachable():
            return None
        return await asyncio.to_thread(base.assemble, self._place)

    def _settings(self, sandbox: Sandbox, host: str, *, mirror: bool) -> Settings:
        return Settings.load(
            kubeconfig=sandbox.kubeconfig,
            context="",
            namespace="default",
            registry=host,
            registry_mirrors={"docker.io": host} if mirror else {},
            allow_insecure_git=True,
            cache_dir=home.cache(self._place),
            listen="127.0.0.1:8080",
            public_status=True,
            leader_election=False,
            log_level=self._level,
        )

    def _pushed(self, name: str) -> None:
        if self._service is not None:
            self._service.trigger(Trigger(repositories=frozenset({normalise(f"http://127.0.0.1/{name}.git")})))

    # ------------------------------------------------------------ the story

    async def _show(self, sandbox: Sandbox, url: str, first: str, started: asyncio.Future[Service]) -> Figures:
        service = self._service = await started
        async with AsyncExitStack() as stack:
            stack.callback(self._screen.now, "removing everything")
            following = asyncio.create_task(self._follow(service))
            stack.callback(following.cancel)
            await self._served(service, first)
            address = sandbox.service_address("default", NAME, 8200)
            if not address:
                raise Transient("the sandbox does not serve its Service", doing=f"looking for {NAME}")
            probe = self._probe = await stack.enter_async_context(Probe(address).asking())
            await probe.until(bool)
            to_first = time.monotonic() - self._began
            self._tell(f"it serves: “{probe.latest}”")
            self._invite(url, probe.url, service)
            pushed = time.monotonic()
            if self._options.wait:
                sha = await self._foreign_push(url, first)
                pushed = time.monotonic()
            else:
                sha = await self._commit(url, change=True)
                self._tell(f"git push: “{_AFTER}”")
            before = probe.latest
            await self._served(service, sha)
            if not self._options.wait:
                await probe.until(lambda said: said != before)
            served = time.monotonic()
            self._tell(f"served {served - pushed:.1f} s after the push: “{probe.latest}”")
            await self._old_pods_gone(sandbox)
            if not self._options.once:
                self._tell(f"{_count(probe)}; it goes on until Ctrl-C, which removes all of it")
                await asyncio.Event().wait()
        self._tell(_count(probe))
        return Figures(
            to_first_serve=to_first,
            from_push_to_served=served - pushed,
            to_pushed_change_served=served - self._began,
            answered=probe.answered.total(),
            failed=probe.failures.total(),
            versions=dict(probe.answered),
            failures=dict(probe.failures),
            base_image=self._base,
        )

    def _invite(self, url: str, address: str, service: Service) -> None:
        host, port = service.address
        for line in (
            "",
            f"  the app:          {address}",
            f"  the status page:  http://{host}:{port}/",
            "",
            "  Change it yourself, in another terminal:",
            "",
            f"    git clone {url} && cd {NAME}",
            f"    sed -i.bak 's/Hello .*!/Good morning!/' {_FILE}",
            "    git commit -am 'Greet differently' && git push",
            "",
        ):
            self._screen.line(line)

    async def _follow(self, service: Service) -> None:
        """Each stage as it happens, and the requests answered meanwhile."""
        told: list[str] = []
        with service.changes.subscribe() as changes:
            while True:
                await changes.next(0.25)
                view = service.application(f"default/{NAME}")
                lines, now = story(view.steps if view else ())
                if lines[: len(told)] != told:
                    told.clear()  # another attempt
                for line in lines[len(told) :]:
                    self._tell(line)
                    told.append(line)
                self._screen.now(" · ".join(filter(None, (now, _count(self._probe) if self._probe else ""))))

    async def _served(self, service: Service, sha: str) -> None:
        """Wait until a commit is what serves; ``Invalid`` when it never will."""
        doing = f"deploying {sha[:12]}"
        try:
            async with asyncio.timeout(_PATIENCE):
                with service.changes.subscribe() as changes:
                    while True:
                        view = service.application(f"default/{NAME}")
                        if view is not None and (problem := verdict(view, sha)) is not None:
                            if problem:
                                raise Invalid(problem, doing=doing)
                            return
                        await changes.next(0.5)
        except TimeoutError:
            raise Transient(f"it does not serve after {_PATIENCE:.0f} s", doing=doing) from None

    async def _old_pods_gone(self, sandbox: Sandbox) -> None:
        """Requests are lost while old pods end, if at all: so they are part of what is counted."""
        async with asyncio.timeout(120):
            changes = sandbox.store.watch(sandbox.store.revision)
            while any("deletionTimestamp" in pod["metadata"] for pod in sandbox.store.items("pods", "default")):
                await anext(changes)

    # ------------------------------------------------------------ git

    async def _commit(self, url: str, *, change: bool = False) -> str:
        """Push the sample, or the change of its text, as a person would; returns the commit."""
        clone = self._place / "clone"

        async def at(*arguments: str) -> str:
            return await git("-C", str(clone), *arguments, home=self._place, env=_WHO)

        if not change:
            await git("init", "--quiet", "--initial-branch=main", str(clone), home=self._place)
            await asyncio.to_thread(shutil.copytree, sample(), clone, dirs_exist_ok=True)
            await at("remote", "add", "origin", url)
            await at("add", "--all")
        else:
            file = clone / _FILE
            await asyncio.to_thread(lambda: file.write_text(file.read_text().replace(_BEFORE, _AFTER)))
        await at("commit", "--quiet", "--all", "--message", "Greet again" if change else "Say hello")
        await at("push", "--quiet", "origin", "main")
        return await at("rev-parse", "HEAD")

    async def _foreign_push(self, url: str, before: str) -> str:
        """Wait for somebody to push; returns the commit."""
        while True:
            listed = await git("ls-remote", url, "refs/heads/main", home=self._place)
            if (sha := listed.partition("\t")[0]) not in ("", before):
                self._tell(f"a push came: {sha[:12]}")
                return sha
            await asyncio.sleep(0.5)


_MEANS = {
    "commit": "reading what the commit wants",
    "images": "building the images whose inputs changed",
    "plan": "comparing with the cluster, asking it whether it would take the change",
    "rollout": "new pods take over, old ones finish what they began",
    "pods": "every replica serves",
}


def story(steps: Sequence[Step]) -> tuple[list[str], str]:
    """(lines about the steps of an attempt that were begun, what is happening in the last of them)."""
    lines: list[str] = []
    now = ""
    for step in steps:
        if step.state is StepState.WAITING:
            break
        lines.append(f"{step.name:8} {_MEANS[step.name]}")
        if step.state is StepState.FAILED:
            lines.append(f"{'':8} failed: {step.summary}")
        now = step.name + (f": {step.summary}" if step.summary else "")
    return lines, now


def verdict(view: View, sha: str) -> str | None:
    """ "" when the commit serves, a sentence when it never will, ``None`` while that is open."""
    conditions = {each["type"]: each for each in view.status.get("conditions") or ()}
    ready, stalled = conditions.get("Ready", {}), conditions.get("Stalled", {})
    if ready.get("status") == "True" and str(view.status.get("revision", "")).endswith(sha):
        return ""
    attempt = cast("Mapping[str, Any]", view.status.get("lastAttempt") or {})
    if stalled.get("status") == "True" and str(attempt.get("revision", "")).endswith(sha):
        return str(stalled.get("message", ""))
    return None


def _count(probe: Probe) -> str:
    text = f"{probe.answered.total()} requests answered, {probe.failures.total()} failed"
    if probe.failures:
        text += f" ({', '.join(f'{name}: {count}' for name, count in probe.failures.items())})"
    return text


async def _serve(settings: Settings, url: str, started: Callable[[Service], None]) -> None:
    try:
        await run_repository(settings, url, name=NAME, started=started)
    except Invalid as error:
        if error.reason != "AddressUnavailable":
            raise
        await run_repository(settings.model_copy(update={"listen": "127.0.0.1:0"}), url, name=NAME, started=started)


async def _beside(serving: asyncio.Task[None], work: Coroutine[Any, Any, _T]) -> _T:
    """Do the work while the service runs; when that ends, its error is ours. Both have ended afterwards."""
    mine = asyncio.create_task(work)
    try:
        await asyncio.wait({serving, mine}, return_when=asyncio.FIRST_COMPLETED)
        if not mine.done():
            await serving
            raise Transient("gitsync ended by itself", doing="running the demo")
        return await mine
    except ExceptionGroup as several:
        known, _ = several.split(GitsyncError)
        if known is None:
            raise
        raise known.exceptions[0] from None
    finally:
        for task in (mine, serving):
            task.cancel()
        await asyncio.gather(mine, serving, return_exceptions=True)
