"""What a cluster may leave on the machine: found, removed, and proven gone.

Removes only what carries the cluster's name or lives in its namespaces; what appeared on the machine meanwhile and
could be ours (a link, a rule of the packet filter) is reported, not removed.
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .packages import program

_RULES_OF_CLUSTERS = ("KUBE-", "CNI-", "NETAVARK", "flannel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What the machine had before the cluster was started."""

    links: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Spaces:
    """Inode numbers of the cluster's namespaces, as ``/proc/PID/ns/*`` shows them.

    They are held open until ``close``: the kernel gives the number of a namespace that is gone to the next one, and a
    stranger's process would look like one of the cluster's.
    """

    net: str = ""
    pid: str = ""
    held: tuple[int, ...] = ()

    @staticmethod
    def of(pid: int) -> "Spaces":
        held = tuple(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "pid"))
        net, space = (os.readlink(f"/proc/self/fd/{each}") for each in held)
        return Spaces(net=net, pid=space, held=held)

    def close(self) -> None:
        for each in self.held:
            os.close(each)


def survey() -> Before:
    return Before(links=tuple(sorted(os.listdir("/sys/class/net"))), rules=tuple(_cluster_rules()))


def processes(spaces: Spaces) -> dict[int, str]:
    """Every process in one of the namespaces → its command; ourselves included if we entered."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for kind, wanted in (("net", spaces.net), ("pid", spaces.pid)):
                if wanted and os.readlink(entry / "ns" / kind) == wanted:
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
    return found


def mounts(work: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if str(work) in line]


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_gone(spaces: Spaces, *, patience: float = 20) -> None:
    """Wait until no process is left in the PID namespace."""
    deadline = time.monotonic() + patience
    while processes(Spaces(pid=spaces.pid)) and time.monotonic() < deadline:
        time.sleep(0.02)


def remove_cgroups(root: Path, *, patience: float = 10) -> None:
    deadline = time.monotonic() + patience
    for directory, _, _ in os.walk(root, topdown=False):
        while True:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                pass
            except OSError:  # a process that died just now is still counted
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
            break


def check(cgroups: list[Path], work: Path, spaces: Spaces, before: Before) -> list[str]:
    """What is still there, one sentence each; empty when the cluster left nothing."""
    # The kernel kills the pods' own PID namespaces after the outer one, and on a busy machine that takes a moment.
    deadline = time.monotonic() + 20
    while processes(spaces) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [f"process {pid} ({comm}) still runs" for pid, comm in processes(spaces).items()]
    left += [f"{point} is still mounted" for point in mounts(work)]
    left += [f"cgroup {path} still exists" for path in cgroups if path.exists()]
    left += [f"network interface {link} appeared" for link in os.listdir("/sys/class/net") if link not in before.links]
    left += [f"packet filter rule {rule!r} appeared" for rule in _cluster_rules() if rule not in before.rules]
    if work.exists():
        left.append(f"{work} still exists")
    return left


def _cluster_rules() -> list[str]:
    """Rules of the machine's own packet filter that a cluster or a container engine may have written."""
    done = subprocess.run([program("iptables-save")], capture_output=True, text=True, timeout=30)
    return sorted({line for line in done.stdout.splitlines() if any(each in line for each in _RULES_OF_CLUSTERS)})
