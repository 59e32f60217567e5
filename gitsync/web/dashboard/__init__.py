"""The status page: all Applications, and for one of them the way from commit to pods.

Rendered here, readable without JavaScript. With it, the page listens to a stream of names and, when one concerns it,
fetches itself again: the browser never builds markup from data.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from urllib.parse import urlsplit

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from gitsync.web import api
from gitsync.web.board import BOARD, View

STREAM = "/events"
MOST_STREAMS = 256
PING = 15.0  # seconds of silence after which a comment keeps the stream alive
STALL = 10.0  # seconds after which a client that does not read is given up

_NO_STATUS = {"sync": "Unknown", "health": "Unknown", "revision": "", "images": (), "findings": (), "quarantined": ()}
_STATIC = {"app.js": "text/javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}


def add_routes(app: web.Application) -> None:
    app.router.add_get("/", _index)
    app.router.add_get("/applications/{namespace}/{name}", _application)
    app.router.add_get(STREAM, _stream, allow_head=False)  # its answer never ends
    app.router.add_get("/static/{name}", _static)


# ---------------------------------------------------------------- pages


def _page(template: str, **values: object) -> web.Response:
    text = _environment.get_template(template).render(now=datetime.now(UTC), **values)
    return web.Response(text=text, content_type="text/html")


async def _index(request: web.Request) -> web.Response:
    return _page("index.html", views=[_complete(view) for view in request.app[BOARD].applications()])


async def _application(request: web.Request) -> web.Response:
    return _page("application.html", view=_complete(await api.with_pods(request)))


def _complete(view: View) -> View:
    """With every field of the status that templates name: a young Application has few."""
    return replace(view, status=_NO_STATUS | dict(view.status))


async def _static(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if name not in _STATIC:
        raise web.HTTPNotFound(text="no such file")
    return web.Response(body=_files[name], content_type=_STATIC[name], charset="utf-8")


# ---------------------------------------------------------------- the stream


async def _stream(request: web.Request) -> web.StreamResponse:
    """Server-sent events: one ``change`` with a key per Application that changed; never anything else."""
    changes = request.app[BOARD].changes
    if len(changes) >= MOST_STREAMS:
        raise web.HTTPServiceUnavailable(text="too many live pages are open")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    response.enable_chunked_encoding()
    with changes.subscribe() as subscription:
        await response.prepare(request)
        try:
            await _send(response, "retry: 2000\n\n")
            while not subscription.closed:
                keys = await subscription.next(PING)
                # names of Kubernetes objects: they cannot hold a newline
                await _send(response, "".join(f"event: change\ndata: {key}\n\n" for key in sorted(keys)) or ":\n\n")
        except (TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
    return response


async def _send(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(STALL):
        await response.write(text.encode())


# ---------------------------------------------------------------- what templates use


def _safe_url(value: str) -> str:
    """The URL if a link may go there, else nothing: what a repository says could be ``javascript:``."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return ""
    return value if parts.scheme in ("http", "https") and parts.hostname and not parts.username else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def _moment(value: datetime | str) -> str:
    if isinstance(value, str):
        return value.replace("T", " ").removesuffix("Z")
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _short(revision: str) -> str:
    """``main@sha1:0123456789…`` → ``main@0123456``."""
    ref, _, sha = revision.rpartition("sha1:")
    return f"{ref}{sha[:7]}" if sha else revision


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gitsync.web.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"safe_url": _safe_url, "duration": _duration, "moment": _moment, "short": _short}
    return environment


_environment = _make_environment()
_files = {name: files(__name__).joinpath("static", name).read_bytes() for name in _STATIC}
