"""The composition root: settings → adapters → tasks, and a graceful stop. Nothing is decided here.

One watch follows the Applications; each change wakes the scheduler with a name. The HTTP surface sees the service as a
``web.Board``: finished pictures from memory, and a few verbs that end in the same ``wake``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import structlog

from gitsync.application import KIND, PLURAL, VERSION, Application, crd
from gitsync.attempt import Prepared
from gitsync.cluster.cache import Observed, Watcher
from gitsync.cluster.client import PATIENCE, Cluster, applications
from gitsync.cluster.lease import Lease
from gitsync.cluster.record import Records
from gitsync.errors import GitsyncError, Invalid
from gitsync.images import Access, ImageBuilder, Images, RegistryCredentials, choose
from gitsync.images.buildah import Buildah
from gitsync.images.buildctl import Buildctl
from gitsync.images.docker import Docker
from gitsync.ledger import Defaults, Tools
from gitsync.model import (
    ANNOTATION_FOLLOWED_BY,
    ANNOTATION_REQUESTED_AT,
    ANNOTATION_RETRY,
    API_GROUP,
    Json,
    ObjectRef,
    Plan,
)
from gitsync.pipeline import Pipeline
from gitsync.render import Reader
from gitsync.report.log import configure
from gitsync.report.metrics import Metrics
from gitsync.report.redact import Redactor
from gitsync.report.reporter import Reporter
from gitsync.scheduler import Scheduler
from gitsync.settings import Settings
from gitsync.source import GitPolicy, GitSource
from gitsync.web import server
from gitsync.web.board import Changes, PodView, View
from gitsync.web.pictures import brought_by, picture, pod_view
from gitsync.web.webhooks import Trigger, parse_secrets

log = structlog.get_logger(__name__)

SECRET_FILE_LIMIT = 64 << 10
POD_AGE = 1.0  # seconds
CLEANING = 6 * 3600.0  # seconds between two looks at what the cache of git holds for nobody
UNUSED = 7 * 24 * 3600.0  # seconds after which nobody follows a repository: processes may share a cache
_NO_SPEC = {"source": {"repository": "https://nowhere.invalid/nothing"}}  # to speak of an Application that has none


async def serve(settings: Settings, *, started: Callable[[Service], None] = lambda service: None) -> None:
    """Run until cancelled. ``started`` is called once, when the HTTP surface listens and Applications are followed."""
    redactor = Redactor()
    configure(redactor=redactor, format=settings.log_format, level=settings.log_level)
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            await Cluster.connect(
                str(settings.kubeconfig or ""), settings.context, allow_plugins=settings.allow_exec_credentials
            )
        )
        service = await stack.enter_async_context(assemble(settings, cluster, redactor))
        app = server.build(service, service.metrics, web_options(settings, redactor))
        address = await stack.enter_async_context(server.serve(app, settings.listen_host, settings.listen_port))
        service.address = address
        log.info("listening", host=address[0], port=address[1], cluster=cluster.host)

        async def lead() -> None:
            async with service.leading():
                started(service)
                await asyncio.Event().wait()

        if settings.leader_election:
            lease = Lease(cluster, namespace=settings.lease_namespace, name="gitsync", identity=settings.identity)
            cluster.guard = lease.require
            await lease.lead(lead)
        else:
            await lead()


@contextlib.asynccontextmanager
async def assemble(settings: Settings, cluster: Cluster, redactor: Redactor) -> AsyncGenerator[Service]:
    """All parts, made once and handed to each other; closed in the opposite order."""
    # Objects of a cluster come by thousands and hold no cycles: looking for those is a quarter of all work.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    login(settings)  # a file that cannot be read is told now, although it is read again for each commit
    builder = await choose(builders(settings))
    log.info("images are built", builder=builder.name)
    access = Access(insecure=frozenset(settings.insecure_registries), mirrors=settings.registry_mirrors)
    metrics = Metrics()
    async with (
        Reporter(cluster, metrics=metrics, redactor=redactor, instance=settings.identity) as reporter,
        Images(
            builder,
            settings.cache_dir / "images",
            access=access,
            concurrency=settings.concurrent_builds,
            build_timeout=settings.build_timeout,
        ) as images,
        Reader() as reader,
    ):
        policy = GitPolicy(allow_insecure_transports=settings.allow_insecure_git, fetch_timeout=settings.fetch_timeout)
        service = Service(settings, cluster, reporter, metrics)
        tools = Tools(
            applications=service.parsed.get,
            wake=service.wake,
            source=GitSource(settings.cache_dir, policy),
            reader=reader,
            images=images,
            cluster=cluster,
            records=Records(cluster),
            reporter=reporter,
            defaults=Defaults(
                push=settings.registry,
                pull=settings.pull_registry,
                service_account=settings.default_service_account,
                interval=settings.interval,
                login=partial(login, settings),
            ),
        )
        service.pipeline, service.source = Pipeline(tools), tools.source
        yield service


def builders(settings: Settings) -> Sequence[ImageBuilder]:
    """The backends to try, best first."""
    store = settings.cache_dir / "layers"
    every: dict[str, Callable[[], ImageBuilder]] = {
        "buildkit": lambda: Buildctl(settings.buildkit_address),
        "docker": lambda: Docker(),
        "buildah": lambda: Buildah(store / "buildah"),
        "podman": lambda: Buildah(store / "podman", tool="podman"),
    }
    if settings.builder != "auto":
        return [every[settings.builder]()]
    names = list(every) if settings.buildkit_address else [name for name in every if name != "buildkit"]
    return [every[name]() for name in names]


def login(settings: Settings) -> RegistryCredentials:
    if settings.registry_auth_file is None:
        return RegistryCredentials.from_login_files()
    data = read_secret_file(settings.registry_auth_file, "--registry-auth-file")
    return RegistryCredentials.from_dockerconfigjson(data.encode(), source=str(settings.registry_auth_file))


def web_options(settings: Settings, redactor: Redactor) -> server.Options:
    token = read_secret_file(settings.api_token_file, "--api-token-file").strip() if settings.api_token_file else ""
    secrets: tuple[str, ...] = ()
    if settings.webhook_secret_file:
        secrets = parse_secrets(read_secret_file(settings.webhook_secret_file, "--webhook-secret-file"))
    redactor.learn(*secrets, token, keep=True)
    return server.Options(token=token, public=settings.public_status, webhook_secrets=secrets)


def read_secret_file(path: Path, flag: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(SECRET_FILE_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read", doing=f"reading {flag}", reason="InvalidSettings") from error


class Service:
    """The Applications, the tasks that serve them, and what the HTTP surface sees of both."""

    pipeline: Pipeline
    source: GitSource

    def __init__(self, settings: Settings, cluster: Cluster, reporter: Reporter, metrics: Metrics) -> None:
        self.settings = settings
        self.cluster = cluster
        self.metrics = metrics
        self.changes = Changes()
        self.parsed: dict[str, Application] = {}
        self.address: tuple[str, int] = ("", 0)
        self._reporter = reporter
        self._scheduler: Scheduler[Prepared] | None = None
        self._watcher: Watcher | None = None
        self._unread: dict[str, tuple[str, str]] = {}  # Applications that cannot be followed: reason, message
        self._leaving: dict[str, asyncio.Task[None]] = {}  # Applications that went, while something of them is left
        self._looked: dict[str, tuple[float, asyncio.Task[tuple[Json, ...]]]] = {}  # pods, and when they were read
        self._well: set[str] = set()  # synced and healthy, as last said
        reporter.listen(self._said)

    # ------------------------------------------------------------------ following the Applications

    @contextlib.asynccontextmanager
    async def leading(self) -> AsyncGenerator[None]:
        """Follow every Application and work on it, while the context lasts."""
        resource = await applications(self.cluster)
        watcher = Watcher(
            self.cluster,
            resource,
            self._observed,
            namespace=self.settings.namespace or self.settings.application.partition("/")[0],
        )
        async with (
            self.pipeline.follower,
            self._term(),
            Scheduler(self.pipeline) as scheduler,
            asyncio.TaskGroup() as group,
        ):
            self._scheduler, self._watcher = scheduler, watcher
            watching = group.create_task(watcher.run(), name=f"watch {PLURAL}")
            cleaning = group.create_task(self._clean(watcher), name="clean the git cache")
            try:
                yield
            finally:
                self._scheduler = self._watcher = None
                watching.cancel()
                cleaning.cancel()

    async def _clean(self, watcher: Watcher) -> None:
        """What is fetched commit by commit is packed together, and what nobody follows any more goes."""
        while True:
            await asyncio.sleep(CLEANING)
            await watcher.synced.wait()
            keep = {application.spec.source.repository for application in self.parsed.values()}
            try:
                freed = await self.source.collect_garbage(keep, unused=UNUSED)
                log.info("the git cache is clean", freed=freed)
            except (GitsyncError, OSError) as error:
                log.warning("the git cache could not be cleaned; will retry", error=str(error))

    @contextlib.asynccontextmanager
    async def _term(self) -> AsyncGenerator[None]:
        """What this process knows holds while nobody else may write: its next term, if any, begins with nothing."""
        try:
            yield
        finally:
            for key in {*self.parsed, *self._unread}:
                await self.pipeline.forget(key)
                self._reporter.forget(key)
            self.parsed.clear()
            self._unread.clear()
            self._looked.clear()

    def _observed(self, observed: Observed) -> None:
        """One Application changed or went. A malformed one is told about and stops nothing else."""
        namespace, name = observed.key
        key = f"{namespace}/{name}"
        if self.settings.application and key != self.settings.application:
            return
        if observed.entry is None:
            self.parsed.pop(key, None)
            self._unread.pop(key, None)
            self._leave(key)
            return
        obj: Json = {"apiVersion": f"{API_GROUP}/{VERSION}", "kind": KIND} | orjson.loads(observed.raw)
        annotations: Json = obj["metadata"].get("annotations") or {}
        if annotations.get(ANNOTATION_FOLLOWED_BY) and not self.settings.application:
            if self.parsed.pop(key, None):  # two who write one status, and one set of objects, undo each other's work
                self._leave(key)
            return
        try:
            application = Application.parse(obj)
        except Invalid as error:
            self._cannot_follow(key, obj, error)
            return
        if self._unread.pop(key, None):
            self._reporter.observe(application, stalled=None)
        former, self.parsed[key] = self.parsed.get(key), application
        if former is not None and former.uid != application.uid:
            self._leave(key)  # deleted and made anew: only the name is the same
        if former is None or replace(former, status={}) != replace(application, status={}):
            self.wake(key)  # not for a status, which we write: a failure that is told would be tried again at once

    def _cannot_follow(self, key: str, obj: Json, error: Invalid) -> None:
        """The server took a spec that means nothing: say so where people look. What was followed before still is."""
        why = error.reason, str(error)
        if self._unread.get(key) == why:
            return
        self._unread[key] = why
        log.warning("an Application cannot be read", application=key, error=str(error))
        application = self.parsed.get(key)
        if application is None:
            with contextlib.suppress(Invalid):
                application = Application.parse(obj | {"spec": _NO_SPEC})
        if application is not None:
            self._reporter.observe(application, stalled=why)
            self._reporter.event(application, error.reason, str(error), warning=True, action="Read")

    def _leave(self, key: str) -> None:
        """An Application went. One of the same name is not begun before nothing of this one is left: neither what is
        being rolled out, nor what is remembered."""
        former = self._leaving.get(key)
        self._leaving[key] = asyncio.create_task(self._forget(key, former), name=f"forget {key}")

    async def _forget(self, key: str, former: asyncio.Task[None] | None) -> None:
        try:
            if former is not None:
                await asyncio.wait([former])
            if self._scheduler is not None:
                await self._scheduler.forget(key)
            await self.pipeline.forget(key)
            self._reporter.forget(key)
            self._looked.pop(key, None)
        finally:
            if self._leaving.get(key) is asyncio.current_task():
                del self._leaving[key]
                self.wake(key)

    def wake(self, key: str) -> None:
        if self._scheduler is not None and key in self.parsed and key not in self._leaving:
            self._scheduler.wake(key)

    def _said(self, key: str) -> None:
        """What is said about an Application changed: pages show it; once it is well, those that wait look."""
        self.changes.publish(key)
        said = self._reporter.said(key)
        seen = said.observation if said else None
        if said is not None and said.observation.stalled is None and key in self._unread:
            self._reporter.observe(said.application, stalled=self._unread[key])  # a commit of the former spec serves
        if seen is None or not seen.well:
            self._well.discard(key)
            return
        if key in self._well:
            return
        self._well.add(key)
        for other in self.parsed.values():
            if any(f"{each.namespace or other.namespace}/{each.name}" == key for each in other.spec.sync.depends_on):
                self.wake(other.key)

    # ------------------------------------------------------------------ web.Board

    def applications(self) -> Sequence[View]:
        return [view for key in sorted(self.parsed) if (view := self.application(key))]

    def application(self, key: str) -> View | None:
        application = self.parsed.get(key)
        if application is None:
            return None
        return picture(
            application,
            self._reporter.said(key),
            self.pipeline.remembered(key),
            self.pipeline.build_log(key),
            redact=self._reporter.redactor,
        )

    async def pods(self, key: str) -> tuple[PodView, ...]:
        """A page that is reloaded often reads them once a second at most."""
        now = asyncio.get_running_loop().time()
        if key not in self._looked or now - self._looked[key][0] > POD_AGE:
            self._looked[key] = (now, asyncio.create_task(self.pipeline.pods(key), name=f"read pods of {key}"))
        brought, redact = brought_by(self.pipeline.remembered(key)), self._reporter.redactor
        return tuple(pod_view(pod, brought, redact) for pod in await asyncio.shield(self._looked[key][1]))

    def not_ready(self) -> str:
        if self._watcher is None:
            return "not the leader"
        return "" if self._watcher.synced.is_set() else "the Applications are still being listed"

    def trigger(self, trigger: Trigger) -> int:
        woken = 0
        for key, application in self.parsed.items():
            source = application.spec.source
            if trigger.concerns(source.repository, source.ref):
                self.wake(key)
                woken += 1
        return woken

    async def sync(self, key: str, *, retry: bool) -> None:
        now = datetime.now(UTC).isoformat()
        annotations = {ANNOTATION_REQUESTED_AT: now} | ({ANNOTATION_RETRY: now} if retry else {})
        await self.cluster.patch(self._ref(key), {"metadata": {"annotations": annotations}})

    async def suspend(self, key: str) -> None:
        await self.cluster.patch(self._ref(key), {"spec": {"sync": {"suspend": True}}})

    async def resume(self, key: str) -> None:
        await self.cluster.patch(self._ref(key), {"spec": {"sync": {"suspend": False}}})

    def _ref(self, key: str) -> ObjectRef:
        application = self.parsed.get(key)
        if application is None:
            raise Invalid(f"there is no Application {key}", doing="looking it up", reason="NotFound")
        return application.ref


# ---------------------------------------------------------------- one repository, no Application yet


async def run_repository(
    settings: Settings,
    repository: str,
    *,
    name: str = "",
    branch: str = "main",
    path: str = "",
    secret: str = "",
    accept_interruption: bool = False,
    started: Callable[[Service], None] = lambda service: None,
) -> None:
    """Make the Application of one repository, with a default for everything else, and follow it until cancelled.

    A gitsync of the cluster leaves it alone, also afterwards: its registry and its rights may be others.
    """
    url, local = repository, "://" not in repository and Path(repository).is_dir()  # noqa: ASYNC240 - once, at start
    if local:
        url = Path(repository).resolve().as_uri()  # noqa: ASYNC240
        if not any((Path(repository) / each).exists() for each in (".git", "HEAD")):
            hint = "name the directory that holds its .git, or make one: git init -b main, git add, git commit"
            raise Invalid(f"{repository} is no git repository", doing="looking for the repository", hint=hint)
    elif ":" not in repository:
        hint = "name a directory, or the URL of a repository: https://…, ssh://… or user@host:path"
        raise Invalid(f"there is no directory {repository}", doing="looking for the repository", hint=hint)
    named = name or re.sub(r"[^a-z0-9-]+", "-", url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git").lower())
    namespace = settings.namespace or "default"
    spec: dict[str, Any] = {"source": {"repository": url, "ref": {"branch": branch}}}
    if path:
        spec["source"]["path"] = path
    if secret:
        spec["source"]["secretRef"] = {"name": secret}
    if accept_interruption:
        spec["sync"] = {"acceptInterruption": True}
    obj = {
        "apiVersion": f"{API_GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": named.strip("-"),
            "namespace": namespace,
            "annotations": {ANNOTATION_FOLLOWED_BY: "gitsync-run"},
        },
        "spec": spec,
    }
    application = Application.parse(obj)
    async with await Cluster.connect(
        str(settings.kubeconfig or ""), settings.context, allow_plugins=settings.allow_exec_credentials
    ) as cluster:
        await ensure_application(cluster, obj)
    changes = {"application": application.key} | ({"allow_insecure_git": True} if local else {})
    await serve(settings.model_copy(update=changes), started=started)


async def preview(settings: Settings, ref: ObjectRef) -> Plan:
    """What the newest commit of an Application would change, asked from this machine."""
    redactor = Redactor()
    configure(redactor=redactor, format=settings.log_format, level=settings.log_level)
    async with await Cluster.connect(str(settings.kubeconfig or ""), settings.context, allow_plugins=True) as cluster:
        await applications(cluster, deadline=PATIENCE)
        obj = await cluster.get(ref)
        if obj is None:
            raise Invalid(
                "there is none of that name", doing="reading", ref=ref, hint="'gitsync get -A' lists them all"
            )
        async with assemble(settings, cluster, redactor) as service:
            return await service.pipeline.preview(Application.parse(obj))


async def ensure_application(cluster: Cluster, obj: dict[str, Any]) -> None:
    """Teach the cluster the kind if it does not know it, and write the Application."""
    definition = crd()
    if await cluster.get(ObjectRef.of(definition), deadline=PATIENCE) is None:
        await cluster.apply(definition)
    async with asyncio.timeout(60):
        while True:
            try:
                await cluster.resource(API_GROUP, VERSION, KIND)
                break
            except Invalid:  # not served yet
                await asyncio.sleep(0.2)
    await cluster.apply(obj)
