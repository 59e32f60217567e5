"""No drift is missed, invented or told twice, whatever the order in which a reply and the watch's news arrive."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import orjson
import pytest

from gitsync.cluster.cache import digest_of
from gitsync.cluster.client import Cluster
from gitsync.model import LABEL_APPLICATION, Health, Json, ObjectRef
from gitsync.plan.diff import owned_digest
from gitsync.rollout import follow as module
from gitsync.rollout.follow import Followed, Follower

APP = "shop/web"


def config(namespace: str, **data: str) -> Json:
    metadata = {"name": "web", "namespace": namespace, "labels": {LABEL_APPLICATION: "web"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


class Case:
    """A follower of one ConfigMap that was sent with ``key: ours``."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.sent = config(namespace, key="ours")
        self.ref = ObjectRef.of(self.sent)
        self.woken = 0
        self.changed = asyncio.Event()

        def woken(_: str) -> None:
            self.woken += 1
            self.changed.set()

        def lives(_: str, __: Health) -> None: ...

        self.follower = Follower(cluster, owned_digest, on_drift=woken, on_health=lives)

    async def apply(self) -> Json:
        return (await self.cluster.apply(self.sent)).object

    async def follow(self, reply: Json) -> None:
        version = str(reply["metadata"]["resourceVersion"])
        fields = owned_digest(self.sent, reply)
        await self.follower.follow(APP, [Followed(ref=self.ref, sent=self.sent, fields=fields, version=version)])

    async def edit(self, value: str = "theirs", **more: str) -> str:
        """By somebody else; the version that it became."""
        live = await self.cluster.patch(self.ref, {"data": {"key": value, **more}})
        return str(live["metadata"]["resourceVersion"])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    async def heard(self, version: str) -> None:
        (watched,) = self.follower._watched.values()
        await self.until(lambda: watched.watcher.entries[self.ref.namespace, "web"].version == version)

    @property
    def drift(self) -> object:
        return self.follower.drifted(APP).get(self.ref.key)


@asynccontextmanager
async def following(cluster: Cluster, namespace: str) -> AsyncGenerator[Case]:
    it = Case(cluster, namespace)
    async with it.follower:
        reply = await it.apply()
        await it.follow(reply)
        (watched,) = it.follower._watched.values()
        await watched.watcher.synced.wait()
        yield it


def test_a_version_of_long_ago_may_have_been_overtaken() -> None:
    sent = config("shop")

    def heard(*versions: int) -> bool:
        marks = tuple((str(version), b"same") for version in versions)
        return module._Expected(APP, ObjectRef.of(sent), sent, "", heard=marks).overtaken("1")

    assert not heard(1, 2, 3), "only its status was written"
    assert not heard(0), "it is still to come"
    assert heard(*range(2, 2 + module._MOST_HEARD))


async def test_it_wakes_once_and_again_when_it_is_right_without_our_doing(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        await it.heard(await it.edit(other="no concern of ours", value="ours"))
        assert (it.woken, it.drift) == (0, None)
        for value in ("one", "two", "three"):
            await it.heard(await it.edit(value))
        assert it.woken == 1
        assert it.drift is not None
        await it.heard(await it.edit("ours"))
        assert (it.woken, it.drift) == (2, None)


async def test_a_reply_settles_it_before_and_after_the_watch_has_told_it(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        for patiently in (True, False):
            await it.heard(await it.edit())
            it.follower.attend(APP)
            reply = await it.apply()
            if patiently:
                await it.heard(str(reply["metadata"]["resourceVersion"]))
            it.follower.accept(it.ref, reply)
            assert it.drift is None
            await it.heard(str(reply["metadata"]["resourceVersion"]))
            assert it.drift is None


@pytest.mark.parametrize("strikes", ["edit", "delete"])
async def test_who_strikes_between_the_write_and_its_reply_is_not_forgotten(
    cluster: Cluster, namespace: str, strikes: str
) -> None:
    async with following(cluster, namespace) as it:
        await it.heard(await it.edit())
        it.follower.attend(APP)
        reply = await it.apply()
        if strikes == "edit":
            await it.heard(await it.edit("again"))
        else:
            await it.cluster.delete(it.ref, str(reply["metadata"]["uid"]))
            (watched,) = it.follower._watched.values()
            await it.until(lambda: not watched.watcher.entries)
        woken = it.woken
        it.follower.accept(it.ref, reply)
        assert it.drift is not None
        assert it.woken == woken + 1


async def test_who_edits_during_a_rollout_is_found_when_it_has_ended(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        it.follower.attend(APP)
        it.sent = config(namespace, key="ours", new="of this commit")
        reply = await it.apply()
        await it.heard(await it.edit("ours", new="theirs"))  # what the former commit sent is as it was
        await it.follow(reply)
        assert it.drift is not None
        assert it.woken == 1


async def test_who_edits_what_is_new_before_it_is_followed_is_found(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        new = config(namespace, key="ours")
        new["metadata"]["name"] = "new"
        ref, reply = ObjectRef.of(new), (await cluster.apply(new)).object
        edited = await cluster.patch(ref, {"data": {"key": "theirs"}})
        (watched,) = it.follower._watched.values()
        entries, version = watched.watcher.entries, edited["metadata"]["resourceVersion"]
        await it.until(lambda: (namespace, "new") in entries and entries[namespace, "new"].version == version)
        followed = Followed(
            ref=ref, sent=new, fields=owned_digest(new, reply), version=reply["metadata"]["resourceVersion"]
        )
        await it.follower.follow(APP, [followed])
        assert ref.key in it.follower.drifted(APP)


async def test_a_removed_label_does_not_hide_what_follows(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        await it.cluster.patch(it.ref, {"metadata": {"labels": {LABEL_APPLICATION: None}}})
        await it.until(lambda: it.drift is not None)
        assert not it.follower.equal(it.ref, await it.cluster.get(it.ref) or {})


@pytest.mark.parametrize("first", [True, False])
async def test_what_came_and_went_while_the_watch_was_blind_is_missed(
    cluster: Cluster, namespace: str, first: bool
) -> None:
    it = Case(cluster, namespace)
    async with it.follower:
        if not first:
            await it.follow(await it.apply())
            (watched,) = it.follower._watched.values()
            await watched.watcher.synced.wait()
            watched.watcher.entries.clear()  # as if it had been made while nothing was seen
        reply = await it.apply()
        await cluster.delete(it.ref, str(reply["metadata"]["uid"]))
        if first:
            await it.follow(reply)
        else:
            it.follower._listed(next(iter(it.follower._watched)))
        await it.until(lambda: it.drift is not None)


async def test_an_error_that_nobody_foresaw_leaves_nothing_unwatched(
    cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANEW", 0.01)
    async with following(cluster, namespace) as it:
        unforeseen = [KeyError("unforeseen")]

        def trips_once(sent: Json, live: Json) -> str:
            if unforeseen:
                raise unforeseen.pop()
            return owned_digest(sent, live)

        it.follower._fingerprint = trips_once
        await it.edit()
        await it.until(lambda: it.drift is not None)
        assert not unforeseen


async def test_an_object_that_has_moved_to_another_application_stays_watched(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        fields = owned_digest(it.sent, await it.cluster.get(it.ref) or {})
        await it.follower.follow("shop/other", [Followed(ref=it.ref, sent=it.sent, fields=fields)])
        await it.follower.forget(APP)
        await it.edit()
        await it.until(lambda: it.ref.key in it.follower.drifted("shop/other"))


async def test_what_a_webhook_makes_of_a_repair_is_how_it_should_be(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        await it.heard(await it.edit())
        it.follower.attend(APP)
        await it.apply()
        answer = await it.cluster.patch(it.ref, {"data": {"key": "as a webhook spells it"}})
        it.follower.accept(it.ref, answer)
        assert it.follower.equal(it.ref, answer)
        await it.heard(str(answer["metadata"]["resourceVersion"]))
        assert it.drift is None or getattr(it.drift, "unread", False)


async def test_a_deletion_is_drift(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        live = await cluster.get(it.ref) or {}
        await cluster.delete(it.ref, str(live["metadata"]["uid"]))
        await it.until(lambda: it.drift is not None)
        assert it.woken == 1


async def test_an_object_that_is_wholly_as_it_was_is_not_looked_into(cluster: Cluster, namespace: str) -> None:
    it = Case(cluster, namespace)
    reply = await it.apply()
    looked: list[str] = []

    def fingerprint(sent: Json, live: Json) -> str:
        looked.append(live["metadata"]["resourceVersion"])
        return owned_digest(sent, live)

    def ignore(*_: object) -> None: ...

    followed = Followed(
        ref=it.ref, sent=it.sent, fields=owned_digest(it.sent, reply), whole=digest_of(orjson.dumps(reply))
    )
    async with Follower(cluster, fingerprint, on_drift=ignore, on_health=ignore) as it.follower:
        await it.follower.follow(APP, [followed])
        (watched,) = it.follower._watched.values()
        await watched.watcher.synced.wait()
        assert (looked, it.drift) == ([], None)
        version = await it.edit()
        await it.heard(version)
        assert looked == [version]
        assert it.drift is not None


async def test_it_says_whether_it_would_hear_of_everything(cluster: Cluster, namespace: str) -> None:
    async with following(cluster, namespace) as it:
        (watched,) = it.follower._watched.values()
        await it.until(lambda: watched.watcher.stale_since is None)
        assert it.follower.sees(APP)
        watched.watcher.stale_since = 1.0  # blind
        assert not it.follower.sees(APP)
        watched.watcher.stale_since = None
        unwatchable = ObjectRef(version="v1", kind="ComponentStatus", name="etcd")
        await it.follower.follow(APP, [Followed(ref=unwatchable, sent={}), Followed(ref=it.ref, sent=it.sent)])
        assert not it.follower.sees(APP)
        await it.follower.follow(APP, [Followed(ref=it.ref, sent=it.sent)])
        assert it.follower.sees(APP)
