"""Composition: the parts of the cluster, started and stopped in order."""

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from gitsync.sandbox.api import Api
from gitsync.sandbox.kinds import Kinds
from gitsync.sandbox.registry import Options, Registry
from gitsync.sandbox.store import Store


class Sandbox:
    """``async with Sandbox() as cluster`` is a running cluster: ``cluster.url``, ``cluster.kubeconfig``.

    ``port`` 0 takes a free one. ``data_dir`` holds the kubeconfig and the pods' volumes; without one, a temporary
    directory that is removed at the end. ``engine``: "podman", "docker", "none" (pods stay Pending), or "" for
    whichever is there.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        data_dir: Path | None = None,
        kubeconfig: Path | None = None,
        engine: str = "",
    ) -> None:
        self._port = port
        self._data_dir = data_dir
        self._kubeconfig = kubeconfig
        self._engine = engine
        self._stack = AsyncExitStack()
        self.url = ""
        self.kubeconfig = Path()
        self.store = Store()
        self.registry = Registry(self.store, Kinds())

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        if self._data_dir is None:
            self._data_dir = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gitsync-sandbox-")))
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._furnish()
        api = Api(self.registry)
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self._stack.callback(api.closing.set)
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        self.kubeconfig = self._kubeconfig or self._data_dir / "kubeconfig"
        write_kubeconfig(self.kubeconfig, self.url)

    def _furnish(self) -> None:
        system = Options(manager="sandbox")
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.registry.create(self.registry.resource("namespaces"), "", {"metadata": {"name": name}}, system)


def write_kubeconfig(path: Path, url: str) -> None:
    """A kubeconfig for one user of one cluster; JSON, which every reader of YAML takes."""
    name = "gitsync-sandbox"
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": url}}],
        "users": [{"name": name, "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.touch(mode=0o600)
    scratch.write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2) + b"\n")
    scratch.replace(path)


async def serve(
    *,
    port: int = 0,
    kubeconfig_path: Path | None = None,
    data_dir: Path | None = None,
    engine: str = "",
    stop_event: asyncio.Event,
    started: asyncio.Future[Sandbox] | None = None,
) -> None:
    """Run a sandbox until ``stop_event``; ``started`` gets it once it answers."""
    async with Sandbox(port=port, data_dir=data_dir, kubeconfig=kubeconfig_path, engine=engine) as sandbox:
        if started is not None:
            started.set_result(sandbox)
        await stop_event.wait()
