"""gitsync, with all its parts but the network of a git host: Applications of one local repository on the API server."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.server import Kubernetes
from gitsync.application import API_VERSION, KIND, VERSION, Application, crd
from gitsync.attempt import Handover, Target
from gitsync.cluster.cache import Observed, Watcher
from gitsync.errors import GitsyncError
from gitsync.model import API_GROUP, Json, ObjectRef
from gitsync.report.log import configure
from gitsync.report.redact import Redactor
from gitsync.service import Service, assemble
from gitsync.settings import Settings


def write_repository(folder: Path, files: Mapping[str, str], message: str = "State") -> str:
    """Commit the files to a repository there (a new one, or one more commit); returns the sha."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    argv = ["git", *identity, "-C", str(folder), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def manifests(objects: list[Json], per_file: int = 25) -> dict[str, str]:
    """Files of YAML documents, as people keep them."""
    return {
        f"manifests/part-{at // per_file:04}.yaml": yaml.dump_all(
            objects[at : at + per_file], Dumper=yaml.CSafeDumper, sort_keys=False
        )
        for at in range(0, len(objects), per_file)
    }


def application(name: str, namespace: str, repository: Path, *, interval: str = "2h", path: str = "manifests") -> Json:
    source = {"repository": repository.as_uri(), "ref": {"branch": "main"}, "interval": interval, "path": path}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"source": source}}


@contextlib.asynccontextmanager
async def service(server: Kubernetes, *, cache: str = "cache") -> AsyncGenerator[Service]:
    """All parts, as ``gitsync run`` makes them. Nothing is followed yet."""
    settings = Settings.load(
        kubeconfig=server.kubeconfig,
        cache_dir=server.folder / cache,
        allow_insecure_git=True,
        registry="127.0.0.1:1/bench",
    )
    redactor = Redactor()
    configure(redactor=redactor, level="error")
    async with assemble(settings, server.cluster, redactor) as made:
        yield made


async def install(server: Kubernetes) -> None:
    """Teach the API server the kind."""
    await server.cluster.apply(crd())
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(GitsyncError):
                await server.cluster.resource(API_GROUP, VERSION, KIND)
                return
            await asyncio.sleep(0.1)


async def known(made: Service, server: Kubernetes, obj: Json) -> str:
    """Create the Application and let the pipeline know it, without a watch; returns its key."""
    live = (await server.cluster.apply(obj)).object
    parsed = Application.parse(live)
    made.parsed[parsed.key] = parsed
    return parsed.key


async def deliver(made: Service, key: str) -> bool:
    """One pass of the pipeline, as the scheduler would make it. False: nothing was to be applied."""
    prepared = await made.pipeline.prepare(key, Target())
    if prepared is None:
        return False
    outcome = await made.pipeline.apply(key, prepared, Handover())
    assert outcome.delivered, outcome
    return True


@dataclass(slots=True)
class Controller:
    """Says of every Deployment (they want no pods) that it is as wanted: the one thing a controller is needed for."""

    server: Kubernetes

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        seen: set[tuple[str, str]] = set()

        def observe(observed: Observed) -> None:
            if observed.entry is not None and observed.key not in seen:
                seen.add(observed.key)
                queue.put_nowait(observed.key)

        async def tell() -> None:
            while True:
                namespace, name = await queue.get()
                metadata = {"name": name, "namespace": namespace}
                status = {"observedGeneration": 1, "conditions": [{"type": "Available", "status": "True"}]}
                body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "status": status}
                await self.server.cluster.apply(body, manager="deployment-controller", subresource="status")

        resource = await self.server.cluster.resource("apps", "v1", "Deployment")
        watcher = Watcher(self.server.cluster, resource, observe)
        tasks = [asyncio.create_task(watcher.run()), *(asyncio.create_task(tell()) for _ in range(8))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def ref_of(kind: str, namespace: str, name: str) -> ObjectRef:
    group = "apps" if kind == "Deployment" else ""
    return ObjectRef(group=group, version="v1", kind=kind, namespace=namespace, name=name)
