"""One run after the other, called by hand: what is decided is also what is done, and nothing is lost on the way.

git, the API server and its controllers are real; a process that dies forgets what it knew; nothing runs pods.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gitsync.application import FINALIZER, Application
from gitsync.attempt import Handover, Outcome, Prepared, Target
from gitsync.cluster.answers import Forbidden, Rejected
from gitsync.cluster.client import Cluster
from gitsync.cluster.record import Record, Records
from gitsync.errors import GitsyncError, Invalid, Transient, Waiting
from gitsync.images import Images, process
from gitsync.images.buildah import Buildah
from gitsync.ledger import Defaults, Tools
from gitsync.model import Action, Applied, Health, HealthStatus, Json, ObjectRef, Stage, SyncStatus
from gitsync.pipeline import Pipeline
from gitsync.plan.waves import prune_order
from gitsync.render import Reader
from gitsync.report.metrics import Metrics
from gitsync.report.redact import Redactor
from gitsync.report.reporter import Reporter
from gitsync.report.status import Observation
from gitsync.rollout.follow import Drift
from gitsync.scheduler import Scheduler
from gitsync.source import GitPolicy, GitSource
from tests.registry import TestRegistry
from tests.unit.cluster.conftest import cluster, namespace
from tests.unit.rollout.conftest import body
from tests.unit.source.conftest import Repository, work

__all__ = ["cluster", "namespace", "work"]


AWAY = {"repository": "http://127.0.0.1:1/shop.git"}
"""The same repository, while its host is down."""


class Killed(Exception):
    """The process ends here."""


class Sink:
    """Takes whatever is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    async def patch_status(self, ref: ObjectRef, status: Json) -> bool:
        return True

    async def create(self, obj: Json) -> Json:
        self.events.append(f"{obj['reason']}: {obj['note']}")
        return obj

    async def patch(self, ref: ObjectRef, patch: Json) -> Json:
        return patch


class Room:
    """A repository, an Application that follows it, and the pipeline."""

    def __init__(self, tools: Tools, sink: Sink, work: Repository, namespace: str) -> None:
        self.tools, self.sink, self.work, self.namespace = tools, sink, work, namespace
        self.cluster = tools.cluster
        self.key = f"{namespace}/shop"
        self.pipeline = Pipeline(tools)
        self.application: Application | None = None
        self.follow()

    def follow(self, *, generation: int = 1, deleting: bool = False, **given: Any) -> None:
        """``annotations``: without the prefix; everything else is the spec's."""
        annotations = {f"gitsync.dev/{key}": value for key, value in given.pop("annotations", {}).items()}
        metadata: Json = {"name": "shop", "namespace": self.namespace, "generation": generation}
        metadata["annotations"] = annotations
        if deleting:
            metadata |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}
        spec = {"source": {"repository": self.work.path.as_uri()} | given.pop("source", {})} | given
        self.application = Application.parse(
            {"apiVersion": "gitsync.dev/v1alpha1", "kind": "Application", "metadata": metadata, "spec": spec}
        )

    def commit(self, files: Mapping[str, Json | None]) -> str:
        for name, obj in files.items():
            if obj is None:
                (self.work.path / f"manifests/{name}.json").unlink()
            else:
                self.work.write(f"manifests/{name}.json", json.dumps(obj))
        return self.work.commit()

    async def restart(self) -> None:
        await self.pipeline.forget(self.key)
        self.pipeline = Pipeline(self.tools)

    async def prepare(self) -> Prepared | None:
        return await self.pipeline.prepare(self.key, Target())

    async def plan(self) -> Prepared:
        prepared = await self.prepare()
        assert prepared is not None, self.refusal
        return prepared

    async def apply(self, prepared: Prepared, handover: Handover | None = None) -> Outcome:
        return await self.pipeline.apply(self.key, prepared, handover or Handover())

    async def sync(self) -> Outcome:
        return await self.apply(await self.plan())

    async def record(self) -> Record:
        assert self.application is not None
        return await self.tools.records.load(self.application.ref)

    async def live(self, name: str) -> Json | None:
        return await self.cluster.get(self.ref(name))

    async def data(self, name: str) -> Any:
        return (await self.live(name) or {}).get("data")

    async def edit(self, name: str, **data: str) -> None:
        await self.cluster.patch(self.ref(name), {"data": data})

    async def drifts(self, name: str) -> None:
        """Until the watch has told of it."""
        await until(lambda: self.ref(name).key in self.pipeline.follower.drifted(self.key))

    def ref(self, name: str) -> ObjectRef:
        return ObjectRef(version="v1", kind="ConfigMap", namespace=self.namespace, name=name)

    @property
    def observation(self) -> Observation:
        said = self.tools.reporter.said(self.key)
        assert said is not None
        return said.observation

    @property
    def refusal(self) -> str:
        """The reason why the last attempt ended, "" if it did not fail."""
        said = self.tools.reporter.said(self.key)
        attempt = said.observation.attempt if said else None
        return attempt.error.reason if attempt and attempt.error else ""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def room(cluster: Cluster, namespace: str, work: Repository, tmp_path: Path) -> AsyncIterator[Room]:
    sink, made = Sink(), list[Room]()
    async with (
        Reporter(sink, metrics=Metrics(), redactor=Redactor(), instance="test") as reporter,
        Images(Buildah(tmp_path / "layers"), tmp_path / "images") as images,
        Reader() as reader,
    ):
        tools = Tools(
            applications=lambda key: made[0].application if made and key == made[0].key else None,
            wake=lambda key: None,
            source=GitSource(tmp_path / "cache", GitPolicy(allow_insecure_transports=True)),
            reader=reader,
            images=images,
            cluster=cluster,
            records=Records(cluster),
            reporter=reporter,
            defaults=Defaults(interval=3600.0),
        )
        made.append(Room(tools, sink, work, namespace))
        yield made[0]
        await made[0].pipeline.forget(made[0].key)


def config(name: str, annotations: Json | None = None, **data: str) -> Json:
    metadata = {"name": name, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def refused(name: str) -> Json:
    return config(name) | {"dtaa": {}}


def endless(wave: str = "0") -> Json:
    """A Job whose pods no node takes."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "localhost/none:1"}]}
    metadata = {"name": "endless", "annotations": {"gitsync.dev/sync-wave": wave}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {"spec": pod}}}


def deployment(**spec: Any) -> Json:
    """Its pods are not taken by any node either."""
    container = {"name": "web", "image": "localhost/none@sha256:" + "0" * 64}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [container]}}
    whole = {"selector": {"matchLabels": {"app": "web"}}, "template": template} | spec
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": whole}


def fails_at(
    monkeypatch: pytest.MonkeyPatch, room: Room, call: str, name: str, error: Exception, *, after: bool = False
) -> None:
    """The next ``call`` that is about the object of this name fails, before or after it was done. No dry run counts."""
    real, left = getattr(room.cluster, call), [error]

    async def once(about: Any, *arguments: Any, **options: Any) -> Any:
        named = about.name if isinstance(about, ObjectRef) else about["metadata"]["name"]
        hit = bool(left) and named == name and not options.get("dry_run")
        if hit and not after:
            raise left.pop()
        answer = await real(about, *arguments, **options)
        if hit:
            raise left.pop()
        return answer

    monkeypatch.setattr(room.cluster, call, once)


def forbidden(ref: ObjectRef) -> Forbidden:
    message = f'configmaps "{ref.name}" is forbidden: User "u" cannot get resource "configmaps" in API group ""'
    return Forbidden(message, doing="reading", ref=ref, retry_after=15)


# ---------------------------------------------------------------- what a person has to say first


async def test_a_history_that_was_rewritten_is_held_and_never_condemned(room: Room) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    room.work.git("checkout", "--quiet", "--orphan", "other")
    rewritten = room.commit({"a": config("a", k="2")})
    room.work.git("branch", "--quiet", "--force", "main", "other")
    assert await room.prepare() is None
    assert room.refusal == "UnrelatedHistory"
    assert (await room.record()).quarantine == ()
    room.follow(annotations={"approve": "f" * 40})
    assert await room.prepare() is None, "somebody else's approval"
    room.follow(annotations={"approve": rewritten})
    await room.sync()
    assert await room.data("a") == {"k": "2"}


async def test_a_history_that_was_rewritten_is_held_although_the_cache_is_gone(room: Room, tmp_path: Path) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    room.work.git("checkout", "--quiet", "--orphan", "other")
    room.commit({"a": config("a", k="2")})
    room.work.git("branch", "--quiet", "--force", "main", "other")
    shutil.rmtree(tmp_path / "cache")
    await room.restart()
    assert await room.prepare() is None
    assert room.refusal == "UnrelatedHistory"


async def test_what_the_host_no_longer_offers_holds_up_nothing(room: Room, tmp_path: Path) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.work.git("checkout", "--quiet", "--orphan", "other")
    room.commit({"a": config("a", k="2")})
    room.work.git("branch", "--quiet", "--force", "main", "other")
    room.work.git("reflog", "expire", "--expire=now", "--all")
    room.work.git("gc", "--quiet", "--prune=now")
    shutil.rmtree(tmp_path / "cache")
    await room.restart()
    await room.sync()
    assert await room.data("a") == {"k": "2"}


async def test_an_approval_of_another_commit_deletes_nothing(room: Room) -> None:
    room.commit({f"c{number}": config(f"c{number}") for number in range(7)})
    await room.sync()
    room.commit({f"c{number}": None for number in range(6)})
    room.follow(annotations={"approve": "f" * 40})
    assert await room.prepare() is None
    assert await room.live("c0") is not None
    assert len((await room.record()).inventory) == 7


async def test_nothing_is_done_while_it_is_suspended(room: Room) -> None:
    room.commit({"a": config("a")})
    room.follow(sync={"suspend": True})
    assert await room.prepare() is None
    room.follow()
    assert (await room.sync()).delivered


async def test_a_commit_is_not_lost_to_a_host_that_denied_its_repository_before_it_was_through(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    fails_at(monkeypatch, room, "get", "a", Transient("away"))
    with suppress(Transient):
        await room.prepare()
    room.work.git("branch", "--quiet", "--move", "main", "elsewhere")
    assert await room.prepare() is None
    assert room.refusal == "RefNotFound"
    room.work.git("branch", "--quiet", "--move", "elsewhere", "main")
    await room.sync()
    assert await room.data("a") == {"k": "2"}


async def test_what_is_taken_back_because_its_branch_is_gone_is_rolled_out_once_that_is_there_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": config("b")})
    fails_at(monkeypatch, room, "apply", "b", Transient("away"))
    with suppress(Transient):
        await room.sync()
    room.work.git("branch", "--quiet", "--move", "main", "elsewhere")
    await room.sync()
    assert await room.data("a") == {"k": "1"}
    room.work.git("branch", "--quiet", "--move", "elsewhere", "main")
    await room.sync()
    assert await room.data("a") == {"k": "2"}


async def test_a_plan_that_was_made_for_another_spec_is_not_begun(room: Room) -> None:
    room.commit({"a": config("a")})
    prepared = await room.plan()
    room.follow(generation=2, sync={"suspend": True})
    outcome = await room.apply(prepared)
    assert await room.live("a") is None
    assert (await room.record()).attempt is None
    assert outcome.retry_after == 0
    assert await room.prepare() is None
    room.follow(generation=3)
    assert (await room.sync()).delivered


async def test_going_back_is_not_forgotten_because_the_spec_changed_meanwhile(room: Room) -> None:
    for value in ("1", "2"):
        room.commit({"a": config("a", k=value)})
        await room.sync()
    room.follow(annotations={"rollback": "@now"})
    prepared = await room.plan()
    room.follow(generation=2, annotations={"rollback": "@now"})
    await room.apply(prepared)
    assert await room.data("a") == {"k": "2"}
    await room.sync()
    assert await room.data("a") == {"k": "1"}


@pytest.mark.parametrize("newer", [None, "refused"])
async def test_what_serves_is_told_of_a_suspended_application_after_a_restart(room: Room, newer: str | None) -> None:
    sha = room.commit({"a": config("a", k="1")})
    await room.sync()
    if newer:
        room.commit({"a": refused("a")})
        assert await room.prepare() is None
    await room.restart()
    room.tools.reporter.forget(room.key)
    room.follow(sync={"suspend": True}, source=AWAY, generation=2)
    assert await room.prepare() is None
    seen = room.observation
    assert seen.suspended
    assert seen.last_good.endswith(sha)
    assert seen.sync is (SyncStatus.OUT_OF_SYNC if newer else SyncStatus.SYNCED)
    assert seen.health.status is HealthStatus.HEALTHY
    await room.edit("a", k="2")
    await room.drifts("a")
    assert await room.prepare() is None
    assert await room.data("a") == {"k": "2"}


async def test_what_it_depends_on_holds_up_no_repair_and_nobody_who_goes_back(room: Room) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.follow(generation=2, sync={"dependsOn": [{"name": "other"}]})
    with pytest.raises(Waiting):
        await room.prepare()
    assert room.refusal == "DependencyNotReady"
    await room.edit("a", k="theirs")
    await room.drifts("a")
    await room.sync()
    assert await room.data("a") == {"k": "2"}
    room.follow(generation=2, sync={"dependsOn": [{"name": "other"}]}, annotations={"rollback": "@now"})
    await room.sync()
    assert await room.data("a") == {"k": "1"}


async def test_what_is_suspended_on_purpose_holds_up_nobody_who_depends_on_it(room: Room) -> None:
    room.commit({"a": config("a")})
    room.follow(sync={"dependsOn": [{"name": "other"}]})
    assert room.application is not None
    other = replace(room.application, name="other")
    for status in (HealthStatus.PROGRESSING, HealthStatus.SUSPENDED):
        room.tools.reporter.observe(other, sync=SyncStatus.SYNCED, health=Health(status=status))
        with suppress(Waiting):
            await room.sync()
    assert await room.live("a") is not None
    room.tools.reporter.forget(other.key)


# ---------------------------------------------------------------- quarantine


async def test_what_was_refused_is_judged_again_for_another_spec_and_once_for_each_retry(room: Room) -> None:
    room.commit({"a": refused("a")})
    assert (await room.prepare(), room.refusal) == (None, "Refused")
    assert len((await room.record()).quarantine) == 1
    for generation, asked, reason in (
        (1, {}, "Quarantined"),
        (2, {}, "Refused"),
        (2, {}, "Quarantined"),
        (2, {"retry": "now"}, "Refused"),
        (2, {"retry": "now"}, "Quarantined"),
        (2, {"retry": "again"}, "Refused"),
    ):
        await room.restart()
        room.follow(generation=generation, annotations=asked)
        assert (await room.prepare(), room.refusal) == (None, reason)


async def test_what_was_refused_is_not_looked_at_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.commit({"web": deployment(strategy={"type": "Recreate"})})
    room.follow(zeroDowntime="enforce")
    assert (await room.prepare(), room.refusal) == (None, "ZeroDowntime")
    asked: list[object] = []

    async def counted(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        raise Transient("not now")

    monkeypatch.setattr(room.cluster, "_call", counted)
    assert await room.prepare() is None
    assert asked == []


async def test_nothing_is_taken_back_for_somebody_who_names_no_deployment(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": config("b", k="2")})
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", "b", Transient("it is away"))
        with pytest.raises(Transient):
            await room.sync()
    room.follow(annotations={"rollback": "eeeeeee@now"})
    assert (await room.prepare(), room.refusal) == (None, "RevisionNotFound")
    assert (await room.sync()).delivered
    assert await room.data("b") == {"k": "2"}


@pytest.mark.parametrize("wrong", ["branch", "rollback", "finalizer"])
async def test_a_commit_is_looked_at_again_whatever_was_wrong_before_it_was_asked_for(
    room: Room, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    with monkeypatch.context() as patch:
        fails_at(patch, room, "get", "a", Transient("it is away"))
        with pytest.raises(Transient, match="it is away"):
            await room.prepare()
    if wrong == "branch":
        room.work.git("branch", "--quiet", "--move", "main", "elsewhere")
        assert await room.prepare() is None
        room.work.git("branch", "--quiet", "--move", "elsewhere", "main")
    elif wrong == "rollback":
        room.follow(annotations={"rollback": "eeeeeee@now"})
        assert (await room.prepare(), room.refusal) == (None, "RevisionNotFound")
    else:
        denied = Rejected("denied by a policy")
        fails_at(monkeypatch, room, "patch", "shop", denied)
        room.follow(generation=2, sync={"deletionPolicy": "delete"})
        assert (await room.prepare(), room.refusal) == (None, "Refused")
        assert (await room.record()).quarantine == ()
        room.follow(generation=2)
    await room.sync()
    assert await room.data("a") == {"k": "2"}


@pytest.mark.parametrize("before", [True, False])
async def test_a_right_that_was_taken_is_waited_for(room: Room, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    room.commit({"a": config("a", k="1")})
    if before:
        await room.sync()
        room.commit({"a": config("a", k="2")})
    for call in ("get", "apply"):
        with monkeypatch.context() as patch:
            real = getattr(room.cluster, call)

            async def deny(about: Any, *arguments: Any, real: Any = real, **options: Any) -> Any:
                ref = about if isinstance(about, ObjectRef) else ObjectRef.of(about)
                if ref.kind == "ConfigMap":
                    raise forbidden(ref)
                return await real(about, *arguments, **options)

            patch.setattr(room.cluster, call, deny)
            await room.restart()
            if before:
                with pytest.raises(Forbidden):
                    await room.prepare()
                assert (await room.record()).quarantine == ()
            else:
                assert await room.prepare() is None
    assert len((await room.record()).quarantine) == (0 if before else 1)
    assert await room.data("a") == ({"k": "1"} if before else None)


# ---------------------------------------------------------------- whose it is


async def test_what_another_application_keeps_is_taken_only_if_the_server_says_that_it_is_gone(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"gitsync.dev/application": "other", "gitsync.dev/application-namespace": room.namespace}
    theirs = config("a", k="theirs")
    theirs["metadata"] |= {"namespace": room.namespace, "labels": labels}
    await room.cluster.apply(theirs, manager="somebody")
    room.commit({"a": config("a", k="ours")})
    real = room.cluster.get
    answers: list[Json | Forbidden] = [{"metadata": {}}, forbidden(room.ref("other"))]
    for answer in answers:

        async def get(ref: ObjectRef, *, answer: Any = answer, **options: Any) -> Json | None:
            if ref.name != "other":
                return await real(ref, **options)
            if isinstance(answer, GitsyncError):
                raise answer
            return answer

        monkeypatch.setattr(room.cluster, "get", get)
        await room.restart()
        assert (await room.prepare(), room.refusal) == (None, "OwnedByAnother")

    async def gone(ref: ObjectRef, **options: Any) -> Json | None:
        return None if ref.name == "other" else await real(ref, **options)

    monkeypatch.setattr(room.cluster, "get", gone)
    await room.restart()
    await room.sync()
    assert await room.data("a") == {"k": "ours"}


async def test_what_is_there_as_it_is_wanted_is_ours_from_then_on(room: Room) -> None:
    room.commit({"a": config("a")})
    await room.sync()
    labels = {"gitsync.dev/application": "shop", "gitsync.dev/application-namespace": room.namespace}
    there = config("b", k="v")
    there["metadata"] |= {"namespace": room.namespace, "labels": labels}
    await room.cluster.apply(there)
    room.commit({"b": config("b", k="v")})
    assert await room.prepare() is None, "nothing had to be changed"
    assert {item.ref.name for item in (await room.record()).inventory} == {"a", "b"}


async def test_what_a_person_deleted_and_git_gave_up_is_ours_no_longer(room: Room) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    await room.cluster.delete(room.ref("b"), str((await room.live("b") or {})["metadata"]["uid"]))
    room.commit({"a": config("a", k="2"), "b": None})
    await room.pipeline.forget(room.key)  # else it would be put back first
    await room.sync()
    assert {item.ref.name for item in (await room.record()).inventory} == {"a"}


async def test_everything_is_done_with_the_rights_of_the_account_that_is_named(room: Room) -> None:
    room.commit({"a": config("a")})
    room.follow(sync={"serviceAccountName": "deployer"})
    assert (await room.plan()).target.impersonate == f"system:serviceaccount:{room.namespace}:deployer"


async def test_the_password_of_a_secret_is_masked_from_then_on(room: Room) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": room.namespace}}
    await room.cluster.apply(secret | {"stringData": {"username": "u", "password": "hunter2-hunter2"}})
    room.commit({"a": config("a")})
    room.follow(source={"secretRef": {"name": "login"}})
    await room.plan()
    assert room.tools.reporter.redactor("it said hunter2-hunter2") == "it said ***"


async def test_the_login_of_a_registry_is_masked_from_then_on(room: Room) -> None:
    """A registry's or a builder's own words are told when it refuses, and may repeat what it was sent."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": room.namespace}}
    auths = {"r.example": {"auth": "cm9ib3Q6aHVudGVyMi1odW50ZXIy"}, "s.example": {"identitytoken": "token-of-bob"}}
    await room.cluster.apply(secret | {"stringData": {".dockerconfigjson": json.dumps({"auths": auths})}})
    room.commit({"a": config("a")})
    room.follow(registry={"secretRef": {"name": "registry"}})
    await room.plan()
    said = room.tools.reporter.redactor("bad login robot hunter2-hunter2, cm9ib3Q6aHVudGVyMi1odW50ZXIy, token-of-bob")
    assert said == "bad login robot ***, ***, ***"


async def test_an_image_that_looks_like_ours_but_is_not_built_is_named(room: Room) -> None:
    room.work.write("web/Dockerfile", "FROM scratch\n")
    pod = {"containers": [{"name": "main", "image": "shop/web:v1"}, {"name": "cache", "image": "redis:7"}]}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod}
    room.commit({"web": deployment(template=template)})
    await room.plan()
    await until(lambda: room.sink.events)
    (told,) = [each for each in room.sink.events if each.startswith("ImageLeftAlone")]
    assert told.startswith("ImageLeftAlone: image shop/web:v1 (")
    assert "manifests/web.json" in told
    assert "has the tag “v1”, so web/Dockerfile is not built for it" in told


async def test_a_commit_is_known_again_although_its_base_was_gone(room: Room, tmp_path: Path) -> None:
    async with TestRegistry(tmp_path / "registry") as registry:
        old, new = [await registry.push_image("base", "1", {"etc/word": word}) for word in (b"old", b"new")]
        await registry.delete("base", old)
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": room.namespace}}
        await room.cluster.apply(secret | {"stringData": {".dockerconfigjson": registry.dockerconfigjson().decode()}})
        room.follow(registry={"repository": f"{registry.host}/team", "secretRef": {"name": "registry"}})
        room.commit({"a": config("a")})
        await room.sync()

        base = f"{registry.host}/base:1"
        room.work.write("web/Dockerfile", f"FROM {base}\n")
        pod = {"containers": [{"name": "main", "image": "web"}]}
        room.commit({"web": deployment(template={"metadata": {"labels": {"app": "web"}}, "spec": pod})})
        await room.tools.records.save(replace(await room.record(), bases={base: old}))
        await room.restart()
        first = await room.plan()
        assert first.images.bases == {base: new}

        await room.tools.records.save(replace(await room.record(), bases={base: new}))
        await room.restart()
        assert (await room.plan()).digest == first.digest
    process.remove(tmp_path / "layers")


async def test_a_registry_login_that_cannot_be_read_waits_until_it_is_mended(room: Room) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": room.namespace}}
    await room.cluster.apply(secret | {"stringData": {"config.json": "{}"}})
    room.commit({"a": config("a")})
    room.follow(registry={"secretRef": {"name": "registry"}})
    with pytest.raises(Waiting, match=f"Secret {room.namespace}/registry is not a JSON object"):
        await room.prepare()
    await room.cluster.apply(secret | {"stringData": {".dockerconfigjson": "{}"}})
    await room.sync()
    assert await room.live("a") is not None


# ---------------------------------------------------------------- killed, or cut off, in the middle


async def killed_after(room: Room, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The object is sent, and the process dies before it can record that."""
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", name, Killed(), after=True)
        with pytest.raises(ExceptionGroup):
            await room.sync()
    await room.restart()


async def test_what_a_crash_made_is_known_although_the_server_does_not_answer_at_first(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a")})
    await room.sync()
    room.commit({"b": config("b")})
    await killed_after(room, monkeypatch, "b")
    room.commit({"b": None})
    with monkeypatch.context() as patch:
        fails_at(patch, room, "get", "b", Transient("it is away"))
        with pytest.raises(Transient, match="it is away"):
            await room.prepare()
    room.follow(generation=2)  # what was begun has no future
    await room.sync()
    assert await room.live("b") is None
    assert {item.ref.name for item in (await room.record()).inventory} == {"a"}


async def test_what_somebody_else_has_made_since_a_crash_is_theirs(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.commit({"a": config("a")})
    await room.sync()
    room.commit({"b": config("b")})
    await killed_after(room, monkeypatch, "b")
    await room.cluster.delete(room.ref("b"), str((await room.live("b") or {})["metadata"]["uid"]))
    theirs = config("b", k="theirs")
    theirs["metadata"]["namespace"] = room.namespace
    await room.cluster.apply(theirs, manager="somebody")
    room.commit({"b": None})
    room.follow(generation=2)
    await room.prepare()
    assert {item.ref.name for item in (await room.record()).inventory} == {"a"}


async def test_what_was_begun_goes_on_without_git_although_the_server_did_not_answer_at_first(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    sha = room.commit({"a": config("a", k="2"), "b": config("b")})
    await killed_after(room, monkeypatch, "b")
    room.follow(source=AWAY)
    with monkeypatch.context() as patch:
        fails_at(patch, room, "get", "a", Transient("it is away"))
        with pytest.raises(Transient, match="it is away"):
            await room.prepare()
    with pytest.raises(Transient):
        await room.prepare()  # and git is not there to say what is newer
    assert (await room.sync()).delivered
    good = (await room.record()).last_good
    assert good is not None
    assert good.revision.sha == sha


async def test_what_landed_is_recorded_although_the_rest_was_bad_luck(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a")})
    await room.sync()
    room.commit({"b": config("b"), "c": config("c")})
    prepared = await room.plan()
    fails_at(monkeypatch, room, "apply", "c", Transient("it is away"))
    with pytest.raises(Transient, match="it is away"):
        await room.apply(prepared)
    assert {item.ref.name for item in (await room.record()).inventory} == {"a", "b"}


async def test_an_error_that_nobody_foresaw_is_told_too(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.commit({"a": config("a")})
    for lane in (room.prepare, room.sync):
        with monkeypatch.context() as patch:
            if lane == room.sync:
                fails_at(patch, room, "apply", "a", KeyError("what it says may be secret"))
            else:
                patch.setattr(room.tools.source, "snapshot", None)
            with pytest.raises((TypeError, ExceptionGroup)):
                await lane()
        error = room.observation.attempt.error if room.observation.attempt else None
        assert error is not None
        assert error.reason == "Unexpected"
        assert "secret" not in str(error)
    await room.sync()
    assert room.refusal == ""


async def test_a_save_whose_answer_was_lost_is_read_before_the_next_one(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    prepared = await room.plan()
    with monkeypatch.context() as patch:
        fails_at(patch, room, "update", "shop.gitsync-record", Transient("no answer"), after=True)
        with pytest.raises(Transient, match="no answer"):
            await room.apply(prepared)
    await room.sync()
    assert await room.data("a") == {"k": "2"}


async def test_a_record_that_does_not_change_is_not_written(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    before = (await room.record()).stored.generation
    room.commit({"a": config("a", k="2")})
    await room.sync()
    assert (await room.record()).stored.generation == before + 2  # that it began, and that it serves


async def test_a_restore_goes_on_whatever_the_spec_says_now(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    await killed_after(room, monkeypatch, "a")
    record = await room.record()
    assert record.attempt is not None
    await room.tools.records.save(replace(record, attempt=replace(record.attempt, phase=Stage.RESTORE)))
    room.follow(generation=2)
    await room.sync()
    assert await room.data("a") == {"k": "1"}


async def test_what_has_to_be_taken_back_is_taken_back_after_bad_luck_too(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": config("b")})
    prepared = await room.plan()
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", "b", Transient("it is away"))
        with pytest.raises(Transient):
            await room.apply(prepared)
    room.commit({"a": refused("a")})
    abandoned = await room.plan()
    assert abandoned.abandons is not None
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", "a", Transient("it is away"))
        with pytest.raises(Transient):
            await room.apply(abandoned)
    await room.sync()
    record = await room.record()
    assert record.attempt is None
    assert await room.data("a") == {"k": "1"}
    assert all(entry.digest for entry in record.quarantine), "bad luck was held against a commit"


async def test_what_was_begun_does_not_stay_as_a_half_when_git_goes_back_to_what_served(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": config("b", k="2")})
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", "b", Transient("it is away"))
        with pytest.raises(Transient):
            await room.sync()
    room.work.git("reset", "--quiet", "--hard", first)
    await room.sync()
    assert await room.data("a") == {"k": "1"}
    assert (await room.record()).attempt is None
    assert await room.prepare() is None


async def test_what_was_begun_does_not_stay_as_a_half_because_a_newer_commit_was_refused_before_it_had_bad_luck(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": config("b", k="2")})
    prepared, real = await room.plan(), room.cluster.apply

    async def away(obj: Json, **options: Any) -> Applied:
        if obj["metadata"]["name"] == "b" and not options.get("dry_run"):
            room.commit({"a": refused("a")})
            assert (await room.prepare(), room.refusal) == (None, "Refused")
            raise Transient("it is away")
        return await real(obj, **options)

    with monkeypatch.context() as patch:
        patch.setattr(room.cluster, "apply", away)
        with pytest.raises(Transient):
            await room.apply(prepared)
    await room.sync()
    assert await room.data("a") == {"k": "1"}
    assert (await room.record()).attempt is None
    assert await room.prepare() is None


async def test_what_could_not_be_asked_before_is_asked_before_any_of_its_wave_is_written(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{room.namespace}-made"
    good, bad = config("good"), deployment(replicas=-1)
    for each in (good, bad):
        each["metadata"]["namespace"] = name
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    room.commit({"space": space, "good": good, "bad": bad})
    prepared = await room.plan()
    sent: list[str] = []
    real = room.cluster.apply

    async def heard(obj: Json, **options: Any) -> Applied:
        if not options.get("dry_run"):
            sent.append(obj["metadata"]["name"])
        return await real(obj, **options)

    monkeypatch.setattr(room.cluster, "apply", heard)
    await room.apply(prepared)
    assert (sent, room.refusal) == ([name], "RolloutFailed")


# ---------------------------------------------------------------- two lanes


async def test_a_newer_commit_that_is_refused_does_not_touch_the_rollout_under_way(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "job": endless()})
    handover = Handover()
    rolling = asyncio.create_task(room.apply(await room.plan(), handover))
    async with asyncio.timeout(30):
        while await room.data("a") != {"k": "2"}:
            await asyncio.sleep(0.005)
    room.commit({"a": refused("a")})
    assert await room.prepare() is None
    assert not rolling.done()
    handover.request()
    assert not (await rolling).delivered
    assert await room.data("a") == {"k": "2"}


async def test_what_was_sent_and_never_seen_to_serve_is_not_called_good(room: Room) -> None:
    room.commit({"web": deployment(progressDeadlineSeconds=1)})
    handover = Handover()
    rolling = asyncio.create_task(room.apply(await room.plan(), handover))
    deployments = await room.cluster.resource("apps", "v1", "Deployment")
    async with asyncio.timeout(30):
        while not (await room.cluster.list(deployments, namespace=room.namespace)).items:
            await asyncio.sleep(0.005)
    handover.request()
    await rolling
    await room.restart()
    again = await room.plan()
    assert {change.action for change in again.plan.changes} == {Action.UNCHANGED}
    with pytest.raises(Waiting) as caught:
        await room.apply(again)
    assert caught.value.reason == "RolloutWaits"
    assert (await room.record()).last_good is None


async def test_a_plan_that_is_overtaken_before_it_begins_sends_nothing(room: Room) -> None:
    room.commit({"a": config("a")})
    prepared, handover = await room.plan(), Handover()
    handover.request()
    outcome = await room.apply(prepared, handover)
    assert not outcome.delivered
    assert await room.live("a") is None


async def test_what_the_record_does_not_tell_is_looked_at_after_a_restart(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    record = await room.record()
    assert record.last_good is not None  # as an older gitsync left it
    await room.tools.records.save(replace(record, last_good=replace(record.last_good, looks=())))
    await room.restart()
    await room.edit("a", k="2")
    await room.sync()
    assert await room.data("a") == {"k": "1"}


async def test_a_job_that_has_run_does_not_run_again_although_the_rest_had_bad_luck(room: Room) -> None:
    room.commit({"job": endless(), "web": deployment(progressDeadlineSeconds=1)})
    told: list[str] = []

    def heard(_: str) -> None:
        told.append(attempt.message if (attempt := room.observation.attempt) else "")

    room.tools.reporter.listen(heard)
    handover = Handover()
    rolling = asyncio.create_task(room.apply(await room.plan(), handover))
    jobs, pods = [await room.cluster.resource(*kind) for kind in (("batch", "v1", "Job"), ("", "v1", "Pod"))]
    selector = "batch.kubernetes.io/job-name"
    async with asyncio.timeout(30):
        while not (made := (await room.cluster.list(pods, namespace=room.namespace, label_selector=selector)).items):
            await asyncio.sleep(0.005)
        ended = body(ObjectRef.of(made[0]), status={"phase": "Succeeded"})
        await room.cluster.apply(ended, subresource="status", manager="node")
    await until(lambda: any(text.startswith("Job/") and text.endswith("Healthy") for text in told))
    handover.request()
    await rolling
    (job,) = (await room.cluster.list(jobs, namespace=room.namespace)).items
    await room.cluster.delete(ObjectRef.of(job), job["metadata"]["uid"])
    async with asyncio.timeout(30):
        while await room.cluster.get(ObjectRef.of(job)):
            await asyncio.sleep(0.005)
    await room.restart()
    again = await room.plan()
    assert [each.action for each in again.plan.changes if each.manifest.ref.kind == "Job"] == [Action.UNCHANGED]


async def test_who_takes_over_waits_until_the_other_has_gone(room: Room) -> None:
    def node_port(name: str, **metadata: Any) -> Json:
        spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30654}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name} | metadata, "spec": spec}

    room.follow(sync={"acceptInterruption": True})
    room.commit({"s": node_port("old", finalizers=["test.gitsync.dev/hold"])})
    await room.sync()
    ref = replace(room.ref("old"), kind="Service")
    room.commit({"s": node_port("new")})
    applied: list[str] = []
    real = room.cluster.apply

    async def heard(obj: Json, **options: Any) -> Applied:
        if not options.get("dry_run"):
            applied.append(obj["metadata"]["name"])
        return await real(obj, **options)

    rolling = asyncio.create_task(room.apply(await room.plan()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.cluster, "apply", heard)
        async with asyncio.timeout(30):
            while "deletionTimestamp" not in (await room.cluster.get(ref) or {})["metadata"]:
                await asyncio.sleep(0.005)
        reads: list[str] = []
        get = room.cluster.get

        async def read(about: ObjectRef, **options: Any) -> Json | None:
            reads.append(about.name)
            return await get(about, **options)

        patch.setattr(room.cluster, "get", read)
        await until(lambda: reads.count("old") >= 2 or applied)
        assert applied == []
        await room.cluster.patch(ref, {"metadata": {"finalizers": None}})
        assert (await rolling).delivered
        assert applied == ["new"]


async def test_a_restore_takes_back_first_what_the_last_good_state_needs(room: Room) -> None:
    def node_port(name: str) -> Json:
        spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30655}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}

    room.follow(sync={"acceptInterruption": True})
    room.commit({"s": node_port("old")})
    await room.sync()
    room.commit({"s": node_port("new"), "job": endless("1")})
    handover = Handover()
    rolling = asyncio.create_task(room.apply(await room.plan(), handover))
    jobs = await room.cluster.resource("batch", "v1", "Job")
    async with asyncio.timeout(30):
        while not (await room.cluster.list(jobs, namespace=room.namespace)).items:
            await asyncio.sleep(0.005)
    handover.request()
    await rolling
    room.commit({"s": refused("s")})
    await room.sync()
    services = {name: await room.cluster.get(replace(room.ref(name), kind="Service")) for name in ("old", "new")}
    assert [name for name, found in services.items() if found] == ["old"]


# ---------------------------------------------------------------- going back, going away


async def test_a_request_to_go_back_survives_bad_luck_and_is_answered_once(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    await room.sync()
    room.follow(annotations={"rollback": "eeeeeee@first"})
    assert (await room.prepare(), room.refusal) == (None, "RevisionNotFound")
    assert "rollback:first" in (await room.record()).approvals
    room.follow(annotations={"rollback": "@second"})
    with monkeypatch.context() as patch:
        fails_at(patch, room, "get", "a", Transient("it is away"))
        with pytest.raises(Transient):
            await room.prepare()
    await room.sync()
    assert await room.data("a") == {"k": "1"}


@pytest.mark.parametrize("error", [Transient("it is away"), KeyError("it is away")])
async def test_a_request_to_go_back_that_could_not_be_recorded_is_still_followed(
    room: Room, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.follow(annotations={"rollback": "@now"})
    prepared = await room.plan()
    with monkeypatch.context() as patch:
        fails_at(patch, room, "update", "shop.gitsync-record", error)
        with pytest.raises(type(error), match="it is away"):
            await room.apply(prepared)
    await room.sync()
    assert await room.data("a") == {"k": "1"}
    assert await room.prepare() is None


async def test_a_request_to_go_back_is_not_lost_to_a_commit_that_comes_before_it_begins(room: Room) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.commit({"a": config("a", k="3"), "job": endless()})
    handover = Handover()
    rolling = asyncio.create_task(room.apply(await room.plan(), handover))
    async with asyncio.timeout(30):
        while await room.data("a") != {"k": "3"}:
            await asyncio.sleep(0.005)
    room.follow(annotations={"rollback": "@now"})
    ready = await room.plan()
    assert room.pipeline.urgent(ready)
    room.commit({"a": config("a", k="4"), "job": None})
    ready = await room.prepare() or ready  # as the scheduler has it: the later plan takes the place of the former
    handover.request()
    await rolling
    await room.apply(ready)
    assert await room.data("a") == {"k": "2"}
    await room.sync()
    assert await room.data("a") == {"k": "4"}


async def test_a_request_to_go_back_that_is_refused_when_it_would_begin_is_not_made_again_by_a_restart(
    room: Room,
) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.follow(annotations={"rollback": "@now"})
    prepared = await room.plan()
    await room.tools.records.save(await room.record())  # as a rollout does that came in between
    await room.pipeline.forget(room.key)
    await room.cluster.patch(room.ref("a"), {"immutable": True})
    await room.apply(prepared)
    assert room.refusal == "ImmutableField"
    await room.cluster.delete(room.ref("a"), str((await room.live("a") or {})["metadata"]["uid"]))
    await room.restart()
    again = await room.prepare()
    assert again is None or not again.rollback


async def test_a_request_to_go_back_that_was_planned_twice_is_followed_once(room: Room) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.follow(annotations={"rollback": "@now"})
    plans = [await room.plan(), await room.plan()]
    assert [(await room.apply(each)).delivered for each in plans] == [True, False]
    assert [each.outcome for each in (await room.record()).history].count("RolledBack") == 1


async def test_a_request_to_go_back_is_answered_once_however_many_others_follow(room: Room) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.follow(annotations={"rollback": "@now"})
    await room.sync()
    room.commit({"a": config("a", k="3")})
    await room.sync()
    record = await room.record()
    many = tuple(f"retry:{number}" for number in range(20))  # each was some day's
    await room.tools.records.save(replace(record, approvals=(*record.approvals, *many)))
    await room.restart()
    room.follow(annotations={"rollback": "@now", "retry": "another"})
    assert await room.prepare() is None
    await room.restart()
    assert await room.prepare() is None
    assert await room.data("a") == {"k": "3"}


@pytest.mark.parametrize("dies", [False, True])
async def test_going_back_goes_on_after_bad_luck_although_git_names_what_was_left(
    room: Room, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    first = room.commit({"a": config("a", k="1"), "b": config("b")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": None})
    await room.sync()
    room.follow(annotations={"rollback": "@now"})
    prepared = await room.plan()
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", "b", Transient("it is away"))
        with pytest.raises(Transient):
            await room.apply(prepared)
    if dies:
        await room.restart()
        with monkeypatch.context() as patch:
            fails_at(patch, room, "get", "a", Transient("it is away"))
            with pytest.raises(Transient):
                await room.prepare()
    assert (await room.sync()).delivered
    assert await room.data("a") == {"k": "1"}
    record = await room.record()
    assert record.attempt is None
    assert record.last_good is not None
    assert record.last_good.revision.sha == first
    assert record.history[0].outcome == "RolledBack"
    assert await room.prepare() is None  # nor does what was left come back
    assert await room.data("a") == {"k": "1"}


async def test_going_back_is_told_as_that_and_not_as_a_delivery_that_took_days(room: Room) -> None:
    def lead_times() -> float | None:
        return room.tools.reporter.metrics.registry.get_sample_value("gitsync_push_to_healthy_seconds_count")

    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    assert lead_times() == 2
    room.follow(annotations={"rollback": "@now"})
    await room.sync()
    assert lead_times() == 2, "an old commit was not pushed just now"
    assert await room.prepare() is None
    said = room.tools.reporter.said(room.key)
    assert said is not None
    assert said.observation.attempt is not None
    assert "failed" not in str(said.observation.attempt.error)
    assert [each["reason"] for each in said.observation.quarantined] == ["RolledBack"]


async def test_a_new_commit_overtakes_a_person_who_goes_back(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in "12":
        room.commit({"a": config("a", k=number)})
        await room.sync()
    room.follow(annotations={"rollback": "@now"})
    prepared = await room.plan()
    with monkeypatch.context() as patch:
        fails_at(patch, room, "apply", "a", Transient("it is away"))
        with pytest.raises(Transient):
            await room.apply(prepared)
    room.commit({"a": config("a", k="3")})
    assert (await room.sync()).delivered
    assert await room.data("a") == {"k": "3"}
    assert await room.prepare() is None


async def test_an_application_does_not_go_before_what_it_has_to_take_along(room: Room) -> None:
    room.commit({"a": config("a"), "kept": config("kept", {"gitsync.dev/prune": "disabled"})})
    await room.sync()
    room.follow(deleting=True, sync={"deletionPolicy": "delete"})
    prepared = await room.plan()
    assert room.pipeline.urgent(prepared)
    outcome = await room.apply(prepared)
    assert outcome.retry_after == 3600
    assert room.refusal == "ApprovalRequired"
    assert {item.ref.name for item in (await room.record()).inventory} == {"kept"}


async def test_what_a_chart_wants_to_stay_holds_up_no_application_that_goes(room: Room) -> None:
    room.commit({"a": config("a"), "kept": config("kept", {"helm.sh/resource-policy": "keep"}, k="1")})
    await room.sync()
    room.follow(deleting=True, sync={"deletionPolicy": "delete"})
    with suppress(GitsyncError):  # there is no Application in this cluster that could be let go
        await room.sync()
    assert room.refusal != "ApprovalRequired"
    assert (await room.live("a"), await room.data("kept")) == (None, {"k": "1"})


async def test_what_refers_goes_before_what_it_refers_to_when_an_application_goes(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    role: Json = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": []}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}}
    room.commit({"a": config("a"), "r": role, "s": account})
    await room.sync()
    order, delete = list[str](), room.cluster.delete

    async def told(ref: ObjectRef, *arguments: Any, **options: Any) -> Any:
        order.append(ref.kind)
        return await delete(ref, *arguments, **options)

    monkeypatch.setattr(room.cluster, "delete", told)
    known = (await room.record()).inventory
    sent = [item.ref.kind for item in prune_order(known)]
    assert sent != [item.ref.kind for item in known]
    room.follow(deleting=True, sync={"deletionPolicy": "delete"})
    with suppress(GitsyncError):  # there is no Application in this cluster that could be let go
        await room.sync()
    assert order[: len(sent)] == sent


async def test_it_is_told_why_an_application_cannot_be_kept_or_let_go(room: Room) -> None:
    room.commit({"a": config("a")})
    await room.sync()
    for deleting in (False, True):
        room.follow(deleting=deleting, sync={"deletionPolicy": "delete"})
        room.tools.reporter.forget(room.key)
        if prepared := await room.prepare():
            await room.apply(prepared)
        assert room.refusal == "NoKind"  # this cluster knows no Applications, so none can be written


async def test_an_application_that_goes_takes_along_what_a_crash_had_made(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a")})
    await killed_after(room, monkeypatch, "a")
    room.follow(deleting=True, sync={"deletionPolicy": "delete"})
    with suppress(GitsyncError):  # there is no Application in this cluster that could be let go
        await room.sync()
    assert await room.live("a") is None


async def test_an_application_that_goes_takes_along_what_a_rollout_under_way_sends(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a")})
    await room.sync()
    room.commit({"b": config("b")})
    begun, gone, apply, patch = asyncio.Event(), asyncio.Event(), room.cluster.apply, room.cluster.patch

    async def slow(obj: Json, **options: Any) -> Applied:
        if obj["metadata"]["name"] == "b" and not options.get("dry_run"):
            begun.set()
            await asyncio.sleep(1.0)
        return await apply(obj, **options)

    async def let_go(ref: ObjectRef, change: Json, **options: Any) -> Json:
        if ref.kind != "Application":
            return await patch(ref, change, **options)
        assert change == {"metadata": {"finalizers": []}}
        room.application = None
        gone.set()
        return {}

    monkeypatch.setattr(room.cluster, "apply", slow)
    monkeypatch.setattr(room.cluster, "patch", let_go)
    async with asyncio.timeout(30), Scheduler(room.pipeline) as scheduler:
        scheduler.wake(room.key)
        await begun.wait()
        room.follow(deleting=True, sync={"deletionPolicy": "delete"})
        scheduler.wake(room.key)
        await gone.wait()
    assert await room.live("a") is None
    assert await room.live("b") is None


# ---------------------------------------------------------------- drift


async def test_what_is_only_to_be_detected_is_told_and_left(room: Room) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({"a": config("a", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")
    assert await room.prepare() is None
    await until(lambda: any(each.startswith("DriftDetected") for each in room.sink.events))
    assert await room.data("a") == {"k": "2"}


async def test_what_differs_is_told_although_the_server_could_not_be_asked_at_first(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({"a": config("a", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")

    async def away(obj: Json, **_: Any) -> Applied:
        raise Transient("it is away")

    with monkeypatch.context() as patch:
        patch.setattr(room.cluster, "apply", away)
        with pytest.raises(Transient, match="it is away"):
            await room.prepare()
    assert await room.prepare() is None
    await until(lambda: any(each.startswith("DriftDetected") for each in room.sink.events))


async def test_everything_that_differs_is_counted_and_named_until_it_is_right_again(room: Room) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({name: config(name, k="1") for name in "abc"})
    await room.sync()
    for edited, names in (("a", "a"), ("b", "ab"), ("a", "b"), ("b", "")):
        await room.edit(edited, k="2" if edited in names else "1")
        wanted = {room.ref(name).key for name in names}
        await until(lambda wanted=wanted: {*room.pipeline.follower.drifted(room.key)} == wanted)
        assert await room.prepare() is None
        seen = room.observation
        assert [name for name in "abc" if f"/{name} was changed" in seen.differs] == list(names)
        assert (seen.counts or {}).get("outOfSync") == len(names)
    assert room.observation.sync is SyncStatus.SYNCED


async def test_a_newer_commit_that_was_refused_is_not_hidden_by_drift_that_ended(room: Room) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({"a": config("a", k="1")})
    await room.sync()
    room.commit({"a": refused("a")})
    assert await room.prepare() is None
    await room.edit("a", k="2")
    await room.drifts("a")
    assert await room.prepare() is None
    await room.edit("a", k="1")
    await until(lambda: not room.pipeline.follower.drifted(room.key))
    assert await room.prepare() is None
    assert (room.observation.sync, room.observation.differs) == (SyncStatus.OUT_OF_SYNC, "")


@pytest.mark.parametrize("mode", ["detect", "repair"])
async def test_what_waits_for_an_approval_still_does_when_drift_has_ended(
    room: Room, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    room.follow(sync={"selfHeal": mode})
    room.commit({f"c{number}": config(f"c{number}", k="1") for number in range(8)})
    await room.sync()
    room.commit({f"c{number}": None for number in range(1, 8)})
    assert await room.prepare() is None
    before = room.observation
    assert (before.counts, before.stalled) != (None, None)
    monkeypatch.setattr("gitsync.attempt.FREE_REPAIRS", 1)
    for strike in "23":
        await room.edit("c0", k=strike)
        await room.drifts("c0")
        if repair := await room.prepare():
            await room.apply(repair)
    assert room.observation != before
    await room.edit("c0", k="1")
    await until(lambda: not room.pipeline.follower.drifted(room.key))
    for fight in room.pipeline._memories[room.key].fights.values():
        fight.last -= 60  # seconds later
    assert await room.prepare() is None
    after = room.observation
    assert (after.sync, after.counts, after.stalled) == (before.sync, before.counts, before.stalled)


def role(namespace: str, **rule: list[str]) -> Json:
    metadata = {"name": "reader", "namespace": namespace}
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], **rule}]
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": rules}


async def rules(room: Room) -> Any:
    found = await room.cluster.get(ObjectRef.of(role(room.namespace)))
    assert found is not None
    return found["rules"]


MALFORMED: list[tuple[str, str, Json]] = [
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", {"spec": {"group": "b.c", "scope": "Namespaced"}}),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", {"spec": {"group": "b.c", "names": ["a"]}}),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", {"subjects": ["x"]}),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", {"subjects": {"kind": "User"}}),
]


@pytest.mark.parametrize(("version", "kind", "rest"), MALFORMED)
async def test_what_the_server_would_refuse_is_refused_by_it(room: Room, version: str, kind: str, rest: Json) -> None:
    room.follow(sync={"serviceAccountName": "deployer"})
    room.commit({"a": {"apiVersion": version, "kind": kind, "metadata": {"name": "a.b.c"}} | rest})
    assert await room.prepare() is None
    assert room.refusal


async def test_what_a_commit_takes_out_of_a_rule_goes(room: Room) -> None:
    narrow, wide = role(room.namespace, resourceNames=["a"]), role(room.namespace)
    room.commit({"a": config("a"), "role": narrow})
    await room.sync()
    room.commit({"role": wide})
    await room.sync()
    assert await rules(room) == wide["rules"]


async def test_a_commit_that_only_changes_the_order_of_steps_is_sent(room: Room) -> None:
    def steps(*names: str) -> Json:
        web = deployment(replicas=0)
        pod = web["spec"]["template"]["spec"]
        pod["initContainers"] = [pod["containers"][0] | {"name": name} for name in names]
        return web

    room.commit({"web": steps("migrate", "seed")})
    await room.sync()
    room.commit({"web": steps("seed", "migrate")})
    await room.sync()
    live = await room.cluster.get(replace(room.ref("web"), group="apps", kind="Deployment"))
    assert live is not None
    assert [each["name"] for each in live["spec"]["template"]["spec"]["initContainers"]] == ["seed", "migrate"]


async def test_what_an_overtaken_attempt_put_into_a_rule_goes(room: Room) -> None:
    narrow, wide = role(room.namespace, resourceNames=["a"]), role(room.namespace)
    room.commit({"a": config("a"), "role": wide})
    await room.sync()
    room.commit({"role": narrow, "job": endless()})
    handover = Handover()
    rolling = asyncio.create_task(room.apply(await room.plan(), handover))
    async with asyncio.timeout(30):
        while await rules(room) != narrow["rules"]:
            await asyncio.sleep(0.005)
    handover.request()
    await rolling
    room.commit({"role": wide, "job": None})
    await room.sync()
    assert await rules(room) == wide["rules"]


async def test_what_somebody_puts_into_a_rule_is_taken_out(room: Room) -> None:
    wanted = role(room.namespace)
    room.commit({"a": config("a"), "role": wanted})
    await room.sync()
    ref = ObjectRef.of(wanted)
    await room.cluster.patch(ref, {"rules": role(room.namespace, resourceNames=["a"])["rules"]})
    await until(lambda: ref.key in room.pipeline.follower.drifted(room.key))
    await room.sync()
    assert await rules(room) == wanted["rules"]


async def test_what_is_not_healthy_any_more_is_counted(room: Room) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({"web": deployment(replicas=0), "a": config("a")})
    await room.sync()
    ref = replace(room.ref("web"), group="apps", kind="Deployment")
    for replicas, status, unhealthy in ((1, HealthStatus.PROGRESSING, 1), (0, HealthStatus.HEALTHY, 0)):
        await room.cluster.patch(ref, {"spec": {"replicas": replicas}})
        await until(lambda status=status: room.observation.health.status is status)
        assert await room.prepare() is None
        assert (room.observation.counts or {}).get("unhealthy") == unhealthy


async def test_what_the_watches_said_before_git_answered_holds_after_a_restart(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({"web": deployment(replicas=0), "a": config("a")})
    await room.sync()
    ref = replace(room.ref("web"), group="apps", kind="Deployment")
    await room.cluster.patch(ref, {"spec": {"replicas": 1}})
    await until(lambda: room.observation.health.status is HealthStatus.PROGRESSING)
    await room.restart()
    real = room.tools.source.fetch

    async def late(*arguments: Any) -> Any:
        await until(lambda: ref.key in room.pipeline.follower.drifted(room.key))
        await asyncio.sleep(0.1)  # and it was told
        return await real(*arguments)

    monkeypatch.setattr(room.tools.source, "fetch", late)
    assert await room.prepare() is None
    assert room.observation.health.status is HealthStatus.PROGRESSING


async def test_what_is_to_be_left_alone_is_not_even_watched(room: Room) -> None:
    room.follow(sync={"selfHeal": "off"})
    room.commit({"a": config("a", k="1")})
    await room.sync()
    assert room.pipeline.follower.expects(room.ref("a")) is None


async def test_what_says_that_it_is_left_alone_is(room: Room) -> None:
    room.commit({"a": config("a", {"gitsync.dev/reconcile": "disabled"}, k="1"), "b": config("b", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.edit("b", k="2")
    await room.drifts("b")
    await room.sync()
    assert (await room.data("a"), await room.data("b")) == ({"k": "2"}, {"k": "1"})


async def test_git_can_take_back_that_something_is_left_alone(room: Room) -> None:
    room.commit({"a": config("a", {"gitsync.dev/reconcile": "disabled"}, k="1")})
    await room.sync()
    await room.edit("a", k="2")
    room.commit({"a": config("a", k="3")})
    await room.sync()
    assert await room.data("a") == {"k": "3"}
    assert "annotations" not in ((await room.live("a")) or {})["metadata"]


async def test_what_a_person_marks_in_the_cluster_is_left_alone_as_long_as_it_is_marked(room: Room) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b", k="1")})
    await room.sync()
    mark = {"metadata": {"annotations": {"gitsync.dev/reconcile": "disabled"}}}
    await room.cluster.patch(room.ref("a"), mark)
    await room.edit("a", k="2")
    await room.edit("b", k="2")
    await room.drifts("b")
    await room.sync()
    assert (await room.data("a"), await room.data("b")) == ({"k": "2"}, {"k": "1"})
    await room.cluster.patch(room.ref("a"), {"metadata": {"annotations": None}})
    await room.drifts("a")
    await room.sync()
    assert await room.data("a") == {"k": "1"}


async def test_what_was_deleted_and_made_again_is_known_by_its_new_uid(room: Room) -> None:
    room.commit({"a": config("a"), "b": config("b")})
    await room.sync()
    await room.cluster.delete(room.ref("b"), str((await room.live("b") or {})["metadata"]["uid"]))
    await room.drifts("b")
    await room.sync()
    made = await room.live("b")
    assert made is not None
    assert made["metadata"]["uid"] in {item.uid for item in (await room.record()).inventory}


async def test_who_strikes_back_again_and_again_is_answered_later(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    strikes = 0
    repair: Prepared | None = None
    while strikes == 0 or (repair and strikes < 10):
        strikes += 1
        await room.edit("a", k=f"theirs {strikes}")
        await room.drifts("a")
        if repair := await room.prepare():
            await room.apply(repair)
    assert 1 < strikes < 10
    said = room.tools.reporter.said(room.key)
    assert said is not None
    assert said.observation.stalled is not None
    assert await room.data("a") == {"k": f"theirs {strikes}"}


async def test_drift_is_put_back_after_a_restart_although_git_is_away(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    await room.restart()
    room.follow(source=AWAY)
    await room.edit("a", k="2")
    with pytest.raises(Transient):
        await room.prepare()
    await room.drifts("a")
    await room.sync()
    assert await room.data("a") == {"k": "1"}


@pytest.mark.parametrize("when", ["before", "while", "after", "after a restart"])
async def test_drift_of_what_a_failed_commit_left_alone_is_put_back(
    room: Room, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    later = {"gitsync.dev/sync-wave": "1"}
    room.commit({"a": config("a", k="1"), "b": config("b", later, k="1"), "c": config("c", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2"), "b": config("b", later, k="2")})
    if when == "after a restart":
        await killed_after(room, monkeypatch, "a")
    prepared = await room.plan()
    if when == "before":
        await room.edit("c", k="theirs")
        await room.drifts("c")
    fails_at(monkeypatch, room, "apply", "b", Rejected("denied by a policy"))
    real = room.cluster.update

    async def edited(obj: Json) -> Json:
        if when == "while" and await room.data("c") == {"k": "1"}:
            await room.edit("c", k="theirs")
        return await real(obj)

    monkeypatch.setattr(room.cluster, "update", edited)
    await room.apply(prepared)
    assert room.refusal == "RolloutFailed"
    if when.startswith("after"):
        await until(lambda: room.pipeline.follower.sees(room.key))
        await room.edit("c", k="theirs")
    await room.drifts("c")
    await room.sync()
    assert (await room.data("a"), await room.data("c")) == ({"k": "1"}, {"k": "1"})


@pytest.mark.parametrize("deleted", [False, True])
async def test_drift_between_a_plan_and_its_rollout_is_put_back(room: Room, deleted: bool) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    prepared = await room.plan()
    if deleted:
        await room.cluster.delete(room.ref("b"), str((await room.live("b") or {})["metadata"]["uid"]))
    else:
        await room.edit("b", k="theirs")
    await room.drifts("b")
    await room.apply(prepared)
    await room.sync()
    assert (await room.data("a"), await room.data("b")) == ({"k": "2"}, {"k": "1"})


async def test_drift_is_put_back_after_a_rollout_that_never_began(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b", k="1")})
    await room.sync()
    room.commit({"a": config("a", k="2")})
    prepared = await room.plan()
    with monkeypatch.context() as patch:
        fails_at(patch, room, "update", "shop.gitsync-record", Transient("it is away"))
        with pytest.raises(Transient, match="it is away"):
            await room.apply(prepared)
    room.commit({"a": refused("a")})
    assert (await room.prepare(), room.refusal) == (None, "Refused")
    await room.edit("b", k="theirs")
    await room.drifts("b")
    await room.sync()
    assert (await room.data("a"), await room.data("b")) == ({"k": "1"}, {"k": "1"})


async def test_what_the_server_makes_of_it_now_is_no_drift_after_a_restart(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    record = await room.record()
    good = record.last_good
    assert good is not None
    looks = tuple(replace(look, fields="0" * 32, whole="") for look in good.looks)  # as with another default then
    await room.tools.records.save(replace(record, last_good=replace(good, looks=looks)))
    await room.restart()
    assert await room.prepare() is None
    await room.drifts("a")
    assert await room.prepare() is None
    assert not room.pipeline.follower.drifted(room.key)


async def test_a_commit_is_seen_although_what_drifted_cannot_be_read(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")
    a = room.ref("a")
    room.pipeline.follower.accept(a, await room.live("a") or {})
    unread = Drift(ref=a, at=datetime.now(UTC), unread=True)

    def drifted(_: str) -> dict[Any, Drift]:
        return {a.key: unread}

    monkeypatch.setattr(room.pipeline.follower, "drifted", drifted)
    with monkeypatch.context() as patch:
        fails_at(patch, room, "get", "a", forbidden(a))
        with pytest.raises(Forbidden):
            await room.prepare()
    assert room.refusal == "Forbidden"
    sha = room.commit({"a": None})
    fails_at(monkeypatch, room, "get", "a", forbidden(a))
    await room.sync()
    good = (await room.record()).last_good
    assert good is not None
    assert good.revision.sha == sha
    assert await room.live("a") is None


async def test_drift_that_was_about_to_be_put_back_is_told_once_it_may_only_be_told(room: Room) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")
    repair = await room.plan()
    room.follow(generation=2, sync={"selfHeal": "detect"}, source=AWAY)
    await room.apply(repair)
    for _ in range(2):
        with pytest.raises(Transient):
            await room.prepare()
    assert "data.k" in room.observation.differs
    await until(lambda: [each for each in room.sink.events if each.startswith("DriftDetected")])
    assert await room.data("a") == {"k": "2"}


async def test_what_is_read_late_and_is_as_it_should_be_is_not_told_as_drift(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.follow(sync={"selfHeal": "detect"})
    room.commit({"a": config("a", k="1")})
    await room.sync()
    a, follower = room.ref("a"), room.pipeline.follower
    follower._drifted[room.key] = {a.key: Drift(ref=a, at=datetime.now(UTC), unread=True)}
    real = room.cluster.get
    left = [1]

    async def late(ref: ObjectRef, **options: Any) -> Json | None:
        found = await real(ref, **options)
        if ref == a and left:
            left.pop()  # while the answer was on its way somebody changed it, and changed it back
            for value in "21":
                before = follower._expected[a.key].heard[-1:]
                await room.edit("a", k=value)
                await until(lambda before=before: follower._expected[a.key].heard[-1:] != before)
        return found

    monkeypatch.setattr(room.cluster, "get", late)
    for _ in range(3):
        assert await room.prepare() is None
    assert not follower.drifted(room.key)
    assert room.observation.sync is SyncStatus.SYNCED


@pytest.mark.parametrize("refusal", [Rejected("denied by a policy"), Invalid("no such field")])
async def test_a_repair_that_is_refused_is_told_paced_and_held_against_nobody(
    room: Room, monkeypatch: pytest.MonkeyPatch, refusal: Invalid
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")
    repair = await room.plan()
    fails_at(monkeypatch, room, "apply", "a", refusal)
    with pytest.raises(Transient):  # not "all went well": that is tried again at once
        await room.apply(repair)
    assert room.refusal == refusal.reason
    assert (await room.record()).quarantine == ()
    again = await room.plan()
    assert room.refusal == refusal.reason, "it is not mended yet"
    await room.apply(again)
    assert await room.data("a") == {"k": "1"}
    assert room.refusal == ""


async def test_a_commit_is_asked_for_before_a_refused_repair_is_tried_again(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1"), "b": config("b", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")
    repair = await room.plan()
    fails_at(monkeypatch, room, "apply", "a", Rejected("denied by a policy"))
    with pytest.raises(Transient):
        await room.apply(repair)
    room.commit({"a": config("a", k="3")})
    prepared = await room.plan()
    assert not prepared.repair
    await room.apply(prepared)
    assert await room.data("a") == {"k": "3"}


async def test_a_refused_repair_is_tried_again_although_git_is_away(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.commit({"a": config("a", k="1")})
    await room.sync()
    await room.edit("a", k="2")
    await room.drifts("a")
    repair = await room.plan()
    fails_at(monkeypatch, room, "apply", "a", Rejected("denied by a policy"))
    with pytest.raises(Transient):
        await room.apply(repair)
    room.follow(source=AWAY)
    await room.sync()
    assert await room.data("a") == {"k": "1"}
