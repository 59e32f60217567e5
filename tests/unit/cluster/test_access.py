"""Finding a cluster and being let in: as kubectl does it, but without running anybody's program."""

import asyncio
import base64
import json
import os
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gitsync.cluster.client import Access, Cluster, access
from gitsync.errors import Invalid, Transient
from gitsync.model import ObjectRef
from tests.unit.cluster.faults import Request, config_map, failure, faulty

REF = ObjectRef(version="v1", kind="ConfigMap", namespace="shop", name="c")


def kubeconfig(path: Path, user: dict[str, Any], server: str = "http://127.0.0.1:1", name: str = "one") -> str:
    path.write_text(
        json.dumps(
            {
                "clusters": [{"name": name, "cluster": {"server": server}}],
                "users": [{"name": name, "user": user}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
                "current-context": name,
            }
        )
    )
    return str(path)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    "user",
    [
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": ["PWNED"]}},
        {"auth-provider": {"name": "oidc", "config": {}}},
    ],
)
async def test_a_plugin_is_not_run_unless_asked_for(
    tmp_path: Path, user: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Invalid, match="plugin"):
        await access(kubeconfig(tmp_path / "config", user))
    assert not (tmp_path / "PWNED").exists()


async def test_a_plugin_that_was_asked_for_is_run(tmp_path: Path) -> None:
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-plugin"},
    }
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "echo",
            "args": [json.dumps(credential)],
            "interactiveMode": "Never",
        }
    }
    found = await access(kubeconfig(tmp_path / "config", user), allow_plugins=True)
    assert await found.authorization() == "Bearer from-plugin"


@pytest.mark.parametrize("by_plugin", [False, True])
@pytest.mark.parametrize("in_memory", [True, False])
async def test_embedded_keys_are_used_and_never_left_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_plugin: bool, in_memory: bool
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if not in_memory:  # as on a Mac
        monkeypatch.delattr(os, "memfd_create")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 9 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *make.split(), *names], check=True, capture_output=True)

    asked: list[dict[str, Any]] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer.get_extra_info("peercert"))
        writer.close()

    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    served.load_cert_chain(certificate, key)
    served.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(greet, "localhost", 0, ssl=served)
    port = server.sockets[0].getsockname()[1]
    status = {"clientCertificateData": certificate.read_text(), "clientKeyData": key.read_text()}
    version = "client.authentication.k8s.io/v1"
    answer = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    plugin = {"exec": {"apiVersion": version, "command": "echo", "args": [answer], "interactiveMode": "Never"}}
    encoded = {path: base64.b64encode(path.read_bytes()).decode() for path in (key, certificate)}
    data = {"client-certificate-data": encoded[certificate], "client-key-data": encoded[key]}
    path = Path(kubeconfig(tmp_path / "config", plugin if by_plugin else data, f"https://localhost:{port}"))
    config = json.loads(path.read_text())
    config["clusters"][0]["cluster"]["certificate-authority-data"] = encoded[certificate]
    path.write_text(json.dumps(config))

    before = len(os.listdir("/proc/self/fd"))
    found = await access(str(path), allow_plugins=by_plugin)
    await found.authorization()  # as after a 401
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(scratch.iterdir()) == []
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("localhost", port, ssl=found.tls)
        await reader.read()
    writer.close()
    server.close()
    assert [each["subject"] for each in asked] == [((("commonName", "localhost"),),)]


async def test_where_a_kubeconfig_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Invalid, match=r"no kubeconfig at .*home/\.kube/config"):
        await access()
    (tmp_path / "home" / ".kube").mkdir(parents=True)
    kubeconfig(tmp_path / "home" / ".kube" / "config", {}, "http://127.0.0.1:2")
    assert (await access()).host == "http://127.0.0.1:2"
    monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path / "other", {}, "http://127.0.0.1:3", "two") + ":/nowhere")
    assert (await access()).host == "http://127.0.0.1:3"
    assert (await access(kubeconfig(tmp_path / "third", {}, "http://127.0.0.1:4"))).host == "http://127.0.0.1:4"
    with pytest.raises(Invalid, match="nowhere"):
        await access("/nowhere")


async def test_in_a_cluster_the_service_account_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(Invalid, match="service account"):  # this is no pod
        await access()


@pytest.mark.parametrize("text", ["", "[", "a: b", '{"current-context": "x", "contexts": []}', "\0"])
async def test_a_malformed_kubeconfig_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(Invalid, match="config"):
        await access(str(path))


async def test_an_unknown_context_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="staging"):
        await access(kubeconfig(tmp_path / "config", {}), "staging")


async def test_a_rotated_token_file_is_read_again(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    async with faulty() as (server, _):

        async def check(request: Request) -> None:
            if request.headers.get("authorization") == f"Bearer {token.read_text().strip()}":
                await request.answer(config_map("c", 1))
            else:
                await request.answer(failure(401, "Unauthorized"), 401)

        server.script(check)
        path = kubeconfig(tmp_path / "config", {"tokenFile": str(token)}, server.url)
        async with await Cluster.connect(path) as cluster:
            assert await cluster.get(REF)
            token.write_text("two\n")
            assert await cluster.get(REF)
            assert len(server.requests) == 3
            token.unlink()
            cluster._token_read = float("-inf")
            server.script(lambda request: request.answer(config_map("c", 1)))
            assert await cluster.get(REF)  # while the file is being replaced, the old one serves
            assert server.requests[-1].headers["authorization"] == "Bearer two"


async def test_credentials_that_cannot_be_read_are_not_the_commits_fault() -> None:
    async def authorization() -> str:
        raise Invalid("the token file is gone")

    async with Cluster(Access(host="http://127.0.0.1:1", authorization=authorization)) as cluster:
        with pytest.raises(Transient, match="token file"):
            await cluster.get(REF, deadline=0.1)


def test_the_librarys_models_are_not_loaded_and_it_can_still_be_used_by_others(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from gitsync.cluster.client import access
where = asyncio.run(access({kubeconfig(tmp_path / "config", {"token": "secret"})!r}))
assert asyncio.run(where.authorization()) == "Bearer secret"
assert not [name for name in sys.modules if name.startswith("kubernetes_asyncio")], "models"
import kubernetes_asyncio
assert kubernetes_asyncio.client.CoreV1Api and kubernetes_asyncio.client.ApiClient
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_threads_that_begin_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from gitsync.cluster.client import access\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    list(pool.map(lambda _: asyncio.run(access(sys.argv[1])), range(8)))\n"
    )
    config = kubeconfig(tmp_path / "config", {"token": "t"})
    done = subprocess.run([sys.executable, "-c", script, config], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
