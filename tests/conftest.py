"""One cluster and one installed gitsync for a whole run of e2e and faults; nothing starts for the other tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster import Cluster
    from tests.e2e.world import World


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """This process lives in the cluster's network while the tests do."""
    from tests.cluster import open_cluster

    with open_cluster() as started:
        started.enter()
        yield started
        started.leave()


@pytest.fixture(scope="session")
def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """gitsync, installed in the cluster, and a git host beside it."""
    from tests.e2e.world import World

    with World(cluster, tmp_path_factory.mktemp("world")) as ready:
        yield ready
