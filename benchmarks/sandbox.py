"""What the sandbox costs at 2,000 objects: list, server-side applies per second, memory. Writes reports/sandbox.json.

``python -m benchmarks.sandbox [REPORT]``. Client and server are separate processes, as in use.
"""

import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from gitsync.sandbox import Sandbox
from tests.contract.client import Access

OBJECTS, WORKERS = 2_000, 16


def _serve(pipe: Connection, directory: str) -> None:
    async def work() -> None:
        async with Sandbox(data_dir=Path(directory), engine="none") as sandbox:
            pipe.send(str(sandbox.kubeconfig))
            await asyncio.get_running_loop().run_in_executor(None, pipe.recv)

    asyncio.run(work())


def _deployment(number: int, image: str = "registry.test/app:1") -> dict[str, Any]:
    labels = {"app": f"app-{number}", "gitsync.dev/application": "bench"}
    container = {
        "name": "app",
        "image": image,
        "env": [{"name": "NUMBER", "value": str(number)}],
        "ports": [{"containerPort": 8000, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"app-{number}", "labels": labels},
        "spec": {
            "replicas": 0,
            "paused": True,
            "selector": {"matchLabels": {"app": f"app-{number}"}},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def _memory(pid: int) -> float:
    """Resident memory in MB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def measure(kubeconfig: Path, pid: int) -> dict[str, Any]:
    """Figures of one run against a server that has nothing yet."""
    async with Access.read(kubeconfig).connect("bench") as api:

        async def apply_all(image: str) -> float:
            numbers = iter(range(OBJECTS))

            async def worker() -> None:
                for number in numbers:
                    path = api.path("apps/v1", "deployments", f"app-{number}")
                    answer = await api.apply(path, _deployment(number, image), "bench", force=True)
                    assert answer.code in (200, 201), answer.text

            started = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(WORKERS)))
            return OBJECTS / (time.perf_counter() - started)

        idle = _memory(pid)
        created = await apply_all("registry.test/app:1")
        unchanged = await apply_all("registry.test/app:1")
        changed = await apply_all("registry.test/app:2")
        assert len((await api.get(api.path("apps/v1", "deployments"))).body["items"]) == OBJECTS
        lists: list[float] = []
        size = 0
        async with aiohttp.ClientSession() as session:
            for _ in range(20):
                started = time.perf_counter()
                async with session.get(api.url + api.path("apps/v1", "deployments")) as response:
                    size = len(await response.read())
                lists.append((time.perf_counter() - started) * 1000)
        return {
            "objects": OBJECTS,
            "applies_per_second": {"create": round(created), "unchanged": round(unchanged), "change": round(changed)},
            "list_ms": {"median": round(statistics.median(lists), 1), "max": round(max(lists), 1)},
            "list_mb": round(size / 1e6, 1),
            "memory_mb": {"idle": round(idle), "after": round(_memory(pid))},
        }


def main() -> None:
    report = Path(sys.argv[1] if len(sys.argv) > 1 else "reports/sandbox.json")
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as directory:
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, directory))
        server.start()
        try:
            figures = asyncio.run(measure(Path(ours.recv()), server.pid or os.getpid()))
        finally:
            ours.send("stop")
            server.join(10)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    print(report.read_text(), end="")


if __name__ == "__main__":
    main()
