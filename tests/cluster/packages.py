"""The system packages that the cluster stands on: checked, and on Debian installed when we are root.

Never removes or configures anything.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = {
    "apt-get": "apt",
    "buildah": "buildah",
    "busybox": "busybox-static",
    "chromium": "chromium",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "docker": "docker.io",
    "docker-registry": "docker-registry",
    "dockerd": "docker.io",
    "git": "git",
    "ip": "iproute2",
    "iptables": "iptables",
    "iptables-save": "iptables",
    "mount": "mount",
    "node": "nodejs",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "podman": "podman",
    "runc": "runc",
    "skopeo": "skopeo",
    "slirp4netns": "slirp4netns",
    "socat": "socat",
    "unshare": "util-linux",
}
"""Program → Debian package. All of them are looked for on PATH and in the sbin folders."""
FILES = {"/usr/lib/cni/ptp": "containernetworking-plugins", "/usr/lib/cni/host-local": "containernetworking-plugins"}
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class PackageError(RuntimeError):
    """Something that has to be installed is missing; the message says what and how."""


def program(name: str) -> str:
    """The path of a program of PROGRAMS."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise PackageError(f"{name} is missing: install the package {PROGRAMS.get(name, name)}")
    return found


ALL = PROGRAMS | FILES


def missing(wanted: Mapping[str, str] = ALL) -> dict[str, str]:
    """What is missing of these → the Debian package that has it. A name with a slash is a file."""
    return {
        name: package
        for name, package in wanted.items()
        if not (Path(name).exists() if "/" in name else shutil.which(name, path=SEARCH_PATH))
    }


def install(needed: Mapping[str, str] = ALL) -> None:
    """Install what is missing. Raises PackageError that names the packages where we cannot."""
    wanted = missing(needed)
    if not wanted:
        return
    packages = sorted(set(wanted.values()))
    how = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or "apt-get" in wanted:
        raise PackageError(f"missing {', '.join(sorted(wanted))}; on Debian, as root: {how}")
    print(f"installing {' '.join(packages)}", file=sys.stderr, flush=True)
    # A package that starts a daemon of its own (containerd, docker-registry) is told not to: nothing here uses it.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, timeout=900
            )
            if done.returncode:
                raise PackageError(f"apt-get {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    finally:
        if ours:
            policy.unlink()
    if still := missing(needed):
        raise PackageError(f"installed {' '.join(packages)}, but still missing: {', '.join(sorted(still))}")
