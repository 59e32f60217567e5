"""Composition: the parts of the cluster, started and stopped in order."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from aiohttp import web

from gitsync.sandbox import netns
from gitsync.sandbox.api import Api
from gitsync.sandbox.controllers import Controllers
from gitsync.sandbox.engine import Engine, SandboxError, find
from gitsync.sandbox.kinds import Kinds
from gitsync.sandbox.node import Node
from gitsync.sandbox.proxy import Proxy
from gitsync.sandbox.registry import Options, Registry
from gitsync.sandbox.store import Store


class Sandbox:
    """``async with Sandbox() as cluster`` is a running cluster: ``cluster.url``, ``cluster.kubeconfig``.

    ``port`` 0 takes a free one. ``data_dir`` holds the kubeconfig and the pods' volumes, and belongs to one sandbox at
    a time; without one it is a temporary directory that is removed at the end. ``engine``: "podman", "docker", "none"
    (pods stay Pending, Services are not served), or "" for whichever is there. ``namespaces``: whether each pod gets a
    network namespace of ours; ``None`` finds out whether that can be done. ``egress``: whether such pods reach beyond
    this machine.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        data_dir: Path | None = None,
        kubeconfig: Path | None = None,
        engine: str = "",
        namespaces: bool | None = None,
        egress: bool = True,
    ) -> None:
        self._port = port
        self._data_dir = data_dir
        self._engine = engine
        self._namespaces = namespaces
        self._egress = egress
        self._stack = AsyncExitStack()
        self._proxy: Proxy | None = None
        self.url = ""
        self.kubeconfig = kubeconfig or Path()
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

    def service_address(self, namespace: str, name: str, port: int) -> str:
        """Where this machine reaches a Service's port (``127.0.0.1:8200``); "" while it is not served."""
        number = self._proxy.local_port(namespace, name, port) if self._proxy else 0
        return f"127.0.0.1:{number}" if number else ""

    async def _start(self) -> None:
        if self._data_dir is None:
            scratch = tempfile.TemporaryDirectory(prefix="gitsync-sandbox-", ignore_cleanup_errors=True)
            self._data_dir = Path(self._stack.enter_context(scratch))
        directory = self._data_dir.absolute()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o711)
        self._stack.callback(_hold(directory))
        self._furnish()
        api = Api(self.registry)
        runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, "127.0.0.1", self._port).start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise SandboxError(f"port {self._port} of 127.0.0.1: {why}; take another one, or 0 for any") from error
        self._stack.callback(api.closing.set)
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        if self.kubeconfig == Path():
            self.kubeconfig = directory / "kubeconfig"
        try:
            write_kubeconfig(self.kubeconfig, self.url)
        except OSError as error:
            raise SandboxError(f"the kubeconfig {self.kubeconfig} cannot be written: {error.strerror}") from error
        await self._own(Controllers(self.registry).run())
        if self._engine != "none":
            await self._start_node(api, directory)

    async def _start_node(self, api: Api, directory: Path) -> None:
        engine = Engine(find(self._engine), str(directory))
        await _clean_up(engine, directory)
        own = netns.supported() and engine.podman if self._namespaces is None else self._namespaces
        services: netns.ServiceNetwork | None = None
        if own:
            services = await asyncio.to_thread(netns.ServiceNetwork)
            self._stack.callback(services.close)
        node = api.logs = Node(self.registry, engine, directory, services=services, egress=self._egress)
        gateway = ""
        if not own:
            gateway = (await engine.network())[1]
        here = gateway if gateway and not engine.podman and gateway != "host-gateway" else ""
        self._proxy = Proxy(self.registry, node, gateway=here, network=services)
        await self._own(node.run())
        await self._own(self._proxy.run())

    async def _own(self, work: Coroutine[Any, Any, None]) -> None:
        """Run until the sandbox stops."""
        task = asyncio.create_task(work)

        async def stop() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._stack.push_async_callback(stop)

    def _furnish(self) -> None:
        system = Options(manager="sandbox")
        for name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            self.registry.create(self.registry.resource("namespaces"), "", {"metadata": {"name": name}}, system)


def _lock(directory: Path) -> int:
    """A descriptor that holds the directory's lock until it is closed; -1 if another process holds it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _hold(directory: Path) -> Callable[[], None]:
    descriptor = _lock(directory)
    if descriptor < 0:
        raise SandboxError(f"another sandbox uses {directory}: stop it, or give this one another data directory")
    return lambda: os.close(descriptor)


def _scratch() -> set[Path]:
    """The temporary directories of sandboxes, living or not."""
    return {file.parent for file in Path(tempfile.gettempdir()).glob("gitsync-sandbox-*/kubeconfig")}


async def _clean_up(engine: Engine, directory: Path) -> None:
    """Remove what killed sandboxes left: containers whose directory nobody holds, the pods in it, and our scratch."""
    owners = {Path(owner): containers for owner, containers in (await engine.owners()).items()}
    scratch = _scratch()
    for place in {*owners, *scratch} - {directory}:
        try:
            descriptor = _lock(place)
        except FileNotFoundError:
            descriptor = None  # the directory is gone, too
        except OSError:
            continue  # somebody else's, on a shared engine or in a shared directory
        if descriptor == -1:
            continue  # its sandbox lives
        if place in owners:
            await engine.remove(*owners[place])
        shutil.rmtree(place if place in scratch else place / "pods", ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)
    if directory in owners:
        await engine.remove(*owners[directory])
    shutil.rmtree(directory / "pods", ignore_errors=True)


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
