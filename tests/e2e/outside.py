"""gitsync as a process of this machine, outside the cluster, following one repository.

Owns that process and the files it is given. It makes no Application: ``gitsync run REPOSITORY`` does.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster import Cluster
from tests.cluster.githost import GitHost
from tests.e2e.world import SAMPLES, Repository, eventually

GITSYNC = Path(sys.executable).with_name("gitsync")


def clone_of_sample(host: GitHost, name: str, sample: str, path: Path) -> Repository:
    """An empty repository on the host, and a clone with the files of ``manifests/<sample>``, not committed yet."""
    repository = Repository.create(host, name, path)
    repository.copy(SAMPLES / sample)
    return repository


def prepare_namespace(cluster: Cluster, host: GitHost, namespace: str) -> None:
    """What a cluster's owner sets up once: the namespace, its pull login, the login to the git host."""
    user, password = cluster.registry_auth
    cluster.kubectl("create", "namespace", namespace)
    inside = ("-n", namespace)
    cluster.kubectl(
        *inside,
        "create",
        "secret",
        "docker-registry",
        "pull",
        f"--docker-server={cluster.registry_host}",
        f"--docker-username={user}",
        f"--docker-password={password}",
    )
    login = [f"--from-literal=username={host.user}", f"--from-literal=password={host.password}"]
    cluster.kubectl(*inside, "create", "secret", "generic", "git", *login)
    cluster.kubectl(*inside, "wait", "--for=create", "serviceaccount/default", "--timeout=30s")
    cluster.kubectl(*inside, "patch", "serviceaccount", "default", "-p", '{"imagePullSecrets": [{"name": "pull"}]}')


class Follower:
    """``with Follower(cluster, work, url=…, namespace=…) as gitsync:`` — ``gitsync run URL`` with a cache of its own.

    It gets a registry and what this network needs (a kubeconfig, plain http, mirrors of Docker Hub), and no more.
    """

    def __init__(
        self,
        cluster: Cluster,
        work: Path,
        *,
        url: str,
        namespace: str,
        builder: str = "buildah",
        registry: str = "apps",
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.cluster, self.namespace, self.url = cluster, namespace, url
        self.name = url.rsplit("/", 1)[-1].removesuffix(".git")
        self.log_file = work / "gitsync.log"
        self.cache = work / "cache"
        work.mkdir(parents=True, exist_ok=True)
        login = work / "login.json"
        login.write_text(cluster.docker_config())
        host = cluster.registry_host
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("GITSYNC_", "DOCKER_", "GIT_"))
        } | {
            "KUBECONFIG": str(cluster.kubeconfig),
            "GITSYNC_REGISTRY_AUTH_FILE": str(login),
            "GITSYNC_ALLOW_INSECURE_GIT": "true",
            "GITSYNC_INSECURE_REGISTRIES": host,
            "GITSYNC_REGISTRY_MIRRORS": f"docker.io={host}",
            "GITSYNC_CACHE_DIR": str(self.cache),
            "GITSYNC_NAMESPACE": namespace,
            "GITSYNC_LISTEN": "127.0.0.1:0",
            "GITSYNC_PUBLIC_STATUS": "true",
            "GITSYNC_INTERVAL": "2",
            "GITSYNC_LOG_FORMAT": "json",
            "GITSYNC_BUILDER": builder,
            **(environment or {}),
        }
        self._argv = [str(GITSYNC), "run", url, "--registry", f"{host}/{registry}", "--secret", "git", *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Follower":
        with self.log_file.open("ab") as log:
            self._process = self.cluster.popen_in(
                self._argv, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            eventually(self._listens, "gitsync listens", seconds=60)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        code = self._stop()
        assert code == 0, f"gitsync ended with {code}:\n{self.tail()}"

    def _stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()

    def log(self) -> list[dict[str, Any]]:
        """The log so far; a line that is no JSON has it as ``raw``."""
        lines: list[dict[str, Any]] = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                lines.append({"raw": line})
        return lines

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def command(self, *arguments: str, timeout: float = 60) -> str:
        """Standard output of another gitsync command in the same environment; it has to succeed."""
        argv = [str(GITSYNC), *arguments]
        done = self.cluster.run_in(argv, env=self._environment, timeout=timeout, check=False)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.tail()}"
        return done.stdout

    def served(self, sha: str, *, seconds: float = 240) -> dict[str, Any]:
        """Wait until this commit serves; returns what ``gitsync wait -o json`` prints."""
        options = ["--revision", sha, "--timeout", str(seconds), "-o", "json"]
        return json.loads(self.command("wait", self.name, "-n", self.namespace, *options, timeout=seconds + 30))

    def history(self) -> list[dict[str, Any]]:
        """Newest first."""
        return json.loads(self.command("history", self.name, "-n", self.namespace, "-o", "json"))

    def metric(self, name: str) -> float:
        """The sum over all labels; 0 if there is none yet."""
        listening = next(line for line in self.log() if line.get("message") == "listening")
        url = f"http://{listening['host']}:{listening['port']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = [line.rsplit(" ", 1)[1] for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(map(float, found))

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"gitsync ended with {self._process.returncode}:\n{self.tail()}"
        return any(line.get("message") == "listening" for line in self.log())


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def service_url(cluster: Cluster, namespace: str, name: str, port: int = 8200) -> str:
    address = cluster.kubectl("-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")
    return f"http://{address}:{port}/"


def pods(cluster: Cluster, namespace: str, app: str) -> list[dict[str, Any]]:
    return json.loads(cluster.kubectl("-n", namespace, "get", "pods", "-l", f"app={app}", "-o", "json"))["items"]
