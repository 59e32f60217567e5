"""The first process of the cluster's namespaces: makes its world, then starts, restarts and reaps the rest.

Runs as a script of the standard library alone. ``launch`` moves itself into cgroups of the cluster's own and becomes
``unshare``, whose child ``run`` is PID 1 of the new PID namespace: when it dies, the kernel ends every process, and
with the last process the mounts, links, addresses and packet filter rules of the namespaces are gone too.
Never touches anything outside the namespaces but the cgroups that ``launch`` makes and the files of the work directory.

Control: JSON lines over the Unix socket ``control.sock`` of the work directory, one answer per line.
``{"do": "start", "name", "argv", "environment"}``, ``{"do": "kill", "name", "signal"}``, ``{"do": "status"}``.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

CGROUPS = Path("/sys/fs/cgroup")
RESTART_PAUSE = 0.5
"""Seconds before a component that ended is started again."""


def cgroup_directories(name: str) -> list[Path]:
    """The cgroup ``name`` below our own, in each mounted hierarchy."""
    places: list[Path] = []
    mounts: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        point = before.split()[4]
        if kind == "cgroup":
            for option in options.split(","):
                mounts[option] = point
        elif kind == "cgroup2":
            mounts[""] = point
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        key = controllers.split(",")[0]
        if key in mounts:
            places.append(Path(mounts[key] + path.rstrip("/")) / name)
    return places


def launch(work: Path, name: str, parameters: list[str]) -> None:
    for place in cgroup_directories(name):
        place.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty in a new group, which then admits nobody
            if (place / setting).exists() and not (place / setting).read_text().strip():
                (place / setting).write_text((place.parent / setting).read_text())
        (place / "cgroup.procs").write_text(str(os.getpid()))
    spaces = ["--net", "--ipc", "--uts", "--cgroup", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    this = [sys.executable, "-S", "-E", os.path.abspath(__file__), "run", str(work), *parameters]
    os.execvp("unshare", ["unshare", *spaces, *this])


def call(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")


def make_world(work: Path, node_ip: str) -> None:
    """Mounts, cgroups and network as a node expects them, private to these namespaces."""
    call("mount", "--make-rprivate", "/")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        point = before.split()[4]
        if kind == "cgroup":
            own = [each for each in options.split(",") if each not in ("rw", "ro", "xattr", "clone_children")]
            call("umount", point)
            call("mount", "-t", "cgroup", "-o", ",".join(own), "cgroup", point)
        elif kind == "cgroup2":
            call("umount", point)
            if point == str(CGROUPS):  # version 2 alone; a hybrid's `unified` would only confuse the runtimes
                call("mount", "-t", "cgroup2", "cgroup2", point)
                _delegate(Path(point))
    for path in ("/run", "/var/log"):
        call("mount", "-t", "tmpfs", "-o", "mode=755,size=256m", "tmpfs", path)
    upper, scratch = work / "var-lib", work / "var-lib.work"
    for directory in (upper, scratch):
        directory.mkdir()
    call("mount", "-t", "overlay", "-o", f"lowerdir=/var/lib,upperdir={upper},workdir={scratch}", "overlay", "/var/lib")
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        call("mount", "--bind", str(work / Path(path).name), path)
    Path("/run/netns").mkdir()
    call("ip", "link", "set", "lo", "up")
    call("ip", "address", "add", f"{node_ip}/32", "dev", "lo")
    # A ClusterIP is rewritten after routing, so there must be a route. It leads into a pair of links whose other end
    # has no address and is here too. (A route by lo would do, but a Service without endpoints then times out instead
    # of refusing: the kernel rejects nothing on its way through lo.)
    call("ip", "link", "add", "nowhere", "type", "veth", "peer", "name", "nowhere-end")
    for link in ("nowhere", "nowhere-end"):
        call("ip", "link", "set", link, "up")
    call("ip", "route", "add", "default", "dev", "nowhere", "src", node_ip)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _delegate(root: Path) -> None:
    """Version 2: processes only in leaves, controllers for the rest."""
    leaf = root / "init"
    leaf.mkdir()
    (leaf / "cgroup.procs").write_text("1")
    controllers = (root / "cgroup.controllers").read_text().split()
    (root / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers))


@dataclass(slots=True)
class Component:
    argv: list[str]
    environment: dict[str, str]
    pid: int = 0
    starts: int = 0
    due: float = 0.0
    """When to start it, on the monotonic clock."""


class Supervisor:
    """Starts what it is told to start, for ever: a component that ends is started again."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.components: dict[str, Component] = {}

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        name = str(order.get("name", ""))
        match order.get("do"):
            case "start":
                self.components[name] = Component(list(order["argv"]), dict(order.get("environment") or {}))
                self.start_due()
                return {"ok": True}
            case "kill":
                component = self.components.get(name)
                if component is None or not component.pid:
                    return {"ok": False, "error": f"{name} is not running"}
                os.kill(component.pid, int(order["signal"]))
                return {"ok": True}
            case "status":
                running = {
                    each: {"pid": component.pid, "starts": component.starts}
                    for each, component in self.components.items()
                }
                return {"ok": True, "components": running}
            case other:
                return {"ok": False, "error": f"unknown order {other!r}"}

    def start_due(self) -> None:
        now = time.monotonic()
        for name, component in self.components.items():
            if component.pid or component.due > now:
                continue
            log = os.open(self.work / "logs" / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ]
            try:
                component.pid = os.posix_spawn(
                    component.argv[0],
                    component.argv,
                    os.environ | component.environment,
                    file_actions=actions,
                    setsid=True,
                    setsigdef=[signal.SIGPIPE, signal.SIGTERM, signal.SIGINT],
                )
                component.starts += 1
            except OSError as error:
                os.write(log, f"cannot start {component.argv[0]}: {error}\n".encode())
                component.due = now + RESTART_PAUSE
            finally:
                os.close(log)

    def reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for component in self.components.values():
                if component.pid == pid:
                    component.pid = 0
                    component.due = time.monotonic() + RESTART_PAUSE


def _exit(*_: object) -> None:
    os._exit(0)


def _wake(*_: object) -> None:
    """A handler must stand for the wake-up descriptor to be written to."""


def run(work: Path, node_ip: str, owner: int | None) -> None:
    """``owner``: descriptor of a pipe whose other end the owner holds; its end is ours too."""
    signal.signal(signal.SIGTERM, _exit)
    make_world(work, node_ip)
    supervisor = Supervisor(work)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, _wake)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(work / "control.sock.new"))
    server.listen(8)
    os.rename(work / "control.sock.new", work / "control.sock")  # whoever finds it can connect
    selector = selectors.DefaultSelector()
    selector.register(wake_read, selectors.EVENT_READ)
    selector.register(server, selectors.EVENT_READ)
    if owner is not None:
        os.set_inheritable(owner, False)
        selector.register(owner, selectors.EVENT_READ)
    while True:
        events = selector.select(timeout=0.25)
        for key, _ in events:
            if key.fileobj == owner:
                os._exit(0)
            elif key.fileobj == wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            elif key.fileobj is server:
                _serve(server.accept()[0], supervisor)
        supervisor.reap()
        supervisor.start_due()


def _serve(connection: socket.socket, supervisor: Supervisor) -> None:
    """One order per connection; a client that says nothing for a second is dropped."""
    with connection:
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            line = connection.makefile("rb").readline(1 << 20)
            try:
                answer = supervisor.obey(cast(dict[str, Any], json.loads(line)))
            except (ValueError, KeyError, TypeError, OSError) as error:
                answer = {"ok": False, "error": repr(error)}
            connection.sendall(json.dumps(answer).encode() + b"\n")


def main(argv: list[str]) -> None:
    match argv:
        case ["launch", work, name, *parameters]:
            launch(Path(work), name, parameters)
        case ["run", work, node_ip]:
            run(Path(work), node_ip, None)
        case ["run", work, node_ip, owner]:
            run(Path(work), node_ip, int(owner))
        case _:
            raise SystemExit(f"unknown arguments {argv}")


if __name__ == "__main__":
    main(sys.argv[1:])
