"""The server: routes, who may ask, deadlines, headers, and a graceful stop.

``/healthz`` and ``/readyz`` are open to all, ``/webhook`` to whoever signs. Everything else is read with the token
(``Authorization: Bearer``, or as the password that a browser asks for) unless reading is public; whatever changes
something always needs it as Bearer, which no foreign page can make a browser send.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from gitsync.errors import GitsyncError, Held, Invalid, Transient, Waiting
from gitsync.report import metrics as metrics_
from gitsync.report.metrics import Metrics
from gitsync.web import api, dashboard, webhooks
from gitsync.web.board import BOARD, Board
from gitsync.web.connections import Connection, Connections

log = structlog.get_logger(__name__)

LARGEST_BODY = 1 << 20  # bytes

_HEADERS = {
    "Server": "gitsync",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OPEN_TO_ALL = frozenset({"/healthz", "/readyz", "/webhook"})
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the surface behaves. Durations are seconds."""

    token: str = ""  # empty: nothing that needs it is possible
    public: bool = False  # anybody may read
    webhook_secrets: tuple[str, ...] = ()  # empty: every webhook is refused
    read_timeout: float = 10.0  # for a request's head, and again for its body
    handler_timeout: float = 30.0  # for everything but live streams
    most_connections: int = 4096
    grace: float = 10.0  # for requests that are running when the server stops


OPTIONS = web.AppKey("OPTIONS", Options)
METRICS = web.AppKey("METRICS", Metrics)


def build(board: Board, metrics: Metrics, options: Options) -> web.Application:
    """The application with all its routes. No I/O."""
    app = web.Application(
        middlewares=[_timed, _explained, _authorized],
        client_max_size=LARGEST_BODY,
    )
    app[BOARD] = board
    app[METRICS] = metrics
    app[OPTIONS] = options
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(_end_streams)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)
    app.router.add_post("/webhook", _webhook)
    api.add_routes(app)
    dashboard.add_routes(app)
    return app


@asynccontextmanager
async def serve(app: web.Application, host: str, port: int) -> AsyncGenerator[tuple[str, int], None]:
    """Listens while the context lasts; yields the address (port 0 asks for a free one).

    Leaving stops listening, lets running requests finish within the grace, and ends live streams.
    Raises ``Invalid`` if the address cannot be had.
    """
    options = app[OPTIONS]
    # compressed bodies stay as they came: signatures are over the raw bytes, and there is no bomb to unpack
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=options.grace)
    await runner.setup()
    assert runner.server is not None
    connections = Connections(runner.server, patience=options.read_timeout, most=options.most_connections)
    try:
        server = await asyncio.get_running_loop().create_server(connections, host, port, backlog=1024)
    except OSError as error:
        await runner.cleanup()
        raise Invalid(
            f"cannot listen on {host}:{port}: {error.strerror}", doing="starting the HTTP server",
            hint="another process may have the port: choose one with --listen", reason="AddressUnavailable",
        ) from error  # fmt: skip
    try:
        name = server.sockets[0].getsockname()
        yield str(name[0]), int(name[1])
    finally:
        server.close()
        await runner.cleanup()


# ---------------------------------------------------------------- around every request


@web.middleware
async def _timed(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """The connection's deadline rests while a handler works; the handler has its own."""
    connection = Connection.of(request.transport)
    if connection is not None:
        connection.begin()
    try:
        if request.path == dashboard.STREAM:
            return await handler(request)
        async with asyncio.timeout(request.app[OPTIONS].handler_timeout):
            return await handler(request)
    except TimeoutError:
        return _say(request, 503, "took too long")
    finally:
        if connection is not None:
            connection.end()


@web.middleware
async def _explained(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every error becomes one sentence; what nobody foresaw is logged and says nothing."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = _say(request, error.status, error.text or error.reason)
        for name in ("Allow", "WWW-Authenticate"):
            if name in error.headers:
                response.headers[name] = error.headers[name]
        return response
    except GitsyncError as error:
        status = 503 if isinstance(error, Transient) else 409 if isinstance(error, Held) else 422
        response = _say(request, status, str(error), error.reason)
        if isinstance(error, Waiting):
            response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
        return response
    except (asyncio.CancelledError, TimeoutError, ConnectionError):
        raise
    except Exception:
        log.exception("request failed", method=request.method, path=request.path[:256])
        return _say(request, 500, "internal error")


def _say(request: web.Request, status: int, message: str, reason: str = "") -> web.Response:
    if request.path.startswith("/api/") or request.path == "/webhook":
        body = {"error": message} | ({"reason": reason} if reason else {})
        return api.json(body, status=status)
    return web.Response(status=status, text=f"{status}: {message}\n")


@web.middleware
async def _authorized(request: web.Request, handler: _Handler) -> web.StreamResponse:
    options = request.app[OPTIONS]
    if request.path in _OPEN_TO_ALL:
        return await handler(request)
    reads = request.method in ("GET", "HEAD")
    if (reads and options.public) or _has_token(request, options.token, bearer_only=not reads):
        return await handler(request)
    if not options.token:
        raise web.HTTPForbidden(text="no token is set: start with --api-token-file, or --public-status to let all read")
    challenge = 'Basic realm="gitsync", charset="UTF-8"' if reads else 'Bearer realm="gitsync"'
    raise web.HTTPUnauthorized(text="needs the API token", headers={"WWW-Authenticate": challenge})


def _has_token(request: web.Request, token: str, *, bearer_only: bool) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given = given.strip()
    if scheme.lower() == "basic" and not bearer_only:
        try:
            given = base64.b64decode(given, validate=True).decode(errors="replace").partition(":")[2]
        except (binascii.Error, ValueError):
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    # of the digests, so that not even the length shows
    same = hmac.compare_digest(
        hashlib.sha256(given.encode(errors="replace")).digest(), hashlib.sha256(token.encode()).digest()
    )
    return same and bool(token)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


async def _end_streams(app: web.Application) -> None:
    app[BOARD].changes.close()


# ---------------------------------------------------------------- small answers


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def _readyz(request: web.Request) -> web.Response:
    reason = request.app[BOARD].not_ready()
    return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")


async def _metrics(request: web.Request) -> web.Response:
    body = await asyncio.to_thread(request.app[METRICS].render)
    return web.Response(body=body, headers={"Content-Type": metrics_.CONTENT_TYPE})


async def _webhook(request: web.Request) -> web.Response:
    """Verify, name, enqueue, answer: everything else happens after the sender has its 202."""
    options, metrics = request.app[OPTIONS], request.app[METRICS]
    claimed = webhooks.detect(request.headers)
    label = claimed.value if claimed else "unknown"
    try:
        async with asyncio.timeout(options.read_timeout):
            raw_body = await request.read()
    except TimeoutError:
        metrics.webhook(label, "too_slow")
        raise web.HTTPRequestTimeout(text="the body took too long") from None
    except web.HTTPRequestEntityTooLarge:
        metrics.webhook(label, "too_large")
        raise
    provider = webhooks.verify(request.headers, raw_body, options.webhook_secrets, now=time.time())
    if provider is None:
        metrics.webhook(label, "unauthorized")
        log.warning("webhook refused", provider=label, remote=request.remote)
        text = "the signature is wrong or missing" if options.webhook_secrets else "no webhook secret is set"
        raise web.HTTPUnauthorized(text=text)
    try:
        trigger = webhooks.parse(provider, request.headers, raw_body)
    except Invalid as error:
        metrics.webhook(label, "malformed")
        raise web.HTTPBadRequest(text=str(error)) from None
    woken = request.app[BOARD].trigger(trigger) if trigger is not None else 0
    metrics.webhook(label, "accepted" if trigger is not None else "ignored")
    log.debug("webhook accepted", provider=label, applications=woken)
    return api.json({"applications": woken}, status=202)
