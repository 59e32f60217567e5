"""The demo where docker is the engine: a real dockerd, in a network, mounts and processes of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.cluster import leftovers, packages
from tests.e2e.outside import GITSYNC

pytestmark = pytest.mark.e2e

CGROUP = "gitsync-e2e-demo"
INSIDE = """
import os, subprocess, sys, time
place, command = sys.argv[1], sys.argv[2:]
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
where = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
options = [f"--{name}={place}/{file}" for name, file in where.items()]
with open(f"{place}/log", "wb") as log:
    daemon = subprocess.Popen(["dockerd", f"--host=unix://{place}/sock", *options, *CGROUP], stdout=log, stderr=log)
while not os.path.exists(f"{place}/sock"):
    assert daemon.poll() is None, open(f"{place}/log").read()
    time.sleep(0.1)
sys.exit(subprocess.run(command, env=os.environ | {"DOCKER_HOST": f"unix://{place}/sock"}).returncode)
"""


@pytest.fixture
def place() -> Generator[Path]:
    """Short, as sockets have paths of at most 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="gd-"))
    yield made
    shutil.rmtree(made)
    for hierarchy in Path("/sys/fs/cgroup").glob(f"**/{CGROUP}"):
        leftovers.remove_cgroups(hierarchy)


def test_the_demo_runs_on_docker_too(place: Path) -> None:
    private = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    inside = INSIDE.replace("CGROUP", repr([f"--cgroup-parent=/{CGROUP}"]))
    demo = (str(GITSYNC), "demo", "--once", "--offline", "--engine", "docker", "-o", "json")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GITSYNC_", "DOCKER_"))}
    done = subprocess.run(
        [packages.program("unshare"), *private, sys.executable, "-c", inside, str(place), *demo],
        env=clean | {"PATH": packages.SEARCH_PATH, "TMPDIR": str(place)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + (place / "log").read_text()[-4000:]
    figures = json.loads(done.stdout)
    assert figures["requestsFailed"] == 0
    assert set(figures["versions"]) == {"Hello Kubernetes!", "Hello again!"}
