"""A watch under faults, and what the cache of many objects costs.

The server is a process of its own that answers from memory: what is compared is the client's processor time.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import time
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import msgspec
import orjson

from benchmarks.figures import Goal, Row, median
from benchmarks.server import objects
from gitsync.cluster.answers import Resource
from gitsync.cluster.cache import Observed, Watcher
from gitsync.cluster.client import Access, Cluster
from gitsync.model import Json

OBJECTS = 1000
RESOURCE = Resource(group="apps", version="v1", kind="Deployment", plural="deployments", namespaced=True)


async def run(scale: float) -> list[Row]:
    count = max(2000, int(50_000 * scale))
    return [await _watch(count), _memory(max(1000, int(20_000 * scale)))]


# ---------------------------------------------------------------- the server


def _live(number: int, version: int) -> Json:
    """A Deployment as an API server tells it."""
    (obj,) = objects(1, "shop")
    (container,) = obj["spec"]["template"]["spec"]["containers"]
    container |= {
        "imagePullPolicy": "IfNotPresent",
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }
    obj["spec"] |= {
        "progressDeadlineSeconds": 600,
        "revisionHistoryLimit": 10,
        "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}, "type": "RollingUpdate"},
    }
    obj["spec"]["template"]["spec"] |= {
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
    }
    paths: Json = {"f:spec": {"f:replicas": {}, "f:template": {"f:spec": {"f:containers": {}}}}}
    env: Json = {f'k:{{"name":"KEY_{each}"}}': {".": {}, "f:name": {}, "f:value": {}} for each in range(8)}
    paths["f:spec"]["f:template"]["f:spec"]["f:containers"] = {'k:{"name":"app"}': {".": {}, "f:env": env}}
    fields: list[Json] = [
        {"manager": manager, "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": paths}
        for manager in ("gitsync", "kube-controller-manager")
    ]
    more: Json = {"uid": f"uid-{number:032}", "resourceVersion": str(version), "managedFields": fields}
    condition = {
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "lastUpdateTime": "2026-01-01T00:00:00Z",
        "message": "Deployment has minimum availability.",
        "reason": "MinimumReplicasAvailable",
        "status": "True",
        "type": "Available",
    }
    status: Json = {"observedGeneration": version, "replicas": 1, "conditions": [condition, condition]}
    return obj | {"metadata": obj["metadata"] | {"name": f"app-{number}"} | more, "status": status}


class _Server:
    """Versions up to ``OBJECTS`` are the list; each later version is one event. With faults, nine times on the way
    something breaks, and the watch has to go on from where it was (or, after a 410, from a list)."""

    def __init__(self, count: int, *, faulty: bool) -> None:
        self._lines = [
            orjson.dumps({"type": "MODIFIED", "object": _live(at % OBJECTS, OBJECTS + 1 + at)}) + b"\n"
            for at in range(count)
        ]
        kinds = ("reset", "expired", "html", "empty", "half", "expired", "html", "half", "empty") if faulty else ()
        self._faults = [(count * (at + 1) // 10, kind) for at, kind in enumerate(kinds)]
        self._passed = 0  # events before this are in every list
        self._answer = ""  # to the next watch

    def _list(self) -> bytes:
        newest = {at % OBJECTS: OBJECTS + 1 + at for at in range(max(0, self._passed - OBJECTS), self._passed)}
        items = [_live(number, newest.get(number, number + 1)) for number in range(OBJECTS)]
        version = {"resourceVersion": str(OBJECTS + self._passed)}
        return orjson.dumps({"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": version, "items": items})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                query = dict(parse_qsl(urlsplit(head.split(" ")[1]).query))
                answer, self._answer = (self._answer, "") if "watch" in query else ("", self._answer)
                if answer == "html":
                    _whole(writer, b"<html>busy</html>", "503 Busy", "text/html")
                elif answer == "empty":
                    _whole(writer, b"", "200 OK", "application/json")
                elif "watch" not in query:
                    _whole(writer, self._list(), "200 OK", "application/json")
                else:
                    await self._stream(writer, int(query["resourceVersion"]) - OBJECTS)

    async def _stream(self, writer: asyncio.StreamWriter, at: int) -> None:
        """Events after the first ``at``, up to the next fault."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        end, kind = self._faults.pop(0) if self._faults else (len(self._lines), "silence")
        for start in range(at, end, 200):
            _chunk(writer, b"".join(self._lines[start : min(start + 200, end)]))
            await writer.drain()
        match kind:
            case "silence":
                await asyncio.Event().wait()
            case "half":
                _chunk(writer, self._lines[end][: len(self._lines[end]) // 2])
                await writer.drain()
                await asyncio.sleep(0.05)
            case "expired":
                self._passed = end
                status = {"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old"}
                _chunk(writer, orjson.dumps({"type": "ERROR", "object": status}) + b"\n")
            case "html" | "empty":
                self._answer = kind
            case _:
                await asyncio.sleep(0.05)
        if kind in ("reset", "half"):
            writer.transport.abort()
            raise ConnectionError
        _chunk(writer, b"")
        await writer.drain()


def _whole(writer: asyncio.StreamWriter, body: bytes, status: str, media: str) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n" % len(data) + data + b"\r\n")


def _serve(pipe: Connection, count: int, faulty: bool) -> None:
    async def work() -> None:
        server = _Server(count, faulty=faulty)
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 22)
        pipe.send(listener.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(work())


@asynccontextmanager
async def _served(count: int, *, faulty: bool) -> AsyncGenerator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, count, faulty), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{await asyncio.to_thread(ours.recv)}"
    finally:
        process.kill()
        process.join()


# ---------------------------------------------------------------- the clients


async def _watch(count: int) -> Row:
    ours = [await _by_us(count) for _ in range(3)]
    floor = [await _by_orjson(count) for _ in range(3)]
    library = await _by_library(few := min(count, 5000))
    return Row(
        name="watch",
        work=f"{count} watch events, nine faults among them: resets, half a line, 410, an HTML 503, empty answers",
        unit="µs/event",
        ours=median(ours) / count * 1e6,
        peers={"kubernetes_asyncio": library / few * 1e6, "orjson": median(floor) / count * 1e6},
        goals=[Goal(against="kubernetes_asyncio", least=40), Goal(against="orjson", most=1.3)],
        checked="each version was told once, none was invented, and the cache ends as the server did",
        note="processor time; the peers watch without faults, which kubernetes_asyncio does not survive; "
        f"orjson alone is {library / few / (median(floor) / count):.0f}× faster than it: 40× is not to be had",
    )


async def _by_us(count: int) -> float:
    heard: list[int] = []
    done = asyncio.Event()

    def on_change(seen: Observed) -> None:
        assert seen.entry is not None
        heard.append(int(seen.entry.version))
        if heard[-1] == OBJECTS + count:
            done.set()

    async with _served(count, faulty=True) as url, Cluster(Access(host=url)) as cluster:
        watcher = Watcher(cluster, RESOURCE, on_change)
        began = time.process_time()
        task = asyncio.create_task(watcher.run())
        async with asyncio.timeout(300):
            await done.wait()
        seconds = time.process_time() - began
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert sorted(heard) == list(range(1, OBJECTS + count + 1)), "an event was lost, repeated or invented"
    last = {f"app-{at % OBJECTS}": str(OBJECTS + 1 + at) for at in range(count - OBJECTS, count)}
    assert {key[1]: entry.version for key, entry in watcher.entries.items()} == last
    return seconds


async def _by_orjson(count: int) -> float:
    """Split the lines of the same answer and decode each: the least that a client can do that looks at objects."""
    async with _served(count, faulty=False) as url, aiohttp.ClientSession(read_bufsize=1 << 20) as session:
        began, seen, rest = time.process_time(), 0, b""
        async with session.get(f"{url}/apis/apps/v1/deployments?watch=1&resourceVersion={OBJECTS}") as response:
            while seen < count:
                lines = (rest + await response.content.readany()).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    orjson.loads(line)
                seen += len(lines)
        return time.process_time() - began


async def _by_library(count: int) -> float:
    from kubernetes_asyncio import client as typed
    from kubernetes_asyncio import watch

    client: Any = typed
    watches: Any = watch

    async with _served(count, faulty=False) as url:
        configuration: Any = client.Configuration(host=url)
        async with client.ApiClient(configuration) as api:
            stream: Any = watches.Watch().stream(
                client.AppsV1Api(api).list_namespaced_deployment, "shop", resource_version=str(OBJECTS)
            )
            began, seen = time.process_time(), 0
            async for _ in stream:
                seen += 1
                if seen == count:
                    break
            return time.process_time() - began


# ---------------------------------------------------------------- memory


def _memory(count: int) -> Row:
    """Allocated bytes per object; each object's bytes are let go at once, as those of a page are."""

    def cache() -> object:
        watcher = Watcher(cast(Cluster, None), RESOURCE, lambda _: None)
        for number in range(count):
            watcher._see(msgspec.Raw(orjson.dumps(_live(number, number + 1))))
        assert len(watcher.entries) == count
        return watcher

    def dicts() -> object:
        return [orjson.loads(orjson.dumps(_live(number, number + 1))) for number in range(count)]

    ours, plain = _allocated(cache) / count, _allocated(dicts) / count
    return Row(
        name="cache-memory",
        work=f"the cache of {count} objects",
        unit="KB/object",
        ours=ours / 1000,
        peers={"dicts": plain / 1000},
        goals=[Goal(most=1.5)],
        checked="every object is in it",
    )


def _allocated(make: Callable[[], object]) -> float:
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return float(size)
