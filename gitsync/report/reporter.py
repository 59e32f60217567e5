"""Tells people what happens: status of the Application, Events, metrics and the log, from one set of calls.

Owns what was last said about each Application, so that nothing is said twice and an unchanged status is never written.
Never decides anything: a report that cannot be delivered is tried again by the next one and delays no deployment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from gitsync.application import Application
from gitsync.errors import GitsyncError, Transient
from gitsync.model import Health, HealthStatus, Json, ObjectRef, Stage
from gitsync.report import status
from gitsync.report.events import EventLog, Notice
from gitsync.report.metrics import Metrics
from gitsync.report.redact import Redactor

log = structlog.get_logger(__name__)

_SOON = 0.05  # seconds until a status is written: it can wait for what a commit waits for, and first words rarely last
_QUIET = 0.2  # seconds between two writes of one status: stages of an attempt follow each other faster
_FLUSH = 10.0  # seconds that a stopping process waits for its last words


class Sink(Protocol):
    """Where reports go: the cluster."""

    async def patch_status(self, ref: ObjectRef, status: Json) -> bool: ...
    async def create(self, obj: Json) -> Json: ...
    async def patch(self, ref: ObjectRef, patch: Json) -> Json: ...


@dataclass(slots=True)
class Said:
    """What was last said about one Application."""

    application: Application
    observation: status.Observation
    written: Json = field(default_factory=dict[str, Any])
    settled: status.Attempt | None = None  # the last attempt that got somewhere, shown again after bad luck has passed
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writer: asyncio.Task[None] | None = None


class Reporter:
    """One for the process. ``async with`` it: leaving writes what is still to be written."""

    def __init__(
        self,
        sink: Sink,
        *,
        metrics: Metrics,
        redactor: Redactor,
        instance: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.metrics = metrics
        self.redactor = redactor
        self._sink = sink
        self._clock = clock
        self._events = EventLog(instance=instance, redactor=redactor)
        self._said: dict[str, Said] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._listeners: set[Callable[[str], None]] = set()

    async def __aenter__(self) -> Reporter:
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH):
                await asyncio.gather(*(self._flush(said) for said in self._said.values()), *self._sending)
        for said in self._said.values():
            if said.writer is not None:
                said.writer.cancel()

    # ------------------------------------------------------------------ what is known

    def said(self, key: str) -> Said | None:
        return self._said.get(key)

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener(key)`` after every change of what is said; returns what ends that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def forget(self, key: str) -> None:
        said = self._said.pop(key, None)
        if said is not None:
            if said.writer is not None:
                said.writer.cancel()
            self.metrics.forget(said.application.namespace, said.application.name)
            self._announce(key)

    # ------------------------------------------------------------------ saying

    def observe(self, application: Application, **changes: Any) -> status.Observation:
        """Change fields of the Observation. Synchronous: the status is written soon after, if it is another one."""
        said = self._said.get(application.key)
        if said is None:
            unknown = Health(status=HealthStatus.UNKNOWN)
            said = Said(
                application=application,
                observation=status.Observation(generation=application.generation, health=unknown),
                written=dict(application.status),
            )
            self._said[application.key] = said
        said.application = application
        before = said.observation
        said.observation = replace(before, **({"generation": application.generation} | changes))
        attempt = said.observation.attempt
        if attempt is not None and not _passes(attempt):
            said.settled = attempt
        if said.observation != before or not said.written:
            observed = said.observation
            self.metrics.application(application.namespace, application.name, observed.sync, observed.health.status)
            said.changed.set()
            if said.writer is None or said.writer.done():
                said.writer = asyncio.create_task(self._write(said), name=f"status {application.key}")
            self._announce(application.key)
        return said.observation

    def recovered(self, application: Application) -> None:
        """The source answers and has nothing new: show the last attempt that got somewhere again.

        What went wrong before that, or by bad luck, is over: a branch that is back, a registry that answers.
        """
        said = self._said.get(application.key)
        if said is not None and said.observation.attempt is not None:
            attempt = said.observation.attempt
            if _passes(attempt):
                self.observe(application, attempt=said.settled)

    def event(
        self,
        application: Application,
        reason: str,
        message: str,
        *,
        warning: bool = False,
        action: str = "Sync",
        about: ObjectRef | None = None,
        uid: str = "",
    ) -> None:
        """An Event about the Application, or about an object of it (then the Application is named as related)."""
        notice = Notice(
            about=about or application.ref,
            uid=uid if about else application.uid,
            warning=warning,
            reason=reason,
            action=action,
            message=message,
            related=application.ref if about else None,
        )
        emission = self._events.offer(notice, now=self._clock())
        if emission is None:
            return
        task = asyncio.create_task(self._send(emission.verb, emission.namespace, emission.name, emission.object))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, verb: str, namespace: str, name: str, event: Json) -> None:
        ref = ObjectRef(group="events.k8s.io", version="v1", kind="Event", namespace=namespace, name=name)
        try:
            if verb == "patch":
                try:
                    await self._sink.patch(ref, {"series": event["series"]})
                    return
                except GitsyncError:
                    event = event | {"series": None}
            await self._sink.create(event)
        except GitsyncError as error:
            log.warning("an event could not be recorded", error=str(error))

    # ------------------------------------------------------------------ delivering

    async def _write(self, said: Said) -> None:
        """Write until what was written is what was last said. One at a time per Application; the newest wins."""
        delay = _QUIET
        await asyncio.sleep(_SOON)
        while said.changed.is_set():
            said.changed.clear()
            try:
                await self._flush(said)
                delay = _QUIET
            except Exception as error:  # one that nobody foresaw must not silence an Application for ever
                unforeseen = None if isinstance(error, GitsyncError) else error
                log.warning("the status could not be written; will retry", error=str(error), exc_info=unforeseen)
                said.changed.set()
                delay = min(delay * 2, 60.0)
            await asyncio.sleep(delay)

    async def _flush(self, said: Said) -> None:
        built = status.build(said.written, said.observation, now=self._clock(), redactor=self.redactor)
        if built != said.written and await self._sink.patch_status(said.application.ref, built):
            said.written = built

    def _announce(self, key: str) -> None:
        for listener in tuple(self._listeners):
            listener(key)


class Run:
    """One pass through the pipeline as it is told: which stage it is in, since when, and how it ended."""

    def __init__(self, reporter: Reporter, application: Application) -> None:
        self._reporter = reporter
        self.application = application
        self.started = datetime.now(UTC)
        self.revision = ""
        self.lowest_ready: float | None = None
        self._stage = Stage.SOURCE
        self.log = structlog.get_logger("gitsync.pipeline").bind(application=application.key)

    @property
    def at(self) -> Stage:
        """The stage it is in, or failed in."""
        return self._stage

    def found(self, revision: str) -> None:
        """The revision this run works on; before that, stages are only told when they fail."""
        self.revision = revision
        self.log = self.log.bind(revision=revision)

    @contextlib.asynccontextmanager
    async def stage(self, stage: Stage, message: str = "") -> AsyncGenerator[None]:
        """Tell that a stage runs; an error that leaves it is told with the stage's name, once, and goes on.

        Of one that nobody foresaw only its type is told: what it says may hold anything.
        """
        self._stage = stage
        if self.revision:
            self.tell(message)
            self.log.info("stage begins", stage=stage.value, **({"doing": message} if message else {}))
        try:
            yield
        except GitsyncError as error:
            self.failed(error)
            raise
        except Exception as error:
            message = f"an error that nobody foresaw, {type(error).__name__}"
            self.failed(Transient(message, reason="Unexpected", hint="it is tried again; the log of gitsync has more"))
            raise

    def tell(self, message: str) -> None:
        """What the stage is doing now."""
        attempt = status.Attempt(
            revision=self.revision, stage=self._stage, at=self.started, running=True, message=message,
            lowest_ready=self.lowest_ready,
        )  # fmt: skip
        self._reporter.observe(self.application, attempt=attempt)

    def failed(self, error: GitsyncError, **changes: Any) -> None:
        self._end(error=error, changes=changes)
        self.log.warning("stage failed", stage=self._stage.value, reason=error.reason, error=str(error))
        self._reporter.event(
            self.application,
            error.reason,
            f"{self._stage.value} of {self.revision or 'the newest revision'}: {error}",
            warning=True,
            action=self._stage.value.capitalize(),
        )

    def succeeded(self, message: str, **changes: Any) -> None:
        self._end(message=message, changes=changes)
        self.log.info("deployed", doing=message)

    def _end(self, *, message: str = "", error: GitsyncError | None = None, changes: dict[str, Any]) -> None:
        seconds = (datetime.now(UTC) - self.started).total_seconds()
        attempt = status.Attempt(
            revision=self.revision, stage=self._stage, at=self.started, message=message, seconds=seconds,
            lowest_ready=self.lowest_ready, error=error,
        )  # fmt: skip
        self._reporter.observe(self.application, attempt=attempt, **changes)


def _passes(attempt: status.Attempt) -> bool:
    """Whether it is over once the source has answered: it was under way, had bad luck, or never saw a commit."""
    return attempt.running or isinstance(attempt.error, Transient) or not attempt.revision
