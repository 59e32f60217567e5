"""A repository, an Application that follows it, and gitsync itself, in a namespace of a sandbox."""

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import yaml

from gitsync.application import crd
from gitsync.cluster.client import Cluster as Client
from gitsync.cluster.record import Record, Records
from gitsync.images.buildah import Buildah
from gitsync.images.process import remove
from gitsync.model import ObjectRef
from gitsync.service import Service, serve
from gitsync.settings import Settings
from tests.registry import TestRegistry
from tests.sandbox.conftest import Cluster

Json = dict[str, Any]
APPLICATIONS = "applications"
VERSION = "gitsync.dev/v1alpha1"
_WHO = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"} | {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "Ada", "EMAIL": "ada@example.test"}.items()
}


class Project:
    """``commit`` writes files and removes those given as ``None``; the branch is what gitsync follows."""

    def __init__(self, cluster: Cluster, registry: TestRegistry, place: Path) -> None:
        self.cluster, self.registry, self.place = cluster, registry, place
        self.namespace = cluster.api.namespace
        self._service: Service | None = None
        self.repository = place / "repository"
        self.repository.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")

    # ------------------------------------------------------------------ git

    def git(self, *arguments: str) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _WHO
        return subprocess.run(
            ["git", *arguments], cwd=self.repository, env=env, capture_output=True, check=True, text=True, timeout=30
        ).stdout.strip()

    def commit(self, files: Mapping[str, Any]) -> str:
        """Contents are texts, or objects to be written as YAML. Returns the commit."""
        for name, content in files.items():
            path = self.repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                path.unlink()
            else:
                path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")
        if service := self._service:
            for key in service.parsed:
                service.wake(key)  # as a webhook would
        return self.git("rev-parse", "HEAD")

    def clean(self) -> None:
        """A builder's files may be mounted, and lie elsewhere, too."""
        layers = self.place / "cache" / "layers" / "buildah"
        for tree in (Buildah(layers).runroot, self.place):
            remove(tree)

    # ------------------------------------------------------------------ the Application

    async def follow(self, name: str = "shop", **spec: Any) -> None:
        source = {"repository": self.repository.as_uri(), "ref": {"branch": "main"}} | spec.pop("source", {})
        body = {
            "apiVersion": VERSION,
            "kind": "Application",
            "metadata": {"name": name},
            "spec": {"source": source} | spec,
        }
        answer = await self.cluster.api.apply(self._path(name), body, "person", force=True)
        assert answer.code in (200, 201), answer.text

    async def annotate(self, name: str = "shop", **annotations: str) -> None:
        """``gitsync.dev/`` goes before each."""
        named = {f"gitsync.dev/{key}": value for key, value in annotations.items()}
        await self.cluster.api.patch(self._path(name), {"metadata": {"annotations": named}})

    async def look(self) -> None:
        """Ask for a sync, and wait until everything was looked at."""
        mark = os.urandom(4).hex()
        await self.annotate(requestedAt=mark)
        await self.until(lambda status: status.get("lastHandledReconcileAt") == mark)

    async def until(self, true: Callable[[Json], Any], name: str = "shop", seconds: float = 90) -> Json:
        """The status once ``true`` of it."""
        found = await self.cluster.until(
            APPLICATIONS, name, lambda value: true(value.get("status") or {}), VERSION, seconds
        )
        return found["status"]

    async def serves(self, sha: str, name: str = "shop") -> Json:
        return await self.until(
            lambda status: str(status.get("revision")).endswith(sha) and condition(status, "Ready") == "True", name
        )

    async def refuses(self, sha: str, name: str = "shop") -> Json:
        """The status once the commit will not be tried again."""

        def refused(status: Json) -> bool:
            attempt: Json = status.get("lastAttempt") or {}
            return str(attempt.get("revision")).endswith(sha) and condition(status, "Stalled") == "True"

        return await self.until(refused, name)

    async def record(self, name: str = "shop") -> Record:
        async with await Client.connect(str(self.cluster.sandbox.kubeconfig)) as client:
            ref = ObjectRef(group="gitsync.dev", version="v1alpha1", kind="Application", namespace=self.namespace,
                            name=name)  # fmt: skip
            return await Records(client).load(ref)

    def _path(self, name: str) -> str:
        return self.cluster.api.path(VERSION, APPLICATIONS, name)

    # ------------------------------------------------------------------ what lives

    async def data(self, name: str) -> Any:
        """A ConfigMap's data; ``None`` if there is none."""
        return (await self.cluster.get("configmaps", name)).get("data")

    async def pods(self) -> dict[str, str]:
        """Name of each pod that is not going → its image."""
        return {
            pod["metadata"]["name"]: pod["spec"]["containers"][0]["image"]
            for pod in await self.cluster.pods()
            if "deletionTimestamp" not in pod["metadata"]
        }

    async def jobs(self) -> list[str]:
        """Names of those that are not going."""
        found = (await self.cluster.api.get(self.cluster.api.path("batch/v1", "jobs"))).body["items"]
        return [each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"]]

    async def events(self) -> list[str]:
        found = (await self.cluster.api.get(self.cluster.api.path("events.k8s.io/v1", "events"))).body["items"]
        return [f"{each['reason']}: {each.get('note', '')}" for each in found]

    def pushes(self) -> int:
        """Images that were pushed to the registry by name."""
        return self.registry.requests("PUT", rf"/v2/{self.namespace}/.*/manifests/")

    # ------------------------------------------------------------------ gitsync

    def settings(self) -> dict[str, Any]:
        return {
            "kubeconfig": self.cluster.sandbox.kubeconfig,
            "namespace": self.namespace,
            "registry": f"{self.registry.host}/{self.namespace}",
            "builder": "buildah",
            "allow_insecure_git": True,
            "interval": 1.0,
            "cache_dir": self.place / "cache",
            "listen": "127.0.0.1:0",
        }

    @asynccontextmanager
    async def gitsync(self) -> AsyncGenerator[Service]:
        """In this process, while the context lasts."""
        started: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        handlers, level = logging.root.handlers[:], logging.root.level
        work = asyncio.create_task(serve(Settings.load(**self.settings()), started=started.set_result))
        try:
            await asyncio.wait([work, started], return_when=asyncio.FIRST_COMPLETED, timeout=30)
            if work.done():
                await work
            self._service = started.result()
            yield self._service
        finally:
            self._service = None
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            logging.root.handlers[:], logging.root.level = handlers, level
            structlog.reset_defaults()

    async def killed_at(self, failpoint: str) -> str:
        """gitsync as a process that kills itself at a failpoint; what it logged until then."""
        flags = [part for key, value in self.settings().items() if value is not True
                 for part in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gitsync", "run", "--allow-insecure-git", *flags),
            env=os.environ | {"GITSYNC_FAILPOINT": failpoint},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(120):
                _, told = await process.communicate()
        except TimeoutError:
            pytest.fail(f"{failpoint} was never passed")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == -9, told.decode()
        return told.decode()


@contextmanager
def asked_by(service: Service) -> Generator[list[tuple[Any, ...]]]:
    """What it asks the API server meanwhile: (verb, path, …)."""
    asked: list[tuple[Any, ...]] = []
    call = service.cluster._call

    async def noted(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        return await call(*arguments, **options)

    service.cluster._call = noted
    try:
        yield asked
    finally:
        service.cluster._call = call


def condition(status: Json, kind: str) -> str:
    conditions: list[Json] = status.get("conditions") or []
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "")


def config_map(name: str, **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def teach(cluster: Cluster) -> None:
    """The sandbox knows Applications from now on."""
    definition = crd()
    name = definition["metadata"]["name"]
    path = cluster.api.path("apiextensions.k8s.io/v1", "customresourcedefinitions", name, namespace="")
    answer = await cluster.api.apply(path, definition, "person", force=True)
    assert answer.code in (200, 201), answer.text
