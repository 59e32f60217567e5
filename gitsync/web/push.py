"""A git host over smart HTTP: bare repositories below one folder, served by ``git http-backend``.

Whoever reaches the address may fetch and push, so it belongs on loopback; what a web page could send from a browser of
the same machine (a foreign Host or an Origin) is refused. Knows nothing of what a repository holds, and keeps no state
but the repositories.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path

from aiohttp import web

from gitsync.errors import Invalid, Transient
from gitsync.web.connections import Connection, Connections

LARGEST_REQUEST = 1 << 30  # bytes
DEADLINE = 900.0  # seconds for one request
_PATIENCE = 30.0  # seconds for a request's head
_CHUNK = 1 << 16
_PUSH = "git-receive-pack"


def environment(home: Path) -> dict[str, str]:
    """For a git that obeys nobody's settings but its repository's, and never a proxy."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
    }


async def git(*arguments: str, home: Path, env: Mapping[str, str] | None = None) -> str:
    """Run git with its standard output returned. ``Transient`` with what it said when it fails."""
    if not shutil.which("git"):
        raise Invalid("it is not installed", doing="running git", hint="install git")
    process = await asyncio.create_subprocess_exec(
        "git", *arguments,
        env=environment(home) | dict(env or {}), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            output, said = await process.communicate()
    finally:
        await _end(process)
    if process.returncode:
        raise Transient(said.decode(errors="replace").strip()[-1000:], doing=f"running git {arguments[0]}")
    return output.decode(errors="replace").strip()


class GitHost:
    """``pushed(name)`` is called after every request that may have moved a ref of the repository ``name``."""

    def __init__(self, root: Path, pushed: Callable[[str], None] = lambda name: None) -> None:
        self.url = ""
        self._root = root
        self._pushed = pushed
        self._hosts: frozenset[str] = frozenset()

    async def create(self, name: str, *, branch: str = "main") -> str:
        """An empty repository; returns its URL."""
        path = self._root / f"{name}.git"
        await git("init", "--quiet", "--bare", f"--initial-branch={branch}", str(path), home=self._root)
        await git("-C", str(path), "config", "http.receivepack", "true", home=self._root)
        return f"{self.url}/{name}.git"

    @contextlib.asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncGenerator[GitHost]:
        """Listens while the context lasts; port 0 takes a free one. ``Invalid`` if the address cannot be had."""
        app = web.Application()
        for method, rest in (("GET", "info/refs"), ("POST", "git-upload-pack"), ("POST", _PUSH)):
            app.router.add_route(method, f"/{{repository:[A-Za-z0-9][A-Za-z0-9._-]*}}.git/{rest}", self._answer)
        # a compressed body stays as it came: git unpacks it itself
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=2.0)
        await runner.setup()
        assert runner.server is not None
        connections = Connections(runner.server, patience=_PATIENCE, most=256)
        try:
            server = await asyncio.get_running_loop().create_server(connections, host, port)
        except OSError as error:
            await runner.cleanup()
            raise Invalid(f"cannot listen on {host}:{port}: {error.strerror}", doing="starting the git host") from error
        try:
            port = server.sockets[0].getsockname()[1]
            self.url = f"http://{host}:{port}"
            self._hosts = frozenset({f"{host}:{port}", f"localhost:{port}"})
            yield self
        finally:
            server.close()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.host not in self._hosts or "Origin" in request.headers:
            return web.Response(status=403, text="for git on this machine, not for pages in a browser\n")
        name = request.match_info["repository"]
        if not await asyncio.to_thread((self._root / f"{name}.git").is_dir):
            return web.Response(status=404, text="no such repository\n")
        connection = Connection.of(request.transport)
        if connection is not None:
            connection.begin()  # from here on the deadline is ours
        try:
            async with asyncio.timeout(DEADLINE):
                return await self._backend(request)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # the answer has begun: it can only be cut
            return web.Response(status=503)
        finally:
            if connection is not None:
                connection.end()
            if request.path.endswith(_PUSH):
                self._pushed(name)

    async def _backend(self, request: web.Request) -> web.StreamResponse:
        """One request through ``git http-backend``, by the rules of CGI."""
        variables = environment(self._root) | {
            "GIT_PROJECT_ROOT": str(self._root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "REMOTE_ADDR": request.remote or "",
        }
        if request.content_length is not None:
            variables["CONTENT_LENGTH"] = str(request.content_length)
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend",
            env=variables, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        feeding = asyncio.create_task(_feed(request, process.stdin))
        try:
            try:
                head = await process.stdout.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                return web.Response(status=500, text="git could not answer\n")
            fields = dict(line.split(": ", 1) for line in head.decode("latin-1").strip().split("\r\n"))
            response = web.StreamResponse(status=int(fields.pop("Status", "200").split()[0]), headers=fields)
            with contextlib.suppress(ConnectionResetError):  # whoever asked went away
                await response.prepare(request)
                while chunk := await process.stdout.read(_CHUNK):
                    await response.write(chunk)
                await response.write_eof()
            return response
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            await _end(process)


async def _feed(request: web.Request, stdin: asyncio.StreamWriter) -> None:
    """The body; one that is too large ends in the middle, which git refuses."""
    left = LARGEST_REQUEST
    with contextlib.suppress(ConnectionError):
        async for chunk in request.content.iter_chunked(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()


async def _end(process: asyncio.subprocess.Process) -> None:
    """With the programs that it started: http-backend only passes on what those say."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
