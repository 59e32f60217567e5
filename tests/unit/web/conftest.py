"""A board with two Applications in memory, and the real server on loopback in front of it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
import pytest

from gitsync.application import Ref
from gitsync.errors import GitsyncError
from gitsync.report.metrics import Metrics
from gitsync.web.board import Changes, Commit, Deployment, PodView, Step, StepState, View
from gitsync.web.server import Options, build, serve
from gitsync.web.webhooks import Trigger

TOKEN = "correct-horse-battery"
SECRET = "webhook-secret-1"
AT = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def view(name: str = "shop", **changes: object) -> View:
    values: dict[str, object] = {
        "namespace": "prod",
        "name": name,
        "repository": f"https://git.example.com/team/{name}.git",
        "ref": "main",
        "status": {
            "sync": "Synced",
            "health": "Healthy",
            "revision": "main@sha1:0123456789abcdef0123456789abcdef01234567",
            "conditions": [{"type": "Ready", "status": "True", "reason": "ReconciliationSucceeded", "message": ""}],
            "images": [{"name": "kubetm/web", "reference": "r.example.com/web@sha256:abc", "fingerprint": "f"}],
            "findings": [],
            "quarantined": [],
        },
        "commit": Commit(
            revision="main@sha1:0123456789abcdef0123456789abcdef01234567",
            sha="0123456789abcdef0123456789abcdef01234567",
            subject="Sell pears too",
            author="Kim",
            at=AT,
            url="https://git.example.com/team/shop/commit/0123456",
        ),
        "steps": (
            Step(name="commit", state=StepState.DONE, summary="Sell pears too"),
            Step(name="images", state=StepState.DONE, summary="1 built", seconds=12.3, details=("kubetm/web built",)),
            Step(name="plan", state=StepState.DONE, summary="1 change"),
            Step(name="rollout", state=StepState.RUNNING, summary="web: 1 of 2 ready"),
            Step(name="pods", state=StepState.WAITING),
        ),
        "pods": (PodView(name="web-1", state=StepState.DONE, message="Ready", revision="main@sha1:0123456789"),),
        "history": (Deployment(revision="main@sha1:aaaa", at=AT, outcome="deployed", subject="First", seconds=75),),
        "build_log": "step 1\nstep 2",
    }
    return View(**(values | changes))  # pyright: ignore[reportArgumentType]  # a test names real fields


@dataclass
class MemoryBoard:
    views: dict[str, View] = field(default_factory=lambda: {v.key: v for v in (view("hello"), view("shop"))})
    changes: Changes = field(default_factory=Changes)
    asked: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    reason: str = ""
    error: Exception | None = None

    def applications(self) -> list[View]:
        return list(self.views.values())

    def application(self, key: str) -> View | None:
        return self.views.get(key)

    async def pods(self, key: str) -> tuple[PodView, ...]:
        return self.views[key].pods

    def not_ready(self) -> str:
        return self.reason

    def trigger(self, trigger: Trigger) -> int:
        keys = [each.key for each in self.views.values() if trigger.concerns(each.repository, Ref(branch=each.ref))]
        self.asked += [("trigger", key) for key in keys]
        return len(keys)

    async def sync(self, key: str, *, retry: bool) -> None:
        self._ask("retry" if retry else "sync", key)

    async def suspend(self, key: str) -> None:
        self._ask("suspend", key)

    async def resume(self, key: str) -> None:
        self._ask("resume", key)

    def _ask(self, what: str, key: str) -> None:
        if isinstance(self.error, GitsyncError):
            raise self.error
        if self.error is not None:
            raise self.error
        self.asked.append((what, key))


@dataclass
class Site:
    board: MemoryBoard
    metrics: Metrics
    http: aiohttp.ClientSession
    host: str
    port: int

    def count(self, provider: str, outcome: str) -> float:
        labels = {"provider": provider, "outcome": outcome}
        return self.metrics.registry.get_sample_value("gitsync_webhook_requests_total", labels) or 0


Start = Callable[[Options], Awaitable[Site]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def begin(options: Options) -> Site:
            board, metrics = MemoryBoard(), Metrics()
            host, port = await stack.enter_async_context(serve(build(board, metrics, options), "127.0.0.1", 0))
            http = await stack.enter_async_context(aiohttp.ClientSession(f"http://{host}:{port}"))
            return Site(board=board, metrics=metrics, http=http, host=host, port=port)

        yield begin


@pytest.fixture
async def site(start: Start) -> Site:
    return await start(Options(token=TOKEN, webhook_secrets=(SECRET,), read_timeout=0.5, grace=1.0))
