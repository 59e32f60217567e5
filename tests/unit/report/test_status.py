"""The status: conditions by kstatus' rules, times kept, sizes bounded, nothing secret."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter

from gitsync.application import ApplicationStatus, Quarantined
from gitsync.errors import BuildFailed, GitsyncError, Held, Invalid, Transient
from gitsync.model import Finding, Health, HealthStatus, Image, Json, ObjectRef, Origin, Stage, SyncStatus
from gitsync.report.redact import Redactor
from gitsync.report.status import LARGEST_MESSAGE, Attempt, Observation, build

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
WEB = ObjectRef(group="apps", version="v1", kind="Deployment", namespace="shop", name="web")
GOOD = Observation(
    generation=3,
    sync=SyncStatus.SYNCED,
    health=Health(status=HealthStatus.HEALTHY),
    revision="main@sha1:aaaa",
    last_good="main@sha1:aaaa",
    attempt=Attempt(revision="main@sha1:aaaa", stage=Stage.REPORT, at=NOW, seconds=1.23456, lowest_ready=0.999),
)


def built(observation: Observation, previous: Json | None = None, now: datetime = NOW) -> Json:
    status = build(previous or {}, observation, now=now, redactor=Redactor(["hunter2-hunter2"]))
    TypeAdapter(ApplicationStatus).validate_python(status, strict=True)  # the CRD's own schema
    return status


def conditions(status: Json) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


def failed(error: GitsyncError) -> Attempt:
    return Attempt(revision="main@sha1:bbbb", stage=Stage.IMAGES, at=NOW, error=error)


def running(message: str = "") -> Attempt:
    return Attempt(revision="main@sha1:bbbb", stage=Stage.ROLLOUT, at=NOW, running=True, message=message)


def unhealthy(status: HealthStatus, message: str = "") -> Health:
    return Health(status=status, message=message, ref=WEB)


@pytest.mark.parametrize(
    ("change", "ready", "reconciling", "stalled", "reason"),
    [
        ({}, "True", "False", "False", "ReconciliationSucceeded"),
        ({"attempt": running()}, "Unknown", "True", "False", "Progressing"),
        ({"attempt": failed(BuildFailed("no"))}, "False", "False", "True", "BuildFailed"),
        ({"attempt": failed(Invalid("no"))}, "False", "False", "True", "Invalid"),
        ({"attempt": failed(Held("ask"))}, "False", "False", "True", "ApprovalRequired"),
        ({"attempt": failed(Transient("away", reason="RegistryDown"))}, "False", "True", "False", "RegistryDown"),
        ({"health": unhealthy(HealthStatus.DEGRADED, "1 of 2")}, "False", "False", "False", "HealthCheckFailed"),
        ({"health": unhealthy(HealthStatus.PROGRESSING)}, "False", "True", "False", "HealthCheckFailed"),
        ({"sync": SyncStatus.OUT_OF_SYNC}, "False", "False", "False", "OutOfSync"),
        ({"sync": SyncStatus.UNKNOWN}, "Unknown", "False", "False", "Unknown"),
        ({"suspended": True}, "True", "False", "False", "ReconciliationSucceeded"),
        ({"suspended": True, "attempt": running()}, "True", "False", "False", "ReconciliationSucceeded"),
        ({"stalled": ("DriftFight", "with kubectl")}, "False", "False", "True", "DriftFight"),
    ],
)
def test_conditions(change: dict[str, Any], ready: str, reconciling: str, stalled: str, reason: str) -> None:
    status = built(replace(GOOD, **change))
    found = conditions(status)
    assert found["Ready"] == (ready, reason)
    assert (found["Reconciling"][0], found["Stalled"][0]) == (reconciling, stalled)
    assert all(each["observedGeneration"] == 3 for each in status["conditions"])


def test_messages_name_the_object_and_the_place() -> None:
    error = Invalid("must be ≥ 0", doing="applying", ref=WEB, origin=Origin(file="web.yaml", line=12, field="spec.x"))
    status = built(replace(GOOD, attempt=failed(error)))
    assert status["conditions"][0]["message"] == "while applying Deployment/shop/web (web.yaml:12 spec.x): must be ≥ 0"
    assert status["lastAttempt"]["message"] == status["conditions"][0]["message"]
    assert status["lastAttempt"]["reason"] == "Invalid"
    assert status["lastAttempt"]["stage"] == "images"
    status = built(replace(GOOD, health=unhealthy(HealthStatus.DEGRADED, "1 of 2 ready")))
    assert status["conditions"][0]["message"] == "Deployment/shop/web: 1 of 2 ready"


def test_the_same_observation_gives_the_same_status() -> None:
    first = built(GOOD)
    assert built(GOOD, previous=first, now=NOW + timedelta(hours=1)) == first


def test_transition_times_change_with_the_status_only() -> None:
    first = built(GOOD)
    later = NOW + timedelta(minutes=5)
    second = built(replace(GOOD, attempt=failed(Invalid("no"))), previous=first, now=later)
    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    assert times == {
        "Ready": "2026-05-01T12:05:00Z", "Stalled": "2026-05-01T12:05:00Z", "Reconciling": "2026-05-01T12:00:00Z",
    }  # fmt: skip
    third = built(replace(GOOD, attempt=failed(Invalid("other"))), previous=second, now=later + timedelta(minutes=5))
    assert {each["type"]: each["lastTransitionTime"] for each in third["conditions"]} == times


@pytest.mark.parametrize("previous", [{"conditions": None}, {"conditions": ["x", {}, {"type": 3}]}, {"x": 1}])
def test_a_strange_previous_status_does_no_harm(previous: Json) -> None:
    assert built(GOOD, previous=previous) == built(GOOD)


def test_last_attempt() -> None:
    assert built(GOOD)["lastAttempt"] == {
        "revision": "main@sha1:aaaa",
        "stage": "report",
        "at": "2026-05-01T12:00:00Z",
        "reason": "ReconciliationSucceeded",
        "seconds": 1.235,
        "lowestReadyPercent": 99,
    }
    assert "lastAttempt" not in built(replace(GOOD, attempt=None))


def test_a_secret_at_the_cut_is_masked_before_it_is_cut() -> None:
    cut = (LARGEST_MESSAGE - len(" … ".encode())) // 2
    error = BuildFailed("x" * (cut - 9) + "hunter2-hunter2" + "y" * 5000)
    assert "hunter2" not in json.dumps(built(replace(GOOD, attempt=failed(error))))


def test_size_is_bounded_and_secrets_are_masked() -> None:
    image = Image(name="n" * 200, reference="r" * 300, digest="d", fingerprint="f" * 64, built=True)
    entry: Quarantined = {
        "revision": "r", "digest": "d", "stage": "rollout", "reason": "X", "message": "hunter2-hunter2 " + "m" * 9999,
        "at": "2026-05-01T12:00:00Z",
    }  # fmt: skip
    finding = Finding(
        rule="r", level="error", ref=WEB, origin=Origin(file="f"), message="m" * 9999, hint="hunter2-hunter2"
    )
    huge = replace(
        GOOD,
        images=[image] * 5000,
        quarantined=[{**entry, "revision": str(n)} for n in range(5000)],
        findings=[finding] * 5000,
        attempt=failed(BuildFailed("hunter2-hunter2 " + "x" * 10**6)),
    )
    status = built(huge)
    text = json.dumps(status)
    assert len(text) < 150_000
    assert "hunter2" not in text
    assert status["quarantined"][-1]["revision"] == "4999"
