"""The compiled binaries: found, or compiled once from pinned Go modules into a cache outside the tree.

Owns the cache's layout. Never downloads a prebuilt binary, and never leaves a half-written one: a set is compiled
into a folder beside its place and renamed when it is whole, under a lock that the next compiler waits for.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GO_DIRECTORY = Path(__file__).parent / "go"


class BinaryError(RuntimeError):
    """A binary is missing and could not be compiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """Binaries that come from one Go module in ``go/`` and are compiled in one go."""

    name: str
    """Folder under ``go/`` and in the cache."""
    module: str
    """The required module whose version is the set's version."""
    packages: Mapping[str, str]
    """Binary name → package path (``.`` is the module itself)."""
    version_symbols: tuple[str, ...] = ()
    """Packages whose gitVersion, gitMajor, gitMinor and gitTreeState are set, so that `version` tells the truth."""
    version_variable: str = ""
    """A single variable that holds the version, for a module that does it so."""

    @property
    def directory(self) -> Path:
        return GO_DIRECTORY / self.name

    @property
    def version(self) -> str:
        """The pinned version, as go.mod has it (``v1.34.4``)."""
        for line in (self.directory / "go.mod").read_text().splitlines():
            words = line.removeprefix("require").split()
            if len(words) >= 2 and words[0] == self.module and words[1].startswith("v"):
                return words[1]
        raise BinaryError(f"{self.directory / 'go.mod'} requires no {self.module}")

    @property
    def linker_flags(self) -> str:
        flags = ["-s", "-w"]
        major, minor = self.version.removeprefix("v").split(".")[:2]
        for package in self.version_symbols:
            values = {"gitVersion": self.version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
            flags += [f"-X {package}.{name}={value}" for name, value in values.items()]
        if self.version_variable:
            flags.append(f"-X {self.version_variable}={self.version}")
        return " ".join(flags)

    @property
    def place(self) -> Path:
        """The set's folder in the cache. Its name changes with anything that is compiled in."""
        digest = hashlib.sha256(f"{self.linker_flags} {sorted(self.packages.items())}".encode())
        for path in sorted(self.directory.glob("go.*")) + sorted(self.directory.glob("*.go")):
            digest.update(path.read_bytes())
        return cache_directory() / self.name / f"{self.version}-{digest.hexdigest()[:8]}"


KUBERNETES = Set(
    name="kubernetes",
    module="k8s.io/kubernetes",
    packages={
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    },
    version_symbols=("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"),
)
ETCD = Set(name="etcd", module="go.etcd.io/etcd/server/v3", packages={"etcd": "go.etcd.io/etcd/server/v3"})
COREDNS = Set(name="coredns", module="github.com/coredns/coredns", packages={"coredns": "."})
BUILDKIT = Set(
    name="buildkit",
    module="github.com/moby/buildkit",
    packages={
        "buildkitd": "github.com/moby/buildkit/cmd/buildkitd",
        "buildctl": "github.com/moby/buildkit/cmd/buildctl",
        "rootlesskit": "github.com/rootless-containers/rootlesskit/v2/cmd/rootlesskit",
    },
    version_variable="github.com/moby/buildkit/version.Version",
)
KUSTOMIZE = Set(
    name="kustomize",
    module="sigs.k8s.io/kustomize/kustomize/v5",
    packages={"kustomize": "sigs.k8s.io/kustomize/kustomize/v5"},
    version_variable="sigs.k8s.io/kustomize/api/provenance.version",
)
NODE_SETS = (KUBERNETES, ETCD, COREDNS)


def cache_directory() -> Path:
    """``$GITSYNC_CACHE``, ``$XDG_CACHE_HOME/gitsync`` or ``~/.cache/gitsync``."""
    if own := os.environ.get("GITSYNC_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gitsync"


def find(*sets: Set) -> dict[str, Path]:
    """Name → path of every binary of the sets; compiles what the cache lacks (ten minutes or more on two cores).

    ``KUBEBUILDER_ASSETS`` serves the sets of which it has every binary; what it has a part of is not mixed in.
    """
    found: dict[str, Path] = {}
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for each in sets:
        directory = each.place
        if assets:
            missing = [name for name in each.packages if not os.access(Path(assets) / name, os.X_OK)]
            if not missing:
                directory = Path(assets)
            elif len(missing) < len(each.packages):
                _say(f"KUBEBUILDER_ASSETS lacks {', '.join(missing)}: {each.name} comes from the cache")
        if directory == each.place:
            compile_once(each)
        found |= {name: directory / name for name in each.packages}
    return found


def compile_once(what: Set) -> None:
    """Put the set into the cache unless it is there."""
    if what.place.is_dir():
        return
    with locked(what.place):
        if not what.place.is_dir():
            _compile(what)


@contextmanager
def locked(place: Path) -> Generator[None]:
    """Hold the lock of one place in the cache; whoever waits for it finds the place filled."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(what: Set) -> None:
    go = shutil.which("go")
    if go is None:
        raise BinaryError(
            f"compiling {what.name} {what.version} needs Go (the version that {what.directory / 'go.mod'} asks for) "
            f"on PATH; or put {', '.join(what.packages)} into a folder and name it in KUBEBUILDER_ASSETS"
        )
    _say(f"compiling {what.name} {what.version} ({', '.join(what.packages)}) into {what.place}; this happens once")
    started = time.monotonic()
    for stale in what.place.parent.glob(f".{what.place.name}.half-*"):
        shutil.rmtree(stale)  # the lock is ours, so its compiler was killed
    half = Path(tempfile.mkdtemp(prefix=f".{what.place.name}.half-", dir=what.place.parent))
    half.chmod(0o755)
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false"}
    for number, (name, package) in enumerate(what.packages.items(), 1):
        _say(f"  {number}/{len(what.packages)} {name}")
        command = [go, "build", "-ldflags", what.linker_flags, "-o", str(half / name), package]
        if shutil.which("nice"):
            command = ["nice", "-n", "5", *command]
        done = subprocess.run(command, cwd=what.directory, env=environment, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(half)
            raise BinaryError(f"go build {package} in {what.directory} failed:\n{done.stderr[-4000:]}")
    half.rename(what.place)
    _say(f"compiled {what.name} in {time.monotonic() - started:.0f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
