"""The stages by themselves, as a person debugs with them: the command line on real samples, beside kubectl."""

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.e2e.outside import GITSYNC
from tests.e2e.world import SAMPLES

pytestmark = pytest.mark.e2e

Json = dict[str, Any]


def gitsync(*arguments: str | Path, cache: Path) -> Any:
    """What a stage prints, without a cluster: it is given no kubeconfig."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(cache), "GITSYNC_CACHE_DIR": str(cache / "gitsync")}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    argv = [str(GITSYNC), *map(str, arguments)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def documents(text: str) -> list[Json]:
    """kubectl prints one JSON document after another, or a List."""
    decoder, found, position = json.JSONDecoder(), list[Json](), 0
    while position < len(text):
        document, position = decoder.raw_decode(text, position)
        found += document["items"] if document["kind"] == "List" else [document]
        position += len(text[position:]) - len(text[position:].lstrip())
    return found


@pytest.mark.parametrize("sample", ["hello", "hello-pod", "shop"])
def test_render_reads_what_kubectl_reads(cluster: Cluster, sample: str, tmp_path: Path) -> None:
    directory = SAMPLES / sample / "manifests"
    argv = ["create", "--dry-run=client", "--validate=false", "--output=json", "--filename", str(directory)]
    expected = documents(cluster.kubectl(*argv))
    for each in expected:  # where it would be created, which no file says
        assert each["metadata"].pop("namespace") == "default"
    assert gitsync("render", directory, cache=tmp_path) == expected


def test_images_tells_what_a_change_touches(tmp_path: Path) -> None:
    repository = tmp_path / "shop"

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-C", str(repository)]
        environment = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null"}
        argv = ["git", *identity, *arguments]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    subprocess.run(["cp", "-r", str(SAMPLES / "shop"), str(repository)], check=True)
    git("init", "-q", "-b", "main")
    git("add", "-A")
    git("commit", "-q", "-m", "Open the shop")
    first = git("rev-parse", "HEAD")
    before = {each["name"]: each for each in gitsync("images", repository, cache=tmp_path)}
    assert {name: each["context"] for name, each in before.items()} == {
        f"kubetm/{module}": module for module in ("assets", "cart", "catalog", "web")
    }
    (repository / "cart/serve.sh").write_text("#!/bin/sh\nexec httpd -f -p 8000 -h /www\n")
    (repository / "README.md").write_text("A shop.\n")
    git("add", "-A")
    git("commit", "-q", "-m", "Serve more simply")
    after = {each["name"]: each for each in gitsync("images", repository, "--since", first, cache=tmp_path)}
    assert {name: each["files"] for name, each in after.items() if each["files"]} == {"kubetm/cart": ["cart/serve.sh"]}
    changed = {name for name in before if before[name]["fingerprint"] != after[name]["fingerprint"]}
    assert changed == {"kubetm/cart"}
    old = {
        each["name"]: each["fingerprint"] for each in gitsync("images", repository, "--revision", first, cache=tmp_path)
    }
    assert old == {name: each["fingerprint"] for name, each in before.items()}


def test_health_agrees_with_kubectl(cluster: Cluster, tmp_path: Path) -> None:
    """One Deployment that serves and one that never will, from the words of the cluster alone."""
    namespace = f"stages-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", namespace)
    inside = ("-n", namespace)
    try:
        for name, image in (("good", "busybox"), ("bad", f"{cluster.registry_host}/nosuch:1")):
            cluster.kubectl(*inside, "create", "deployment", name, f"--image={image}", "--", "sleep", "600")
        cluster.kubectl(*inside, "rollout", "status", "deployment/good", "--timeout=60s")
        cluster.kubectl(*inside, "patch", "deployment", "bad", "-p", '{"spec": {"progressDeadlineSeconds": 1}}')
        cluster.kubectl(*inside, "wait", "deployment/bad", "--for=condition=Progressing=False", "--timeout=60s")
        file = tmp_path / "live.json"
        file.write_text(cluster.kubectl(*inside, "get", "deployments", "-o", "json"))
        rows = {each["name"]: each for each in gitsync("health", file, cache=tmp_path)}
        assert {name: row["status"] for name, row in rows.items()} == {"good": "Healthy", "bad": "Degraded"}
        assert set(rows["bad"]) == {"apiVersion", "kind", "namespace", "name", "status", "message"}
        assert rows["bad"]["namespace"] == namespace
        assert "deadline" in rows["bad"]["message"].lower()
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
