"""The world of the end-to-end tests: a cluster with gitsync installed by ``kubectl apply -k deploy/``, and a git host.

One world per run, made by the session fixture ``world``. A test makes a project in it: a namespace prepared as
deploy/README.md says, a repository on the git host, and an Application that follows it.

    with world.project("hello") as hello:           # the repository is manifests/hello
        hello.follow()                              # creates the Application
        hello.wait_for(hello.repository.head)       # until that commit serves
        assert hello.get("hello") == "Hello Kubernetes!\\n"

What the base in deploy/ leaves to its user (registry, mirrors, secrets) is given by an overlay that is written here.
Nothing of a project is left but its git repository and its images, which are below the namespace's name.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster import Cluster, ClusterError, OwnCluster, builds
from tests.cluster.githost import GitHost

Json = dict[str, Any]
T = TypeVar("T")

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "manifests"
IMAGE = "kubetm/gitsync:0.1.0"
"""gitsync's own image, under the name that deploy/ has."""
SERVICE = "gitsync"
"""The namespace and the Deployment of the service."""
WEBHOOK_SECRET = "correct horse battery"
API_TOKEN = "e2e-api-token"
DEADLINE = 180.0
"""Seconds that a rollout may take on two busy cores; a test that needs less says so."""


def build_image(cluster: Cluster | None = None) -> None:
    """gitsync's own image by deploy/Dockerfile, from the lock file with hashes. A minute once; then layers are kept."""
    builds.build(cluster, ROOT, IMAGE, dockerfile=ROOT / "deploy/Dockerfile")


class World:
    """The cluster, the git host and the service. Use as ``with``, after ``cluster.enter()``."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.host = GitHost(folder / "repositories", address=cluster.node_ip, port=3000)
        self._digest = ""

    def __enter__(self) -> "World":
        build_image(self.cluster)
        self._digest = builds.push(self.cluster, IMAGE)
        self.host.__enter__()
        try:
            self.install()
        except BaseException:
            self.host.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.host.__exit__()

    # ------------------------------------------------------------------ the service

    def install(self, settings: Mapping[str, str] | None = None) -> None:
        """``kubectl apply -k`` on deploy/ with an overlay, and wait until the service leads. May be called again."""
        overlay = self._overlay(settings or {})
        for namespace in (SERVICE, "gitsync-buildkit"):
            self._create("namespace", namespace)
        self._create("secret", "generic", "gitsync", f"--from-literal=api-token={API_TOKEN}",
                     f"--from-literal=webhook-secrets={WEBHOOK_SECRET}", namespace=SERVICE)  # fmt: skip
        self.create_pull_secret(SERVICE, "gitsync-registry")
        self.cluster.kubectl("apply", "-k", str(overlay))
        for namespace, name in (("gitsync-buildkit", "buildkitd"), (SERVICE, SERVICE)):
            try:
                self.rollout(namespace, name)
            except ClusterError as error:
                raise ClusterError(f"{error}\n{self.describe(namespace, name)}") from None

    def _overlay(self, settings: Mapping[str, str]) -> Path:
        """deploy/ beside a kustomization that says what is particular here, as a user's own repository would have."""
        home = self.folder / "install"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(ROOT / "deploy", home / "deploy")
        registry = self.cluster.registry_host
        values = {
            "GITSYNC_REGISTRY": registry,
            "GITSYNC_INSECURE_REGISTRIES": registry,
            "GITSYNC_REGISTRY_MIRRORS": f"docker.io={registry}",
            "GITSYNC_ALLOW_INSECURE_GIT": "true",
            "GITSYNC_API_TOKEN_FILE": "/etc/gitsync/api-token",
            "GITSYNC_WEBHOOK_SECRET_FILE": "/etc/gitsync/webhook-secrets",
        } | dict(settings)
        buildkitd = (home / "deploy/buildkitd.toml").read_text()
        buildkitd += f'[registry."docker.io"]\n  mirrors = ["{registry}"]\n[registry."{registry}"]\n  http = true\n'
        kustomization: Json = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": ["../deploy"],
            "images": [{"name": IMAGE.partition(":")[0], "digest": self._digest}],  # this tree's, on a kept cluster too
            "configMapGenerator": [
                {"name": "gitsync-settings", "namespace": SERVICE, "behavior": "merge",
                 "literals": [f"{name}={value}" for name, value in values.items()]},
                {"name": "buildkitd", "namespace": "gitsync-buildkit", "behavior": "merge",
                 "files": ["buildkitd.toml"]},
            ],
        }  # fmt: skip
        (home / "overlay").mkdir()
        (home / "overlay/kustomization.yaml").write_text(json.dumps(kustomization))
        (home / "overlay/buildkitd.toml").write_text(buildkitd)
        return home / "overlay"

    @property
    def address(self) -> str:
        """``http://<ClusterIP>:8080`` of the service."""
        return f"http://{self.service_ip(SERVICE, SERVICE)}:8080"

    def metrics(self) -> dict[str, float]:
        """The series of /metrics by their text: ``gitsync_webhooks_total{outcome="accepted",provider="github"}``."""
        request = urllib.request.Request(f"{self.address}/metrics", headers={"Authorization": f"Bearer {API_TOKEN}"})
        text = _open(request, timeout=10)[1]
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        """POST to the service; the status of its answer."""
        request = urllib.request.Request(f"{self.address}{path}", data=body, headers=dict(headers), method="POST")
        return _open(request, timeout=10)[0]

    def log(self) -> list[Json]:
        """What the running pod of the service has logged."""
        text = self.cluster.kubectl("-n", SERVICE, "logs", f"deployment/{SERVICE}", "--tail=-1")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    # ------------------------------------------------------------------ the cluster

    def rollout(self, namespace: str, name: str, *, seconds: float = DEADLINE) -> None:
        argv = ["-n", namespace, "rollout", "status", f"deployment/{name}", f"--timeout={seconds:.0f}s"]
        self.cluster.kubectl(*argv, timeout=seconds + 10)

    def describe(self, namespace: str, name: str) -> str:
        """What a person would look at when a Deployment does not come up."""
        parts = [
            self.cluster.kubectl("-n", namespace, *words, check=False)
            for words in (["get", "pods", "-o", "wide"], ["get", "events"], ["logs", f"deployment/{name}", "--tail=40"])
        ]
        return "\n".join(parts)

    def service_ip(self, namespace: str, name: str) -> str:
        return self.cluster.kubectl("-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")

    def _create(self, *words: str, namespace: str = "") -> None:
        """Create or update."""
        scope = ["-n", namespace] if namespace else []
        text = self.cluster.kubectl(*scope, "create", *words, "--dry-run=client", "-o", "yaml")
        self.cluster.kubectl(*scope, "apply", "-f", "-", stdin=text)

    def create_pull_secret(self, namespace: str, name: str) -> None:
        """The login to the registry, as ``kubectl create secret docker-registry`` makes it."""
        user, password = self.cluster.registry_auth
        self._create("secret", "docker-registry", name, f"--docker-server={self.cluster.registry_host}",
                     f"--docker-username={user}", f"--docker-password={password}", namespace=namespace)  # fmt: skip

    def pushes(self, prefix: str) -> list[str]:
        """Images pushed to repositories below a prefix, as ``repository:tag`` in the order of their arrival."""
        if not isinstance(self.cluster, OwnCluster):
            raise ClusterError("the registry's log: the registry of this cluster is not ours")
        text = (self.cluster.work_dir / "logs/registry.log").read_text(errors="replace")
        found: list[tuple[str, str]] = re.findall(r'"PUT /v2/(\S+)/manifests/(\S+) HTTP[^"]*" 201', text)
        return [f"{name}:{tag}" for name, tag in found if name.startswith(prefix.strip("/") + "/")]

    # ------------------------------------------------------------------ projects

    @contextlib.contextmanager
    def project(self, sample: str = "", *, name: str = "", branch: str = "main") -> Generator["Project"]:
        """A namespace of its own with an empty repository, or one made of ``manifests/<sample>`` (pushed)."""
        name = name or sample or "project"
        namespace = f"{name}-{secrets.token_hex(3)}"
        clone = self.folder / "clones" / namespace
        repository = Repository.create(self.host, f"{namespace}/{name}", clone, branch=branch)
        if sample:
            repository.copy(SAMPLES / sample)
            repository.commit(f"Add {sample}")
            repository.push()
        self.prepare(namespace)
        project = Project(world=self, name=name, namespace=namespace, repository=repository)
        try:
            yield project
        finally:
            remove = ["-n", namespace, "delete", "applications.gitsync.dev", "--all", "--wait=false"]
            self.cluster.kubectl(*remove, check=False)
            self.cluster.kubectl("delete", "namespace", namespace, "--wait=false", check=False)

    def prepare(self, namespace: str) -> None:
        """What deploy/README.md asks for in a namespace that holds Applications, and the logins of this world."""
        kustomization = {"namespace": namespace, "resources": ["../../deploy/namespace"]}
        home = self.folder / "install/namespaces" / namespace
        home.mkdir(parents=True)
        (home / "kustomization.yaml").write_text(json.dumps(kustomization))
        self.cluster.kubectl("create", "namespace", namespace)
        self.cluster.kubectl("apply", "-k", str(home))
        self.create_pull_secret(namespace, "registry")
        self._create("secret", "generic", "git", f"--from-literal=username={self.host.user}",
                     f"--from-literal=password={self.host.password}", namespace=namespace)  # fmt: skip
        pull = json.dumps({"imagePullSecrets": [{"name": "registry"}]})
        argv = ["-n", namespace, "patch", "serviceaccount", "default", "-p", pull]
        eventually(lambda: self.cluster.kubectl(*argv, check=False), f"the service account default of {namespace}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository on the git host and a clone of it."""

    path: Path
    url: str
    name: str
    branch: str

    @classmethod
    def create(cls, host: GitHost, name: str, path: Path, *, branch: str = "main") -> "Repository":
        host.create(name, branch=branch)
        path.mkdir(parents=True)
        made = cls(path=path, url=host.url(name), name=name, branch=branch)
        made.git("init", "--quiet", f"--initial-branch={branch}")
        made.git("remote", "add", "origin", made.url.replace("://", f"://{host.user}:{host.password}@"))
        return made

    def git(self, *arguments: str) -> str:
        home = {"HOME": str(self.path), "PATH": os.environ["PATH"], "GIT_TERMINAL_PROMPT": "0"}
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
        argv = ["git", *identity, "-C", str(self.path), *arguments]
        done = subprocess.run(argv, env=home, capture_output=True, text=True, timeout=60)
        assert not done.returncode, f"git {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def copy(self, folder: Path) -> None:
        shutil.copytree(folder, self.path, dirs_exist_ok=True)

    def write(self, file: str, text: str) -> None:
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        (self.path / file).write_text(text)

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that the file must have."""
        text = (self.path / file).read_text()
        assert old in text, f"{file} has no {old!r}"
        self.write(file, text.replace(old, new))

    def commit(self, message: str = "Change something") -> str:
        """Commit everything; returns the sha."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.head

    def push(self, *options: str) -> None:
        self.git("push", "--quiet", *options, "origin", self.branch)

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A namespace, its repository and its Application, which all live as long as the test."""

    world: World
    name: str
    namespace: str
    repository: Repository

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def images(self) -> str:
        """Prefix of this project's images on the registry; no other project finds them."""
        return f"{self.world.cluster.registry_host}/{self.namespace}"

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.world.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check)

    def follow(
        self, *, interval: str = "5s", sync: Json | None = None, source: Json | None = None, **spec: Any
    ) -> None:
        """Create or change the Application. Further words are fields of its spec."""
        followed: Json = {
            "repository": self.repository.url,
            "ref": {"branch": self.repository.branch},
            "secretRef": {"name": "git"},
            "interval": interval,
        }
        obj: Json = {
            "apiVersion": "gitsync.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "source": followed | (source or {}),
                "registry": {"repository": self.images, "secretRef": {"name": "registry"}},
                "sync": {"timeout": "1m"} | (sync or {}),
            }
            | spec,
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(obj))

    # ------------------------------------------------------------------ what is said

    def application(self) -> Json:
        """As it is in the cluster; empty while the API server does not answer."""
        path = f"/apis/gitsync.dev/v1alpha1/namespaces/{self.namespace}/applications/{self.name}"
        return json.loads(self.world.cluster.api_get(path) or "{}")

    def status(self) -> Json:
        return self.application().get("status", {})

    def condition(self, kind: str) -> Json:
        """One of Ready, Reconciling and Stalled; its status is Unknown before the first report."""
        return _condition(self.status(), kind)

    def wait_for(self, sha: str, *, seconds: float = DEADLINE) -> Json:
        """Until this commit serves; returns the status. Fails at once if that commit was refused or restored."""

        def serves() -> Json | None:
            status = self.status()
            ready, stalled = (_condition(status, kind)["status"] == "True" for kind in ("Ready", "Stalled"))
            attempted = str(status.get("lastAttempt", {}).get("revision", ""))
            assert not (stalled and attempted.endswith(sha)), f"{sha} did not get through: {_pretty(status)}"
            return status if ready and str(status.get("revision", "")).endswith(sha) else None

        return self._until(serves, f"{sha} serves", seconds)

    def wait_stalled(self, sha: str, *, seconds: float = DEADLINE) -> Json:
        """Until this commit was refused or restored; returns the status."""

        def stalled() -> Json | None:
            status = self.status()
            attempted = str(status.get("lastAttempt", {}).get("revision", ""))
            return status if _condition(status, "Stalled")["status"] == "True" and attempted.endswith(sha) else None

        return self._until(stalled, f"{sha} is refused", seconds)

    def _until(self, check: Callable[[], Json | None], what: str, seconds: float) -> Json:
        try:
            return eventually(check, what, seconds=seconds, every=0.3)
        except AssertionError as error:
            if "not after" not in str(error):
                raise
            said = "\n".join(json.dumps(line) for line in self.log()[-20:])
            pods = self.kubectl("get", "pods", "-o", "wide", check=False)
            raise AssertionError(f"{error}\nstatus: {_pretty(self.status())}\nlog: {said}\n{pods}") from None

    def events(self) -> list[Json]:
        """Events about the Application, oldest first: ``reason``, ``type``, ``note``."""
        listed = json.loads(self.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
        own = [each for each in listed if each["regarding"].get("kind") == "Application"]
        return sorted(own, key=lambda each: each["metadata"]["creationTimestamp"])

    def log(self) -> list[Json]:
        """Lines of the service's log about this Application."""
        return [line for line in self.world.log() if line.get("application") == self.key]

    # ------------------------------------------------------------------ what runs

    def get(self, service: str, path: str = "/", *, port: int = 8200, address: str = "") -> str:
        """The body of a GET through a Service: its ClusterIP, or another address of it. Raises OSError."""
        address = address or self.world.service_ip(self.namespace, service)
        return _open(urllib.request.Request(f"http://{address}:{port}{path}"), timeout=10)[1]

    def pods(self, **labels: str) -> dict[str, str]:
        """Name → UID of the pods with these labels that are not on their way out."""
        wanted = ",".join(f"{name}%3D{value}" for name, value in labels.items())
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector={wanted}"
        answer = eventually(lambda: self.world.cluster.api_get(path), "the API server answers")
        listed: list[Json] = json.loads(answer)["items"]
        alive = [each["metadata"] for each in listed if "deletionTimestamp" not in each["metadata"]]
        return {each["name"]: each["uid"] for each in alive}

    def pushes(self) -> list[str]:
        """Images of this project that were pushed so far, as ``repository:tag``."""
        return self.world.pushes(self.namespace)

    def writes(self) -> list[tuple[str, str]]:
        """What gitsync has written in this namespace as the deploying account: verb and ``resource/name``, in order.

        Dry runs and refused writes are not in it; the Record and the status are written as the service itself.
        """
        deployer = f"system:serviceaccount:{self.namespace}:gitsync-deployer"
        return [
            (event["verb"], f"{event['objectRef']['resource']}/{event['objectRef'].get('name', '')}")
            for event in self.world.cluster.audit_events()
            if event.get("impersonatedUser", {}).get("username") == deployer
            and "dryRun=" not in event["requestURI"]
            and event.get("responseStatus", {}).get("code", 500) < 300
            and event["stage"] == "ResponseComplete"
        ]


# ---------------------------------------------------------------- waiting and asking


def eventually(check: Callable[[], T | None], what: str, *, seconds: float = 30.0, every: float = 0.1) -> T:
    """The first true answer of ``check``; fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not after {seconds:.0f} s"
        time.sleep(every)


def _condition(status: Json, kind: str) -> Json:
    conditions: list[Json] = status.get("conditions", [])
    return {each["type"]: each for each in conditions}.get(kind, {"status": "Unknown", "message": ""})


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1)


def _open(request: urllib.request.Request, *, timeout: float) -> tuple[int, str]:
    """Status and text of an answer, whatever its status; no proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AnyStatus())
    with opener.open(request, timeout=timeout) as answer:
        return answer.status, answer.read(1 << 24).decode()


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: object, response: Any) -> Any:
        return response
