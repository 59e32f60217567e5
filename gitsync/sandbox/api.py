"""The Kubernetes API over HTTP: paths, media types, lists, watches, subresources. Decides nothing about objects.

There is no authentication: the server listens on loopback only, and refuses what a web page in a browser of the same
machine could send (a foreign Host or Origin). Everybody else who can connect to loopback is trusted.
"""

import asyncio
import base64
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import orjson
import yaml
from aiohttp import web

from gitsync.sandbox import discovery, protobuf, selectors
from gitsync.sandbox.kinds import Resource
from gitsync.sandbox.patches import PatchError, json_patch, merge_patch, strategic_merge
from gitsync.sandbox.proxy import ADDRESS
from gitsync.sandbox.registry import Deletion, Options, Refusal, Registry, bad_request, not_found
from gitsync.sandbox.schema import at, many
from gitsync.sandbox.store import Event, Expired, Json
from gitsync.sandbox.table import table

MAX_BODY = 3 << 20
"""Bytes; what a real API server takes."""
BOOKMARK_EVERY = 60.0
_PROTOBUF = "application/vnd.kubernetes.protobuf"
_ACCEPTED = (
    f"application/json, application/yaml (of {_PROTOBUF} the sandbox reads only what kubectl create sends: add "
    "--dry-run=client -o json and pipe it into kubectl create -f -)"
)
_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
_ENGINE = "podman or docker {0} takes the Container ID that kubectl describe pod shows"
_INSTEAD = {
    "exec": _ENGINE.format("exec"),
    "attach": _ENGINE.format("attach"),
    "portforward": f"the annotation {ADDRESS} of a Service says where its pods answer on this machine",
}


class Logs(Protocol):
    """Where the logs of containers come from: the node."""

    def logs(self, pod: Json, container: str, query: Mapping[str, str]) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a path addresses. ``name`` is "" for a collection."""

    resource: Resource
    namespace: str
    name: str
    subresource: str


class Api:
    """One request handler for the whole API. ``logs`` may be set later, once there is a node."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._kinds = registry.kinds
        self._pages: OrderedDict[str, tuple[int, list[Json]]] = OrderedDict()
        self._documents: dict[str, tuple[int, bytes]] = {}
        self.logs: Logs | None = None
        self.closing = asyncio.Event()
        """Set when the server stops: watches end, so that nobody waits for them."""

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, handler_args={"access_log": None})
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    # ------------------------------------------------------------ requests

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if not _own(request):
            return _json(Refusal(403, "Forbidden", "requests of web pages are refused").status, 403)
        try:
            return await self._route(request)
        except Refusal as error:
            return _json(error.status, error.code)
        except web.HTTPRequestEntityTooLarge:
            message = f"Request entity too large: limit is {MAX_BODY}"
            return _json(Refusal(413, "RequestEntityTooLarge", message).status, 413)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        if request.path in ("/healthz", "/livez", "/readyz"):
            return web.Response(text="ok")
        if parts[:1] in (["api"], ["apis"]):
            depth = 2 if parts[0] == "api" else 3
            if len(parts) > depth:
                target = self._target(parts)
                if target is None:
                    raise _unknown_path()
                return await self._serve(request, target)
        elif parts not in (["version"], []) and parts[:1] != ["openapi"]:
            raise _unknown_path()
        if request.method not in ("GET", "HEAD"):
            raise _not_allowed()
        return self._document(request.path.rstrip("/") or "/")

    def _document(self, path: str) -> web.Response:
        """Discovery and OpenAPI, rendered once for each state of the table of kinds."""
        if path == "/openapi/v2":
            return web.Response(body=discovery.OPENAPI_V2, headers={"Content-Type": discovery.OPENAPI_V2_TYPE})
        stamp, body = self._documents.get(path, (-1, b""))
        if stamp != self._kinds.stamp:
            found = discovery.document(path, self._kinds)
            if found is None:
                raise _unknown_path()
            body = orjson.dumps(found)
            self._documents[path] = (self._kinds.stamp, body)
        return web.Response(body=body, content_type="application/json")

    def _target(self, parts: list[str]) -> Target | None:
        if parts[0] == "api":
            group, version, rest = "", parts[1], parts[2:]
        else:
            group, version, rest = parts[1], parts[2], parts[3:]
        namespace = ""
        own = not group and len(rest) == 3 and rest[2] in ("status", "finalize")
        if rest[0] == "namespaces" and len(rest) > 2 and not own:
            namespace, rest = rest[1], rest[2:]
        resource = self._kinds.at(group, version, rest[0])
        if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
            return None
        name, subresource = (*rest[1:], "", "")[:2]
        if subresource and subresource not in resource.subresources:
            if resource.id == "pods" and (instead := _INSTEAD.get(subresource)):
                raise Refusal(404, "NotFound", f"the sandbox has no pods/{subresource}: {instead}")
            return None
        if name and resource.namespaced and not namespace:
            return None
        return Target(resource=resource, namespace=namespace, name=name, subresource=subresource)

    async def _serve(self, request: web.Request, target: Target) -> web.StreamResponse:
        method, query = request.method, request.query
        if target.subresource == "log":
            return await self._log(request, target)
        if target.subresource == "eviction":
            return await self._evict(request, target)
        if method in ("GET", "HEAD"):
            if not target.name:
                if query.get("watch") in ("1", "true"):
                    return await self._watch(request, target)
                return self._list(request, target)
            found = self._registry.get(target.resource, target.namespace, target.name)
            if target.subresource == "scale":
                return _json(_scale_of(target.resource, found))
            return self._answer(request, target.resource, found, 200)
        options = _options(request)
        if method == "POST" and not target.name:
            body = _unviewed(target.resource, await _body(request))
            created = self._registry.create(self._stored(target), target.namespace, body, options)
            return self._answer(request, target.resource, created, 201, options)
        if method == "PUT" and target.name:
            return await self._put(request, target, options)
        if method == "PATCH" and target.name:
            return await self._patch(request, target, options)
        if method == "DELETE":
            return await self._delete(request, target)
        raise _not_allowed()

    def _answer(
        self, request: web.Request, resource: Resource, value: Json, code: int, options: Options | None = None
    ) -> web.Response:
        value = _versioned(resource, value)
        if _wants_table(request):
            shown = table(resource, [value], value["metadata"]["resourceVersion"], _include(request))
            return _json(shown, code)
        response = _json(value, code)
        for text in options.warnings if options else ():
            escaped = text.replace("\\", "\\\\").replace('"', '\\"')
            response.headers.add("Warning", f'299 - "{escaped}"')
        return response

    # ------------------------------------------------------------ list and watch

    def _list(self, request: web.Request, target: Target) -> web.Response:
        query, resource = request.query, target.resource
        _check_match(query)
        if token := query.get("continue"):
            try:
                revision, items = self._pages[token]
            except KeyError:
                raise Refusal(
                    410,
                    "Expired",
                    "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",  # noqa: E501
                ) from None
        else:
            revision = self._store.revision
            test = _selection(query, resource)
            items = self._store.items(resource.id, target.namespace)
            if test:
                items = [each for each in items if test(each)]
        limit = _number(query, "limit")
        metadata: Json = {"resourceVersion": str(revision)}
        if limit and len(items) > limit:
            token = base64.urlsafe_b64encode(secrets.token_bytes(18)).decode()
            self._pages[token] = (revision, items[limit:])
            metadata |= {"continue": token, "remainingItemCount": len(items) - limit}
            items = items[:limit]
            while len(self._pages) > 100:
                self._pages.popitem(last=False)
        shown = [_versioned(resource, each) for each in items]
        if _wants_table(request):
            return _json(table(resource, shown, str(revision), _include(request)) | {"metadata": metadata})
        kind, items_kind = f"{resource.kind}List", shown
        if resource.custom:
            return _json({"apiVersion": resource.api_version, "items": items_kind, "kind": kind, "metadata": metadata})
        bare = [{key: each for key, each in item.items() if key not in ("apiVersion", "kind")} for item in shown]
        return _json({"kind": kind, "apiVersion": resource.api_version, "metadata": metadata, "items": bare})

    async def _watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        query, resource = request.query, target.resource
        test = _selection(query, resource)
        initial = query.get("sendInitialEvents") in ("1", "true")
        _check_match(query, watch=True)
        bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
        given = query.get("resourceVersion", "")
        if given and not given.isdigit():
            why = f'resourceVersion: Invalid value: "{given}": strconv.ParseUint: parsing "{given}": invalid syntax'
            raise Refusal(500, "", why)
        as_table, include = _wants_table(request), _include(request)

        def line(kind: str, value: Json) -> bytes:
            value = _versioned(resource, value)
            if as_table and kind != "BOOKMARK":
                value = table(resource, [value], value["metadata"]["resourceVersion"], include)
            return orjson.dumps({"type": kind, "object": value}) + b"\n"

        def bookmark(revision: int, *, first: bool = False) -> bytes:
            metadata: Json = {"resourceVersion": str(revision), "creationTimestamp": None}
            if first:
                metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
            return line("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})

        revision = int(given or 0)
        head: list[bytes] = []
        if initial or not revision:
            revision = self._store.revision
            items = self._store.items(resource.id, target.namespace)
            head = [line("ADDED", each) for each in items if not test or test(each)]
            if initial:
                head.append(bookmark(revision, first=True))
        else:
            try:
                self._store.since(revision)
            except Expired as error:
                raise Refusal(410, "Expired", str(error)) from error

        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            if head:
                await response.write(b"".join(head))
        except ConnectionResetError:  # it went before the first byte
            return response
        seconds = _number(query, "timeoutSeconds") or 1800 + secrets.randbelow(1800)
        loop = asyncio.get_running_loop()
        ends = loop.time() + seconds
        events = self._store.watch(revision)
        closing = asyncio.create_task(self.closing.wait())
        step: asyncio.Task[list[Event]] | None = None
        marked = loop.time()
        try:
            while not closing.done():
                if step is None:
                    step = asyncio.ensure_future(anext(events))
                wait = min(ends, marked + BOOKMARK_EVERY) - loop.time() if bookmarks else ends - loop.time()
                await asyncio.wait({step, closing}, timeout=max(0, wait), return_when=asyncio.FIRST_COMPLETED)
                if step.done():
                    batch, step = step.result(), None
                    revision = batch[-1].revision
                    lines = [
                        line(kind, value)
                        for event in batch
                        if event.resource == resource.id
                        for kind, value in _seen(event, target.namespace, test)
                    ]
                    if lines:
                        await response.write(b"".join(lines))
                    continue
                if loop.time() >= ends:
                    break
                if bookmarks and loop.time() >= marked + BOOKMARK_EVERY:
                    marked = loop.time()
                    await response.write(bookmark(self._store.revision))
        except Expired as error:
            await response.write(
                orjson.dumps({"type": "ERROR", "object": Refusal(410, "Expired", str(error)).status}) + b"\n"
            )
        except ConnectionResetError:
            return response
        finally:
            closing.cancel()
            if step:
                step.cancel()
        with suppress(ConnectionResetError):  # the watcher went while the cluster stops
            await response.write_eof()
        return response

    # ------------------------------------------------------------ writes

    async def _put(self, request: web.Request, target: Target, options: Options) -> web.Response:
        resource = target.resource
        body = _unviewed(resource, await _body(request))
        if target.subresource == "scale":
            return self._rescale(target, lambda _scale: body, options)
        if target.subresource == "finalize":
            metadata = self._registry.get(resource, "", target.name)["metadata"]
            if metadata.get("deletionTimestamp") and not at(body, "spec").get("finalizers"):
                self._registry.finish_namespace(target.name)
            return _json(body)
        if self._store.get(resource.id, target.namespace, target.name) is None and _creates_on_put(resource):
            metadata = at(body, "metadata")
            if not metadata.get("resourceVersion") and not metadata.get("uid"):
                created = self._registry.create(resource, target.namespace, body, options)
                return self._answer(request, resource, created, 201, options)
        stored = self._stored(target)
        value = self._registry.replace(stored, target.namespace, target.name, body, options, target.subresource)
        return self._answer(request, resource, value, 200, options)

    async def _patch(self, request: web.Request, target: Target, options: Options) -> web.Response:
        kind, resource = request.content_type, target.resource
        if kind not in _PATCHES or (resource.custom and kind == _PATCHES[2]):
            allowed = [each for each in _PATCHES if not (resource.custom and each == _PATCHES[2])]
            raise _unsupported_media(", ".join(allowed))
        raw = await request.read()
        patch = _parsed(raw, "application/yaml" if kind == _PATCHES[3] else "application/json")
        patch = _unviewed(resource, patch)
        if kind == _PATCHES[3]:
            return self._apply(request, target, _mapping(patch), options)
        if kind == _PATCHES[1] and not isinstance(patch, dict):
            raise bad_request("json: cannot unmarshal array into Go value of type map[string]interface {}")

        def change(value: Json) -> Json:
            try:
                if kind == _PATCHES[0]:
                    changed = json_patch(value, patch)
                elif kind == _PATCHES[1]:
                    changed = merge_patch(value, patch)
                else:
                    changed = strategic_merge(value, patch, resource.schema)
            except PatchError as error:
                reason = "Invalid" if error.code == 422 else "BadRequest"
                text = "the server rejected our request due to an error in our request"
                text = text if error.code == 422 else str(error)
                raise Refusal(error.code, reason, text) from error
            return _mapping(changed)

        if target.subresource == "scale":
            return self._rescale(target, change, options)
        stored = self._stored(target)
        value = self._registry.modify(stored, target.namespace, target.name, change, options, target.subresource)
        return self._answer(request, resource, value, 200, options)

    def _stored(self, target: Target) -> Resource:
        """The resource whose objects are written: another one for a view."""
        return self._registry.resource(target.resource.view_of) if target.resource.view_of else target.resource

    def _apply(self, request: web.Request, target: Target, body: Json, options: Options) -> web.Response:
        if not request.query.get("fieldManager"):
            message = (
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch'
            )
            raise Refusal(422, "Invalid", message)
        value, created = self._registry.apply(
            self._stored(target), target.namespace, target.name, body, options, target.subresource
        )
        return self._answer(request, target.resource, value, 201 if created else 200, options)

    def _rescale(self, target: Target, change: Callable[[Json], Json], options: Options) -> web.Response:
        """The scale subresource: a view of one field, written through the object itself."""
        resource = target.resource
        path = resource.scale["specReplicasPath"].strip(".").split(".")

        def write(value: Json) -> Json:
            scale = change(_scale_of(resource, value))
            wanted = at(scale, "spec").get("replicas", 0)
            version = at(scale, "metadata").get("resourceVersion")
            node = value
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = wanted
            if version:
                value["metadata"]["resourceVersion"] = version
            return value

        changed = self._registry.modify(resource, target.namespace, target.name, write, options, as_subresource="scale")
        return _json(_scale_of(resource, changed))

    async def _delete(self, request: web.Request, target: Target) -> web.Response:
        how = await _deletion(request)
        resource = target.resource
        if not target.name:
            test = _selection(request.query, resource)
            gone = [
                self._registry.delete(resource, each["metadata"].get("namespace", ""), each["metadata"]["name"], how)[0]
                for each in self._store.items(resource.id, target.namespace)
                if not test or test(each)
            ]
            metadata = {"resourceVersion": str(self._store.revision)}
            shown = [_versioned(resource, each) for each in gone]
            return _json(
                {
                    "kind": f"{resource.kind}List",
                    "apiVersion": resource.api_version,
                    "metadata": metadata,
                    "items": shown,
                }
            )
        value, gone_now = self._registry.delete(resource, target.namespace, target.name, how)
        if not gone_now or resource.id == "pods":
            return self._answer(request, resource, value, 200)
        details = {
            "name": target.name,
            "group": resource.group,
            "kind": resource.plural,
            "uid": value["metadata"]["uid"],
        }
        details = {key: each for key, each in details.items() if each}
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    async def _evict(self, request: web.Request, target: Target) -> web.Response:
        if request.method != "POST":
            raise _not_allowed()
        body = await _body(request)
        options = at(body, "deleteOptions")
        self._registry.delete(
            target.resource, target.namespace, target.name, Deletion(grace=options.get("gracePeriodSeconds"))
        )
        return _json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, 201)

    async def _log(self, request: web.Request, target: Target) -> web.StreamResponse:
        pod = self._registry.get(target.resource, target.namespace, target.name)
        names = [each["name"] for each in (*many(pod["spec"], "initContainers"), *pod["spec"]["containers"])]
        usual = [each["name"] for each in pod["spec"]["containers"]]
        container = request.query.get("container") or usual[0]
        if not request.query.get("container") and len(usual) > 1:
            choices = " ".join(usual)
            raise bad_request(f"a container name must be specified for pod {target.name}, choose one of: [{choices}]")
        if container not in names:
            raise bad_request(f"container {container} is not valid for pod {target.name}")
        if self.logs is None:
            raise not_found(target.resource, target.name)
        chunks = self.logs.logs(pod, container, request.query)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        try:
            first = await anext(chunks, b"")
            await response.prepare(request)
            await response.write(first)
            async for chunk in chunks:
                await response.write(chunk)
            await response.write_eof()
        except ConnectionResetError:
            pass
        finally:
            await cast("Any", chunks).aclose()
        return response


# ---------------------------------------------------------------- pieces of requests and answers


def _json(value: Json, code: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=code, content_type="application/json")


def _own(request: web.Request) -> bool:
    """Whether no web page can have sent this: its name for us would not be loopback, or it says where it is from."""
    host = (request.headers.get("Host") or "").rpartition(":")[0].strip("[]")
    loopback = host in ("localhost", "::1") or host.startswith("127.")
    return loopback and "Origin" not in request.headers and request.headers.get("Sec-Fetch-Site", "none") == "none"


def _unknown_path() -> Refusal:
    return Refusal(404, "NotFound", "the server could not find the requested resource", details={})


def _not_allowed() -> Refusal:
    return Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def _unsupported_media(accepted: str) -> Refusal:
    message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return Refusal(415, "UnsupportedMediaType", message)


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if text and not text.isdigit():
        raise bad_request(f'{name}: Invalid value: "{text}": strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text or 0)


def _options(request: web.Request) -> Options:
    query = request.query
    dry = query.getall("dryRun", [])
    if dry and dry != ["All"]:
        message = (
            f'PatchOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: "{dry[0]}": supported values: "All"'
        )
        raise Refusal(422, "Invalid", message)
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        message = (
            f'PatchOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "{validation}": '
            'supported values: "", "Ignore", "Strict", "Warn"'
        )
        raise Refusal(422, "Invalid", message)
    agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
    manager = query.get("fieldManager") or agent
    return Options(manager=manager, dry_run=bool(dry), validation=validation, force=query.get("force") in ("1", "true"))


async def _body(request: web.Request) -> Json:
    if request.content_type == _PROTOBUF:
        try:
            return protobuf.decode(await request.read())
        except protobuf.Unreadable as error:
            raise _unsupported_media(_ACCEPTED) from error
    if request.content_type not in ("application/json", "application/yaml"):
        raise _unsupported_media(_ACCEPTED)
    return _mapping(_parsed(await request.read(), request.content_type))


def _parsed(raw: bytes, media: str) -> Any:
    try:
        if media == "application/json" or raw.lstrip()[:1] in (b"{", b"["):
            return orjson.loads(raw)
        return yaml.load(raw, yaml.CSafeLoader)
    except (orjson.JSONDecodeError, yaml.YAMLError, ValueError) as error:
        raise bad_request(f"error decoding the body: {error}") from error


def _mapping(value: Any) -> Json:
    if not isinstance(value, dict):
        raise bad_request("couldn't get version/kind; json parse error: the body is no object")
    return cast("Json", value)


async def _deletion(request: web.Request) -> Deletion:
    raw = await request.read()
    body = _mapping(_parsed(raw, "application/json")) if raw.strip() else {}
    query = request.query
    conditions = at(body, "preconditions")
    grace = body.get("gracePeriodSeconds")
    if "gracePeriodSeconds" in query:
        grace = _number(query, "gracePeriodSeconds")
    dry = body.get("dryRun") or query.getall("dryRun", [])
    return Deletion(
        grace=grace,
        propagation=body.get("propagationPolicy") or query.get("propagationPolicy") or "Background",
        uid=conditions.get("uid") or "",
        version=conditions.get("resourceVersion") or "",
        dry_run=bool(dry),
    )


def _selection(query: Mapping[str, str], resource: Resource) -> selectors.Test | None:
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    if not labels and not fields:
        return None
    try:
        tests = [selectors.by_labels(labels)] if labels else []
        tests += [selectors.by_fields(fields, resource.kind)] if fields else []
    except selectors.BadSelector as error:
        raise bad_request(str(error)) from error
    return lambda value: all(test(value) for test in tests)


def _check_match(query: Mapping[str, str], *, watch: bool = False) -> None:
    match = query.get("resourceVersionMatch")
    if watch and not query.get("sendInitialEvents") and match:
        raise Refusal(
            422,
            "Invalid",
            'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided',  # noqa: E501
        )
    if match and match not in ("Exact", "NotOlderThan"):
        raise Refusal(
            422,
            "Invalid",
            f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""',  # noqa: E501
        )


def _seen(event: Event, namespace: str, test: selectors.Test | None) -> list[tuple[str, Json]]:
    """A write as one watch sees it: an object may enter or leave what the watch selects."""
    if namespace and event.object["metadata"].get("namespace") != namespace:
        return []
    if test is None:
        return [(event.type, event.object)]
    was = event.previous is not None and test(event.previous)
    if event.type == "DELETED":
        return [("DELETED", event.object)] if was else []
    now = test(event.object)
    if now:
        return [("MODIFIED" if was else "ADDED", event.object)]
    if was and event.previous:
        version = {"resourceVersion": event.object["metadata"]["resourceVersion"]}
        return [("DELETED", event.previous | {"metadata": event.previous["metadata"] | version})]
    return []


def _versioned(resource: Resource, value: Json) -> Json:
    """Stored in whatever version it was written, shown in the one that was asked for."""
    if resource.view_of:
        value = {_EVENT_FIELDS.get(name, name): each for name, each in value.items()}
    same = value.get("apiVersion") == resource.api_version
    return value if same else value | {"apiVersion": resource.api_version}


#: Fields of a core Event → the names that events.k8s.io gives them.
_EVENT_FIELDS = {
    "message": "note",
    "involvedObject": "regarding",
    "reportingComponent": "reportingController",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
}
_CORE_FIELDS = {new: old for old, new in _EVENT_FIELDS.items()}


def _unviewed(resource: Resource, body: Any) -> Any:
    """What was sent to a view, as it is sent to what is stored. Of a JSON patch, nothing is translated."""
    if not resource.view_of or not isinstance(body, dict):
        return body
    named = {_CORE_FIELDS.get(name, name): each for name, each in cast("Json", body).items()}
    return named | ({"apiVersion": "v1"} if "apiVersion" in named else {})


def _wants_table(request: web.Request) -> bool:
    first = request.headers.get("Accept", "").split(",")[0]
    return "as=Table" in first and "g=meta.k8s.io" in first


def _include(request: web.Request) -> str:
    return request.query.get("includeObject") or "Metadata"


def _creates_on_put(resource: Resource) -> bool:
    return resource.kind in ("Lease", "Event", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Endpoints")


def _scale_of(resource: Resource, value: Json) -> Json:
    def look(path: str) -> Any:
        node: Any = value
        for part in path.strip(".").split("."):
            node = cast("Json", node).get(part) if isinstance(node, dict) else None
        return node

    metadata = value["metadata"]
    selector = look(resource.scale["labelSelectorPath"]) if "labelSelectorPath" in resource.scale else ""
    if not resource.custom:
        labels = at(value["spec"], "selector", "matchLabels")
        selector = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
    status = {"replicas": look(resource.scale["statusReplicasPath"]) or 0, "selector": selector or ""}
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": look(resource.scale["specReplicasPath"]) or 0},
        "status": {key: each for key, each in status.items() if each != ""},
    }
