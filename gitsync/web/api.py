"""The JSON interface below ``/api/v1``: what an Application is doing, and the three things that can be asked of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

import orjson
from aiohttp import web

from gitsync.web.board import BOARD, View

_APPLICATION = "/api/v1/applications/{namespace}/{name}"


def json(body: object, *, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(body, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE, default=str),
        status=status,
        content_type="application/json",
    )


def add_routes(app: web.Application) -> None:
    app.router.add_get("/api/v1/applications", _list)
    app.router.add_get(_APPLICATION, _get)
    app.router.add_post(_APPLICATION + "/sync", _sync)
    app.router.add_post(_APPLICATION + "/suspend", _suspend)
    app.router.add_post(_APPLICATION + "/resume", _resume)


async def with_pods(request: web.Request) -> View:
    """The Application that the path names, with its pods. Raises 404."""
    view = find(request)
    return replace(view, pods=await request.app[BOARD].pods(view.key))


def find(request: web.Request) -> View:
    """The Application that the path names. Raises 404."""
    key = f"{request.match_info['namespace']}/{request.match_info['name']}"
    view = request.app[BOARD].application(key)
    if view is None:
        raise web.HTTPNotFound(text="no such Application")
    return view


def summary(view: View) -> dict[str, Any]:
    return {
        "namespace": view.namespace,
        "name": view.name,
        "repository": view.repository,
        "ref": view.ref,
        "suspended": view.suspended,
        "status": dict(view.status),
    }


def whole(view: View) -> dict[str, Any]:
    return summary(view) | {
        "commit": asdict(view.commit) if view.commit else None,
        "steps": [asdict(each) for each in view.steps],
        "pods": [asdict(each) for each in view.pods],
        "history": [asdict(each) for each in view.history],
        "buildLog": view.build_log,
    }


async def _list(request: web.Request) -> web.Response:
    return json({"applications": [summary(view) for view in request.app[BOARD].applications()]})


async def _get(request: web.Request) -> web.Response:
    return json(whole(await with_pods(request)))


async def _sync(request: web.Request) -> web.Response:
    board, retry = request.app[BOARD], request.query.get("retry") == "true"
    return await _ask(request, lambda key: board.sync(key, retry=retry))


async def _suspend(request: web.Request) -> web.Response:
    return await _ask(request, request.app[BOARD].suspend)


async def _resume(request: web.Request) -> web.Response:
    return await _ask(request, request.app[BOARD].resume)


async def _ask(request: web.Request, action: Callable[[str], Awaitable[None]]) -> web.Response:
    key = find(request).key
    await action(key)
    return json({"application": key}, status=202)
