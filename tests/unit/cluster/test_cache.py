"""A watcher loses no change, invents none, and calls nothing gone that it has not looked for by name."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gitsync.cluster import cache as module
from gitsync.cluster.cache import Observed, Watcher, digest_of
from gitsync.cluster.client import Cluster
from gitsync.errors import Transient
from gitsync.model import Json, ObjectRef
from tests.unit.cluster.faults import (
    Request,
    Server,
    answering,
    bookmark,
    config_map,
    event,
    failure,
    faulty,
    listing,
)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    def shortly(failures: int) -> float:
        return 0.01 * min(failures, 5)

    monkeypatch.setattr(module, "_pause", shortly)


class Heard:
    """What a watcher said, in words: ``a=5`` changed, ``-a`` gone, ``~a`` left the watch."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.news = asyncio.Event()

    def __call__(self, seen: Observed) -> None:
        name = seen.key[1]
        if seen.entry is None:
            self.words.append(f"-{name}")
        else:
            self.words.append(f"{name}={seen.entry.version}" if seen.selected else f"~{name}")
        self.news.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), 0.02)


@asynccontextmanager
async def watching(cluster: Cluster, **options: Any) -> AsyncGenerator[tuple[Watcher, Heard]]:
    heard = Heard()
    resource = await cluster.resource("", "v1", "ConfigMap")
    watcher = Watcher(cluster, resource, heard, **options)
    task = asyncio.create_task(watcher.run())
    try:
        yield watcher, heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def server() -> AsyncGenerator[Server]:
    async with faulty() as (made, _):
        yield made


class Api:
    """Scripts lists, watches and reads separately; ``versions`` are those that watches resumed from."""

    def __init__(self, server: Server) -> None:
        self.lists: list[Json] = []
        self.watches: list[Callable[[Request], Any]] = []
        self.reads: list[Callable[[Request], Any]] = []
        self.versions: list[str] = []
        self.listed = 0
        server.handle = self.handle

    async def handle(self, request: Request) -> None:
        if "watch" in request.query:
            self.versions.append(request.query["resourceVersion"])
            await (self.watches.pop(0) if self.watches else hold)(request)
        elif request.path.endswith("/configmaps"):
            self.listed += 1
            found = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            await request.answer(found, found.get("code", 200))
        else:
            await (self.reads.pop(0) if len(self.reads) > 1 else self.reads[0])(request)


async def hold(request: Request) -> None:
    await request.begin()
    await asyncio.sleep(30)


def stream(*events: Json, then: str = "end") -> Callable[[Request], Any]:
    async def answer(request: Request) -> None:
        await request.begin()
        if events:
            await request.events(*events)
        if then == "hold":
            await asyncio.sleep(30)
        await (request.end() if then == "end" else asyncio.sleep(0))
        if then == "reset":
            request.reset()

    return answer


GONE = answering(failure(404, "NotFound", name="x", kind="configmaps"), 404)
A1, A2, A3, B1 = config_map("a", 1), config_map("a", 2), config_map("a", 3), config_map("b", 1)


async def test_a_list_and_the_events_after_it(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [stream(event("ADDED", config_map("b", 6)), event("MODIFIED", config_map("a", 7)), then="hold")]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: len(heard.words) == 3)
        assert heard.words == ["a=1", "b=6", "a=7"]
        assert api.versions == ["5"]
        assert watcher.synced.is_set()
        assert watcher.stale_since is None
        assert {key[1]: entry.version for key, entry in watcher.entries.items()} == {"a": "7", "b": "6"}


async def test_it_resumes_where_it_was_cut_off(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [
        stream(event("MODIFIED", config_map("a", 7)), then="reset"),
        answering(b"<html>busy</html>", 503, "text/html"),
        answering(failure(429, "TooManyRequests"), 429),
        stream(bookmark(9), then="reset"),
        stream(event("MODIFIED", config_map("a", 11)), then="hold"),
    ]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: heard.words[-1:] == ["a=11"])
        assert heard.words == ["a=1", "a=7", "a=11"]
        assert api.versions == ["5", "7", "7", "7", "9"]
        assert api.listed == 1
        assert watcher.last_error is None


async def test_each_whole_list_is_told_and_no_part_of_one(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1), failure(500, "InternalError"), listing(9)]
    api.watches = [stream({"type": "ERROR", "object": failure(410, "Expired")})]
    api.reads = [GONE]
    told: list[int] = []
    async with watching(server.cluster, on_listed=lambda: told.append(api.listed)) as (_, heard):
        await heard.until(lambda: "-a" in heard.words)
    assert told == [1, 3]


async def test_every_request_is_made_as_the_account_it_watches_for(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [stream(event("DELETED", A1), then="hold")]
    api.reads = [GONE]
    async with watching(server.cluster, impersonate="system:serviceaccount:shop:deployer") as (_, heard):
        await heard.until(lambda: "-a" in heard.words)
    asked = [(request.method, "watch" in request.query, "a" in request.path[-2:]) for request in server.requests]
    assert asked == [("GET", False, False), ("GET", True, False), ("GET", False, True)]
    assert {request.headers["impersonate-user"] for request in server.requests} == {
        "system:serviceaccount:shop:deployer"
    }


@pytest.mark.parametrize(
    "expiry",
    [answering(failure(410, "Expired"), 410), stream({"type": "ERROR", "object": failure(410, "Expired")})],
)
async def test_an_expired_version_lists_again_and_tells_the_difference(
    server: Server, expiry: Callable[[Request], Any]
) -> None:
    api = Api(server)
    api.lists = [listing(5, A1, B1), listing(20, A3, config_map("c", 19))]
    api.watches = [expiry]
    api.reads = [GONE]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: "-b" in heard.words)
        assert heard.words == ["a=1", "b=1", "a=3", "c=19", "-b"]
        assert api.versions[:2] == ["5", "20"]
        assert sorted(key[1] for key in watcher.entries) == ["a", "c"]


async def test_empty_answers_do_not_make_a_tight_loop(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real pauses
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [stream()] * 5000
    async with watching(server.cluster) as (watcher, _):
        await watcher.synced.wait()
        await asyncio.sleep(1)
        assert len(api.versions) < 10
        assert isinstance(watcher.last_error, Transient)
        assert watcher.stale_since is not None


async def test_silence_is_staleness(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [hold, stream(bookmark(6), then="hold")]
    async with watching(server.cluster, window=0.3, grace=0.2) as (watcher, heard):
        await heard.until(lambda: len(api.versions) == 2 and watcher.stale_since is None)
        assert api.listed == 1  # nothing was lost: no need to list again


async def test_a_failed_list_makes_nothing_gone(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1, B1), failure(403, "Forbidden")]
    api.watches = [answering(failure(410, "Expired"), 410)]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: api.listed >= 4)
        assert heard.words == ["a=1", "b=1"]
        assert len(watcher.entries) == 2
        assert watcher.stale_since is not None
        assert "Forbidden" in str(watcher.last_error and watcher.last_error.reason)


async def test_a_second_page_that_fails_makes_nothing_gone(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1, B1), listing(9, token="next"), failure(400, "BadRequest")]
    api.watches = [answering(failure(410, "Expired"), 410)]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: api.listed >= 4)
        assert heard.words == ["a=1", "b=1"]
        assert len(watcher.entries) == 2


async def test_a_page_of_a_list_that_was_started_again_counts_for_nothing(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1, B1), listing(9, A1, token="next"), failure(410, "Expired"), listing(12, B1)]
    api.watches = [answering(failure(410, "Expired"), 410)]
    api.reads = [GONE]
    async with watching(server.cluster) as (_, heard):
        await heard.until(lambda: len(heard.words) == 3)
        assert heard.words == ["a=1", "b=1", "-a"]


async def test_what_left_the_watch_but_lives_is_not_gone(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [stream(event("DELETED", A2), then="hold")]
    api.reads = [answering(A2)]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: len(heard.words) == 2)
        assert heard.words == ["a=1", "~a"]
        assert ("shop", "a") in watcher.entries


async def test_an_error_while_looking_concludes_nothing(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [stream(event("DELETED", A2), then="hold")]
    api.reads = [
        answering(failure(403, "Forbidden"), 403),
        answering(b"<html>not found</html>", 404, "text/html"),
        GONE,
    ]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: len(heard.words) == 2)
        assert heard.words == ["a=1", "-a"]
        assert not api.reads[1:]
        assert watcher.entries == {}


async def test_a_successor_of_the_same_name_does_not_keep_the_old_one_alive(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    api.watches = [stream(event("DELETED", A2), then="hold")]
    api.reads = [answering(config_map("a", 3, uid="somebody-else"))]
    async with watching(server.cluster) as (_, heard):
        await heard.until(lambda: len(heard.words) == 2)
        assert heard.words == ["a=1", "-a"]


async def test_the_end_of_a_predecessor_of_the_same_name_is_not_its_own(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    ended = event("DELETED", config_map("a", 2, uid="predecessor"))
    api.watches = [stream(ended, event("ADDED", config_map("b", 6)), then="hold")]
    api.reads = [GONE]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: "b=6" in heard.words)
        assert watcher._departed == {}
        assert heard.words == ["a=1", "b=6"]


async def test_what_comes_back_while_it_is_looked_for_is_not_gone(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    looking, back = asyncio.Event(), asyncio.Event()

    async def leave_and_return(request: Request) -> None:
        await request.begin()
        await request.events(event("DELETED", A2))
        await looking.wait()
        await request.events(event("ADDED", config_map("a", 8)))
        await asyncio.sleep(30)

    async def slow(request: Request) -> None:
        looking.set()
        await back.wait()
        await GONE(request)

    api.watches, api.reads = [leave_and_return], [slow]
    async with watching(server.cluster) as (watcher, heard):
        await heard.until(lambda: heard.words[-1:] == ["a=8"])
        back.set()
        await asyncio.sleep(0.1)
        assert heard.words == ["a=1", "a=8"]
        assert watcher.entries["shop", "a"].version == "8"


async def test_a_broken_consumer_is_not_survived(server: Server) -> None:
    api = Api(server)
    api.lists = [listing(5, A1)]
    cluster = server.cluster

    def broken(_: Observed) -> None:
        raise RuntimeError("a bug")

    watcher = Watcher(cluster, await cluster.resource("", "v1", "ConfigMap"), broken)
    with pytest.raises(ExceptionGroup) as caught:
        await watcher.run()
    assert caught.value.subgroup(RuntimeError)


# ---------------------------------------------------------------- digests


def raw(obj: Json) -> bytes:
    return orjson.dumps(obj)


def test_a_digest_ignores_what_the_server_counts() -> None:
    plain = {"metadata": {"name": "a", "labels": {"x": "y"}, "resourceVersion": "1"}, "spec": {"n": 1}}
    listed = digest_of(raw(plain))
    counted: Json = {"name": "a", "labels": {"x": "y"}, "resourceVersion": "9", "generation": 4, "managedFields": [{}]}
    assert listed == digest_of(raw({"apiVersion": "v1", "kind": "X", **plain, "metadata": counted, "status": {"n": 2}}))


@pytest.mark.parametrize(
    "changed",
    [
        {"metadata": {"name": "a", "labels": {"x": "z"}}, "spec": {"n": 1}},
        {"metadata": {"name": "a"}, "spec": {"n": 1}},
        {"metadata": {"name": "a", "labels": {"x": "y"}, "annotations": {}}, "spec": {"n": 1}},
        {"metadata": {"name": "a", "labels": {"x": "y"}, "deletionTimestamp": "t"}, "spec": {"n": 1}},
        {"metadata": {"name": "a", "labels": {"x": "y"}, "finalizers": ["f"]}, "spec": {"n": 1}},
        {"metadata": {"name": "a", "labels": {"x": "y"}, "ownerReferences": [{"uid": "o"}]}, "spec": {"n": 1}},
        {"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"n": 2}},
        {"metadata": {"name": "a", "labels": {"x": "y"}}, "data": {"n": 1}},
    ],
)
def test_a_digest_sees_what_people_write(changed: Json) -> None:
    assert digest_of(raw(changed)) != digest_of(
        raw({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"n": 1}})
    )


async def test_an_entry_is_small(server: Server) -> None:
    api = Api(server)
    count = 2000
    api.lists = [listing(5, *(config_map(f"application-web-{n}", n + 1, uid=f"{n:036}") for n in range(count)))]
    async with watching(server.cluster) as (watcher, _):
        await watcher.synced.wait()
        size = sys.getsizeof(watcher.entries)
        for key, entry in watcher.entries.items():
            size += sum(map(sys.getsizeof, (key, *key, entry, entry.uid, entry.version, entry.digest)))
        assert len(watcher.entries) == count
        assert size / count < 700  # bytes


# ---------------------------------------------------------------- a real API server


async def test_a_removed_label_and_a_deletion_are_told_apart(cluster: Cluster, namespace: str) -> None:
    def body(name: str, labels: Json) -> Json:
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    made = [await cluster.apply(body(name, {"watched": "yes"})) for name in ("a", "b")]
    async with watching(cluster, namespace=namespace, label_selector="watched=yes") as (watcher, heard):
        await asyncio.wait_for(watcher.synced.wait(), 10)
        assert len(watcher.entries) == 2
        await cluster.apply(body("a", {}))
        await cluster.delete(made[1].ref, made[1].uid)
        await heard.until(lambda: len(heard.words) == 4)
        assert set(heard.words[2:]) == {"~a", "-b"}
        digest = watcher.entries[namespace, "a"].digest
        await cluster.apply(body("a", {"watched": "yes"}))
        await heard.until(lambda: len(heard.words) == 5)
        assert watcher.entries[namespace, "a"].digest != digest
        live = await cluster.get(ObjectRef(version="v1", kind="ConfigMap", namespace=namespace, name="a"))
        assert live is not None
        assert watcher.entries[namespace, "a"].version == live["metadata"]["resourceVersion"]
