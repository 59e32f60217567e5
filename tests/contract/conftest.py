"""``api``: the sandbox, or the cluster that ``GITSYNC_CONTRACT_KUBECONFIG`` names. The tests cannot tell which."""

import asyncio
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gitsync.sandbox import Sandbox
from tests.contract.client import Access, Api


@pytest.fixture(scope="session")
def access(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    if given := os.environ.get("GITSYNC_CONTRACT_KUBECONFIG"):
        yield Access.read(Path(given))
        return
    started: list[tuple[Sandbox, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def work() -> None:
        async with Sandbox(data_dir=tmp_path_factory.mktemp("sandbox"), engine="none") as sandbox:
            stop = asyncio.Event()
            started.append((sandbox, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="sandbox")
    thread.start()
    assert ready.wait(20), "the sandbox did not start"
    sandbox, loop, stop = started[0]
    yield Access.read(sandbox.kubeconfig)
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


@pytest.fixture
async def api(access: Access) -> AsyncIterator[Api]:
    async with access.connect(f"contract-{secrets.token_hex(4)}") as found:
        yield found
