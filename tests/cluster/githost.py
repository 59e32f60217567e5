"""A git host over smart HTTP for tests: repositories, a login, a callback after each push, and failures at will.

Runs ``git http-backend`` behind aiohttp in a thread and event loop of its own, so that a test may drive it from
anywhere. Owns the folder it is given; keeps no state but the repositories in it.
"""

import asyncio
import base64
import contextlib
import enum
import hmac
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from aiohttp import web


class Failure(enum.Enum):
    """What the host does instead of answering."""

    NONE = "none"
    ERROR = "500"
    HTML = "a page of HTML with status 200, as a proxy's login page"
    SILENCE = "nothing, for as long as the client waits"
    TRICKLE = "one byte a second"


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A ref that a push moved. ``old`` and ``new`` are 40 digits, zeros for none."""

    repository: str
    ref: str
    old: str
    new: str


_NOTHING = "0" * 40


class GitHost:
    """``with GitHost(folder, address="10.11.0.1", port=3000) as host: …``

    Port 0 takes a free one. ``within`` runs first in the host's thread: a function that moves the thread into a
    network namespace. ``certificate`` (chain, key) makes it https.
    """

    def __init__(
        self,
        root: Path,
        *,
        address: str,
        port: int = 3000,
        user: str = "git",
        password: str = "push-please",
        certificate: tuple[Path, Path] | None = None,
        within: Callable[[], None] | None = None,
    ) -> None:
        self.root = root
        self.user, self.password = user, password
        self.failure = Failure.NONE
        """Takes effect with the next request; a request in silence ends when this changes."""
        self.on_push: Callable[[Push], None] | None = None
        """Called in a thread of its own for every ref a push moved, after the push was acknowledged."""
        self.requests = 0
        """How many requests came, those that failed on purpose included."""
        self.fetches: list[tuple[float, str]] = []
        """When (``time.monotonic``) somebody who was let in asked for refs to fetch, and of which repository."""
        self._address, self._port = address, port
        self._certificate, self._within = certificate, within
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._error: BaseException | None = None

    @property
    def base_url(self) -> str:
        return f"{'https' if self._certificate else 'http'}://{self._address}:{self._port}"

    def url(self, repository: str) -> str:
        """Without the login."""
        return f"{self.base_url}/{repository}.git"

    def create(self, repository: str, *, branch: str = "main") -> Path:
        """An empty bare repository; returns its folder."""
        path = self.root / f"{repository}.git"
        path.parent.mkdir(parents=True, exist_ok=True)
        _git("init", "--quiet", "--bare", f"--initial-branch={branch}", str(path))
        _git("-C", str(path), "config", "http.receivepack", "true")
        _git("-C", str(path), "config", "uploadpack.allowAnySHA1InWant", "true")
        return path

    def __enter__(self) -> "GitHost":
        self._thread = threading.Thread(target=self._main, name="githost", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise RuntimeError(f"the git host on {self.base_url} did not start") from self._error
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(timeout=20)

    def _main(self) -> None:
        try:
            if self._within is not None:
                self._within()
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{repository:.+?\\.git}/{rest:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        context = None
        if self._certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*self._certificate)
        try:
            await web.TCPSite(runner, self._address, self._port, ssl_context=context, reuse_address=True).start()
            self._port = runner.addresses[0][1]
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        match self.failure:
            case Failure.ERROR:
                return web.Response(status=500, text="Internal Server Error\n")
            case Failure.HTML:
                return web.Response(text="<!doctype html><title>Sign in</title>\n", content_type="text/html")
            case Failure.SILENCE:
                await self._while(Failure.SILENCE)
            case _:
                pass
        if not self._admits(request.headers.get("Authorization", "")):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        name = request.match_info["repository"]
        repository = self.root / name
        if ".." in Path(name).parts or not await asyncio.to_thread(repository.is_dir):
            return web.Response(status=404, text="no such repository\n")
        if request.query.get("service") == "git-upload-pack":
            self.fetches.append((time.monotonic(), name.removesuffix(".git")))
        pushing = request.match_info["rest"] == "git-receive-pack"
        before = await _refs(repository) if pushing else {}
        response = await self._backend(request)
        if pushing:
            after = await _refs(repository)
            self._tell(name.removesuffix(".git"), before, after)
        return response

    def _admits(self, authorization: str) -> bool:
        wanted = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return hmac.compare_digest(authorization.encode(), wanted.encode())

    async def _while(self, failure: Failure) -> None:
        while self.failure is failure:
            await asyncio.sleep(0.1)

    async def _backend(self, request: web.Request) -> web.StreamResponse:
        """One request through ``git http-backend``, by the rules of CGI."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "HOME": str(self.root),
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "REMOTE_USER": self.user,
            "REMOTE_ADDR": request.remote or "",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        if encoding := request.headers.get("Content-Encoding"):
            environment["HTTP_CONTENT_ENCODING"] = encoding
        elif length := request.headers.get("Content-Length"):
            environment["CONTENT_LENGTH"] = length
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 20
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeding = asyncio.ensure_future(_feed(request, process.stdin))
        try:
            head = await process.stdout.readuntil(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode("latin-1").strip().split("\r\n"))
            status = int(fields.pop("Status", "200").split()[0])
            response = web.StreamResponse(status=status, headers=fields)
            await response.prepare(request)
            while chunk := await process.stdout.read(1 if self.failure is Failure.TRICKLE else 1 << 16):
                await response.write(chunk)
                if self.failure is Failure.TRICKLE:
                    await asyncio.sleep(1)
            await response.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 5)
        finally:
            feeding.cancel()
            if process.returncode is None:  # killing one that has just ended would take its exit code from the watcher
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await feeding
        return response

    def _tell(self, repository: str, before: dict[str, str], after: dict[str, str]) -> None:
        tell = self.on_push
        if tell is None:
            return
        for ref in sorted({*before, *after}):
            old, new = before.get(ref, _NOTHING), after.get(ref, _NOTHING)
            if old != new:
                push = Push(repository=repository, ref=ref, old=old, new=new)
                threading.Thread(target=tell, args=(push,), name="githost-push", daemon=True).start()


async def _feed(request: web.Request, stdin: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for chunk in request.content.iter_chunked(1 << 16):
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()


async def _refs(repository: Path) -> dict[str, str]:
    process = await asyncio.create_subprocess_exec(
        "git",
        "-C",
        str(repository),
        "for-each-ref",
        "--format=%(refname) %(objectname)",
        stdout=subprocess.PIPE,
    )
    listed, _ = await process.communicate()
    return dict(cast(tuple[str, str], tuple(line.split(" ", 1))) for line in listed.decode().splitlines())


def _git(*arguments: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", *arguments], check=True, capture_output=True, timeout=60, env=environment)
