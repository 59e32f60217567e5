"""One cluster and one installed gitsync for a whole run of e2e and faults; nothing starts for the other tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# How fast an example runs on a busy machine is no property of the code; and what decides whether a change lands tries
# the same examples every time.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

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
