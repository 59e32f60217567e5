"""Many Applications at rest, and what a webhook for one of them sets in motion: ``gitsync run``, as people run it."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.figures import Goal, Row, median, timed
from benchmarks.installed import application, git, install, write_repository
from benchmarks.server import Kubernetes, kubernetes
from gitsync.application import KIND, VERSION
from gitsync.cluster.cache import Observed, Watcher
from gitsync.model import API_GROUP, Json

SECRET = "of the benchmark"
SPACES = 10
SETTLE = 45.0  # seconds: each Application looks at git once more when its rollout has ended
REST = 20.0  # seconds of rest that are measured


async def run(scale: float) -> Sequence[Row]:
    count = max(20, int(1000 * scale))
    async with kubernetes() as server:
        await install(server)
        for number in range(SPACES):
            await server.namespace(f"rest-{number}")
        many, own = server.folder / "many", server.folder / "own"
        write_repository(many, {_file(number): _config(number, "first") for number in range(count)})
        write_repository(own, {_file(0): _config(0, "first")})
        for number in range(count):
            obj = application(
                f"app-{number:04}", f"rest-{number % SPACES}", many if number else own, path=f"apps/app-{number:04}"
            )
            await server.cluster.apply(obj, manager="bench")
        async with _gitsync(server) as (pid, url):
            await _all_ready(server, count)
            await asyncio.sleep(SETTLE)
            before = _processor(pid)
            began = time.monotonic()
            await asyncio.sleep(REST)
            share = (_processor(pid) - before) / (time.monotonic() - began)
            memory = _resident(pid) / 2**20
            webhook, floor = await _webhooks(server, own, url)
    return [
        Row(
            name="rest-memory",
            work=f"{count} Applications at rest",
            unit="MiB",
            ours=memory,
            goals=[Goal(most=128)],
            checked="every Application is Ready",
            note=f"resident memory of the process; one monorepo, {SPACES} namespaces, polled every 2 h",
        ),
        Row(
            name="rest-processor",
            work=f"{count} Applications at rest",
            unit="% of a core",
            ours=share * 100,
            goals=[Goal(most=0.5)],
            checked="as above",
        ),
        Row(
            name="webhook",
            work=f"webhook → the PATCH of its commit is acknowledged, one of {count} Applications",
            unit="ms",
            ours=median(webhook) * 1000,
            peers={"git fetch and one PATCH": median(floor) * 1000},
            goals=[Goal(against="git fetch and one PATCH", most=1.5)],
            checked="the ConfigMap has what the commit says",
            note="it has a repository of its own; the commit has no image to build. Beside fetch and PATCH: a process "
            "that lists the tree, reading the live object, its dry run and the Record, which are promised",
        ),
    ]


def _file(number: int) -> str:
    return f"apps/app-{number:04}/settings.yaml"


def _config(number: int, value: str) -> str:
    data = "".join(f"  key-{each}: value {each}\n" for each in range(8))
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: app-{number:04}\ndata:\n  value: {value}\n{data}"


@contextlib.asynccontextmanager
async def _gitsync(server: Kubernetes) -> AsyncGenerator[tuple[int, str]]:
    """``gitsync run`` for every Application; its process and address."""
    secret, log = server.folder / "webhook-secret", server.folder / "gitsync.log"
    secret.write_text(SECRET)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GITSYNC_")} | {
        "KUBECONFIG": str(server.kubeconfig),
        "GITSYNC_CACHE_DIR": str(server.folder / "cache"),
        "GITSYNC_ALLOW_INSECURE_GIT": "true",
        "GITSYNC_LISTEN": "127.0.0.1:0",
        "GITSYNC_WEBHOOK_SECRET_FILE": str(secret),
        "GITSYNC_LOG_FORMAT": "json",
        "GITSYNC_INTERVAL": "7200",
    }
    with log.open("wb") as file:
        program = str(Path(sys.executable).with_name("gitsync"))
        process = await asyncio.create_subprocess_exec(program, "run", env=environment, stdout=file, stderr=file)
    try:
        yield process.pid, await _address(log)
    finally:
        process.terminate()
        await process.wait()


async def _address(log: Path) -> str:
    async with asyncio.timeout(60):
        while True:
            for line in log.read_text().splitlines():
                if '"listening"' in line:
                    said = json.loads(line)
                    return f"http://{said['host']}:{said['port']}"
            await asyncio.sleep(0.1)


async def _all_ready(server: Kubernetes, count: int) -> None:
    resource = await server.cluster.resource(API_GROUP, VERSION, KIND)
    async with asyncio.timeout(1200):
        while True:
            items = (await server.cluster.list(resource)).items
            if sum(_ready(item) for item in items) == count:
                return
            await asyncio.sleep(2)


def _ready(item: Json) -> bool:
    conditions: list[Json] = item.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _processor(pid: int) -> float:
    """Seconds of processor time, of the process and of the children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _webhooks(server: Kubernetes, repository: Path, url: str) -> tuple[list[float], list[float]]:
    news: dict[str, asyncio.Event] = {}

    def saw(seen: Observed) -> None:
        for value, event in news.items():
            if f'"value":"{value}"'.encode() in seen.raw:
                event.set()

    watcher = Watcher(server.cluster, await server.cluster.resource("", "v1", "ConfigMap"), saw)
    watching = asyncio.create_task(watcher.run())
    await watcher.synced.wait()
    clone = server.folder / "clone"
    git(server.folder, "clone", "--quiet", "--bare", repository.as_uri(), str(clone))
    ours: list[float] = []
    floor: list[float] = []
    async with aiohttp.ClientSession() as session:
        for turn in range(10):
            value = f"turn-{turn}"
            sha = write_repository(repository, {_file(0): _config(0, value)})
            news[value] = asyncio.Event()
            body = json.dumps(
                {"ref": "refs/heads/main", "after": sha, "repository": {"clone_url": repository.as_uri()}}
            )
            signature = "sha256=" + hmac.new(SECRET.encode(), body.encode(), hashlib.sha256).hexdigest()
            headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": signature, "Content-Type": "application/json"}
            began = time.perf_counter()
            async with session.post(f"{url}/webhook", data=body, headers=headers) as answer:
                assert answer.status == 202, await answer.text()
            async with asyncio.timeout(60):
                await news[value].wait()
            ours.append(time.perf_counter() - began)
            await asyncio.sleep(1)
            floor.append(await timed(lambda turn=turn: _floor(server, clone, turn)))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return ours, floor


async def _floor(server: Kubernetes, clone: Path, turn: int) -> None:
    fetch = await asyncio.create_subprocess_exec(
        "git", "-C", str(clone), "fetch", "--quiet", "origin", "+refs/heads/main:refs/heads/main"
    )
    assert await fetch.wait() == 0
    metadata: dict[str, Any] = {"name": "floor", "namespace": "rest-0"}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": f"floor {turn}"}}
    await server.cluster.apply(body, manager="bench")
