"""A thin client of the Kubernetes API: raw bytes on one aiohttp session.

``kubernetes_asyncio`` reads the configuration and authenticates; its typed client and its Watch are not used (the
hot paths cost 50 to 70 times the CPU, and its Watch loses events). Every call has a deadline and a size bound, every
answer's status is read, and a list is whole or an error (``answers`` says which). Nothing here logs.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import io
import os
import random
import ssl
import sys
import tempfile
import threading
import time
from asyncio import sslproto
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote, urlencode

import aiohttp
import orjson
import yarl

from gitsync.application import API_GROUP, KIND, VERSION
from gitsync.cluster.answers import (
    Conflict,
    Expired,
    Listing,
    NoKind,
    Page,
    Rejected,
    Resource,
    Sent,
    WatchEvent,
    failure_of,
    read_event,
    read_object,
    read_page,
)
from gitsync.errors import GitsyncError, Invalid, Transient, Waiting
from gitsync.model import FIELD_MANAGER, Applied, Json, ObjectRef

REPLICAS_MANAGER = f"{FIELD_MANAGER}-replicas"
"""Field manager that holds ``spec.replicas`` of an autoscaler's target, so that gitsync itself need not send it."""

JsonPatch = list[Json]

DEADLINE = 60.0
"""Seconds for one call, its retries included."""
PATIENCE = 10.0
"""Seconds in which a cluster must answer at all where a person waits for it."""
ATTEMPT = 35.0
"""Seconds for one request: longer than the 30 s that an admission webhook may take."""
OBJECT_LIMIT = 16 << 20
"""Bytes of one object's answer or one watch event; etcd stores 1.5 MiB, its JSON may be larger."""
PAGE_LIMIT = 512 << 20
ERROR_LIMIT = 256 << 10

_STRICT = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
# A buffer of this size stands by for every TLS connection, and each watch has one. A record holds 16 KiB.
sslproto.SSLProtocol.max_size = 64 << 10

_TOKEN_AGE = 60.0  # seconds after which a token file is read again; bound tokens rotate within the hour


# ---------------------------------------------------------------- configuration


async def _no_credentials() -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where the API server is and how to be let in.

    ``authorization`` reads the header's value anew ("" for none). It is asked after a 401 and, if the token ``rotates``
    (it is read from a file), once a minute.
    """

    host: str
    tls: ssl.SSLContext | None = None
    server_name: str = ""
    proxy: str = ""
    authorization: Callable[[], Awaitable[str]] = _no_credentials
    rotates: bool = False


async def access(kubeconfig: str = "", context: str = "", *, allow_plugins: bool = False) -> Access:
    """As kubectl looks for it: the given file, ``$KUBECONFIG``, ``~/.kube/config``, else the pod's service account.

    ``allow_plugins`` permits the kubeconfig's exec or auth-provider plugin, which runs a program. ``Invalid`` says what
    is wrong with the configuration.
    """
    places = kubeconfig or os.environ.get("KUBECONFIG", "")
    if not places:
        default = Path.home() / ".kube" / "config"
        if default.is_file() or "KUBERNETES_SERVICE_HOST" not in os.environ:
            places = str(default)

    async def load() -> _Read:
        try:
            return await _configuration(places, context, allow_plugins)
        except GitsyncError:
            raise
        except Exception as error:  # the library raises whatever a malformed file makes it trip over
            place = places or "the pod's service account"
            said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise Invalid(
                f"cannot use {place}: {said}",
                doing="configuring access",
                hint="name a kubeconfig with --kubeconfig or KUBECONFIG, and one of its contexts with --context",
            ) from error

    async def authorization() -> str:
        configuration = (await load()).configuration
        return str(configuration.api_key.get("BearerToken", "")).strip()

    read = await load()
    first = read.configuration
    host = str(first.host).rstrip("/")
    return Access(
        host=host,
        tls=_tls(read) if host.startswith("https:") else None,
        server_name=first.tls_server_name or "",
        proxy=first.proxy or "",
        authorization=authorization,
        rotates=read.rotates,
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """The library's configuration, the files that are embedded in the kubeconfig, and whether its token is a file's."""

    configuration: Any
    embedded: Mapping[str, bytes]
    rotates: bool


_importing = threading.Lock()


def _library() -> tuple[Any, Any, Callable[[], Any]]:
    with _importing:  # two threads at once would take the modules from each other
        return _imported()


@cache
def _imported() -> tuple[Any, Any, Callable[[], Any]]:
    """What of the library reads configurations: ``config``, ``kube_config`` and ``Configuration``.

    Its packages import 850 modules of typed models, which take 35 MB and half a second and are not used here. So they
    stand empty while these parts are imported, and nothing is left of that for who imports the library itself.
    """
    names = ("kubernetes_asyncio", "kubernetes_asyncio.client")
    former = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == names[0]}
    try:
        for name in names:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
        client = sys.modules[names[1]]
        made = importlib.import_module(f"{names[1]}.configuration").Configuration
        vars(client).update(Configuration=made, ApiClient=None)  # the latter only for functions that are not called
        config = importlib.import_module(f"{names[0]}.config")
        return config, importlib.import_module(f"{names[0]}.config.kube_config"), made
    finally:
        for name in [*sys.modules]:
            if name.split(".")[0] == names[0]:
                del sys.modules[name]
        sys.modules.update(former)


async def _configuration(places: str, context: str, allow_plugins: bool) -> _Read:
    config, kube_config, new = _library()
    configuration = new()
    if not places:
        config.load_incluster_config(client_configuration=configuration)  # pyright: ignore[reportUnknownMemberType] - untyped
        return _Read(configuration, {}, rotates=True)
    files = [path for path in places.split(os.pathsep) if os.access(path, os.R_OK)]
    if not files:
        raise Invalid(
            f"there is no kubeconfig at {places}",
            doing="looking for a cluster",
            hint="name one with --kubeconfig or KUBECONFIG, or run inside a cluster",
        )
    merged = kube_config.KubeConfigMerger(os.pathsep.join(files)).config
    loader: Any = kube_config.KubeConfigLoader(
        config_dict=merged, active_context=context or None, config_base_path=None
    )
    user = loader._user
    plugin = next((name for name in ("exec", "auth-provider") if user is not None and name in user), "")
    if plugin and not allow_plugins:
        raise Invalid(
            f"the kubeconfig's user authenticates with a plugin ({plugin}), which would run a program",
            doing="reading the kubeconfig",
            hint="allow it with --allow-exec-credentials, or use a token or a certificate",
        )
    if plugin == "exec" and user is not None:
        _note_credentials(user.value, await kube_config.ExecProvider(user["exec"]).run())
    embedded = _taken(loader._cluster.value) | (_taken(user.value) if user is not None else {})
    await loader.load_and_set(configuration)
    return _Read(configuration, embedded, rotates=user is not None and "tokenFile" in user)


def _note_credentials(user: Json, status: Json) -> None:
    """What an exec plugin answered, as if it stood in the kubeconfig."""
    del user["exec"]
    if "token" in status:
        user["token"] = status["token"]
        return
    for name, key in (("client-certificate", "clientCertificateData"), ("client-key", "clientKeyData")):
        user[f"{name}-data"] = b64encode(status[key].encode()).decode()


def _taken(part: Json) -> dict[str, bytes]:
    """The embedded files of a kubeconfig's cluster or user, taken out of it.

    The library would write them into the temporary directory, where a killed process leaves its private key.
    """
    found: dict[str, bytes] = {}
    for name in ("certificate-authority", "client-certificate", "client-key"):
        if data := part.pop(f"{name}-data", None):
            part.pop(name, None)  # the data win, as for kubectl
            found[name] = b64decode(data)
    return found


def _tls(read: _Read) -> ssl.SSLContext:
    configuration, embedded = read.configuration, read.embedded
    try:
        authority = embedded.get("certificate-authority", b"").decode()
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=authority or None)
        # Many clusters' authorities lack key identifiers, and kubectl accepts them.
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with ExitStack() as stack:
            files = [
                stack.enter_context(_as_file(embedded[name])) if name in embedded else path
                for name, path in (("client-certificate", configuration.cert_file),
                                   ("client-key", configuration.key_file))
            ]  # fmt: skip
            if files[0]:
                tls.load_cert_chain(files[0], keyfile=files[1])
    except (OSError, ValueError, ssl.SSLError) as error:
        raise Invalid(f"cannot use the cluster's certificates: {error}", doing="configuring access") from error
    if not configuration.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    return tls


@contextmanager
def _as_file(content: bytes) -> Generator[str]:
    """A path under which OpenSSL, which reads keys from files alone, finds it; in memory where the system can."""
    memory = getattr(os, "memfd_create", None)
    with os.fdopen(memory("gitsync"), "wb") if memory else tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}" if memory else file.name


def service_account(namespace: str, name: str) -> str:
    """The user name to impersonate. The server adds a service account's groups by itself."""
    return f"system:serviceaccount:{namespace}:{name}"


# ---------------------------------------------------------------- the client


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class Cluster:
    """One API server. Use as an async context manager; safe for many tasks of one event loop.

    ``guard`` is called before every write and may raise: the leader's Lease sets it, so that a process that lost its
    lease while it was stopped does not write one more byte.
    """

    def __init__(self, where: Access, *, user_agent: str = FIELD_MANAGER) -> None:
        self._access = where
        self._agent = user_agent
        self._session: aiohttp.ClientSession | None = None
        self._token = ""
        self._token_read = float("-inf")
        self._token_lock = asyncio.Lock()
        self._kinds: dict[tuple[str, str], dict[str, Resource]] = {}
        self._kind_locks: dict[tuple[str, str], asyncio.Lock] = {}
        self.guard: Callable[[], None] = lambda: None

    @classmethod
    async def connect(
        cls, kubeconfig: str = "", context: str = "", *, allow_plugins: bool = False, user_agent: str = "gitsync"
    ) -> Self:
        """Read the configuration (see ``access``); no request is made. Enter the result with ``async with``."""
        return cls(await access(kubeconfig, context, allow_plugins=allow_plugins), user_agent=user_agent)

    async def __aenter__(self) -> Self:
        # Our own session: the library's follows proxies and ~/.netrc of the environment, and limits connections,
        # of which every watch holds one.
        connector = aiohttp.TCPConnector(limit=0, ssl=self._access.tls or True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            read_bufsize=1 << 20,
            timeout=aiohttp.ClientTimeout(total=None),
            proxy=self._access.proxy or None,
            headers={"User-Agent": self._agent, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def host(self) -> str:
        return self._access.host

    # ------------------------------------------------ discovery

    async def resource(self, group: str, version: str, kind: str, *, deadline: float = DEADLINE) -> Resource:
        """How to address a kind. Cached per group and version; a miss asks the server once more. ``NoKind``."""
        where = (group, version)
        found = self._kinds.get(where, {}).get(kind)
        if found is None:
            known = self._kinds.get(where)
            async with self._kind_locks.setdefault(where, asyncio.Lock()):
                if self._kinds.get(where) is known:  # nobody refreshed it while we waited
                    self._kinds[where] = await self._discover(group, version, deadline)
            found = self._kinds[where].get(kind)
        if found is None:
            name = f"{group}/{version}" if group else version
            raise NoKind(
                f"the cluster serves no {kind} in {name}",
                doing="looking up a kind",
                hint="install its CustomResourceDefinition, or correct apiVersion and kind",
            )
        return found

    async def resource_of(self, ref: ObjectRef) -> Resource:
        return await self.resource(ref.group, ref.version, ref.kind)

    async def _discover(self, group: str, version: str, deadline: float) -> dict[str, Resource]:
        path = "/" + "/".join(
            quote(part, safe="") for part in (("apis", group, version) if group else ("api", version))
        )
        doing = f"discovering {path[1:]}"
        answer = await self._call("GET", path, doing=doing, retry=True, absent_ok=True, deadline=deadline)
        if answer.status == 404:
            return {}
        listed: list[Json] = read_object(answer.body, doing).get("resources") or []
        found: dict[str, Resource] = {}
        for each in listed:
            if "/" in each["name"]:
                continue  # a subresource
            found[each["kind"]] = Resource(
                group=group,
                version=version,
                kind=each["kind"],
                plural=each["name"],
                namespaced=bool(each["namespaced"]),
                verbs=frozenset(each.get("verbs") or ()),
            )
        return found

    # ------------------------------------------------ reading

    async def get(self, ref: ObjectRef, *, impersonate: str = "", deadline: float = DEADLINE) -> Json | None:
        """The object, or ``None`` if the server says that it does not exist. ``NoKind`` if the kind does not."""
        answer = await self._object_call(
            "GET", ref, doing="reading", retry=True, absent_ok=True, impersonate=impersonate, deadline=deadline
        )
        return None if answer.status == 404 else read_object(answer.body, "reading", ref)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
        metadata_only: bool = False,
        impersonate: str = "",
    ) -> Listing:
        """Every object of a kind that matches, at one resource version; never a part of them.

        ``limit`` is the page's size. A continue token that expired on the way starts the list again.
        """
        items: list[Json] = []
        version = ""
        async for page in self.pages(
            resource,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            limit=limit,
            metadata_only=metadata_only,
            impersonate=impersonate,
        ):
            if page is None:
                items.clear()
                continue
            version = page.metadata.resource_version
            for raw in page.items or ():
                item = cast(Json, orjson.loads(memoryview(raw)))
                items.append(item | {"apiVersion": resource.api_version, "kind": resource.kind})
        return Listing(items=tuple(items), resource_version=version)

    async def pages(
        self,
        resource: Resource,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
        metadata_only: bool = False,
        impersonate: str = "",
    ) -> AsyncIterator[Page | None]:
        """The pages of one list. ``None`` says: forget what came before, the list starts again (its token expired)."""
        token, restarted = "", False
        doing = f"listing {resource.plural}" + (f" in {namespace}" if namespace else "")
        while True:
            query = _query(labelSelector=label_selector, fieldSelector=field_selector)
            if limit and not restarted:
                query["limit"] = str(limit)
            if token:
                query["continue"] = token
            try:
                answer = await self._call(
                    "GET",
                    resource.path(namespace),
                    query=query,
                    doing=doing,
                    retry=True,
                    impersonate=impersonate,
                    bound=PAGE_LIMIT,
                    accept=_METADATA_ONLY if metadata_only else "",
                )
            except Expired:
                if not token:
                    raise
                token, restarted = "", True  # in one piece this time: it cannot expire on the way
                yield None
                continue
            page = read_page(answer.body, doing)
            token = page.metadata.continue_
            yield page
            if not token:
                return

    async def watch(
        self,
        resource: Resource,
        *,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        window: float = 40.0,
        grace: float = 10.0,
        impersonate: str = "",
        on_open: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[WatchEvent, None]:
        """Events after ``resource_version``, bookmarks among them, until the server ends the watch after ``window`` s.

        One connection, no retry: the caller resumes from the last version it saw. ``on_open`` is called when the server
        has accepted the watch. ``Transient`` if it does not answer in ``grace`` s, is not done ``grace`` s past the
        window, or breaks off; ``Expired`` if the version is too old. A line cut short by the end of the connection is
        dropped. Close the iterator (``aclosing``) to end the watch early.
        """
        query = _query(labelSelector=label_selector, fieldSelector=field_selector, resourceVersion=resource_version)
        query |= {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(window)))}
        doing = f"watching {resource.plural}" + (f" in {namespace}" if namespace else "")
        url = self._url(resource.path(namespace), query)
        ends = time.monotonic() + window + grace
        try:
            async with asyncio.timeout(grace):
                headers = await self._headers(impersonate)
                response = await self._http().get(url, headers=headers, allow_redirects=False, **self._extra())
            async with response:
                if response.status == 401:
                    self._token_read = float("-inf")
                if response.status != 200:
                    async with asyncio.timeout(grace):
                        body = await _read(response, ERROR_LIMIT)
                    raise _failure(response, body, doing=doing, ref=None, sent=None)
                if response.content_type != "application/json":
                    raise Transient(f"the answer is {response.content_type}, not JSON", doing=doing)
                on_open()
                try:
                    rest = b""
                    while True:
                        async with asyncio.timeout(ends - time.monotonic()):  # not around a yield: it cancels the task
                            chunk = await response.content.readany()
                        if not chunk:
                            return
                        lines = (rest + chunk if rest else chunk).split(b"\n")
                        rest = lines.pop()
                        if len(rest) > OBJECT_LIMIT:
                            raise Transient(f"an event is larger than {OBJECT_LIMIT} bytes", doing=doing)
                        for line in lines:
                            if line:
                                yield read_event(line, doing)
                finally:
                    # Left early, the server has more to say, and a polite farewell (TLS) could wait for it for ever.
                    if response.connection is not None and response.connection.transport is not None:
                        response.connection.transport.abort()
        except TimeoutError as error:
            raise Transient("the server fell silent", doing=doing, reason="Silent") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Transient(f"the connection broke: {_brief(error)}", doing=doing) from error

    async def logs(
        self, pod: ObjectRef, container: str, *, tail: int = 20, previous: bool = False, impersonate: str = ""
    ) -> str:
        """The last lines of a container, at most 16 KiB; "" if there are none (any more)."""
        query = {"container": container, "tailLines": str(tail), "limitBytes": str(16 << 10)}
        if previous:
            query["previous"] = "true"
        path = (await self.resource_of(pod)).path(pod.namespace, pod.name, "log")
        try:
            answer = await self._call(
                "GET",
                path,
                query=query,
                doing="reading the log of",
                ref=pod,
                deadline=10,
                absent_ok=True,
                impersonate=impersonate,
            )
        except Rejected as error:
            if error.status == 400:  # no such container yet, or no previous one
                return ""
            raise
        return "" if answer.status == 404 else answer.body.decode("utf-8", "replace")

    # ------------------------------------------------ writing

    async def apply(
        self,
        obj: Json,
        *,
        force: bool = True,
        dry_run: bool = False,
        manager: str = FIELD_MANAGER,
        impersonate: str = "",
        known: str = "",
        subresource: str = "",
        deadline: float = DEADLINE,
    ) -> Applied:
        """Server-side apply with strict validation. Repeating it is harmless, so it is retried until the deadline.

        ``known`` is the resource version before, if the caller knows it: ``changed`` is true when the answer's differs.
        ``Rejected`` carries the fields; ``Conflict`` the other managers (only without ``force``).
        """
        ref = ObjectRef.of(obj)
        query = _STRICT | {"fieldManager": manager}
        if force:
            query["force"] = "true"
        if dry_run:
            query["dryRun"] = "All"
        answer = await self._object_call(
            "PATCH",
            ref,
            subresource=subresource,
            query=query,
            sent=obj,
            content_type="application/apply-patch+yaml",  # JSON is YAML
            doing="dry-running" if dry_run else "applying",
            retry=True,
            impersonate=impersonate,
            deadline=deadline,
            guarded=not dry_run,
        )
        reply = read_object(answer.body, "applying", ref)
        metadata = reply["metadata"]
        version = str(metadata.get("resourceVersion", ""))
        return Applied(
            ref=ref,
            uid=str(metadata.get("uid", "")),
            resource_version=version,
            changed=answer.status == 201 or version != known,
            object=reply,
        )

    async def create(
        self, obj: Json, *, impersonate: str = "", deadline: float = DEADLINE, guarded: bool = True
    ) -> Json:
        """POST. ``Conflict`` with reason AlreadyExists. Not retried when its outcome is unknown."""
        return await self._put("POST", obj, "creating", impersonate, deadline, guarded)

    async def update(
        self, obj: Json, *, impersonate: str = "", deadline: float = DEADLINE, guarded: bool = True
    ) -> Json:
        """PUT, guarded by ``metadata.resourceVersion``: ``Conflict`` if somebody wrote since. Not retried."""
        return await self._put("PUT", obj, "updating", impersonate, deadline, guarded)

    async def _put(self, method: str, obj: Json, doing: str, impersonate: str, deadline: float, guarded: bool) -> Json:
        ref = ObjectRef.of(obj)
        answer = await self._object_call(
            method,
            ref,
            query=_STRICT,
            sent=obj,
            doing=doing,
            impersonate=impersonate,
            deadline=deadline,
            guarded=guarded,
        )
        return read_object(answer.body, doing, ref)

    async def patch(
        self, ref: ObjectRef, patch: Json | JsonPatch, *, impersonate: str = "", deadline: float = DEADLINE
    ) -> Json:
        """A JSON merge patch (a dict) or a JSON patch (a list of operations)."""
        kind = "json-patch" if not isinstance(patch, dict) else "merge-patch"
        answer = await self._object_call(
            "PATCH",
            ref,
            query={"fieldManager": FIELD_MANAGER},
            sent=patch,
            content_type=f"application/{kind}+json",
            doing="patching",
            impersonate=impersonate,
            deadline=deadline,
        )
        return read_object(answer.body, "patching", ref)

    async def patch_status(self, ref: ObjectRef, status: Json, *, deadline: float = DEADLINE) -> bool:
        """Make ``status`` the whole of what gitsync says in the object's status. False: the object is gone."""
        metadata = {"name": ref.name} | ({"namespace": ref.namespace} if ref.namespace else {})
        body = {"apiVersion": ref.api_version, "kind": ref.kind, "metadata": metadata, "status": status}
        try:
            await self.apply(body, subresource="status", deadline=deadline)
        except Waiting as error:
            if error.reason == "NotFound":
                return False
            raise
        return True

    async def delete(
        self,
        ref: ObjectRef,
        uid: str,
        *,
        propagation: str = "Background",
        resource_version: str = "",
        dry_run: bool = False,
        impersonate: str = "",
        deadline: float = DEADLINE,
    ) -> bool:
        """Delete this very object. False: it is gone already (another may bear its name; that one is left alone).

        True says that the deletion was accepted; finalizers and grace periods may keep the object for a while.
        """
        if not uid:
            raise ValueError(f"refusing to delete {ref} without its UID")
        conditions = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": conditions,
            "propagationPolicy": propagation,
        } | ({"dryRun": ["All"]} if dry_run else {})
        try:
            answer = await self._object_call(
                "DELETE",
                ref,
                sent=options,
                doing="deleting",
                retry=True,
                absent_ok=True,
                impersonate=impersonate,
                deadline=deadline,
                guarded=not dry_run,
            )
        except Conflict:
            live = await self.get(ref, impersonate=impersonate)
            if live is None or live["metadata"]["uid"] != uid:
                return False
            raise
        return answer.status != 404

    async def claim_replicas(self, ref: ObjectRef, *, impersonate: str = "") -> bool:
        """Keep the live ``spec.replicas`` when gitsync stops sending it. True if a write was needed.

        Dropping a field that one manager alone owns resets it (3 → 1). A second manager therefore applies the live
        value first, only if nobody wrote in between.
        """
        for _ in range(10):
            live = await self.get(ref, impersonate=impersonate)
            if live is None or not _sole_owner_of_replicas(live):
                return False
            metadata = live["metadata"]
            names = {key: metadata[key] for key in ("name", "namespace", "resourceVersion") if key in metadata}
            body = {
                "apiVersion": ref.api_version,
                "kind": ref.kind,
                "metadata": names,
                "spec": {"replicas": live["spec"]["replicas"]},
            }
            try:
                await self.apply(body, manager=REPLICAS_MANAGER, impersonate=impersonate)
            except Conflict:
                continue  # the autoscaler, or a status, was faster
            return True
        raise Conflict("it changes faster than it can be read", doing="claiming the replicas of", ref=ref)

    # ------------------------------------------------ one request

    async def _object_call(
        self, method: str, ref: ObjectRef, *, doing: str, subresource: str = "", **options: Any
    ) -> _Answer:
        if not ref.name or ref.name in (".", "..") or "/" in ref.name or "%" in ref.name:
            error = Rejected(f"{ref.name!r} cannot be an object's name", doing=doing, ref=ref)
            error.causes, error.status = (("metadata.name", "is no name"),), 400
            raise error
        try:
            resource = await self.resource(ref.group, ref.version, ref.kind, deadline=options.get("deadline", DEADLINE))
        except NoKind as error:
            error.doing, error.ref = doing, ref
            raise
        if resource.namespaced and not ref.namespace:
            error = Rejected("it has no namespace, and its kind needs one", doing=doing, ref=ref)
            error.causes, error.status = (("metadata.namespace", "is missing"),), 400
            raise error
        name = "" if method == "POST" else ref.name
        try:
            return await self._call(
                method, resource.path(ref.namespace, name, subresource), ref=ref, doing=doing, **options
            )
        except NoKind:
            self._kinds.pop((ref.group, ref.version), None)  # its CRD went away
            raise

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        sent: Sent = None,
        content_type: str = "application/json",
        doing: str,
        ref: ObjectRef | None = None,
        impersonate: str = "",
        deadline: float = DEADLINE,
        bound: int = OBJECT_LIMIT,
        accept: str = "",
        retry: bool = False,
        absent_ok: bool = False,
        guarded: bool = True,
    ) -> _Answer:
        """One call. ``retry`` marks it as harmless to repeat; a 429 was not executed and is always repeated."""
        body = None if sent is None else orjson.dumps(sent)
        url = self._url(path, query or {})
        ends = time.monotonic() + deadline
        pause = 0.1
        reauthorized = False
        failure: GitsyncError | None = None
        while True:
            if guarded and method != "GET":
                self.guard()
            left = ends - time.monotonic()
            headers = {"Content-Type": content_type} if body is not None else {}
            if accept:
                headers["Accept"] = accept
            try:
                async with asyncio.timeout(max(0.001, min(left, ATTEMPT))):
                    headers |= await self._headers(impersonate)
                    async with self._http().request(
                        method, url, data=_payload(body), headers=headers, allow_redirects=False, **self._extra()
                    ) as response:
                        good = 200 <= response.status < 300
                        answer = _Answer(response.status, await _read(response, bound if good else ERROR_LIMIT))
                if good:
                    return answer
                failure = _failure(response, answer.body, doing=doing, ref=ref, sent=sent)
                # Of an object, a 404 that does not name it says that its kind is missing; of a group, that it is.
                if absent_ok and (isinstance(failure, NoKind) if ref is None else failure.reason == "NotFound"):
                    return answer
                if response.status == 401 and not reauthorized:
                    reauthorized = True
                    self._token_read = float("-inf")
                    continue
            except TimeoutError as error:
                if failure is not None and time.monotonic() >= ends:
                    raise failure from failure.__cause__  # what was answered says more than that time ran out
                failure = Transient("no answer in time", doing=doing, ref=ref, reason="Timeout")
                failure.__cause__ = error
            except (aiohttp.ClientError, OSError) as error:
                hint = "check the cluster's certificate authority" if isinstance(error, ssl.SSLError) else ""
                failure = Transient(
                    f"cannot reach {self.host}: {_brief(error)}", doing=doing, ref=ref, reason="Unreachable", hint=hint
                )
                failure.__cause__ = error
            if not isinstance(failure, Transient) or isinstance(failure, Conflict | Expired):
                raise failure
            if failure.reason == "TooManyRequests":
                wait = cast(Waiting, failure).retry_after
            elif retry and not isinstance(failure, Waiting):
                wait = pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                pause = min(pause * 2, 5.0)
            else:
                raise failure
            if time.monotonic() + wait >= ends:
                raise failure
            await asyncio.sleep(wait)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("enter the Cluster with `async with` first")
        return self._session

    def _url(self, path: str, query: Mapping[str, str]) -> yarl.URL:
        return yarl.URL(self.host + path + ("?" + urlencode(query) if query else ""), encoded=True)

    def _extra(self) -> dict[str, Any]:
        return {"server_hostname": self._access.server_name} if self._access.server_name else {}

    async def _headers(self, impersonate: str) -> dict[str, str]:
        if self._token_is_old():
            async with self._token_lock:
                if self._token_is_old():
                    await self._read_token()
        headers = {"Authorization": self._token} if self._token else {}
        if impersonate:
            headers["Impersonate-User"] = impersonate
        return headers

    def _token_is_old(self) -> bool:
        age = time.monotonic() - self._token_read
        return age > (_TOKEN_AGE if self._access.rotates else 1e9)

    async def _read_token(self) -> None:
        try:
            self._token = await self._access.authorization()
        except GitsyncError as error:  # it was readable at start: a file that is being replaced is bad luck
            if not self._token:
                raise Transient(error.message, doing="reading the credentials", reason="Unauthorized") from error
        self._token_read = time.monotonic()


def _failure(
    response: aiohttp.ClientResponse, body: bytes, *, doing: str, ref: ObjectRef | None, sent: Sent
) -> GitsyncError:
    retry_after = response.headers.get("Retry-After", "")
    return failure_of(response.status, response.content_type, retry_after, body, doing=doing, ref=ref, sent=sent)


def _query(**values: str) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def _brief(error: BaseException) -> str:
    return str(error)[:300] or type(error).__name__


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """What aiohttp wants: large bodies as a stream, which it sends in parts."""
    return io.BytesIO(body) if body is not None and len(body) > 1 << 20 else body


async def _read(response: aiohttp.ClientResponse, bound: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > bound:
            raise Transient(f"an answer is over the bound of {bound} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _sole_owner_of_replicas(live: Json) -> bool:
    """Whether ``spec.replicas`` would be reset if gitsync's next apply left it out."""
    entries: list[Json] = live["metadata"].get("managedFields") or []
    owners = {entry.get("manager") for entry in entries if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})}
    return owners == {FIELD_MANAGER}


async def applications(cluster: Cluster, *, deadline: float = DEADLINE) -> Resource:
    """How Applications are addressed. ``Invalid`` where gitsync was never installed: a newcomer knows no kinds."""
    try:
        return await cluster.resource(API_GROUP, VERSION, KIND, deadline=deadline)
    except NoKind as error:
        raise Invalid(
            "gitsync was never installed in this cluster",
            doing=error.doing,
            hint="'gitsync run REPOSITORY --registry HOST' or 'kubectl apply -k deploy/' does that",
            reason="NotInstalled",
        ) from error
