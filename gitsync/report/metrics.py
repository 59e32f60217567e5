"""Prometheus metrics, in a registry of our own.

Labels are bounded: an Application beyond the first ``MOST_APPLICATIONS`` is counted as ``_other``, and what comes from
outside (a webhook's provider) is one of a fixed set by the time it gets here.

The four DORA figures are read from these: deployment frequency and change failure rate from
``gitsync_deployments_total`` by outcome, lead time from ``gitsync_push_to_healthy_seconds``, time to restore from
``gitsync_restore_duration_seconds``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gitsync import __version__
from gitsync.model import HealthStatus, SyncStatus

MOST_APPLICATIONS = 5000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ReconcileOutcome = Literal["unchanged", "deployed", "waiting", "invalid", "failed", "cancelled"]
DeployOutcome = Literal["success", "restored", "failed"]

_SHORT = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LONG = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)


class Metrics(Collector):
    """Every metric of the process. Methods are cheap and never raise on unusual input."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._states: dict[tuple[str, str], tuple[str, str]] = {}
        self._names: set[tuple[str, str]] = set()
        registry = self.registry
        app = ("namespace", "name")
        self._reconcile = Histogram(
            "gitsync_reconcile_duration_seconds", "Duration of a run of an Application.", ["outcome"],
            buckets=_SHORT, registry=registry,
        )  # fmt: skip
        self._build = Histogram(
            "gitsync_build_duration_seconds", "Duration of an image build.", ["outcome"],
            buckets=_LONG, registry=registry,
        )  # fmt: skip
        self._push_to_healthy = Histogram(
            "gitsync_push_to_healthy_seconds", "From the push of a commit to all its replicas serving.",
            buckets=_LONG, registry=registry,
        )  # fmt: skip
        self._restore = Histogram(
            "gitsync_restore_duration_seconds", "From a failed rollout to the last good state serving again.",
            buckets=_LONG, registry=registry,
        )  # fmt: skip
        self._deployments = Counter(
            "gitsync_deployments_total", "Rollouts by how they ended.", [*app, "outcome"], registry=registry
        )
        self._drift = Counter("gitsync_drift_repaired_total", "Fields or objects put back.", app, registry=registry)
        self._blind = Gauge(
            "gitsync_watch_blind_seconds", "How long the watch that is blind longest has seen nothing; 0: all see.",
            registry=registry,
        )  # fmt: skip
        self._lowest = Gauge(
            "gitsync_rollout_lowest_ready_ratio", "Lowest share of ready endpoints in the last rollout.", app,
            registry=registry,
        )  # fmt: skip
        self._webhooks = Counter(
            "gitsync_webhook_requests_total", "Webhook requests.", ["provider", "outcome"], registry=registry
        )
        Gauge("gitsync_build_info", "Version of gitsync.", ["version"], registry=registry).labels(__version__).set(1)
        ProcessCollector(registry=registry)
        registry.register(self)

    # ---- Applications

    def application(self, namespace: str, name: str, sync: SyncStatus, health: HealthStatus) -> None:
        if (namespace, name) in self._states or len(self._states) < MOST_APPLICATIONS:
            self._states[namespace, name] = (sync.value, health.value)

    def forget(self, namespace: str, name: str) -> None:
        """The Application is gone: so are its series."""
        self._states.pop((namespace, name), None)
        if (namespace, name) in self._names:
            self._names.discard((namespace, name))
            self._drift.remove_by_labels({"namespace": namespace, "name": name})
            self._lowest.remove_by_labels({"namespace": namespace, "name": name})
            self._deployments.remove_by_labels({"namespace": namespace, "name": name})

    def collect(self) -> Iterable[Metric]:
        info = GaugeMetricFamily(
            "gitsync_application_info",
            "An Application; its value is always 1.",
            labels=["namespace", "name", "sync_status", "health_status"],
        )
        for key, state in list(self._states.items()):
            info.add_metric([*key, *state], 1)
        yield info

    # ---- what happened

    def reconciled(self, seconds: float, outcome: ReconcileOutcome) -> None:
        self._reconcile.labels(outcome).observe(seconds)

    def built(self, seconds: float, *, succeeded: bool) -> None:
        self._build.labels("success" if succeeded else "failure").observe(seconds)

    def deployed(self, namespace: str, name: str, outcome: DeployOutcome) -> None:
        self._deployments.labels(*self._labels(namespace, name), outcome).inc()

    def healthy_after_push(self, seconds: float) -> None:
        self._push_to_healthy.observe(max(0.0, seconds))  # clocks of others differ

    def restored(self, seconds: float) -> None:
        self._restore.observe(seconds)

    def repaired(self, namespace: str, name: str, count: int = 1) -> None:
        self._drift.labels(*self._labels(namespace, name)).inc(count)

    def watches(self, blind: Callable[[], float]) -> None:
        """Whom to ask for how many seconds a watch has been blind."""
        self._blind.set_function(blind)

    def lowest_ready(self, namespace: str, name: str, share: float) -> None:
        self._lowest.labels(*self._labels(namespace, name)).set(share)

    def webhook(self, provider: str, outcome: str) -> None:
        self._webhooks.labels(provider, outcome).inc()

    def _labels(self, namespace: str, name: str) -> tuple[str, str]:
        key = (namespace, name)
        if key not in self._names:
            if len(self._names) >= MOST_APPLICATIONS:
                return ("_other", "_other")
            self._names.add(key)
        return key

    def render(self) -> bytes:
        """The text exposition. Thousands of series take milliseconds: call it in a thread."""
        return generate_latest(self.registry)
