"""One sandbox for a module's tests, with real containers of an image that is made of busybox alone."""

import asyncio
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gitsync.sandbox import Sandbox
from gitsync.sandbox.engine import find
from tests.contract.client import Access, Api

Json = dict[str, Any]
IMAGE = "localhost/gitsync/sandbox-test:1"
_APPLETS = ("sh", "cat", "echo", "env", "false", "hostname", "httpd", "id", "kill", "ls", "nc", "sleep", "test", "true",
            "wget")  # fmt: skip


@pytest.fixture(scope="session")
def image() -> str:
    """Imported into the engine's local store; left there, as the next run wants it."""
    engine = find()
    if subprocess.run([engine, "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
        busybox = Path("/bin/busybox").read_bytes()
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            entry = tarfile.TarInfo("bin/busybox")
            entry.size, entry.mode = len(busybox), 0o755
            archive.addfile(entry, io.BytesIO(busybox))
            for name in _APPLETS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
                archive.addfile(link)
            for name in ("tmp", "etc", "proc", "dev", "sys"):
                directory = tarfile.TarInfo(name)
                directory.type, directory.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                archive.addfile(directory)
        change = ["--change", "ENV PATH=/bin"]
        subprocess.run([engine, "import", *change, "-", IMAGE], input=raw.getvalue(), capture_output=True, check=True)
    return IMAGE


class Cluster:
    """A sandbox, a client of it, and kubectl."""

    def __init__(self, sandbox: Sandbox, api: Api) -> None:
        self.sandbox = sandbox
        self.api = api

    async def kubectl(self, *args: str, stdin: str = "", ok: bool = True) -> str:
        """Output of kubectl in the test's namespace; both streams."""
        process = await self.kubectl_process(*args)
        async with asyncio.timeout(60):
            out, _ = await process.communicate(stdin.encode())
        text = out.decode()
        assert (process.returncode == 0) is ok, text
        return text

    async def kubectl_process(self, *args: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            shutil.which("kubectl") or "kubectl",
            "--namespace",
            self.api.namespace,
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "KUBECONFIG": str(self.sandbox.kubeconfig)},
        )

    async def apply(self, *objects: Json) -> None:
        """Server-side apply of each object; what it says of versions and namespaces is filled in."""
        plurals = {"ConfigMap": "configmaps", "Secret": "secrets", "Service": "services", "Pod": "pods",
                   "Deployment": "deployments", "Job": "jobs", "ReplicaSet": "replicasets"}  # fmt: skip
        versions = {"Deployment": "apps/v1", "ReplicaSet": "apps/v1", "Job": "batch/v1"}
        for each in objects:
            version = versions.get(each["kind"], "v1")
            path = self.api.path(version, plurals[each["kind"]], each["metadata"]["name"])
            answer = await self.api.apply(path, {"apiVersion": version, **each}, "test", force=True)
            assert answer.code in (200, 201), answer.text

    async def get(self, plural: str, name: str, version: str = "v1") -> Json:
        return (await self.api.get(self.api.path(version, plural, name))).body

    async def pods(self, selector: str = "") -> list[Json]:
        return (await self.api.get(self.api.path("v1", "pods"), labelSelector=selector)).body["items"]

    async def until(
        self, plural: str, name: str, true: Callable[[Json], Any], version: str = "v1", seconds: float = 30
    ) -> Json:
        """The object once ``true`` of it; fails with its last state."""
        found: Json = {}
        try:
            async with asyncio.timeout(seconds):
                while True:
                    found = await self.get(plural, name, version)
                    if found.get("kind") != "Status" and true(found):
                        return found
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"{plural}/{name} never became so: {json.dumps(found)}")

    async def rolled_out(self, name: str, seconds: float = 30) -> Json:
        """Wait as ``kubectl rollout status`` does."""

        def done(value: Json) -> bool:
            status, wanted = value.get("status", {}), value["spec"]["replicas"]
            return (
                status.get("observedGeneration") == value["metadata"]["generation"]
                and status.get("updatedReplicas", 0) == status.get("replicas", 0) == wanted
                and status.get("availableReplicas", 0) == wanted
            )

        return await self.until("deployments", name, done, "apps/v1", seconds)

    async def gone(self, plural: str, name: str, version: str = "v1", seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while (await self.api.get(self.api.path(version, plural, name))).code != 404:
                await asyncio.sleep(0.05)


def deployment(name: str, image: str, script: str, *, replicas: int = 1, **container: Any) -> Json:
    """A shell script as a Deployment; ``container`` adds to its container, ``pod`` in it to the pod's spec."""
    labels = {"app": name}
    pod: Json = container.pop("pod", {})
    spec: Json = container.pop("spec", {})
    command = {"name": "main", "image": image, "command": ["sh", "-c", script]}
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [command | container]} | pod,
    }
    body = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template} | spec
    return {"kind": "Deployment", "metadata": {"name": name, "labels": labels}, "spec": body}


def service(name: str, port: int, target: int | str, app: str = "") -> Json:
    ports = [{"port": port, "targetPort": target}]
    return {"kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": app or name}, "ports": ports}}


@asynccontextmanager
async def start(directory: Path, **options: Any) -> AsyncGenerator[Sandbox]:
    async with Sandbox(data_dir=directory, egress=False, **options) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(image: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    async with start(tmp_path_factory.mktemp("sandbox")) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(sandbox: Sandbox, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    name = request.node.name.replace("_", "-").split("[")[0][-40:].strip("-")
    async with Access.read(sandbox.kubeconfig).connect(name) as api:
        yield Cluster(sandbox, api)
