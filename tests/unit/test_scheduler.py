"""The scheduler against a scripted pipeline: only *when* is tested here, with events instead of time."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from gitsync.errors import Transient, Waiting
from gitsync.scheduler import Handover, Outcome, Scheduler, Target, _Driver


class Script:
    """A pipeline whose every step waits until the test lets it go on."""

    def __init__(self) -> None:
        self.head_sha = "a"
        self.deployed: list[str] = []
        self.cancelled: list[str] = []
        self.handed_over: list[str] = []
        self.prepared: list[str] = []
        self.building = asyncio.Event()  # set when a preparation has begun
        self.applying = asyncio.Event()
        self.may_prepare = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.failures: deque[Exception] = deque()
        self.poll = 3600.0
        self.may_prepare.set()
        self.may_finish.set()

    async def head(self, key: str) -> str:
        return self.head_sha

    def interval(self, key: str) -> float:
        return self.poll

    def urgent(self, prepared: str) -> bool:
        return prepared.startswith("a person's")

    async def prepare(self, key: str, target: Target) -> str | None:
        sha = target.sha = self.head_sha
        self.building.set()
        if self.failures:
            raise self.failures.popleft()
        try:
            await self.may_prepare.wait()
        except asyncio.CancelledError:
            self.cancelled.append(sha)
            raise
        if self.deployed[-1:] == [sha] or sha in self.prepared:
            return None
        self.prepared.append(sha)
        return sha

    async def apply(self, key: str, prepared: str, handover: Handover) -> Outcome:
        self.applying.set()
        newer = asyncio.create_task(handover.wait())
        done = asyncio.create_task(self.may_finish.wait())
        await asyncio.wait([newer, done], return_when=asyncio.FIRST_COMPLETED)
        newer.cancel()
        done.cancel()
        if handover.requested:
            self.handed_over.append(prepared)
            return Outcome()
        self.deployed.append(prepared)
        return Outcome(delivered=True)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_trigger_deploys_and_a_thousand_triggers_are_one() -> None:
    work = Script()
    async with Scheduler(work) as scheduler:
        for _ in range(1000):
            scheduler.wake("shop/web")
        await until(lambda: work.deployed == ["a"])
        await asyncio.sleep(0.02)
    assert work.deployed == ["a"]
    assert work.prepared == ["a"]


async def test_preparing_an_older_commit_is_cancelled_at_once() -> None:
    work = Script()
    work.may_prepare.clear()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await work.building.wait()
        work.head_sha = "b"
        scheduler.wake("shop/web")
        await until(lambda: work.cancelled == ["a"])
        work.may_prepare.set()
        await until(lambda: work.deployed == ["b"])
    assert work.deployed == ["b"]


async def test_who_is_woken_while_a_preparation_fails_does_not_wait_for_its_next_try() -> None:
    class Failing(Script):
        async def prepare(self, key: str, target: Target) -> str | None:
            sha = await super().prepare(key, target)
            if sha == "a":
                raise Waiting("bad luck", retry_after=3600)
            return sha

    work = Failing()
    work.may_prepare.clear()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await work.building.wait()
        work.head_sha = ""  # nobody can say what is newer now
        scheduler.wake("shop/web")
        await asyncio.sleep(0.02)
        work.head_sha = "b"
        work.may_prepare.set()
        await until(lambda: work.deployed == ["b"])


async def test_a_poll_finds_a_newer_commit_in_mid_preparation_too() -> None:
    work = Script()
    work.poll = 0.01
    work.may_prepare.clear()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await work.building.wait()
        await asyncio.sleep(0.05)
        assert work.cancelled == []
        work.head_sha = "b"
        await until(lambda: work.cancelled == ["a"])
        work.may_prepare.set()
        await until(lambda: work.deployed == ["b"])


async def test_a_trigger_without_a_newer_commit_cancels_nothing() -> None:
    work = Script()
    work.may_prepare.clear()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await work.building.wait()
        scheduler.wake("shop/web")
        await asyncio.sleep(0.02)
        work.may_prepare.set()
        await until(lambda: work.deployed == ["a"])
    assert work.cancelled == []


async def test_a_rollout_hands_over_only_when_the_newer_plan_is_ready() -> None:
    work = Script()
    work.may_finish.clear()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await work.applying.wait()
        work.may_prepare.clear()
        work.head_sha = "b"
        scheduler.wake("shop/web")
        await asyncio.sleep(0.02)
        assert work.handed_over == []
        work.may_prepare.set()
        await until(lambda: work.handed_over == ["a"])
        work.may_finish.set()
        await until(lambda: work.deployed == ["b"])


async def test_commits_faster_than_deployments_do_not_starve_them() -> None:
    work = Script()
    work.may_prepare.clear()
    async with Scheduler(work, patience=0.05) as scheduler:
        scheduler.wake("shop/web")
        await work.building.wait()
        for number in range(30):
            work.head_sha = f"c{number}"
            scheduler.wake("shop/web")
            await asyncio.sleep(0.01)
        cancelled = len(work.cancelled)
        assert 0 < cancelled < 30
        work.may_prepare.set()
        await until(lambda: len(work.deployed) == 2)
    assert work.deployed[-1] == "c29"


async def test_a_failed_preparation_is_tried_again_unaided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitsync.scheduler.FIRST_RETRY", 0.01)
    work = Script()
    work.failures.extend([Transient("git is down"), ValueError("a bug")])
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await until(lambda: work.deployed == ["a"])


async def test_a_failed_apply_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitsync.scheduler.FIRST_RETRY", 3600)
    work = Script()
    applies = 0

    async def apply(key: str, prepared: str, handover: Handover) -> Outcome:
        nonlocal applies
        applies += 1
        work.prepared.clear()
        raise Transient("the API server is away")

    work.apply = apply
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await until(lambda: applies == 1)
        await asyncio.sleep(0.05)
        assert applies == 1
        scheduler.wake("shop/web")
        await until(lambda: applies == 2)


async def test_what_a_person_asked_for_waits_for_no_rollout_however_long_nothing_was_delivered() -> None:
    work = Script()
    work.may_finish.clear()
    async with Scheduler(work, patience=0.0) as scheduler:
        for number, sha in enumerate(("a", "b", "a person's", "c")):
            work.head_sha = sha
            scheduler.wake("shop/web")
            await until(lambda number=number: len(work.prepared) > number)
            await asyncio.sleep(0.02)
        assert work.handed_over == ["a", "b"]
        work.may_finish.set()
        await until(lambda: work.deployed == ["a person's", "c"])


async def test_rollouts_that_hand_over_do_not_starve_delivery() -> None:
    work = Script()
    work.may_finish.clear()
    async with Scheduler(work, patience=0.0) as scheduler:
        scheduler.wake("shop/web")
        await until(work.applying.is_set)
        work.applying.clear()
        work.head_sha = "b"
        scheduler.wake("shop/web")
        await until(work.applying.is_set)  # a has handed over to it
        work.head_sha = "c"
        scheduler.wake("shop/web")
        await until(lambda: work.prepared[-1] == "c")
        await asyncio.sleep(0.02)
        work.may_finish.set()
        await until(lambda: work.deployed == ["b", "c"])
    assert work.handed_over == ["a"]


@pytest.mark.parametrize("end", ["nothing to deliver", "restored"])
async def test_an_older_commit_is_cancelled_again_once_what_overtook_another_has_ended(end: str) -> None:
    work = Script()
    work.may_prepare.clear()
    inner = work.prepare

    async def prepare(key: str, target: Target) -> str | None:
        found = await inner(key, target)
        return None if found == "b" and end == "nothing to deliver" else found

    async def apply(key: str, prepared: str, handover: Handover) -> Outcome:
        work.deployed.append(prepared)
        return Outcome(delivered=prepared != "b")

    work.prepare, work.apply = prepare, apply
    async with Scheduler(work, patience=0.05) as scheduler:
        scheduler.wake("shop/web")
        await work.building.wait()
        work.head_sha = "b"
        scheduler.wake("shop/web")
        await until(lambda: work.cancelled == ["a"])
        work.may_prepare.set()
        await until(lambda: "b" in work.prepared)
        await asyncio.sleep(0.1)  # nobody waits for anything: that is no starvation
        work.may_prepare.clear()
        work.building.clear()
        work.head_sha = "c"
        scheduler.wake("shop/web")
        await work.building.wait()
        work.head_sha = "d"
        scheduler.wake("shop/web")
        await until(lambda: work.cancelled == ["a", "c"])


async def test_what_waits_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitsync.scheduler.FIRST_RETRY", 3600)
    work = Script()
    work.failures.append(Waiting("not yet", retry_after=0.01))
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await until(lambda: work.deployed == ["a"])


async def test_the_pauses_after_failures_double_up_to_five_minutes() -> None:
    scheduler, driver = Scheduler(Script(), jitter=lambda: 0.5), _Driver[str](key="shop/web")
    pauses = [scheduler._retry(driver, Transient("git is down")) for _ in range(10)]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


async def test_who_is_woken_while_nothing_is_found_looks_once_more() -> None:
    work = Script()

    async def unknown(key: str) -> str:
        return ""

    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await until(lambda: work.deployed == ["a"])
        await asyncio.sleep(0.02)
        work.head, work.building = unknown, asyncio.Event()
        work.may_prepare.clear()
        scheduler.wake("shop/web")
        await until(work.building.is_set)
        work.head_sha = "b"  # after it was read
        scheduler.wake("shop/web")
        await asyncio.sleep(0.02)
        work.may_prepare.set()
        await until(lambda: work.deployed == ["a", "b"])


async def test_after_a_rollout_it_looks_again_at_once_or_when_that_says_so() -> None:
    work = Script()
    outcomes = deque([Outcome(retry_after=0.0), Outcome(delivered=True)])
    applies = 0

    async def apply(key: str, prepared: str, handover: Handover) -> Outcome:
        nonlocal applies
        applies += 1
        work.prepared.clear()
        work.building.clear()
        outcome = outcomes.popleft()
        if outcome.delivered:
            work.deployed.append(prepared)
        return outcome

    work.apply = apply
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await until(lambda: applies == 2)
        await until(work.building.is_set)


async def test_one_application_never_waits_for_another() -> None:
    slow, work = "shop/slow", Script()
    inner = work.prepare

    async def prepare(key: str, target: Target) -> str | None:
        if key == slow:
            await asyncio.Event().wait()
        return await inner(key, target)

    work.prepare = prepare
    async with Scheduler(work) as scheduler:
        scheduler.wake(slow)
        scheduler.wake("shop/web")
        await until(lambda: work.deployed == ["a"])


async def test_stopping_cancels_preparation_and_asks_an_apply_to_hand_over() -> None:
    work = Script()
    work.may_finish.clear()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await work.applying.wait()
        work.may_prepare.clear()
        work.building.clear()
        work.head_sha = "b"
        scheduler.wake("shop/web")
        await work.building.wait()
    assert work.cancelled == ["b"]
    assert work.handed_over == ["a"]


async def test_a_forgotten_application_is_left_alone() -> None:
    work = Script()
    async with Scheduler(work) as scheduler:
        scheduler.wake("shop/web")
        await until(lambda: work.deployed == ["a"])
        await scheduler.forget("shop/web")
        assert scheduler.keys == frozenset()
