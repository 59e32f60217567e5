"""The demo's parts by themselves; all of it together is in tests/sandbox."""

import asyncio
import zipfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from hatchling.builders.wheel import WheelBuilder

from gitsync.demo import base
from gitsync.demo.demo import sample, story, verdict
from gitsync.demo.probe import Probe
from gitsync.errors import Invalid
from gitsync.web.board import Step, StepState, View

ROOT = Path(__file__).parents[3]
D, R, F, W = StepState.DONE, StepState.RUNNING, StepState.FAILED, StepState.WAITING
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("states", "names", "now"),
    [
        ([W, W, W, W, W], [], ""),
        ([R, W, W, W, W], ["commit"], "commit: so far"),
        ([D, D, R, W, W], ["commit", "images", "plan"], "plan: so far"),
        ([D, F, W, W, W], ["commit", "images", "failed:"], "images: so far"),
        ([D, D, D, D, D], ["commit", "images", "plan", "rollout", "pods"], "pods: so far"),
    ],
)
def test_the_story_names_what_was_begun(states: Sequence[StepState], names: list[str], now: str) -> None:
    steps = [
        Step(name=name, state=state, summary="so far")
        for name, state in zip(("commit", "images", "plan", "rollout", "pods"), states, strict=True)
    ]
    lines, happening = story(steps)
    assert [line.split()[0] for line in lines] == names
    assert happening == now


def view(ready: str, stalled: str, revision: str, attempted: str) -> View:
    conditions = [{"type": "Ready", "status": ready}, {"type": "Stalled", "status": stalled, "message": "why"}]
    status = {
        "conditions": conditions,
        "revision": f"main@sha1:{revision}",
        "lastAttempt": {"revision": f"main@sha1:{attempted}"},
    }
    return View(namespace="default", name="hello", repository="", ref="main", status=status)


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (view("True", "False", SHA, SHA), ""),
        (view("True", "False", "f" * 40, SHA), None),  # the former one still serves
        (view("Unknown", "False", "f" * 40, SHA), None),
        (view("False", "False", "f" * 40, SHA), None),  # bad luck is tried again
        (view("False", "True", "f" * 40, SHA), "why"),
        (view("False", "True", "f" * 40, "e" * 40), None),  # another commit's fault
        (View(namespace="default", name="hello", repository="", ref="main"), None),
    ],
)
def test_a_commit_serves_or_never_will_or_that_is_open(seen: View, wanted: str | None) -> None:
    assert verdict(seen, SHA) == wanted


@asynccontextmanager
async def server(*answers: web.Response | None) -> AsyncGenerator[str]:
    """Gives these answers in turn, the last for ever; ``None`` hangs up."""
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        given = left.pop(0) if len(left) > 1 else left[0]
        if given is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        return web.Response(status=given.status, text=given.text)

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_the_probe_counts_every_answer_and_every_failure() -> None:
    answers = [web.Response(text="one\n"), None, web.Response(status=503), web.Response(text="two\n")]
    async with server(*answers) as address:
        probe = Probe(address)
        async with asyncio.timeout(30), probe.asking():
            await probe.until(lambda said: said == "two")
    assert probe.answered["one"] == 1
    assert probe.answered["two"] >= 1
    assert probe.failures == {"RemoteDisconnected": 1, "HTTP 503": 1}


async def test_the_probe_counts_what_nobody_answers() -> None:
    async with server(web.Response(text="here")) as address:
        pass
    probe = Probe(address)
    async with asyncio.timeout(30), probe.asking():
        while not probe.failures:
            await asyncio.sleep(0.01)
    assert not probe.answered
    assert set(probe.failures) == {"ConnectionRefusedError"}


def test_without_programs_to_make_the_base_image_of_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Invalid, match="node and busybox and ldd are missing; on Debian: apt-get install nodejs"):
        base.assemble(tmp_path)


def test_an_assembled_base_image_is_the_same_every_time(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert base.assemble(tmp_path).digest == base.assemble(tmp_path / "again").digest


def test_the_wheel_brings_the_sample_along(tmp_path: Path) -> None:
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        there = {
            name.removeprefix("gitsync/demo/sample/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("gitsync/demo/sample/")
        }
    here = {path.relative_to(sample()).as_posix(): path.read_bytes() for path in sample().rglob("*") if path.is_file()}
    assert here
    assert there == here
