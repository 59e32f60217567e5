"""One leader at a time, whatever happens to clocks, processes and the network."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gitsync.cluster.client import Cluster
from gitsync.cluster.lease import Lease, Timing
from gitsync.errors import Transient
from gitsync.model import Json

FAST = Timing(duration=3, renew_deadline=2.4, retry=0.1)


class Clock:
    """A monotonic clock that a test may push, as if the process had been stopped."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.skipped


class Candidate:
    def __init__(self, cluster: Cluster, namespace: str, name: str, timing: Timing = FAST) -> None:
        self.clock = Clock()
        self.lease = Lease(cluster, namespace=namespace, name="gitsync", identity=name, timing=timing, clock=self.clock)
        self.leading = asyncio.Event()
        self.terms = 0

    async def work(self) -> None:
        self.leading.set()
        self.terms += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.clear()


@asynccontextmanager
async def running(candidate: Candidate) -> AsyncGenerator[None]:
    task = asyncio.create_task(candidate.lease.lead(candidate.work))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 10)


async def test_a_lease_that_somebody_made_without_a_spec_can_be_had(cluster: Cluster, namespace: str) -> None:
    metadata = {"namespace": namespace, "name": "gitsync"}
    await cluster.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata})
    candidate = Candidate(cluster, namespace, "one")
    async with running(candidate):
        await soon(candidate.leading)
        assert candidate.lease.holder == "one"


async def test_one_leads_and_hands_over_at_once_when_it_stops(cluster: Cluster, namespace: str) -> None:
    slow = Timing(duration=60, renew_deadline=40, retry=0.1)
    one, two = Candidate(cluster, namespace, "one", slow), Candidate(cluster, namespace, "two", slow)
    async with running(two):
        await soon(two.leading)
        async with running(one):
            await asyncio.sleep(0.5)
            assert not one.leading.is_set()
            assert one.lease.holder == "two"
            with pytest.raises(Transient, match="two is"):
                one.lease.require()
            two.lease.require()
        assert two.leading.is_set()
    assert not two.lease.held
    async with running(one):
        await asyncio.wait_for(one.leading.wait(), 3)  # released: nobody waits 60 s
        live = await cluster.get(one.lease.ref)
        assert live is not None
        assert live["spec"]["holderIdentity"] == "one"
        assert live["spec"]["leaseTransitions"] >= 2


async def test_a_dead_leader_is_replaced_after_its_duration_and_not_before(cluster: Cluster, namespace: str) -> None:
    dead, heir = Candidate(cluster, namespace, "dead"), Candidate(cluster, namespace, "heir")
    assert await dead.lease._try()  # and never renews
    began = asyncio.get_running_loop().time()
    async with running(heir):
        await soon(heir.leading)
        assert asyncio.get_running_loop().time() - began >= 2.9
        assert not dead.lease.held  # its own deadline passed before


async def test_a_paused_leader_may_not_write_when_it_wakes(cluster: Cluster, namespace: str) -> None:
    sleeper = Candidate(cluster, namespace, "sleeper")
    async with running(sleeper):
        await soon(sleeper.leading)
        cluster.guard = sleeper.lease.require
        body: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": namespace}}
        await cluster.apply(body)
        sleeper.clock.skipped = 60.0
        with pytest.raises(Transient, match="not the leader"):
            await cluster.apply(body)
        async with asyncio.timeout(5):
            while not sleeper.lease.held:
                await asyncio.sleep(0.05)
        await cluster.apply(body)  # it has renewed since
        cluster.guard = lambda: None
        assert sleeper.terms == 1  # nobody else led meanwhile, so it goes on


@pytest.mark.parametrize("heir_holds_on", [True, False])
async def test_a_paused_leader_whose_place_was_taken_stops_its_work(
    cluster: Cluster, namespace: str, heir_holds_on: bool
) -> None:
    sleeper, heir = Candidate(cluster, namespace, "sleeper"), Candidate(cluster, namespace, "heir")
    async with running(sleeper):
        await soon(sleeper.leading)
        live = await cluster.get(sleeper.lease.ref)
        assert live is not None
        spec = live["spec"]
        taken = {
            "holderIdentity": "heir" if heir_holds_on else "",
            "leaseTransitions": spec["leaseTransitions"] + 1,
            "leaseDurationSeconds": 1,
        }
        sleeper.clock.skipped = 60.0
        await cluster.patch(heir.lease.ref, {"spec": taken})
        async with asyncio.timeout(10):
            while sleeper.terms < 2:
                await asyncio.sleep(0.05)


async def test_wall_clocks_do_not_matter(cluster: Cluster, namespace: str) -> None:
    patient = Timing(duration=30, renew_deadline=20, retry=0.1)
    one, two = (Candidate(cluster, namespace, name, patient) for name in ("one", "two"))
    async with running(one):
        await soon(one.leading)
        async with running(two):
            for wrong in ("2001-01-01T00:00:00.000000Z", "2101-01-01T00:00:00.000000Z"):
                for _ in range(4):
                    await cluster.patch(one.lease.ref, {"spec": {"renewTime": wrong}})
                    assert not (one.lease.held and two.lease.held)
                    await asyncio.sleep(0.1)
            assert one.terms == 1  # it read what had happened to its lease, and went on
            assert two.terms == 0


async def test_a_leader_that_is_cut_off_stops_its_work(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lonely = Candidate(cluster, namespace, "lonely")
    async with running(lonely):
        await soon(lonely.leading)

        async def cut(*_: object, **__: object) -> Json:
            raise Transient("cut off")

        with monkeypatch.context() as patch:
            patch.setattr(cluster, "get", cut)
            patch.setattr(cluster, "update", cut)
            async with asyncio.timeout(10):
                while lonely.leading.is_set():
                    await asyncio.sleep(0.05)
            assert not lonely.lease.held
        await soon(lonely.leading)


async def test_two_started_at_once_make_one_leader(cluster: Cluster, namespace: str) -> None:
    many = [Candidate(cluster, namespace, f"c{number}") for number in range(5)]
    async with contextlib.AsyncExitStack() as stack:
        for each in many:
            await stack.enter_async_context(running(each))
        for _ in range(100):
            await asyncio.sleep(0.01)
            assert sum(each.lease.held for each in many) <= 1
        async with asyncio.timeout(10):
            while not any(each.leading.is_set() for each in many):
                await asyncio.sleep(0.05)


async def test_a_write_expects_what_was_read(cluster: Cluster, namespace: str) -> None:
    one = Candidate(cluster, namespace, "one")
    assert await one.lease._try()
    await cluster.patch(one.lease.ref, {"spec": {"holderIdentity": "two"}})
    assert not await one.lease._try(renew=True)
    live = await cluster.get(one.lease.ref)
    assert live is not None
    assert live["spec"]["holderIdentity"] == "two"


async def test_it_lasts_as_long_as_its_holder_said(cluster: Cluster, namespace: str) -> None:
    holder = Candidate(cluster, namespace, "holder", Timing(duration=30, renew_deadline=20, retry=0.1))
    heir = Candidate(cluster, namespace, "heir")
    assert await holder.lease._try()
    for later, expired in ((0.0, False), (FAST.duration + 1, False), (31.0, True)):
        heir.clock.skipped = later
        assert await heir.lease._try() is expired


async def test_it_is_not_given_up_before_the_work_has_ended(cluster: Cluster, namespace: str) -> None:
    one = Candidate(cluster, namespace, "one")
    holders: list[str] = []

    async def work() -> None:
        one.leading.set()
        try:
            await asyncio.Event().wait()
        finally:  # a last write, perhaps
            live = await cluster.get(one.lease.ref)
            holders.append((live or {})["spec"]["holderIdentity"])

    one.work = work
    async with running(one):
        await soon(one.leading)
    assert holders == ["one"]


async def test_it_counts_from_when_it_was_asked_for(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Candidate(cluster, namespace, "one")
    create = cluster.create

    async def slowly(*arguments: Any, **options: Any) -> Json:
        answer = await create(*arguments, **options)
        one.clock.skipped += FAST.renew_deadline - 0.5  # others count from when they saw it, which is earlier
        return answer

    monkeypatch.setattr(cluster, "create", slowly)
    assert await one.lease._try()
    one.clock.skipped += 1.0
    assert not one.lease.held


async def test_errors_of_the_work_pass_and_release(cluster: Cluster, namespace: str) -> None:
    failing = Candidate(cluster, namespace, "failing")

    async def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        await failing.lease.lead(fail)
    live = await cluster.get(failing.lease.ref)
    assert live is not None
    assert not live["spec"].get("holderIdentity")


def test_timings_that_could_split_the_brain_are_refused() -> None:
    with pytest.raises(ValueError, match="renew_deadline"):
        Timing(duration=10, renew_deadline=10, retry=2)
