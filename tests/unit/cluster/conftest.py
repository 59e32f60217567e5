"""A real API server if ``GITSYNC_TEST_KUBECONFIG`` names one (its namespace is made and removed), else the sandbox."""

import os
import secrets
from collections.abc import AsyncIterator

import pytest

from gitsync.cluster.client import Cluster
from gitsync.model import ObjectRef
from gitsync.sandbox import Sandbox


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    if kubeconfig := os.environ.get("GITSYNC_TEST_KUBECONFIG"):
        async with await Cluster.connect(kubeconfig) as client:
            yield client
    else:
        async with Sandbox(engine="none") as sandbox, await Cluster.connect(str(sandbox.kubeconfig)) as client:
            yield client


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    made = await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    await cluster.delete(ObjectRef(version="v1", kind="Namespace", name=name), made.uid)
