"""The registry client against a real registry, and against what registries elsewhere answer."""

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from gitsync.errors import GitsyncError, Invalid, Transient, Waiting
from gitsync.images import Access, Registry, RegistryCredentials
from gitsync.images.credentials import Login
from gitsync.images.reference import parse_reference
from gitsync.images.registry import proxy_for
from tests.registry import TestRegistry

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
DIGEST = "sha256:" + "a" * 64


@contextlib.asynccontextmanager
async def serve(handler: Handler, address: str = "127.0.0.1") -> AsyncGenerator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, address, 0)
    await site.start()
    try:
        yield f"{address}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def client(
    credentials: RegistryCredentials | None = None, access: Access | None = None, deadline: float = 10.0
) -> AsyncGenerator[Registry]:
    async with aiohttp.ClientSession() as session:
        yield Registry(session, credentials=credentials, access=access, deadline=deadline)


def login(host: str, username: str = "u", password: str = "p") -> RegistryCredentials:
    return RegistryCredentials(source="Secret shop/login", logins={host: Login(username, password)})


async def test_a_real_registry_resolves_reads_and_retags(tmp_path: Path) -> None:
    async with TestRegistry(tmp_path) as r:
        digest = await r.push_image("team/hello", "1")
        async with client(RegistryCredentials.from_dockerconfigjson(r.dockerconfigjson(), source="s")) as registry:
            assert await registry.resolve(f"{r.host}/team/hello:1") == digest
            assert await registry.resolve(f"{r.host}/team/hello@{digest}") == digest
            assert await registry.resolve(f"{r.host}/team/hello:2") is None
            assert await registry.resolve(f"{r.host}/team/nothing:1") is None
            assert await registry.platforms(f"{r.host}/team/hello:1") == ("linux/amd64",)
            assert await registry.platforms(f"{r.host}/team/hello:2") == ()
            await registry.tag(f"{r.host}/team/hello", digest, "2")
            assert await registry.resolve(f"{r.host}/team/hello:2") == digest
            with pytest.raises(Invalid, match="no image sha256:aaaa"):
                await registry.tag(f"{r.host}/team/hello", DIGEST, "3")


async def test_an_index_lists_its_platforms_without_attestations(tmp_path: Path) -> None:
    async with TestRegistry(tmp_path, login=False) as r:
        digest = await r.push_image("hello", "1")
        kind = "application/vnd.oci.image.manifest.v1+json"
        platforms = (
            {"os": "linux", "architecture": "arm64", "variant": "v8"},
            {"os": "unknown", "architecture": "unknown"},
        )
        manifests = [{"mediaType": kind, "digest": digest, "size": 1, "platform": platform} for platform in platforms]
        media_type = "application/vnd.oci.image.index.v1+json"
        index = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
        await r.put_manifest("hello", "all", json.dumps(index).encode(), media_type)
        async with client() as registry:
            assert await registry.platforms(f"{r.host}/hello:all") == ("linux/arm64/v8",)


async def test_a_mirror_stands_for_docker_hub(tmp_path: Path) -> None:
    async with TestRegistry(tmp_path) as r:
        digest = await r.push_image("library/node", "slim")
        credentials = RegistryCredentials.from_dockerconfigjson(r.dockerconfigjson(), source="s")
        async with client(credentials, Access(mirrors={"docker.io": r.host})) as registry:
            assert await registry.resolve("node:slim") == digest
            assert await registry.resolve("docker.io/library/node:slim") == digest
            assert await registry.resolve("node:missing") is None


async def test_a_refused_login_waits_and_names_the_secret(tmp_path: Path) -> None:
    async with TestRegistry(tmp_path) as r:
        async with client(login(r.host, r.username, "wrong-password")) as registry:
            with pytest.raises(Waiting, match="check the login in Secret shop/login") as caught:
                await registry.resolve(f"{r.host}/hello:1")
            assert "wrong-password" not in str(caught.value)
        async with client() as registry:
            with pytest.raises(Waiting, match="no login is set"):
                await registry.resolve(f"{r.host}/hello:1")


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (500, {}, Transient),
        (503, {}, Transient),
        (400, {}, Invalid),
        (403, {}, Waiting),
        (418, {}, Transient),
        (429, {"Retry-After": "17"}, Waiting),
        (429, {"Retry-After": "86400"}, Waiting),
        (429, {"Retry-After": "0"}, Waiting),
        (404, {"Content-Type": "text/html"}, Transient),
        (302, {"Location": "http://10.0.0.1/x"}, Transient),
        (302, {"Location": "/again"}, Transient),
    ],
)
async def test_only_a_registrys_own_404_means_missing(status: int, headers: dict[str, str], kind: type) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers)

    async with serve(handler) as host, client() as registry:
        with pytest.raises(GitsyncError) as caught:
            await registry.resolve(f"{host}/hello:1")
        assert type(caught.value) is kind
        if isinstance(caught.value, Waiting) and status == 429:
            assert caught.value.retry_after == min(max(int(headers["Retry-After"]), 1), 3600)


async def test_silence_and_a_closed_port_are_bad_luck() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport
        while not request.transport.is_closing():
            await asyncio.sleep(0.02)
        return response

    async with serve(handler) as host, client(deadline=0.5) as registry:
        with pytest.raises(Transient, match="in time"):
            await registry.manifest(f"{host}/hello:1")
    async with client() as registry:
        with pytest.raises(Transient, match="cannot be reached: Connect call failed"):
            await registry.resolve(f"{host}/hello:1")


async def test_bodies_are_bounded_checked_and_must_be_a_registrys() -> None:
    answers = {"big": b" " * (5 << 20), "html": b"<html>", "list": b"[]", "fine": b'{"schemaVersion": 2}'}
    answers["missing"] = b'{"error": "no route"}'  # of something in between

    async def handler(request: web.Request) -> web.Response:
        name = request.path.rpartition("/")[2]
        return web.Response(body=answers.get(name, answers["fine"]), status=404 if name == "missing" else 200)

    async with serve(handler) as host, client() as registry:
        said = dict.fromkeys(("html", "list", "missing"), "not a registry's") | {"big": "larger than 4 MiB"}
        for name, words in said.items():
            with pytest.raises(Transient, match=words):
                await registry.manifest(f"{host}/hello:{name}")
        with pytest.raises(Transient, match="other bytes"):
            await registry.manifest(f"{host}/hello@{DIGEST}")
        # Without Docker-Content-Digest the bytes tell.
        assert await registry.resolve(f"{host}/hello:fine") == f"sha256:{hashlib.sha256(answers['fine']).hexdigest()}"


async def test_tokens_are_fetched_once_per_repository_and_sent_only_where_it_is_safe() -> None:
    seen: list[tuple[str, str]] = []
    realm = ""

    async def handler(request: web.Request) -> web.Response:
        sent = request.headers.get("Authorization", "")
        seen.append((request.path_qs, sent))
        if request.path == "/token":
            return web.json_response({"token": "t0ken", "expires_in": 300})
        if sent != "Bearer t0ken":
            challenge = f'Bearer realm="{realm}",service="reg",scope="repository:hello:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return web.Response(headers={"Docker-Content-Digest": DIGEST})

    async with serve(handler) as host:
        realm = f"http://{host}/token"
        async with client(login(host)) as registry:
            assert await registry.resolve(f"{host}/hello:1") == DIGEST
            assert await registry.resolve(f"{host}/hello:2") == DIGEST
        tokens = [entry for entry in seen if entry[0].startswith("/token")]
        basic = "Basic " + base64.b64encode(b"u:p").decode()
        assert tokens == [("/token?service=reg&scope=repository:hello:pull", basic)]
        for unsafe in ("http://127.0.0.2:1/token", "ftp://x/token", ""):
            realm = unsafe
            async with client(login(host)) as registry:
                with pytest.raises(Transient, match="not safe"):
                    await registry.resolve(f"{host}/hello:1")


async def test_an_identity_token_is_exchanged() -> None:
    forms: list[dict[str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        if request.path == "/token":
            forms.append({key: str(value) for key, value in (await request.post()).items()})
            return web.json_response({"access_token": "t"})
        if request.headers.get("Authorization") != "Bearer t":
            challenge = f'Bearer realm="http://{request.host}/token",service="s"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return web.Response(headers={"Docker-Content-Digest": DIGEST})

    async with serve(handler) as host:
        credentials = RegistryCredentials(source="s", logins={host: Login("", "", "refresh")})
        async with client(credentials) as registry:
            assert await registry.resolve(f"{host}/hello:1") == DIGEST
    assert forms[0]["grant_type"] == "refresh_token"
    assert forms[0]["refresh_token"] == "refresh"


async def test_a_redirect_does_not_take_the_login_to_another_host() -> None:
    seen: list[str | None] = []
    body = b'{"os": "linux", "architecture": "arm64"}'
    config = f"sha256:{hashlib.sha256(body).hexdigest()}"

    async def store(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=body)

    async with serve(store) as other:

        async def handler(request: web.Request) -> web.Response:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if "/blobs/" in request.path:
                return web.Response(status=307, headers={"Location": f"http://{other}/blob"})
            return web.json_response({"schemaVersion": 2, "config": {"digest": config}})

        async with serve(handler) as host, client(login(host)) as registry:
            assert await registry.platforms(f"{host}/hello:1") == ("linux/arm64",)
    assert seen == [None]


async def test_a_registry_is_reached_through_the_proxy_that_git_and_builders_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.host)
        return web.Response(headers={"Docker-Content-Digest": DIGEST})

    async with serve(handler) as proxy, serve(handler) as near:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        async with client(access=Access(insecure=frozenset({"far.example"}))) as registry:
            assert await registry.resolve("far.example/hello:1") == DIGEST
            assert await registry.resolve(f"{near}/hello:1") == DIGEST
    assert seen == ["far.example", near]


@pytest.mark.parametrize(
    ("host", "through"),
    [
        ("far.example", True),
        ("localhost", False),
        ("127.0.0.9", False),
        ("reg.in", False),
        ("a.reg.in", False),
        ("other-reg.in", True),
        ("a.dotted.in", False),
        ("10.96.3.4", False),
        ("10.97.0.1", True),
        ("[fd00::1]", False),
        ("ported.in:5000", False),
        ("ported.in", True),
    ],
)
def test_which_hosts_are_reached_past_the_proxy(host: str, through: bool) -> None:
    environ = {
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": "reg.in, .dotted.in,10.96.0.0/16,fd00::/8,ported.in:5000",
    }
    assert proxy_for(URL(f"https://{host}/v2/"), environ) == ("http://proxy:3128" if through else None)
    assert proxy_for(URL(f"https://{host}/v2/"), environ | {"no_proxy": "*"}) is None
    assert proxy_for(URL(f"http://{host}/v2/"), environ) is None


def test_which_proxies_there_are() -> None:
    for given, expected in (("proxy:3128", "http://proxy:3128"), ("socks5://proxy:1080", None), ("", None)):
        assert proxy_for(URL("https://far.example/v2/"), {"https_proxy": given}) == expected


def test_which_hosts_speak_plain_http() -> None:
    access = Access(insecure=frozenset({"reg.in:5000"}))
    plain = ("127.0.0.1:1", "localhost", "localhost:5000", "[::1]:5000", "reg.in:5000")
    assert [host for host in plain if not access.plain(host)] == []
    assert [host for host in ("reg.in", "example.org", "localhost.example.org") if access.plain(host)] == []


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("node", "docker.io/library/node:latest"),
        ("node:slim", "docker.io/library/node:slim"),
        ("kubetm/hello", "docker.io/kubetm/hello:latest"),
        ("index.docker.io/node", "docker.io/library/node:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("reg:5000/a/b:1", "reg:5000/a/b:1"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        (f"node:1@{DIGEST}", f"docker.io/library/node:1@{DIGEST}"),
    ],
)
def test_references_are_read_as_docker_reads_them(text: str, normal: str) -> None:
    assert str(parse_reference(text)) == text
    assert str(parse_reference(text).normal) == normal


@pytest.mark.parametrize(
    "text", ["", "Node", "a b", "node:", "node@sha256:1", "-x", "a//b", "http://a/b", "a/b:c:d", "x:$y"]
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(Invalid, match="is no image reference"):
        parse_reference(text)


# ---------------------------------------------------------------- logins


async def test_logins_from_a_secret() -> None:
    auth = base64.b64encode(b"me:se:cret").decode()
    data = {"auths": {"https://index.docker.io/v1/": {"auth": auth}, "reg:5000": {"username": "a", "password": "b"}}}
    data["auths"]["reg:5000/team"] = {"username": "team", "password": "c"}
    data["credsStore"] = "never-asked"  # pyright: ignore[reportArgumentType] a Secret may say anything
    found = RegistryCredentials.from_dockerconfigjson(json.dumps(data).encode(), source="Secret shop/login")
    assert await found.login("docker.io", "library/node") == Login("me", "se:cret")
    assert await found.login("reg:5000", "x") == Login("a", "b")
    assert await found.login("reg:5000", "team/app") == Login("team", "c")
    assert await found.login("other") is None
    assert "se:cret" not in repr(found)


@pytest.mark.parametrize("data", [b"[]", b"p4ssword", b'{"auths": {"x": {"auth": "p4ssword!"}}}', b" " * (2 << 20)])
def test_a_broken_secret_is_named_and_not_quoted(data: bytes) -> None:
    with pytest.raises(Invalid, match="Secret shop/login") as caught:
        RegistryCredentials.from_dockerconfigjson(data, source="Secret shop/login")
    assert "p4ssword" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


async def test_the_users_own_logins_and_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "bin" / "docker-credential-mine"
    helper.parent.mkdir()
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$host" = none ] && exit 1\n[ "$host" = odd ] && { echo x; exit 0; }\n'
        'echo "{\\"Username\\": \\"u-$host\\", \\"Secret\\": \\"s\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    docker, podman = tmp_path / "docker", tmp_path / "auth.json"
    docker.mkdir()
    (docker / "config.json").write_text(
        json.dumps(
            {"auths": {"a": {"username": "docker", "password": "x"}}, "credHelpers": {"h": "mine", "b": "../evil"}}
        )
    )
    podman.write_text(json.dumps({"auths": {"a": {"username": "podman", "password": "x"}}}))
    found = RegistryCredentials.from_login_files({"DOCKER_CONFIG": str(docker), "REGISTRY_AUTH_FILE": str(podman)})
    assert await found.login("a") == Login("podman", "x")
    assert await found.login("h") == Login("u-h", "s")
    assert await found.login("other") is None
    with pytest.raises(Invalid, match="plain word"):
        await found.login("b")
    store = RegistryCredentials(helpers={"": "mine"})
    assert await store.login("none") is None
    with pytest.raises(Transient, match="not a login"):
        await store.login("odd")
    with pytest.raises(Transient, match="cannot be started"):
        await RegistryCredentials(helpers={"": "absent"}).login("x")


async def test_an_auth_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = await login("docker.io").auth_file({"docker.io": ("library/node",), "none": ("",)}, tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert set(json.loads(path.read_text())["auths"]) == {"docker.io", "https://index.docker.io/v1/"}


async def test_a_builder_gets_the_login_of_each_repository_that_it_needs(tmp_path: Path) -> None:
    logins = {f"reg.io/{path}": Login(path, "p") for path in ("base", "app", "other")}
    path = await RegistryCredentials(logins=logins).auth_file({"reg.io": ("base", "base/x", "app")}, tmp_path)
    auths = json.loads(path.read_text())["auths"]
    users = {key: base64.b64decode(entry["auth"]).decode().partition(":")[0] for key, entry in auths.items()}
    assert users == {"reg.io": "app", "reg.io/base": "base", "reg.io/base/x": "base", "reg.io/app": "app"}
