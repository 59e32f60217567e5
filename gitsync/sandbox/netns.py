"""Network namespaces made by this process (Linux, as root): one for each pod, without a bridge or a firewall rule.

Sockets are made inside a namespace and then used like any other: a probe dials into the pod. One more namespace, linked
to every pod, has all addresses of Services: there they listen, so that a pod may use each port itself. The kernel frees
a namespace with its last process and descriptor, and a link with either of its ends, so nothing can be left behind.
``supported`` says whether this machine and user can.
"""

import asyncio
import ctypes
import fcntl
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40
_T = TypeVar("_T")


def supported() -> bool:
    """Tries it: capabilities, seccomp and the kernel all have a say."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    try:
        with closing(ServiceNetwork()) as services, closing(NetworkNamespace()) as pod:
            services.link(pod, f"{POD_NETWORK}.0.1")
    except (OSError, subprocess.TimeoutExpired):
        return False
    return True


def _call(name: str, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


class NetworkNamespace:
    """A namespace whose loopback device is up. ``path`` can be given to a container engine while this is open."""

    def __init__(self) -> None:
        # A thread that enters a namespace must not serve anything else: one thread makes it and ends,
        # another stays inside for as long as this is open.
        self._fd = -1
        failure: list[OSError] = []

        def make() -> None:
            try:
                _call("unshare", _CLONE_NEWNET)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                    request = struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING)
                    fcntl.ioctl(control, _SIOCSIFFLAGS, request)
                self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=make, name="netns")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        self._inside = ThreadPoolExecutor(1, "netns", lambda: _call("setns", self._fd, _CLONE_NEWNET))

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    async def within(self, make: Callable[[], _T]) -> _T:
        """Run a short function inside the namespace. It runs to its end even if the caller is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._inside, make)

    async def _socket(self, make: Callable[[], socket.socket]) -> socket.socket:
        """A socket that ``make`` opens inside; closed again if nobody waits for it any more."""
        opening = asyncio.ensure_future(self.within(make))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().close())
            raise

    async def listen(self, address: str, port: int) -> socket.socket:
        """A listening socket in the namespace. ``OSError`` if the address is taken."""

        def make() -> socket.socket:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                listener.listen(512)
                listener.setblocking(False)
            except OSError:
                listener.close()
                raise
            return listener

        return await self._socket(make)

    async def dial(self, address: str, port: int) -> socket.socket:
        """A connected socket whose other end is in the namespace."""

        def make() -> socket.socket:
            found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            found.setblocking(False)
            return found

        connection = await self._socket(make)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def configure(self, *lines: str) -> None:
        """Run lines of ``ip`` inside. Blocks. ``OSError`` with its words."""
        program = shutil.which("ip") or "/sbin/ip"
        text = "".join(f"{line}\n" for line in lines)

        def run() -> None:
            done = subprocess.run([program, "-batch", "-"], input=text, capture_output=True, text=True, timeout=20)
            if done.returncode:
                raise OSError(f"{program}: {done.stderr.strip()[:300]}")

        self._inside.submit(run).result()

    def close(self) -> None:
        self._inside.shutdown(wait=True)
        os.close(self._fd)


SERVICE_NETWORK, POD_NETWORK = "10.96", "10.97"
"""The first half of addresses of Services as pods know them, and of pods as Services know them."""


def inside(address: str) -> str:
    """A cluster address as pods know it: those on loopback would never leave the pod."""
    return f"10.{address.removeprefix('127.')}" if address.startswith("127.") else address


class ServiceNetwork(NetworkNamespace):
    """Has every address of Services, and a link to each pod."""

    def __init__(self) -> None:
        super().__init__()
        self._links = itertools.count()
        try:
            self.configure(f"route add local {SERVICE_NETWORK}.0.0/16 dev lo")
        except BaseException:
            self.close()
            raise

    def link(self, pod: NetworkNamespace, address: str) -> None:
        """Let a pod, at ``address``, reach the Services. Blocks."""
        name = f"pod{next(self._links)}"
        self.configure(
            f"link add {name} type veth peer name services netns {pod.path}",
            f"link set {name} up",
            f"route add {address}/32 dev {name}",
        )
        pod.configure(
            f"addr add {address}/32 dev services",
            "link set services up",
            f"route add {SERVICE_NETWORK}.0.0/16 dev services src {address}",
        )
