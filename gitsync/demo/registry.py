"""A registry on loopback: docker-registry where it is installed, else the same program as a container."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from gitsync.errors import Invalid, Transient
from gitsync.images import process
from gitsync.sandbox.engine import Engine, EngineError

PROGRAM = "docker-registry"
IMAGE = "docker.io/library/registry:2"
_DOING = "starting a registry"
_LISTENING = re.compile(r'msg="listening on ([^"]+)"')
_PATIENCE = 20.0  # seconds to start in


@asynccontextmanager
async def registry(folder: Path, engine: Engine) -> AsyncGenerator[str]:
    """Yields its host (``127.0.0.1:5000``); what is in it lies in ``folder`` or in its container. ``Invalid``."""
    if shutil.which(PROGRAM):
        async with _program(folder) as host:
            yield host
    else:
        async with _container(engine) as host:
            yield host


@asynccontextmanager
async def _program(folder: Path) -> AsyncGenerator[str]:
    config = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder)}},
        "http": {"addr": "127.0.0.1:0", "secret": "needs none: it is alone"},
    }
    file = folder / "config.yml"
    await asyncio.to_thread(file.write_text, json.dumps(config))
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def note(line: str) -> None:
        if (match := _LISTENING.search(line)) and not listening.done():
            listening.set_result(match[1])

    running = asyncio.create_task(process.run([PROGRAM, "serve", str(file)], note))  # dies with us
    try:
        await asyncio.wait({running, listening}, timeout=_PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            said = "\n".join(running.result().lines[-5:]) if running.done() else f"not ready after {_PATIENCE:.0f} s"
            raise Transient(f"{PROGRAM} does not listen: {said}", doing=_DOING)
        yield listening.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def _container(engine: Engine) -> AsyncGenerator[str]:
    try:
        if not (await engine.has_image(IMAGE))[0]:
            await engine.pull(IMAGE, None)
    except EngineError as error:
        hint = "install docker-registry (Debian: apt-get install docker-registry)"
        raise Invalid(f"{IMAGE} cannot be pulled ({error})", doing=_DOING, hint=hint) from error
    network, _ = await engine.network()
    made = await engine.create([*network, "--publish", "127.0.0.1::5000", IMAGE], env={})
    try:
        state = await engine.state(made)
        host = f"127.0.0.1:{state.ports[5000]}" if state and 5000 in state.ports else ""
        if not host or not await _answers(host):
            raise Transient(f"the container of {IMAGE} does not answer", doing=_DOING)
        yield host
    finally:
        await asyncio.shield(engine.remove(made))


async def _answers(host: str) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"http://{host}/v2/") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)
    except TimeoutError:
        return False
