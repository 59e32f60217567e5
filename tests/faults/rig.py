"""One Application and the gitsync that follows it, as a process that a test may kill, freeze and start again.

A ``Case`` owns a namespace, a repository on the git host and the processes it starts; each of them follows that
namespace alone, with a cache of its own. What a case asserts about the cluster it reads itself: the Record with
gitsync's own reader, live objects from the API server, builds from the registry's log.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gitsync.application import crd
from gitsync.cluster.client import Cluster as Client
from gitsync.cluster.record import Record, Records
from gitsync.model import Json, ObjectRef
from gitsync.plan.diff import diff, removed
from tests.cluster import Cluster, OwnCluster
from tests.cluster.githost import GitHost
from tests.e2e.outside import GITSYNC, prepare_namespace
from tests.e2e.world import Repository, eventually
from tests.faults.sample import Sample

NAME = "app"
OWN = ("secrets", "events", "leases", "applications")
"""Where gitsync writes for itself: Records, Events, Leases, statuses."""
DEADLINE = 150.0
"""Seconds for what takes five on an idle machine."""


class Process:
    """A running ``gitsync run``; its log goes to a file of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", log_file: Path) -> None:
        self._process, self.log_file = process, log_file

    @property
    def text(self) -> str:
        return self.log_file.read_text(errors="replace")

    def lines(self, message: str = "") -> list[Json]:
        whole = self.text.rpartition("\n")[0]  # the last line may be half written
        found = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in found if not message or line.get("message") == message]

    def began(self, stage: str, sha: str) -> bool:
        """Whether it has begun this stage with this commit."""
        begun = self.lines("stage begins")
        return any(line["stage"] == stage and str(line["revision"]).endswith(sha) for line in begun)

    def tail(self, count: int = 25) -> str:
        """The end of its log, without each call of git."""
        told = [line for line in self.text.splitlines() if '"logger":"git.' not in line]
        return "\n".join(told[-count:])

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process; what it started must end by itself."""
        self._process.kill()
        self._process.wait()

    def stop(self, *, seconds: float = 60) -> int:
        """SIGTERM, and wait; returns the exit code."""
        if self.running:
            self._process.terminate()
        return self._process.wait(timeout=seconds)

    def struck(self, point: str, *, seconds: float = DEADLINE) -> None:
        """Wait until it was killed at the failpoint, and by nothing else."""
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{point} was not passed in {seconds:.0f} s:\n{self.tail()}") from None
        hit = f"failpoint {point.partition('@')[0].partition('=')[0]} hit" in self.text
        assert code == -signal.SIGKILL, f"{point}: ended with {code}\n{self.tail()}"
        assert hit, f"{point}: killed elsewhere\n{self.tail()}"


class Rig:
    """The cluster, the git host and the kind ``Application``; makes cases. Use as ``with``, after ``enter()``."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        assert isinstance(cluster, OwnCluster), "builds are counted in the log of the registry of a cluster of our own"
        self.cluster, self.folder = cluster, folder
        self.host = GitHost(folder / "repositories", address=cluster.node_ip, port=0)

    def __enter__(self) -> "Rig":
        self.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(crd()))
        self.host.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.host.__exit__()

    @contextlib.contextmanager
    def case(self, name: str, *, follow: bool = True, **spec: Any) -> Generator["Case"]:
        """A namespace with a repository that holds the sample, and an Application that follows it."""
        namespace = f"{name}-{secrets.token_hex(3)}"
        work = self.folder / namespace
        prepare_namespace(self.cluster, self.host, namespace)
        repository = Repository.create(self.host, f"{namespace}/{NAME}", work / "clone")
        case = Case(rig=self, namespace=namespace, repository=repository, work=work, sample=Sample(maps={"part-1": {}}))
        try:
            case.push("first")
            if follow:
                case.follow(**spec)
            yield case
        finally:
            case.end()
            self.cluster.kubectl("-n", namespace, "delete", "applications.gitsync.dev", "--all", "--wait=false")
            self.cluster.kubectl("delete", "namespace", namespace, "--wait=false", check=False)
            shutil.rmtree(work / "caches", ignore_errors=True)


@dataclass(slots=True, kw_only=True)
class Case:
    rig: Rig
    namespace: str
    repository: Repository
    work: Path
    sample: Sample
    processes: list[Process] = field(default_factory=list[Process])
    _caches: int = 0

    @property
    def cluster(self) -> OwnCluster:
        return self.rig.cluster

    # ------------------------------------------------------------------ what a user does

    def follow(self, name: str = NAME, *, sync: Json | None = None, source: Json | None = None, **spec: Any) -> None:
        """Create or change the Application."""
        followed = {"repository": self.repository.url, "ref": {"branch": "main"}, "secretRef": {"name": "git"}}
        obj = {
            "apiVersion": "gitsync.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "source": followed | (source or {}),
                "sync": {"timeout": "45s"} | (sync or {}),
            }
            | spec,
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(obj))

    def push(self, message: str = "Change something", *options: str) -> str:
        """Commit what ``sample`` says now, and push; returns the sha."""
        self.sample.write(self.repository.path)
        sha = self.repository.commit(message)
        self.repository.push(*options)
        return sha

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check)

    def gitsync(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Another gitsync command, as a person at a terminal runs it."""
        argv = [str(GITSYNC), *arguments, "-n", self.namespace]
        return self.cluster.run_in(argv, env=self._environment(""), check=check)

    # ------------------------------------------------------------------ the service

    def start(
        self, failpoint: str = "", *options: str, empty_disk: bool = False, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start gitsync, armed or not. ``empty_disk``: it finds nothing of what a former one has cached."""
        self._caches += empty_disk
        log_file = self.work / f"gitsync-{len(self.processes)}.log"
        argv = [str(GITSYNC), "run", *options]
        variables = self._environment(failpoint) | dict(environment or {})
        with log_file.open("wb") as log:
            process = self.cluster.popen_in(argv, env=variables, stdout=log, stderr=log, start_new_session=True)
        started = Process(process, log_file)
        self.processes.append(started)
        return started

    def _environment(self, failpoint: str) -> dict[str, str]:
        login = self.work / "login.json"
        login.write_text(self.cluster.docker_config())
        host = self.cluster.registry_host
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("GITSYNC_", "DOCKER_", "GIT_"))
        }
        return kept | {
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "GITSYNC_REGISTRY": f"{host}/{self.namespace}",
            "GITSYNC_REGISTRY_AUTH_FILE": str(login),
            "GITSYNC_INSECURE_REGISTRIES": host,
            "GITSYNC_REGISTRY_MIRRORS": f"docker.io={host}",
            "GITSYNC_ALLOW_INSECURE_GIT": "true",
            "GITSYNC_CACHE_DIR": str(self.work / "caches" / str(self._caches)),
            "GITSYNC_NAMESPACE": self.namespace,
            "GITSYNC_LEASE_NAMESPACE": self.namespace,
            "GITSYNC_LISTEN": "127.0.0.1:0",
            "GITSYNC_LOG_FORMAT": "json",
            "GITSYNC_LOG_LEVEL": "debug",
            "GITSYNC_BUILDER": "buildah",
            "GITSYNC_INTERVAL": "2",
            "GITSYNC_FAILPOINT": failpoint,
        }

    @property
    def last(self) -> Process:
        return self.processes[-1]

    def end(self) -> None:
        for process in self.processes:
            if process.running:
                process.kill()

    # ------------------------------------------------------------------ what is said

    def get(self, path: str) -> Json | None:
        """A GET on the API server, as its administrator; ``None`` for 404 and while it does not answer."""
        text = self.cluster.api_get(path)
        return json.loads(text) if text else None

    def application(self, name: str = NAME) -> Json:
        return self.get(f"/apis/gitsync.dev/v1alpha1/namespaces/{self.namespace}/applications/{name}") or {}

    def status(self, name: str = NAME) -> Json:
        return self.application(name).get("status") or {}

    def condition(self, kind: str, name: str = NAME) -> Json:
        found: list[Json] = self.status(name).get("conditions") or []
        return next(
            (each for each in found if each["type"] == kind), {"status": "Unknown", "message": "", "reason": ""}
        )

    def until(self, check: Callable[[], Any], what: str, *, seconds: float = DEADLINE) -> Any:
        try:
            return eventually(check, what, seconds=seconds, every=0.3)
        except AssertionError as error:
            pods = self.kubectl("get", "pods,events", "-o", "wide", check=False)[-3000:]
            status = json.dumps(self.status(), indent=1)
            raise AssertionError(f"{error}\nstatus: {status}\n{pods}\n{self.last.tail()}") from None

    def served(self, sha: str, *, seconds: float = DEADLINE, name: str = NAME) -> None:
        """Wait until this commit serves."""

        def serves() -> bool:
            status = self.status(name)
            return str(status.get("revision", "")).endswith(sha) and self._is(status, "Ready")

        self.until(serves, f"{sha[:7]} serves", seconds=seconds)

    def refused(self, sha: str, *, seconds: float = DEADLINE) -> Json:
        """Wait until this commit was refused, held or restored; returns the status."""

        def stalled() -> Json | None:
            status = self.status()
            attempt: Json = status.get("lastAttempt") or {}
            return status if self._is(status, "Stalled") and str(attempt.get("revision", "")).endswith(sha) else None

        return cast(Json, self.until(stalled, f"{sha[:7]} is refused", seconds=seconds))

    @staticmethod
    def _is(status: Json, kind: str) -> bool:
        conditions: list[Json] = status.get("conditions") or []
        return any(each["type"] == kind and each["status"] == "True" for each in conditions)

    def record(self, name: str = NAME) -> Record:
        """The Record, by gitsync's own reader."""

        async def load() -> Record:
            async with await Client.connect(str(self.cluster.kubeconfig)) as client:
                ref = ObjectRef(
                    group="gitsync.dev", version="v1alpha1", kind="Application", namespace=self.namespace, name=name
                )
                return await Records(client).load(ref)

        return asyncio.run(load())

    @property
    def good(self) -> str:
        """The commit of the last good state."""
        good = self.record().last_good
        assert good is not None
        return good.revision.sha

    # ------------------------------------------------------------------ what is

    def labelled(self, name: str = NAME) -> dict[tuple[str, str], Json]:
        """(kind, name) → live object, of everything in the namespace that names the Application as its owner."""
        found: dict[tuple[str, str], Json] = {}
        wanted = f"?labelSelector=gitsync.dev/application={name}"
        for prefix, kinds in _KINDS.items():
            for kind, plural in kinds.items():
                listed = self.get(f"{prefix}/namespaces/{self.namespace}/{plural}{wanted}")
                assert listed is not None, f"{plural} could not be listed"
                group = prefix.removeprefix("/apis/").removeprefix("/api/")
                found |= {
                    (kind, each["metadata"]["name"]): {"apiVersion": group, "kind": kind} | each
                    for each in listed["items"]
                }
        return found

    def check_whole(self, sha: str, name: str = NAME) -> None:
        """All that lives is exactly what the Record says was sent with this one commit; nothing is under way."""
        record = self.record(name)
        assert record.attempt is None, f"an attempt is left: {record.attempt.revision} {record.attempt.phase}"
        good = record.last_good
        assert good is not None
        assert good.revision.sha == sha, f"the last good state is {good.revision}"
        live = self.labelled(name)
        sent = {(str(obj["kind"]), str(obj["metadata"]["name"])): obj for obj in good.objects}
        assert set(live) == set(sent), f"only live: {set(live) - set(sent)}, only sent: {set(sent) - set(live)}"
        for key, obj in sent.items():
            differing = [*diff(obj, live[key], secret=False), *removed(obj, live[key], secret=False)]
            assert not differing, f"{key} is not as sent: {[each.path for each in differing]}"
        inventory = {(item.ref.kind, item.ref.name): item.uid for item in record.inventory}
        assert inventory == {key: obj["metadata"]["uid"] for key, obj in live.items()}

    def check_sample(self, *, version: str | None = None) -> None:
        """Settings and page are those of one version of the sample, seen through the Service."""
        wanted = version or self.sample.version
        settings = self.get(f"/api/v1/namespaces/{self.namespace}/configmaps/settings")
        assert settings is not None
        assert settings["data"]["version"] == wanted
        self.until(lambda: self.page() == wanted, f"the page is {wanted}", seconds=15)  # an old pod may still drain

    def page(self, *, timeout: float = 5) -> str:
        """What the Service answers. Raises OSError."""
        service = self.get(f"/api/v1/namespaces/{self.namespace}/services/web")
        address = service["spec"]["clusterIP"] if service else "0.0.0.0"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}:8000/", timeout=timeout) as answer:
            return answer.read(1000).decode().strip()

    @contextlib.contextmanager
    def asked(self) -> Generator[dict[str, int]]:
        """Ask the Service ten times a second meanwhile: answer, or class of the error → how often."""
        service = self.get(f"/api/v1/namespaces/{self.namespace}/services/web")
        assert service is not None
        url = f"http://{service['spec']['clusterIP']}:8000/"
        seen: dict[str, int] = {}
        stop = threading.Event()

        def ask() -> None:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            while not stop.wait(0.1):
                try:
                    with opener.open(url, timeout=10) as answer:
                        said = answer.read(1000).decode().strip()
                except OSError as error:
                    said = f"{type(error).__name__}: {error}"
                seen[said] = seen.get(said, 0) + 1

        thread = threading.Thread(target=ask, name="asking", daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()

    def pods(self) -> dict[str, str]:
        """Name → UID of the sample's pods that are not on their way out."""
        listed = self.get(f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=app=web")
        assert listed is not None
        alive = [each["metadata"] for each in listed["items"] if "deletionTimestamp" not in each["metadata"]]
        return {each["name"]: each["uid"] for each in alive}

    # ------------------------------------------------------------------ what was done

    def pushes(self) -> list[str]:
        """Tags of the images pushed so far for this case, in order."""
        text = (self.cluster.work_dir / "logs/registry.log").read_text(errors="replace")
        pattern = rf'"PUT /v2/{self.namespace}/\S+/manifests/(\S+) HTTP[^"]*" 201'
        return re.findall(pattern, text)

    def builds(self) -> int:
        """Builds by all processes of this case so far; one that finds every step done by an earlier one is none."""
        found = 0
        for process in self.processes:
            told = [str(line["line"]) for line in process.lines("build")]
            found += sum(
                step.startswith("STEP 2/") and not follows.startswith("--> Using cache")
                for step, follows in itertools.pairwise([*told, ""])
            )
        return found

    def check_built_once(self) -> None:
        """No input was built twice."""
        pushed = self.pushes()
        assert len(pushed) == len(set(pushed)), f"pushed twice: {pushed}"
        assert self.builds() == len(pushed), f"{self.builds()} builds for {len(pushed)} images"

    def writes(self, *, users: Iterable[str] = (), apart_from: Iterable[str] = OWN) -> list[tuple[str, str, str]]:
        """What gitsync has written to objects of this namespace: (user, verb, ``resource/name``), in order.

        Neither dry runs nor what it keeps for itself.
        """
        left_out = set(apart_from)
        rows: list[tuple[str, str, str]] = []
        for event in self.cluster.audit_events():
            ref = event["objectRef"]
            if (
                ref.get("namespace") == self.namespace
                and str(event.get("userAgent", "")).startswith("gitsync")
                and event["stage"] == "ResponseComplete"
                and "dryRun=" not in event["requestURI"]
                and event.get("responseStatus", {}).get("code", 500) < 300
                and ref["resource"] not in left_out
            ):
                rows.append((event["user"]["username"], event["verb"], f"{ref['resource']}/{ref.get('name', '')}"))
        wanted = set(users)
        return [row for row in rows if not wanted or row[0] in wanted]


_KINDS: Mapping[str, Mapping[str, str]] = {
    "/api/v1": {
        "ConfigMap": "configmaps",
        "Service": "services",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "ResourceQuota": "resourcequotas",
    },
    "/apis/apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "/apis/autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "/apis/batch/v1": {"Job": "jobs"},
}


@dataclass(slots=True, kw_only=True)
class Report:
    """``reports/transaction.json``: every scenario with its outcome and times, written after each."""

    path: Path
    rows: list[Json] = field(default_factory=list[Json])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def scenario(self, promise: str, name: str) -> Generator[Json]:
        """Yields what may be added to; an error is the scenario's outcome, and goes on."""
        row: Json = {"promise": promise, "scenario": name}
        began = time.monotonic()
        try:
            yield row
        except BaseException as error:
            row["outcome"] = f"failed: {str(error).splitlines()[0][:300] if str(error) else type(error).__name__}"
            raise
        else:
            row["outcome"] = "held"
        finally:
            row["seconds"] = round(time.monotonic() - began, 1)
            with self._lock:
                self.rows.append(row)
                self.path.parent.mkdir(exist_ok=True)
                self.path.write_text(json.dumps({"scenarios": self.sorted()}, indent=1) + "\n")

    def sorted(self) -> list[Json]:
        return sorted(self.rows, key=lambda each: (str(each["promise"]), str(each["scenario"])))


Scenario = Callable[[Rig, Report], None]


def seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 1)
