"""What was said last is what is written, whatever goes wrong on the way."""

import asyncio

from gitsync.application import Application
from gitsync.errors import Transient
from gitsync.model import Json, ObjectRef, SyncStatus
from gitsync.report.metrics import Metrics
from gitsync.report.redact import Redactor
from gitsync.report.reporter import Reporter

APPLICATION = Application.parse(
    {
        "apiVersion": "gitsync.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": "web", "namespace": "shop", "uid": "1", "generation": 1},
        "spec": {"source": {"repository": "https://git.example/shop.git"}},
    }
)


class Sink:
    """A cluster that fails in the given ways, one after the other, before it takes a status."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles, self.statuses, self.taken = list(troubles), list[Json](), asyncio.Event()

    async def patch_status(self, ref: ObjectRef, status: Json) -> bool:
        if self.troubles:
            raise self.troubles.pop(0)
        self.statuses.append(status)
        self.taken.set()
        return True

    async def create(self, obj: Json) -> Json:
        return obj

    async def patch(self, ref: ObjectRef, patch: Json) -> Json:
        return patch


async def test_no_error_silences_an_application() -> None:
    sink = Sink(Transient("the server is away"), KeyError("unforeseen"))
    async with Reporter(sink, metrics=Metrics(), redactor=Redactor(), instance="test") as reporter:
        reporter.observe(APPLICATION, sync=SyncStatus.SYNCED)
        async with asyncio.timeout(10):
            await sink.taken.wait()
    assert [status["sync"] for status in sink.statuses] == ["Synced"]


async def test_what_is_said_in_quick_succession_is_written_once() -> None:
    sink = Sink()
    async with Reporter(sink, metrics=Metrics(), redactor=Redactor(), instance="test") as reporter:
        reporter.observe(APPLICATION, sync=SyncStatus.OUT_OF_SYNC)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not sink.statuses  # a commit goes first
        reporter.observe(APPLICATION, sync=SyncStatus.SYNCED)
        async with asyncio.timeout(10):
            await sink.taken.wait()
    assert [status["sync"] for status in sink.statuses] == ["Synced"]
