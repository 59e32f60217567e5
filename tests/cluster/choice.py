"""Which cluster the tests run on, and what a test may ask of it.

In this order: the kubeconfig in ``GITSYNC_E2E_KUBECONFIG``; ``kind`` or ``k3d`` on PATH; our own (``own.OwnCluster``).
``GITSYNC_E2E_CLUSTER=own`` goes straight to the last. What a cluster that is not ours cannot offer raises NotOffered,
which says what and why: tests fail on it, they do not skip.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from . import configuration, packages
from .own import ClusterError, OwnCluster


class NotOffered(ClusterError):
    """This kind of cluster cannot do what was asked."""


class Cluster(Protocol):
    """What the tests stand on; OwnCluster documents each member."""

    @property
    def kubeconfig(self) -> Path: ...
    @property
    def work_dir(self) -> Path: ...
    @property
    def node_ip(self) -> str: ...
    @property
    def registry_host(self) -> str: ...
    @property
    def registry_auth(self) -> tuple[str, str]: ...
    def outside(self, argv: Sequence[str]) -> list[str]: ...
    def enter(self) -> None: ...
    def leave(self) -> None: ...
    def run_in(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 120,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]: ...
    def popen_in(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]": ...
    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str: ...
    def api_get(self, path: str) -> str | None: ...
    def container_environment(self) -> dict[str, str]: ...
    def docker_config(self) -> str: ...
    def add_address(self, address: str) -> None: ...
    def audit_events(self) -> list[dict[str, Any]]: ...
    def restart_apiserver(self, *, how: signal.Signals = signal.SIGKILL, wait: bool = True) -> None: ...


def open_cluster(*, keep: bool = False) -> AbstractContextManager[Cluster]:
    """The cluster to use, not yet started: ``with open_cluster() as cluster: …``.

    One of ours that runs already (``python -m tests.cluster up``) is used and left running.
    """
    wanted = os.environ.get("GITSYNC_E2E_CLUSTER", "")
    if not wanted and (given := os.environ.get("GITSYNC_E2E_KUBECONFIG")):
        return GivenCluster(Path(given))
    if wanted != "own":
        for tool in ("kind", "k3d"):
            if shutil.which(tool) and wanted in ("", tool):
                return ToolCluster(tool)
    if wanted not in ("", "own"):
        raise ClusterError(f"GITSYNC_E2E_CLUSTER={wanted}: choose own, or kind or k3d with that tool on PATH")
    own = OwnCluster(keep=keep)
    return _Borrowed(own) if own.kept else own


class _Borrowed:
    """A cluster of ours that somebody keeps running."""

    def __init__(self, cluster: OwnCluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> OwnCluster:
        return self._cluster.attach()

    def __exit__(self, *_: object) -> None:
        self._cluster.leave()


class GivenCluster:
    """Somebody's cluster, by its kubeconfig. Owns nothing in it but a scratch folder here.

    A registry that both this machine and its nodes reach is named in ``GITSYNC_E2E_REGISTRY`` (host:port) and
    ``GITSYNC_E2E_REGISTRY_LOGIN`` (user:password).
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.work_dir = Path(tempfile.mkdtemp(prefix="gitsync-e2e-"))

    def __enter__(self) -> "GivenCluster":
        if not self.kubeconfig.is_file():
            raise ClusterError(f"GITSYNC_E2E_KUBECONFIG: {self.kubeconfig} is not a file")
        self.kubectl("version")
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.work_dir)

    @property
    def node_ip(self) -> str:
        return self.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.addresses[0].address}")

    @property
    def registry_host(self) -> str:
        return self._given("GITSYNC_E2E_REGISTRY", "a registry that its nodes can pull from")

    @property
    def registry_auth(self) -> tuple[str, str]:
        user, _, password = self._given("GITSYNC_E2E_REGISTRY_LOGIN", "that registry's login").partition(":")
        return user, password

    def outside(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def enter(self) -> None:
        """The tests reach this cluster from where they are."""

    def leave(self) -> None:
        """See enter."""

    def run_in(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 120,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd)
        if check and done.returncode:
            raise ClusterError(f"{argv[0]} exited with {done.returncode}: {done.stderr[-4000:]}")
        return done

    def popen_in(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        return subprocess.Popen(argv, **options)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
        argv = [packages.program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return self.run_in(argv, stdin=stdin, check=check, timeout=timeout).stdout

    def api_get(self, path: str) -> str | None:
        return self.kubectl("get", "--raw", path, check=False) or None

    def container_environment(self) -> dict[str, str]:
        path = self.work_dir / "auth.json"
        path.write_text(self.docker_config())
        return {"REGISTRY_AUTH_FILE": str(path)}

    def docker_config(self) -> str:
        return configuration.docker_config([self.registry_host], self.registry_auth)

    def add_address(self, address: str) -> None:
        raise NotOffered(f"external address {address}: the nodes of {self.kubeconfig} are not ours to configure")

    def audit_events(self) -> list[dict[str, Any]]:
        raise NotOffered(f"the audit log: that of {self.kubeconfig} cannot be read through its API")

    def restart_apiserver(self, *, how: signal.Signals = signal.SIGKILL, wait: bool = True) -> None:
        raise NotOffered(f"a restart of the API server ({how.name}, wait={wait}): {self.kubeconfig} is not ours")

    def _given(self, variable: str, what: str) -> str:
        if value := os.environ.get(variable):
            return value
        raise NotOffered(f"{what}: {self.kubeconfig} needs it in {variable}")


class ToolCluster(GivenCluster):
    """A cluster that kind or k3d makes for one run."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self._name = os.environ.get("GITSYNC_E2E_NAME") or "gitsync-e2e"
        super().__init__(Path(tempfile.gettempdir()))
        self.kubeconfig = self.work_dir / "kubeconfig"

    def __enter__(self) -> "ToolCluster":
        self._remove()  # what a killed run left
        if self.tool == "kind":
            self._call("create", "cluster", "--name", self._name, "--wait=180s", f"--kubeconfig={self.kubeconfig}")
        else:
            self._call("cluster", "create", self._name, "--wait", "--timeout=180s", "--kubeconfig-update-default=false")
            self.kubeconfig.write_text(self._call("kubeconfig", "get", self._name))
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        super().__exit__()

    def _remove(self) -> None:
        if self.tool == "kind":
            self._call("delete", "cluster", "--name", self._name)
        elif self._name in self._call("cluster", "list", "--no-headers"):
            self._call("cluster", "delete", self._name)

    def _call(self, *arguments: str) -> str:
        return self.run_in([self.tool, *arguments], timeout=300).stdout
