"""One cluster for the whole run; this process lives in its network while the tests do."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, open_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with open_cluster() as started:
        started.enter()
        yield started
        started.leave()
