"""A right that is missing speaks against a commit only where it never was."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from gitsync.attempt import permitted_before
from gitsync.cluster.answers import Forbidden, Rejected
from gitsync.cluster.client import service_account
from gitsync.cluster.record import Attempt, Record
from gitsync.model import InventoryItem, Json, Manifest, ObjectRef, Origin, Revision, Stage
from gitsync.rollout.dryrun import dry_run
from gitsync.rollout.target import Target, place_of
from tests.unit.cluster.faults import answering, failure, faulty

APPLICATION = ObjectRef(group="gitsync.dev", version="v1alpha1", kind="Application", namespace="shop", name="shop")
USER = service_account("shop", "web")
OBJECT: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}}
MANIFEST = Manifest(ref=ObjectRef.of(OBJECT), object=OBJECT, origin=Origin(repository="shop", file="a.yaml", line=1))
TAKEN = (
    f'configmaps "c" is forbidden: User "{USER}" cannot patch resource "configmaps" in API group "" '
    'in the namespace "shop"'
)
OURS = (
    'serviceaccounts "web" is forbidden: User "gitsync" cannot impersonate resource "serviceaccounts" in API group ""'
)
DENIED = 'admission webhook "x" denied the request: User "y" cannot patch resource "configmaps"'


@pytest.mark.parametrize(
    ("says", "before", "refused"),
    [(TAKEN, False, True), (TAKEN, True, False), (OURS, False, False), (DENIED, False, True), (DENIED, True, True)],
)
async def test_whom_a_403_speaks_against(says: str, before: bool, refused: bool) -> None:
    async with faulty() as (server, cluster):
        server.script(answering(failure(403, "Forbidden", says), 403))
        target = Target(cluster=cluster, application=APPLICATION, impersonate=USER)
        permitted = [place_of(MANIFEST.ref)] if before else []
        if not refused:
            with pytest.raises(Forbidden, match=r"a\.yaml:1.*cannot") as caught:
                await dry_run(target, [MANIFEST], permitted=permitted)
            assert caught.value.retry_after > 0
            return
        (refusal,) = (await dry_run(target, [MANIFEST], permitted=permitted)).refusals
        assert (type(refusal), refusal.reason) == (Rejected, "Forbidden")
        assert "a.yaml:1" in str(refusal)
        assert says in str(refusal)


def test_a_right_is_known_from_what_was_written() -> None:
    other = ObjectRef(version="v1", kind="Secret", namespace="shop", name="s")
    record = Record(application=APPLICATION, inventory=(InventoryItem(ref=MANIFEST.ref, uid="u"),))
    assert permitted_before(record) == {("", "ConfigMap", "shop")}
    assert place_of(other) not in permitted_before(record)
    tried = Attempt(revision=Revision(repository="shop", ref="main", sha="a" * 40), phase=Stage.ROLLOUT,
                    objects=({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "shop"}},),
                    started_at=datetime(2026, 1, 2, tzinfo=UTC))  # fmt: skip
    assert place_of(other) in permitted_before(replace(record, attempt=tried))
