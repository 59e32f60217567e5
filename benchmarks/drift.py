"""Drift put back: one edit, many edits at once, a thousand one after another; beside one PATCH round trip."""

import asyncio
import time
from collections.abc import Sequence

from benchmarks.figures import Goal, Row, median, percentile
from benchmarks.installed import application, install, manifests, service, write_repository
from benchmarks.server import Kubernetes, kubernetes
from gitsync.cluster.cache import Observed, Watcher
from gitsync.model import Json, SyncStatus
from gitsync.service import Service

SPACE = "drift"


class Eye:
    """Sees when a ConfigMap has the value of git again, by a watch of its own."""

    def __init__(self, server: Kubernetes) -> None:
        self._server = server
        self._right: dict[str, asyncio.Event] = {}

    async def run(self) -> None:
        resource = await self._server.cluster.resource("", "v1", "ConfigMap")
        await Watcher(self._server.cluster, resource, self._saw, namespace=SPACE).run()

    def _saw(self, seen: Observed) -> None:
        name = seen.key[1]
        if name in self._right and b'"key":"git"' in seen.raw:
            self._right[name].set()

    async def strike(self, name: str) -> float:
        """Edit it as somebody else; seconds from the answer until it is right again."""
        body: Json = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": SPACE},
            "data": {"key": "theirs"},
        }
        self._right[name] = asyncio.Event()
        await self._server.cluster.apply(body, manager="somebody")
        began = time.perf_counter()
        # What the watch told before the edit counts for nothing: the value was right until then.
        async with asyncio.timeout(60):
            await self._right[name].wait()
        return time.perf_counter() - began


async def run(scale: float) -> Sequence[Row]:
    singles, batch, rounds = max(40, int(1000 * scale)), 100, max(2, int(10 * scale))
    count = singles // 2 + batch * rounds  # nobody is struck so often that it would be a fight
    async with kubernetes() as server:
        await server.namespace(SPACE)
        await install(server)
        objects = [_config(f"config-{number:05}") for number in range(count)]
        repository = server.folder / "repository"
        write_repository(repository, manifests(objects))
        await server.cluster.apply(application("drift", SPACE, repository))
        async with service(server) as made, made.leading():
            await _synced(made, f"{SPACE}/drift")
            eye = Eye(server)
            watching = asyncio.create_task(eye.run())
            await asyncio.sleep(1)
            trips = [await _round_trip(server, number) for number in range(300)]
            before = await server.requests("configmaps")
            one = [await eye.strike(f"config-{number % (singles // 2):05}") for number in range(singles)]
            spent = _difference(before, await server.requests("configmaps"))
            many: list[float] = []
            replayed: list[float] = []
            for number in range(rounds):
                at = singles // 2 + number * batch
                many += await asyncio.gather(*(eye.strike(f"config-{at + each:05}") for each in range(batch)))
                replayed += await asyncio.gather(*(_replay(server, f"plain-{each:05}") for each in range(batch)))
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            repaired = made.metrics.render().decode()
    done = float(
        next(line for line in repaired.splitlines() if line.startswith("gitsync_drift_repaired_total{")).split()[-1]
    )
    assert done == singles + rounds * batch, (done, singles, rounds * batch)
    assert spent == {"APPLY configmaps": 2 * singles}, spent  # the edit and its repair: nothing was read
    trip = median(trips)
    return [
        Row(
            name="drift-one",
            work=f"one edit repaired, {singles} times",
            unit="ms",
            ours=median(one) * 1000,
            peers={"PATCH": trip * 1000, "p99": percentile(one, 0.99) * 1000},
            goals=[Goal(against="PATCH", most=2.1)],
            checked="each edit was put back by one request, and by no other",
        ),
        Row(
            name="drift-p99",
            work=f"the slowest hundredth of {singles} edits",
            unit="ms",
            ours=percentile(one, 0.99) * 1000,
            peers={"PATCH": trip * 1000, "the slowest hundredth of PATCHes": percentile(trips, 0.99) * 1000},
            goals=[Goal(against="PATCH", most=6), Goal(most=1000)],
            checked="as above",
        ),
        Row(
            name="drift-hundred",
            work=f"{batch} edits at once, each until it is right again",
            unit="ms",
            ours=median(many) * 1000,
            peers={"replay": median(replayed) * 1000},
            goals=[Goal(against="replay", most=2.1)],
            checked="each was put back once",
            note=f"replay: {batch} edits at once, each followed by the PATCH that puts it back, known beforehand",
        ),
        Row(
            name="drift-hundred-p99",
            work=f"the slowest hundredth of {batch} edits at once",
            unit="ms",
            ours=percentile(many, 0.99) * 1000,
            peers={"replay": median(replayed) * 1000, "the slowest hundredth of it": percentile(replayed, 0.99) * 1000},
            goals=[Goal(against="replay", most=6)],
            checked="as above",
        ),
    ]


def _config(name: str) -> Json:
    metadata = {"name": name, "namespace": SPACE, "labels": {"tier": "bench"}}
    data = {"key": "git"} | {f"more-{number}": "of the same" for number in range(8)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def _synced(made: Service, key: str) -> None:
    async with asyncio.timeout(600):
        while True:
            said = made._reporter.said(key)
            if said is not None and said.observation.sync is SyncStatus.SYNCED:
                return
            await asyncio.sleep(0.2)


async def _round_trip(server: Kubernetes, number: int) -> float:
    """One PATCH of such an object by somebody else, of one that nobody repairs."""
    body = _config("plain") | {"data": {"key": str(number)}}
    began = time.perf_counter()
    await server.cluster.apply(body, manager="somebody")
    return time.perf_counter() - began


async def _replay(server: Kubernetes, name: str) -> float:
    """An edit by somebody, and at once the PATCH that puts it back: the seconds of the latter."""
    for value in ("theirs", "git"):
        began = time.perf_counter()
        await server.cluster.apply(_config(name) | {"data": {"key": value}}, manager="somebody")
    return time.perf_counter() - began


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
