"""The write path: what happens to an object between a request and the store.

Decoding, defaults, validation, ownership of fields, optimistic locking, generations, graceful deletion, finalizers —
the same for clients over HTTP and for the controllers in this process. Every method is synchronous: one write is one
step of the event loop, so no two writes interleave. Knows nothing of HTTP beyond the status codes of its refusals.
"""

import secrets
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from gitsync.sandbox import apply as ssa
from gitsync.sandbox import rules
from gitsync.sandbox.kinds import Kinds, Resource
from gitsync.sandbox.schema import (
    Problem,
    at,
    check,
    constraints,
    copy,
    fill_defaults,
    many,
    missing,
    normal,
    nulls,
    prune,
    without_nulls,
)
from gitsync.sandbox.store import Json, Store

_EMPTY_SPEC: Json = {"spec": {}, "status": {}, "metadata": {}}
#: Structures that exist in every object of a kind because their Go type is no pointer: nobody "adds" them.
_SKELETONS: dict[str, Json] = {
    "Deployment": _EMPTY_SPEC | {"spec": {"strategy": {}, "template": {"metadata": {}, "spec": {"containers": []}}}},
    "ReplicaSet": _EMPTY_SPEC | {"spec": {"template": {"metadata": {}, "spec": {"containers": []}}}},
    "Job": _EMPTY_SPEC | {"spec": {"template": {"metadata": {}, "spec": {"containers": []}}}},
    "Service": _EMPTY_SPEC | {"status": {"loadBalancer": {}}},
    "CustomResourceDefinition": _EMPTY_SPEC | {"spec": {"names": {}}, "status": {"acceptedNames": {}}},
    "Event": {"metadata": {}, "involvedObject": {}, "source": {}},
    "RoleBinding": {"metadata": {}, "roleRef": {}},
    "ClusterRoleBinding": {"metadata": {}, "roleRef": {}},
    "HorizontalPodAutoscaler": _EMPTY_SPEC | {"spec": {"scaleTargetRef": {}}},
}
_SERVER_OWNED = (
    "uid",
    "creationTimestamp",
    "generation",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_NODE_PORTS = range(30000, 32768)
SERVICE_NETWORK = "127.96"
"""Services get addresses of the loopback network: a node can bind them without any right, and nothing can leave."""


class Refusal(Exception):
    """An answer other than success, as the API server words it. ``status`` is the Status object to send."""

    def __init__(self, code: int, reason: str, message: str, *, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Json = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": reason, **({"details": details} if details else {}), "code": code,
        }  # fmt: skip


def not_found(resource: Resource, name: str) -> Refusal:
    details = {"name": name, "group": resource.group, "kind": resource.plural}
    return Refusal(404, "NotFound", f'{resource.id} "{name}" not found', details=_slim(details))


def conflict(resource: Resource, name: str, why: str) -> Refusal:
    details = _slim({"name": name, "group": resource.group, "kind": resource.plural})
    return Refusal(409, "Conflict", f'Operation cannot be fulfilled on {resource.id} "{name}": {why}', details=details)


def bad_request(message: str) -> Refusal:
    return Refusal(400, "BadRequest", message)


def _slim(value: Json) -> Json:
    return {name: each for name, each in value.items() if each not in ("", None)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one write is meant. ``warnings`` collects what the answer's Warning headers say."""

    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"  # Strict | Warn | Ignore
    force: bool = False
    warnings: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """DeleteOptions that matter. ``grace`` in seconds; ``None`` leaves it to the object."""

    grace: int | None = None
    propagation: str = "Background"
    uid: str = ""
    version: str = ""
    dry_run: bool = False


def now() -> str:
    """RFC 3339 in whole seconds, as metadata has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Registry:
    """All reads and writes of one cluster. Built-in kinds may have ``hooks`` that set what only the server knows."""

    def __init__(self, store: Store, kinds: Kinds) -> None:
        self.store = store
        self.kinds = kinds
        self._system = Options(manager="sandbox")

    def resource(self, identity: str) -> Resource:
        """A resource by its id (``deployments.apps``), which must be served."""
        found = self.kinds.by_id(identity)
        if found is None:
            raise Refusal(404, "NotFound", "the server could not find the requested resource")
        return found

    def get(self, resource: Resource, namespace: str, name: str) -> Json:
        found = self.store.get(resource.id, namespace, name)
        if found is None:
            raise not_found(resource, name)
        return found

    # ------------------------------------------------------------ create, replace, patch, apply

    def create(self, resource: Resource, namespace: str, body: Json, options: Options) -> Json:
        value = self._decoded(resource, body, options)
        metadata = self._placed(resource, namespace, value)
        if metadata.get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        name = metadata.get("name", "")
        if not name and metadata.get("generateName"):
            name = metadata["name"] = metadata["generateName"] + secrets.token_hex(8)[:5]
        if not name:
            raise self._invalid(resource, "", [rules.required("metadata.name", "name or generateName is required")])
        if self.store.get(resource.id, metadata.get("namespace", ""), name) is not None:
            details = _slim({"name": name, "group": resource.group, "kind": resource.plural})
            raise Refusal(409, "AlreadyExists", f'{resource.id} "{name}" already exists', details=details)
        if "status" in resource.subresources:
            value.pop("status", None)
        value = self._filled(resource, value)
        managers = self._from_nothing(resource, value, options.manager)
        return self._commit(resource, self._born(resource, value), managers, {}, options)

    def replace(
        self, resource: Resource, namespace: str, name: str, body: Json, options: Options, subresource: str = ""
    ) -> Json:
        live = self.get(resource, namespace, name)
        value = self._decoded(resource, body, options)
        metadata = self._placed(resource, namespace, value)
        if metadata.get("name") != name:
            raise bad_request(
                f"the name of the object ({metadata.get('name', '')}) does not match the name on the URL ({name})"
            )
        return self._changed(resource, live, value, options, subresource)

    def modify(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Json], Json],
        options: Options,
        subresource: str = "",
        *,
        as_subresource: str | None = None,
    ) -> Json:
        """Read, change, write. ``change`` gets a copy of the live object. The way of all patches but apply."""
        live = self.get(resource, namespace, name)
        value = self._decoded(resource, change(copy(live)), options)
        for key in ("name", "namespace"):
            value["metadata"][key] = live["metadata"].get(key)
        if not resource.namespaced:
            del value["metadata"]["namespace"]
        uid = value["metadata"].get("uid", live["metadata"]["uid"])
        if uid != live["metadata"]["uid"]:
            raise self._invalid(resource, name, [rules.invalid("metadata.uid", uid, "field is immutable")])
        return self._changed(resource, live, value, options, subresource, as_subresource=as_subresource)

    def apply(
        self, resource: Resource, namespace: str, name: str, body: Json, options: Options, subresource: str = ""
    ) -> tuple[Json, bool]:
        """Server-side apply. Returns the object and whether it was created."""
        body = copy(body)
        given = at(body, "metadata")
        kind, version = body.get("kind", resource.kind), body.get("apiVersion", resource.api_version)
        if kind != resource.kind:
            raise bad_request(f"invalid object type: {'' if '/' in version else '/'}{version}, Kind={kind}")
        if version != resource.api_version:
            expected = resource.api_version
            raise bad_request(
                f"the API version in the data ({version}) does not match the expected API version ({expected})"
            )
        if given.get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        body["metadata"] = given
        stated = given.get("namespace", "")
        given.setdefault("name", name)
        if given["name"] != name:
            raise bad_request(f"the name of the object ({given['name']}) does not match the name on the URL ({name})")
        place = self._placed(resource, namespace, body).get("namespace", "")
        body |= {"apiVersion": resource.api_version, "kind": resource.kind}
        live = self.store.get(resource.id, place, name)
        if live is None and subresource:
            raise not_found(resource, name)
        if given.get("resourceVersion") and live is None:
            raise conflict(
                resource,
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            )
        if live is not None:
            self._unmodified(resource, live, given)
        who = f"({stated}/{name}; {resource.api_version}, Kind={resource.kind})"
        self._typed(resource, body, who, options)
        if resource.custom:
            body = cast("Json", prune(body, resource.schema))
        managers = ssa.decode((live or {}).get("metadata", {}).get("managedFields", []))
        before = managers
        if live is not None and not managers:
            managers = self._from_nothing(resource, _unmanaged(live), "before-first-apply")
        owner = ssa.Owner(manager=options.manager, operation="Apply", subresource=subresource)
        try:
            value, after = ssa.apply(
                _unmanaged(live) if live else {},
                body,
                resource.schema,
                managers,
                owner,
                resource.api_version,
                force=options.force,
                reset=_reset(resource, subresource),
            )
        except ssa.Conflict as error:
            details: Json = {"causes": error.causes}
            raise Refusal(409, "Conflict", error.message, details=details) from error
        except ssa.Malformed as error:
            raise Refusal(500, "", f"failed to create typed patch object {who}: {error}") from error
        value.setdefault("metadata", {})
        if live is None:
            for key in ("uid", "resourceVersion", "creationTimestamp", "generation"):
                value["metadata"].pop(key, None)
            if "status" in resource.subresources:
                value.pop("status", None)
            value = self._born(resource, self._filled(resource, value))
            return self._commit(resource, value, after, {}, options), True
        value = self._kept(resource, live, value, subresource)
        self._valid(resource, value, live)
        return self._store_change(resource, live, value, after, before, options), False

    # ------------------------------------------------------------ delete

    def delete(self, resource: Resource, namespace: str, name: str, how: Deletion | None = None) -> tuple[Json, bool]:
        """Returns the object's last state and whether it is gone already."""
        how = how or Deletion()
        live = self.get(resource, namespace, name)
        metadata = live["metadata"]
        if how.uid and how.uid != metadata["uid"]:
            raise conflict(
                resource,
                name,
                f"Precondition failed: UID in precondition: {how.uid}, UID in object meta: {metadata['uid']}",
            )
        if how.version and how.version != metadata["resourceVersion"]:
            raise conflict(
                resource,
                name,
                f"Precondition failed: ResourceVersion in precondition: {how.version}, ResourceVersion in object meta: {metadata['resourceVersion']}",  # noqa: E501
            )
        if resource.id == "namespaces" and name in ("default", "kube-system", "kube-public", "kube-node-lease"):
            details = {"name": name, "kind": "namespaces"}
            raise Refusal(
                403,
                "Forbidden",
                f'namespaces "{name}" is forbidden: this namespace may not be deleted',
                details=details,
            )
        if how.dry_run:
            return live, True
        finalizers = [each for each in many(metadata, "finalizers") if each not in ("orphan", "foregroundDeletion")]
        if how.propagation in ("Foreground", "Orphan") and not metadata.get("deletionTimestamp"):
            finalizers.append("foregroundDeletion" if how.propagation == "Foreground" else "orphan")
        elif metadata.get("deletionTimestamp"):
            finalizers = many(metadata, "finalizers")
        grace = self._grace(resource, live, how)
        waits = grace > 0 or (resource.id == "namespaces")
        if not finalizers and not waits:
            return self._gone(resource, live), True
        already = metadata.get("deletionTimestamp")
        shorter = already and grace < metadata.get("deletionGracePeriodSeconds", 0)
        if already and not shorter:
            return live, False
        stamp = (datetime.now(UTC) + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
        changed = metadata | {"deletionTimestamp": stamp, "deletionGracePeriodSeconds": grace}
        if finalizers:
            changed["finalizers"] = finalizers
        if resource.generation and not already:
            changed["generation"] = metadata.get("generation", 0) + 1
        value = live | {"metadata": changed}
        if resource.id == "namespaces":
            value["status"] = {**live.get("status", {}), "phase": "Terminating"}
        return self.store.put(resource.id, value), False

    def finish_namespace(self, name: str) -> None:
        """Remove a terminating namespace that holds nothing any more."""
        live = self.store.get("namespaces", "", name)
        if live and live["metadata"].get("deletionTimestamp") and not live["metadata"].get("finalizers"):
            self._gone(self.resource("namespaces"), live)

    @staticmethod
    def _grace(resource: Resource, live: Json, how: Deletion) -> int:
        if resource.id != "pods":
            return 0
        spec = live["spec"]
        if not spec.get("nodeName") or at(live, "status").get("phase") in ("Succeeded", "Failed"):
            return 0
        return max(0, how.grace if how.grace is not None else spec.get("terminationGracePeriodSeconds", 30))

    def _gone(self, resource: Resource, live: Json) -> Json:
        metadata = live["metadata"]
        if resource.id == "customresourcedefinitions.apiextensions.k8s.io":
            for each in self.store.items(metadata["name"]):
                self.store.remove(metadata["name"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
            self.store.forget(metadata["name"])
            self.kinds.withdraw(live)
        return self.store.remove(resource.id, metadata.get("namespace", ""), metadata["name"], live)

    # ------------------------------------------------------------ steps

    @staticmethod
    def _from_nothing(resource: Resource, value: Json, manager: str) -> dict[ssa.Owner, ssa.Owned]:
        """The managers of an object that one of them wrote whole, by another way than apply."""
        skeleton = {} if resource.custom else _SKELETONS.get(resource.kind, _EMPTY_SPEC)
        owner = ssa.Owner(manager=manager, operation="Update", version=resource.api_version)
        reset = _reset(resource, "")
        try:
            return ssa.update(skeleton, value, resource.schema, {}, owner, resource.api_version, reset=reset)
        except ssa.Malformed:
            return {}  # validation will say what is wrong

    def _decoded(self, resource: Resource, body: Json, options: Options) -> Json:
        """The body as the server reads it: of the right kind, without unknown fields (or refused, when strict)."""
        if body.get("kind") not in (None, "", resource.kind) or body.get("apiVersion") not in (
            None,
            "",
            resource.api_version,
        ):
            raise bad_request(
                f"the object provided is unrecognized (must be of type {resource.kind}): got "
                f"{body.get('kind')} in {body.get('apiVersion')}"
            )
        value = copy(body) | {"apiVersion": resource.api_version, "kind": resource.kind}
        if not isinstance(value.get("metadata"), dict):
            value["metadata"] = {}
        problems = list(check(value, resource.schema))
        wrong = [each for each in problems if each.what == "type"]
        if wrong and resource.custom:
            raise self._invalid(resource, value["metadata"].get("name", ""), map(_type_violation, wrong))
        for each in wrong:
            go = {"integer": "int32", "object": "struct", "list": "slice", "boolean": "bool"}.get(each.expected)
            got = {dict: "object", list: "array", bool: "bool", str: "string"}.get(_type(each.got), "number")
            field = ".".join(str(part) for part in each.path if not isinstance(part, int))
            why = f"json: cannot unmarshal {got} into Go struct field .{field} of type {go or each.expected}"
            if each.message:
                why = f"unable to parse quantity's suffix: {each.message}"
            raise bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {why}'
            )
        self._unknown(resource, problems, options)
        value = cast("Json", prune(value, resource.schema)) if problems else value
        return cast("Json", without_nulls(value, resource.schema)) if resource.custom else value

    def _unknown(self, resource: Resource, problems: Iterable[Problem], options: Options) -> None:
        unknown = [f'unknown field "{each.field}"' for each in problems if each.what == "unknown"]
        if unknown and options.validation == "Strict":
            if resource.custom:
                raise bad_request(f"strict decoding error: {', '.join(unknown)}")
            raise bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f"strict decoding error: {', '.join(unknown)}"
            )
        if options.validation != "Ignore":
            options.warnings.extend(unknown)

    def _typed(self, resource: Resource, body: Json, who: str, options: Options) -> None:
        """What an applied object must satisfy before it can be merged. Built-in schemas know no unknown field."""
        problems = list(check(body, resource.schema))
        if resource.custom:
            wrong = [_type_violation(each) for each in problems if each.what == "type"]
            if wrong:
                raise self._invalid(resource, body["metadata"].get("name", ""), wrong)
            return self._unknown(resource, problems, options)
        lines: list[str] = []
        for each in problems:
            where = _printed(body, resource, each)
            if each.what == "unknown":
                lines.append(f"{where}: field not declared in schema")
            elif each.what == "type" and each.expected not in ("quantity", "int-or-string"):
                expected = {"integer": "numeric (int or float)", "number": "numeric (int or float)", "object": "map"}
                expected |= {"bytes": "string", "time": "string"}
                names = {dict: "map", list: "list", bool: "boolean", str: "string", int: "int"}
                got = names.get(_type(each.got), "float")
                shown = f", got &{{{_go(each.got)}}}" if got in ("map", "list") else f", got {got}"
                lines.append(f"{where}: expected {expected.get(each.expected, each.expected)}{shown}")
            elif each.message:
                raise bad_request(f"unable to parse quantity: {each.message}")
        if lines:
            text = lines[0] if len(lines) == 1 else "errors:\n" + "\n".join(f"  {line}" for line in lines)
            raise Refusal(500, "", f"failed to create typed patch object {who}: {text}")
        return None

    def _placed(self, resource: Resource, namespace: str, value: Json) -> Json:
        """The metadata with the namespace of the request, which must be the body's own."""
        metadata = cast("Json", value["metadata"])
        given = metadata.get("namespace", "")
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return metadata
        if given and namespace and given != namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        metadata["namespace"] = namespace or given
        return metadata

    def _born(self, resource: Resource, value: Json) -> Json:
        """A new object, complete: identity, defaults, what the server allocates; checked."""
        metadata = value["metadata"]
        for key in _SERVER_OWNED:
            metadata.pop(key, None)
        if resource.namespaced:
            self._namespace_open(resource, metadata)
        metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if resource.generation:
            metadata["generation"] = 1
        self._valid(resource, value, None)
        if resource.id == "jobs.batch":
            _label_job(value)
        elif resource.id == "pods":
            self._admit_pod(resource, value)
        return value

    def _filled(self, resource: Resource, value: Json) -> Json:
        if resource.custom:
            value = cast("Json", fill_defaults(value, resource.schema))
            return cast("Json", normal(value, resource.schema))
        value = cast("Json", normal(value, resource.schema))
        rules.fill(resource.kind, value)
        if "status" in resource.subresources:
            value.setdefault("status", {})
        value.setdefault("metadata", {})
        return value

    def _valid(self, resource: Resource, value: Json, live: Json | None) -> None:
        name = value["metadata"].get("name", "")
        # A built-in status is never validated: what the Go structs require there, they fill with zero values.
        wanted = value if resource.custom else {key: each for key, each in value.items() if key != "status"}
        found = [rules.required(each.field) for each in missing(wanted, resource.schema)]
        if resource.custom:
            found += [_type_violation(each) for each in nulls(value, resource.schema)]
            for each in constraints(value, resource.schema):
                if each.what == "unsupported":
                    message = f"Unsupported value: {_shown(each.got)}: {each.message}"
                    found.append(rules.Violation(reason="FieldValueNotSupported", field=each.field, message=message))
                elif each.what == "long":
                    message = f"Too long: {each.message}"
                    found.append(rules.Violation(reason="FieldValueTooLong", field=each.field, message=message))
                elif each.what == "duplicate":
                    found.append(rules.duplicate(each.field, each.got))
                else:
                    found.append(rules.invalid(each.field, each.got, each.message))
            found += [each for each in rules.violations("", value) if each.field.startswith("metadata")]
        if not resource.custom:
            found += rules.violations(resource.kind, value)
            if live is not None:
                found += rules.changes_refused(resource.kind, live, value)
        if found:
            raise self._invalid(resource, name, found)

    def _invalid(self, resource: Resource, name: str, violations: Iterable[rules.Violation]) -> Refusal:
        found = list(violations)
        lines = [f"{each.field}: {each.message}" for each in found]
        text = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
        causes = [{"reason": each.reason, "message": each.message, "field": each.field} for each in found]
        details = _slim({"name": name, "group": resource.group, "kind": resource.kind, "causes": causes})
        return Refusal(422, "Invalid", f'{resource.qualified} "{name}" is invalid: {text}', details=details)

    def _namespace_open(self, resource: Resource, metadata: Json) -> None:
        namespace = metadata["namespace"]
        found = self.store.get("namespaces", "", namespace)
        if found is None:
            details = {"name": namespace, "kind": "namespaces"}
            raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found', details=details)
        if found["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            name = metadata.get("name", "")
            details = _slim({"name": name, "group": resource.group, "kind": resource.plural, "causes": [cause]})
            raise Refusal(403, "Forbidden", f'{resource.id} "{name}" is forbidden: {why}', details=details)

    def _admit_pod(self, resource: Resource, pod: Json) -> None:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        account = pod["spec"]["serviceAccountName"]
        if account != "default" and self.store.get("serviceaccounts", namespace, account) is None:
            why = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            details = {"name": name, "kind": "pods"}
            raise Refusal(403, "Forbidden", f'{resource.id} "{name}" is forbidden: {why}', details=details)
        secrets_of = many(self.store.get("serviceaccounts", namespace, account) or {}, "imagePullSecrets")
        if secrets_of and not pod["spec"].get("imagePullSecrets"):
            pod["spec"]["imagePullSecrets"] = secrets_of
        requests = [at(each, "resources") for each in pod["spec"]["containers"]]
        guaranteed = all(
            each.get("limits") and set(each["limits"]) >= {"cpu", "memory"} and each.get("requests") == each["limits"]
            for each in requests
        )
        pod["status"] = {
            "phase": "Pending",
            "qosClass": "Guaranteed" if guaranteed else "Burstable" if any(requests) else "BestEffort",
        }

    def _allocate(self, service: Json) -> None:
        """Cluster address and node ports, as asked for or the next that are free. Nobody owns what the server chose."""
        spec, uid = service["spec"], service["metadata"]["uid"]
        others = [each["spec"] for each in self.store.items("services") if each["metadata"]["uid"] != uid]
        if spec["type"] == "ExternalName":
            return
        for key, usual in (("ipFamilies", ["IPv4"]), ("ipFamilyPolicy", "SingleStack")):
            spec.setdefault(key, usual)
        resource = self.resource("services")
        name = service["metadata"]["name"]
        if not spec.get("clusterIP"):
            taken = {each.get("clusterIP") for each in others}
            free = (f"{SERVICE_NETWORK}.{n // 250}.{n % 250 + 1}" for n in range(1, 60_000))
            spec["clusterIP"] = next(each for each in free if each not in taken)
        elif spec["clusterIP"] != "None" and any(each.get("clusterIP") == spec["clusterIP"] for each in others):
            why = "failed to allocate IP: provided IP is already allocated"
            raise self._invalid(resource, name, [rules.invalid("spec.clusterIPs", [spec["clusterIP"]], why)])
        spec["clusterIPs"] = [spec["clusterIP"]]
        if spec["type"] not in ("NodePort", "LoadBalancer"):
            for port in many(spec, "ports"):
                port.pop("nodePort", None)
            if not spec.get("externalIPs"):
                spec.pop("externalTrafficPolicy", None)
            return
        used = {
            (port["nodePort"], port["protocol"])
            for each in others
            for port in many(each, "ports")
            if "nodePort" in port
        }
        ports = many(spec, "ports")
        for index, port in enumerate(ports):
            number = port.get("nodePort")
            if number and number not in _NODE_PORTS:
                first, last = _NODE_PORTS[0], _NODE_PORTS[-1]
                why = f"provided port is not in the valid range. The range of valid ports is {first}-{last}"
            elif (number, port["protocol"]) in used:
                why = "provided port is already allocated"
            else:
                continue
            raise self._invalid(resource, name, [rules.invalid(f"spec.ports[{index}].nodePort", number, why)])
        taken = {number for number, _ in used} | {port.get("nodePort") for port in ports}
        for port in ports:
            if not port.get("nodePort"):
                port["nodePort"] = next((each for each in _NODE_PORTS if each not in taken), None)
                if port["nodePort"] is None:
                    why = "Internal error occurred: failed to allocate a nodePort: range is full"
                    raise Refusal(500, "InternalError", why)
                taken.add(port["nodePort"])

    def _unmodified(self, resource: Resource, live: Json, given: Json) -> None:
        name = live["metadata"]["name"]
        if given.get("uid") and given["uid"] != live["metadata"]["uid"]:
            raise conflict(
                resource,
                name,
                f"Precondition failed: UID in precondition: {given['uid']}, UID in object meta: {live['metadata']['uid']}",  # noqa: E501
            )
        if given.get("resourceVersion") and given["resourceVersion"] != live["metadata"]["resourceVersion"]:
            why = "the object has been modified; please apply your changes to the latest version and try again"
            raise conflict(resource, name, why)

    def _changed(
        self,
        resource: Resource,
        live: Json,
        value: Json,
        options: Options,
        subresource: str,
        *,
        as_subresource: str | None = None,
    ) -> Json:
        """An update that is no apply, from the body on."""
        self._unmodified(resource, live, value["metadata"])
        given = value["metadata"].pop("managedFields", None)
        before = ssa.decode(many(live["metadata"], "managedFields"))
        managers = before
        if given is not None and not subresource:
            try:
                managers = {} if given == [{}] else (ssa.decode(given) or before)
            except ssa.Malformed:
                managers = before
        value = self._kept(resource, live, value, subresource)
        self._valid(resource, value, live)
        owner = ssa.Owner(
            manager=options.manager,
            operation="Update",
            version=resource.api_version,
            subresource=subresource if as_subresource is None else as_subresource,
        )
        reset = _reset(resource, subresource)
        after = ssa.update(_unmanaged(live), value, resource.schema, managers, owner, resource.api_version, reset=reset)
        # An object that nobody's fields are known of stays so until the first apply.
        return self._store_change(resource, live, value, after if managers else {}, before, options)

    def _kept(self, resource: Resource, live: Json, value: Json, subresource: str) -> Json:
        """``value`` with what this endpoint cannot change taken from ``live``, then completed like a new object."""
        old = live["metadata"]
        value = dict(value)
        if subresource == "status":
            # Also an absent status is meant: it empties the live one.
            value = {key: each for key, each in live.items() if key != "status"} | (
                {"status": value["status"]} if value.get("status") is not None else {}
            )
            value["metadata"] = {key: each for key, each in old.items() if key != "managedFields"}
        elif "status" in resource.subresources:
            value.pop("status", None)
            if "status" in live:
                value["status"] = live["status"]
        metadata = dict(value["metadata"])
        metadata.pop("managedFields", None)
        for key in (*_SERVER_OWNED, "resourceVersion", "name", "namespace"):
            metadata.pop(key, None)
            if key in old:
                metadata[key] = old[key]
        if old.get("deletionTimestamp"):
            late = sorted(set(many(metadata, "finalizers")) - set(many(old, "finalizers")))
            if late:
                found = ", ".join(f'"{each}"' for each in late)
                why = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{found}}}"  # noqa: E501
                raise self._invalid(resource, old["name"], [rules.forbidden("metadata.finalizers", why)])
        value["metadata"] = metadata
        value = copy(value)
        if resource.id == "services":
            rules.keep_service(live["spec"], value.get("spec") or {})
        return self._filled(resource, value)

    def _store_change(
        self,
        resource: Resource,
        live: Json,
        value: Json,
        managers: dict[ssa.Owner, ssa.Owned],
        before: ssa.Managers,
        options: Options,
    ) -> Json:
        old = _unmanaged(live)
        sets = {owner: owned.fields for owner, owned in managers.items()}
        if value == old and sets == {owner: owned.fields for owner, owned in before.items()}:
            return live
        if resource.generation:
            ignored = {"metadata", "status"} if "status" in resource.subresources else {"metadata"}
            changed = any(value.get(key) != live.get(key) for key in (value.keys() | live.keys()) - ignored)
            if resource.id == "deployments.apps":  # its controller copies annotations to ReplicaSets
                changed |= value["metadata"].get("annotations") != live["metadata"].get("annotations")
            if changed:
                value["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
        return self._commit(resource, value, managers, before, options)

    def _commit(
        self,
        resource: Resource,
        value: Json,
        managers: dict[ssa.Owner, ssa.Owned],
        before: ssa.Managers,
        options: Options,
    ) -> Json:
        metadata = value["metadata"]
        metadata.pop("managedFields", None)
        if managers:
            metadata["managedFields"] = ssa.encode(ssa.stamped(before, managers, now()))
        value = _ordered(value)
        if resource.id == "services":
            value = copy(value)
            self._allocate(value)
        if options.dry_run:
            return value
        if resource.id == "customresourcedefinitions.apiextensions.k8s.io":
            _establish(value)
            self.kinds.define(value)
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers"):
            waiting = resource.id == "namespaces" or metadata.get("deletionGracePeriodSeconds", 0) > 0
            if not waiting:
                return self._gone(resource, value)
        stored = self.store.put(resource.id, value)
        if resource.id == "namespaces" and not metadata.get("deletionTimestamp"):
            self._furnish(metadata["name"])
        return stored

    def _furnish(self, namespace: str) -> None:
        """What a controller puts into each namespace; here at once, so that nobody has to wait for it."""
        if self.store.get("serviceaccounts", namespace, "default") is None:
            body = {"metadata": {"name": "default"}}
            self.create(self.resource("serviceaccounts"), namespace, body, replace(self._system, warnings=[]))


def _reset(resource: Resource, subresource: str) -> list[ssa.FieldPath]:
    """Fields that an endpoint ignores, so that nobody owns them through it."""
    if subresource == "status":
        return [("f:spec",), ("f:metadata",), ("f:data",)]
    return [("f:status",)] if "status" in resource.subresources else []


def _unmanaged(value: Json) -> Json:
    metadata = {key: each for key, each in value["metadata"].items() if key != "managedFields"}
    return value | {"metadata": metadata}


def _ordered(value: Json) -> Json:
    """apiVersion, kind, metadata, then the rest: the order in which people read an object."""
    head = {key: value[key] for key in ("apiVersion", "kind", "metadata")}
    return head | {key: each for key, each in value.items() if key not in head}


def _type(value: object) -> type:
    """The value's class, with no more said about it."""
    return type(value)


def _type_violation(problem: Problem) -> rules.Violation:
    names = {dict: "object", list: "array", bool: "boolean", str: "string", int: "integer"}
    got = names.get(_type(problem.got), "number")
    expected = {"map": "object", "list": "array", "time": "string"}.get(problem.expected, problem.expected)
    if problem.got is None:
        got = "null"
    why = f'Invalid value: "{got}": {problem.field} in body must be of type {expected}: "{got}"'
    return rules.Violation(reason="FieldValueTypeInvalid", field=problem.field, message=why)


def _go(value: Any) -> str:
    """As Go prints it with %v."""
    if isinstance(value, dict):
        found = cast("Json", value)
        return f"map[{' '.join(f'{key}:{_go(found[key])}' for key in sorted(found))}]"
    if isinstance(value, list):
        return f"[{' '.join(_go(each) for each in cast('list[Any]', value))}]"
    return {True: "true", False: "false", None: "<nil>"}.get(value, str(value))


def _shown(value: Any) -> str:
    return f'"{value}"'


def _printed(body: Json, resource: Resource, problem: Problem) -> str:
    """A problem's path as structured merge writes it: list items by key."""
    text, node, schema = "", cast("Any", body), resource.schema
    for part in problem.path:
        if isinstance(part, int):
            node = node[part]
            try:
                text += ssa.printed((ssa.element_of(node, schema),)) if schema.associative else f"[{part}]"
            except ssa.Malformed:
                text += f"[{part}]"
            schema = schema.item or schema
        else:
            text += f".{part}"
            node, schema = node[part], schema.child(part)
    return text


def _label_job(job: Json) -> None:
    """A Job selects its pods by its own UID."""
    if job["spec"].get("manualSelector"):
        return
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
    labels = job["spec"]["template"]["metadata"].setdefault("labels", {})
    for prefix in ("", "batch.kubernetes.io/"):
        labels |= {f"{prefix}controller-uid": uid, f"{prefix}job-name": name}
    job["spec"]["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}


def _establish(definition: Json) -> None:
    spec, stamp = definition["spec"], now()
    old = {each["type"]: each for each in at(definition, "status").get("conditions", [])}
    conditions = [
        old.get(kind)
        or {"type": kind, "status": "True", "reason": reason, "message": text, "lastTransitionTime": stamp}
        for kind, reason, text in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        )
    ]
    stored = [each["name"] for each in spec["versions"] if each.get("storage")]
    definition["status"] = {"conditions": conditions, "acceptedNames": spec["names"], "storedVersions": stored}


__all__ = ["Deletion", "Options", "Refusal", "Registry", "not_found", "now"]
