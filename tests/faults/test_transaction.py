"""One commit is one transaction: whatever breaks or comes between, it arrives whole or leaves no trace.

Most scenarios wait for pods nearly all of their time and disturb nobody: they run several at once. Those that take
something away from the whole cluster follow, one by one.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from gitsync import failpoints
from tests.faults import alone, goingback, guards, kills, leaders, luck, overtaking, stages
from tests.faults.rig import Report, Rig, Scenario

pytestmark = pytest.mark.faults

AT_ONCE = 3
PATIENT = ("stream", "frozen-before-apply", "frozen-in-apply", "stopped-process")
"""Those that mostly wait for a clock: they begin at once, beside the others."""

SCENARIOS: dict[str, Scenario] = {
    **{f"kills-{name}": kills.lane(name) for name in kills.LANES},
    **leaders.SCENARIOS,
    **stages.SCENARIOS,
    **guards.SCENARIOS,
    **luck.SCENARIOS,
    **overtaking.SCENARIOS,
    **goingback.SCENARIOS,
}


@pytest.fixture(scope="module")
def running(rig: Rig, report: Report, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[None]]]:
    """Those of the scenarios that were asked for, started in order."""
    asked = [item.name.partition("[")[2].rstrip("]") for item in request.session.items]
    with ThreadPoolExecutor(AT_ONCE) as pool, ThreadPoolExecutor(len(PATIENT)) as aside:
        yield {
            name: (aside if name in PATIENT else pool).submit(SCENARIOS[name], rig, report)
            for name in asked
            if name in SCENARIOS
        }


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_commit_is_a_transaction(name: str, running: dict[str, Future[None]]) -> None:
    running[name].result()


@pytest.mark.parametrize("name", alone.SCENARIOS)
def test_it_stays_one_without_the_rest_of_the_cluster(name: str, rig: Rig, report: Report) -> None:
    alone.SCENARIOS[name](rig, report)


def test_every_failpoint_is_passed_by_some_scenario() -> None:
    assert kills.covered() | leaders.FAILPOINTS == set(failpoints.NAMES)
