"""What a run decides without asking anybody: Records, plans and inputs go in, new ones come out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from gitsync import __version__
from gitsync.application import Application
from gitsync.attempt import (
    FREE_REPAIRS,
    LONGEST_TRUCE,
    MOST_KEPT,
    MOST_QUARANTINED,
    PEACE,
    Decision,
    Fight,
    Handover,
    Prepared,
    approved,
    begun,
    decision_of,
    essence,
    followed,
    held_message,
    image_specs,
    input_digest,
    manifests_path,
    merged,
    needed,
    placed,
    quarantined,
    recorded,
    ref_of,
    remembered,
    rollback_target,
    settled,
    summary,
    surviving,
    unproven,
    wanted_again,
    without,
    without_effectless,
)
from gitsync.cluster.client import Cluster
from gitsync.cluster.record import Attempt, GoodState, HistoryEntry, Quarantined, Record
from gitsync.errors import Invalid
from gitsync.model import (
    ANNOTATION_APPROVE,
    ANNOTATION_RECONCILE,
    ANNOTATION_RETRY,
    Action,
    Applied,
    Change,
    Desired,
    FieldChange,
    Finding,
    Image,
    ImageSet,
    InventoryItem,
    Json,
    Manifest,
    ObjectRef,
    Origin,
    Plan,
    Revision,
    Snapshot,
    Stage,
)
from gitsync.rollout.target import Target

SHA, OLDER = "b" * 40, "a" * 40
REVISION = Revision(repository="https://git.example.com/shop.git", ref="main", sha=SHA)


def application(spec: Json | None = None, *, annotations: Json | None = None) -> Application:
    return Application.parse(
        {
            "apiVersion": "gitsync.dev/v1alpha1",
            "kind": "Application",
            "metadata": {"name": "shop", "namespace": "prod", "generation": 4, "annotations": annotations or {}},
            "spec": {"source": {"repository": "https://git.example.com/shop.git"}} | (spec or {}),
        }
    )


def manifest(kind: str, name: str, **fields: Any) -> Manifest:
    group = {"Deployment": "apps/", "Job": "batch/"}.get(kind, "")
    obj: Json = {"apiVersion": f"{group}v1", "kind": kind, "metadata": {"name": name, "namespace": "prod"}} | fields
    return Manifest(ref=ObjectRef.of(obj), object=obj, origin=Origin(file=f"{name}.yaml", line=3))


def change(action: Action, kind: str, name: str, **fields: Any) -> Change:
    return Change(action=action, manifest=manifest(kind, name, **fields))


def item(name: str, uid: str = "1") -> InventoryItem:
    return InventoryItem(ref=manifest("ConfigMap", name).ref, uid=uid)


def prepared(*changes: Change, digest: str = "d", revision: Revision = REVISION, **plan: Any) -> Prepared:
    app = application()
    return Prepared(
        application=app,
        decision=decision_of(app, revision),
        plan=Plan(revision=revision, waves=(changes,), **plan),
        images=ImageSet(bases={"node": "sha256:1"}),
        digest=digest,
        target=Target(cluster=cast(Cluster, None), application=app.ref),
        live={},
    )


def record(**fields: Any) -> Record:
    return Record(application=application().ref, **fields)


# ---------------------------------------------------------------- a commit that wants what serves


def image(digest: str, *, built: bool = False) -> Image:
    return Image(name="web", reference=f"r/web@{digest}", digest=digest, fingerprint="f", built=built)


SERVED = manifest("ConfigMap", "web")
FINDING = Finding(rule="requests", level="warning", ref=SERVED.ref, origin=SERVED.origin, message="none")


@pytest.mark.parametrize(
    ("good", "kept", "digest", "built", "again"),
    [
        ({}, {}, "d", "sha256:1", True),
        ({}, {}, "other", "sha256:1", False),
        ({}, {}, "d", "sha256:2", False),  # the registry had lost it, and it came out different
        ({"settled": ""}, {}, "d", "sha256:1", False),  # a deletion waits for approval
        ({"settled": "0 3  "}, {}, "d", "sha256:1", False),  # delivered under another spec
        ({"findings": (FINDING,)}, {}, "d", "sha256:1", False),
        ({}, {"inventory": (item("web"), item("old"))}, "d", "sha256:1", False),  # whose deletion was denied
        ({}, {"attempt": True}, "d", "sha256:1", False),
        (None, {}, "d", "sha256:1", False),
    ],
)
def test_a_commit_that_wants_what_serves_is_known(
    good: Json | None, kept: Json, digest: str, built: str, again: bool
) -> None:
    decision = decision_of(application(), REVISION)
    state = GoodState(
        revision=replace(REVISION, sha=OLDER), objects=(SERVED.object,), images=(image("sha256:1"),), digest="d",
        settled=decision.mark, at=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip
    before = record(inventory=(item("web"),), last_good=replace(state, **good) if good is not None else None)
    if kept.pop("attempt", False):
        before = begun(before, prepared())
    images = ImageSet(images=(image(built, built=True),))
    assert (wanted_again(replace(before, **kept), decision, images, digest) is not None) == again


# ---------------------------------------------------------------- the attempt in the Record


def test_an_attempt_holds_all_that_a_restart_needs() -> None:
    plan = prepared(
        change(Action.CREATE, "ConfigMap", "new"),
        change(Action.UNCHANGED, "Service", "same"),
        change(Action.REPLACE, "Job", "anew"),
    )
    after = begun(record(bases={"busybox": "sha256:0"}), replace(plan, present=(item("same", "7"),)))
    attempt = after.attempt
    assert attempt is not None
    assert (attempt.revision, attempt.phase, attempt.digest, attempt.generation) == (REVISION, Stage.ROLLOUT, "d", 4)
    assert [obj["metadata"]["name"] for obj in attempt.objects] == ["new", "same", "anew"]
    assert [origin.file for origin in attempt.origins] == ["new.yaml", "same.yaml", "anew.yaml"]
    assert [ref.name for ref in attempt.creates] == ["new"]
    assert [ref.name for ref in attempt.replaces] == ["anew"]
    assert not attempt.overtook
    assert after.inventory == (item("same", "7"),)
    assert after.bases == {"busybox": "sha256:0", "node": "sha256:1"}


def former(plan: Prepared) -> Attempt:
    attempt = begun(record(), plan).attempt
    assert attempt is not None
    return replace(attempt, started_at=datetime(2026, 1, 2, tzinfo=UTC))


def test_a_resumed_attempt_keeps_when_it_began_and_what_it_created() -> None:
    before = former(prepared(change(Action.CREATE, "ConfigMap", "made")))
    attempt = begun(record(attempt=before), prepared(change(Action.UNCHANGED, "ConfigMap", "made"))).attempt
    assert attempt is not None
    assert attempt.started_at == before.started_at
    assert [ref.name for ref in attempt.creates] == ["made"]
    assert not attempt.overtook


@pytest.mark.parametrize(
    "newer",
    [
        prepared(change(Action.CREATE, "ConfigMap", "b"), digest="other"),
        prepared(change(Action.CREATE, "ConfigMap", "b"), revision=replace(REVISION, sha=OLDER)),
    ],
    ids=["other input", "other commit"],
)
def test_an_attempt_that_overtakes_answers_for_what_the_other_did(newer: Prepared) -> None:
    took = replace(change(Action.CREATE, "ConfigMap", "a"), instead_of=(item("holder"),))
    before = former(prepared(took, change(Action.REPLACE, "Job", "j")))
    after = begun(record(attempt=before), newer)
    attempt = after.attempt
    assert attempt is not None
    assert attempt.overtook
    assert attempt.started_at > before.started_at
    assert {ref.name for ref in attempt.creates} == {"a", "b"}
    assert {ref.name for ref in attempt.replaces} == {"j"}
    assert {ref.name for ref in attempt.takes} == {"a"}
    again = begun(after, newer).attempt
    assert again is not None
    assert again.overtook, "a restart of it does not forget"


def test_the_newest_uid_of_an_object_is_the_one_that_is_ours() -> None:
    both = merged((item("a", "1"), item("b", "2")), [item("a", "3"), item("c", "4")])
    assert both == (item("a", "3"), item("b", "2"), item("c", "4"))
    left = without(record(inventory=both), {item("b").ref.key})
    assert left.inventory == (item("a", "3"), item("c", "4"))


def test_what_went_leaves_the_inventory_and_an_error_is_no_absence() -> None:
    wanted, alive = change(Action.CREATE, "ConfigMap", "wanted"), manifest("ConfigMap", "alive")
    replaced = manifest("ConfigMap", "replaced")

    def live(each: Manifest, uid: str) -> Json:
        return each.object | {"metadata": each.object["metadata"] | {"uid": uid}}

    plan = replace(
        prepared(wanted), live={alive.ref.key: live(alive, "1"), replaced.ref.key: live(replaced, "somebody's")}
    )
    items = (item("wanted"), item("alive"), item("replaced"), item("gone"))
    assert surviving(items, plan) == (item("wanted"), item("alive"))


# ---------------------------------------------------------------- going back


def deployed(letter: str, *, kept: bool = True) -> HistoryEntry:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    objects = (manifest("ConfigMap", letter).object,) if kept else ()
    revision = replace(REVISION, sha=letter * 40)
    return HistoryEntry(revision=revision, started_at=at, finished_at=at, outcome="Deployed", objects=objects)


def good(letter: str, digest: str = "") -> GoodState:
    revision = replace(REVISION, sha=letter * 40)
    return GoodState(revision=revision, objects=(), digest=digest, at=datetime(2026, 1, 2, tzinfo=UTC))


HISTORY = (deployed("d"), deployed("c", kept=False), deployed("b"), deployed("a"))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", "b"), ("aaaaaaa", "a"), ("main@sha1:" + "b" * 40, "b"), ("dd", "d"), ("cccc", ""), ("eeee", "")],
)
def test_a_rollback_goes_to_the_one_that_is_named_or_the_one_before(wanted: str, found: str) -> None:
    now = record(history=HISTORY, last_good=good("d"))
    if found:
        assert rollback_target(now, wanted, 4).revision.sha == found * 40
        return
    with pytest.raises(Invalid, match=r"there is no deployment of .* to go back to") as refusal:
        rollback_target(now, wanted, 4)
    assert refusal.value.hint.startswith("kept are ddddddd, bbbbbbb, aaaaaaa;")


def test_without_a_name_the_condemned_are_passed_over_and_a_rollout_is_left_for_what_serves() -> None:
    condemned = replace(entry("x", 4), revision=replace(REVISION, sha="b" * 40))
    now = record(history=HISTORY, last_good=good("d"), quarantine=(condemned,))
    assert rollback_target(now, "", 4).revision.sha == "a" * 40
    assert rollback_target(now, "", 5).revision.sha == "b" * 40, "another spec, another chance"
    rolling = former(prepared(revision=replace(REVISION, sha="e" * 40)))
    assert rollback_target(replace(now, attempt=rolling), "", 4).revision.sha == "d" * 40
    with pytest.raises(Invalid, match="there is no earlier deployment"):
        rollback_target(record(history=HISTORY[:1], last_good=good("d")), "", 4)


def test_what_has_served_since_it_was_condemned_is_good_again() -> None:
    condemned = replace(entry("x", 4), revision=replace(REVISION, sha="b" * 40))
    chosen = replace(deployed("b"), outcome="RolledBack", finished_at=condemned.at + timedelta(hours=1))
    now = record(history=(deployed("d"), chosen, *HISTORY[1:]), last_good=good("d"), quarantine=(condemned,))
    assert rollback_target(now, "", 4) is chosen


def test_a_beginning_that_two_revisions_have_names_neither() -> None:
    other = replace(deployed("a"), revision=replace(REVISION, sha="a" * 7 + "b" * 33))
    now = record(history=(other, *HISTORY, deployed("a")), last_good=good("d"))
    with pytest.raises(Invalid, match="aaa is the beginning of more than one"):
        rollback_target(now, "aaa", 4)
    assert rollback_target(now, "aaaaaaaa", 4).revision.sha == "a" * 40, "twice deployed is one revision"


def test_who_finds_nothing_to_go_back_to_by_itself_is_told_to_name_one() -> None:
    condemned = tuple(replace(entry(name, 4), revision=replace(REVISION, sha=name * 40)) for name in "ab")
    with pytest.raises(Invalid, match="one of those has to be named"):
        rollback_target(record(history=HISTORY, last_good=good("d"), quarantine=condemned), "", 4)


def test_what_a_rollback_leaves_does_not_come_back_by_itself() -> None:
    rolling = replace(former(prepared(digest="of-e", revision=replace(REVISION, sha="e" * 40))), generation=3)
    now = record(last_good=good("d", "of-d"), attempt=rolling)
    back = replace(prepared(digest="of-a", revision=replace(REVISION, sha="a" * 40)), rollback="rollback:now")
    after = begun(now, back)
    assert [(each.digest, each.generation) for each in after.quarantine] == [("of-d", 4), ("of-e", 4)]
    assert after.approvals == ("rollback:now",)
    assert begun(now, replace(back, rollback="")).quarantine == ()
    onto_itself = replace(prepared(revision=replace(REVISION, sha="d" * 40)), rollback="rollback:now")
    assert [each.digest for each in begun(now, onto_itself).quarantine] == ["of-e"]


def test_the_objects_of_old_deployments_are_let_go() -> None:
    history: tuple[HistoryEntry, ...] = ()
    for number in range(MOST_KEPT + 5):
        history = recorded(history, deployed(str(number % 10), kept=number % 2 == 0 or number > 5))
    kept = [bool(each.objects) for each in history]
    assert sum(kept) == MOST_KEPT
    assert kept[:9] == [True] * 9
    assert len(history) == MOST_KEPT + 5


# ---------------------------------------------------------------- quarantine


def entry(digest: str, generation: int = 1, message: str = "") -> Quarantined:
    return Quarantined(
        digest=digest, generation=generation, revision=REVISION, stage=Stage.ROLLOUT, message=message,
        at=datetime(2026, 1, 2, tzinfo=UTC),
    )  # fmt: skip


def test_one_entry_for_an_input_and_the_oldest_are_forgotten() -> None:
    once = remembered((), entry("a", message="old"))
    assert remembered(once, entry("a", message="new")) == (entry("a", message="new"),)
    assert len(remembered(once, entry("a", 2))) == 2, "another spec is another input"
    assert remembered(once) == once
    many = tuple(entry(str(number)) for number in range(MOST_QUARANTINED))
    assert remembered(many, entry("x")) == (*many[1:], entry("x"))


def test_what_is_quarantined_is_the_input_under_this_spec() -> None:
    made = quarantined(prepared(digest="input"), Stage.ROLLOUT, "it crashed")
    assert (made.digest, made.generation, made.revision, made.message) == ("input", 4, REVISION, "it crashed")


def test_the_input_is_the_objects_and_what_images_are_made_from_in_any_order_of_keys() -> None:
    def desired(*manifests: Manifest) -> Desired:
        return Desired(revision=REVISION, manifests=manifests)

    one = desired(manifest("ConfigMap", "c", data={"a": "1", "b": "2"}))
    digest = input_digest(one, {"web": "f1", "api": "f2"})
    assert len(digest) == 64
    turned = desired(manifest("ConfigMap", "c", data={"b": "2", "a": "1"}))
    assert input_digest(replace(turned, revision=replace(REVISION, sha=OLDER)), {"api": "f2", "web": "f1"}) == digest
    assert input_digest(one, {"web": "f1", "api": "f3"}) != digest
    assert input_digest(desired(manifest("ConfigMap", "c", data={"a": "1"})), {"web": "f1", "api": "f2"}) != digest


# ---------------------------------------------------------------- the Application and its commit


def test_a_decision_is_about_a_commit_under_a_spec_and_what_a_person_said() -> None:
    said = application(annotations={ANNOTATION_APPROVE: SHA[:12], ANNOTATION_RETRY: "now"})
    assert decision_of(said, REVISION) == Decision(sha=SHA, generation=4, approved=SHA[:12], retried="now")


def test_only_what_was_decided_under_the_same_words_with_nothing_left_to_do_is_delivered() -> None:
    decision = Decision(sha=SHA, generation=4, approved="a", retried="r")
    done = replace(good("b"), settled=decision.mark)
    assert decision.delivered(done)
    for other in (
        replace(decision, sha=OLDER),
        replace(decision, generation=5),
        replace(decision, approved="b"),
        replace(decision, retried=""),
    ):
        assert not other.delivered(done)
    other_gitsync = decision.mark.replace(__version__, "0.0.0")
    assert not decision.delivered(replace(done, settled=other_gitsync))
    plan = prepared()
    assert settled(plan) == plan.decision.mark
    assert settled(replace(plan, rollback="rollback:now")) == ""
    assert settled(prepared(held=(item("a"),))) == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [(SHA, True), (SHA[:7], True), (f"main@sha1:{SHA}", True), (SHA[:6], False), ("", False), (OLDER, False)],
)
def test_an_approval_is_of_one_commit(given: str, expected: bool) -> None:
    assert approved(application(annotations={ANNOTATION_APPROVE: given}), REVISION) is expected


def test_the_ref_is_the_one_that_the_spec_names() -> None:
    assert ref_of(application()).branch == "main"
    source = {"repository": "https://git.example.com/shop.git", "ref": {"tag": "v1"}}
    tagged = ref_of(application({"source": source}))
    assert (tagged.tag, tagged.branch) == ("v1", "")


def test_an_image_without_a_context_has_that_of_its_dockerfile_and_the_other_way_round() -> None:
    images = [
        {"name": "a", "context": "web"},
        {"name": "b", "dockerfile": "api/Dockerfile.prod"},
        {"name": "c", "dockerfile": "Dockerfile", "args": {"Z": "1", "A": "2"}},
    ]
    a, b, c = image_specs(application({"images": images}))
    assert (a.context, a.dockerfile) == ("web", "web/Dockerfile")
    assert (b.context, b.dockerfile) == ("api", "api/Dockerfile.prod")
    assert (c.context, c.dockerfile, c.args) == (".", "Dockerfile", (("A", "2"), ("Z", "1")))


class Tree:
    """A commit's tree, as far as ``manifests_path`` looks at it."""

    revision = REVISION

    def __init__(self, *folders: str) -> None:
        self._folders = folders

    def entries(self, under: str = "") -> list[str]:
        return [f"{folder}/file" for folder in self._folders if folder == under]


def test_manifests_are_looked_for_in_the_usual_places() -> None:
    assert manifests_path(cast(Snapshot, Tree("k8s", "manifests"))) == "manifests"
    assert manifests_path(cast(Snapshot, Tree("k8s"))) == "k8s"
    with pytest.raises(Invalid, match="manifests/, deploy/, k8s/") as refusal:
        manifests_path(cast(Snapshot, Tree("src")))
    assert refusal.value.reason == "PathNotFound"


def test_pods_need_what_they_mount_and_read() -> None:
    container = {"name": "c", "envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "c"}}]}
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "p"}}]
    template = {"spec": {"containers": [container], "volumes": volumes}}
    refs = needed(Desired(revision=REVISION, manifests=(manifest("Deployment", "d", spec={"template": template}),)))
    assert {(ref.kind, ref.namespace, ref.name) for ref in refs} == {
        ("Secret", "prod", "s"),
        ("ConfigMap", "prod", "c"),
        ("PersistentVolumeClaim", "prod", "p"),
    }


def test_jobs_and_what_says_so_are_left_alone() -> None:
    assert followed(manifest("Deployment", "d").object)
    assert not followed(manifest("Job", "j").object)
    told = {"name": "d", "namespace": "prod", "annotations": {ANNOTATION_RECONCILE: "disabled"}}
    assert not followed(manifest("Deployment", "d", metadata=told).object)


# ---------------------------------------------------------------- the plan


def applied(change: Change, obj: Json) -> Applied:
    return Applied(ref=change.manifest.ref, uid="1", resource_version="2", changed=True, object=obj)


def test_an_update_that_the_server_takes_for_none_is_none() -> None:
    fields = (FieldChange(path="data.a"),)
    same = replace(change(Action.UPDATE, "ConfigMap", "same", data={"a": "1"}), fields=fields)
    other = replace(change(Action.UPDATE, "ConfigMap", "other", data={"a": "1"}), fields=fields)
    unasked = replace(change(Action.UPDATE, "ConfigMap", "unasked", data={"a": "1"}), fields=fields)
    created = change(Action.CREATE, "ConfigMap", "created")
    changes = (same, other, unasked, created)

    def server_has(each: Change, **fields: Any) -> Json:
        metadata = each.manifest.object["metadata"] | {"resourceVersion": fields.pop("version", "1")}
        return each.manifest.object | {"metadata": metadata} | fields

    live = {each.manifest.ref.key: server_has(each, status={"x": 1}) for each in (same, other, unasked)}
    replies = {
        same.manifest.ref.key: applied(same, server_has(same, version="9", status={"x": 2})),
        other.manifest.ref.key: applied(other, server_has(other, data={"a": "2"})),
        created.manifest.ref.key: applied(created, server_has(created)),
    }
    judged = without_effectless(Plan(revision=REVISION, waves=(changes,)), live, replies)
    assert [each.action for each in judged.changes] == [
        Action.UNCHANGED, Action.UPDATE, Action.UPDATE, Action.CREATE,
    ]  # fmt: skip
    assert judged.changes[0].fields == ()
    assert judged.changes[1] == other


def test_what_an_earlier_try_has_sent_is_still_to_be_seen_serving() -> None:
    same, sent = change(Action.UNCHANGED, "Deployment", "same"), change(Action.UNCHANGED, "Deployment", "sent")
    new, gone = change(Action.UNCHANGED, "Deployment", "new"), change(Action.UNCHANGED, "Job", "gone")
    update = change(Action.UPDATE, "Deployment", "update")

    def lives(each: Change) -> Json:
        return each.manifest.object | {"metadata": {"uid": "7", "resourceVersion": "8"}, "status": {"replicas": 1}}

    live = {each.manifest.ref.key: lives(each) for each in (same, sent, new, update)}
    former = (same.manifest.object, sent.manifest.object | {"spec": {"replicas": 3}}, update.manifest.object)
    good = GoodState(revision=REVISION, objects=former, at=datetime(2026, 1, 2, tzinfo=UTC))
    wave = (same, sent, new, gone, update)
    waited = unproven(wave, live, good)
    assert [each.ref.name for each in waited] == ["sent", "new"]
    assert (waited[0].uid, waited[0].resource_version, waited[0].object) == ("7", "8", lives(sent))
    assert [each.ref.name for each in unproven(wave, live, None)] == ["same", "sent", "new"]


def test_the_essence_is_what_a_write_does_not_touch_by_itself() -> None:
    obj: Json = {
        "kind": "ConfigMap",
        "metadata": {"name": "c", "labels": {"a": "b"}, "managedFields": [1], "resourceVersion": "1", "generation": 2},
        "data": {"a": "1"},
        "status": {"x": 1},
    }
    assert essence(obj) == {
        "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b"}}, "data": {"a": "1"},
    }  # fmt: skip
    assert "status" in obj


def test_plans_in_words() -> None:
    planned = prepared(
        change(Action.CREATE, "ConfigMap", "a"),
        change(Action.CREATE, "ConfigMap", "b"),
        change(Action.UNCHANGED, "Service", "c"),
        prunes=(item("gone"),),
        held=tuple(item(f"held-{number}") for number in range(7)),
    )
    assert summary(planned.plan) == "2 created, 1 unchanged, 1 deleted"
    message = held_message(planned)
    assert message.startswith(f"main@sha1:{SHA} would delete ConfigMap/prod/held-0, ")
    assert "held-4 and 2 more;" in message
    assert message.endswith("'gitsync approve prod/shop'")
    place = placed(planned.plan, planned.plan.changes[0].manifest.ref)
    assert place.startswith("ConfigMap/prod/a")
    assert "a.yaml:3" in place


def test_what_failed_is_named_with_its_place_in_git() -> None:
    spec: Json = {"template": {"spec": {"containers": [{"name": "injected"}, {"name": "web"}]}}}
    wanted = manifest("Deployment", "web", spec=spec)
    probe = "spec.template.spec.containers[1].readinessProbe"
    planned = prepared(Change(action=Action.UPDATE, manifest=replace(wanted, lines={probe: 17}))).plan
    for field, where in {"readinessProbe": "web.yaml:17", "startupProbe": "web.yaml:3", "": "web.yaml:3"}.items():
        place = placed(planned, wanted.ref, "web", field)
        assert place == f"Deployment/prod/web ({where} {probe[:-15]}.{field}".rstrip(".") + ")"
    assert placed(planned, wanted.ref, "a sidecar", "readinessProbe") == "Deployment/prod/web (web.yaml:3)"


async def test_a_handover_is_asked_for_once_and_for_all() -> None:
    handover = Handover()
    assert not handover.requested
    handover.request()
    await handover.wait()
    assert handover.requested


def test_a_fight_is_answered_ever_more_rarely_and_forgotten_in_peace() -> None:
    fight, now, pauses = Fight(), 1000.0, list[float]()
    for _ in range(14):
        pauses.append(fight.due(now) - now)
        now = fight.due(now)
        fight.repaired(now)
    assert pauses[:FREE_REPAIRS] == [0.0] * FREE_REPAIRS
    assert pauses[FREE_REPAIRS : FREE_REPAIRS + 4] == [2.0, 4.0, 8.0, 16.0]
    assert pauses[-1] == LONGEST_TRUCE
    assert fight.due(now + PEACE + 1) == now + PEACE + 1
