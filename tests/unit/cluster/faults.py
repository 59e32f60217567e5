"""An API server that misbehaves as told: raw HTTP over loopback, one scripted answer per request."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from gitsync.cluster.client import Access, Cluster
from gitsync.model import Json


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter = field(repr=False)

    async def answer(
        self, body: bytes | Json, status: int = 200, content_type: str = "application/json", **headers: str
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", f"Content-Length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await self.writer.drain()

    async def begin(self) -> None:
        """The head of a streamed answer; ``send`` its chunks and ``end`` it, or break it off."""
        self.writer.write(b"HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        await self.writer.drain()

    async def send(self, data: bytes) -> None:
        self.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await self.writer.drain()

    async def events(self, *events: Json) -> None:
        await self.send(b"".join(json.dumps(event).encode() + b"\n" for event in events))

    async def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    def reset(self) -> None:
        self.writer.transport.abort()


Handler = Callable[[Request], Awaitable[None]]


def answering(body: bytes | Json, status: int = 200, content_type: str = "application/json") -> Handler:
    async def answer(request: Request) -> None:
        await request.answer(body, status, content_type)

    return answer


class Server:
    """Answers discovery of ConfigMaps and Pods by itself; everything else by ``handle``, in the order of requests."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.handle: Handler = self._unexpected
        self.url = ""
        self.cluster: Cluster  # a client of this server

    async def _unexpected(self, request: Request) -> None:
        await request.answer(b"unexpected", 599, "text/plain")

    def script(self, *handlers: Handler) -> None:
        """One handler per request; the last one answers all further ones."""
        left = list(handlers)

        async def step(request: Request) -> None:
            await (left.pop(0) if len(left) > 1 else left[0])(request)

        self.handle = step

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                split = urlsplit(target)
                request = Request(method, split.path, dict(parse_qsl(split.query)), headers, body, writer)
                if split.path == "/api/v1":
                    kinds = [
                        {"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": ["get"]},
                        {"name": "secrets", "kind": "Secret", "namespaced": True, "verbs": ["get"]},
                    ]
                    await request.answer({"kind": "APIResourceList", "resources": kinds})
                    continue
                self.requests.append(request)
                await self.handle(request)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def faulty() -> AsyncGenerator[tuple[Server, Cluster]]:
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await server.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 22)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with Cluster(Access(host=server.url)) as cluster:
        server.cluster = cluster
        yield server, cluster
    listener.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def config_map(name: str, version: int, *, uid: str = "", **data: str) -> Json:
    metadata = {"name": name, "namespace": "shop", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, "data": data}


def listing(version: int, *items: Json, token: str = "") -> Json:
    metadata: Json = {"resourceVersion": str(version)} | ({"continue": token} if token else {})
    return {"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": list(items)}


def event(kind: str, obj: Json) -> Json:
    return {"type": kind, "object": {"kind": "ConfigMap", "apiVersion": "v1"} | obj}


def bookmark(version: int) -> Json:
    return event("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


def failure(code: int, reason: str, message: str = "no", **details: object) -> Json:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
        "details": details,
    }
