"""Kubernetes Events (events.k8s.io/v1): which to send, and as what.

An Event that says the same about the same object again is not sent as another one: its series is counted up, and that
is written the second time and then at most once a minute. A flood about one object is cut. Pure but for the memory of
what was sent: the caller gives the time and sends what it gets back.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from gitsync.model import Json, ObjectRef
from gitsync.report.redact import Redactor, shorten

CONTROLLER = "gitsync.dev/gitsync"
LARGEST_NOTE = 1024  # bytes: the API's own limit
SERIES_WINDOW = timedelta(minutes=30)  # the same after a longer silence is a new Event
SERIES_PERIOD = timedelta(minutes=1)
BURST = 30  # Events about one object at once, then one each REFILL
REFILL = timedelta(seconds=20)
MEMORY = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something to say about one object. ``reason`` and ``action`` are CamelCase; ``related`` is a second object."""

    about: ObjectRef
    uid: str = ""
    warning: bool = False
    reason: str
    action: str
    message: str
    related: ObjectRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """What to send: ``create`` posts ``object``; ``patch`` merges it into the Event of that name (create if gone)."""

    verb: Literal["create", "patch"]
    namespace: str
    name: str
    object: Json


@dataclass(slots=True)
class _Series:
    name: str
    first: datetime
    last: datetime
    sent: datetime
    count: int = 1


@dataclass(slots=True)
class _Budget:
    tokens: float
    at: datetime


@dataclass(slots=True)
class EventLog:
    """Remembers what was sent, a bounded number of it."""

    instance: str  # this replica's name
    redactor: Redactor
    dropped: int = 0  # Events that a flood cost
    _series: OrderedDict[tuple[str, ...], _Series] = field(
        default_factory=lambda: OrderedDict[tuple[str, ...], _Series]()
    )
    _budgets: OrderedDict[tuple[str, ...], _Budget] = field(
        default_factory=lambda: OrderedDict[tuple[str, ...], _Budget]()
    )

    def offer(self, notice: Notice, *, now: datetime) -> Emission | None:
        """What to send for this notice now, or None. ``now`` has a time zone."""
        note = shorten(self.redactor(notice.message), LARGEST_NOTE)
        subject = (*notice.about.key, notice.uid)
        key = (*subject, str(notice.warning), notice.reason, notice.action, note)
        series = self._series.get(key)
        if series is not None and now - series.last <= SERIES_WINDOW:
            self._series.move_to_end(key)
            series.count += 1
            series.last = now
            if series.count > 2 and now - series.sent < SERIES_PERIOD:
                return None
            series.sent = now
            body = self._event(notice, note, series)
            return Emission(verb="patch", namespace=_namespace(notice), name=series.name, object=body)
        if not self._spend(subject, now):
            self.dropped += 1
            return None
        digest = hashlib.sha256("\0".join((*key, now.isoformat())).encode()).hexdigest()[:16]
        series = _Series(name=f"{notice.about.name[:230]}.{digest}", first=now, last=now, sent=now)
        self._series[key] = series
        self._series.move_to_end(key)
        while len(self._series) > MEMORY:
            self._series.popitem(last=False)
        body = self._event(notice, note, series)
        return Emission(verb="create", namespace=_namespace(notice), name=series.name, object=body)

    def _spend(self, subject: tuple[str, ...], now: datetime) -> bool:
        budget = self._budgets.setdefault(subject, _Budget(tokens=BURST, at=now))
        self._budgets.move_to_end(subject)
        while len(self._budgets) > MEMORY:
            self._budgets.popitem(last=False)
        # a clock that went backwards earns nothing
        earned = max(0.0, (now - budget.at) / REFILL)
        budget.tokens = min(float(BURST), budget.tokens + earned)
        budget.at = now
        if budget.tokens < 1:
            return False
        budget.tokens -= 1
        return True

    def _event(self, notice: Notice, note: str, series: _Series) -> Json:
        event: Json = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": series.name, "namespace": _namespace(notice)},
            "eventTime": _micro(series.first),
            "type": "Warning" if notice.warning else "Normal",
            "reason": notice.reason[:128],
            "action": notice.action[:128],
            "note": note,
            "regarding": _reference(notice.about, notice.uid),
            "reportingController": CONTROLLER,
            "reportingInstance": self.instance[:128],
        }
        if notice.related is not None:
            event["related"] = _reference(notice.related, "")
        if series.count > 1:
            event["series"] = {"count": series.count, "lastObservedTime": _micro(series.last)}
        return event


def _namespace(notice: Notice) -> str:
    """Events about cluster-scoped objects live in ``default``: the API demands it."""
    return notice.about.namespace or "default"


def _micro(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _reference(ref: ObjectRef, uid: str) -> Json:
    reference: Json = {"apiVersion": ref.api_version, "kind": ref.kind, "name": ref.name}
    if ref.namespace:
        reference["namespace"] = ref.namespace
    if uid:
        reference["uid"] = uid
    return reference
