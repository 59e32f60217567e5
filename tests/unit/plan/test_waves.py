"""The order of application and of pruning, and the names of Jobs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitsync.errors import Invalid
from gitsync.model import Desired, InventoryItem, Manifest
from gitsync.plan.waves import LABEL_JOB, name_jobs, prune_order, waves

from .objects import REVISION, desired, manifest


def names(groups: tuple[tuple[Manifest, ...], ...]) -> list[list[str]]:
    return [[f"{each.ref.kind}/{each.ref.name}" for each in group] for group in groups]


ALL = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: i}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: h}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
---
apiVersion: example.org/v1
kind: Service
metadata: {name: custom}
---
apiVersion: v1
kind: Service
metadata: {name: s}
---
apiVersion: v1
kind: Secret
metadata: {name: k}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: r}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: r}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: a}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: p}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: w}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: x}
---
apiVersion: v1
kind: Namespace
metadata: {name: n, annotations: {gitsync.dev/sync-wave: "7"}}
"""
ORDERED = [
    ["Namespace/n"],
    ["CustomResourceDefinition/x"],
    [
        "ServiceAccount/a",
        "Role/r",
        "RoleBinding/r",
        "ConfigMap/c",
        "Secret/k",
        "PersistentVolumeClaim/p",
        "Service/s",
        "Deployment/d",
        "HorizontalPodAutoscaler/h",
        "Service/custom",
        "Ingress/i",
        "ValidatingWebhookConfiguration/w",
    ],
]


def test_by_kind() -> None:
    assert names(waves(desired(ALL).manifests)) == ORDERED


def test_pruning_is_the_reverse() -> None:
    items = [InventoryItem(ref=each.ref, uid=each.ref.name) for each in desired(ALL).manifests]
    flat = [f"{item.ref.kind}/{item.ref.name}" for item in prune_order(items)]
    assert flat == [name for group in reversed(ORDERED) for name in reversed(group)]


def pod(name: str) -> Manifest:
    return manifest({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}})


def wave(name: str, number: object) -> Manifest:
    return manifest(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "annotations": {"gitsync.dev/sync-wave": number}},
        }
    )


def test_by_annotation() -> None:
    groups = waves(
        [wave("b", "5"), wave("a", "-1"), pod("none"), wave("c", "5"), wave("zero", "0"), wave("plus", "+5")]
    )
    assert names(groups) == [["Pod/a"], ["Pod/none", "Pod/zero"], ["Pod/b", "Pod/c", "Pod/plus"]]


def test_argo_cds_annotation_counts_where_ours_is_absent() -> None:
    argo = "argocd.argoproj.io/sync-wave"

    def both(name: str, ours: str | None, theirs: str) -> Manifest:
        notes = {argo: theirs} | ({"gitsync.dev/sync-wave": ours} if ours else {})
        return manifest({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": notes}})

    assert names(waves([both("two", None, "2"), both("one", "1", "9")])) == [["Pod/one"], ["Pod/two"]]


@pytest.mark.parametrize("bad", ["first", "1.5", "", "1e3", 1, True, "9" * 10, "٣"])
def test_a_wave_that_is_no_integer_is_refused_with_its_place(bad: object) -> None:
    subject = replace(wave("a", bad), lines={"metadata.annotations[gitsync.dev/sync-wave]": 12})
    with pytest.raises(Invalid, match="whole number") as caught:
        waves([subject])
    assert caught.value.origin is not None
    assert str(caught.value.origin) == "shop@1111111 app.yaml:12 metadata.annotations[gitsync.dev/sync-wave]"
    assert caught.value.ref == subject.ref


@given(st.lists(st.tuples(st.sampled_from(["Pod", "Namespace", "Service", "Widget"]), st.integers(-3, 3)), max_size=8))
def test_nothing_is_lost_and_equals_keep_their_order(shapes: list[tuple[str, int]]) -> None:
    given = [
        manifest(
            {
                "apiVersion": "v1",
                "kind": kind,
                "metadata": {"name": f"{index:02}", "annotations": {"gitsync.dev/sync-wave": str(number)}},
            }
        )
        for index, (kind, number) in enumerate(shapes)
    ]
    flat = [each for group in waves(given) for each in group]
    assert sorted(each.ref.name for each in flat) == [each.ref.name for each in given]
    for group in waves(given):
        assert group
        for kind in {each.ref.kind for each in group}:
            same = [each.ref.name for each in group if each.ref.kind == kind]
            assert same == sorted(same)


# ---------------------------------------------------------------- Jobs

JOB = """
apiVersion: batch/v1
kind: Job
metadata: {name: migrate, namespace: shop, labels: {a: b}}
spec:
  template:
    metadata: {annotations: {note: x}}
    spec: {containers: [{name: m, image: "db@sha256:1"}]}
"""


def only(given: Desired) -> Manifest:
    return given.manifests[0]


def test_a_job_is_named_by_its_content() -> None:
    renamed = only(name_jobs(desired(JOB)))
    assert renamed.ref.name == renamed.object["metadata"]["name"]
    assert renamed.ref.name.startswith("migrate-")
    assert len(renamed.ref.name) == len("migrate-") + 8
    assert renamed.object["metadata"]["labels"] == {"a": "b", LABEL_JOB: "migrate"}
    assert renamed.object["metadata"]["namespace"] == "shop"
    assert only(desired(JOB)).object["metadata"]["name"] == "migrate", "the original is left alone"


def test_the_name_follows_the_spec_and_nothing_else() -> None:
    first = only(name_jobs(desired(JOB))).ref.name
    assert only(name_jobs(desired(JOB.replace("{a: b}", "{a: c}")))).ref.name == first
    stamped = JOB.replace("{note: x}", "{note: x, gitsync.dev/revision: main@sha1:1}")
    assert only(name_jobs(desired(stamped))).ref.name == first
    assert only(name_jobs(desired(JOB.replace("sha256:1", "sha256:2")))).ref.name != first
    assert only(name_jobs(desired(JOB.replace("note: x", "note: y")))).ref.name != first


def test_a_long_name_still_fits_a_label() -> None:
    for length in (53, 54, 55, 63):
        renamed = only(name_jobs(desired(JOB.replace("name: migrate", f"name: {'a' * length}"))))
        assert len(renamed.ref.name) == min(length, 54) + 9 <= 63
    assert "--" not in only(name_jobs(desired(JOB.replace("name: migrate", f"name: {'a' * 53}-b")))).ref.name


def test_other_kinds_keep_their_names() -> None:
    given = desired(JOB.replace("batch/v1", "example.org/v1") + "---" + JOB.replace("kind: Job", "kind: CronJob"))
    assert name_jobs(given) == given
    assert given.revision == REVISION


def hook(name: str, events: str = "", weight: str = "0", **more: str) -> Manifest:
    annotations = more | ({"helm.sh/hook": events, "helm.sh/hook-weight": weight} if events else {})
    return manifest({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "annotations": annotations}})


def test_hooks_of_a_chart_run_before_and_after_the_rest_by_weight() -> None:
    manifests = [
        hook("smoke", "post-install, post-upgrade"),
        hook("warm", "post-install,post-upgrade,post-rollback,test", "1"),
        hook("unweighed", "pre-install", ""),
        hook("plain"),
        hook("upgrade", "pre-upgrade", "-9"),
        hook("both", "post-install,pre-upgrade"),
        hook("migrate", "pre-install,pre-upgrade", "5"),
        hook("account", "pre-install,pre-upgrade", "-5"),
        hook("wave", "pre-install", "-5", **{"gitsync.dev/sync-wave": "2"}),
    ]
    order = [["account"], ["unweighed"], ["migrate"], ["plain", "upgrade", "both"], ["wave"], ["smoke"], ["warm"]]
    assert names(waves(manifests)) == [[f"ConfigMap/{each}" for each in one] for one in order]
