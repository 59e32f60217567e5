"""Metrics: names and labels as documented, no stale and no unbounded series."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gitsync.model import HealthStatus, SyncStatus
from gitsync.report import metrics
from gitsync.report.metrics import Metrics


def samples(found: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Value by the values of the labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(found.render().decode())
        for sample in family.samples
        if sample.name == name
    }


def test_names() -> None:
    found = Metrics()
    found.reconciled(0.2, "deployed")
    found.built(3, succeeded=False)
    found.healthy_after_push(-1)
    found.restored(4)
    found.deployed("prod", "shop", "success")
    found.repaired("prod", "shop", 2)
    found.lowest_ready("prod", "shop", 1.0)
    found.webhook("github", "accepted")
    assert samples(found, "gitsync_reconcile_duration_seconds_count") == {("deployed",): 1}
    assert samples(found, "gitsync_build_duration_seconds_sum") == {("failure",): 3}
    assert samples(found, "gitsync_push_to_healthy_seconds_count") == {(): 1}
    assert samples(found, "gitsync_restore_duration_seconds_sum") == {(): 4}
    assert samples(found, "gitsync_deployments_total") == {("shop", "prod", "success"): 1}
    assert samples(found, "gitsync_drift_repaired_total") == {("shop", "prod"): 2}
    assert samples(found, "gitsync_rollout_lowest_ready_ratio") == {("shop", "prod"): 1}
    assert samples(found, "gitsync_webhook_requests_total") == {("accepted", "github"): 1}
    assert samples(found, "gitsync_build_info")
    assert samples(found, "process_cpu_seconds_total")


def test_an_application_has_one_series_and_loses_it() -> None:
    found = Metrics()
    found.application("prod", "shop", SyncStatus.OUT_OF_SYNC, HealthStatus.MISSING)
    found.application("prod", "shop", SyncStatus.SYNCED, HealthStatus.HEALTHY)
    found.deployed("prod", "shop", "success")
    assert samples(found, "gitsync_application_info") == {("Healthy", "shop", "prod", "Synced"): 1}
    found.forget("prod", "shop")
    found.forget("prod", "shop")
    assert samples(found, "gitsync_application_info") == {}
    assert samples(found, "gitsync_deployments_total") == {}


def test_labels_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_APPLICATIONS", 3)
    found = Metrics()
    for n in range(10):
        found.repaired("prod", f"a{n}")
        found.application("prod", f"a{n}", SyncStatus.SYNCED, HealthStatus.HEALTHY)
    drift = samples(found, "gitsync_drift_repaired_total")
    assert len(drift) == 4
    assert drift["_other", "_other"] == 7
    assert len(samples(found, "gitsync_application_info")) == 3
