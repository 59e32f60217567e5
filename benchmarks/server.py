"""A real API server with its etcd on loopback, and nothing else of a cluster: no controller answers what is applied."""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from gitsync.cluster.client import Cluster
from gitsync.errors import GitsyncError
from gitsync.model import Json, ObjectRef
from tests.cluster import binaries, configuration, pki


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    kubeconfig: Path
    kubectl: Path
    folder: Path
    cluster: Cluster
    etcd_port: int

    async def run(self, *arguments: str) -> str:
        """kubectl's output; ``kubectl diff`` may end with 1, which says that something differs."""
        process = await asyncio.create_subprocess_exec(
            str(self.kubectl), f"--kubeconfig={self.kubeconfig}", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        if process.returncode not in ((0, 1) if arguments[0] == "diff" else (0,)):
            raise RuntimeError(f"kubectl {' '.join(arguments[:3])}: {err.decode()[-2000:]}")
        return out.decode()

    async def namespace(self, name: str) -> str:
        await self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        return name

    async def requests(self, *resources: str) -> dict[str, int]:
        """How often each verb was asked for about these resources; watches (which last) and leases are left out."""
        answer = await self.cluster._call("GET", "/metrics", doing="reading metrics")
        found: dict[str, int] = {}
        for line in answer.body.decode().splitlines():
            if line.startswith("apiserver_request_total{") and 'verb="WATCH"' not in line:
                for resource in resources:
                    if f'resource="{resource}"' in line:
                        verb = line.partition('verb="')[2].partition('"')[0]
                        key = f"{verb} {resource}"
                        found[key] = found.get(key, 0) + int(float(line.rsplit(" ", 1)[1]))
        return found


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.asynccontextmanager
async def kubernetes() -> AsyncGenerator[Kubernetes]:
    """Started, ready, and removed with all that it holds."""
    programs = await asyncio.to_thread(binaries.find, binaries.KUBERNETES, binaries.ETCD)
    folder = Path(tempfile.mkdtemp(prefix="gitsync-bench-"))
    client, peer, secure = _free_port(), _free_port(), _free_port()
    pki.make(folder / "pki", addresses=["127.0.0.1"], names=["localhost"])
    kubeconfig = folder / "kubeconfig"
    kubeconfig.touch(mode=0o600)
    text = pki.kubeconfig(folder / "pki", "admin")
    kubeconfig.write_text(text.replace(configuration.API_SERVER, f"https://127.0.0.1:{secure}"))
    commands = {
        "etcd": [
            str(programs["etcd"]), f"--data-dir={folder / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}",
            f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}", "--unsafe-no-fsync", "--log-level=error",
        ],
        "kube-apiserver": [
            str(programs["kube-apiserver"]), f"--etcd-servers=http://127.0.0.1:{client}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={secure}",
            f"--client-ca-file={folder / 'pki/ca.crt'}", f"--tls-cert-file={folder / 'pki/serving.crt'}",
            f"--tls-private-key-file={folder / 'pki/serving.key'}", "--authorization-mode=RBAC",
            f"--service-account-key-file={folder / 'pki/accounts.pub'}",
            f"--service-account-signing-key-file={folder / 'pki/accounts.key'}",
            "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none",
            f"--cert-dir={folder / 'certs'}",
        ],
    }  # fmt: skip
    processes: list[asyncio.subprocess.Process] = []
    try:
        for name, argv in commands.items():
            with (folder / f"{name}.log").open("wb") as log:
                processes.append(await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log))
        async with await Cluster.connect(str(kubeconfig)) as cluster:
            ready = Kubernetes(
                kubeconfig=kubeconfig, kubectl=programs["kubectl"], folder=folder, cluster=cluster, etcd_port=client
            )
            await _until_ready(ready)
            yield ready
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        shutil.rmtree(folder)


async def _until_ready(server: Kubernetes) -> None:
    ref = ObjectRef(version="v1", kind="Namespace", name="default")
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(GitsyncError):
                if await server.cluster.get(ref, deadline=1) is not None:
                    return
            await asyncio.sleep(0.2)


# ---------------------------------------------------------------- what is applied


def objects(count: int, namespace: str) -> list[Json]:
    """Two fifths Deployments, one fifth Services, two fifths ConfigMaps, of ordinary size."""
    return [_object(number, namespace) for number in range(count)]


def _object(number: int, namespace: str) -> Json:
    name = f"app-{number:05}"
    labels = {"app": name, "app.kubernetes.io/part-of": "shop", "tier": "backend"}
    metadata: Json = {"name": name, "namespace": namespace, "labels": labels}
    match number % 5:
        case 0 | 1:
            container = {
                "name": "app",
                "image": f"registry.example.org/shop/app@sha256:{number:064x}",
                "ports": [{"name": "http", "containerPort": 8000}],
                "env": [{"name": f"KEY_{each}", "value": f"value {each} of {number}"} for each in range(8)],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 2},
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
            }
            template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
            spec = {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template}
            return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
        case 2:
            spec = {
                "selector": {"app": f"app-{number - 1:05}"},
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
            }
            return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
        case _:
            data = {f"key-{each}": f"value {each} of {number}" for each in range(6)}
            return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
