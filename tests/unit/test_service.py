"""Who is woken by what, and how often; what a term as leader ends with; what is never told."""

import asyncio
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import orjson
import pytest
import structlog

from gitsync.application import Application, ApplicationSpec, Source, crd, manifest
from gitsync.attempt import Handover, Memory, Outcome, Target
from gitsync.cluster.cache import Entry, Observed
from gitsync.cluster.client import Cluster
from gitsync.cluster.record import HistoryEntry, Record
from gitsync.errors import Transient
from gitsync.model import Health, HealthStatus, Json, Revision, SyncStatus
from gitsync.report.metrics import Metrics
from gitsync.report.redact import Redactor
from gitsync.report.reporter import Reporter, Run
from gitsync.sandbox import Sandbox
from gitsync.scheduler import Scheduler
from gitsync.service import Service, assemble, ensure_application, serve, web_options
from gitsync.settings import Settings
from gitsync.source import GitPolicy, GitSource, Ref
from gitsync.web import api
from tests.unit.report.test_reporter import Sink
from tests.unit.source.conftest import Repository, work
from tests.unit.test_scheduler import until

__all__ = ["work"]


def application(name: str, **sync: object) -> Application:
    spec = {"source": {"repository": "https://git.example/shop.git"}, "sync": sync}
    metadata = {"name": name, "namespace": "shop"}
    return Application.parse(
        {"apiVersion": "gitsync.dev/v1alpha1", "kind": "Application", "metadata": metadata, "spec": spec}
    )


async def test_who_waits_for_an_application_is_woken_once_when_it_becomes_well(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    async with Reporter(Sink(), metrics=metrics, redactor=Redactor(), instance="test") as reporter:
        service = Service(Settings.load(), MagicMock(), reporter, metrics)
        woken: list[str] = []
        monkeypatch.setattr(service, "wake", woken.append)
        first, second = application("first"), application("second", dependsOn=[{"name": "first"}])
        service.parsed = {each.key: each for each in (first, second)}
        well = Health(status=HealthStatus.HEALTHY)
        reporter.observe(first, health=well)
        assert woken == []
        reporter.observe(first, sync=SyncStatus.SYNCED)
        assert woken == ["shop/second"]
        reporter.observe(first, revision="main@sha1:1")
        assert woken == ["shop/second"]
        reporter.observe(first, sync=SyncStatus.OUT_OF_SYNC)
        reporter.observe(first, sync=SyncStatus.SYNCED)
        assert woken == ["shop/second", "shop/second"]


async def test_a_status_that_we_write_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    async with Reporter(Sink(), metrics=metrics, redactor=Redactor(), instance="test") as reporter:
        service = Service(Settings.load(), MagicMock(), reporter, metrics)
        woken: list[str] = []
        monkeypatch.setattr(service, "wake", woken.append)

        def observe(version: str, **changed: object) -> None:
            metadata = {"name": "web", "namespace": "shop", "resourceVersion": version}
            obj = {"metadata": metadata, "spec": {"source": {"repository": "https://git.example/shop.git"}}} | changed
            entry = Entry("1", version, version.encode())
            service._observed(Observed(key=("shop", "web"), entry=entry, raw=orjson.dumps(obj)))

        observe("1")
        observe("2", status={"sync": "Synced"})
        assert woken == ["shop/web"]
        observe("3", spec={"source": {"repository": "https://git.example/other.git"}})
        assert woken == ["shop/web", "shop/web"]


@pytest.mark.parametrize("only", ["", "shop/web"])
async def test_what_is_followed_by_itself_is_left_to_who_follows_it(monkeypatch: pytest.MonkeyPatch, only: str) -> None:
    metrics = Metrics()
    async with Reporter(Sink(), metrics=metrics, redactor=Redactor(), instance="test") as reporter:
        service = Service(Settings.load(application=only), MagicMock(), reporter, metrics)
        told: list[str] = []

        def works(key: str) -> None:
            told.append(f"works on {key}")

        def leaves(key: str) -> None:
            told.append(f"leaves {key}")

        monkeypatch.setattr(service, "wake", works)
        monkeypatch.setattr(service, "_leave", leaves)

        def observe(version: str, **annotations: str) -> None:
            metadata = {"name": "web", "namespace": "shop", "uid": "1", "annotations": annotations}
            obj = {"metadata": metadata, "spec": {"source": {"repository": "https://git.example/shop.git"}}}
            entry = Entry("1", version, version.encode())
            service._observed(Observed(key=("shop", "web"), entry=entry, raw=orjson.dumps(obj)))

        mark = {"gitsync.dev/followed-by": "gitsync-run"}
        observe("1", **mark)
        assert ("shop/web" in service.parsed) == bool(only)
        observe("2")
        observe("3", **mark)
        work = "works on shop/web"
        assert told == ([work, work, work] if only else [work, "leaves shop/web"])


async def test_a_spec_that_the_server_took_and_nobody_can_follow_is_told_in_the_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Listening(Sink):
        async def create(self, obj: Json) -> Json:
            events.append(obj["reason"])
            return obj

    metrics = Metrics()
    async with Reporter(Listening(), metrics=metrics, redactor=Redactor(), instance="test") as reporter:
        service = Service(Settings.load(), MagicMock(), reporter, metrics)
        woken: list[str] = []
        monkeypatch.setattr(service, "wake", woken.append)
        version = 0

        def observe(**ref: str) -> None:
            nonlocal version
            version += 1
            metadata = {"name": "web", "namespace": "shop", "uid": "1", "generation": version}
            source = {"repository": "https://git.example/shop.git", "ref": ref}
            entry = Entry("1", str(version), b"")
            obj = {"metadata": metadata, "spec": {"source": source}}
            service._observed(Observed(key=("shop", "web"), entry=entry, raw=orjson.dumps(obj)))

        def stalled() -> str:
            said = reporter.said("shop/web")
            return " ".join(said.observation.stalled or ()) if said else ""

        observe(branch="a..b")
        observe(branch="a..b")
        assert stalled().startswith("InvalidSpec")
        assert "branch is not a name that git allows" in stalled()
        assert woken == []
        observe(branch="main")
        assert stalled() == ""
        assert woken == ["shop/web"]
        observe(branch="c..d")
        assert stalled().startswith("InvalidSpec")
        assert service.parsed["shop/web"].spec.source.ref.value == "main", "what can be followed still is"
        reporter.observe(service.parsed["shop/web"], stalled=None)  # as one does of which a new commit serves
        assert stalled().startswith("InvalidSpec")
        observe(branch="main")
        assert stalled() == ""
    assert events == ["InvalidSpec"]


class Slow:
    """A pipeline with one rollout that takes as long as the test wants; says in which order it was called."""

    def __init__(self, service: Service) -> None:
        self.service, self.calls, self.may_finish = service, list[str](), asyncio.Event()

    def uid(self, key: str) -> str:
        found = self.service.parsed.get(key)
        return found.uid if found else "nothing"

    def interval(self, key: str) -> float:
        return 3600.0

    def urgent(self, prepared: str) -> bool:
        return False

    async def head(self, key: str) -> str:
        return ""

    async def prepare(self, key: str, target: Target) -> str | None:
        self.calls.append(f"prepare {self.uid(key)}")
        return self.uid(key) if self.calls.count(self.calls[-1]) == 1 else None

    async def apply(self, key: str, prepared: str, handover: Handover) -> Outcome:
        self.calls.append(f"apply {prepared}")
        await self.may_finish.wait()
        self.calls.append(f"applied {prepared}")
        return Outcome(delivered=True, retry_after=3600.0)

    async def forget(self, key: str) -> None:
        self.calls.append("forget")


@pytest.mark.parametrize("seen_to_go", [True, False])
async def test_an_application_that_is_made_anew_is_begun_when_nothing_of_the_former_is_left(seen_to_go: bool) -> None:
    metrics = Metrics()
    async with Reporter(Sink(), metrics=metrics, redactor=Redactor(), instance="test") as reporter:
        service = Service(Settings.load(), MagicMock(), reporter, metrics)
        work: Any = Slow(service)
        service.pipeline = work

        def observe(uid: str) -> None:
            metadata = {"name": "web", "namespace": "shop", "uid": uid, "generation": 1}
            obj = {"metadata": metadata, "spec": {"source": {"repository": "https://git.example/shop.git"}}}
            entry = Entry(uid, uid, uid.encode()) if uid else None
            service._observed(Observed(key=("shop", "web"), entry=entry, raw=orjson.dumps(obj)))

        async with Scheduler(work) as scheduler:
            service._scheduler = scheduler
            observe("old")
            await until(lambda: "apply old" in work.calls)
            reporter.observe(service.parsed["shop/web"], sync=SyncStatus.SYNCED)
            if seen_to_go:
                observe("")
            observe("new")
            await asyncio.sleep(0.05)
            assert work.calls == ["prepare old", "apply old"]
            work.may_finish.set()
            await until(lambda: "applied new" in work.calls)
            assert work.calls == [
                "prepare old", "apply old", "applied old", "forget", "prepare new", "apply new", "applied new",
            ]  # fmt: skip
            assert reporter.said("shop/web") is None, "what was said was said of the former one"


async def test_who_no_longer_leads_neither_writes_nor_remembers(tmp_path: Path) -> None:
    started: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        async with Sandbox(engine="none") as sandbox:
            async with await Cluster.connect(str(sandbox.kubeconfig)) as cluster:
                await cluster.apply(crd())
            settings = Settings.load(
                kubeconfig=sandbox.kubeconfig, cache_dir=tmp_path, listen="127.0.0.1:0", builder="buildah",
                leader_election=True, lease_namespace="default",
            )  # fmt: skip
            work = asyncio.create_task(serve(settings, started=started.set_result))
            await asyncio.wait([work, started], return_when=asyncio.FIRST_COMPLETED, timeout=30)
            service = started.result()
            service.cluster.guard()
            service.parsed["shop/web"], memory = application("web"), Memory(following=True)
            service.pipeline._memories["shop/web"] = memory
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            with pytest.raises(Transient, match="not the leader"):
                service.cluster.guard()
            assert service.pipeline._memories == {}
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level
        structlog.reset_defaults()


async def test_a_mirror_that_nobody_follows_any_more_leaves_the_cache(
    tmp_path: Path, work: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gitsync.service.CLEANING", 0.1)
    started: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
    handlers, level = logging.root.handlers[:], logging.root.level
    work.write("manifests/a.yaml", "")
    work.commit()
    source = GitSource(tmp_path / "cache", GitPolicy(allow_insecure_transports=True))
    old, recent, followed = (f"file://{'/.' * count}{work.path}" for count in range(3))
    for each in (old, recent, followed):
        await source.fetch(each, Ref())
    for each in (old, followed):
        os.utime(source._mirror(each).with_suffix(".lock"), (0, 0))
    try:
        async with Sandbox(engine="none") as sandbox:
            async with await Cluster.connect(str(sandbox.kubeconfig)) as cluster:
                obj = manifest("web", "default", ApplicationSpec(source=Source(repository=followed)))
                await ensure_application(cluster, obj)
            settings = Settings.load(
                kubeconfig=sandbox.kubeconfig, cache_dir=tmp_path / "cache", listen="127.0.0.1:0", builder="buildah"
            )
            serving = asyncio.create_task(serve(settings, started=started.set_result))
            await until(lambda: not source._mirror(old).exists() or serving.done())
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
    finally:
        logging.root.handlers[:], logging.root.level = handlers, level
        structlog.reset_defaults()
    assert source._mirror(recent).exists(), "another process may follow it"
    assert source._mirror(followed).exists()


def test_the_secrets_of_the_surface_are_masked(tmp_path: Path) -> None:
    token, secrets = tmp_path / "token", tmp_path / "secrets"
    token.write_text("the-api-token\n")
    secrets.write_text("the-first-secret\nthe-second-secret\n")
    redactor = Redactor()
    web_options(Settings.load(api_token_file=token, webhook_secret_file=secrets), redactor)
    for each in ("the-api-token", "the-first-secret", "the-second-secret"):
        assert redactor(f"it said {each}") == "it said ***"


async def test_the_page_and_the_interface_show_no_secret_that_somebody_said() -> None:
    now, metrics, redactor = datetime.now(UTC), Metrics(), Redactor(["hunter2-hunter2"])
    revision = Revision(repository="https://git.example/shop.git", ref="main", sha="1" * 40)
    entry = HistoryEntry(
        revision=revision, started_at=now, finished_at=now, outcome="Restored", message="web said: hunter2-hunter2"
    )
    status = {"phase": "Failed", "message": "it got hunter2-hunter2"}
    pod: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": []}}
    web = application("web")
    async with Reporter(Sink(), metrics=metrics, redactor=redactor, instance="test") as reporter:
        service = Service(Settings.load(), MagicMock(), reporter, metrics)
        service.parsed = {web.key: web}
        service.pipeline = MagicMock(pods=AsyncMock(return_value=(pod | {"status": status},)))
        service.pipeline.remembered.return_value = Record(application=web.ref, history=(entry,))
        service.pipeline.build_log.return_value = ""

        async def told() -> str:
            view = service.application(web.key)
            assert view is not None
            return str(api.whole(replace(view, pods=await service.pods(web.key))))

        run = Run(reporter, web)
        run.tell("waits for web: it said hunter2-hunter2")
        assert (await told()).count(" ***") == 3
        run.failed(Transient("RUN curl -u ci:hunter2-hunter2 ended with code 22"))
        assert "curl -u ci:*** ended" in await told()
        assert "hunter2" not in await told()


async def test_a_registry_login_that_is_replaced_counts_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "config.json"

    def write(password: str) -> None:
        file.write_bytes(orjson.dumps({"auths": {"registry.example": {"username": "u", "password": password}}}))

    write("of this morning")
    settings = Settings.load(cache_dir=tmp_path / "cache", registry_auth_file=file)
    async with assemble(settings, MagicMock(), Redactor()) as service:
        login = service.pipeline._tools.defaults.login
        write("of this evening")
        assert login().logins["registry.example"].password == "of this evening"
