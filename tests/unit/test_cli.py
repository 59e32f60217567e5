"""What the command line prints: of files, and of an Application whose service is played by the test."""

import asyncio
import contextlib
import fcntl
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from gitsync import __version__, cli, service
from gitsync.application import Application
from gitsync.cli import app
from gitsync.cluster import client
from gitsync.cluster.client import Cluster
from gitsync.model import Json, ObjectRef
from gitsync.sandbox import Sandbox


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


def on_terminal(*arguments: str, columns: int = 80) -> str:
    """What a person sees who has a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "gitsync", *arguments]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while part := os.read(ours, 1 << 16):
                said += part
        os.close(ours)
        assert process.wait(30) == 0, said
    return said.decode().replace("\r\n", "\n")


def test_a_narrow_terminal_loses_no_column(tmp_path: Path) -> None:
    name = "a-name-that-is-long-" + "x" * 40
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "status": {"phase": "Failed"}}
    (tmp_path / "a.json").write_bytes(orjson.dumps(pod))
    head, row = on_terminal("health", str(tmp_path / "a.json"), "-o", "table", columns=40).splitlines()
    assert head.split() == ["KIND", "NAMESPACE", "NAME", "STATUS", "MESSAGE"]
    assert row.startswith("Pod ")
    assert f" {name}  Degraded  the pod failed" in row


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
    assert result.exit_code == (2 if command.startswith("diff") else 1)
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


class Place:
    """A cluster with the Application ``default/hello`` in it, which no service follows but ``answer``."""

    REF = ObjectRef(group="gitsync.dev", version="v1alpha1", kind="Application", namespace="default", name="hello")

    def __init__(self, cluster: Cluster, kubeconfig: Path) -> None:
        self.cluster, self.kubeconfig = cluster, kubeconfig

    async def run(self, *arguments: str) -> Result:
        command = [*arguments, "--kubeconfig", str(self.kubeconfig)]
        return await asyncio.wait_for(asyncio.to_thread(CliRunner().invoke, app, command), 60)

    async def say(self, revision: str, **more: Any) -> None:
        """Write a status: of a healthy Application, but for ``more``: ready, reason, attempt, …."""
        seen = await self.cluster.get(self.REF)
        assert seen is not None
        known = {"observedGeneration": seen["metadata"]["generation"], "lastTransitionTime": "2026-01-02T03:04:05Z"}
        ready, reason = more.get("ready", "True"), more.get("reason", "ReconciliationSucceeded")
        verdicts = {"Ready": ready, "Reconciling": more.get("reconciling", "False"), "Stalled": "False"}
        status: Json = {
            "conditions": [
                {"type": kind, "status": value, "reason": reason.split()[0], "message": reason, **known}
                for kind, value in verdicts.items()
            ],
            "sync": "Synced",
            "health": "Healthy",
            "revision": revision,
        }
        if attempt := more.get("attempt"):
            at, stage = known["lastTransitionTime"], more.get("stage", "report")
            status["lastAttempt"] = {"revision": revision, "stage": stage, "at": at, "message": attempt}
        status["counts"] = {"objects": 1, "outOfSync": 0, "unhealthy": 0, "held": more.get("held", 0)}
        if left := more.get("left"):
            why = {"reason": "RolledBack", "message": "a person went back", "at": known["lastTransitionTime"]}
            status["quarantined"] = [{"revision": left, "digest": "d", "stage": "rollout", **why}]
        if more.get("handled"):
            status["lastHandledReconcileAt"] = seen["metadata"]["annotations"]["gitsync.dev/requestedAt"]
        await self.cluster.patch_status(self.REF, status)

    @contextlib.asynccontextmanager
    async def answer(self, revision: str, **more: Any) -> AsyncGenerator[None]:
        """Answer the next request with this status."""

        async def wait() -> None:
            while "gitsync.dev/requestedAt" not in ((await self.application())["metadata"].get("annotations") or {}):
                await asyncio.sleep(0.02)
            await self.say(revision, handled=True, **more)

        task = asyncio.create_task(wait())
        yield
        await asyncio.wait_for(task, 30)

    async def application(self) -> Json:
        seen = await self.cluster.get(self.REF)
        assert seen is not None
        return seen


OLD, NEW = "main@sha1:" + "a" * 40, "main@sha1:" + "b" * 40


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    kubeconfig = tmp_path / "kubeconfig"
    async with (
        Sandbox(engine="none", kubeconfig=kubeconfig),
        await Cluster.connect(str(kubeconfig)) as cluster,
    ):
        obj: Json = {
            "apiVersion": "gitsync.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": "hello", "namespace": "default"},
            "spec": {"source": {"repository": "https://git.example.test/hello.git"}},
        }
        assert Application.parse(obj).key == "default/hello"
        await service.ensure_application(cluster, obj)
        yield Place(cluster, kubeconfig)


@pytest.mark.parametrize(("wanted", "revision", "code"), [("aaaaaaa", OLD, 0), ("", OLD, 0), ("", NEW, 1)])
async def test_a_rollback_says_once_whether_it_serves(place: Place, wanted: str, revision: str, code: int) -> None:
    await place.say(NEW)
    async with place.answer(revision, ready="False", reason="Quarantined" if not code else "RevisionNotFound"):
        result = await place.run("rollback", "hello", *([wanted] if wanted else []), "-o", "json")
    assert orjson.loads(result.stdout)["revision"] == revision
    assert result.exit_code == code


@pytest.mark.parametrize(
    ("reason", "stage", "left", "code"),
    [
        ("Quarantined", "images", True, 0),
        ("Unavailable", "source", True, 0),
        ("RolloutFailed", "rollout", True, 1),
        ("Quarantined", "images", False, 1),
        ("RevisionNotFound", "source", False, 1),
    ],
)
async def test_a_rollback_of_what_was_under_way_serves_what_served_before(
    place: Place, reason: str, stage: str, left: bool, code: int
) -> None:
    await place.say(OLD, reconciling="True")
    async with place.answer(OLD, ready="False", reason=reason, stage=stage, left=NEW if left else "", attempt="x"):
        result = await place.run("rollback", "hello", "-o", "json")
    assert orjson.loads(result.stdout)["revision"] == OLD
    assert result.exit_code == code


async def test_a_rollback_to_what_serves_prints_one_document(place: Place) -> None:
    await place.say(NEW)
    async with place.answer(NEW):
        result = await place.run("rollback", "hello", "bbbbbbb", "-o", "json")
    assert orjson.loads(result.stdout)["revision"] == NEW
    assert result.exit_code == 0


async def test_a_rollback_that_was_refused_fails_although_all_is_well_again(place: Place) -> None:
    await place.say(NEW)
    async with place.answer(NEW):
        result = await place.run("rollback", "hello", "aaaaaaa")
    assert result.exit_code == 1


async def test_a_rollback_does_not_wait_for_a_git_host_that_is_away(place: Place) -> None:
    await place.say(NEW)
    async with place.answer(OLD, ready="False", reason="Unavailable", reconciling="True"):
        result = await place.run("rollback", "hello", "--timeout", "5")
    assert (result.exit_code, result.stdout) == (0, f"default/hello: {OLD} serves\n")


async def test_why_an_application_is_not_ready_can_be_read_on_a_terminal(place: Place) -> None:
    reason = "while building image hello: COPY failed;\n  STEP 1\n  no such file"
    await place.say(OLD, ready="False", reason=reason)
    said = await asyncio.to_thread(on_terminal, "get", "hello", "--kubeconfig", str(place.kubeconfig))
    head, row, *message = said.splitlines()
    assert head.split()[:5] == ["NAMESPACE", "NAME", "SYNC", "HEALTH", "READY"]
    assert row.split()[:6] == ["default", "hello", "Synced", "Healthy", "False", "main@sha1:" + "a" * 12]
    assert message == reason.splitlines()


async def test_what_was_said_before_somebody_asked_is_no_answer(place: Place) -> None:
    await place.say(OLD, attempt="it failed last week")
    async with place.answer(NEW, attempt="it serves"):
        result = await place.run("sync", "hello")
    assert "it serves" in result.stderr
    assert "last week" not in result.stderr


async def test_who_asks_where_no_gitsync_runs_is_told_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "SILENCE", 0.1)
    await place.say(OLD, attempt="serves")
    result = await place.run("sync", "hello", "--timeout", "2")
    assert "no gitsync has answered for 0.1 s" in result.stderr
    assert result.stderr.count("no gitsync") == 1
    assert "while syncing Application/default/hello: not done after 2 s" in result.stderr
    assert f"the last that was said is: {OLD} report serves" in result.stderr
    assert result.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "reason", "answer"),
    [
        ((), "ReconciliationSucceeded", "nothing waits for approval"),
        ((), "ApprovalRequired", "approved bbbbbbbbbbbb"),
        ((), "UnrelatedHistory", "approved bbbbbbbbbbbb"),
        (("bbbbbb",), "ApprovalRequired", "names no commit"),
        (("main",), "ApprovalRequired", "names no commit"),
        (("ccccccc",), "ReconciliationSucceeded", "approved ccccccc"),
    ],
)
async def test_only_what_waits_is_approved(place: Place, arguments: tuple[str, ...], reason: str, answer: str) -> None:
    await place.say(NEW, reason=reason, attempt="would delete much")
    result = await place.run("approve", "hello", *arguments)
    assert answer in result.output
    approved = "gitsync.dev/approve" in ((await place.application())["metadata"].get("annotations") or {})
    assert approved is (result.exit_code == 0) is answer.startswith("approved")


async def test_what_waits_is_approved_while_a_repair_is_told(place: Place) -> None:
    await place.say(NEW, ready="Unknown", reason="Progressing", reconciling="True", attempt="putting back", held=1)
    assert "approved bbbbbbbbbbbb" in (await place.run("approve", "hello")).stdout


async def test_a_cluster_that_never_saw_gitsync_is_told_how_to_begin(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    async with Sandbox(engine="none", kubeconfig=kubeconfig):
        for command in ("get", "diff hello -n shop"):
            arguments = [*command.split(), "--kubeconfig", str(kubeconfig)]
            result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
            assert "gitsync was never installed in this cluster; 'gitsync run REPOSITORY" in result.output
            assert result.exit_code == (1 if command == "get" else 2)


@pytest.mark.parametrize(("name", "answer"), [("nope", "there is no directory"), (".", "is no git repository")])
def test_a_directory_that_cannot_be_followed_is_told_before_anything_is_made(
    name: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", name, "--name", "a", "--kubeconfig", "none"])
    assert answer in result.output
    assert result.exit_code == 1
