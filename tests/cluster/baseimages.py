"""Base images that cannot be pulled, assembled from this machine's packages under their Docker Hub names.

Owns the recipes and their cache. Runs outside the cluster's network (apt downloads there), once per recipe; what is
in the cache stays as it is until the recipe changes or the cache is deleted, and has the same digests every time.
No image has a package source configured: an image that installs packages is built outside, see ``builds``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from . import binaries, packages
from .oci import Layer, Layout

DEBIAN = [
    "apt",
    "base-files",
    "base-passwd",
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "login",
    "mawk",
    "mount",
    "ncurses-base",
    "openssl",
    "passwd",
    "perl-base",
    "sed",
    "tar",
    "tzdata",
    "util-linux",
]
BUILDKIT = ["git", "runc", "uidmap"]
PYTHON = ["python3", "python3-pip", "python3-venv", "python3-wheel"]

NAMES = {
    "debian": ["debian:bookworm-slim", "debian:stable-slim", "debian:12-slim", "debian:latest"],
    "node": ["node:slim", "node:latest", "node:lts-slim", "node:{node}-slim", "node:{node}"],
    "python": ["python:slim", "python:latest", "python:3-slim", "python:3.11-slim", "python:3.11-slim-bookworm"],
    "busybox": ["busybox:latest", "busybox:1", "busybox:stable", "busybox:musl", "busybox:glibc"],
    "pause": ["pause:latest"],
    "buildkit": ["moby/buildkit:latest", "moby/buildkit:{buildkit}"],
    "buildkit-rootless": ["moby/buildkit:rootless", "moby/buildkit:{buildkit}-rootless"],
    "kustomize": ["registry.k8s.io/kustomize/kustomize:{kustomize}"],
}
"""Recipe → names on Docker Hub, or with a registry before them; without a slash they are below ``library``."""

_CAP_SETGID, _CAP_SETUID = 6, 7
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageError(RuntimeError):
    """An image could not be assembled, built or pushed."""


def assemble() -> Path:
    """The OCI layout with every base image; takes a minute the first time, nothing afterwards."""
    binaries.find(binaries.BUILDKIT, binaries.KUSTOMIZE)
    recipe = Path(__file__).read_bytes() + Path(Path(__file__).parent / "oci.py").read_bytes()
    compiled = f"{binaries.BUILDKIT.place.name} {binaries.KUSTOMIZE.place.name}"
    key = sha256(recipe + f"{_node_version()} {compiled}".encode()).hexdigest()[:12]
    place = binaries.cache_directory() / "images" / key
    with binaries.locked(place):
        if not (place / "index.json").exists():
            print(f"assembling base images from packages into {place}; this happens once", file=sys.stderr)
            if place.exists():
                shutil.rmtree(place)
            half = Path(tempfile.mkdtemp(prefix=f".{key}.half-", dir=place.parent))
            try:
                _assemble(Layout(half))
                half.rename(place)
            except BaseException:
                shutil.rmtree(half, ignore_errors=True)
                raise
    return place


def _assemble(layout: Layout) -> None:
    tools = {"pause": _pause(), "busybox": _busybox()}
    for recipe, layer in tools.items():
        stored = layout.layer(layer)
        command = ["/bin/busybox", "sleep", "2147483647"] if recipe == "pause" else ["sh"]
        _name(layout, recipe, [stored], {"Cmd": command, "Env": [_PATH]})
    kustomize = Layer()
    kustomize.file("app/kustomize", binaries.find(binaries.KUSTOMIZE)["kustomize"], mode=0o755)
    _name(layout, "kustomize", [layout.layer(kustomize)], {"Entrypoint": ["/app/kustomize"], "Env": [_PATH]})
    debian = Layer()
    for deb in _download(DEBIAN):
        debian.package(deb)
    _finish_debian(debian)
    base = layout.layer(debian)
    _name(layout, "debian", [base], {"Cmd": ["bash"], "Env": [_PATH]})
    _name(layout, "node", [base, layout.layer(_node(debian))], {"Cmd": ["node"], "Env": [_PATH]})
    python = {"Cmd": ["python3"], "Env": [_PATH, "LANG=C.UTF-8"]}
    _name(layout, "python", [base, layout.layer(_python(debian))], python)
    buildkit = [base, layout.layer(_buildkit(debian))]
    _name(layout, "buildkit", buildkit, {"Entrypoint": ["buildkitd"], "Env": [_PATH]})
    rootless: dict[str, Any] = {
        "Entrypoint": ["rootlesskit", "buildkitd"],
        "User": "1000:1000",
        "Env": [
            _PATH,
            "HOME=/home/user",
            "USER=user",
            "XDG_RUNTIME_DIR=/run/user/1000",
            "TMPDIR=/home/user/.local/tmp",
            "BUILDKIT_HOST=unix:///run/user/1000/buildkit/buildkitd.sock",
        ],
        "Volumes": {"/home/user/.local/share/buildkit": {}},
    }
    _name(layout, "buildkit-rootless", buildkit, rootless)


def _name(layout: Layout, recipe: str, layers: Sequence[dict[str, Any]], config: dict[str, Any]) -> None:
    versions = {"node": _node_version().split(".")[0], "buildkit": binaries.BUILDKIT.version}
    versions["kustomize"] = binaries.KUSTOMIZE.version
    for name in NAMES[recipe]:
        named = name.format(**versions)
        layout.image(named if "/" in named else f"library/{named}", layers, config)


def names(layout: Path) -> list[str]:
    """The images of a layout, as ``repository:tag``."""
    index = json.loads((layout / "index.json").read_text())
    return [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]]


def seed_registry(layout: Path, storage: Path) -> None:
    """Put a layout's images into the storage folder of a registry that is not yet running, without copying blobs.

    The folder's shape is that of docker-registry's file system driver, the same since its version 2.0; blobs are never
    written to again, so they may share the cache's inodes.
    """
    root = storage / "docker/registry/v2"

    def place(digest: str) -> None:
        algorithm, value = digest.split(":")
        target = root / "blobs" / algorithm / value[:2] / value / "data"
        if not target.exists():
            target.parent.mkdir(parents=True)
            os.link(layout / "blobs" / algorithm / value, target)

    def refer(path: Path, digest: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "link").write_text(digest)

    for entry in json.loads((layout / "index.json").read_text())["manifests"]:
        repository, tag = entry["annotations"]["org.opencontainers.image.ref.name"].rsplit(":", 1)
        algorithm, value = entry["digest"].split(":")
        manifest = json.loads((layout / "blobs" / algorithm / value).read_text())
        home = root / "repositories" / repository
        place(entry["digest"])
        for blob in [manifest["config"], *manifest["layers"]]:
            place(blob["digest"])
            refer(home / "_layers" / blob["digest"].replace(":", "/"), blob["digest"])
        refer(home / "_manifests/revisions" / algorithm / value, entry["digest"])
        refer(home / "_manifests/tags" / tag / "current", entry["digest"])
        refer(home / "_manifests/tags" / tag / "index" / algorithm / value, entry["digest"])


# Recipes


def _pause() -> Layer:
    layer = Layer()
    layer.file("bin/busybox", Path(packages.program("busybox")), mode=0o755)
    return layer


def _busybox() -> Layer:
    layer = _pause()
    listed = subprocess.run([packages.program("busybox"), "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox":
            layer.link(f"bin/{applet}", "busybox")
    layer.link("usr/bin/env", "../../bin/busybox")
    layer.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
    layer.file("etc/group", "root:x:0:\nnobody:x:65534:\n")
    for path in ("root", "home", "var/tmp", "var/www", "etc"):
        layer.directory(path)
    layer.directory("tmp", mode=0o1777)
    return layer


def _finish_debian(layer: Layer) -> None:
    """What the packages' scripts would have done, as far as a program or apt could miss it."""
    for path in ("bin", "sbin", "lib", "lib64"):
        layer.link(path, f"usr/{path}")
    for path in ("usr/lib64", "usr/local/bin", "var/lib/dpkg/updates", "var/lib/apt/lists/partial", "root"):
        if path not in layer.entries:
            layer.directory(path)
    layer.directory("tmp", mode=0o1777)
    layer.directory("var/tmp", mode=0o1777)
    for name in ("passwd", "group"):
        layer.file(f"etc/{name}", _content(layer, f"usr/share/base-passwd/{name}.master"))
    layer.file("etc/nsswitch.conf", _content(layer, "usr/share/libc-bin/nsswitch.conf"))
    layer.link("usr/bin/awk", "mawk")
    layer.link("usr/bin/which", "which.debianutils")
    layer.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
    certificates = [path for path in layer.entries if re.fullmatch(r"usr/share/ca-certificates/.*\.crt", path)]
    layer.file("etc/ssl/certs/ca-certificates.crt", b"".join(_content(layer, each) for each in sorted(certificates)))
    layer.file("etc/ca-certificates.conf", "".join(f"{each[26:]}\n" for each in sorted(certificates)))
    layer.file("var/lib/dpkg/available", "")
    layer.file("var/lib/dpkg/arch", "")
    _record(layer, {})


def _record(layer: Layer, below: dict[str, str]) -> None:
    layer.file("var/lib/dpkg/status", "\n".join(text for _, text in sorted((below | layer.status).items())))


def _content(layer: Layer, path: str) -> bytes:
    content = layer.entries[path][1]
    return content.read_bytes() if isinstance(content, Path) else content


def _node(debian: Layer) -> Layer:
    layer = Layer()
    node = Path(packages.program("node")).resolve()
    layer.file("usr/local/bin/node", node, mode=0o755)
    for library in _libraries(node):
        path = str(library).strip("/")
        path = path if path.startswith("usr/") else f"usr/{path}"
        if path not in debian.entries:
            layer.file(path, library.resolve(), mode=0o755)
    npm = Path("/usr/lib/node_modules/npm")
    if (npm / "bin/npm-cli.js").is_file():
        layer.tree(npm, "usr/local/lib/node_modules/npm")
        for name in ("npm", "npx"):
            layer.link(f"usr/local/bin/{name}", f"../lib/node_modules/npm/bin/{name}-cli.js")
    layer.file("etc/passwd", _content(debian, "etc/passwd") + b"node:x:1000:1000::/home/node:/bin/bash\n")
    layer.file("etc/group", _content(debian, "etc/group") + b"node:x:1000:\n")
    layer.directory("home/node", owner=1000)
    return layer


def _libraries(program: Path) -> list[Path]:
    """The shared libraries that the loader would map for a program."""
    shown = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", shown)]


def _python(debian: Layer) -> Layer:
    layer = Layer()
    _add_packages(layer, PYTHON, debian)
    for path in [path for path in layer.entries if path.endswith("/EXTERNALLY-MANAGED")]:
        del layer.entries[path]  # python's own image lets pip install where it likes
    for name, target in {"python": "python3", "python3": "python3", "pip": "pip3", "pip3": "pip3"}.items():
        layer.link(f"usr/local/bin/{name}", f"/usr/bin/{target}")
    return layer


def _buildkit(debian: Layer) -> Layer:
    """As the project's own image has it: the daemon, and what lets an ordinary user run it."""
    layer = Layer()
    _add_packages(layer, BUILDKIT, debian)
    # Set-user-ID root, Debian's build of these wants CAP_SYS_ADMIN too; with a capability of the file it does not.
    layer.capability("usr/bin/newuidmap", _CAP_SETUID)
    layer.capability("usr/bin/newgidmap", _CAP_SETGID)
    for name, path in binaries.find(binaries.BUILDKIT).items():
        layer.file(f"usr/bin/{name}", path, mode=0o755)
    layer.file("etc/passwd", _content(debian, "etc/passwd") + b"user:x:1000:1000::/home/user:/bin/sh\n")
    layer.file("etc/group", _content(debian, "etc/group") + b"user:x:1000:\n")
    for path in ("etc/subuid", "etc/subgid"):
        layer.file(path, "user:100000:65536\n")
    home = ["home/user", "home/user/.local", "home/user/.local/share", "home/user/.local/share/buildkit"]
    for path in [*home, "home/user/.local/tmp", "home/user/.config", "run/user/1000"]:
        layer.directory(path, owner=1000, mode=0o700)
    layer.directory("run/user")
    return layer


def _add_packages(layer: Layer, wanted: Iterable[str], debian: Layer) -> None:
    for deb in _download(wanted):
        if deb.name.split("_")[0] not in debian.status:
            layer.package(deb)
    _record(layer, debian.status)


def _download(wanted: Iterable[str]) -> list[Path]:
    """The packages with all that they depend on, as .deb files in the cache."""
    apt = binaries.cache_directory() / "apt" / sha256(" ".join(wanted).encode()).hexdigest()[:12]
    done = apt / "done"
    if not done.exists():
        (apt / "archives/partial").mkdir(parents=True, exist_ok=True)
        (apt / "status").write_text("")
        if not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
            _apt("update")
        settings = {
            "Dir::State::status": apt / "status",
            "Dir::Cache::archives": apt / "archives",
            "APT::Sandbox::User": "root",
            "APT::Keep-Downloaded-Packages": "true",
        }
        options = [f"-o{name}={value}" for name, value in settings.items()]
        _apt(*options, "install", "--yes", "--download-only", "--no-install-recommends", *wanted)
        done.touch()
    return sorted((apt / "archives").glob("*.deb"))


def _apt(*arguments: str) -> None:
    done = subprocess.run(["apt-get", "-qq", *arguments], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise ImageError(f"apt-get {arguments[-1]} failed: {done.stderr.strip()[-2000:]}")


def _node_version() -> str:
    shown = subprocess.run([packages.program("node"), "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.strip().removeprefix("v")
