"""``gitsync demo`` as a person runs it: what it shows and counts, and that nothing of it stays, however it ends."""

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from gitsync.demo import registry
from gitsync.demo.base import libraries
from gitsync.errors import Invalid
from gitsync.sandbox.engine import OWNER_LABEL, Engine, find

PREFERRED = (3000, 8080, 8200)


class Demo:
    """One run. ``text`` is what it told so far, on a screen that is no terminal."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, *options: str) -> None:
        self._told = folder / "told"
        self.out = folder / "out"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GITSYNC_")}
        with self._told.open("wb") as told, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gitsync", "demo", "--offline", *options],
                env=environment | {"TMPDIR": str(folder)}, stdout=out, stderr=told, start_new_session=True,
            )  # fmt: skip
        stack.callback(self.end, signal.SIGINT)

    @property
    def text(self) -> str:
        return self._told.read_text()

    def until(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        return eventually(lambda: re.search(pattern, self.text), f"“{pattern}”", self, seconds)

    def address(self, what: str) -> str:
        return self.until(rf"{what}: +(http://127\.0\.0\.1:\d+/\S*)")[1]

    def end(self, number: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(120)


def eventually(look: Callable[[], Any], what: str, demo: Demo, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert demo.process.poll() is None, demo.text
        assert time.monotonic() < deadline, f"{what} never came:\n{demo.text}"
        time.sleep(0.1)
    return found


Start = Callable[..., Demo]


@pytest.fixture
def start(folder: Path) -> Generator[Start]:
    """Starts a demo with options; it is ended with the test at the latest."""
    with contextlib.ExitStack() as stack:
        yield lambda *options: Demo(folder, stack, *options)


@pytest.fixture
def folder() -> Generator[Path]:
    """For all temporary files; short, as the engines allow paths of 50 characters only."""
    place = Path(tempfile.mkdtemp(prefix="gd-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


def containers(folder: Path, *options: str) -> list[str]:
    shown = subprocess.run(
        [find(), "ps", *(options or ["--all"]), "--format", f'{{{{index .Labels "{OWNER_LABEL}"}}}}'],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [line for line in shown.split() if line.startswith(f"{folder}/")]


def images(host: str) -> list[str]:
    shown = subprocess.run(
        [find(), "images", "--format", "{{.Repository}}"], capture_output=True, text=True, check=True
    )
    return [line for line in shown.stdout.split() if line.startswith(f"{host}/")]


def processes(folder: Path) -> list[bytes]:
    found: list[bytes] = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [line] if os.fsencode(folder) in (line := place.read_bytes()) else []
    return found


def listens(url: str) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", int(re.findall(r":(\d+)", url)[0]))) == 0


def check_nothing_is_left(demo: Demo, folder: Path) -> None:

    host = re.findall(r"a registry listens on (\S+)", demo.text)[0]
    assert containers(folder) == []
    assert images(host) == []
    assert processes(folder) == []
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert sorted(each.name for each in folder.iterdir()) == ["out", "told"]
    for url in {f"http://{host}", *re.findall(r"http://127\.0\.0\.1:\d+", demo.text)}:
        assert not listens(url), url


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def test_ctrl_c_in_the_middle_of_a_rollout_leaves_nothing(folder: Path, start: Start) -> None:
    demo = start()
    assert get(demo.address("the app")) == "Hello Kubernetes!\n"
    assert "default/hello" in get(demo.address("the status page"))
    demo.until("git push: “Hello again!”")
    page = demo.address("the status page")
    demo.process.send_signal(signal.SIGINT)
    eventually(lambda: not listens(page), "the end of the status page", demo)
    assert demo.end(signal.SIGINT) == 0, demo.text  # a second one, by an impatient person
    check_nothing_is_left(demo, folder)


def test_the_commands_that_it_prints_change_the_app_after_another_demo_was_killed(folder: Path, start: Start) -> None:
    killed = start()
    killed.until("rollout ")
    # One that is only being created would be withdrawn by the engine itself.
    eventually(lambda: containers(folder, "--filter", "status=running"), "a running container", killed)
    killed.end(signal.SIGKILL)
    assert containers(folder)
    left = {each.name for each in folder.iterdir()} - {"out", "told"}
    assert left

    with contextlib.ExitStack() as stack:
        for port in PREFERRED:  # taken, by us or by somebody else
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken.bind(("127.0.0.1", port))
                taken.listen()
        demo = start("--once", "--wait", "--output", "json")
        app = demo.address("the app")
        assert not {int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", demo.text)} & set(PREFERRED)
    assert get(app) == "Hello Kubernetes!\n"
    assert not left & {each.name for each in folder.iterdir()}
    commands = re.search(r"terminal:\n\n((?: +\S.*\n){3})", demo.text)
    assert commands is not None
    home = folder / "person"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n\tname = A Person\n\temail = person@example.com\n")
    subprocess.run(["sh", "-ec", commands[1]], cwd=home, env=os.environ | {"HOME": str(home)}, check=True)
    shutil.rmtree(home)

    assert demo.process.wait(120) == 0, demo.text
    figures = json.loads(demo.out.read_text())
    assert figures["requestsFailed"] == 0
    assert figures["failures"] == {}
    assert set(figures["versions"]) == {"Hello Kubernetes!", "Good morning!"}
    assert sum(figures["versions"].values()) == figures["requestsAnswered"]
    assert figures["baseImage"] == "assembled"
    assert 0 < figures["secondsFromPushToServed"] < figures["secondsToPushedChangeServed"]
    for name in ("commit", "images", "plan", "rollout", "pods"):
        assert len(re.findall(rf"s  {name} ", demo.text)) == 2, demo.text
    check_nothing_is_left(demo, folder)


async def test_without_docker_registry_a_container_is_the_registry(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Path(str(shutil.which("docker-registry")))
    name = "localhost/gitsync/registry-test:1"
    config = {"version": "0.1", "storage": {"filesystem": {"rootdirectory": "/data"}}, "http": {"addr": ":5000"}}
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for path in (program, *libraries(program)):
            tar.add(path.resolve(), str(path))
        entry = tarfile.TarInfo("config.yml")
        entry.size = len(json.dumps(config))
        tar.addfile(entry, io.BytesIO(json.dumps(config).encode()))
        for path in ("data", "tmp"):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
    changes = ["--change", f'ENTRYPOINT ["{program}"]', "--change", 'CMD ["serve", "/config.yml"]']
    subprocess.run([find(), "import", *changes, str(archive), name], capture_output=True, check=True)
    engine = Engine(find(), str(folder / "sandbox"))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(registry, "IMAGE", name)
            patched.setattr(registry, "PROGRAM", "not-installed-anywhere")
            async with registry.registry(folder, engine) as host:
                assert await asyncio.to_thread(get, f"http://{host}/v2/") == "{}"
                assert len(containers(folder)) == 1
            assert containers(folder) == []
            patched.setattr(registry, "IMAGE", "127.0.0.1:9/nobody/there:1")
            with pytest.raises(Invalid, match=r"cannot be pulled.*; install docker-registry"):
                async with registry.registry(folder, engine):
                    pass
    finally:
        subprocess.run([find(), "rmi", "--force", name], capture_output=True, check=True)
