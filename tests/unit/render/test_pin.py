"""Images are found and pinned wherever a pod template stands; templates carry a digest of what they read."""

from collections.abc import Mapping

from gitsync.model import ANNOTATION_CONFIG_DIGEST, Desired, Json, Manifest, ObjectRef, Origin, Revision
from gitsync.render import pin, references, stamp
from gitsync.render.yaml import parse

REVISION = Revision(repository="https://git.example.test/shop.git", ref="main", sha="c" * 40)


def desired(text: str) -> Desired:
    documents = parse(text.encode()).documents()
    return Desired(
        revision=REVISION,
        manifests=tuple(
            Manifest(
                ref=ObjectRef.of(document.value),
                object=document.value,
                origin=Origin(file="all.yaml", line=document.line),
                lines=document.lines,
            )
            for document in documents
        ),
    )


ALL_KINDS = """
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: pod}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: b}
spec:
  template:
    spec:
      initContainers:
        - {name: i, image: init}
      containers:
        - name: c
          image: one
        - {name: d, image: two}
      ephemeralContainers: [{name: e, image: never}]
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: c}, spec: {jobTemplate: {spec: {template: {spec:
  {containers: [{name: c, image: cron}]}}}}}}
---
{apiVersion: v1, kind: PodTemplate, metadata: {name: d}, template: {spec: {containers: [{name: c, image: template}]}}}
---
apiVersion: example.test/v1
kind: Fleet
metadata: {name: e}
spec:
  groups:
    - pods: {template: {spec: {containers: [{name: c, image: deep}]}}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: f}, data: {containers: "image: text"}}
---
{apiVersion: example.test/v1, kind: Other, metadata: {name: g}, spec: {containers: [image, {image: nameless}]},
 status: {containers: [{name: c, image: reported}]}}
"""


def test_every_pod_template_of_any_kind_is_found() -> None:
    assert [
        (use.ref.kind, use.path, use.image, use.origin.line) for use in references(desired(ALL_KINDS).manifests)
    ] == [
        ("Pod", "spec.containers[0].image", "pod", 2),
        ("Deployment", "spec.template.spec.initContainers[0].image", "init", 11),
        ("Deployment", "spec.template.spec.containers[0].image", "one", 14),
        ("Deployment", "spec.template.spec.containers[1].image", "two", 15),
        ("CronJob", "spec.jobTemplate.spec.template.spec.containers[0].image", "cron", 19),
        ("PodTemplate", "template.spec.containers[0].image", "template", 21),
        ("Fleet", "spec.groups[0].pods.template.spec.containers[0].image", "deep", 28),
    ]


def test_pinning_replaces_exactly_what_references_finds() -> None:
    before = desired(ALL_KINDS)
    wanted = {use.image: f"r.test/{use.image}@sha256:{'0' * 64}" for use in references(before.manifests)}
    after = pin(before, wanted | {"never": "x", "reported": "x", "nameless": "x", "text": "x"})
    assert [use.image for use in references(after.manifests)] == list(wanted.values())
    assert after.manifests[1].object["spec"]["template"]["spec"]["ephemeralContainers"][0]["image"] == "never"
    assert [use.image for use in references(before.manifests)] == list(wanted), "the input was changed in place"


def test_a_volume_can_be_an_image_and_a_custom_container_may_have_no_name() -> None:
    before = desired(
        """
{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: server}], volumes: [
  {name: e, emptyDir: {}}, {name: m, image: {reference: model, pullPolicy: IfNotPresent}}]}}
---
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: b},
 spec: {template: {spec: {containers: [{image: web}]}}}}
"""
    )
    found = references(before.manifests)
    assert [(use.path, use.image) for use in found] == [
        ("spec.containers[0].image", "server"),
        ("spec.volumes[1].image.reference", "model"),
        ("spec.template.spec.containers[0].image", "web"),
    ]
    after = pin(before, {"model": "model@sha256:1", "web": "web@sha256:2"})
    assert [use.image for use in references(after.manifests)] == ["server", "model@sha256:1", "web@sha256:2"]
    assert after.manifests[0].object["spec"]["volumes"][1]["image"]["pullPolicy"] == "IfNotPresent"
    assert after.manifests[0].object["spec"]["containers"] is before.manifests[0].object["spec"]["containers"]


def test_what_no_pin_concerns_keeps_its_identity() -> None:
    before = desired(ALL_KINDS)
    after = pin(before, {"two": "2@sha256:0", "one": "one"})
    assert [new is old for new, old in zip(after.manifests, before.manifests, strict=True)] == [
        True, False, True, True, True, True, True,
    ]  # fmt: skip
    old, new = (
        before.manifests[1].object["spec"]["template"]["spec"],
        after.manifests[1].object["spec"]["template"]["spec"],
    )
    assert new["containers"][0] is old["containers"][0]
    assert new["initContainers"] is old["initContainers"]


def test_a_shared_template_is_pinned_at_each_place() -> None:
    text = """
apiVersion: example.test/v1
kind: Fleet
metadata: {name: a}
spec: {one: &t {containers: [{name: c, image: x}]}, two: *t}
"""
    assert [use.image for use in references(pin(desired(text), {"x": "y"}).manifests)] == ["y", "y"]


CONFIGS = """
{apiVersion: v1, kind: ConfigMap, metadata: {name: settings, namespace: NS}, data: {a: "1"}}
---
{apiVersion: v1, kind: Secret, metadata: {name: login, namespace: NS}, stringData: {password: hunter2}}
---
"""
DEPLOYMENT = """
apiVersion: apps/v1
kind: KIND
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}, annotations: {kept: "yes"}}
    spec:
      imagePullSecrets: [{name: login}]
      containers: [{name: c, image: x, CONTAINER}]
      volumes: [VOLUME]
"""


def digest(
    container: str = "", volume: str = "", configs: str = CONFIGS, kind: str = "Deployment", key: str = ""
) -> str:
    text = configs.replace("NS", "shop") + DEPLOYMENT.replace("CONTAINER", container).replace("VOLUME", volume)
    manifest = stamp(desired(text.replace("KIND", kind)), key=key.encode()).manifests[-1]
    annotations: Mapping[str, str] = manifest.object["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kept"] == "yes"
    return annotations.get(ANNOTATION_CONFIG_DIGEST, "")


READERS = [
    {"container": "env: [{name: A, valueFrom: {configMapKeyRef: {name: settings, key: a}}}]"},
    {"container": "envFrom: [{configMapRef: {name: settings}}]"},
    {"volume": "{name: v, configMap: {name: settings}}"},
    {"volume": "{name: v, projected: {sources: [{configMap: {name: settings}}]}}"},
    {"container": "env: [{name: A, valueFrom: {secretKeyRef: {name: login, key: a}}}]"},
    {"container": "envFrom: [{secretRef: {name: login}}]"},
    {"volume": "{name: v, secret: {secretName: login}}"},
    {"volume": "{name: v, projected: {sources: [{secret: {name: login}}]}}"},
]


def test_each_way_to_read_is_seen_and_a_change_changes_the_digest() -> None:
    for index, reads in enumerate(READERS):
        before = digest(**reads)
        assert before, reads
        config, login = CONFIGS.replace('"1"', '"2"'), CONFIGS.replace("hunter2", "hunter3")
        assert (digest(**reads, configs=config) != before) is (index < 4), reads
        assert (digest(**reads, configs=login) != before) is (index >= 4), reads
        assert "hunter2" not in before


def test_no_digest_for_what_the_commit_does_not_have_or_the_pods_do_not_read() -> None:
    assert digest() == ""
    assert digest(volume="{name: v, configMap: {name: elsewhere}}") == ""
    other = CONFIGS.replace("NS", "other")
    assert digest(volume="{name: v, configMap: {name: settings}}", configs=other) == ""


def test_labels_of_a_config_do_not_count_but_a_key_does() -> None:
    reads = {"volume": "{name: v, configMap: {name: settings}}"}
    labelled = CONFIGS.replace("name: settings,", "name: settings, labels: {a: b},")
    assert digest(**reads, configs=labelled) == digest(**reads)
    assert digest(**reads, key="installation") != digest(**reads)


def test_bytes_count_like_texts() -> None:
    reads = {"volume": "{name: v, configMap: {name: settings}}"}
    one, other = (CONFIGS.replace('data: {a: "1"}', f'binaryData: {{a: "{text}"}}') for text in ("YQ==", "Yg=="))
    assert digest(**reads, configs=one) != digest(**reads, configs=other)


def test_only_templates_that_roll_are_stamped() -> None:
    reads = {"volume": "{name: v, configMap: {name: settings}}"}
    assert digest(**reads, kind="StatefulSet") == digest(**reads, kind="DaemonSet") == digest(**reads)
    job = desired(CONFIGS.replace("NS", "shop") + DEPLOYMENT.replace("apps/v1", "batch/v1").replace("KIND", "Job")
                  .replace("VOLUME", reads["volume"]).replace("CONTAINER", ""))  # fmt: skip
    assert stamp(job).manifests[-1] is job.manifests[-1]


def test_a_custom_resource_is_stamped_only_where_its_template_shows_metadata() -> None:
    spec = "spec: {containers: [{name: c, image: x, envFrom: [{configMapRef: {name: settings}}]}]}"
    head = CONFIGS.replace(", namespace: NS", "") + "{apiVersion: example.test/v1, kind: Fleet, metadata: {name: a}, "
    without = desired(head + "spec: {template: {" + spec + "}}}")
    assert stamp(without).manifests[-1] is without.manifests[-1]
    stamped: Json = stamp(desired(head + "spec: {template: {metadata: {}, " + spec + "}}}")).manifests[-1].object
    assert list(stamped["spec"]["template"]["metadata"]["annotations"]) == [ANNOTATION_CONFIG_DIGEST]
