"""The surface over real HTTP: who may do what, deadlines, sizes, floods, a graceful stop."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import io
import json
import time
from typing import Any

import aiohttp
import pytest

from gitsync.errors import Held, Invalid, Transient, Waiting
from gitsync.report.metrics import Metrics
from gitsync.web.server import LARGEST_BODY, Options, build, serve

from .conftest import SECRET, TOKEN, MemoryBoard, Site, Start

BEARER = {"Authorization": f"Bearer {TOKEN}"}
PUSH = {"ref": "refs/heads/main", "repository": {"clone_url": "https://git.example.com/team/shop.git"}}


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"any:{password}".encode()).decode()}


def signed(body: bytes, **more: str) -> dict[str, str]:
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={digest}"} | more


async def get(site: Site, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    async with site.http.get(path, headers=headers or {}) as answer:
        return answer.status, await answer.text()


# ---------------------------------------------------------------- who may do what


async def test_health_is_open_and_says_why_it_is_not_ready(site: Site) -> None:
    assert await get(site, "/healthz") == (200, "ok\n")
    assert await get(site, "/readyz") == (200, "ok\n")
    site.board.reason = "the cluster cannot be reached"
    assert await get(site, "/readyz") == (503, "the cluster cannot be reached\n")
    assert await get(site, "/healthz") == (200, "ok\n")


PROTECTED = ["/", "/applications/prod/shop", "/metrics", "/events", "/static/app.js", "/api/v1/applications",
             "/api/v1/applications/prod/shop", "/no/such/path"]  # fmt: skip


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, basic("wrong"),
                {"Authorization": "Basic !!"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}],
)  # fmt: skip
async def test_reading_needs_the_token(site: Site, path: str, headers: dict[str, str]) -> None:
    async with site.http.get(path, headers=headers) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert "shop" not in await answer.text()


@pytest.mark.parametrize("headers", [BEARER, basic(TOKEN), {"Authorization": f"bearer  {TOKEN}"}])
async def test_the_token_reads(site: Site, headers: dict[str, str]) -> None:
    for path in ("/", "/applications/prod/shop", "/metrics", "/api/v1/applications", "/static/style.css"):
        assert (await get(site, path, headers))[0] == 200


async def test_public_reading_does_not_open_writing(start: Start) -> None:
    site = await start(Options(token=TOKEN, public=True))
    assert (await get(site, "/api/v1/applications"))[0] == 200
    async with site.http.post("/api/v1/applications/prod/shop/sync") as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert site.board.asked == []


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer "}, basic(""), {"Authorization": "Bearer x"}])
async def test_without_a_token_nothing_that_needs_it_is_possible(start: Start, headers: dict[str, str]) -> None:
    site = await start(Options())
    status, text = await get(site, "/api/v1/applications", headers)
    assert status == 403
    assert "--public-status" in text
    async with site.http.post("/api/v1/applications/prod/shop/sync", headers=headers) as answer:
        assert answer.status == 403


async def test_a_browsers_own_credentials_change_nothing(site: Site) -> None:
    """A foreign page can make a browser send Basic credentials, but not a Bearer token."""
    async with site.http.post("/api/v1/applications/prod/shop/suspend", headers=basic(TOKEN)) as answer:
        assert answer.status == 401
    assert site.board.asked == []


# ---------------------------------------------------------------- the interface


async def test_applications_as_json(site: Site) -> None:
    _, text = await get(site, "/api/v1/applications", BEARER)
    assert [each["name"] for each in json.loads(text)["applications"]] == ["hello", "shop"]
    _, text = await get(site, "/api/v1/applications/prod/shop", BEARER)
    found = json.loads(text)
    assert found["status"]["sync"] == "Synced"
    assert found["steps"][3] == {
        "name": "rollout", "state": "running", "summary": "web: 1 of 2 ready", "seconds": None, "details": []
    }  # fmt: skip
    assert found["commit"]["at"] == "2026-05-01T12:00:00Z"
    assert found["pods"][0]["name"] == "web-1"
    assert found["history"][0]["outcome"] == "deployed"
    assert found["buildLog"] == "step 1\nstep 2"


@pytest.mark.parametrize(
    ("action", "asked"), [("sync", "sync"), ("sync?retry=true", "retry"), ("suspend", "suspend"), ("resume", "resume")]
)
async def test_actions(site: Site, action: str, asked: str) -> None:
    async with site.http.post(f"/api/v1/applications/prod/shop/{action}", headers=BEARER) as answer:
        assert answer.status == 202
        assert await answer.json() == {"application": "prod/shop"}
    assert site.board.asked == [(asked, "prod/shop")]


@pytest.mark.parametrize(
    ("error", "status", "body"),
    [
        (Invalid("no", doing="syncing"), 422, {"error": "while syncing: no", "reason": "Invalid"}),
        (Held("ask first"), 409, {"error": "ask first", "reason": "ApprovalRequired"}),
        (Transient("away"), 503, {"error": "away", "reason": "Unavailable"}),
        (Waiting("soon", retry_after=7), 503, {"error": "soon", "reason": "Waiting"}),
        (RuntimeError("hunter2"), 500, {"error": "internal error"}),
    ],
)
async def test_errors_of_actions(site: Site, error: Exception, status: int, body: dict[str, str]) -> None:
    site.board.error = error
    async with site.http.post("/api/v1/applications/prod/shop/sync", headers=BEARER) as answer:
        assert answer.status == status
        assert await answer.json() == body
        assert answer.headers.get("Retry-After") == ("7" if isinstance(error, Waiting) else None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/applications/prod/none", 404),
        ("POST", "/api/v1/applications/prod/none/sync", 404),
        ("POST", "/api/v1/applications/prod/shop/delete", 404),
        ("DELETE", "/api/v1/applications/prod/shop", 405),
        ("GET", "/static/../server.py", 404),
        ("GET", "/static/%2e%2e%2fserver.py", 404),
        ("GET", "/static/application.html", 404),
    ],
)
async def test_what_is_not_there(site: Site, method: str, path: str, status: int) -> None:
    async with site.http.request(method, path, headers=BEARER) as answer:
        assert answer.status == status
        assert "Traceback" not in await answer.text()


async def test_every_answer_has_the_security_headers(site: Site) -> None:
    for path, headers in (
        ("/", BEARER),
        ("/", {}),
        ("/healthz", {}),
        ("/none", BEARER),
        ("/api/v1/applications", BEARER),
    ):
        async with site.http.get(path, headers=headers) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "aiohttp" not in answer.headers["Server"]


async def test_metrics(site: Site) -> None:
    site.metrics.reconciled(1, "deployed")
    async with site.http.get("/metrics", headers=BEARER) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'gitsync_reconcile_duration_seconds_count{outcome="deployed"} 1.0' in await answer.text()


# ---------------------------------------------------------------- webhooks


async def post(site: Site, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    async with site.http.post("/webhook", data=io.BytesIO(body), headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_signed_push_wakes_only_whom_it_concerns(site: Site) -> None:
    body = json.dumps(PUSH).encode()
    assert await post(site, body, signed(body)) == (202, {"applications": 1})
    assert site.board.asked == [("trigger", "prod/shop")]
    assert site.count("github", "accepted") == 1


@pytest.mark.parametrize(
    ("body", "headers", "status", "provider", "outcome"),
    [
        (b"{}", {}, 401, "unknown", "unauthorized"),
        (b"{}", {"X-GitHub-Event": "push"}, 401, "github", "unauthorized"),
        (b"{} ", signed(b"{}"), 401, "github", "unauthorized"),
        (b"{}", {"X-Gitlab-Token": "wrong"}, 401, "gitlab", "unauthorized"),
        (b"{", signed(b"{"), 400, "github", "malformed"),
        (b"{}", signed(b"{}"), 400, "github", "malformed"),
        (b"{}", signed(b"{}", **{"X-GitHub-Event": "ping"}), 202, "github", "ignored"),
        (b"x" * (LARGEST_BODY + 1), signed(b""), 413, "github", "too_large"),
    ],
)
async def test_what_does_nothing_is_counted(
    site: Site, body: bytes, headers: dict[str, str], status: int, provider: str, outcome: str
) -> None:
    assert (await post(site, body, headers))[0] == status
    assert site.board.asked == []
    assert site.count(provider, outcome) == 1


async def test_the_largest_body_passes_in_one_piece_or_in_chunks(site: Site) -> None:
    body = json.dumps(PUSH | {"x": "y" * (LARGEST_BODY - 200)}).encode().ljust(LARGEST_BODY - 1)
    assert (await post(site, body, signed(body)))[0] == 202

    async def chunks(size: int) -> Any:
        for start in range(0, size, 65536):
            yield b" " * min(65536, size - start)

    async with site.http.post("/webhook", data=chunks(LARGEST_BODY + 1), headers=signed(b"")) as answer:
        assert answer.status == 413


async def test_compressed_bodies_are_never_unpacked(site: Site) -> None:
    body = gzip.compress(b" " * (50 << 20))
    status, _ = await post(site, body, signed(body, **{"Content-Encoding": "gzip"}))
    assert status == 400  # the signature is over these bytes, and they are no JSON


async def test_without_a_secret_every_webhook_is_refused(start: Start) -> None:
    site = await start(Options(token=TOKEN))
    body = json.dumps(PUSH).encode()
    digest = hmac.new(b"", body, hashlib.sha256).hexdigest()
    status, answer = await post(site, body, {"X-Gitea-Event": "push", "X-Gitea-Signature": digest})
    assert (status, answer["error"]) == (401, "no webhook secret is set")


async def test_a_flood_of_forged_and_real_ones(start: Start) -> None:
    # patient with slow clients: how fast this machine opens a thousand connections is not what is tested
    site = await start(Options(token=TOKEN, webhook_secrets=(SECRET,), read_timeout=60))
    body = json.dumps(PUSH).encode()
    good, bad = signed(body), signed(body + b" ")
    answers = await asyncio.gather(*(post(site, body, good if n % 2 else bad) for n in range(1000)))
    assert [status for status, _ in answers] == [401, 202] * 500
    assert (site.count("github", "accepted"), site.count("github", "unauthorized")) == (500, 500)


# ---------------------------------------------------------------- slow clients

SLOW = {
    "nothing": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "half a body": b"POST /webhook HTTP/1.1\r\nHost: x\r\nX-GitHub-Event: push\r\nContent-Length: 1000\r\n\r\n{",
    "a body that nobody reads": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
    "idle after an answer": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW.keys())
async def test_a_slow_request_is_cut(site: Site, sent: bytes) -> None:
    """Trickling bytes buy no time: the connection ends within its deadlines (0.5 s each here)."""
    reader, writer = await asyncio.open_connection(site.host, site.port)

    async def trickle() -> None:
        writer.write(sent)
        while sent and not sent.endswith(b"\r\n\r\n"):
            await asyncio.sleep(0.05)
            writer.write(b"a")
            await writer.drain()

    task = asyncio.create_task(trickle())
    try:
        async with asyncio.timeout(8):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1024):
                    pass
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()
    assert site.count("github", "too_slow") == (1 if b"POST" in sent else 0)


async def test_a_client_that_does_not_read_its_answer_is_cut(site: Site) -> None:
    site.board.views = {
        key: view for n in range(20_000) for key, view in [(f"prod/a{n}", site.board.views["prod/shop"])]
    }
    reader, writer = await asyncio.open_connection(site.host, site.port, limit=1024)
    request = f"GET /api/v1/applications HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    writer.write(request.encode())
    assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
    transport = writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()
    await asyncio.sleep(1.5)
    transport.resume_reading()
    received = 0
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            received += len(piece)
    assert received < 5 << 20  # of more than 10 MiB
    writer.close()


async def test_a_thousand_slow_connections_keep_nobody_out(start: Start) -> None:
    site = await start(Options(token=TOKEN, webhook_secrets=(SECRET,), read_timeout=30, grace=0.1))
    slow = [SLOW["half a head"], SLOW["half a body"], SLOW["nothing"], SLOW["idle after an answer"]]
    writers: list[asyncio.StreamWriter] = []
    try:
        for n in range(1000):
            _, writer = await asyncio.open_connection(site.host, site.port)
            writer.write(slow[n % 4])
            writers.append(writer)
        began = time.monotonic()
        assert await get(site, "/healthz") == (200, "ok\n")
        assert time.monotonic() - began < 1
    finally:
        for writer in writers:
            writer.transport.abort()


async def test_beyond_the_limit_the_longest_waiting_makes_room(start: Start) -> None:
    site = await start(Options(token=TOKEN, read_timeout=30, most_connections=50, grace=0.1))
    pairs = [await asyncio.open_connection(site.host, site.port) for _ in range(80)]
    try:
        assert await get(site, "/healthz") == (200, "ok\n")
        async with asyncio.timeout(5):
            for reader, _ in pairs[:30]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read(1) == b""
        newest = pairs[-1]
        newest[1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await newest[0].readexactly(15) == b"HTTP/1.1 200 OK"
    finally:
        for _, writer in pairs:
            writer.transport.abort()


async def test_garbage_ends_nothing(site: Site) -> None:
    for garbage in (b"\x00" * 1000, b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100_000, b"\x16\x03\x01hello\r\n\r\n"):
        reader, writer = await asyncio.open_connection(site.host, site.port)
        writer.write(garbage)
        async with asyncio.timeout(5):
            answer = await reader.read(1 << 16)
        assert b"Traceback" not in answer
        assert answer == b"" or answer.startswith(b"HTTP/1.")
        writer.close()
    assert await get(site, "/healthz") == (200, "ok\n")


# ---------------------------------------------------------------- start and stop


async def test_a_running_request_is_answered_before_the_server_stops() -> None:
    board = MemoryBoard()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow_sync(key: str, *, retry: bool) -> None:
        started.set()
        await go_on.wait()

    board.sync = slow_sync
    app = build(board, Metrics(), Options(token=TOKEN, grace=5))
    async with aiohttp.ClientSession() as http:
        async with serve(app, "127.0.0.1", 0) as (host, port):
            url = f"http://{host}:{port}"
            request = asyncio.create_task(
                http.post(f"{url}/api/v1/applications/prod/shop/sync", headers=BEARER | {"Connection": "close"})
            )
            await started.wait()
            asyncio.get_running_loop().call_later(0.2, go_on.set)
        assert (await request).status == 202
        with pytest.raises(aiohttp.ClientConnectionError):
            await http.get(f"{url}/healthz")


async def test_live_streams_do_not_delay_the_stop() -> None:
    app = build(MemoryBoard(), Metrics(), Options(public=True, grace=30))
    async with aiohttp.ClientSession() as http:
        async with serve(app, "127.0.0.1", 0) as (host, port):
            stream = await http.get(f"http://{host}:{port}/events")
            assert await stream.content.readline() == b"retry: 2000\n"
            began = time.monotonic()
        assert time.monotonic() - began < 5
        stream.close()


async def test_an_address_in_use_says_so(site: Site) -> None:
    app = build(MemoryBoard(), Metrics(), Options())
    with pytest.raises(Invalid, match=f"cannot listen on 127.0.0.1:{site.port}.*--listen"):
        async with serve(app, "127.0.0.1", site.port):
            pass
