"""The ground that the other tests stand on: a pod runs, a Service answers, writes are seen, nothing is left behind."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, OwnCluster, load
from tests.cluster.githost import Failure, GitHost, Push

pytestmark = pytest.mark.e2e

_ROOT = Path(__file__).parents[2]


def _page(version: str) -> list[dict[str, Any]]:
    """A busybox web server that says its version, behind a Service."""
    probe = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    container = {
        "name": "page",
        "image": "busybox",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", f"echo serving {version}; echo {version} >/tmp/index.html; httpd -f -p 8000 -h /tmp"],
        "readinessProbe": probe,
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
    }
    labels = {"app": "page"}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "page"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 5},
                },
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "page"},
            "spec": {"selector": labels, "ports": [{"port": 8200, "targetPort": 8000}]},
        },
    ]


def _roll(cluster: Cluster, namespace: str, version: str) -> None:
    objects = {"apiVersion": "v1", "kind": "List", "items": _page(version)}
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(objects))
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/page", "--timeout=90s")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"smoke-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def _url(cluster: Cluster, namespace: str) -> str:
    address = cluster.kubectl("-n", namespace, "get", "service", "page", "-o", "jsonpath={.spec.clusterIP}")
    return f"http://{address}:8200/"


def test_a_service_answers_through_a_rollout_and_the_load_tells_an_outage(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    _roll(cluster, namespace, "v1")
    log = tmp_path / "log.jsonl.gz"
    argv = [sys.executable, "-m", "tests.cluster.load", "--url", _url(cluster, namespace), "--rate", "50"]
    argv += ["--seconds", "90", "--mode", "new,long", "--hold", "2", "--timeout", "5", "--out", str(log)]
    generator = cluster.popen_in(argv, cwd=_ROOT, stdout=subprocess.PIPE)
    try:
        _roll(cluster, namespace, "v2")
        rolled = time.time()
        time.sleep(6)  # until the old pods are gone, and a little
        emptied = time.time()
        cluster.kubectl("-n", namespace, "scale", "deployment/page", "--replicas=0")
        cluster.kubectl("-n", namespace, "wait", "--for=delete", "pod", "-l", "app=page", "--timeout=60s")
        gone = time.time()
        time.sleep(1)
    finally:
        generator.send_signal(signal.SIGTERM)
        generator.communicate(timeout=30)
    requests = load.read(log)
    before = [each for each in requests if each.t < emptied - 3]
    assert {each.version for each in before} == {"v1", "v2"}
    assert [each for each in before if each.failed] == []
    assert {each.error for each in requests if each.t > gone + 0.5} == {"refused"}
    assert {each.kind for each in requests if each.t < rolled} == {"new", "long"}


def test_logs_exec_and_names(cluster: Cluster, namespace: str) -> None:
    _roll(cluster, namespace, "v1")
    assert "serving v1" in cluster.kubectl("-n", namespace, "logs", "deployment/page")
    inside = cluster.kubectl("-n", namespace, "exec", "deployment/page", "--", "wget", "-qO-", "http://page:8200/")
    assert inside == "v1\n"
    looked_up = cluster.kubectl(
        "-n", namespace, "exec", "deployment/page", "--", "nslookup", "kubernetes.default.svc.cluster.local"
    )
    assert "10.13.0.1" in looked_up


def test_the_audit_log_has_each_write_and_no_read(cluster: Cluster, namespace: str) -> None:
    def written() -> list[tuple[str, str]]:
        return [
            (event["verb"], event["requestURI"])
            for event in cluster.audit_events()
            if event["objectRef"].get("name") == "seen" and event["objectRef"]["namespace"] == namespace
        ]

    cluster.kubectl("-n", namespace, "get", "configmap", "seen", "--ignore-not-found")
    assert written() == []
    cluster.kubectl("-n", namespace, "create", "configmap", "seen", "--dry-run=server")
    cluster.kubectl("-n", namespace, "create", "configmap", "seen")
    verbs = [(verb, "dryRun=All" in uri) for verb, uri in written()]
    assert verbs == [("create", True), ("create", False)]


def test_the_registry_asks_for_a_login_and_has_the_base_images(cluster: Cluster) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(f"http://{cluster.registry_host}/v2/_catalog", timeout=5)
    refused.value.close()
    environment = os.environ | cluster.container_environment()
    for image in ("node:slim", "python:slim", "busybox", "debian:bookworm-slim"):
        name = f"docker://{cluster.registry_host}/library/{image}"
        argv = ["skopeo", "inspect", "--tls-verify=false", "--raw", name]
        shown = cluster.run_in(argv, env=environment).stdout
        assert json.loads(shown)["layers"]


def test_no_way_leads_out(cluster: Cluster) -> None:
    shown = json.loads(cluster.run_in(["ip", "-json", "-details", "link"]).stdout)
    elsewhere = [link["ifname"] for link in shown if "link_netnsid" in link]
    assert all(re.match(r"veth", name) for name in elsewhere), "only a pod's link may have its other end elsewhere"
    assert {link["ifname"] for link in shown} - set(elsewhere) == {"lo", "nowhere", "nowhere-end"}
    routes = json.loads(cluster.run_in(["ip", "-json", "route", "show", "default"]).stdout)
    assert [route["dev"] for route in routes] == ["nowhere"]


def test_the_api_server_comes_back(cluster: Cluster) -> None:
    cluster.restart_apiserver()
    assert "node" in cluster.kubectl("get", "nodes", "-o", "name")


def test_the_git_host_takes_a_push_tells_of_it_and_fails_on_demand(tmp_path: Path) -> None:
    pushes: list[Push] = []
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_TERMINAL_PROMPT": "0"}

    def git(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        argv = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=check, timeout=30)

    with GitHost(tmp_path / "repositories", address="127.0.0.1", port=0) as host:
        host.on_push = pushes.append
        host.create("team/hello")
        git("init", "-q", "-b", "main")
        git("commit", "-q", "--allow-empty", "-m", "first")
        refused = git("push", "-q", host.url("team/hello"), "main", check=False)
        assert refused.returncode != 0
        login = host.url("team/hello").replace("://", f"://{host.user}:{host.password}@")
        git("push", "-q", login, "main")
        head = git("rev-parse", "main").stdout.strip()
        _until(lambda: len(pushes) == 1)
        assert pushes == [Push(repository="team/hello", ref="refs/heads/main", old="0" * 40, new=head)]
        assert git("ls-remote", login, "main").stdout.split() == [head, "refs/heads/main"]
        for failure in (Failure.ERROR, Failure.HTML):
            host.failure = failure
            assert git("ls-remote", login, check=False).returncode != 0
        host.failure = Failure.SILENCE
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["git", "ls-remote", login], env=environment, capture_output=True, timeout=2)
        host.failure = Failure.NONE
        assert git("ls-remote", login, "main").stdout.split()[0] == head


def test_a_cluster_ends_with_its_owner_and_leaves_nothing(cluster: Cluster) -> None:
    """Its owner is killed without a chance to clean up; what remains goes with the next start or ``down``."""
    if not isinstance(cluster, OwnCluster):
        pytest.fail("only a cluster of our own can be killed: this run uses another one")
    other = OwnCluster(f"{cluster.name}-2")
    program = (
        "import sys, time; from tests.cluster import OwnCluster\n"
        "with OwnCluster(sys.argv[1]) as it: print('up', flush=True); time.sleep(600)\n"
    )
    cluster.leave()
    try:
        owner = subprocess.Popen([sys.executable, "-c", program, other.name], cwd=_ROOT, stdout=subprocess.PIPE)
        assert owner.stdout is not None
        with owner:
            assert owner.stdout.readline() == b"up\n"
            assert other.running
            owner.kill()
        _until(lambda: not other.running)
        assert other.work_dir.exists()
        with OwnCluster(other.name) as again:
            assert again.running
        assert not other.running
        assert not other.work_dir.exists()
    finally:
        cluster.enter()


def _until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
