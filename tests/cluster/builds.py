"""Images that need package clients: built in the machine's own network, pushed inside the cluster's.

Owns a container storage in the cache, beside nobody else's; its bases are the assembled ones, never pulled.
"""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from . import baseimages, binaries, packages
from .choice import Cluster

_PRIVATELY = ["unshare", "--mount"]
"""In a mount namespace of its own: these tools leave mounts of their storage behind, most of all when killed."""
_SETTINGS = ("/etc/apt", "/etc/ssl/certs", "/usr/share/keyrings", "/etc/pip.conf", "/etc/npmrc")
"""How this machine reaches its package sources: lent to the steps of a build, as a copy that is thrown away."""


def build(
    cluster: Cluster | None,
    context: Path,
    tag: str,
    *,
    dockerfile: Path | None = None,
    network: bool = True,
    arguments: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> str:
    """Build ``tag`` (``kubetm/hello:1``) with buildah and return its image id; ImageError has the end of its output.

    ``cluster`` is the one whose network this process has entered, if any. Layers are kept: a second time is quick.
    """
    layout = baseimages.assemble()
    _import(layout)
    argv = [*_buildah(), "bud", "--isolation", "chroot", "--layers", "--timestamp", "0", "--pull-never", "--tag", tag]
    if dockerfile is not None:
        argv += ["--file", str(dockerfile)]
    if network:
        argv += [f"--volume={path}:{path}:O" for path in _SETTINGS if Path(path).is_dir()]
        argv += [f"--volume={path}:{path}:ro" for path in _SETTINGS if Path(path).is_file()]
    argv += [f"--build-arg={name}={value}" for name, value in (arguments or {}).items()]
    argv.append(str(context))
    output = _run(argv if cluster is None else cluster.outside(argv), timeout)
    return output.strip().splitlines()[-1]


def push(cluster: Cluster, tag: str, name: str | None = None, *, timeout: float = 300) -> str:
    """Push a built image to the cluster's registry under ``name`` (the tag if None); returns its digest."""
    where = f"{cluster.registry_host}/{name or tag}"
    digest = cluster.work_dir / "pushed-digest"
    argv = [*_buildah(), "push", "--tls-verify=false", f"--digestfile={digest}", tag, f"docker://{where}"]
    cluster.run_in(argv, env=dict(os.environ) | cluster.container_environment(), timeout=timeout)
    return digest.read_text().strip()


def _buildah() -> list[str]:
    storage = binaries.cache_directory() / "storage"
    driver = ["--storage-driver", "overlay"]
    return [
        *_PRIVATELY,
        packages.program("buildah"),
        *driver,
        "--root",
        str(storage / "root"),
        "--runroot",
        str(storage / "run"),
    ]


def _import(layout: Path) -> None:
    """Bring the assembled bases into the storage, once per layout."""
    storage = binaries.cache_directory() / "storage"
    storage.mkdir(parents=True, exist_ok=True)
    mark = storage / "bases"
    with binaries.locked(mark):
        if mark.exists() and mark.read_text() == layout.name:
            return
        target = f"containers-storage:[overlay@{storage / 'root'}+{storage / 'run'}]"
        for name in baseimages.names(layout):
            argv = ["copy", "--quiet", "--insecure-policy", f"oci:{layout}:{name}", f"{target}{_whole(name)}"]
            _run([*_PRIVATELY, packages.program("skopeo"), *argv], 120)
        mark.write_text(layout.name)


def _whole(name: str) -> str:
    """With the registry that the name belongs to."""
    return name if "." in name.partition("/")[0] else f"docker.io/{name}"


def _run(argv: list[str], timeout: float) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise baseimages.ImageError(
            f"{' '.join(argv[:4])} … exited with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    return done.stdout
