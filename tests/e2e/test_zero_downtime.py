"""Promise 4, measured: deployments under load lose no request, nor do those that fail; a careless server does.

One generator runs from before the first push until the last old pod is gone, at a fixed rate whatever becomes of the
requests: new connections, kept-alive ones, and requests that last longer than one step of a rollout. Each is tried
once. Its log stays in ``reports/``, with the figures made of it in ``reports/zero-downtime.json``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, OwnCluster, load, packages
from tests.e2e.outside import pods, service_url
from tests.e2e.world import ROOT, Project, World, eventually

pytestmark = pytest.mark.e2e

REPORTS = ROOT / "reports"
CONTROL = Path(__file__).parent / "zero_downtime" / "control.patch"
ROLLOUTS = int(os.environ.get("GITSYNC_E2E_ROLLOUTS", "20"))
CONTROL_ROLLOUTS = 5
RATE = 210  # requests a second; 200 are promised, and the clock's rounding shall not matter
LONG = 10  # seconds that a long request lasts: longer than a step of the rollout, which is checked
BASELINE = 20  # seconds of load before the first push
MOST_LATE = 5.0  # seconds by which the generator may be late at the 99th percentile
LOST = ("refused", "reset", "eof")  # eof: the connection was closed before a whole answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """From just before the push until the last pod of the version before is gone, in seconds of the wall clock."""

    version: str
    begin: float
    end: float
    step: float  # seconds between the starts of two pods of the new version

    def within(self, requests: Sequence[load.Request]) -> list[load.Request]:
        """Those that were under way at some moment of it."""
        return [each for each in requests if each.t + each.ms / 1000 >= self.begin and each.t <= self.end]


class Campaign:
    """One sample, deployed by a running gitsync and rolled again and again under load."""

    def __init__(self, project: Project, log: Path) -> None:
        self.cluster: Cluster = project.world.cluster
        self.project, self.copy, self.log = project, project.repository, log
        self.namespace = project.namespace
        self.text = "Hello Kubernetes!"
        self.rollouts: list[Rollout] = []
        self.shares: list[list[bool]] = []
        """The ready conditions in the Service's EndpointSlices, after each change."""

    def change(self, text: str) -> str:
        self.copy.edit("hello/hello.js", f"'{self.text}'", f"'{text}'")
        self.text = text
        sha = self.copy.commit(text)
        self.copy.push()
        return sha

    def roll(self, version: str) -> None:
        old = [f"pod/{pod['metadata']['name']}" for pod in pods(self.cluster, self.namespace, "hello")]
        begin = time.time()
        self.project.wait_for(self.change(f"Hello Kubernetes! {version}"), seconds=240)
        self.cluster.kubectl("-n", self.namespace, "wait", "--for=delete", *old, "--timeout=120s", timeout=130)
        end = time.time()
        new = pods(self.cluster, self.namespace, "hello")
        assert len(new) == 2
        starts = sorted(_seconds(pod["metadata"]["creationTimestamp"]) for pod in new)
        self.rollouts.append(Rollout(version=version, begin=begin, end=end, step=starts[-1] - starts[0]))

    @contextmanager
    def loaded(self) -> Generator[None]:
        url = service_url(self.cluster, self.namespace, "hello")
        argv = [sys.executable, "-m", "tests.cluster.load", "--url", url, "--rate", str(RATE), "--seconds", "3600"]
        argv += ["--mode", "new,keepalive,long", "--long-path", f"/?wait={LONG}", "--timeout", "60"]
        argv += ["--version-pattern", r"! (\S+)", "--out", str(self.log)]
        generator = self.cluster.popen_in(argv, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
        _prefer(generator.pid)
        try:
            time.sleep(BASELINE)
            yield
        finally:
            generator.send_signal(signal.SIGTERM)
            said, _ = generator.communicate(timeout=180)
            print(said.decode())
        assert generator.returncode == 0

    @contextmanager
    def watched(self, directory: Path) -> Generator[None]:
        """Look at the EndpointSlices as they change, independently of gitsync."""
        file = directory / "endpoints"
        query = '{.endpoints[*].conditions.ready}{"\\n"}'
        cluster = self.cluster
        kubectl = cluster.binary("kubectl") if isinstance(cluster, OwnCluster) else packages.program("kubectl")
        argv = [str(kubectl), f"--kubeconfig={cluster.kubeconfig}", "-n", self.namespace, "get", "endpointslices"]
        argv += ["-l", "kubernetes.io/service-name=hello", "--watch", "-o", f"jsonpath={query}"]
        with file.open("wb") as out:
            watch = self.cluster.popen_in(argv, stdout=out)
            try:
                eventually(lambda: file.stat().st_size > 0, "the EndpointSlices are seen")
                yield
            finally:
                watch.terminate()
                watch.wait(timeout=10)
        self.shares = [[word == "true" for word in line.split()] for line in file.read_text().splitlines()]

    def history(self) -> list[dict[str, Any]]:
        """As ``gitsync history`` tells it, newest first."""
        argv = [sys.executable, "-m", "gitsync", "history", self.project.key, "-o", "json"]
        environment = os.environ | {"KUBECONFIG": str(self.cluster.kubeconfig)}
        return json.loads(self.cluster.run_in(argv, env=environment, cwd=ROOT).stdout)


@contextmanager
def campaign(world: World, name: str, patch: Path | None = None) -> Generator[Campaign]:
    REPORTS.mkdir(exist_ok=True)
    with world.project("hello") as project:
        if patch is not None:
            project.repository.git("apply", str(patch))
        made = Campaign(project, REPORTS / f"{name}.jsonl.gz")
        first = made.change("Hello Kubernetes! 0")
        project.follow(interval="5s")
        project.wait_for(first, seconds=240)
        assert project.get("hello") == "Hello Kubernetes! 0\n"
        yield made


def test_twenty_rollouts_lose_no_request(world: World, tmp_path: Path) -> None:
    (REPORTS / "zero-downtime.json").unlink(missing_ok=True)  # of a former run
    with campaign(world, "zero-downtime") as hello:
        with hello.watched(tmp_path), hello.loaded():
            for number in range(1, ROLLOUTS + 1):
                hello.roll(str(number))
        history = hello.history()
    requests = load.read(hello.log)
    figures = _figures(requests, hello.rollouts)
    _report(**figures, lowest_ready_share=[each["lowestReadyShare"] for each in history[:-1]])

    _check_instrument(requests)
    failed = [each for each in requests if each.failed]
    assert not failed, f"{len(failed)} of {len(requests)} failed, the first ones: {failed[:5]}"
    versions = {each.version for each in requests}
    assert versions == {str(number) for number in range(ROLLOUTS + 1)}
    for rollout in hello.rollouts:
        inside = rollout.within(requests)
        assert len(inside) / (rollout.end - rollout.begin) >= 200
        assert {each.kind for each in inside} == set(load.KINDS)
        assert rollout.step < LONG, "the long requests are no longer than a step of the rollout"
    # the lowest share of ready endpoints, as gitsync recorded it and as anyone could see it
    assert [each["outcome"] for each in history] == ["Deployed"] * (ROLLOUTS + 1)
    assert [each["lowestReadyShare"] for each in history[:-1]] == [1.0] * ROLLOUTS
    assert min(sum(ready) for ready in hello.shares) >= 2, "a moment with fewer than the two replicas that are wanted"


#: Stage that it breaks at → file, what stands there, and what shall stand there instead.
BROKEN = {
    "images": ("hello/Dockerfile", "EXPOSE 8000", "RUN false"),
    "plan": ("manifests/service.yaml", "port: 8200", "port: 82000"),
    "restore": ("manifests/deployment.yaml", "path: /ready, port: http", "path: /ready, port: 9999"),
    "restore, after a crash": ("hello/hello.js", "const http = require('http');", "process.exit(3);"),
}


def test_a_broken_commit_costs_no_request_at_whatever_stage(world: World) -> None:
    """The workload is broken, its settings change as they should: the old pods serve as if nothing had been."""
    with campaign(world, "broken-commits") as hello:
        hello.copy.edit("manifests/deployment.yaml", "progressDeadlineSeconds: 120", "progressDeadlineSeconds: 15")
        hello.copy.write("manifests/settings.yaml", _settings("good"))
        good = hello.change("Hello Kubernetes! 1")
        hello.project.wait_for(good)
        before = hello.project.pods(app="hello")
        took: dict[str, float] = {}
        with hello.loaded():
            for stage, (file, old, new) in BROKEN.items():
                hello.copy.edit(file, old, new)
                hello.copy.write("manifests/settings.yaml", _settings(stage.partition(",")[0]))
                began, sha = time.monotonic(), hello.copy.commit(f"Break it at {stage}")
                hello.copy.push()
                status = hello.project.wait_stalled(sha, seconds=240)
                took[stage] = round(time.monotonic() - began, 1)
                assert status["lastAttempt"]["stage"] == stage.partition(",")[0], status["lastAttempt"]
                assert status["revision"].endswith(good)
                assert hello.project.pods(app="hello") == before
                assert "good" in hello.project.kubectl("get", "configmap/settings", "-o", "jsonpath={.data}")
                hello.copy.edit(file, new, old)
            hello.copy.write("manifests/settings.yaml", _settings("good"))
            hello.roll("2")
    requests = load.read(hello.log)
    failed = [each for each in requests if each.failed]
    figures = {"requests": len(requests), "failed": len(failed), "seconds_until_refused": took}
    (REPORTS / "broken-commits.json").write_text(json.dumps(figures, indent=2) + "\n")
    assert not failed, f"{len(failed)} of {len(requests)} failed, the first ones: {failed[:5]}"
    assert {each.version for each in requests} == {"1", "2"}
    _check_instrument(requests)


def _settings(state: str) -> str:
    data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"state": state}}
    return json.dumps(data) + "\n"


def test_the_same_load_sees_a_server_that_does_not_drain_fail(world: World) -> None:
    """Without it the test above would prove nothing: it differs in probe, preStop and SIGTERM handling alone."""
    with campaign(world, "zero-downtime-control", CONTROL) as hello, hello.loaded():
        for number in range(1, CONTROL_ROLLOUTS + 1):
            hello.roll(str(number))
    requests = load.read(hello.log)
    _check_instrument(requests)
    rows: list[dict[str, Any]] = []
    for rollout in hello.rollouts:
        inside = rollout.within(requests)
        lost = [each for each in inside if each.error in LOST]
        errors = {kind: dict(Counter(each.error for each in lost if each.kind == kind)) for kind in load.KINDS}
        rows.append({"requests": len(inside), "failed": len(lost), "errors": errors})
    _report(negative_control_failed=[each["failed"] for each in rows], negative_control=rows)
    assert all(each["failed"] >= 0.01 * each["requests"] for each in rows), rows


def _prefer(pid: int) -> None:
    """An instrument that waits for a processor measures the waiting. Needs root; else it stays as it is."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, pid, -15)
        with contextlib.suppress(FileNotFoundError):  # where sessions are scheduled as groups, a nice value is theirs
            Path(f"/proc/{pid}/autogroup").write_text("-15")


def _check_instrument(requests: Sequence[load.Request]) -> None:
    """A generator that was starved proves nothing, neither about those that failed nor about the others."""
    late = sorted(each.late for each in requests)[int(0.99 * len(requests))] / 1000
    assert late < MOST_LATE, (
        f"1% of the requests were sent {late:.1f} s late or later: too busy a machine to measure on"
    )


def _figures(requests: Sequence[load.Request], rollouts: Sequence[Rollout]) -> dict[str, Any]:
    short = [each for each in requests if each.kind != "long"]
    rest = [each for each in short if each.t < rollouts[0].begin]
    rolling = [each for rollout in rollouts for each in rollout.within(short)]
    return {
        "rate": RATE,
        "rollouts": len(rollouts),
        "requests": {
            "all": len(requests),
            "in_rollout_windows": sum(any(rollout.within([each]) for rollout in rollouts) for each in requests),
            "per_kind": dict(Counter(each.kind for each in requests)),
            "per_version": dict(Counter(each.version for each in requests)),
        },
        "failed": sum(each.failed for each in requests),
        "errors": dict(Counter(each.error or str(each.status) for each in requests if each.failed)),
        "p99_ms": load.percentile(rolling, 0.99),
        "baseline_p99_ms": load.percentile(rest, 0.99),
        "late_p99_ms": sorted(each.late for each in rolling)[int(0.99 * len(rolling))],
        "rollout_seconds": [round(each.end - each.begin, 1) for each in rollouts],
        "longest_step_seconds": max(each.step for each in rollouts),
        "long_request_seconds": LONG,
    }


def _report(**figures: Any) -> None:
    """Add to ``reports/zero-downtime.json``."""
    file = REPORTS / "zero-downtime.json"
    former: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(former | figures, indent=2) + "\n")


def _seconds(stamp: str) -> float:
    return time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
