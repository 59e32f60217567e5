"""Objects that are in sync already: a look that finds nothing to do, and the first one of a fresh process."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Goal, Row, median
from benchmarks.installed import Controller, application, deliver, install, known, manifests, service, write_repository
from benchmarks.server import Kubernetes, kubernetes, objects
from gitsync.application import KIND, VERSION, Application
from gitsync.attempt import Target
from gitsync.cluster.client import Cluster
from gitsync.model import API_GROUP, ObjectRef, Revision
from gitsync.service import Service

SPACE = "reconcile"
RESOURCES = ("configmaps", "deployments", "services", "secrets", "applications", "namespaces", "events")


async def run(scale: float) -> Sequence[Row]:
    count = max(50, int(5000 * scale))
    async with kubernetes() as server:
        await server.namespace(SPACE)
        await install(server)
        repository = server.folder / "repository"
        write_repository(repository, manifests(objects(count, SPACE)))
        async with service(server) as made, Controller(server).running(), made.pipeline.follower:
            key = await known(made, server, application("bench", SPACE, repository))
            assert await deliver(made, key)
            await asyncio.sleep(2)  # the watches' first lists, the last status
            noop, polls, spent = await _noop(made, server, key)
        fresh = [await _fresh(server) for _ in range(3)]
        kubectl_apply, kubectl_diff = await _kubectl(server, repository)
        before = await server.requests("configmaps", "deployments", "services")
        again = await _fresh(server)
        after = await server.requests("configmaps", "deployments", "services")
    written = {key: value - before.get(key, 0) for key, value in after.items() if value > before.get(key, 0)}
    assert not [key for key in written if key.split()[0] not in ("LIST", "GET")], written
    assert again["objects"] == count, again
    prepare, raw, whole = (median([each[key] for each in fresh]) for key in ("prepare", "raw", "whole"))
    return [
        Row(
            name="no-op",
            work=f"a reconcile that finds {count} objects in sync",
            unit="ms",
            ours=median(noop) * 1000,
            peers={"kubectl apply": kubectl_apply * 1000, "asking git": median(polls) * 1000},
            goals=[Goal(most=5), Goal(against="kubectl apply", least=60)],
            checked=f"{spent} requests in {len(noop)} passes, by the API server's metrics",
            note="asking git for the newest commit, a process of git's own, is not in it but beside it",
        ),
        Row(
            name="fresh-process",
            work=f"the first look of a fresh process at {count} objects in sync",
            unit="s",
            ours=prepare,
            peers={"kubectl diff": kubectl_diff, "raw lists": raw, "with its start": whole},
            goals=[Goal(against="kubectl diff", least=60), Goal(against="raw lists", most=1.3)],
            checked="it found every object unchanged and wrote none",
            note="; ".join(f"{key} {value:.2f} s" for key, value in fresh[-1]["parts"].items())
            + ". Of that, in hundredths: health of Deployments 40, reading and splitting pages 25, digests 15, "
            "the Record and what to follow 20",
        ),
    ]


async def _noop(made: Service, server: Kubernetes, key: str) -> tuple[list[float], list[float], int]:
    """Seconds of a pass without those of asking git, those of asking git, and the requests of all passes."""
    preparing = made.pipeline._preparing
    polls: list[float] = []

    async def fetch(application: Application) -> Revision:
        began = time.perf_counter()
        try:
            return await type(preparing).fetch(preparing, application)
        finally:
            polls.append(time.perf_counter() - began)

    preparing.fetch = fetch
    before = await server.requests(*RESOURCES)
    passes: list[float] = []
    for _ in range(50):
        began = time.perf_counter()
        assert await made.pipeline.prepare(key, Target()) is None
        passes.append(time.perf_counter() - began - polls[-1])
    after = await server.requests(*RESOURCES)
    spent = sum(after.values()) - sum(before.values())
    assert not spent, {name: count - before.get(name, 0) for name, count in after.items()}
    return passes, polls, spent


async def _kubectl(server: Kubernetes, repository: Path) -> tuple[float, float]:
    """Seconds of ``apply`` and of ``diff``. The fields are gitsync's, so both force what is equal anyway."""
    folder = str(repository / "manifests")
    began = time.perf_counter()
    await server.run("diff", "--server-side", "--force-conflicts", "-f", folder)
    between = time.perf_counter()
    await server.run("apply", "--server-side", "--force-conflicts", "-f", folder)
    return time.perf_counter() - between, between - began


async def _fresh(server: Kubernetes) -> dict[str, Any]:
    """What a process of its own measured."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(server.folder), str(server.kubectl), str(server.etcd_port),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, f"the fresh process ended with {process.returncode}"
    measured: dict[str, Any] = json.loads(out.splitlines()[-1])
    return measured | {"whole": time.perf_counter() - began - measured["raw"]}


async def _child(folder: Path, kubectl: Path, etcd_port: int) -> None:
    async with await Cluster.connect(str(folder / "kubeconfig")) as cluster:
        server = Kubernetes(
            kubeconfig=folder / "kubeconfig", kubectl=kubectl, folder=folder, cluster=cluster, etcd_port=etcd_port
        )
        async with service(server) as made, made.pipeline.follower:
            live = await cluster.get(
                ObjectRef(group=API_GROUP, version=VERSION, kind=KIND, namespace=SPACE, name="bench")
            )
            assert live is not None
            parsed = Application.parse(live)
            made.parsed[parsed.key] = parsed
            for kind in (("apps", "v1", "Deployment"), ("", "v1", "Service"), ("", "v1", "ConfigMap")):
                await cluster.resource(*kind)
            raw = await _raw(cluster)
            began, used = time.perf_counter(), time.process_time()
            parts: dict[str, float] = {}
            prepared = await made.pipeline.prepare(parsed.key, Target())
            parts["until it is decided"] = time.perf_counter() - began
            for watched in made.pipeline.follower._watched.values():
                await watched.watcher.synced.wait()
            parts["processor"] = time.process_time() - used
            seconds = time.perf_counter() - began
            assert prepared is None, "something was to be done"
            drifted = made.pipeline.follower.drifted(parsed.key)
            assert not drifted, f"drift that there is not: {list(drifted)[:3]}"
            record = made.pipeline.remembered(parsed.key)
            assert record is not None
            assert record.last_good is not None
            count = len(record.last_good.objects)
    print(json.dumps({"prepare": seconds, "raw": raw, "objects": count, "parts": parts}))


async def _raw(cluster: Cluster) -> float:
    """The bytes of the same lists, page by page, not looked at but for the token of the next page."""
    began = time.perf_counter()
    for kind in (("apps", "v1", "Deployment"), ("", "v1", "Service"), ("", "v1", "ConfigMap")):
        resource = await cluster.resource(*kind)
        async for _ in cluster.pages(resource, namespace=SPACE):
            pass
    return time.perf_counter() - began


if __name__ == "__main__":
    asyncio.run(_child(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
