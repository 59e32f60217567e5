"""A whole one-node Kubernetes in namespaces of its own, from compiled binaries and the machine's packages.

Owns one work directory, one cgroup per hierarchy, and the processes in its namespaces; see ``leftovers`` for the proof
that nothing else stays. It has no route out: what runs in it reaches the node, its pods and its Services, no more.
"""

import base64
import contextlib
import ctypes
import dataclasses
import fcntl
import glob
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO, Any

from . import baseimages, binaries, configuration, init, leftovers, packages, pki

DEFAULT_NAME = "gitsync-e2e"
_CLONE_NEWNET = 0x40000000


class ClusterError(RuntimeError):
    """The cluster could not be started, used or removed; the message says which part, and shows its log."""


class OwnCluster:
    """``with OwnCluster() as cluster: …``, or ``up()`` and ``down()``; ``attach()`` to one that runs already.

    Only one of a name runs at a time; ``up`` first removes what a killed one left. With ``keep`` it outlives the
    process that started it, otherwise it ends with it, however that ends.
    """

    node_ip = configuration.NODE_IP
    registry_host = f"{configuration.NODE_IP}:{configuration.REGISTRY_PORT}"
    """Answers under this address to tests, pods and the node alike; Docker Hub's names are pulled from it too."""
    registry_auth = (configuration.REGISTRY_USER, configuration.REGISTRY_PASSWORD)

    def __init__(self, name: str | None = None, *, keep: bool = False) -> None:
        self.name = name or os.environ.get("GITSYNC_E2E_NAME") or DEFAULT_NAME
        self.keep = keep
        self.work_dir = binaries.cache_directory() / "run" / self.name
        self.kubeconfig = self.work_dir / "kubeconfigs" / "admin"
        self.timings: dict[str, float] = {}
        """Seconds from the start of ``up`` until a part was ready."""
        self._launcher: subprocess.Popen[bytes] | None = None
        self._owner_pipe: int | None = None
        self._lock: IO[str] | None = None
        self._home: int | None = None
        self._spaces = leftovers.Spaces()
        self._cgroups: list[Path] = []
        self._before = leftovers.Before()
        self._binaries: dict[str, Path] = {}
        if len(str(self.work_dir / "control.sock.new").encode()) > 100:
            raise ClusterError(f"{self.work_dir} is too long for a Unix socket: set GITSYNC_CACHE to a shorter path")

    def __enter__(self) -> "OwnCluster":
        self.up_or_remove()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # Start and stop

    def up_or_remove(self) -> None:
        """``up``, and what a failed start leaves is removed; its logs are kept."""
        try:
            self.up()
        except BaseException:
            self._give_up()
            raise

    def up(self) -> None:
        """Start everything and wait until a pod could run. About half a minute once all is compiled."""
        if os.geteuid() != 0:
            raise ClusterError("a cluster of our own needs root; give a kubeconfig in GITSYNC_E2E_KUBECONFIG instead")
        packages.install()
        self._binaries = binaries.find(*binaries.NODE_SETS)
        base_images = baseimages.assemble()
        started = time.monotonic()

        def mark(what: str) -> None:
            self.timings[what] = round(time.monotonic() - started, 1)

        self._take_lock()
        self._remove_leftovers()
        self._before = leftovers.survey()
        self._write_files()
        baseimages.seed_registry(base_images, self.work_dir / "registry")
        self._launch()
        mark("namespaces")
        programs = {each: packages.program(each) for each in ("containerd", "docker-registry")}
        commands = configuration.components(self.work_dir, self._binaries, programs)
        for name in ("etcd", "kube-apiserver", "containerd", "registry"):
            self._start(name, commands.pop(name))
        self._wait("the API server", 60, "kube-apiserver", lambda: self.api_get("/readyz") == "ok")
        mark("api server")
        self._wait("the registry", 30, "registry", self._registry_answers)
        for name, argv in commands.items():
            self._start(name, argv)
        objects = {"apiVersion": "v1", "kind": "List", "items": configuration.dns_objects()}
        self._wait("the namespace kube-system", 30, "kube-apiserver", lambda: bool(self.api_get(_KUBE_SYSTEM)))
        self.kubectl("apply", "-f", "-", stdin=json.dumps(objects))
        self._wait("the node", 90, "kubelet", self._node_ready)
        mark("node")
        self._wait("the default service account", 60, "kube-controller-manager", self._account_exists)
        self._wait("the cluster's DNS", 30, "coredns", self._dns_answers)
        mark("all")

    def down(self) -> None:
        """End everything, and raise ClusterError if anything of it is left on this machine."""
        self.leave()
        if self._owner_pipe is not None:
            os.close(self._owner_pipe)
            self._owner_pipe = None
        self._kill()
        for root in self._cgroups:
            leftovers.remove_cgroups(root)
        if self.work_dir.exists():
            shutil.rmtree(self.work_dir)
        left = leftovers.check(self._cgroups, self.work_dir, self._spaces, self._before)
        self._forget_spaces()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if left:
            raise ClusterError(f"the cluster {self.name} left behind: " + "; ".join(left))

    def attach(self) -> "OwnCluster":
        """Take over a cluster of this name that runs already (started by ``python -m tests.cluster up``)."""
        holders = self._holders()
        state_file = self.work_dir / "state.json"
        if not holders or not state_file.exists():
            raise ClusterError(f"no cluster {self.name} is running: python -m tests.cluster up")
        state = json.loads(state_file.read_text())
        self._cgroups = [Path(each) for each in state["cgroups"]]
        self._before = leftovers.Before(links=tuple(state["links"]), rules=tuple(state["rules"]))
        self._spaces = leftovers.Spaces.of(self._first_process())
        self._binaries = {name: Path(path) for name, path in state["binaries"].items()}
        return self

    @property
    def running(self) -> bool:
        return bool(self._holders())

    @property
    def kept(self) -> bool:
        """It runs, and outlives whoever started it."""
        with contextlib.suppress(OSError, ValueError):
            return self.running and bool(json.loads((self.work_dir / "state.json").read_text())["keep"])
        return False

    # Inside

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
        """Run a program in the cluster's network namespace (files are the machine's); raises ClusterError."""
        done = subprocess.run(
            self._inside(argv), input=stdin, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd
        )
        if check and done.returncode:
            raise ClusterError(f"{argv[0]} in the cluster exited with {done.returncode}: {done.stderr[-4000:]}")
        return done

    def popen_in(self, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Like ``run_in`` for a process that goes on; the caller ends it."""
        return subprocess.Popen(self._inside(argv), **options)

    def outside(self, argv: Sequence[str]) -> list[str]:
        """The command that runs a program in the machine's own network, where package clients work."""
        if self._home is None:
            return list(argv)
        return [packages.program("nsenter"), f"--net=/proc/{os.getpid()}/fd/{self._home}", *argv]

    def enter(self) -> None:
        """Move this process into the cluster's network namespace until ``leave``: its loopback is then ours.

        Holds for the calling thread, and for threads and processes that it starts afterwards: call it first.
        """
        if self._home is not None:
            return
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(f"/proc/{self._first_process()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(inside)
        finally:
            os.close(inside)
        if {os.readlink(path) for path in glob.glob("/proc/self/task/*/ns/net")} != {self._spaces.net}:
            self.leave()
            raise ClusterError("enter() must be called before this process starts threads: they would stay outside")

    def leave(self) -> None:
        """Undo ``enter``."""
        if self._home is None:
            return
        _setns(self._home)
        os.close(self._home)
        self._home = None

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Standard output of the compiled kubectl, as the cluster's administrator."""
        argv = [str(self.binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        return self.run_in(argv, stdin=stdin, check=check, timeout=timeout).stdout

    def binary(self, name: str) -> Path:
        """The path of one of the compiled programs (``kubectl``, ``etcd``, …)."""
        return self._binaries[name]

    def container_environment(self) -> dict[str, str]:
        """Environment for buildah and podman inside: Docker Hub's names come from our registry, and our login.

        skopeo reads the login alone; give it the registry's own name.
        """
        return {
            "CONTAINERS_REGISTRIES_CONF": str(self.work_dir / "registries.conf"),
            "REGISTRY_AUTH_FILE": str(self.work_dir / "auth.json"),
        }

    def docker_config(self) -> str:
        """The text of a ``.dockerconfigjson`` that logs in to our registry under each of its names."""
        return (self.work_dir / "auth.json").read_text()

    def add_address(self, address: str) -> None:
        """Give the node one more address (for ``externalIPs``); one that it has already stays."""
        self.run_in([packages.program("ip"), "address", "replace", f"{address}/32", "dev", "lo"])

    def audit_events(self) -> list[configuration.Json]:
        """Every write so far that the API server answered, in its order (audit.k8s.io/v1 Event; dry runs have
        ``dryRun`` in their requestURI). Blocking log: a reply that was seen is in it."""
        events: list[configuration.Json] = []
        for path in sorted(self.work_dir.glob("audit*.log"), key=lambda each: each.stat().st_mtime):
            lines = path.read_text().splitlines(keepends=True)
            events += [json.loads(line) for line in lines if line.endswith("\n")]
        return events

    def restart_apiserver(self, *, how: signal.Signals = signal.SIGKILL, wait: bool = True) -> None:
        """End the API server; it is started again at once. Returns when it is ready again (about 5 s)."""
        starts = self.status()["kube-apiserver"]["starts"]
        self.kill("kube-apiserver", how=how)
        if wait:
            self._wait(
                "the restart of the API server",
                90,
                "kube-apiserver",
                lambda: self.status()["kube-apiserver"]["starts"] > starts and self.api_get("/readyz") == "ok",
            )

    def kill(self, component: str, *, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a component of the node (SIGSTOP makes it silent); one that ends is started again."""
        self._order({"do": "kill", "name": component, "signal": int(how)})

    def status(self) -> dict[str, dict[str, int]]:
        """Component → ``pid`` (inside; 0 when it is down) and how often it was started."""
        return self._order({"do": "status"})["components"]

    def log(self, component: str, *, lines: int = 40) -> str:
        """The end of a component's log."""
        path = self.work_dir / "logs" / f"{component}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def api_get(self, path: str) -> str | None:
        """The body of a GET as administrator, or None while the API server does not answer well."""
        context = ssl.create_default_context(cafile=str(self.work_dir / "pki/ca.crt"))
        context.load_cert_chain(self.work_dir / "pki/admin.crt", self.work_dir / "pki/admin.key")
        request = urllib.request.Request(configuration.API_SERVER + path)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with self._visit(), contextlib.suppress(OSError), opener.open(request, timeout=3) as answer:
            return answer.read(1 << 22).decode()
        return None

    # The parts

    def _take_lock(self) -> None:
        self.work_dir.parent.mkdir(parents=True, exist_ok=True)
        self._lock = (self.work_dir.parent / f".{self.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            self._lock = None
            raise ClusterError(
                f"another process owns the cluster {self.name}; set GITSYNC_E2E_NAME for one beside it"
            ) from None
        if self.keep and self._holders():
            raise ClusterError(f"the cluster {self.name} runs already: python -m tests.cluster down")

    def _remove_leftovers(self) -> None:
        state_file = self.work_dir / "state.json"
        with contextlib.suppress(OSError, ValueError):
            self._cgroups = [Path(each) for each in json.loads(state_file.read_text())["cgroups"]]
        holders = self._holders()
        if holders:
            with contextlib.suppress(OSError):
                self._spaces = leftovers.Spaces.of(self._first_process())
        self._kill()
        for root in [*self._cgroups, *init.cgroup_directories(self.name)]:
            leftovers.remove_cgroups(root)
        if self.work_dir.exists():
            shutil.rmtree(self.work_dir)
        self._forget_spaces()
        self._cgroups = []

    def _write_files(self) -> None:
        work = self.work_dir
        for directory in ("logs", "cni", "kubeconfigs", "registries", "pod-logs", "registry", "apiserver", "kcm"):
            (work / directory).mkdir(parents=True)
        work.chmod(0o755)
        self._cgroups = init.cgroup_directories(self.name)
        self._write_state()
        pki.make(
            work / "pki",
            addresses=["127.0.0.1", configuration.NODE_IP, configuration.API_SERVICE_IP],
            names=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", *_MORE_NAMES],
        )
        for identity in configuration.IDENTITIES:
            path = work / "kubeconfigs" / identity.name
            path.touch(mode=0o600)
            path.write_text(pki.kubeconfig(work / "pki", identity.name))
        login = base64.b64encode(":".join(self.registry_auth).encode()).decode()
        names = ["127.0.0.1", self.node_ip, *configuration.NAMES]
        registries = [f"{name}:{configuration.REGISTRY_PORT}" for name in names]
        texts = {
            "audit-policy.json": configuration.audit_policy(),
            "kubelet.json": configuration.kubelet(work),
            "containerd.toml": configuration.containerd(work),
            "cni/10-pods.conflist": configuration.cni(),
            "registry.yml": configuration.registry(work),
            "htpasswd": configuration.htpasswd(),
            "auth.json": configuration.docker_config(registries, self.registry_auth),
            "registries.conf": configuration.registries_conf(),
            "hosts": configuration.etc_hosts(),
            "resolv.conf": f"nameserver {configuration.NODE_IP}\n",
            "Corefile": configuration.corefile(work),
        }
        for folder, text in configuration.hosts(f"Basic {login}").items():
            (work / "registries" / folder).mkdir()
            texts[f"registries/{folder}/hosts.toml"] = text
        for file, text in texts.items():
            (work / file).write_text(text)

    def _write_state(self) -> None:
        state = {
            "keep": self.keep,
            "cgroups": [str(each) for each in self._cgroups],
            "binaries": {name: str(path) for name, path in self._binaries.items()},
            **dataclasses.asdict(self._before),
        }
        (self.work_dir / "state.json").write_text(json.dumps(state))

    def _launch(self) -> None:
        argv = [sys.executable, "-S", "-E", init.__file__, "launch", str(self.work_dir), self.name, self.node_ip]
        passed: list[int] = []
        if not self.keep:
            theirs, self._owner_pipe = os.pipe()
            passed, argv = [theirs], [*argv, str(theirs)]
        with (self.work_dir / "logs/init.log").open("wb") as log:
            environment = {"PATH": packages.SEARCH_PATH, "LANG": "C.UTF-8"}
            self._launcher = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=passed,
                start_new_session=True,
            )
        for each in passed:
            os.close(each)
        self._wait("the namespaces", 20, "init", self._launched)
        self._spaces = leftovers.Spaces.of(self._first_process())

    def _launched(self) -> bool:
        if self._launcher is not None and self._launcher.poll() is not None:
            raise ClusterError(f"the namespaces could not be made:\n{self.log('init')}")
        return (self.work_dir / "control.sock").exists()

    def _holders(self) -> dict[int, str]:
        """The processes that hold the namespaces of this name → ``unshare`` or ``run``, wherever they come from."""
        marker = b"\0run\0" + os.fsencode(self.work_dir) + b"\0"
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    if marker in command and b"init.py" in command:
                        found[int(entry.name)] = "unshare" if command.startswith(b"unshare\0") else "run"
        return found

    def _first_process(self) -> int:
        for pid, role in self._holders().items():
            if role == "run":
                return pid
        raise ClusterError(f"the cluster {self.name} is not running")

    def _forget_spaces(self) -> None:
        self._spaces.close()
        self._spaces = leftovers.Spaces()

    def _kill(self) -> None:
        for pid in self._holders():
            leftovers.end(pid)
        if self._launcher is not None:
            self._launcher.wait(timeout=20)
            self._launcher = None
        leftovers.wait_gone(self._spaces)

    def _give_up(self) -> None:
        """After a failed start the first error counts; what cannot be removed now is removed by the next start."""
        logs = self.work_dir / "logs"
        if logs.exists():
            shutil.rmtree(kept := self.work_dir.parent / f"{self.name}.failed", ignore_errors=True)
            shutil.copytree(logs, kept)
            print(f"the logs of the failed start are kept in {kept}", file=sys.stderr)
        try:
            self.down()
        except ClusterError as error:
            print(error, file=sys.stderr)

    def _inside(self, argv: Sequence[str]) -> list[str]:
        if self._home is not None:
            return list(argv)
        return [packages.program("nsenter"), f"--net=/proc/{self._first_process()}/ns/net", *argv]

    @contextlib.contextmanager
    def _visit(self) -> Generator[None]:
        """The calling thread alone, for one request."""
        if self._home is not None:
            yield
            return
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        inside = os.open(f"/proc/{self._first_process()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(inside)
            yield
        finally:
            _setns(home)
            os.close(inside)
            os.close(home)

    def _start(self, name: str, argv: list[str]) -> None:
        self._order({"do": "start", "name": name, "argv": argv})

    def _order(self, order: configuration.Json) -> configuration.Json:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self.work_dir / "control.sock"))
            connection.sendall(json.dumps(order).encode() + b"\n")
            answer = json.loads(connection.makefile("rb").readline())
        if not answer["ok"]:
            raise ClusterError(f"{order['do']} {order.get('name', '')}: {answer['error']}")
        return answer

    def _wait(self, what: str, seconds: float, component: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            crashing = component != "init" and self.status()[component]["starts"] >= _CRASHES
            if crashing or time.monotonic() > deadline:
                why = f"{component} keeps ending" if crashing else f"not after {seconds:.0f} s"
                raise ClusterError(f"{what} is not ready, {why}; {component} said:\n{self.log(component)}")
            time.sleep(0.1)

    def _registry_answers(self) -> bool:
        with self._visit(), contextlib.suppress(OSError):
            try:
                opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
                opener.open(f"http://{self.registry_host}/v2/", timeout=2).close()
            except urllib.error.HTTPError as refusal:
                refusal.close()
                return refusal.code == 401
        return False

    def _node_ready(self) -> bool:
        node = json.loads(self.api_get(f"/api/v1/nodes/{configuration.NODE_NAME}") or "{}")
        conditions = node.get("status", {}).get("conditions", [])
        ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        return ready and not node.get("spec", {}).get("taints")

    def _account_exists(self) -> bool:
        return self.api_get("/api/v1/namespaces/default/serviceaccounts/default") is not None

    def _dns_answers(self) -> bool:
        """Asks for kubernetes.default through the Service, as a pod would."""
        question = b"\x0a\x0a\x01\x00\0\1\0\0\0\0\0\0\x0akubernetes\x07default\x03svc\x07cluster\x05local\0\0\1\0\1"
        with self._visit(), contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as query:
            query.settimeout(1)
            query.sendto(question, (configuration.DNS_IP, 53))
            return query.recv(512).endswith(socket.inet_aton(configuration.API_SERVICE_IP))
        return False


_CRASHES = 15
"""Starts of a component after which waiting for it is pointless: some are started before what they need."""
_KUBE_SYSTEM = "/api/v1/namespaces/kube-system"
_MORE_NAMES = ("kubernetes.default.svc.cluster.local", *configuration.NAMES)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise ClusterError(f"cannot change the network namespace: {os.strerror(number)}")
