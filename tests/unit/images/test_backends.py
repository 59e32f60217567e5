"""The same builds by every backend: podman, docker against a real engine's API, buildctl against a real buildkitd."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gitsync.errors import BuildFailed, Invalid, Transient
from gitsync.images import ImageBuilder, Images, choose, process
from gitsync.images.buildah import Buildah
from gitsync.images.buildctl import Buildctl
from gitsync.images.docker import Docker
from gitsync.model import ImageSpec
from tests.cluster import binaries
from tests.registry import TestRegistry
from tests.unit.images.support import Bench, Repository, processes

BACKENDS = ("buildah", "podman", "docker", "buildctl")


@contextlib.asynccontextmanager
async def daemon(
    argv: list[str], ready: Path, log: Path, environ: dict[str, str] | None = None
) -> AsyncGenerator[None]:
    with log.open("wb") as out:
        started = await asyncio.create_subprocess_exec(
            *argv, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **(environ or {})}
        )
    try:
        async with asyncio.timeout(30):
            while not ready.exists():
                assert started.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(started.wait(), 10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        await started.wait()


@contextlib.asynccontextmanager
async def backend(name: str, place: Path, registry: TestRegistry) -> AsyncGenerator[ImageBuilder]:
    """The builder of that name and, where it needs one, a daemon of its own that may pull from the registry."""
    place.mkdir()
    socket = place / "sock"
    if name in ("buildah", "podman"):
        yield Buildah(place / "store", tool=name)
    elif name == "docker":
        # podman answers docker's API, so that the real docker client has a real engine without a docker daemon.
        (place / "registries").write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
        environ = {"CONTAINERS_REGISTRIES_CONF": str(place / "registries"), "BUILDAH_ISOLATION": "chroot"}
        service = ["podman", "--root", str(place / "root"), "--runroot", str(place / "run"), "--runtime", "runc"]
        async with daemon(
            [*service, "system", "service", "--time", "0", f"unix://{socket}"], socket, place / "log", environ
        ):
            yield Docker(f"unix://{socket}")
    else:
        tools = binaries.find(binaries.BUILDKIT)
        (place / "config").write_text(
            f'root = {json.dumps(str(place / "root"))}\n[grpc]\naddress = ["unix://{socket}"]\n'
            "[worker.containerd]\nenabled = false\n"
            '[worker.oci]\nenabled = true\nsnapshotter = "native"\nnetworkMode = "host"\nbinary = "runc"\n'
            f'[registry."{registry.host}"]\nhttp = true\n'
        )
        async with daemon([str(tools["buildkitd"]), "--config", str(place / "config")], socket, place / "log"):
            yield Buildctl(f"unix://{socket}", tool=str(tools["buildctl"]))


@contextlib.asynccontextmanager
async def bench(name: str) -> AsyncGenerator[Bench]:
    place = Path(tempfile.mkdtemp(prefix="gs-"))  # short: sockets and podman's runroot may not be long
    try:
        async with TestRegistry(place) as registry:
            await registry.push_image("base", "1")
            async with backend(name, place / "b", registry) as builder, Images(builder, place / "work") as images:
                assert await builder.available() is None
                yield Bench(registry, images)
    finally:
        process.remove(place)


@pytest.mark.parametrize("name", BACKENDS)
async def test_every_backend_builds_pushes_and_fails_alike(name: str, tmp_path: Path) -> None:
    repo = Repository(tmp_path / "shop")
    async with bench(name) as b:
        old = await b.registry.push_image("base", "1", {"etc/version": b"old\n"})
        await b.registry.push_image("base", "1", {"etc/version": b"new\n"})
        text = "\n".join(
            (
                "# syntax=docker/dockerfile:1",
                "ARG TAG",
                f"FROM {b.registry.host}/base:${{TAG:-2}} AS made",
                "ARG WORD",
                'SHELL ["/bin/sh", "-e", "-c"]',
                "RUN cat /etc/version && echo $WORD > /word",
                f"FROM {b.base}",
                "COPY --from=made /word /word",
                "COPY . /src/",
                "RUN cat /word && ls /src",
                "",
            )
        )
        spec = ImageSpec(name="web", context="web", dockerfile="web/Dockerfile", args=(("TAG", "1"), ("WORD", "a b")))
        files = {"web/Dockerfile": text, "web/.dockerignore": "drop", "web/drop/it": "", "web/keep.txt": ""}
        commit = await repo.commit(files)
        locked = {b.base: old}
        (image,) = (await b.ensure(commit, spec, bases=locked)).images
        assert image.built
        said = "\n".join(b.lines)
        assert "old" in said
        assert "new\n" not in said, "the tag that moved was used instead of the locked digest"
        assert "a b" in said
        assert "keep.txt" in said
        assert not any(line.endswith("drop") for line in b.lines)
        assert not (await b.ensure(commit, spec, bases=locked)).images[0].built

        await repo.commit({"web/Dockerfile": f"FROM {b.base}\nRUN true\nRUN echo it \\\n  is bad; exit 7\n"})
        with pytest.raises(BuildFailed, match="exit code 7") as caught:
            await b.ensure(await repo.snapshot(), spec)
        assert caught.value.origin
        assert caught.value.origin.line == 3
        assert "it is bad" in caught.value.message

        long = " \\\n".join(f"  && echo {number:060d}" for number in range(100))  # each builder repeats it in its error
        await repo.commit({"web/Dockerfile": f"FROM {b.base}\nRUN true \\\n{long} && exit 7\n"})
        with pytest.raises(BuildFailed, match="exit code 7") as caught:
            await b.ensure(await repo.snapshot(), spec)
        assert caught.value.origin
        assert caught.value.origin.line == 2


async def test_buildctl_knows_heredocs_links_and_ends_when_cancelled(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "shop")
    spec = ImageSpec(name="web", context=".", dockerfile="Dockerfile")
    word = uuid.uuid4().hex
    async with bench("buildctl") as b:
        text = f"FROM {b.base}\nCOPY --link <<EOF /hi\nsaid by a heredoc\nEOF\nRUN <<X\ncat /hi\nX\nHEALTHCHECK NONE\n"
        assert (await b.ensure(await repo.commit({"Dockerfile": text}), spec)).images[0].built
        assert any("said by a heredoc" in line for line in b.lines)

        commit = await repo.commit({"Dockerfile": f"FROM {b.base}\nRUN echo started; sleep 300; : {word}\n"})
        b.lines.clear()
        task = asyncio.create_task(b.ensure(commit, spec))
        async with asyncio.timeout(30):
            while not any(line.endswith("started") for line in b.lines):
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(20):
            while processes(word):
                await asyncio.sleep(0.05)


async def test_a_backend_that_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Buildctl(f"unix://{tmp_path}/nothing", tool=shutil.which("true") or "true")
    absent = Buildah(tmp_path, tool="nosuch-buildah")
    docker = Docker(f"unix://{tmp_path}/nothing")
    assert "not installed" in str(await absent.available())
    assert "no docker daemon answers" in str(await docker.available())
    with pytest.raises(Invalid, match=r"nosuch-buildah: .*not installed; docker: no docker daemon"):
        await choose([absent, docker])
    assert await choose([absent, gone]) is gone  # `true` stands for a buildctl that is answered
    with pytest.raises(Transient, match="not installed"):
        await process.run(["nosuch-program"], print)
