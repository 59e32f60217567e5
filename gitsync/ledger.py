"""Reads and writes the Record, and what is to be remembered of a commit that was refused.

The one place where ``Memory.record`` changes: after every save it is what is stored, after a failed one it is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from gitsync.application import Application
from gitsync.attempt import Decision, Memory, handled, merged, remembered
from gitsync.cluster.answers import Rejected
from gitsync.cluster.client import Cluster
from gitsync.cluster.record import GoodState, Quarantined, Record, Records
from gitsync.errors import BuildFailed, GitsyncError
from gitsync.images import Images, RegistryCredentials
from gitsync.model import (
    Applied,
    Health,
    HealthStatus,
    InventoryItem,
    Revision,
    Stage,
    SyncStatus,
)
from gitsync.render import Reader
from gitsync.report.reporter import Reporter, Run
from gitsync.report.status import timestamp
from gitsync.source import GitSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What an Application that is silent about it gets: the process's settings.

    ``login`` reads the logins as they are now: a mounted Secret comes late, and a token in it is replaced.
    """

    push: str = ""
    pull: str = ""
    service_account: str = ""
    interval: float = 60.0  # seconds between polls
    login: Callable[[], RegistryCredentials] = RegistryCredentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The adapters that the steps share, made once by the composition root."""

    applications: Callable[[str], Application | None]
    wake: Callable[[str], None]
    source: GitSource
    reader: Reader
    images: Images
    cluster: Cluster
    records: Records
    reporter: Reporter
    defaults: Defaults


class Ledger:
    """One for the process; the memories are the pipeline's."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def current(self, application: Application, memory: Memory) -> Record:
        """The Record as it is stored: from memory if this process knows, else read."""
        if memory.record is None:
            async with memory.writing:
                memory.record = memory.record or await self._load(application, memory)
        return memory.record

    async def save(self, application: Application, memory: Memory, change: Callable[[Record], Record]) -> Record:
        """Store what ``change`` makes of the Record as it is now. Both lanes write it, one after the other."""
        async with memory.writing:
            before = memory.record or await self._load(application, memory)
            after = change(before)
            if after == before:
                memory.record = before
                return before
            memory.record = None  # until the answer: what is stored is not known
            memory.record = await self._tools.records.save(after, owner_uid=application.uid)
            return memory.record

    async def _load(self, application: Application, memory: Memory) -> Record:
        record = await self._tools.records.load(application.ref)
        return record if record.seed else replace(record, seed=memory.seed)

    async def remember(
        self,
        application: Application,
        memory: Memory,
        run: Run,
        error: GitsyncError,
        *,
        decision: Decision | None,
        digest: str,
    ) -> None:
        """The same input is not tried again: in memory, and if a build or the server refused it, in the Record.

        ``decision`` and ``digest`` are of what was refused; the other lane may be considering something else. Without
        a decision no commit was: a host that denied the repository decides about none.
        """
        memory.decided = decision or memory.decided
        good = memory.record.last_good if memory.record else None
        newer = decision is not None and (good is None or good.revision.sha != decision.sha)
        answered = handled(application) if memory.applying is None else {}  # a rollout that was asked for goes on
        changes: dict[str, Any] = answered | ({"sync": SyncStatus.OUT_OF_SYNC} if newer else {})
        if isinstance(error, BuildFailed | Rejected) and digest and decision is not None:
            entry = Quarantined(
                digest=digest,
                generation=application.generation,
                revision=Revision(
                    repository=application.spec.source.repository,
                    ref=application.spec.source.ref.value,
                    sha=decision.sha,
                ),
                stage=run.at,
                message=str(error),
                at=datetime.now(UTC),
            )
            try:
                await self.save(
                    application, memory, lambda record: replace(record, quarantine=remembered(record.quarantine, entry))
                )
            except GitsyncError as trouble:
                run.log.warning("the quarantine could not be recorded", error=str(trouble))
        self._tools.reporter.observe(application, **self.known(memory), **self.quarantine_seen(memory), **changes)

    def known(self, memory: Memory) -> dict[str, Any]:
        """What the Record says about what is live, for a status that was lost or never written."""
        good = memory.record.last_good if memory.record else None
        if good is None:
            return {}
        return {"revision": str(good.revision), "last_good": str(good.revision), "images": good.images}

    def taken_up(self, application: Application, good: GoodState) -> dict[str, Any]:
        """What to say after a restart that found everything delivered, until the watches say something else."""
        return {
            "suspended": False,
            "sync": SyncStatus.SYNCED,
            "health": Health(status=HealthStatus.HEALTHY),
            "images": good.images,
            "findings": good.findings,
            "counts": {"objects": len(good.objects), "outOfSync": 0, "unhealthy": 0, "held": 0},
            **handled(application),
        }

    def quarantine_seen(self, memory: Memory) -> dict[str, Any]:
        entries = memory.record.quarantine if memory.record else ()
        return {
            "quarantined": [
                {
                    "revision": str(entry.revision),
                    "digest": entry.digest,
                    "stage": entry.stage.value,
                    "reason": _reason(entry),
                    "message": entry.message,
                    "at": timestamp(entry.at),
                }
                for entry in entries
            ]
        }

    async def take_stock(
        self, application: Application, memory: Memory, landed: Sequence[Applied], number: int
    ) -> None:
        """Record what was created or adopted, before anything else happens."""
        found = [InventoryItem(ref=each.ref, uid=each.uid) for each in landed]

        def stocked(record: Record) -> Record:
            inventory = merged(record.inventory, found)
            attempt = replace(record.attempt, wave=number) if record.attempt else None
            return record if inventory == record.inventory else replace(record, inventory=inventory, attempt=attempt)

        await self.save(application, memory, stocked)


def _reason(entry: Quarantined) -> str:
    if entry.left:
        return "RolledBack"
    return "RolloutFailed" if entry.stage is Stage.ROLLOUT else "Refused"
