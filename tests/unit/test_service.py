"""Who is woken by what, and how often."""

from unittest.mock import MagicMock

import pytest

from gitsync.application import Application
from gitsync.model import Health, HealthStatus, SyncStatus
from gitsync.report.metrics import Metrics
from gitsync.report.redact import Redactor
from gitsync.report.reporter import Reporter
from gitsync.service import Service
from gitsync.settings import Settings
from tests.unit.report.test_reporter import Sink


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
