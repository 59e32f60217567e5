"""The controllers that a rollout needs, in one level-based loop over names.

A watch turns every write into the names it concerns; a worker reconciles one name after the other and re-reads the
world each time, so it does not matter how often or in which order names come. Decisions are in ``workloads``.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import structlog

from gitsync.sandbox import events, workloads
from gitsync.sandbox.registry import Deletion, Options, Refusal, Registry, now
from gitsync.sandbox.rules import selects
from gitsync.sandbox.schema import at, copy, many
from gitsync.sandbox.store import Event, Expired, Json

Name = tuple[str, str, str]
"""(what to reconcile, namespace, name)."""

_log = structlog.get_logger(__name__)
_OPTIONS = Options(manager="kube-controller-manager", validation="Ignore")
_DEPLOYMENTS, _REPLICA_SETS, _JOBS = "deployments.apps", "replicasets.apps", "jobs.batch"
_SLICES = "endpointslices.discovery.k8s.io"
_SERVICE_LABEL = "kubernetes.io/service-name"


class Controllers:
    """``run`` works until it is cancelled."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._dirty: dict[Name, None] = {}
        self._wake = asyncio.Event()
        self._timers: dict[Name, asyncio.TimerHandle] = {}
        self._dependents: dict[str, set[Name]] = {}
        """Owner's UID → (resource, namespace, name) of what it owns, or once owned."""
        self._foreground: dict[str, str] = {}
        """UIDs of owners that wait for their dependents' end → where they are."""
        self._failures: dict[Name, int] = {}
        self._reconcilers: dict[str, Callable[[str, str], None]] = {
            _DEPLOYMENTS: self._deployment,
            _REPLICA_SETS: self._replica_set,
            _JOBS: self._job,
            "services": self._service,
            "namespaces": self._namespace,
            "owned": self._owned,
            "owner": self._owner,
        }

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._work())

    async def _follow(self) -> None:
        revision = 0
        while True:
            try:
                if not revision:
                    revision = self._store.revision
                    for resource, value in self._store.everything():
                        self._note(Event(revision, resource, "ADDED", value, None))
                async for batch in self._store.watch(revision):
                    for event in batch:
                        self._note(event)
                    revision = batch[-1].revision
            except Expired:
                revision = 0

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                name = next(iter(self._dirty))
                del self._dirty[name]
                try:
                    self._reconcilers[name[0]](name[1], name[2])
                    self._failures.pop(name, None)
                except Refusal as error:
                    # Somebody else was faster, or the namespace is going: look again soon.
                    self._again(name, error)
                except Exception as error:
                    _log.exception("controller failed", kind=name[0], namespace=name[1], name=name[2])
                    self._again(name, error)
                await asyncio.sleep(0)

    def _again(self, name: Name, error: Exception) -> None:
        self._failures[name] = count = self._failures.get(name, 0) + 1
        _log.debug("reconcile again", kind=name[0], namespace=name[1], name=name[2], error=str(error))
        self._later(name, min(30.0, 0.05 * 2**count))

    def _mark(self, name: Name) -> None:
        self._dirty[name] = None
        self._wake.set()

    def _later(self, name: Name, seconds: float) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, self._mark, name)

    # ------------------------------------------------------------ which names a write concerns

    def _note(self, event: Event) -> None:
        resource, value = event.resource, event.object
        metadata = value["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if resource in self._reconcilers:
            self._mark((resource, namespace, name))
        for owner in many(metadata, "ownerReferences"):
            self._dependents.setdefault(owner["uid"], set()).add((resource, namespace, name))
            if owner.get("controller"):
                kind = {"ReplicaSet": _REPLICA_SETS, "Job": _JOBS, "Deployment": _DEPLOYMENTS}.get(owner["kind"])
                if kind:
                    self._mark((kind, namespace, owner["name"]))
            if event.type == "DELETED":
                self._mark(("owner", owner["uid"], ""))
        if metadata.get("ownerReferences") and event.type == "ADDED":
            self._mark(("owned", f"{resource}|{namespace}", name))
        place = f"{resource}|{namespace}|{name}"
        if "foregroundDeletion" in many(metadata, "finalizers"):
            self._foreground[metadata["uid"]] = place
        if event.type == "DELETED" or metadata.get("finalizers"):
            self._mark(("owner", metadata["uid"], place))
        if event.type == "DELETED":
            self._foreground.pop(metadata["uid"], None)
            if timer := self._timers.pop((resource, namespace, name), None):
                timer.cancel()
            parent = self._store.get("namespaces", "", namespace)
            if parent and parent["metadata"].get("deletionTimestamp"):
                self._mark(("namespaces", "", namespace))
        if resource == "pods":
            self._note_pod(event, namespace)
        elif resource == _SLICES and (service := at(metadata, "labels").get(_SERVICE_LABEL)):
            self._mark(("services", namespace, service))

    def _note_pod(self, event: Event, namespace: str) -> None:
        pods = [event.object, *([event.previous] if event.previous else [])]
        for service in self._store.items("services", namespace):
            selector = service["spec"].get("selector")
            if selector and any(_covers(selector, pod) for pod in pods):
                self._mark(("services", namespace, service["metadata"]["name"]))
        for owner in many(event.object["metadata"], "ownerReferences") if event.type == "DELETED" else ():
            # A Deployment that recreates waits for the last of its old pods.
            holder = self._store.get(_REPLICA_SETS, namespace, owner["name"])
            for each in (holder or {"metadata": {}})["metadata"].get("ownerReferences", ()):
                self._mark((_DEPLOYMENTS, namespace, each["name"]))
        if not event.object["metadata"].get("ownerReferences"):
            for resource in (_REPLICA_SETS,):
                for each in self._store.items(resource, namespace):
                    if selects(each["spec"].get("selector"), event.object["metadata"].get("labels")):
                        self._mark((resource, namespace, each["metadata"]["name"]))

    # ------------------------------------------------------------ helpers

    def _children(self, resource: str, owner: Json) -> list[Json]:
        """Objects of a resource whose controller this very object is."""
        uid = owner["metadata"]["uid"]
        found: list[Json] = []
        for kind, namespace, name in sorted(self._dependents.get(uid, ())):
            value = self._store.get(kind, namespace, name) if kind == resource else None
            if value and any(
                each["uid"] == uid and each.get("controller") for each in many(value["metadata"], "ownerReferences")
            ):
                found.append(value)
        return found

    def _adopt_name(self, resource: str, value: Json, owner: Json) -> None:
        metadata = value["metadata"]
        names = self._dependents.setdefault(owner["metadata"]["uid"], set())
        names.add((resource, metadata.get("namespace", ""), metadata["name"]))

    def _create(self, resource: str, namespace: str, body: Json, owner: Json) -> Json:
        body["metadata"]["ownerReferences"] = [_reference(owner)]
        created = self._registry.create(self._registry.resource(resource), namespace, body, _OPTIONS)
        self._adopt_name(resource, created, owner)
        return created

    def _set_status(self, resource: str, value: Json, status: Json) -> None:
        if value.get("status", {}) == status:
            return
        metadata = value["metadata"]
        self._registry.modify(
            self._registry.resource(resource),
            metadata["namespace"],
            metadata["name"],
            lambda live: live | {"status": status},
            _OPTIONS,
            "status",
        )

    def _resize(self, replica_set: Json, replicas: int, annotations: Json) -> None:
        metadata = replica_set["metadata"]

        def change(live: Json) -> Json:
            live["spec"]["replicas"] = replicas
            live["metadata"].setdefault("annotations", {}).update(annotations)
            return live

        self._registry.modify(
            self._registry.resource(_REPLICA_SETS), metadata["namespace"], metadata["name"], change, _OPTIONS
        )

    def _delete(self, resource: str, value: Json, how: Deletion | None = None) -> None:
        metadata = value["metadata"]
        if metadata.get("deletionTimestamp") and not how:
            return
        try:
            found = self._registry.resource(resource)
            self._registry.delete(found, metadata.get("namespace", ""), metadata["name"], how)
        except Refusal:
            return  # gone already

    def _tell(self, about: Json, kind: str, reason: str, message: str, component: str) -> None:
        events.record(self._registry, about, kind, reason, message, component)

    # ------------------------------------------------------------ Deployment

    def _deployment(self, namespace: str, name: str) -> None:
        deployment = self._store.get(_DEPLOYMENTS, namespace, name)
        if deployment is None or deployment["metadata"].get("deletionTimestamp"):
            return
        spec = deployment["spec"]
        owned = self._children(_REPLICA_SETS, deployment)
        new = next((each for each in owned if workloads.bare_template(each) == spec["template"]), None)
        old = [each for each in owned if each is not new]
        if spec.get("paused"):
            self._deployment_status(deployment, new, old)
            return
        revision = max((workloads.revision_of(each) for each in old), default=0) + 1
        if new is None:
            new = self._new_replica_set(deployment, revision)
        elif workloads.revision_of(new) < revision:
            self._resize(new, new["spec"]["replicas"], {workloads.REVISION: str(revision)})
        else:
            revision = workloads.revision_of(new)
        if workloads.revision_of(deployment) != revision:
            self._annotate(deployment, {workloads.REVISION: str(revision)})
        alive = any(
            at(pod, "status").get("phase") not in ("Succeeded", "Failed")
            for each in old
            for pod in self._children("pods", each)
        )
        scaling = workloads.roll(deployment, new, old, old_pods_alive=alive)
        surge, _ = workloads.bounds(deployment)
        sizes = {each["metadata"]["name"]: each for each in (new, *old)}
        for target, size in scaling.sizes.items():
            before = sizes[target]["spec"]["replicas"]
            bounds = {"desired-replicas": str(spec["replicas"]), "max-replicas": str(spec["replicas"] + surge)}
            self._resize(sizes[target], size, {f"deployment.kubernetes.io/{key}": each for key, each in bounds.items()})
            direction = "up" if size > before else "down"
            self._tell(
                deployment,
                "Normal",
                "ScalingReplicaSet",
                f"Scaled {direction} replica set {target} from {before} to {size}",
                "deployment-controller",
            )
        current = self._store.get(_DEPLOYMENTS, namespace, name)
        if current:
            fresh = [self._store.get(_REPLICA_SETS, namespace, each) for each in sizes]
            found = [each for each in fresh if each]
            latest = next((each for each in found if each["metadata"]["uid"] == new["metadata"]["uid"]), None)
            rest = [each for each in found if each is not latest]
            self._deployment_status(current, latest, rest)
            if not scaling.sizes:
                self._forget_revisions(current, rest)

    def _new_replica_set(self, deployment: Json, revision: int) -> Json:
        spec, metadata = deployment["spec"], deployment["metadata"]
        digest = workloads.template_hash(spec["template"])
        template = copy(spec["template"])
        template["metadata"].setdefault("labels", {})[workloads.HASH_LABEL] = digest
        selector = copy(spec["selector"])
        selector.setdefault("matchLabels", {})[workloads.HASH_LABEL] = digest
        name = f"{metadata['name']}-{digest}"
        annotations = {workloads.REVISION: str(revision)}
        if cause := at(metadata, "annotations").get("kubernetes.io/change-cause"):
            annotations["kubernetes.io/change-cause"] = cause
        body: Json = {
            "metadata": {"name": name, "labels": template["metadata"]["labels"], "annotations": annotations},
            "spec": {"replicas": 0, "selector": selector, "template": template},
        }
        if spec.get("minReadySeconds"):
            body["spec"]["minReadySeconds"] = spec["minReadySeconds"]
        return self._create(_REPLICA_SETS, metadata["namespace"], body, deployment)

    def _annotate(self, deployment: Json, annotations: Json) -> None:
        metadata = deployment["metadata"]

        def change(live: Json) -> Json:
            live["metadata"].setdefault("annotations", {}).update(annotations)
            return live

        resource = self._registry.resource(_DEPLOYMENTS)
        self._registry.modify(resource, metadata["namespace"], metadata["name"], change, _OPTIONS)

    def _forget_revisions(self, deployment: Json, old: list[Json]) -> None:
        idle = [each for each in old if not each["spec"]["replicas"] and not at(each, "status").get("replicas")]
        idle.sort(key=workloads.revision_of)
        keep = deployment["spec"]["revisionHistoryLimit"]
        for each in idle[: max(0, len(idle) - keep)]:
            self._delete(_REPLICA_SETS, each)

    def _deployment_status(self, deployment: Json, new: Json | None, old: list[Json]) -> None:
        spec, before = deployment["spec"], deployment.get("status", {})

        def total(field: str) -> int:
            return sum(at(each, "status").get(field, 0) for each in (*old, *([new] if new else [])))

        updated = (new or {}).get("status", {}).get("replicas", 0)
        status: Json = {"observedGeneration": deployment["metadata"]["generation"], "replicas": total("replicas")}
        status |= {"updatedReplicas": updated, "readyReplicas": total("readyReplicas")}
        status |= {"availableReplicas": total("availableReplicas")}
        sizes = sum(each["spec"]["replicas"] for each in (*old, *([new] if new else [])))
        status["unavailableReplicas"] = max(0, sizes - status["availableReplicas"])
        _, unavailable = workloads.bounds(deployment)
        if status["availableReplicas"] >= spec["replicas"] - unavailable:
            usable = ("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        else:
            usable = (
                "Available",
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        name = deployment["metadata"]["name"]
        target = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{name}"'
        complete = updated == spec["replicas"] == status["replicas"] == status["availableReplicas"] and new is not None
        progressing = workloads.condition(deployment, "Progressing")
        moved = (
            any(
                status[field] != before.get(field, 0)
                for field in ("updatedReplicas", "readyReplicas", "availableReplicas", "replicas")
            )
            or before.get("observedGeneration") != status["observedGeneration"]
        )
        old_reason = progressing.get("reason", "")
        if complete:
            progress = ("Progressing", "True", "NewReplicaSetAvailable", f"{target} has successfully progressed.")
        elif old_reason == "NewReplicaSetAvailable" and not self._template_changed(deployment, new):
            progress = None  # scaling and restarts of pods are no rollout: nothing to watch over
        elif spec.get("paused"):
            progress = ("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused")
        elif not moved and self._too_late(deployment, progressing):
            progress = ("Progressing", "False", "ProgressDeadlineExceeded", f"{target} has timed out progressing.")
        else:
            progress = ("Progressing", "True", "ReplicaSetUpdated", f"{target} is progressing.")
        wanted: list[tuple[str, str, str, str]] = [usable, *([progress] if progress else [])]
        failing = workloads.condition(new or {}, "ReplicaFailure")
        old_conditions = [each for each in many(before, "conditions") if each["type"] != "ReplicaFailure"]
        if failing:
            wanted.append(("ReplicaFailure", "True", failing["reason"], failing["message"]))
        status["conditions"] = workloads.conditions(old_conditions, now(), *wanted, progress=moved)
        status = {key: each for key, each in status.items() if each not in (0,) or key == "observedGeneration"}
        self._set_status(_DEPLOYMENTS, deployment, status)
        if progress and progress[2] == "ReplicaSetUpdated":
            latest = next(each for each in status["conditions"] if each["type"] == "Progressing")
            left = spec["progressDeadlineSeconds"] - workloads.seconds_since(latest["lastUpdateTime"])
            self._later((_DEPLOYMENTS, deployment["metadata"]["namespace"], name), max(0.2, left + 0.5))

    @staticmethod
    def _template_changed(deployment: Json, new: Json | None) -> bool:
        """Whether the rollout that Progressing last reported was another ReplicaSet's."""
        message = workloads.condition(deployment, "Progressing").get("message", "")
        return new is None or f'"{new["metadata"]["name"]}"' not in message

    @staticmethod
    def _too_late(deployment: Json, progressing: Json) -> bool:
        if progressing.get("reason") == "ProgressDeadlineExceeded":
            return True
        since = workloads.seconds_since(progressing.get("lastUpdateTime")) if progressing else 0.0
        return since > deployment["spec"]["progressDeadlineSeconds"]

    # ------------------------------------------------------------ ReplicaSet

    def _replica_set(self, namespace: str, name: str) -> None:
        value = self._store.get(_REPLICA_SETS, namespace, name)
        if value is None or value["metadata"].get("deletionTimestamp"):
            return
        self._adopt(value)
        pods = [pod for pod in self._children("pods", value) if workloads.active(pod)]
        spec, failure = value["spec"], None
        for pod in workloads.deletion_order(pods)[: max(0, len(pods) - spec["replicas"])]:
            self._delete("pods", pod)
            self._tell(
                value, "Normal", "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}", "replicaset-controller"
            )
        for _ in range(spec["replicas"] - len(pods)):
            try:
                created = self._pod(value, spec["template"])
            except Refusal as error:
                failure = ("ReplicaFailure", "True", "FailedCreate", str(error))
                self._tell(value, "Warning", "FailedCreate", f"Error creating: {error}", "replicaset-controller")
                self._later((_REPLICA_SETS, namespace, name), 5.0)
                break
            self._tell(
                value,
                "Normal",
                "SuccessfulCreate",
                f"Created pod: {created['metadata']['name']}",
                "replicaset-controller",
            )
        pods = [pod for pod in self._children("pods", value) if workloads.active(pod)]
        waits = [workloads.available_in(pod, spec.get("minReadySeconds", 0)) for pod in pods]
        soon = min((wait for wait in waits if 0 < wait < float("inf")), default=0)
        if soon:
            self._later((_REPLICA_SETS, namespace, name), soon + 0.02)
        status: Json = {
            "replicas": len(pods),
            "fullyLabeledReplicas": len(pods),
            "readyReplicas": sum(1 for pod in pods if workloads.is_true(pod, "Ready")),
            "availableReplicas": sum(1 for wait in waits if wait == 0),
        }
        status = {key: each for key, each in status.items() if each or key == "replicas"}
        status["observedGeneration"] = value["metadata"]["generation"]
        if failure:
            old = at(value, "status").get("conditions", [])
            found = workloads.conditions(old, now(), failure)[0]
            status["conditions"] = [{key: each for key, each in found.items() if key != "lastUpdateTime"}]
        live = self._store.get(_REPLICA_SETS, namespace, name)
        if live:
            self._set_status(_REPLICA_SETS, live, status)

    def _adopt(self, value: Json) -> None:
        namespace = value["metadata"]["namespace"]
        for pod in self._store.items("pods", namespace):
            owners = many(pod["metadata"], "ownerReferences")
            if any(each.get("controller") for each in owners) or not workloads.active(pod):
                continue
            if selects(value["spec"]["selector"], pod["metadata"].get("labels")):

                def change(live: Json) -> Json:
                    live["metadata"].setdefault("ownerReferences", []).append(_reference(value))
                    return live

                name = pod["metadata"]["name"]
                self._registry.modify(self._registry.resource("pods"), namespace, name, change, _OPTIONS)
                self._adopt_name("pods", pod, value)

    def _pod(self, owner: Json, template: Json, name: str = "") -> Json:
        metadata = copy(template["metadata"])
        metadata["name"] = name or f"{owner['metadata']['name'][:240]}-{_suffix()}"
        body: Json = {"metadata": metadata, "spec": copy(template["spec"])}
        return self._create("pods", owner["metadata"]["namespace"], body, owner)

    # ------------------------------------------------------------ Job

    def _job(self, namespace: str, name: str) -> None:
        job = self._store.get(_JOBS, namespace, name)
        if job is None or job["metadata"].get("deletionTimestamp"):
            return
        key: Name = (_JOBS, namespace, name)
        spec, status = job["spec"], dict(job.get("status", {}))
        finished = next((each for each in ("Complete", "Failed") if workloads.is_true(job, each)), "")
        pods = self._children("pods", job)
        if finished:
            if (ttl := spec.get("ttlSecondsAfterFinished")) is not None:
                ended = workloads.condition(job, finished)["lastTransitionTime"]
                left = ttl - workloads.seconds_since(ended)
                if left <= 0:
                    self._delete(_JOBS, job)
                else:
                    self._later(key, left)
            return
        if spec.get("suspend"):
            for pod in filter(workloads.active, pods):
                self._delete("pods", pod)
            status.pop("startTime", None)
            suspended = ("Suspended", "True", "JobSuspended", "Job suspended")
            status["conditions"] = _job_conditions(many(status, "conditions"), suspended)
            self._set_status(_JOBS, job, status)
            return
        if "startTime" not in status:
            status["startTime"] = now()
        running = [pod for pod in pods if workloads.active(pod)]
        succeeded = sum(1 for pod in pods if at(pod, "status").get("phase") == "Succeeded")
        failed = sum(1 for pod in pods if at(pod, "status").get("phase") == "Failed")
        restarts = sum(
            each.get("restartCount", 0) for pod in running for each in at(pod, "status").get("containerStatuses", [])
        )
        wanted = spec.get("completions")
        done = succeeded >= wanted if wanted is not None else succeeded > 0 and not running
        deadline = spec.get("activeDeadlineSeconds")
        verdicts: list[tuple[str, str, str, str]] = []
        if done:
            reason = ("CompletionsReached", "Reached expected number of succeeded pods")
            verdicts = [("SuccessCriteriaMet", "True", *reason), ("Complete", "True", *reason)]
            status["completionTime"] = now()
            self._tell(job, "Normal", "Completed", "Job completed", "job-controller")
        elif failed > spec["backoffLimit"] or restarts > spec["backoffLimit"]:
            reason = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
            verdicts = [("FailureTarget", "True", *reason), ("Failed", "True", *reason)]
        elif deadline and workloads.seconds_since(status["startTime"]) >= deadline:
            reason = ("DeadlineExceeded", "Job was active longer than specified deadline")
            verdicts = [("FailureTarget", "True", *reason), ("Failed", "True", *reason)]
        if verdicts:
            for pod in running:
                self._delete("pods", pod)
            running = []
            if verdicts[1][0] == "Failed":
                self._tell(job, "Warning", verdicts[1][2], verdicts[1][3], "job-controller")
        else:
            if deadline:
                self._later(key, deadline - workloads.seconds_since(status["startTime"]) + 0.05)
            missing = spec["parallelism"] if wanted is None else min(spec["parallelism"], wanted - succeeded)
            self._start_job_pods(job, key, missing - len(running), failed, pods)
            running = [pod for pod in self._children("pods", job) if workloads.active(pod)]
        status |= {"active": len(running), "succeeded": succeeded, "failed": failed}
        status["ready"] = sum(1 for pod in running if workloads.is_true(pod, "Ready"))
        status["uncountedTerminatedPods"] = {}
        status["conditions"] = _job_conditions(many(status, "conditions"), *verdicts)
        status = {key: each for key, each in status.items() if each not in (0, []) or key == "ready"}
        self._set_status(_JOBS, job, status)

    def _start_job_pods(self, job: Json, key: Name, missing: int, failed: int, pods: list[Json]) -> None:
        if missing <= 0:
            return
        if failed:
            ended = [pod["metadata"]["creationTimestamp"] for pod in pods if pod["status"].get("phase") == "Failed"]
            for pod in pods:
                states = at(pod, "status").get("containerStatuses", [])
                ended += [
                    each["state"]["terminated"]["finishedAt"]
                    for each in states
                    if "terminated" in each.get("state", {})
                ]
            wait = min(360.0, 10.0 * 2 ** (failed - 1)) - workloads.seconds_since(max(ended))
            if wait > 0:
                self._later(key, wait)
                return
        for _ in range(missing):
            created = self._pod(job, job["spec"]["template"])
            self._tell(
                job, "Normal", "SuccessfulCreate", f"Created pod: {created['metadata']['name']}", "job-controller"
            )

    # ------------------------------------------------------------ Service endpoints

    def _service(self, namespace: str, name: str) -> None:
        service = self._store.get("services", namespace, name)
        if service is None or service["metadata"].get("deletionTimestamp"):
            return
        selector = service["spec"].get("selector")
        if not selector or service["spec"]["type"] == "ExternalName":
            return
        groups: dict[tuple[tuple[str, int, str], ...], list[Json]] = {}
        for pod in self._store.items("pods", namespace):
            status = pod.get("status", {})
            if _covers(selector, pod) and status.get("podIP") and status.get("phase") not in ("Succeeded", "Failed"):
                groups.setdefault(_ports_of(service, pod), []).append(pod)
        slices = {
            each["metadata"]["name"]: each
            for each in self._store.items(_SLICES, namespace)
            if at(each["metadata"], "labels").get(_SERVICE_LABEL) == name and _controlled(each, service)
        }
        unused = list(slices)
        wanted: list[tuple[str, list[Json], list[Json]]] = []
        for ports, pods in groups.items() or [((), [])]:
            endpoints = [_endpoint(service, pod) for pod in pods]
            entries = [{"name": label, "port": number, "protocol": protocol} for label, number, protocol in ports]
            existing = next((each for each in unused if slices[each].get("ports") == entries), None)
            if existing is None and len(groups) < 2 and unused:
                existing = unused[0]
            if existing:
                unused.remove(existing)
            wanted.append((existing or f"{name}-{_suffix()}", entries, endpoints))
        for slice_name, ports, endpoints in wanted:
            self._write_slice(service, slice_name, ports, endpoints, slices.get(slice_name))
        for slice_name in unused:
            self._delete(_SLICES, slices[slice_name])
        self._write_endpoints(service, wanted)

    def _write_slice(
        self, service: Json, name: str, ports: list[Json], endpoints: list[Json], live: Json | None
    ) -> None:
        namespace = service["metadata"]["namespace"]
        if live is None:
            labels = {_SERVICE_LABEL: service["metadata"]["name"]}
            labels["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io"
            body: Json = {"metadata": {"name": name, "labels": labels}, "addressType": "IPv4"}
            self._create(_SLICES, namespace, body | {"endpoints": endpoints, "ports": ports}, service)
        elif many(live, "endpoints") != endpoints or many(live, "ports") != ports:
            resource = self._registry.resource(_SLICES)
            content = {"endpoints": endpoints, "ports": ports}
            self._registry.modify(resource, namespace, name, lambda value: value | content, _OPTIONS)

    def _write_endpoints(self, service: Json, wanted: list[tuple[str, list[Json], list[Json]]]) -> None:
        """The older Endpoints object, which some clients and ``kubectl describe`` still read."""
        subsets: list[Json] = []
        for _, ports, endpoints in wanted:
            ready = [each for each in endpoints if each["conditions"]["ready"]]
            waiting = [
                each for each in endpoints if not each["conditions"]["ready"] and not each["conditions"]["terminating"]
            ]
            subset = {
                "addresses": [_address(each) for each in ready],
                "notReadyAddresses": [_address(each) for each in waiting],
            }
            if ready or waiting:
                named = [{key: each for key, each in port.items() if each != ""} for port in ports]
                subsets.append({key: each for key, each in subset.items() if each} | {"ports": named})
        namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
        resource = self._registry.resource("endpoints")
        live = self._store.get("endpoints", namespace, name)
        if live is None:
            body: Json = {"metadata": {"name": name}, "subsets": subsets}
            self._create("endpoints", namespace, body, service)
        elif many(live, "subsets") != subsets:
            self._registry.modify(resource, namespace, name, lambda value: value | {"subsets": subsets}, _OPTIONS)

    # ------------------------------------------------------------ garbage and namespaces

    def _exists(self, uid: str, kind: str, group: str, namespace: str, name: str) -> bool:
        resource = self._registry.kinds.by_kind(group, kind)
        if resource is None:
            return False
        found = self._store.get(resource.id, namespace if resource.namespaced else "", name)
        return found is not None and found["metadata"]["uid"] == uid

    def _owned(self, place: str, name: str) -> None:
        """An object whose owners are all gone goes too."""
        resource, _, namespace = place.partition("|")
        value = self._store.get(resource, namespace, name)
        owners = many(value["metadata"], "ownerReferences") if value else ()
        if value is None or not owners:
            return
        solid = [
            each
            for each in owners
            if self._exists(each["uid"], each["kind"], each["apiVersion"].rpartition("/")[0], namespace, each["name"])
        ]
        if not solid:
            self._delete(resource, value)
        elif len(solid) < len(owners):
            self._reown(resource, value, {each["uid"] for each in owners} - {each["uid"] for each in solid})

    def _owner(self, uid: str, place: str) -> None:
        """What a deleted (or, in the foreground, a terminating) owner leaves behind."""
        owner: Json | None = None
        if place:
            resource, namespace, name = place.split("|")
            owner = self._store.get(resource, namespace, name)
            if owner and owner["metadata"]["uid"] != uid:
                owner = None
        dependents = [
            (kind, value)
            for kind, namespace, name in sorted(self._dependents.get(uid, ()))
            if (value := self._store.get(kind, namespace, name))
            and any(each["uid"] == uid for each in many(value["metadata"], "ownerReferences"))
        ]
        if not place:
            for kind, namespace, name in list(self._dependents.get(uid, ())):
                if not self._store.get(kind, namespace, name):
                    self._dependents[uid].discard((kind, namespace, name))
            if waiting := self._foreground.get(uid):  # a dependent went: its owner may have waited for that
                self._mark(("owner", uid, waiting))
            return
        if owner is None:
            for kind, value in dependents:
                namespace = value["metadata"].get("namespace", "")
                self._mark(("owned", f"{kind}|{namespace}", value["metadata"]["name"]))
            if not dependents:
                self._dependents.pop(uid, None)
            return
        metadata = owner["metadata"]
        if not metadata.get("deletionTimestamp"):
            return
        resource = place.partition("|")[0]
        if "orphan" in many(metadata, "finalizers"):
            for kind, value in dependents:
                self._reown(kind, value, {uid})
            self._release(resource, owner, "orphan")
        elif "foregroundDeletion" in many(metadata, "finalizers"):
            blocking = False
            for kind, value in dependents:
                references = value["metadata"]["ownerReferences"]
                blocking |= any(each["uid"] == uid and each.get("blockOwnerDeletion") for each in references)
                self._delete(kind, value, None if kind == "pods" else Deletion(propagation="Foreground"))
            if not blocking:
                self._release(resource, owner, "foregroundDeletion")

    def _reown(self, resource: str, value: Json, gone: set[str]) -> None:
        def change(live: Json) -> Json:
            kept = [each for each in live["metadata"]["ownerReferences"] if each["uid"] not in gone]
            live["metadata"]["ownerReferences"] = kept
            return live

        metadata = value["metadata"]
        namespace = metadata.get("namespace", "")
        self._registry.modify(self._registry.resource(resource), namespace, metadata["name"], change, _OPTIONS)

    def _release(self, resource: str, value: Json, finalizer: str) -> None:
        def change(live: Json) -> Json:
            left = [each for each in many(live["metadata"], "finalizers") if each != finalizer]
            live["metadata"]["finalizers"] = left
            return live

        metadata = value["metadata"]
        namespace = metadata.get("namespace", "")
        self._registry.modify(self._registry.resource(resource), namespace, metadata["name"], change, _OPTIONS)

    def _namespace(self, _: str, name: str) -> None:
        namespace = self._store.get("namespaces", "", name)
        if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
            return
        left = 0
        for resource, value in list(self._store.everything()):
            if value["metadata"].get("namespace") == name:
                self._delete(resource, value)
        for resource, value in self._store.everything():
            left += value["metadata"].get("namespace") == name and bool(resource)
        if not left:
            self._registry.finish_namespace(name)


# ---------------------------------------------------------------- small facts


def _suffix() -> str:
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))


def _covers(selector: Json, pod: Json) -> bool:
    labels = at(pod["metadata"], "labels")
    return all(labels.get(key) == each for key, each in selector.items())


def _reference(owner: Json) -> Json:
    metadata = owner["metadata"]
    head = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    return head | {"controller": True, "blockOwnerDeletion": True}


def _controlled(value: Json, owner: Json) -> bool:
    return any(each["uid"] == owner["metadata"]["uid"] for each in many(value["metadata"], "ownerReferences"))


def port_number(pod: Json, wanted: Any) -> int | None:
    """A targetPort in one pod: a number, or the name of a container's port."""
    if isinstance(wanted, int):
        return wanted
    for container in pod["spec"]["containers"]:
        for port in many(container, "ports"):
            if port.get("name") == wanted:
                return int(port["containerPort"])
    return int(wanted) if str(wanted).isdigit() else None


def _ports_of(service: Json, pod: Json) -> tuple[tuple[str, int, str], ...]:
    found: list[tuple[str, int, str]] = []
    for port in many(service["spec"], "ports"):
        number = port_number(pod, port.get("targetPort", port["port"]))
        if number is not None:
            found.append((port.get("name", ""), number, port["protocol"]))
    return tuple(found)


def _endpoint(service: Json, pod: Json) -> Json:
    ready = workloads.is_true(pod, "Ready")
    going = bool(pod["metadata"].get("deletionTimestamp"))
    usable = (ready and not going) or bool(service["spec"].get("publishNotReadyAddresses"))
    target = {"kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"]}
    endpoint: Json = {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": usable, "serving": ready, "terminating": going},
        "targetRef": target | {"uid": pod["metadata"]["uid"]},
    }
    if node := pod["spec"].get("nodeName"):
        endpoint["nodeName"] = node
    return endpoint


def _address(endpoint: Json) -> Json:
    kept = {"ip": endpoint["addresses"][0], "targetRef": endpoint["targetRef"]}
    return kept | ({"nodeName": endpoint["nodeName"]} if "nodeName" in endpoint else {})


def _job_conditions(old: list[Json], *wanted: tuple[str, str, str, str]) -> list[Json]:
    found = list(old)
    for kind, status, reason, message in wanted:
        if any(each["type"] == kind and each["status"] == status for each in found):
            continue
        found = [each for each in found if each["type"] != kind]
        stamp = now()
        found.append(
            {
                "type": kind,
                "status": status,
                "lastProbeTime": stamp,
                "lastTransitionTime": stamp,
                "reason": reason,
                "message": message,
            }
        )
    return found
