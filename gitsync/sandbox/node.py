"""The node: pods as containers, from image to the last signal, as the kubelet does it.

One ``_Pod`` per pod owns its containers, probes, volumes and network; it ends when the pod is deleted and takes all of
them with it. The node's own state is in the containers' labels alone: what a killed process left is found by them.
"""

import asyncio
import functools
import itertools
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from gitsync.sandbox import discovery, events, pods
from gitsync.sandbox.controllers import port_number
from gitsync.sandbox.engine import Engine, EngineError
from gitsync.sandbox.netns import NetworkNamespace, ServiceNetwork, inside
from gitsync.sandbox.registry import Deletion, Options, Refusal, Registry, now
from gitsync.sandbox.schema import at, copy, many
from gitsync.sandbox.store import Expired, Json

NAME = "sandbox"
_OPTIONS = Options(manager="kubelet", validation="Ignore")
_BACKOFF = (10.0, 300.0)
_LAST_WORDS = 2.0  # seconds that whoever follows a log has to read to its end
_log = structlog.get_logger(__name__)


class Node:
    """``run`` looks after all pods until it is cancelled, and then removes every container.

    ``services``: give each pod a network namespace of ours, linked to this one; otherwise containers publish their
    ports on loopback.
    ``egress``: let pods reach the network beyond this machine where that needs a helper (slirp4netns).
    """

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        directory: Path,
        *,
        services: ServiceNetwork | None = None,
        egress: bool = True,
    ) -> None:
        self.registry = registry
        self.store = registry.store
        self.engine = engine
        self.directory = directory
        self.network = services
        self.slirp = shutil.which("slirp4netns") if egress and services else None
        self.network_args: list[str] = []
        self.gateway = ""
        self.exits: dict[str, asyncio.Event] = {}
        self._pods: dict[str, _Pod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._addresses = itertools.count(2)
        self._pulls: dict[str, asyncio.Lock] = {}

    async def run(self) -> None:
        if self.network is None:
            self.network_args, self.gateway = await self.engine.network()
        self._register()
        helpers = [asyncio.create_task(self._hear_deaths()), asyncio.create_task(self._look_for_deaths())]
        try:
            await self._follow()
        finally:
            for task in (*helpers, *self._tasks.values()):
                task.cancel()
            await asyncio.gather(*helpers, *self._tasks.values(), return_exceptions=True)
            await self._remove_all()

    async def _remove_all(self) -> None:
        with suppress(EngineError):
            mine = (await self.engine.owners()).get(str(self.directory), [])
            if mine:
                await self.engine.remove(*mine)

    def _register(self) -> None:
        stamp = now()
        if self.store.get("nodes", "", NAME):
            return
        nodes = self.registry.resource("nodes")
        self.registry.create(
            nodes, "", {"metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME}}}, _OPTIONS
        )
        engine = "podman" if self.engine.podman else "docker"
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": f"pods run with {engine}",
                 "lastHeartbeatTime": stamp, "lastTransitionTime": stamp}  # fmt: skip
        capacity = pods.CAPACITY | {"pods": "110"}
        status: Json = {
            "conditions": [ready],
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": NAME}],
            "nodeInfo": {
                "kubeletVersion": discovery.VERSION, "containerRuntimeVersion": engine, "osImage": "", "machineID": "",
                "architecture": "", "bootID": "", "kernelVersion": "", "kubeProxyVersion": discovery.VERSION,
                "operatingSystem": "linux", "systemUUID": "",
            },
        }  # fmt: skip
        self.registry.modify(nodes, "", NAME, lambda live: live | {"status": status}, _OPTIONS, "status")

    async def _follow(self) -> None:
        revision = 0
        while True:
            try:
                if not revision:
                    revision = self.store.revision
                    found = {pod["metadata"]["uid"]: pod for pod in self.store.items("pods")}
                    for uid in self._pods.keys() - found.keys():
                        self._pods[uid].vanished()
                    for pod in found.values():
                        self._seen(pod)
                async for batch in self.store.watch(revision):
                    for event in batch:
                        if event.resource == "pods":
                            self._seen(event.object, gone=event.type == "DELETED")
                        elif event.resource in ("configmaps", "secrets"):
                            metadata = event.object["metadata"]
                            for pod in self._pods.values():
                                pod.source_changed(metadata["namespace"])
                    revision = batch[-1].revision
            except Expired:
                revision = 0

    def _seen(self, pod: Json, *, gone: bool = False) -> None:
        uid = pod["metadata"]["uid"]
        known = self._pods.get(uid)
        if known is None:
            if gone or pod["spec"].get("nodeName") not in (None, NAME):
                return
            known = self._pods[uid] = _Pod(self, pod)
            task = self._tasks[uid] = asyncio.create_task(known.run())
            task.add_done_callback(functools.partial(self._done, uid))
        known.seen(pod, gone=gone)

    def _done(self, uid: str, task: asyncio.Task[None]) -> None:
        self._pods.pop(uid, None)
        self._tasks.pop(uid, None)
        if not task.cancelled() and (error := task.exception()):
            _log.error("pod worker failed", pod=uid, error=repr(error), exc_info=error)

    async def _hear_deaths(self) -> None:
        while True:
            async for container in self.engine.deaths():
                if found := self.exits.get(container):
                    found.set()
            await asyncio.sleep(1)

    async def _look_for_deaths(self) -> None:
        """The event stream may lose one; nothing may depend on it alone."""
        while True:
            await asyncio.sleep(5)
            with suppress(EngineError):
                watched = dict(self.exits)
                running = await self.engine.running() if watched else set[str]()
                for container, found in watched.items():
                    if container not in running:
                        found.set()

    def next_address(self) -> str:
        number = next(self._addresses)
        return f"127.97.{number // 250 % 250}.{number % 250 + 1}"

    def pull_lock(self, reference: str) -> asyncio.Lock:
        return self._pulls.setdefault(reference, asyncio.Lock())

    # ------------------------------------------------------------ for the proxy and the API

    async def dial(self, address: str, port: int) -> socket.socket:
        """A connection to a pod by its address; ``OSError`` as the pod would answer."""
        for pod in self._pods.values():
            if pod.address == address:
                return await pod.dial(port)
        raise ConnectionRefusedError(f"no pod has the address {address}")

    def services_changed(self) -> None:
        for pod in self._pods.values():
            pod.write_hosts()

    def services(self, namespace: str) -> list[Json]:
        """Services of a namespace with an address; first those that were there first."""
        found = [
            each for each in self.store.items("services", namespace) if each["spec"].get("clusterIP", "None") != "None"
        ]
        return sorted(found, key=lambda each: each["metadata"]["creationTimestamp"])

    async def logs(self, pod: Json, container: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """What ``kubectl logs`` asks for: follow, previous, timestamps, and the limits by lines, bytes and time."""
        name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
        known = self._pods.get(uid)
        found = known.containers.get(container) if known else None
        previous = query.get("previous") in ("1", "true")
        target = (found.previous if previous else found.id or found.previous) if found else ""
        if not found or not target:
            what = "previous terminated container" if previous else "container"
            why = (
                f'{what} "{container}" in pod "{name}" is waiting to start: {found.reason or "ContainerCreating"}'
                if found and not previous
                else f'{what} "{container}" in pod "{name}" not found'
            )
            raise Refusal(400, "BadRequest", why)
        args: list[str] = []
        if query.get("follow") in ("1", "true"):
            args.append("--follow")
        if query.get("timestamps") in ("1", "true"):
            args.append("--timestamps")
        if "tailLines" in query:
            args += ["--tail", query["tailLines"]]
        if "sinceSeconds" in query:
            args += ["--since", f"{int(query['sinceSeconds'])}s"]
        elif "sinceTime" in query:
            args += ["--since", query["sinceTime"]]
        left = int(query.get("limitBytes") or 0) or (1 << 62)
        found.readers += 1
        found.unread.clear()
        try:
            async for chunk in self.engine.logs(target, args):
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    return
        finally:
            found.readers -= 1
            if not found.readers:
                found.unread.set()


@dataclass(slots=True)
class _Container:
    """One container of a pod through all its restarts. ``state`` is as the API shows it."""

    spec: Json
    init: bool
    id: str = ""
    previous: str = ""
    readers: int = 0  # of its log, now
    unread: asyncio.Event = field(default_factory=asyncio.Event)  # set once nobody reads it any more
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Json = field(default_factory=dict[str, Any])
    restarts: int = 0
    ready: bool = False
    started: bool = False
    image_id: str = ""
    backoff: float = 0.0
    renewed: bool = False
    """Its image was changed in place: it runs once more, whatever the restart policy says."""
    up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has started for the first time."""
    stop_signal: str = "TERM"
    published: Mapping[int, int] = field(default_factory=dict[int, int])

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def reason(self) -> str:
        return str(at(self.state, "waiting").get("reason", ""))

    @property
    def running(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        return self.state["terminated"]["exitCode"] if "terminated" in self.state else None

    def status(self) -> Json:
        found: Json = {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": self.image_id,
            "ready": (self.ready and self.running) or (self.init and self.exit_code == 0),
            "started": self.started and self.running,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }
        if self.id:
            found["containerID"] = f"containerd://{self.id}"
        return found


class _Pod:
    """The life of one pod."""

    def __init__(self, node: Node, pod: Json) -> None:
        self._node = node
        self._pod = pod
        self._registry = node.registry
        self._gone = False
        self._changed = asyncio.Event()
        self._sources = asyncio.Event()
        self._stopping = False
        self._updates: set[asyncio.Task[None]] = set()
        self._initialized = False
        self._directory = node.directory / "pods" / pod["metadata"]["uid"]
        self._places: dict[str, Path] = {}
        self._slirp: asyncio.subprocess.Process | None = None
        self._slirp_pipe = -1
        self.network: NetworkNamespace | None = None
        self.address = ""
        spec = pod["spec"]
        self.containers = {
            each["name"]: _Container(copy(each), init)
            for group, init in (("initContainers", True), ("containers", False))
            for each in many(spec, group)
        }
        for each in self.containers.values():
            if spec.get("initContainers") and not each.init:
                each.state = {"waiting": {"reason": "PodInitializing"}}

    def seen(self, pod: Json, *, gone: bool) -> None:
        self._pod = pod
        self._gone = self._gone or gone
        if gone or pod["metadata"].get("deletionTimestamp"):
            self._changed.set()
        elif self.address and (pod["metadata"].get("generation") != at(pod, "status").get("observedGeneration")
                               or any(self.containers[each["name"]].spec["image"] != each["image"]
                                      for each in _containers(pod))):  # fmt: skip
            task = asyncio.create_task(self._updated(pod))
            self._updates.add(task)
            task.add_done_callback(self._updates.discard)

    async def _updated(self, pod: Json) -> None:
        """The pod was changed in place: a container of another image is stopped, and ``_keep`` starts it again."""
        self.publish()
        for spec in _containers(pod):
            each = self.containers[spec["name"]]
            if each.spec["image"] == spec["image"]:
                continue
            each.spec, each.backoff = copy(spec), 0
            if each.running and not self._stopping:
                each.renewed = True
                self._tell("Normal", "Killing", f"Container {each.name} definition changed, will be restarted")
                await self._stop(each, pod["spec"]["terminationGracePeriodSeconds"])
            else:
                self._sources.set()  # it may wait to pull the former image once more

    def vanished(self) -> None:
        """The pod is gone, and nobody saw how."""
        self.seen(self._pod, gone=True)

    def source_changed(self, namespace: str) -> None:
        """A ConfigMap or Secret changed: volumes are written again, and containers that wait for it try again."""
        if namespace != self._pod["metadata"]["namespace"]:
            return
        self._sources.set()
        if self._places:
            with suppress(pods.NotReady):
                pods.volumes(self._node.store, self._pod, self._directory / "volumes")

    @property
    def _title(self) -> str:
        metadata = self._pod["metadata"]
        return f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"

    def _tell(self, kind: str, reason: str, message: str) -> None:
        events.record(self._registry, self._pod, kind, reason, message, "kubelet")

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        life = asyncio.create_task(self._live())
        try:
            await self._changed.wait()
            self._stopping = True
            await self._stop_containers()
        finally:
            for task in (life, *self._updates):
                task.cancel()
            await asyncio.gather(life, *self._updates, return_exceptions=True)
            await self._clean()
        if not self._gone:
            metadata = self._pod["metadata"]
            with suppress(Refusal):
                how = Deletion(grace=0, uid=metadata["uid"])
                self._registry.delete(self._registry.resource("pods"), metadata["namespace"], metadata["name"], how)

    async def _live(self) -> None:
        try:
            await self._start()
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("pod failed", pod=self._title)

    async def _start(self) -> None:
        if not self._pod["spec"].get("nodeName"):
            self._schedule()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory.chmod(0o711)  # a container's own user must get through to its volumes
        host = self._pod["spec"].get("hostNetwork")
        self.address = "127.0.0.1" if host else self._node.next_address()
        if self._node.network and not host:
            await self._make_network(self._node.network)
        while True:
            try:
                self._places = pods.volumes(self._node.store, self._pod, self._directory / "volumes")
                break
            except pods.NotReady as error:
                self._tell("Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
                await self._wait_for_sources(10)
        self.write_hosts()
        self.publish()
        sidecars: list[asyncio.Task[None]] = []
        try:
            for each in [it for it in self.containers.values() if it.init]:
                if each.spec.get("restartPolicy") == "Always":
                    sidecars.append(asyncio.create_task(self._keep(each)))
                    await each.up.wait()
                    continue
                await self._keep(each)
                if each.exit_code != 0:
                    self.publish()
                    return
            self._initialized = True
            mains = [it for it in self.containers.values() if not it.init]
            for each in mains:
                each.state = {"waiting": {"reason": "ContainerCreating"}}
            async with asyncio.TaskGroup() as tasks:
                for each in mains:
                    tasks.create_task(self._keep(each))
            self.publish()
        finally:
            for task in sidecars:
                task.cancel()
            await asyncio.gather(*sidecars, return_exceptions=True)

    def _schedule(self) -> None:
        metadata = self._pod["metadata"]

        def bind(live: Json) -> Json:
            live["spec"]["nodeName"] = NAME
            return live

        resource = self._registry.resource("pods")
        options = Options(manager="kube-scheduler", validation="Ignore")
        with suppress(Refusal):
            self._pod = self._registry.modify(resource, metadata["namespace"], metadata["name"], bind, options)
        text = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {NAME}"
        events.record(self._registry, self._pod, "Normal", "Scheduled", text, "default-scheduler")

    async def _make_network(self, services: ServiceNetwork) -> None:
        network = await asyncio.get_running_loop().run_in_executor(None, NetworkNamespace)
        self.network = network
        await asyncio.to_thread(services.link, network, inside(self.address))
        if self._node.slirp:
            read, self._slirp_pipe = os.pipe()
            self._slirp = await asyncio.create_subprocess_exec(
                self._node.slirp, "--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path",
                f"--exit-fd={read}", network.path, "tap0",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[read], start_new_session=True,
            )  # fmt: skip
            os.close(read)

    async def _wait_for_sources(self, seconds: float) -> None:
        self._sources.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._sources.wait()

    async def _clean(self) -> None:
        with suppress(TimeoutError):  # its last words vanish with a container
            async with asyncio.timeout(_LAST_WORDS):
                for each in self.containers.values():
                    if each.readers:
                        await each.unread.wait()
        ids = [each for it in self.containers.values() for each in (it.id, it.previous) if each]
        if ids:
            await asyncio.shield(self._node.engine.remove(*ids))
        if self._slirp:
            os.close(self._slirp_pipe)
            with suppress(ProcessLookupError):
                self._slirp.kill()
            await self._slirp.wait()
        if self.network:
            network, self.network = self.network, None
            await asyncio.get_running_loop().run_in_executor(None, network.close)
        pods.remove_tree(self._directory)

    # ------------------------------------------------------------ one container

    async def _keep(self, each: _Container) -> None:
        """Run a container, and again as its restart policy says, until it shall not run any more."""
        policy = each.spec.get("restartPolicy") or self._pod["spec"]["restartPolicy"]
        if each.init and policy == "Always" and not each.spec.get("restartPolicy"):
            policy = "OnFailure"
        while not self._stopping:
            if not await self._run_once(each):
                continue
            code, renewed, each.renewed = each.exit_code, each.renewed, False
            if self._stopping or (not renewed and (policy == "Never" or (policy == "OnFailure" and code == 0))):
                return
            await self._back_off(each)
            each.restarts += 1

    async def _back_off(self, each: _Container) -> None:
        """Wait before a restart: not at all at first, then 10 s, doubled up to 5 minutes."""
        ended = each.state["terminated"]
        ran = datetime.fromisoformat(ended["finishedAt"]) - datetime.fromisoformat(ended["startedAt"])
        if ran.total_seconds() > 2 * _BACKOFF[1]:
            each.backoff = 0
        wait, each.backoff = each.backoff, min(_BACKOFF[1], each.backoff * 2 or _BACKOFF[0])
        each.last = each.state
        if wait:
            text = f"back-off {wait:.0f}s restarting failed container={each.name} pod={self._title}"
            each.state = {"waiting": {"reason": "CrashLoopBackOff", "message": text}}
            self.publish()
            self._tell("Warning", "BackOff", f"Back-off restarting failed container {each.name} in pod {self._title}")
            await asyncio.sleep(wait)

    async def _run_once(self, each: _Container) -> bool:
        """Create, start, wait for the end. False if it could not be created: then it has waited to try again."""
        try:
            image = await self._image(each)
            args, env = self._options(each)
        except pods.NotReady as error:
            each.state = {"waiting": {"reason": "CreateContainerConfigError", "message": str(error)}}
            self.publish()
            self._tell("Warning", "Failed", f"Error: {error}")
            await self._wait_for_sources(5)
            return False
        except _PullFailed as error:
            wait, each.backoff = each.backoff or _BACKOFF[0], min(_BACKOFF[1], each.backoff * 2 or 2 * _BACKOFF[0])
            each.state = {"waiting": {"reason": error.reason, "message": str(error)}}
            self.publish()
            self._tell("Warning", "Failed", str(error))
            self._tell("Warning", "Failed", f"Error: {error.reason}")
            if error.reason == "ErrImagePull":
                await asyncio.sleep(1)
                text = f'Back-off pulling image "{each.spec["image"]}": {error}'
                each.state = {"waiting": {"reason": "ImagePullBackOff", "message": text}}
                self.publish()
                self._tell("Normal", "BackOff", f'Back-off pulling image "{each.spec["image"]}"')
            await self._wait_for_sources(wait)
            return False
        engine = self._node.engine
        if each.previous:
            await engine.remove(each.previous)
        each.previous, each.id = each.id, ""
        command, env_args = self._command(each, env), pods.secret_environment(env, self._own(each))
        try:
            each.id = await engine.create([*args, *env_args[0], *command[0], image, *command[1]], env=env_args[1])
        except EngineError as error:
            stamp = now()
            each.state = {
                "terminated": {
                    "exitCode": 128,
                    "reason": "StartError",
                    "message": str(error),
                    "startedAt": stamp,
                    "finishedAt": stamp,
                }
            }
            self._tell("Warning", "Failed", f"Error: {error}")
            self.publish()
            return True
        ended = self._node.exits[each.id] = asyncio.Event()
        try:
            state = await engine.state(each.id)
            each.published = state.ports if state else {}
            each.stop_signal = state.stop_signal if state else "TERM"
            each.state = {"running": {"startedAt": now()}}
            begun = now()
            self._tell("Normal", "Created", f"Created container: {each.name}")
            self._tell("Normal", "Started", f"Started container {each.name}")
            if state and not state.running:
                ended.set()
            probes = asyncio.create_task(self._look_after(each))
            try:
                await ended.wait()
            finally:
                probes.cancel()
                await asyncio.gather(probes, return_exceptions=True)
        finally:
            self._node.exits.pop(each.id, None)
        state = await engine.state(each.id)
        code = state.exit_code if state else 137
        oom = bool(state and state.oom_killed)
        reason = "OOMKilled" if oom else "Completed" if code == 0 else "Error"
        each.ready = each.started = False
        each.state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "startedAt": begun,
                "finishedAt": now(),
                "containerID": f"containerd://{each.id}",
            }
        }
        self.publish()
        return True

    def _own(self, each: _Container) -> Path:
        place = self._directory / "containers" / each.name
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        return place

    async def _image(self, each: _Container) -> str:
        """The image's id, pulled if the policy asks for it."""
        reference, policy = str(each.spec["image"]), each.spec["imagePullPolicy"]
        engine = self._node.engine
        async with self._node.pull_lock(reference):
            found, name = await engine.has_image(reference)
            if found and policy != "Always":
                self._tell("Normal", "Pulled", f'Container image "{reference}" already present on machine')
            elif policy == "Never":
                raise _PullFailed(
                    "ErrImageNeverPull", f'Container image "{reference}" is not present with pull policy of Never'
                )
            else:
                self._tell("Normal", "Pulling", f'Pulling image "{reference}"')
                started = asyncio.get_running_loop().time()
                login = pods.logins(self._node.store, self._pod, self._directory)
                try:
                    await engine.pull(_full_name(reference), login)
                except EngineError as error:
                    raise _PullFailed("ErrImagePull", f'failed to pull image "{reference}": {error}') from error
                took = asyncio.get_running_loop().time() - started
                self._tell("Normal", "Pulled", f'Successfully pulled image "{reference}" in {took:.1f}s')
                found, name = await engine.has_image(_full_name(reference))
        each.image_id = name
        return found

    def _options(self, each: _Container) -> tuple[list[str], dict[str, str]]:
        """Options of ``create`` but for environment and command, and the environment."""
        pod, spec = self._pod, self._pod["spec"]
        env = pods.environment(self._node.store, pod | {"status": self.status()}, each.spec, self._service_variables())
        metadata = pod["metadata"]
        args = ["--label", f"gitsync.sandbox.pod={metadata['namespace']}/{metadata['name']}"]
        args += ["--label", f"gitsync.sandbox.container={each.name}"]
        first = next((it for it in self.containers.values() if it.id and it.running and it is not each), None)
        if spec.get("hostNetwork"):
            args += ["--network", "host"]
        elif self.network:
            args += ["--network", f"ns:{self.network.path}", "--hostname", metadata["name"][:63]]
            if self._slirp:
                args += ["--dns", "10.0.2.3"]
        elif first:
            args += ["--network", f"container:{first.id}"]
        else:
            args += [*self._node.network_args, "--hostname", metadata["name"][:63]]
            for port in self._ports():
                args += ["--publish", f"127.0.0.1::{port}"]
            for service in self._node.services(metadata["namespace"]):
                for name in _names(service):
                    args += ["--add-host", f"{name}:{self._node.gateway}"]
        if self.network:
            args += ["--volume", f"{self._directory / 'hosts'}:/etc/hosts:ro"]
            args += ["--no-hosts"] if self._node.engine.podman else []
        if each.spec.get("workingDir"):
            args += ["--workdir", each.spec["workingDir"]]
        if each.spec.get("stdin"):
            args += ["--interactive"]
        args += [*pods.mounts(each.spec, self._places, env), *pods.security(pod, each.spec)]
        return args, env

    @staticmethod
    def _command(each: _Container, env: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """(options, words after the image). ``command`` replaces the image's entrypoint and its arguments."""
        command = [pods.expand(word, env) for word in many(each.spec, "command")]
        words = [pods.expand(word, env) for word in many(each.spec, "args")]
        if command:
            return ["--entrypoint", command[0]], [*command[1:], *words]
        return [], words

    def _ports(self) -> list[int]:
        """Everything that somebody may want to reach: declared ports, probed ports, target ports of Services."""
        found: set[int] = set()
        for each in self.containers.values():
            for port in many(each.spec, "ports"):
                found.add(int(port["containerPort"]))
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                handler = at(each.spec, probe)
                place = at(handler, "httpGet") or at(handler, "tcpSocket")
                if place and (number := port_number(self._pod, place["port"])):
                    found.add(number)
        labels = at(self._pod["metadata"], "labels")
        for service in self._node.services(self._pod["metadata"]["namespace"]):
            selector = at(service["spec"], "selector") or {"": ""}
            if all(labels.get(key) == value for key, value in selector.items()):
                numbers = (port_number(self._pod, it["targetPort"]) for it in many(service["spec"], "ports"))
                found |= {number for number in numbers if number}
        return sorted(found)

    def _service_variables(self) -> dict[str, str]:
        """``WEB_SERVICE_HOST`` and its like, as they are when the container starts."""
        env: dict[str, str] = {}
        if self._pod["spec"].get("enableServiceLinks") is False:
            return env
        for service in self._node.services(self._pod["metadata"]["namespace"]):
            name = service["metadata"]["name"].upper().replace("-", "_")
            local: list[str] = at(service["metadata"], "annotations").get("sandbox.gitsync.dev/address", "").split(",")
            for index, port in enumerate(many(service["spec"], "ports")):
                number = str(port["port"])
                if not self.network and index < len(local) and local[index]:
                    number = local[index].rpartition(":")[2]
                host = inside(service["spec"]["clusterIP"]) if self.network else self._node.gateway
                if index == 0:
                    env |= {f"{name}_SERVICE_HOST": host, f"{name}_SERVICE_PORT": number}
                if port.get("name"):
                    env[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = number
        return env

    def write_hosts(self) -> None:
        """Names of Services, own namespace first; the file is changed in place because containers hold it open."""
        if not self.network or not self._directory.is_dir():
            return
        own = self._pod["metadata"]["namespace"]
        lines = ["127.0.0.1 localhost", "::1 localhost", f"{self.address} {self._pod['metadata']['name'][:63]}"]
        for service in self._node.services(""):
            names = _names(service)
            if service["metadata"]["namespace"] != own:
                names = names[1:]
            lines.append(f"{inside(service['spec']['clusterIP'])} {' '.join(names)}")
        for alias in many(self._pod["spec"], "hostAliases"):
            names = " ".join(many(alias, "hostnames"))
            lines += [f"{alias['ip']} {names}"]
        path = self._directory / "hosts"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o644)

    # ------------------------------------------------------------ probes and hooks

    async def _look_after(self, each: _Container) -> None:
        """Hooks and probes of a running container, until it is cancelled with it."""
        hook = at(each.spec, "lifecycle", "postStart")
        if hook:
            good, why = await self._handle(each, hook, 60)
            if not good:
                self._tell("Warning", "FailedPostStartHook", f"PostStartHook failed: {why}")
                await self._node.engine.signal(each.id, "KILL")
                return
        if startup := each.spec.get("startupProbe"):
            self.publish()
            await self._probe(each, startup, "Startup")
        each.started = True
        each.up.set()
        readiness, liveness = each.spec.get("readinessProbe"), each.spec.get("livenessProbe")
        if not readiness:
            each.ready = True
        self.publish()
        async with asyncio.TaskGroup() as tasks:
            if readiness:
                tasks.create_task(self._probe(each, readiness, "Readiness"))
            if liveness:
                tasks.create_task(self._probe(each, liveness, "Liveness"))

    async def _probe(self, each: _Container, probe: Json, kind: str) -> None:
        """Probe for as long as the container runs; a startup probe returns at its first success."""
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        good_row = bad_row = 0
        while True:
            good, why = await self._handle(each, probe, probe["timeoutSeconds"])
            if good:
                good_row, bad_row = good_row + 1, 0
                if kind == "Startup":
                    return
                if kind == "Readiness" and good_row >= probe["successThreshold"] and not each.ready:
                    each.ready = True
                    self.publish()
            else:
                good_row, bad_row = 0, bad_row + 1
                self._tell("Warning", "Unhealthy", f"{kind} probe failed: {why}")
                if bad_row >= probe["failureThreshold"]:
                    if kind == "Readiness" and each.ready:
                        each.ready = False
                        self.publish()
                    elif kind != "Readiness" and not self._stopping:
                        self._tell(
                            "Normal", "Killing", f"Container {each.name} failed {kind.lower()} probe, will be restarted"
                        )
                        grace = probe.get("terminationGracePeriodSeconds")
                        default = self._pod["spec"]["terminationGracePeriodSeconds"]
                        await self._stop(each, default if grace is None else grace)
                        return
            await asyncio.sleep(probe["periodSeconds"])

    async def _handle(self, each: _Container, handler: Json, timeout: float) -> tuple[bool, str]:
        """One probe or hook: whether it succeeded, and why not."""
        try:
            async with asyncio.timeout(timeout):
                if command := handler.get("exec"):
                    return await self._node.engine.execute(each.id, command["command"], timeout)
                if request := handler.get("httpGet"):
                    return await self._get(request)
                if place := handler.get("tcpSocket"):
                    return await self._connect(port_number(self._pod, place["port"]) or 0)
                if pause := handler.get("sleep"):
                    await asyncio.sleep(pause["seconds"])
                    return True, ""
                return False, f"the sandbox knows no {', '.join(handler)} probe"
        except TimeoutError:
            return False, f"command timed out after {timeout}s" if "exec" in handler else "context deadline exceeded"
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            return False, str(error) or type(error).__name__

    async def dial(self, port: int) -> socket.socket:
        """A connection to a port of this pod."""
        if self.network:
            return await self.network.dial(self.address, port)
        number = port
        if not self._pod["spec"].get("hostNetwork"):
            number = next((it.published[port] for it in self.containers.values() if port in it.published), 0)
            if not number:
                raise ConnectionRefusedError(f"port {port} is not published by pod {self._pod['metadata']['name']}")
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", number))
        except BaseException:
            connection.close()
            raise
        return connection

    async def _connect(self, port: int) -> tuple[bool, str]:
        reader, writer = await asyncio.open_connection(sock=await self.dial(port))
        try:
            if not self.network:
                # The engine's own forwarder accepts whether or not anybody listens inside: then it hangs up at once.
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        if not await reader.read(1):
                            return False, f"dial tcp {self.address}:{port}: connection refused"
            return True, ""
        finally:
            writer.close()

    async def _get(self, request: Json) -> tuple[bool, str]:
        port = port_number(self._pod, request["port"]) or 0
        context: ssl.SSLContext | None = None
        if request.get("scheme") == "HTTPS":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # as the kubelet: a probe trusts anybody
        connection = await self.dial(port)
        name = self.address if context else None
        reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=name)
        try:
            headers = {"Host": f"{self.address}:{port}", "User-Agent": "kube-probe/1.34", "Accept": "*/*"}
            headers |= {each["name"]: each["value"] for each in many(request, "httpHeaders")}
            lines = [f"GET {request.get('path', '/')} HTTP/1.1", *(f"{key}: {each}" for key, each in headers.items())]
            writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
            await writer.drain()
            words = (await reader.readline()).split()
            if len(words) < 2 or not words[1].isdigit():
                return False, f'Get "http://{self.address}:{port}{request.get("path", "/")}": EOF'
            code = int(words[1])
            return 200 <= code < 400, f"HTTP probe failed with statuscode: {code}"
        finally:
            writer.close()

    # ------------------------------------------------------------ the end

    async def _stop_containers(self) -> None:
        metadata = self._pod["metadata"]
        default = self._pod["spec"]["terminationGracePeriodSeconds"]
        grace = 0 if self._gone else metadata.get("deletionGracePeriodSeconds", default)
        running = [each for each in self.containers.values() if each.id and each.running]
        for each in running:
            self._tell("Normal", "Killing", f"Stopping container {each.name}")
        await asyncio.gather(*(self._stop(each, grace) for each in running))

    async def _stop(self, each: _Container, grace: float) -> None:
        """preStop, SIGTERM, and after the grace period SIGKILL; returns when it has ended."""
        ended = self._node.exits.get(each.id)
        if ended is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        hook = at(each.spec, "lifecycle", "preStop")
        if hook and grace > 0:
            good, why = await self._handle(each, hook, grace)
            if not good:
                self._tell("Warning", "FailedPreStopHook", f"PreStopHook failed: {why}")
        await self._node.engine.signal(each.id, each.stop_signal if grace > 0 else "KILL")
        with suppress(TimeoutError):
            async with asyncio.timeout(max(2.0 if hook else 0.0, deadline - loop.time())):
                await ended.wait()
                return
        await self._node.engine.signal(each.id, "KILL")
        await ended.wait()

    # ------------------------------------------------------------ status

    def status(self) -> Json:
        """The pod's status as it is now, with the times of conditions that did not change kept."""
        old = self._pod.get("status", {})
        spec = self._pod["spec"]
        mains = [it for it in self.containers.values() if not it.init]
        inits = [it for it in self.containers.values() if it.init]
        ready = self._initialized and all(it.ready and it.running for it in mains)
        phase = self._phase(mains, inits)
        facts = [
            ("PodReadyToStartContainers", bool(self.address), ""),
            ("Initialized", self._initialized, "ContainersNotInitialized"),
            ("Ready", ready, "ContainersNotReady"),
            ("ContainersReady", ready, "ContainersNotReady"),
            ("PodScheduled", bool(spec.get("nodeName")), ""),
        ]
        waiting = [it.name for it in mains if not (it.ready and it.running)]
        before = {each["type"]: each for each in many(old, "conditions")}
        conditions: list[Json] = []
        for kind, true, reason in facts:
            text = "True" if true else "False"
            same = before.get(kind, {}).get("status") == text
            entry: Json = {"type": kind, "status": text, "lastProbeTime": None}
            entry["lastTransitionTime"] = before[kind]["lastTransitionTime"] if same else now()
            if not true and reason:
                if phase == "Succeeded":
                    entry["reason"] = "PodCompleted"
                else:
                    names = " ".join(waiting)
                    entry |= {"reason": reason, "message": f"containers with unready status: [{names}]"}
            conditions.append({key: each for key, each in entry.items() if each is not None})
        found: Json = {
            "observedGeneration": self._pod["metadata"].get("generation", 1),
            "phase": phase,
            "conditions": conditions,
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
            "startTime": old.get("startTime") or now(),
            "qosClass": old.get("qosClass", "BestEffort"),
            "containerStatuses": [it.status() for it in mains],
        }
        if inits:
            found["initContainerStatuses"] = [it.status() for it in inits]
        if self.address:
            found |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return found

    def _phase(self, mains: list[_Container], inits: list[_Container]) -> str:
        never = self._pod["spec"]["restartPolicy"] == "Never"
        policy = self._pod["spec"]["restartPolicy"]
        if not self._initialized:
            return "Failed" if never and any(it.exit_code for it in inits) else "Pending"
        codes = [it.exit_code for it in mains]
        if all(code is not None for code in codes) and (policy != "Always" or self._stopping):
            if all(code == 0 for code in codes):
                return "Succeeded"
            if never or self._stopping:
                return "Failed"
        if any(it.running or it.last or it.exit_code is not None for it in mains):
            return "Running"
        return "Pending"

    def publish(self) -> None:
        """Write the status if it changed."""
        metadata, status = self._pod["metadata"], self.status()
        if self._gone or status == self._pod.get("status"):
            return
        with suppress(Refusal):
            resource = self._registry.resource("pods")
            live = self._registry.get(resource, metadata["namespace"], metadata["name"])
            if live["metadata"]["uid"] == metadata["uid"]:
                self._pod = self._registry.modify(
                    resource,
                    metadata["namespace"],
                    metadata["name"],
                    lambda it: it | {"status": status},
                    _OPTIONS,
                    "status",
                )


class _PullFailed(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _containers(pod: Json) -> list[Json]:
    return [*many(pod["spec"], "initContainers"), *many(pod["spec"], "containers")]


def _names(service: Json) -> list[str]:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    return [name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"]


def _full_name(reference: str) -> str:
    """With the registry that a short name means: engines differ in where they look."""
    host, slash, _ = reference.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        return reference
    return f"docker.io/{reference}" if slash else f"docker.io/library/{reference}"
