"""One rig and one report for all fault tests of a run; a gitsync that e2e tests have installed rests meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.faults.rig import Report, Rig

REPORTS = Path(__file__).parents[2] / "reports"
_MADE = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def rig(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    installed = ["-n", "gitsync", "scale", "deployment/gitsync"]
    cluster.kubectl(*installed, "--replicas=0", check=False)
    with Rig(cluster, tmp_path_factory.mktemp("faults")) as ready:
        yield ready
    cluster.kubectl(*installed, "--replicas=1", check=False)


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    made = Report(path=REPORTS / "transaction.json")
    request.config.stash[_MADE] = made
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Every scenario with its outcome and figures."""
    made = config.stash.get(_MADE, None)
    for row in made.sorted() if made else ():
        figures = " ".join(f"{key}={value}" for key, value in row.items() if isinstance(value, int | float))
        terminalreporter.write_line(f"{row['outcome'][:6]:6} {row['promise']}: {row['scenario']} · {figures}")
