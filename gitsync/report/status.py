"""Builds an Application's status: pure, bounded whatever the Application's size, and stable.

The same observation gives the same dictionary, so that an unchanged status is never sent again. The three conditions
follow kstatus: while *Reconciling* is true something is still being tried, when *Stalled* is true trying cannot help
without a person, and *Ready* is true only if the newest revision is live and healthy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from gitsync.application import (
    ApplicationStatus,
    Condition,
    Counts,
    FindingStatus,
    ImageStatus,
    LastAttempt,
    Quarantined,
)
from gitsync.errors import GitsyncError, Held, Invalid
from gitsync.model import Finding, Health, HealthStatus, Image, Json, Stage, SyncStatus
from gitsync.report.redact import Redactor, shorten

MOST_IMAGES = 50
MOST_FINDINGS = 20
MOST_QUARANTINED = 10
LARGEST_MESSAGE = 2048  # bytes

_NO_COUNTS: Counts = {"objects": 0, "outOfSync": 0, "unhealthy": 0, "held": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The latest attempt. ``error`` is why it ended without success; ``running``: it has not ended."""

    revision: str
    stage: Stage
    at: datetime
    running: bool = False
    message: str = ""  # what it is doing, or did
    seconds: float | None = None
    lowest_ready: float | None = None  # share of ready endpoints, 0 to 1
    error: GitsyncError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that a status is built from. Revisions are as they print: ``main@sha1:<sha>``."""

    generation: int
    sync: SyncStatus = SyncStatus.UNKNOWN
    health: Health
    revision: str = ""
    last_good: str = ""
    images: Sequence[Image] = ()
    findings: Sequence[Finding] = ()
    quarantined: Sequence[Quarantined] = ()  # oldest first
    counts: Counts | None = None
    attempt: Attempt | None = None
    differs: str = ""  # what somebody changed and nobody puts back
    suspended: bool = False
    stalled: tuple[str, str] | None = (
        None  # reason and message of something else than the attempt: a fight over a field
    )
    handled_request: str = ""  # value of the requestedAt annotation that was acted on

    @property
    def well(self) -> bool:
        """Synced, and as healthy as it is meant to be: what somebody suspended (a CronJob) is so on purpose."""
        return self.sync is SyncStatus.SYNCED and self.health.status in (HealthStatus.HEALTHY, HealthStatus.SUSPENDED)


def build(previous: Mapping[str, Any], observation: Observation, *, now: datetime, redactor: Redactor) -> Json:
    """The status to write. ``previous`` only lends the times at which conditions last changed."""
    status: ApplicationStatus = {
        "observedGeneration": observation.generation,
        "conditions": _conditions(previous, observation, now, redactor),
        "sync": observation.sync.value,
        "health": observation.health.status.value,
        "revision": observation.revision,
        "lastGood": observation.last_good,
        "images": [_image(image) for image in observation.images[:MOST_IMAGES]],
        "counts": observation.counts or _NO_COUNTS,
        "findings": [_finding(each, redactor) for each in observation.findings[:MOST_FINDINGS]],
        "quarantined": [_quarantined(each, redactor) for each in observation.quarantined[-MOST_QUARANTINED:]],
    }
    if observation.attempt is not None:
        status["lastAttempt"] = _last_attempt(observation.attempt, redactor)
    elif isinstance(former := previous.get("lastAttempt"), dict):
        status["lastAttempt"] = cast("LastAttempt", former)  # of a former process
    if observation.handled_request:
        status["lastHandledReconcileAt"] = shorten(observation.handled_request, 256)
    return cast("Json", status)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes prints times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---------------------------------------------------------------- conditions

_Verdict = tuple[Literal["True", "False", "Unknown"], str, str]  # status, reason, message


def verdicts(observation: Observation) -> dict[str, _Verdict]:
    """Ready, Reconciling and Stalled as status, reason and message; the rules of this module's docstring."""
    attempt = observation.attempt
    error = attempt.error if attempt else None
    deployed = f"Deployed {observation.revision}"
    if observation.suspended:
        ready = _ready(observation, deployed)
        return {
            "Ready": ready,
            "Reconciling": ("False", "Suspended", "Suspended by sync.suspend"),
            "Stalled": ("False", "Suspended", "Suspended by sync.suspend"),
        }
    if attempt is not None and attempt.running:
        doing = attempt.message or f"{attempt.stage.value} of {attempt.revision}"
        return {
            "Ready": ("Unknown", "Progressing", doing),
            "Reconciling": ("True", "Progressing", doing),
            "Stalled": ("False", "Progressing", ""),
        }
    if observation.stalled is not None:
        reason, message = observation.stalled
        return {
            "Ready": ("False", reason, message),
            "Reconciling": ("False", reason, ""),
            "Stalled": ("True", reason, message),
        }
    if error is not None:
        final = isinstance(error, (Invalid, Held))
        what = str(error)
        return {
            "Ready": ("False", error.reason, what),
            "Reconciling": ("False", error.reason, "") if final else ("True", "ProgressingWithRetry", what),
            "Stalled": ("True", error.reason, what) if final else ("False", error.reason, ""),
        }
    ready = _ready(observation, deployed)
    waits = ready[0] != "True" and observation.health.status is HealthStatus.PROGRESSING
    return {
        "Ready": ready,
        "Reconciling": ("True", ready[1], ready[2]) if waits else ("False", ready[1], ""),
        "Stalled": ("False", ready[1], ""),
    }


def _ready(observation: Observation, deployed: str) -> _Verdict:
    health = observation.health
    if observation.sync is SyncStatus.UNKNOWN:
        return ("Unknown", "Unknown", health.message or "Nothing is known yet")
    if health.status not in (HealthStatus.HEALTHY, HealthStatus.SUSPENDED):
        subject = f"{health.ref}: " if health.ref else ""
        return ("False", "HealthCheckFailed", f"{subject}{health.message or health.status.value}")
    if observation.sync is SyncStatus.OUT_OF_SYNC:
        what = f": {observation.differs}" if observation.differs else ""
        return ("False", "OutOfSync", f"The cluster differs from git{what}")
    return ("True", "ReconciliationSucceeded", deployed)


def _conditions(
    previous: Mapping[str, Any], observation: Observation, now: datetime, redactor: Redactor
) -> list[Condition]:
    before = {
        str(each.get("type")): each
        for each in cast("list[dict[str, Any]]", previous.get("conditions") or [])
        if isinstance(each, dict)  # pyright: ignore[reportUnnecessaryIsInstance]  # the cluster's word, not ours
    }
    conditions: list[Condition] = []
    for kind, (state, reason, message) in verdicts(observation).items():
        old = before.get(kind, {})
        since = old.get("lastTransitionTime") if old.get("status") == state else None
        conditions.append(
            {
                "type": kind,
                "status": state,
                "observedGeneration": observation.generation,
                "lastTransitionTime": since if isinstance(since, str) and since else timestamp(now),
                "reason": reason,
                "message": _text(message, redactor),
            }
        )
    return conditions


# ---------------------------------------------------------------- parts


def _text(text: str, redactor: Redactor) -> str:
    return shorten(redactor(text), LARGEST_MESSAGE)


def _image(image: Image) -> ImageStatus:
    return {"name": image.name, "reference": image.reference, "fingerprint": image.fingerprint}


def _finding(finding: Finding, redactor: Redactor) -> FindingStatus:
    place = " ".join(part for part in (str(finding.origin), finding.message) if part)
    message = f"{place}; {finding.hint}" if finding.hint else place
    return {
        "rule": finding.rule,
        "level": finding.level,
        "object": str(finding.ref),
        "message": _text(message, redactor),
    }


def _quarantined(entry: Quarantined, redactor: Redactor) -> Quarantined:
    return {**entry, "message": _text(entry["message"], redactor)}


def _last_attempt(attempt: Attempt, redactor: Redactor) -> LastAttempt:
    out: LastAttempt = {"revision": attempt.revision, "stage": attempt.stage.value, "at": timestamp(attempt.at)}
    message = str(attempt.error) if attempt.error else attempt.message
    if message:
        out["message"] = _text(message, redactor)
    if attempt.error is not None:
        out["reason"] = attempt.error.reason
    elif not attempt.running:
        out["reason"] = "ReconciliationSucceeded"
    if attempt.seconds is not None:
        out["seconds"] = round(attempt.seconds, 3)
    if attempt.lowest_ready is not None:
        out["lowestReadyPercent"] = int(attempt.lowest_ready * 100)
    return out
