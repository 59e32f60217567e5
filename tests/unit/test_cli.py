"""What the command line prints, of files alone."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from gitsync import __version__, service
from gitsync.cli import app
from gitsync.cluster import client


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_version_is_told_in_both_ways() -> None:
    assert run("--version").strip() == orjson.loads(run("version", "-o", "json"))["version"] == __version__


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("{apiVersion: v1, kind: ConfigMap}", ["v1 ConfigMap"]),
        ("{apiVersion: v1, kind: List, items: []}", []),
        ("{apiVersion: v1, kind: List, items: null}", []),
        ("{apiVersion: v1, kind: List, items: [{apiVersion: apps/v1, kind: Deployment}]}", ["apps/v1 Deployment"]),
        ("{apiVersion: v1, kind: PodList, items: [{}, {metadata: {name: a}}]}", ["", "v1 Pod"]),
        ("{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: PodList, items: [{spec: {}}]}]}", ["v1 Pod"]),
        ("{apiVersion: x.dev/v1, kind: AllowList, spec: {}}", ["x.dev/v1 AllowList"]),
        ("{apiVersion: x.dev/v1, kind: AllowList, items: {a: 1}}", ["x.dev/v1 AllowList"]),
        ("{apiVersion: v1, kind: List, items: [1]}", [""]),
    ],
)
def test_health_looks_into_lists(text: str, kinds: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    rows: list[dict[str, Any]] = orjson.loads(run("health", str(tmp_path / "a.yaml"), "-o", "json"))
    assert [f"{row['apiVersion']} {row['kind']}".strip() for row in rows] == kinds


@pytest.mark.parametrize("text", ["[red]p", "no [/tmp] here", "metadata.labels[app]", "web.yaml:100:5"])
def test_a_table_shows_a_text_as_it_is(text: str, tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "status": {"phase": "Failed", "reason": text}}
    (tmp_path / "a.json").write_bytes(orjson.dumps(pod))
    assert text in run("health", str(tmp_path / "a.json"), "-o", "table")


def test_a_table_that_is_not_read_on_a_terminal_breaks_no_word(tmp_path: Path) -> None:
    name = "a-name-that-is-longer-than-a-terminal-is-wide-" + "x" * 60
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "status": {"phase": "Failed"}}
    (tmp_path / "a.json").write_bytes(orjson.dumps(pod))
    assert any(
        name in line and "the pod failed" in line
        for line in run("health", str(tmp_path / "a.json"), "-o", "wide").splitlines()
    )


@pytest.mark.parametrize(
    "command", ["get hello", "diff hello", "suspend hello", "run https://git.example.test/hello.git"]
)
def test_a_cluster_that_does_not_answer_is_told_soon(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE", 0.1)
    monkeypatch.setattr(service, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # takes a connection and never answers
        cluster = {"server": f"http://127.0.0.1:{nobody.getsockname()[1]}"}
        kubeconfig: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_bytes(orjson.dumps(kubeconfig))
        result = CliRunner().invoke(app, [*command.split(), "--kubeconfig", str(tmp_path / "kubeconfig")])
    assert result.exit_code == 1
    assert result.output.startswith("gitsync: while discovering apis/")
    assert "no answer in time" in result.output


@pytest.mark.parametrize(("name", "words"), [(".", "Is a directory"), ("passwd", "TypeError")])
def test_what_is_no_kubeconfig_says_what_to_do(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("root:x:0:0")
    result = CliRunner().invoke(app, ["get", "--kubeconfig", str(tmp_path / name)])
    assert words in result.output
    assert "[Errno" not in result.output
    assert "--kubeconfig or KUBECONFIG" in result.output


def test_an_error_on_line_100_names_line_100(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\n" * 99 + "a: !x 1")
    result = CliRunner().invoke(app, ["health", str(tmp_path / "a.yaml")])
    assert "a.yaml:100:" in result.output


@pytest.mark.parametrize("output", ["json", "yaml", "table"])
def test_a_full_disk_is_one_line(output: str) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "gitsync", "version", "-o", output]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("gitsync: printing the result: No space left on device")
    assert result.stderr.count("\n") == 1
