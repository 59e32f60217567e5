"""The sandbox itself: what it leaves behind (nothing), what it finds of a killed one, and how it works elsewhere."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gitsync.sandbox import Sandbox, SandboxError, serve
from gitsync.sandbox.engine import OWNER_LABEL, find
from gitsync.sandbox.proxy import Proxy
from gitsync.sandbox.registry import Options
from tests.contract.client import Access
from tests.sandbox.conftest import Cluster, deployment, service, start

Json = dict[str, Any]


def containers(owner: Path) -> list[str]:
    """Containers of a sandbox that exist, running or not."""
    command = [find(), "ps", "--all", "--quiet", "--filter", f"label={OWNER_LABEL}={owner}"]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()


async def test_stopping_leaves_nothing(image: str, tmp_path: Path) -> None:
    before = _mounts_and_rules()
    async with start(tmp_path) as sandbox, Access.read(sandbox.kubeconfig).connect("leaves") as api:
        cluster = Cluster(sandbox, api)
        await cluster.apply(
            deployment("web", image, "exec httpd -f -p 8000 -h /tmp", replicas=2), service("web", 18400, 8000)
        )
        await cluster.rolled_out("web")
        address = sandbox.service_address("leaves", "web", 18400)
        assert len(containers(tmp_path)) == 2
    assert containers(tmp_path) == []
    assert list((tmp_path / "pods").glob("*")) == []
    assert _mounts_and_rules() <= before
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as session:
            await session.get(f"http://{address}/")


def _mounts_and_rules() -> set[str]:
    """Of containers: those of builds in stores of their own, which other tests make meanwhile, are not meant."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = {line for line in mounts if "overlay" in line and not line.split()[1].startswith(tempfile.gettempdir())}
    for tool in ("iptables-save", "nft"):
        arguments = [tool] if tool == "iptables-save" else [tool, "list", "ruleset"]
        with contextlib.suppress(FileNotFoundError):
            rules = subprocess.run(arguments, capture_output=True, text=True, check=False).stdout.splitlines()
            found |= {line for line in rules if "NETAVARK" in line}
    return found


def children(parent: int) -> list[int]:
    """Processes whose parent it is."""
    return [
        int(number) for path in Path(f"/proc/{parent}/task").glob("*/children") for number in path.read_text().split()
    ]


def lives(number: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_a_killed_sandbox_is_cleaned_up_by_the_next(image: str, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    script = f"""
import asyncio
from pathlib import Path
from gitsync.sandbox import Sandbox
from tests.contract.client import Access
from tests.sandbox.conftest import Cluster, deployment

async def main():
    async with Sandbox(data_dir=Path({str(killed)!r}), egress=False) as sandbox:
        async with Access.read(sandbox.kubeconfig).connect("killed") as api:
            cluster = Cluster(sandbox, api)
            await cluster.apply(deployment("web", {image!r}, "sleep 600"))
            await cluster.rolled_out("web")
            print("up", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"up\n"
    assert len(containers(killed)) == 1
    follow = await asyncio.create_subprocess_exec(
        *(str(shutil.which("kubectl")), "--kubeconfig", str(killed / "kubeconfig"), "--namespace", "killed"),
        *("logs", "--follow", "deployment/web"), stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with start(tmp_path / "neighbour"):  # somebody else's start leaves the living alone
        assert len(containers(killed)) == 1
        async with asyncio.timeout(20):
            while len(children(process.pid)) < 2:  # for events, and for the log
                await asyncio.sleep(0.05)
        helpers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        async with asyncio.timeout(10):
            while any(map(lives, helpers)):
                await asyncio.sleep(0.05)
        assert len(containers(killed)) == 1
    await follow.wait()
    async with start(tmp_path / "next"):
        assert containers(killed) == []


async def test_what_may_be_somebody_else_s_stays(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where several people share an engine, the directory of a sandbox is not always one that this one can look at."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hidden, gone = tmp_path / "loop", tmp_path / "gone"
    hidden.symlink_to(hidden)  # as good as a directory without the right to enter it, also for root
    for owner in (hidden, gone):
        made = [find(), "create", "--label", f"{OWNER_LABEL}={owner}", image, "true"]
        subprocess.run(made, capture_output=True, check=True)
    left = tmp_path / "gitsync-sandbox-killed"
    left.mkdir()
    (left / "kubeconfig").touch()
    try:
        async with start(tmp_path / "own"):
            assert containers(gone) == []
            assert len(containers(hidden)) == 1
            assert not left.exists()
    finally:
        subprocess.run([find(), "rm", "--force", *containers(hidden), *containers(gone)], capture_output=True)


class _Nowhere:
    async def dial(self, address: str, port: int) -> socket.socket:
        raise ConnectionRefusedError(f"{address}:{port}")

    def services_changed(self) -> None:
        pass


async def test_a_service_that_cannot_be_served_says_so_and_the_others_are(tmp_path: Path) -> None:
    async with start(tmp_path, engine="none") as sandbox:
        registry = sandbox.registry
        proxy = Proxy(registry, _Nowhere())
        work = asyncio.create_task(proxy.run())

        def make(name: str, spec: Json) -> None:
            body = {"metadata": {"name": name}, "spec": {"ports": [{"port": 80, "targetPort": 80}]} | spec}
            registry.create(registry.resource("services"), "default", body, Options())

        async def told(name: str) -> str:
            async with asyncio.timeout(10):
                while True:
                    for event in registry.store.items("events", "default"):
                        if event["involvedObject"]["name"] == name:
                            return event["message"]
                    await asyncio.sleep(0.01)

        number = 32700
        with socket.create_server(("127.0.0.1", number)):
            make("node", {"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]})
            assert await told("node") == "node port 32700 of 127.0.0.1: Address already in use"
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        opened: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
            with contextlib.suppress(OSError):
                while True:
                    opened.append(os.open("/dev/null", os.O_RDONLY))
            make("late", {})
            assert await told("late") == "is not served: Too many open files"
        finally:
            for each in opened:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        make("next", {})
        async with asyncio.timeout(10):
            while not (proxy.local_port("default", "next", 80) and proxy.local_port("default", "late", 80)):
                await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_a_directory_belongs_to_one_sandbox(tmp_path: Path) -> None:
    async with start(tmp_path, engine="none"):
        with pytest.raises(SandboxError, match="another sandbox uses"):
            await start(tmp_path, engine="none").__aenter__()
    async with start(tmp_path, engine="none"):
        pass


async def test_published_ports_serve_where_namespaces_cannot_be_made(image: str, tmp_path: Path) -> None:
    """As on a Mac, or rootless: containers publish on loopback, Services reach them there, and each other by the host."""  # noqa: E501
    async with (
        start(tmp_path, namespaces=False) as sandbox,
        Access.read(sandbox.kubeconfig).connect("published") as api,
    ):
        cluster = Cluster(sandbox, api)
        probe = {"httpGet": {"port": 8000}, "periodSeconds": 1}
        serves = "echo published > /tmp/index.html; exec httpd -f -p 8000 -h /tmp"
        await cluster.apply(service("web", 18401, 8000), deployment("web", image, serves, readinessProbe=probe))
        await cluster.rolled_out("web")
        address = sandbox.service_address("published", "web", 18401)
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/") as response:
            assert (await response.text()).strip() == "published"
        silent = deployment(
            "silent", image, "sleep 300", readinessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1}
        )
        ask = {"name": "ask", "image": image, "command": ["sh", "-c", "wget -qO- http://web:18401/"]}
        job = {"restartPolicy": "Never", "containers": [ask]}
        await cluster.apply(
            silent, {"kind": "Job", "metadata": {"name": "ask"}, "spec": {"template": {"spec": job}, "backoffLimit": 0}}
        )
        await cluster.until("jobs", "ask", lambda it: it.get("status", {}).get("succeeded"), "batch/v1")
        assert await cluster.kubectl("logs", "job/ask") == "published\n"
        found = await cluster.get("deployments", "silent", "apps/v1")
        assert found["status"].get("availableReplicas", 0) == 0  # the engine's forwarder accepts; nobody listens


async def test_a_web_page_cannot_use_it(tmp_path: Path) -> None:
    async with start(tmp_path, engine="none") as sandbox, aiohttp.ClientSession() as session:
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            async with session.get(f"{sandbox.url}/api/v1/pods", headers=headers) as response:
                assert response.status == 403
        assert oct((tmp_path / "kubeconfig").stat().st_mode)[-3:] == "600"


async def test_a_slow_watch_is_told_to_list_again(tmp_path: Path) -> None:
    async with start(tmp_path, engine="none") as sandbox, Access.read(sandbox.kubeconfig).connect("slow") as api:
        path = api.path("v1", "configmaps")
        version = (await api.get(path)).body["metadata"]["resourceVersion"]
        async with api.watch(path, resourceVersion=version) as events:
            await api.post(path, {"metadata": {"name": "a"}})
            async with asyncio.timeout(10):
                assert (await anext(events))["type"] == "ADDED"
        sandbox.store.compact()
        answer = await api.get(path, watch="1", resourceVersion=version)
        assert (answer.code, answer.reason) == (410, "Expired")
        assert "too old resource version" in answer.message


async def test_a_quiet_watch_is_told_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitsync.sandbox.api.BOOKMARK_EVERY", 0.1)
    async with start(tmp_path, engine="none") as sandbox, Access.read(sandbox.kubeconfig).connect("quiet") as api:
        path = api.path("v1", "configmaps")
        version = (await api.get(path)).body["metadata"]["resourceVersion"]
        await api.post(api.path("v1", "secrets"), {"metadata": {"name": "elsewhere"}})
        async with api.watch(path, resourceVersion=version, allowWatchBookmarks="true") as events:
            async with asyncio.timeout(10):
                mark = await anext(events)
        assert (mark["type"], mark["object"]["kind"]) == ("BOOKMARK", "ConfigMap")
        assert int(mark["object"]["metadata"]["resourceVersion"]) > int(version)


async def test_serve_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    stop = asyncio.Event()
    started: asyncio.Future[Sandbox] = asyncio.get_running_loop().create_future()
    path = tmp_path / "config" / "kube"
    work = asyncio.create_task(
        serve(kubeconfig_path=path, data_dir=tmp_path / "data", engine="none", stop_event=stop, started=started)
    )
    sandbox = await asyncio.wait_for(started, 20)
    assert json.loads(path.read_text())["clusters"][0]["cluster"]["server"] == sandbox.url
    stop.set()
    await asyncio.wait_for(work, 20)
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as session:
            await session.get(sandbox.url)
    assert os.path.exists(path)


def test_what_keeps_it_from_starting_is_said_in_a_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, path, told in (
            (("--port", port), os.environ["PATH"], f"port {port} of 127.0.0.1: Address already in use"),
            (("--kubeconfig", "/proc/nobody/config"), os.environ["PATH"], "/proc/nobody/config cannot be written"),
            ((), str(tmp_path), "neither podman nor docker is on PATH: install podman"),
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "gitsync", "sandbox", *options],
                env=os.environ | {"PATH": path, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert ended.returncode == 1
            assert told in ended.stderr.replace("\n", " ")
            assert "Traceback" not in ended.stderr
            assert list(tmp_path.iterdir()) == []
