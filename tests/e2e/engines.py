"""The daemons that two of the builders need, private to one test: dockerd and buildkitd, in the cluster's network.

Both run as root with all their files below one directory, know the cluster's registry as plain http, and end with the
context. They are in mount namespaces of their own, so that what they mount goes with them.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from tests.cluster import Cluster, binaries, leftovers, packages
from tests.e2e.world import eventually

_CGROUP = "gitsync-e2e-builder"
"""The parent of what the daemons make; removed with them."""


@contextlib.contextmanager
def engine(cluster: Cluster, builder: str, place: Path) -> Generator[Mapping[str, str]]:
    """What the named builder needs to run: yields the environment by which gitsync finds it. ``place`` is short."""
    starts = {"docker": dockerd, "buildkit": buildkitd}
    if builder not in starts:
        yield {}
        return
    place.mkdir()
    with starts[builder](cluster, place) as environment:
        yield environment


@contextlib.contextmanager
def dockerd(cluster: Cluster, place: Path) -> Generator[Mapping[str, str]]:
    """Without a bridge and without rules of the packet filter: the steps of its builds have no network."""
    where = {"data-root": place / "data", "exec-root": place / "exec", "pidfile": place / "pid"}
    argv = [packages.program("dockerd"), f"--host=unix://{place}/sock", *(f"--{k}={v}" for k, v in where.items())]
    argv += ["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
    argv += [f"--insecure-registry={cluster.registry_host}", f"--cgroup-parent=/{_CGROUP}"]
    with _daemon(cluster, argv, place):
        yield {"DOCKER_HOST": f"unix://{place}/sock"}


@contextlib.contextmanager
def buildkitd(cluster: Cluster, place: Path) -> Generator[Mapping[str, str]]:
    programs = binaries.find(binaries.BUILDKIT)
    (place / "config").write_text(
        f"root = {json.dumps(str(place / 'root'))}\n"
        f'[grpc]\naddress = ["unix://{place}/sock"]\n'
        "[worker.containerd]\nenabled = false\n"
        f'[worker.oci]\nenabled = true\nbinary = "runc"\ndefaultCgroupParent = "{_CGROUP}"\n'
        f'[registry."{cluster.registry_host}"]\nhttp = true\n'
    )
    with _daemon(cluster, [str(programs["buildkitd"]), "--config", str(place / "config")], place):
        path = os.pathsep.join([str(programs["buildctl"].parent), os.environ["PATH"]])
        yield {"GITSYNC_BUILDKIT_ADDRESS": f"unix://{place}/sock", "PATH": path}


@contextlib.contextmanager
def _daemon(cluster: Cluster, argv: Sequence[str], place: Path) -> Generator[None]:
    """Runs it until the context ends; ready when its socket is there."""
    log = place / "log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "BUILDKIT_"))}
    environment = inherited | {"PATH": packages.SEARCH_PATH}
    with log.open("wb") as out:
        privately = [packages.program("unshare"), "--mount", *argv]
        process = cluster.popen_in(privately, env=environment, stdout=out, stderr=out, start_new_session=True)

    def answers() -> bool:
        assert process.poll() is None, f"{argv[0]} ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        return (place / "sock").exists()

    try:
        eventually(answers, f"{argv[0]} listens")
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for hierarchy in Path("/sys/fs/cgroup").glob(f"**/{_CGROUP}"):
            leftovers.remove_cgroups(hierarchy)
