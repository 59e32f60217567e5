"""Manifests that cannot be rolled out without losing requests, named before they are applied. Pure.

Every rule is one small function that yields findings; ``_RULES`` is the list of them. An *error* is something that
drops requests, or a pod, in an ordinary rollout; a *warning* is something that does so on a bad day. What a rule does
not understand (a percentage that is none, a strange type) it leaves to the API server's validation.

Two rules are not about rollouts but about input that cannot be meant (``BAD_INPUT``): they refuse the revision whatever
the Application says about zero downtime.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from gitsync.model import Desired, Finding, Json, Manifest, ObjectRef

Key = tuple[str, str, str, str]

BAD_INPUT = frozenset({"service-selects-nothing", "selector-mismatch"})
SLOW_START = 30  # seconds of initial delay from which a container counts as slow

_APPS = frozenset({"Deployment", "StatefulSet", "DaemonSet"})
_WITH_TEMPLATE = frozenset(
    {("apps", kind) for kind in (*_APPS, "ReplicaSet")} | {("", "ReplicationController"), ("batch", "Job")}
)


def lint(
    desired: Desired, previous: Mapping[Key, Json] | None = None, *, autoscalers: Iterable[Json] = ()
) -> tuple[Finding, ...]:
    """All findings, in the order of the manifests.

    ``previous`` holds what runs or exists now, by ``ObjectRef.key``: the old pods that a Service must go on selecting,
    and whatever the manifests refer to (see ``references``). ``autoscalers`` are those of the cluster.
    """
    scope = _Scope(desired, previous or {}, autoscalers)
    found: list[Finding] = []
    for manifest in desired.manifests:
        if _selects(manifest):
            found += _service(manifest, scope)
        if (template := _template(manifest.object)) is not None:
            workload = _workload(manifest, template, scope)
            for rule in _RULES:
                found += rule(workload)
    return tuple(found)


def references(manifest: Manifest) -> frozenset[Key]:
    """Keys of the ConfigMaps, Secrets and claims that the manifest's pods cannot start without."""
    template = _template(manifest.object)
    return frozenset(key for key, _ in _references(template, manifest.ref.namespace)) if template else frozenset()


def scale_target(scaler: Json) -> Key | None:
    """The key of the object that an autoscaler scales, ``None`` for an object that is none."""
    ref = as_map(as_map(scaler, "spec"), "scaleTargetRef")
    if not ref:
        return None
    group = str(ref.get("apiVersion") or "apps/v1").rpartition("/")[0]  # KEDA leaves out what is usual
    namespace = str(as_map(scaler, "metadata").get("namespace") or "")
    return (group, str(ref.get("kind") or "Deployment"), namespace, str(ref.get("name") or ""))


# ---------------------------------------------------------------- what the rules look at


class _Scope:
    """The commit and the cluster, indexed once: a revision may hold thousands of objects."""

    def __init__(self, desired: Desired, previous: Mapping[Key, Json], autoscalers: Iterable[Json]) -> None:
        self.previous = previous
        self.mine = {each.ref.key: each.object for each in desired.manifests}
        self.custom = any(_is_custom(each.ref) for each in desired.manifests)
        self.scalers: dict[Key, Json] = {}
        for scaler in (*autoscalers, *self.mine.values()):
            if target := scale_target(scaler):
                self.scalers[target] = as_map(scaler, "spec")
        self._services: dict[_Pair, list[Manifest]] = {}
        for each in filter(_selects, desired.manifests):
            self._services.setdefault(_first_pair(each.ref.namespace, _selector(each.object)), []).append(each)
        self._budgets: dict[_Pair, list[Json]] = {}
        for key, obj in {**previous, **self.mine}.items():
            if key[:2] == ("policy", "PodDisruptionBudget"):
                spec = as_map(obj, "spec")
                pair = _first_pair(key[2], as_map(as_map(spec, "selector"), "matchLabels"))
                self._budgets.setdefault(pair, []).append(spec)
        self._new_pods = _pods_by_label(self.mine)
        self._running_pods = _pods_by_label(previous)
        self.labels = frozenset(key for _, key, _ in self._new_pods)  # that pods of the commit have

    def object(self, key: Key) -> Json | None:
        """That of the commit, or else that of the cluster."""
        return self.mine.get(key) or self.previous.get(key)

    def services(self, namespace: str, labels: Json) -> list[Manifest]:
        """Services of the commit that select pods of these labels."""
        near = (each for pair in _pairs(namespace, labels) for each in self._services.get(pair, ()))
        return [each for each in near if _covers(_selector(each.object), labels)]

    def budgets(self, namespace: str, labels: Json) -> list[Json]:
        """Specs of the PodDisruptionBudgets, of commit and cluster, for pods of these labels."""
        pairs = [*_pairs(namespace, labels), _first_pair(namespace, {})]
        near = (spec for pair in pairs for spec in self._budgets.get(pair, ()))
        return [spec for spec in near if _matches(spec.get("selector"), labels)]

    def selects_new(self, namespace: str, selector: Json) -> bool:
        pods = self._new_pods.get(_first_pair(namespace, selector), ())
        return any(_covers(selector, labels) for labels in pods)

    def selects_running(self, namespace: str, selector: Json) -> bool:
        pods = self._running_pods.get(_first_pair(namespace, selector), ())
        return any(_covers(selector, labels) for labels in pods)


_Pair = tuple[str, str, str]  # a namespace and one label: what selects and what is selected share it


def _pairs(namespace: str, labels: Json) -> list[_Pair]:
    return [(namespace, key, str(value)) for key, value in labels.items()]


def _first_pair(namespace: str, selector: Json) -> _Pair:
    return next(iter(_pairs(namespace, selector)), (namespace, "", ""))


def _pods_by_label(objects: Mapping[Key, Json]) -> dict[_Pair, list[Json]]:
    """Labels of the pods that the objects make, under each of them."""
    found: dict[_Pair, list[Json]] = {}
    for key, obj in objects.items():
        if (template := _template(obj)) is not None:
            for pair in _pairs(key[2], _labels(template)):
                found.setdefault(pair, []).append(_labels(template))
    return found


def _workload(manifest: Manifest, template: Json, scope: _Scope) -> "_Workload":
    low = high = _number(as_map(manifest.object, "spec").get("replicas"), 1)
    if scaler := scope.scalers.get(manifest.ref.key):
        low = _number(scaler.get("minReplicas", scaler.get("minReplicaCount")), 1)
        high = max(low, _number(scaler.get("maxReplicas", scaler.get("maxReplicaCount")), low))
    services = scope.services(manifest.ref.namespace, _labels(template))
    return _Workload(manifest=manifest, template=template, low=low, high=high, services=services, scope=scope)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workload:
    """Something that makes pods. ``low`` and ``high``: the replicas it may have, by an autoscaler or its own word."""

    manifest: Manifest
    template: Json
    low: int
    high: int
    services: Sequence[Manifest]  # of the commit, that select its pods
    scope: _Scope

    @property
    def ref(self) -> ObjectRef:
        return self.manifest.ref

    @property
    def kind(self) -> str:
        return self.ref.kind

    @property
    def spec(self) -> Json:
        return as_map(self.manifest.object, "spec")

    @property
    def pod(self) -> Json:
        return as_map(self.template, "spec")

    @property
    def rolls(self) -> bool:
        return self.ref.group == "apps" and self.kind in _APPS

    @property
    def at_pod(self) -> str:
        """The path of the pod's spec."""
        if self.kind == "Pod":
            return "spec"
        return "spec.jobTemplate.spec.template.spec" if self.kind == "CronJob" else "spec.template.spec"

    def containers(self, field: str = "containers") -> Iterator[tuple[Json, str, str]]:
        """Each with its path for people (``…[name=web]``) and its path for the line (``…[0]``)."""
        for index, container in enumerate(as_list(self.pod, field)):
            base = f"{self.at_pod}.{field}"
            yield container, f"{base}[name={container.get('name', index)}]", f"{base}[{index}]"

    def serving(self) -> list[tuple[Json, str, str]]:
        """The containers that Services send to: those that declare a targeted port; if none does, all."""
        targets = {
            str(port.get("targetPort", port.get("port")))
            for service in self.services
            for port in as_list(as_map(service.object, "spec"), "ports")
        }
        if not self.services:
            return []
        found = [
            each
            for each in self.containers()
            if any(
                {str(port.get("containerPort")), str(port.get("name"))} & targets for port in as_list(each[0], "ports")
            )
        ]
        return found or list(self.containers())

    def finding(
        self, rule: str, path: str, message: str, hint: str = "", *, level: str = "error", line: str = ""
    ) -> Finding:
        return _finding(self.manifest, rule, path, message, hint, level=level, line=line)


def _finding(
    manifest: Manifest, rule: str, path: str, message: str, hint: str = "", *, level: str = "error", line: str = ""
) -> Finding:
    origin = replace(manifest.at(line or path), field=path)
    return Finding(rule=rule, level=level, ref=manifest.ref, origin=origin, message=message, hint=hint)


# ---------------------------------------------------------------- errors: the ordinary rollout


def _strategy(it: _Workload) -> Iterator[Finding]:
    if not it.rolls:
        return
    field = "strategy" if it.kind == "Deployment" else "updateStrategy"
    kind = as_map(it.spec, field).get("type", "RollingUpdate")
    path = f"spec.{field}.type"
    if kind == "Recreate":
        yield it.finding(
            "strategy",
            path,
            "Recreate stops every old pod before a new one starts: nobody answers meanwhile",
            "use RollingUpdate, or say that an interruption is accepted",
        )
    elif kind == "OnDelete":
        yield it.finding("strategy", path, "OnDelete rolls nothing out: pods keep the old version", "use RollingUpdate")
    elif it.kind == "StatefulSet" and it.high == 1 and it.services:
        message = "a StatefulSet stops a pod before it starts the next one: with one replica nobody answers meanwhile"
        yield it.finding("strategy", "spec.replicas", message, "use two replicas or more, or a Deployment")


def _surge(it: _Workload) -> Iterator[Finding]:
    if it.kind not in ("Deployment", "DaemonSet") or it.high == 0:
        return
    field = "strategy" if it.kind == "Deployment" else "updateStrategy"
    strategy = as_map(it.spec, field)
    if strategy.get("type", "RollingUpdate") != "RollingUpdate" or (it.kind == "DaemonSet" and not it.services):
        return
    rolling = as_map(strategy, "rollingUpdate")
    usual = ("25%", "25%") if it.kind == "Deployment" else (1, 0)
    unavailable = share(rolling.get("maxUnavailable", usual[0]), it.high, up=it.kind == "DaemonSet")
    surge = share(rolling.get("maxSurge", usual[1]), it.high, up=True)
    if unavailable is None or surge is None:
        return
    if unavailable == 0 and surge == 0:
        unavailable = 1  # what the controller makes of two percentages that both come to nothing
    if unavailable:
        said = "" if "maxUnavailable" in rolling else "the default "
        value = rolling.get("maxUnavailable", usual[0])
        of = f"{unavailable} of {it.high} replicas" if it.kind == "Deployment" else "a node's only pod"
        yield it.finding(
            "max-unavailable",
            f"spec.{field}.rollingUpdate.maxUnavailable",
            f"{said}maxUnavailable {value} takes {of} away before the new pods are ready",
            "set maxUnavailable: 0 and maxSurge: 1",
        )
    if not surge:
        path = f"spec.{field}.rollingUpdate.maxSurge"
        yield it.finding(
            "max-surge",
            path,
            "maxSurge 0 makes no new pod before an old one is gone",
            "set maxUnavailable: 0 and maxSurge: 1",
        )


def _readiness(it: _Workload) -> Iterator[Finding]:
    if not it.rolls:
        return
    for container, path, line in it.serving():
        ready, live = as_map(container, "readinessProbe"), as_map(container, "livenessProbe")
        if not ready:
            behind = ", ".join(sorted(str(service.ref) for service in it.services))
            message = f"it is behind {behind} without a readiness probe: requests reach it before it can answer"
            yield it.finding("readiness-probe", f"{path}.readinessProbe", message, "add one", line=line)
        elif live and _handler(ready) == _handler(live) and _patience(live) <= _patience(ready):
            yield it.finding(
                "readiness-is-liveness",
                f"{path}.livenessProbe",
                "the liveness probe asks the same as the readiness probe and loses patience no later: "
                "a pod that is only busy is killed instead of being spared",
                "ask liveness something cheaper, or give it a higher failureThreshold",
                line=f"{line}.livenessProbe",
            )
        slow = max(_number(probe.get("initialDelaySeconds"), 0) for probe in (ready, live))
        if slow >= SLOW_START and not as_map(container, "startupProbe"):
            message = f"it starts slowly (initialDelaySeconds {slow}) without a startup probe"
            hint = "replace initialDelaySeconds by a startupProbe"
            yield it.finding("startup-probe", f"{path}.startupProbe", message, hint, line=line)


def _draining(it: _Workload) -> Iterator[Finding]:
    if not it.rolls:
        return
    grace = _number(it.pod.get("terminationGracePeriodSeconds"), 30)
    for container, path, line in it.serving():
        hook = as_map(as_map(container, "lifecycle"), "preStop")
        delay = _delay(hook)
        if not hook or delay == 0:
            yield it.finding(
                "pre-stop",
                f"{path}.lifecycle.preStop",
                "without a preStop delay it stops while proxies still send requests to it",
                "add lifecycle.preStop.exec.command: [sleep, '5'], or preStop.sleep.seconds: 5",
                line=line,
            )
        elif delay is not None and grace <= delay:
            yield it.finding(
                "grace-period",
                f"{it.at_pod}.terminationGracePeriodSeconds",
                f"the grace period of {grace} s is over when the preStop delay of {delay} s is: "
                "requests that are still answered are cut off",
                "make it longer than preStop plus the longest request",
            )


def _deadline(it: _Workload) -> Iterator[Finding]:
    if it.kind != "Deployment":
        return
    deadline = _number(it.spec.get("progressDeadlineSeconds"), 600)
    start = max((_start_up(container) for container, _, _ in it.containers()), default=0)
    start += _number(it.spec.get("minReadySeconds"), 0)
    if deadline <= start:
        yield it.finding(
            "progress-deadline",
            "spec.progressDeadlineSeconds",
            f"the rollout is called failed after {deadline} s, but a pod may take {start} s to become available",
            f"set it to more than {start}",
        )


def _no_room(it: _Workload) -> Iterator[Finding]:
    """What only one pod can have at a time, so that the surge pod cannot start beside the old one."""
    if it.kind != "Deployment":
        return
    hint = "remove it, or say that an interruption is accepted"
    for index, volume in enumerate(as_list(it.pod, "volumes")):
        name = as_map(volume, "persistentVolumeClaim").get("claimName")
        modes = access_modes(it.scope.object(("", "PersistentVolumeClaim", it.ref.namespace, str(name))) or {})
        if modes and not {"ReadWriteMany", "ReadOnlyMany"} & modes:
            base = f"{it.at_pod}.volumes"
            path = f"{base}[name={volume.get('name', index)}].persistentVolumeClaim.claimName"
            message = f"the claim {name} is {', '.join(sorted(modes))}: old and new pod cannot both mount it everywhere"
            yield it.finding("rwo-claim", path, message, hint, line=f"{base}[{index}]")
    host_network = it.pod.get("hostNetwork") is True
    for container, path, line in it.containers():
        for number, port in enumerate(as_list(container, "ports")):
            taken = port.get("hostPort") or (host_network and port.get("containerPort"))
            if taken:
                shown = f"{path}.ports[containerPort={port.get('containerPort')}].hostPort"
                message = f"host port {taken} is free on a node only when the old pod is gone"
                yield it.finding("host-port", shown, message, hint, line=f"{line}.ports[{number}]")
    terms = as_map(as_map(it.pod, "affinity"), "podAntiAffinity")
    strict = "requiredDuringSchedulingIgnoredDuringExecution"
    for index, term in enumerate(as_list(terms, strict)):
        own = _matches(term.get("labelSelector"), _labels(it.template))
        if own and term.get("topologyKey") == "kubernetes.io/hostname":
            path = f"{it.at_pod}.affinity.podAntiAffinity.{strict}[{index}]"
            message = "it keeps its own new pods off every node that runs an old one: the surge pod may find no node"
            yield it.finding("strict-anti-affinity", path, message, "use a topology spread constraint, or prefer it")


def _images(it: _Workload) -> Iterator[Finding]:
    if not it.rolls and it.kind != "Pod":
        return
    for field in ("initContainers", "containers"):
        for container, path, line in it.containers(field):
            image, policy = container.get("image"), container.get("imagePullPolicy")
            if isinstance(image, str) and "@sha256:" not in image:
                message = f"{image} is a moving name: a restarted pod may run something else than its neighbours"
                hint = "write name@sha256:…"
                yield it.finding("image-digest", f"{path}.image", message, hint, line=f"{line}.image")
            if policy == "Always":
                message = "with imagePullPolicy Always no pod restarts while the registry is away"
                where = f"{line}.imagePullPolicy"
                yield it.finding(
                    "image-pull-policy", f"{path}.imagePullPolicy", message, "use IfNotPresent", line=where
                )


# ---------------------------------------------------------------- errors: Services and selectors


def _service(service: Manifest, scope: _Scope) -> Iterator[Finding]:
    selector, namespace = _selector(service.object), service.ref.namespace
    wanted = ", ".join(f"{key}={value}" for key, value in selector.items())
    if not scope.selects_new(namespace, selector):
        # An operator may make the pods of a custom resource, and a pod may label itself (a database's primary does):
        # nothing in the commit can tell.
        known = {key: value for key, value in selector.items() if key in scope.labels}
        yield _finding(
            service,
            "service-selects-nothing",
            "spec.selector",
            f"no pod template of this revision in the namespace {namespace!r} has the labels {wanted}",
            "make the selector and the labels of the pods agree",
            level="warning" if scope.custom or scope.selects_new(namespace, known) else "error",
        )
        return
    before = scope.previous.get(service.ref.key)
    served = before is not None and scope.selects_running(namespace, _selector(before))
    if served and not scope.selects_running(namespace, selector):
        yield _finding(
            service,
            "service-selector",
            "spec.selector",
            f"the pods that run now do not have {wanted}: they get no more requests before new ones are ready",
            "keep the old selector until the new pods serve, in a later commit",
        )


def _leaves_its_service(it: _Workload) -> Iterator[Finding]:
    """Pods that a Service of the commit selects now, and will not when they are replaced."""
    old = it.scope.previous.get(it.ref.key)
    template = _template(old) if old else None
    if template is None or not it.rolls:
        return
    for service in it.scope.services(it.ref.namespace, _labels(template)):
        if service not in it.services:
            yield it.finding(
                "service-selector",
                "spec.template.metadata.labels",
                f"{service.ref} selects the pods that run now but not the new ones: with them it loses its endpoints",
                "keep the labels that the selector names",
            )


def _selector_mismatch(it: _Workload) -> Iterator[Finding]:
    selector = it.spec.get("selector")
    if it.ref.group == "apps" and isinstance(selector, dict) and not _matches(selector, _labels(it.template)):
        yield it.finding(
            "selector-mismatch",
            "spec.selector",
            "the selector does not match the labels of its own pod template",
            "make spec.selector.matchLabels and spec.template.metadata.labels agree",
        )


# ---------------------------------------------------------------- warnings: the bad day


def _bare_pod(it: _Workload) -> Iterator[Finding]:
    if it.kind == "Pod" and it.pod.get("restartPolicy", "Always") == "Always":
        yield it.finding(
            "bare-pod",
            "kind",
            "a bare Pod cannot roll without an interruption: it stops before its new version answers",
            "use a Deployment",
            level="warning",
        )


def _missing(it: _Workload) -> Iterator[Finding]:
    for key, path in dict(sorted(_references(it.template, it.ref.namespace))).items():
        if key not in it.scope.mine and key not in it.scope.previous:
            yield it.finding(
                "missing-reference",
                f"{it.at_pod}.{path}",
                f"{key[1]} {key[3]} is neither in this revision nor in the cluster: pods wait until somebody makes it",
                level="warning",
            )


def _spare(it: _Workload) -> Iterator[Finding]:
    """What keeps requests answered when a node goes."""
    if not it.rolls or it.kind == "DaemonSet" or not it.services:
        return
    if it.low < 2:
        message = f"with {it.low} replicas the loss of one node is an outage"
        yield it.finding("replicas", "spec.replicas", message, "use two or more", level="warning")
    if not _number(it.spec.get("minReadySeconds"), 0):
        message = "a pod counts as available the moment it is ready, though it may fail a second later"
        yield it.finding(
            "min-ready-seconds", "spec.minReadySeconds", message, "set it to a few seconds", level="warning"
        )
    if it.low < 2:
        return
    yield from _disruption_budget(it)
    affinity = as_map(it.pod, "affinity")
    if not as_list(it.pod, "topologySpreadConstraints") and not as_map(affinity, "podAntiAffinity"):
        message = "nothing keeps all of its pods from running on one node"
        path = f"{it.at_pod}.topologySpreadConstraints"
        yield it.finding("topology-spread", path, message, "add a topology spread constraint", level="warning")


def _disruption_budget(it: _Workload) -> Iterator[Finding]:
    budgets = it.scope.budgets(it.ref.namespace, _labels(it.template))
    if not budgets:
        hint = "add a PodDisruptionBudget with maxUnavailable: 1"
        message = "no PodDisruptionBudget covers it: a drain may stop all of its pods at once"
        yield it.finding("disruption-budget", "metadata.name", message, hint, level="warning")
    for budget in budgets:
        most = share(budget.get("maxUnavailable"), it.low, up=True)
        least = share(budget.get("minAvailable"), it.low, up=True)
        if most == 0 or (least is not None and least >= it.low):
            message = "its PodDisruptionBudget allows no pod to go: a node can never be drained"
            hint = "let it allow one"
            yield it.finding("disruption-budget", "metadata.name", message, hint, level="warning")


def _requests(it: _Workload) -> Iterator[Finding]:
    if not it.rolls:
        return
    for container, path, line in it.containers():
        if not as_map(as_map(container, "resources"), "requests"):
            message = "without requests it is the first to be evicted, and may find no room"
            where = f"{path}.resources.requests"
            yield it.finding("requests", where, message, "set requests for cpu and memory", level="warning", line=line)


def _config_in_place(it: _Workload) -> Iterator[Finding]:
    """A ConfigMap that changes under pods of the old version, because its name does not change with its content."""
    if not it.rolls:
        return
    for key, path in dict(sorted(_references(it.template, it.ref.namespace))).items():
        config = it.scope.mine.get(key)
        if config is None or key[1] not in ("ConfigMap", "Secret"):
            continue
        if config.get("immutable") is not True and not _HASHED.search(key[3]):
            message = f"{key[1]} {key[3]} changes in place: an old pod that restarts in a rollout reads the new one"
            hint = "put a hash of the content into its name (Kustomize's generators do)"
            yield it.finding("config-in-place", f"{it.at_pod}.{path}", message, hint, level="warning")


_HASHED = re.compile(r"-(?=[a-z0-9]*\d)[a-z0-9]{8,}$")

_RULES: tuple[Callable[[_Workload], Iterator[Finding]], ...] = (
    _selector_mismatch,
    _strategy,
    _surge,
    _readiness,
    _draining,
    _deadline,
    _no_room,
    _leaves_its_service,
    _images,
    _bare_pod,
    _missing,
    _spare,
    _requests,
    _config_in_place,
)


# ---------------------------------------------------------------- numbers


def share(value: Any, of: int, *, up: bool) -> int | None:
    """An int-or-percent as the controllers read it, ``None`` if it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,4})%", value)):
        part = int(match[1]) * of / 100
        return math.ceil(part) if up else math.floor(part)
    return None


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _start_up(container: Json) -> int:
    """Seconds that the probes give a container until it must be ready."""
    startup, ready = as_map(container, "startupProbe"), as_map(container, "readinessProbe")
    begin = _number(startup.get("initialDelaySeconds"), 0) + (_patience(startup) if startup else 0)
    return max(begin, _number(ready.get("initialDelaySeconds"), 0))


def _patience(probe: Json) -> int:
    """Seconds of failing that a probe puts up with."""
    return _number(probe.get("periodSeconds"), 10) * _number(probe.get("failureThreshold"), 3)


def _handler(probe: Json) -> Json:
    return {key: probe[key] for key in ("httpGet", "tcpSocket", "exec", "grpc") if key in probe}


_SLEEP = re.compile(r"\bsleep\s+(\d+)")


def _delay(hook: Json) -> int | None:
    """Seconds that a preStop hook sleeps; ``None`` where it does something that cannot be read."""
    if "sleep" in hook:
        return _number(as_map(hook, "sleep").get("seconds"), 0)
    command = as_map(hook, "exec").get("command")
    words = " ".join(str(word) for word in cast("list[Any]", command)) if isinstance(command, list) else ""
    match = _SLEEP.search(words)
    return int(match[1]) if match else None


# ---------------------------------------------------------------- labels, templates, references


def as_map(obj: Json, key: str) -> Json:
    """A field that should be an object; what is of another type is left to the server's validation."""
    value = obj.get(key)
    return cast(Json, value) if isinstance(value, dict) else {}


def as_list(obj: Json, key: str) -> list[Json]:
    """The objects in a field that should be a list of them."""
    value = obj.get(key)
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast(Json, item) for item in items if isinstance(item, dict)]


def _template(obj: Json) -> Json | None:
    """The pod template of anything that makes pods; a Pod is its own."""
    group, kind = str(obj.get("apiVersion", "")).rpartition("/")[0], str(obj.get("kind", ""))
    if (group, kind) == ("", "Pod"):
        return obj
    if (group, kind) == ("batch", "CronJob"):
        return as_map(as_map(as_map(as_map(obj, "spec"), "jobTemplate"), "spec"), "template")
    return as_map(as_map(obj, "spec"), "template") if (group, kind) in _WITH_TEMPLATE else None


def _labels(template: Json) -> Json:
    return as_map(as_map(template, "metadata"), "labels")


def _selects(manifest: Manifest) -> bool:
    """A Service that finds its endpoints by labels."""
    spec = as_map(manifest.object, "spec")
    is_service = (manifest.ref.group, manifest.ref.kind) == ("", "Service")
    return is_service and spec.get("type") != "ExternalName" and bool(_selector(manifest.object))


#: Labels that controllers give the pods that they make: no template has them.
_OF_CONTROLLERS = frozenset(
    {
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "controller-revision-hash",
        "pod-template-hash",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "batch.kubernetes.io/job-name",
        "controller-uid",
        "job-name",
    }
)


def _selector(service: Json) -> Json:
    """As far as a pod template can tell."""
    selector = as_map(as_map(service, "spec"), "selector")
    return {key: value for key, value in selector.items() if key not in _OF_CONTROLLERS}


def _covers(selector: Json, labels: Json) -> bool:
    """A Service's selector; an empty one selects nothing."""
    return bool(selector) and selector.items() <= labels.items()


def _matches(selector: Any, labels: Json) -> bool:
    """A LabelSelector; ``{}`` selects everything, an absent one nothing."""
    if not isinstance(selector, dict):
        return False
    terms = cast(Json, selector)
    return as_map(terms, "matchLabels").items() <= labels.items() and all(
        _holds(term, labels) for term in as_list(terms, "matchExpressions")
    )


def _holds(term: Json, labels: Json) -> bool:
    key, listed = str(term.get("key")), term.get("values")
    values = cast("list[Any]", listed) if isinstance(listed, list) else []
    match term.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            return False


def _is_custom(ref: ObjectRef) -> bool:
    return "." in ref.group and not ref.group.endswith(".k8s.io")


def access_modes(claim: Json) -> set[str]:
    modes = as_map(claim, "spec").get("accessModes")
    return {str(mode) for mode in cast("list[Any]", modes)} if isinstance(modes, list) else set()


def _references(template: Json, namespace: str) -> Iterator[tuple[Key, str]]:
    """What a pod cannot start without, each with its path below the pod's spec. Optional ones are left out."""
    pod = as_map(template, "spec")
    for field in ("initContainers", "containers"):
        for container in as_list(pod, field):
            path = f"{field}[name={container.get('name')}]"
            for variable in as_list(container, "env"):
                source = as_map(variable, "valueFrom")
                where = f"{path}.env[name={variable.get('name')}].valueFrom"
                yield from _named(source, "configMapKeyRef", "ConfigMap", namespace, where)
                yield from _named(source, "secretKeyRef", "Secret", namespace, where)
            for index, source in enumerate(as_list(container, "envFrom")):
                yield from _named(source, "configMapRef", "ConfigMap", namespace, f"{path}.envFrom[{index}]")
                yield from _named(source, "secretRef", "Secret", namespace, f"{path}.envFrom[{index}]")
    for volume in as_list(pod, "volumes"):
        path = f"volumes[name={volume.get('name')}]"
        projected = [(each, f"{path}.projected") for each in as_list(as_map(volume, "projected"), "sources")]
        for source, where in [(volume, path), *projected]:
            yield from _named(source, "configMap", "ConfigMap", namespace, where)
            yield from _named(source, "secret", "Secret", namespace, where)
        yield from _named(volume, "persistentVolumeClaim", "PersistentVolumeClaim", namespace, path)


def _named(source: Json, field: str, kind: str, namespace: str, path: str) -> Iterator[tuple[Key, str]]:
    target = as_map(source, field)
    name = target.get("name") or target.get("secretName") or target.get("claimName")
    automatic = kind == "ConfigMap" and name == "kube-root-ca.crt"  # every namespace gets one
    if isinstance(name, str) and target.get("optional") is not True and not automatic:
        yield ("", kind, namespace, name), f"{path}.{field}"
