"""Events: shape, bounds, counting up instead of repeating, and floods cut."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gitsync.model import ObjectRef
from gitsync.report.events import BURST, LARGEST_NOTE, MEMORY, REFILL, SERIES_WINDOW, Emission, EventLog, Notice
from gitsync.report.redact import Redactor

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
APP = ObjectRef(group="gitsync.dev", version="v1alpha1", kind="Application", namespace="prod", name="shop")
NOTICE = Notice(about=APP, uid="u1", warning=True, reason="BuildFailed", action="Build", message="step 3 failed")


@pytest.fixture
def events() -> EventLog:
    return EventLog(instance="replica-1", redactor=Redactor(["hunter2-hunter2"]))


def sent(emission: Emission | None) -> Emission:
    assert emission is not None
    return emission


def test_the_first_is_created(events: EventLog) -> None:
    emission = sent(events.offer(NOTICE, now=NOW))
    assert emission.verb == "create"
    assert emission.namespace == "prod"
    assert emission.object == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": emission.name, "namespace": "prod"},
        "eventTime": "2026-05-01T12:00:00.123456Z",
        "type": "Warning",
        "reason": "BuildFailed",
        "action": "Build",
        "note": "step 3 failed",
        "regarding": {
            "apiVersion": "gitsync.dev/v1alpha1", "kind": "Application",
            "name": "shop", "namespace": "prod", "uid": "u1",
        },
        "reportingController": "gitsync.dev/gitsync",
        "reportingInstance": "replica-1",
    }  # fmt: skip
    assert emission.name.startswith("shop.")


def test_the_same_again_counts_up_at_most_once_a_minute(events: EventLog) -> None:
    name = sent(events.offer(NOTICE, now=NOW)).name
    got = [events.offer(NOTICE, now=NOW + timedelta(seconds=n)) for n in range(1, 130)]
    patches = [each for each in got if each]
    assert [each.verb for each in patches] == ["patch"] * 3
    assert {each.name for each in patches} == {name}
    assert [each.object["series"]["count"] for each in patches] == [2, 62, 122]
    assert patches[-1].object["series"]["lastObservedTime"] == "2026-05-01T12:02:01.123456Z"
    assert patches[-1].object["eventTime"] == "2026-05-01T12:00:00.123456Z"


@pytest.mark.parametrize(
    "other",
    [
        replace(NOTICE, message="step 4 failed"),
        replace(NOTICE, uid="u2"),
        replace(NOTICE, about=replace(APP, name="other")),
        replace(NOTICE, warning=False),
        replace(NOTICE, reason="X"),
    ],
)
def test_something_else_is_another_event(events: EventLog, other: Notice) -> None:
    first = sent(events.offer(NOTICE, now=NOW))
    second = sent(events.offer(other, now=NOW))
    assert second.verb == "create"
    assert second.name != first.name


def test_after_a_long_silence_it_is_new(events: EventLog) -> None:
    first = sent(events.offer(NOTICE, now=NOW))
    second = sent(events.offer(NOTICE, now=NOW + SERIES_WINDOW + timedelta(seconds=1)))
    assert second.verb == "create"
    assert second.name != first.name


def test_a_flood_about_one_object_is_cut_and_does_not_cost_another(events: EventLog) -> None:
    flood = [events.offer(replace(NOTICE, message=str(n)), now=NOW) for n in range(1000)]
    assert len([each for each in flood if each]) == BURST
    assert events.dropped == 1000 - BURST
    assert events.offer(replace(NOTICE, about=replace(APP, name="other")), now=NOW)
    assert events.offer(replace(NOTICE, message="later"), now=NOW + REFILL)
    assert events.offer(replace(NOTICE, message="clock went back"), now=NOW - timedelta(hours=1)) is None


def test_bounds_and_redaction(events: EventLog) -> None:
    emission = sent(events.offer(replace(NOTICE, message="hunter2-hunter2 " + "ä" * 5000 + "end"), now=NOW))
    note = emission.object["note"]
    assert len(note.encode()) <= LARGEST_NOTE
    assert note.startswith("***")
    assert note.endswith("end")
    for n in range(MEMORY + 10):
        events.offer(replace(NOTICE, about=replace(APP, name=f"a{n}")), now=NOW)
    assert len(events._series) <= MEMORY
    assert len(events._budgets) <= MEMORY


def test_a_secret_at_the_cut_is_masked_before_it_is_cut(events: EventLog) -> None:
    cut = (LARGEST_NOTE - len(" … ".encode())) // 2
    emission = sent(events.offer(replace(NOTICE, message="x" * (cut - 9) + "hunter2-hunter2" + "y" * 5000), now=NOW))
    assert "hunter2" not in emission.object["note"]


def test_cluster_scoped_objects_have_their_events_in_default(events: EventLog) -> None:
    crd = ObjectRef(group="apiextensions.k8s.io", version="v1", kind="CustomResourceDefinition", name="x.y")
    emission = sent(events.offer(replace(NOTICE, about=crd, related=APP), now=NOW))
    assert emission.namespace == "default"
    assert "namespace" not in emission.object["regarding"]
    assert emission.object["related"]["name"] == "shop"
