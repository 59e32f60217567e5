"""Services on loopback: each port of a Service gets listeners that pass connections to its ready endpoints.

On this machine a Service listens on its cluster address (where the loopback network is one, as on Linux) and on
127.0.0.1 at its own port if that is free, at another if not: the annotation ``sandbox.gitsync.dev/address`` says which.
Where pods have network namespaces it listens in one of its own, too, to which they are linked (``netns``).
A connection that is open stays with its pod until either side ends it; a new one never goes to a pod that is not ready.
"""

import asyncio
import errno
import math
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from gitsync.sandbox import events
from gitsync.sandbox.netns import NetworkNamespace, inside
from gitsync.sandbox.registry import Options, Refusal, Registry
from gitsync.sandbox.schema import at, many
from gitsync.sandbox.store import Expired, Json

ADDRESS = "sandbox.gitsync.dev/address"
_SLICES = "endpointslices.discovery.k8s.io"
_RETRY = 5.0  # seconds until a Service that could not be served is tried again, at the next write
_log = structlog.get_logger(__name__)


class Dialer(Protocol):
    """The way into pods: the node."""

    async def dial(self, address: str, port: int) -> socket.socket:
        """A connection to a pod's address; ``OSError`` as the pod would answer."""
        ...

    def services_changed(self) -> None:
        """Called after addresses came or went, so that pods learn the names."""
        ...


@dataclass(slots=True)
class _Served:
    """One Service: its listeners by place, and the turn of each port's endpoints."""

    ports: tuple[tuple[int, str, int], ...]  # (port, name, nodePort)
    cluster_ip: str
    listeners: dict[tuple[str, int], asyncio.Server] = field(default_factory=dict[tuple[str, int], asyncio.Server])
    local: dict[int, int] = field(default_factory=dict[int, int])
    turn: int = 0


class Proxy:
    """``run`` follows Services until it is cancelled, and then closes every listener and connection."""

    def __init__(
        self, registry: Registry, dialer: Dialer, *, gateway: str = "", network: NetworkNamespace | None = None
    ) -> None:
        """``gateway``: a further address to listen on, by which containers reach this machine. ``network``: where pods
        that have namespaces look for Services."""
        self._registry = registry
        self._store = registry.store
        self._dialer = dialer
        self._gateway = gateway
        self._network = network
        self._served: dict[tuple[str, str], _Served] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._retry = math.inf

    def local_port(self, namespace: str, name: str, port: int) -> int:
        """The port on 127.0.0.1 at which a Service's port is served now; 0 if it is not."""
        served = self._served.get((namespace, name))
        return served.local.get(port, 0) if served else 0

    async def run(self) -> None:
        revision = 0
        try:
            while True:
                try:
                    revision = revision or self._store.revision
                    await self._refresh()
                    async for batch in self._store.watch(revision):
                        revision = batch[-1].revision
                        late = asyncio.get_running_loop().time() >= self._retry
                        if late or any(event.resource == "services" for event in batch):
                            await self._refresh()
                except Expired:
                    revision = 0
        finally:
            for key in list(self._served):
                self._close(key)
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _refresh(self) -> None:
        self._retry = math.inf
        wanted: dict[tuple[str, str], Json] = {}
        for service in self._store.items("services"):
            if service["spec"].get("clusterIP", "None") != "None":
                wanted[(service["metadata"]["namespace"], service["metadata"]["name"])] = service
        for key in [key for key in self._served if key not in wanted]:
            self._close(key)
            self._dialer.services_changed()
        for key, service in wanted.items():
            ports = tuple(
                (int(port["port"]), str(port.get("name", "")), int(port.get("nodePort", 0)))
                for port in many(service["spec"], "ports")
                if port["protocol"] == "TCP"
            )
            served = self._served.get(key)
            if served is None or (served.ports, served.cluster_ip) != (ports, service["spec"]["clusterIP"]):
                self._close(key)
                served = self._served[key] = _Served(ports, service["spec"]["clusterIP"])
                try:
                    await self._open(key, served, service)
                except OSError as error:  # this machine has no file or port left
                    self._close(key)
                    self._retry = asyncio.get_running_loop().time() + _RETRY
                    self._tell(service, "is not served", error)
                self._dialer.services_changed()

    def _tell(self, service: Json, what: str, error: OSError) -> None:
        why = os.strerror(error.errno) if error.errno else str(error)
        events.record(self._registry, service, "Warning", "NotServed", f"{what}: {why}", "gitsync-sandbox")

    async def _open(self, key: tuple[str, str], served: _Served, service: Json) -> None:
        for port, _, node_port in served.ports:
            with suppress(OSError):
                await self._listen(key, served, served.cluster_ip, port, port)
            if node_port:
                try:
                    await self._listen(key, served, "127.0.0.1", node_port, port)
                except OSError as error:
                    self._tell(service, f"node port {node_port} of 127.0.0.1", error)
            try:
                served.local[port] = await self._listen(key, served, "127.0.0.1", port, port)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                served.local[port] = await self._listen(key, served, "127.0.0.1", 0, port)
            if self._gateway:
                with suppress(OSError):
                    await self._listen(key, served, self._gateway, port, port)
            if self._network:
                address = inside(served.cluster_ip)
                with suppress(OSError):  # an address that a person chose may be outside of the network
                    listener = await self._network.listen(address, port)
                    handler = self._handler(key, port)
                    served.listeners[address, port] = await asyncio.start_server(handler, sock=listener)
        shown = ",".join(f"127.0.0.1:{served.local[port]}" for port, _, _ in served.ports if port in served.local)
        self._annotate(key, shown)

    def _annotate(self, key: tuple[str, str], shown: str) -> None:
        def change(live: Json) -> Json:
            live["metadata"].setdefault("annotations", {})[ADDRESS] = shown
            return live

        with suppress(Refusal):
            services = self._registry.resource("services")
            self._registry.modify(services, *key, change, Options(manager="gitsync-sandbox"))

    async def _listen(self, key: tuple[str, str], served: _Served, host: str, at: int, port: int) -> int:
        server = await asyncio.start_server(self._handler(key, port), host, at, backlog=512)
        if not server.sockets:
            raise OSError(errno.EMFILE, "no socket")  # asyncio keeps to itself why
        number = int(server.sockets[0].getsockname()[1])
        served.listeners[(host, number)] = server
        return number

    def _close(self, key: tuple[str, str]) -> None:
        """Stop listening; open connections go on."""
        if served := self._served.pop(key, None):
            for server in served.listeners.values():
                server.close()

    # ------------------------------------------------------------ connections

    def _handler(self, key: tuple[str, str], port: int):
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connect(key, port, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return accept

    def _pick(self, key: tuple[str, str], port: int) -> tuple[str, int] | None:
        """The next ready endpoint, or one that still serves while it terminates if none is ready."""
        served = self._served.get(key)
        if served is None:
            return None
        name = next((name for number, name, _ in served.ports if number == port), "")
        ready: list[tuple[str, int]] = []
        serving: list[tuple[str, int]] = []
        for each in self._store.items(_SLICES, key[0]):
            if at(each["metadata"], "labels").get("kubernetes.io/service-name") != key[1]:
                continue
            number = next((int(it["port"]) for it in many(each, "ports") if it.get("name", "") == name), 0)
            for endpoint in many(each, "endpoints") if number else ():
                place = (endpoint["addresses"][0], number)
                conditions = at(endpoint, "conditions")
                if conditions.get("ready", True):
                    ready.append(place)
                elif conditions.get("serving") and conditions.get("terminating"):
                    serving.append(place)
        found = ready or serving
        served.turn += 1
        return found[served.turn % len(found)] if found else None

    async def _connect(
        self, key: tuple[str, str], port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upstream: asyncio.StreamWriter | None = None
        clean = False
        try:
            place = self._pick(key, port)
            if place is None:
                return
            connection = await self._dialer.dial(*place)
            back, upstream = await asyncio.open_connection(sock=connection)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, upstream))
                both.create_task(_pump(back, writer))
            clean = True
        except* (OSError, TimeoutError):
            pass  # refused or reset: the client is told by a reset of its own connection
        finally:
            for each in (upstream, writer):
                if each is not None:
                    if clean:
                        each.close()
                    else:
                        _reset(each)


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await source.read(65536):
        target.write(chunk)
        await target.drain()
    if target.can_write_eof():
        with suppress(OSError):
            target.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side sees a reset, as from a pod that is not there."""
    found = writer.get_extra_info("socket")
    with suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
