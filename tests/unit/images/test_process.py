"""A builder's command leaves nothing behind, whatever ends it."""

import asyncio
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from gitsync.images import process, reaper
from tests.unit.images.support import processes


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def test_the_code_and_the_output_are_the_commands_own() -> None:
    lines: list[str] = []
    finished = await process.run(["sh", "-c", "echo one; printf 'a\\033[1mb\\rc' >&2; exit 3"], lines.append)
    assert (finished.code, finished.lines) == (3, ("one", "ab", "c"))
    assert lines == ["one", "ab", "c"]
    assert (await process.run(["sh", "-c", "kill -9 $$"], print)).code == -9
    assert (await process.run(["sh", "-c", "kill -15 $$"], print)).code == -15


async def test_output_is_bounded() -> None:
    finished = await process.run(["sh", "-c", "seq 5000; head -c 3000000 /dev/zero | tr '\\0' x"], lambda line: None)
    assert len(finished.lines) <= 400
    assert max(map(len, finished.lines)) <= 4096


async def test_the_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    finished = await process.run(["sh", "-c", "env; umask"], print, environ={"MINE": "1"})
    assert "MINE=1" in finished.lines
    assert not any("A_SECRET" in line for line in finished.lines)
    assert finished.lines[-1] == "0022"


async def test_a_command_that_ignores_termination_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = uuid.uuid4().hex
    short = Path(reaper.__file__).read_text().replace("GRACE = 5.0", "GRACE = 0.3")
    monkeypatch.setattr(reaper, "__file__", str(tmp_path / "reaper.py"))
    Path(reaper.__file__).write_text(short)
    script = (
        f"trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done; : {word}' & while :; do sleep 1; done"
    )
    task = asyncio.create_task(process.run(["sh", "-c", script], print))
    await until(lambda: len(processes(word)) >= 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes(word) == []


async def test_who_is_cancelled_while_it_starts_leaves_nothing_either() -> None:
    word = uuid.uuid4().hex
    task = asyncio.create_task(process.run(["sh", "-c", f"sleep 300; : {word}"], print))
    while not processes(word):
        await asyncio.sleep(0)  # one step of the loop: the process exists, and asyncio does not know it yet
    ends = time.monotonic() + 20
    while len(processes(word)) < 2 and time.monotonic() < ends:
        time.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert processes(word) == []


async def test_a_build_ends_when_gitsync_is_killed() -> None:
    word = uuid.uuid4().hex
    program = (
        "import asyncio\nfrom gitsync.images import process\n"
        f"asyncio.run(process.run(['sh', '-c', 'setsid sleep 300 & sleep 301; : {word}'], print))"
    )
    gitsync = subprocess.Popen([sys.executable, "-c", program])
    try:
        await until(lambda: any(pid != gitsync.pid for pid in processes(f"; : {word}\0")))
        gitsync.send_signal(signal.SIGKILL)
        gitsync.wait()
        await until(lambda: processes(word) == [])
    finally:
        gitsync.kill()
        gitsync.wait()
