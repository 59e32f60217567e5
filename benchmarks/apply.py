"""The first apply of many objects: gitsync, kubectl, and the same encoded PATCHes over bare connections."""

import asyncio
import ssl
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from urllib.parse import quote

import orjson

from benchmarks.figures import Goal, Row, in_turns
from benchmarks.server import Kubernetes, kubernetes, objects
from gitsync.model import Action, Change, Json, Manifest, ObjectRef, Origin
from gitsync.plan.diff import diff
from gitsync.rollout.apply import apply_wave
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.target import WORKERS, Target
from tests.contract.client import Access

APPLICATION = ObjectRef(group="gitsync.dev", version="v1alpha1", kind="Application", namespace="default", name="bench")


async def run(scale: float) -> Sequence[Row]:
    count = max(50, int(2000 * scale))
    async with kubernetes() as server:
        names = (f"apply-{number}" for number in range(1000))
        used: list[float] = []
        spaces: dict[str, list[str]] = {"gitsync": [], "kubectl": [], "replay": [], "dry": []}

        async def fresh(who: str) -> str:
            spaces[who].append(await server.namespace(next(names)))
            return spaces[who][-1]

        async def ours() -> None:
            began = time.process_time()
            await apply_wave(_target(server), changes(count, await fresh("gitsync")))
            used.append(time.process_time() - began)

        async def with_dry_run() -> None:
            space = await fresh("dry")
            tried = await dry_run(_target(server), [change.manifest for change in changes(count, space)])
            assert not tried.refusals, tried.refusals
            await apply_wave(_target(server), changes(count, space))

        async def kubectl() -> None:
            await _kubectl(server, objects(count, await fresh("kubectl")))

        async def floor() -> None:
            await replay(server, objects(count, await fresh("replay")))

        await apply_wave(_target(server), changes(50, await server.namespace("warm-up")))
        taken = await in_turns(3, gitsync=ours, kubectl=kubectl, replay=floor, dry=with_dry_run)
        for space in chain.from_iterable(spaces.values()):
            await _check(server, objects(count, space), space)
    seconds = taken.pop("gitsync")
    return [
        Row(
            name="first-apply",
            work=f"first apply of {count} objects",
            unit="s",
            ours=seconds,
            peers={"kubectl": taken["kubectl"], "replay": taken["replay"]},
            goals=[Goal(against="kubectl", least=3), Goal(against="replay", most=1.15)],
            checked="every object of every run lives as it was sent",
            note=f"{taken['dry']:.1f} s with everything dry-run before the first write; bare PATCHes are "
            f"{taken['kubectl'] / taken['replay']:.1f}× faster than kubectl: the API server is the limit "
            f"({min(used):.1f} s of ours are spent in our process)",
        )
    ]


def changes(count: int, namespace: str) -> list[Change]:
    return [
        Change(action=Action.CREATE, manifest=Manifest(ref=ObjectRef.of(obj), object=obj, origin=Origin()))
        for obj in objects(count, namespace)
    ]


def _target(server: Kubernetes) -> Target:
    return Target(cluster=server.cluster, application=APPLICATION)


async def _kubectl(server: Kubernetes, wanted: Sequence[Json]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        Path(file.name).write_bytes(orjson.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}))
        await server.run("apply", "--server-side", "--force-conflicts", "-f", file.name)


async def replay(server: Kubernetes, wanted: Sequence[Json]) -> None:
    """The least that a client can do: encoded requests on as many connections, answers read and not looked at."""
    access = Access.read(server.kubeconfig)
    assert isinstance(access.tls, ssl.SSLContext)
    host, _, port = access.url.removeprefix("https://").partition(":")
    queue = _encoded(wanted, host)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=access.tls, limit=1 << 22)
        for request in queue:
            writer.write(request)
            await _answer(reader)
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(connection())


def _encoded(wanted: Sequence[Json], host: str) -> Iterator[bytes]:
    for obj in wanted:
        api, plural = obj["apiVersion"], f"{obj['kind'].lower()}s"
        root = f"/apis/{api}" if "/" in api else f"/api/{api}"
        place = f"{root}/namespaces/{obj['metadata']['namespace']}/{plural}/{quote(obj['metadata']['name'])}"
        body = orjson.dumps(obj)
        yield (
            f"PATCH {place}?fieldManager=gitsync&fieldValidation=Strict&force=true HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/apply-patch+yaml\r\nAccept: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


async def _answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.split()[1] in (b"200", b"201"), head
    if b"content-length:" in head:
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        return
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):  # chunked
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


async def _check(server: Kubernetes, wanted: Sequence[Json], namespace: str) -> None:
    for group, version, kind in (("apps", "v1", "Deployment"), ("", "v1", "Service"), ("", "v1", "ConfigMap")):
        resource = await server.cluster.resource(group, version, kind)
        listed = await server.cluster.list(resource, namespace=namespace)
        live = {item["metadata"]["name"]: item for item in listed.items}
        for obj in (each for each in wanted if each["kind"] == kind):
            found = live.get(obj["metadata"]["name"])
            assert found is not None, f"{kind} {obj['metadata']['name']} is missing in {namespace}"
            assert not diff(obj, found, secret=False), (obj, found)
