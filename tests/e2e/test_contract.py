"""The contract suite, unchanged, on a real API server: what the sandbox promises is what Kubernetes does."""

import os
import re
import sys

import pytest

from tests.cluster import Cluster
from tests.e2e.world import ROOT

pytestmark = pytest.mark.e2e


def test_the_contract_suite_passes_on_real_kubernetes(cluster: Cluster) -> None:
    argv = [sys.executable, "-m", "pytest", "tests/contract", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"GITSYNC_CONTRACT_KUBECONFIG": str(cluster.kubeconfig)}
    done = cluster.run_in(argv, env=environment, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) > 100
