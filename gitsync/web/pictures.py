"""Pictures for people: what is known of an Application and its pods, as views. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gitsync.application import Application
from gitsync.cluster.record import Record
from gitsync.model import HealthStatus, Json, Stage
from gitsync.report.reporter import Said
from gitsync.rollout.health import health
from gitsync.rollout.target import part
from gitsync.web.board import Commit, Deployment, PodView, Step, StepState, View

Redact = Callable[[str], str]

_WAY: tuple[tuple[str, frozenset[Stage]], ...] = (
    ("commit", frozenset({Stage.SOURCE, Stage.RENDER})),
    ("images", frozenset({Stage.IMAGES})),
    ("plan", frozenset({Stage.PLAN, Stage.RECORD})),
    ("rollout", frozenset({Stage.ROLLOUT, Stage.PRUNE, Stage.RESTORE})),
    ("pods", frozenset({Stage.REPORT})),
)


def picture(
    application: Application, said: Said | None, record: Record | None, build_log: str = "", *, redact: Redact
) -> View:
    """One Application as the page shows it. ``redact`` takes secrets out of what others said; ``status`` and
    ``build_log`` are without them. Pure."""
    status: Mapping[str, Any] = said.written if said else application.status
    history = tuple(
        Deployment(
            revision=str(entry.revision),
            at=entry.finished_at,
            outcome=entry.outcome.lower(),
            subject=entry.revision.subject,
            author=entry.revision.author,
            seconds=(entry.finished_at - entry.started_at).total_seconds(),
            message=redact(entry.message),
        )
        for entry in (record.history if record else ())
    )
    good = record.last_good if record else None
    commit = None
    if good is not None:
        revision = good.revision
        commit = Commit(
            revision=str(revision), sha=revision.sha, subject=revision.subject, author=revision.author,
            at=revision.committed_at,
        )  # fmt: skip
    return View(
        namespace=application.namespace,
        name=application.name,
        repository=application.spec.source.repository,
        ref=application.spec.source.ref.value,
        suspended=application.spec.sync.suspend,
        status=status,
        commit=commit,
        steps=steps(said, redact),
        history=history,
        build_log=build_log,
    )


_POD_STATES = {
    HealthStatus.HEALTHY: StepState.DONE,
    HealthStatus.PROGRESSING: StepState.RUNNING,
    HealthStatus.DEGRADED: StepState.FAILED,
}


def brought_by(record: Record | None) -> dict[str, str]:
    """Digest of an image → the revision that brought it."""
    if record is None:
        return {}
    underway = [(record.attempt.revision, record.attempt.images)] if record.attempt else []
    newest_first = [*underway, *((entry.revision, entry.images) for entry in record.history)]
    return {image.digest: str(revision) for revision, images in newest_first for image in images}


def pod_view(pod: Json, brought: Mapping[str, str], redact: Redact) -> PodView:
    """A live pod as the page shows it. ``brought``: digest of an image → revision that brought it."""
    found = health(pod)
    containers: list[Json] = pod["spec"]["containers"]
    statuses: list[Json] = part(pod, "status").get("containerStatuses") or []
    digests = [str(each.get("image", "")).rpartition("@")[2] for each in containers]
    digest = next((each for each in digests if each in brought), "")
    leaving = "deletionTimestamp" in pod["metadata"]
    return PodView(
        name=str(pod["metadata"]["name"]),
        state=StepState.WAITING if leaving else _POD_STATES.get(found.status, StepState.WAITING),
        message="Shutting down" if leaving else redact(found.message) or found.status.value,
        revision=brought.get(digest, ""),
        digest=digest,
        restarts=sum(int(each.get("restartCount") or 0) for each in statuses),
    )


def steps(said: Said | None, redact: Redact) -> tuple[Step, ...]:
    """How far the latest attempt got, as the five steps from commit to pods."""
    attempt = said.observation.attempt if said else None
    if said is None or attempt is None:
        return tuple(Step(name=name, state=StepState.WAITING) for name, _ in _WAY)
    at = next(number for number, (_, stages) in enumerate(_WAY) if attempt.stage in stages)
    if not attempt.running and attempt.error is None:
        at = len(_WAY)
    rows: list[Step] = []
    for number, (name, _) in enumerate(_WAY):
        state = StepState.DONE if number < at else StepState.WAITING
        summary, details = "", ()
        if number == at:
            state = StepState.RUNNING if attempt.running else StepState.FAILED
            summary = redact(str(attempt.error) if attempt.error else attempt.message)
        elif name == "images":
            details = tuple(image.reference for image in said.observation.images)
        elif name == "pods" and state is StepState.DONE:
            summary = redact(said.observation.health.message) or said.observation.health.status.value
        rows.append(Step(name=name, state=state, summary=summary, details=details))
    return tuple(rows)
