"""The Application resource: what is accepted, what is refused with which words, and the CRD that says the same."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from gitsync.application import (
    Application,
    ApplicationSpec,
    crd,
    crd_yaml,
    format_duration,
    manifest,
    parse_duration,
)
from gitsync.errors import Invalid
from gitsync.model import Json

ROOT = Path(__file__).parents[2]


def application(spec: str, **metadata: Any) -> Json:
    return {
        "apiVersion": "gitsync.dev/v1alpha1",
        "kind": "Application",
        "metadata": {"name": "shop", "namespace": "prod", **metadata},
        "spec": yaml.safe_load(spec),
    }


MINIMAL = "source: {repository: 'https://git.example.com/team/shop.git'}"


def test_defaults() -> None:
    app = Application.parse(application(MINIMAL, uid="u1", generation=3, annotations={"a": "b"}))
    assert (app.key, app.uid, app.generation, app.annotations) == ("prod/shop", "u1", 3, {"a": "b"})
    assert not app.deleting
    assert app.target_namespace == "prod"
    spec = app.spec
    assert (spec.source.ref.kind, spec.source.ref.value) == ("branch", "main")
    assert spec.source.path == ""
    assert spec.source.interval is None
    assert spec.zero_downtime == "warn"
    sync = spec.sync
    assert (sync.prune, sync.suspend, sync.deletion_policy, sync.self_heal) == (True, False, "orphan", "repair")
    assert sync.timeout == timedelta(minutes=5)
    assert not sync.accept_interruption


def test_everything_given_is_read() -> None:
    spec = """
    source:
      repository: git@git.example.com:team/shop.git
      ref: {semver: ">=1.0.0"}
      path: ./deploy/
      secretRef: {name: shop-git}
      interval: 1h30m
    images:
      - {name: kubetm/cart, context: cart, target: run, args: {A: "1"}, platforms: [linux/amd64, linux/arm/v7]}
      - {name: kubetm/web, dockerfile: web/Dockerfile, repository: "localhost:5000/web"}
    registry: {repository: registry.example.com/team, pullRepository: 10.0.0.1:5000/team, secretRef: {name: push}}
    sync:
      prune: false
      serviceAccountName: shop-deployer
      targetNamespace: shop
      dependsOn: [{name: db}, {name: dns, namespace: infra}]
      deletionPolicy: delete
      selfHeal: "off"
    zeroDowntime: enforce
    """
    app = Application.parse(application(spec, deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["f"]))
    assert app.deleting
    assert app.finalizers == ("f",)
    assert (app.spec.source.ref.kind, app.spec.source.ref.value) == ("semver", ">=1.0.0")
    assert app.spec.source.path == "deploy"
    assert app.spec.source.interval == timedelta(minutes=90)
    assert app.spec.images[0].args == {"A": "1"}
    assert app.spec.registry.pull_repository == "10.0.0.1:5000/team"
    assert app.target_namespace == "shop"
    assert [d.namespace for d in app.spec.sync.depends_on] == [None, "infra"]
    assert Application.parse(manifest("shop", "prod", app.spec)).spec == app.spec


def test_manifest_says_only_what_differs_from_the_defaults() -> None:
    spec = Application.parse(application(MINIMAL)).spec
    assert manifest("shop", "prod", spec)["spec"] == {"source": {"repository": "https://git.example.com/team/shop.git"}}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{}", ["spec.source: must be given"]),
        ("{source: {}}", ["spec.source.repository: must be given"]),
        (MINIMAL + "\nsync: {prun: true}", ["spec.sync.prun: is not a field; did you mean prune?"]),
        (MINIMAL + "\nsync: {deletion_policy: delete}", ["sync.deletion_policy: is not a field; did you mean deleti"]),
        (MINIMAL + "\nimages: [{name: a, context: a, tagret: x}]", ["spec.images[0].tagret: is not a field; did you"]),
        (MINIMAL + "\nsync: {prune: 'false', timeout: 4s}", ["spec.sync.prune: ", "spec.sync.timeout: must be at le"]),
        (MINIMAL + "\nzeroDowntime: off", ["spec.zeroDowntime: must be a string: YAML reads an unquoted off as false"]),
        (MINIMAL + "\nzeroDowntime: never", ["spec.zeroDowntime: input should be 'enforce', 'warn' or 'off'"]),
        (MINIMAL + "\nimages: [{name: a}]", ["spec.images[0]: needs a context or a dockerfile"]),
        (MINIMAL + "\nimages: [{name: a, context: a}, {name: a, context: b}]", ["spec: names image a twice"]),
        ("source: {repository: 'https://h/r', interval: 1 min}", ["spec.source.interval: must be a duration such as"]),
        ("source: {repository: 'https://h/r', interval: 60}", ["spec.source.interval: must be a duration such as"]),
        ("source: {repository: 'https://h/r', ref: {branch: a, tag: b}}", ["spec.source.ref: at most one of", "and t"]),
        ("source: {repository: 'https://h/r', ref: {branch: --upload-pack=x}}", ["branch is not a name that git allo"]),
        ("source: {repository: 'https://h/r', ref: {tag: a..b}}", ["tag is not a name that git allows"]),
        ("source: {repository: 'https://h/r', ref: {commit: abc}}", ["spec.source.ref.commit: "]),
        ("source: {repository: 'https://h/r', path: ../x}", ["spec.source.path: must be a path inside the repository"]),
        ("source: {repository: 'https://h/r', path: /x}", ["spec.source.path: must be a path inside the repository"]),
    ],
)
def test_refused(spec: str, expected: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        Application.parse(application(spec))
    for text in expected:
        assert text in str(caught.value)


def test_all_errors_at_once() -> None:
    broken = application("{source: {}, sync: {prun: 1}, zeroDowntime: x}", name="Shop", namespace="")
    broken["kind"] = "App"
    with pytest.raises(Invalid) as caught:
        Application.parse(broken)
    for place in ("must be a Application", "metadata.name", "metadata.namespace", "repository", "prun", "zeroDowntime"):
        assert place in caught.value.message


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://git.example.com/team/shop.git", ""),
        ("ssh://git@git.example.com:2222/team/shop", ""),
        ("git@git.example.com:team/shop.git", ""),
        ("file:///srv/shop.git", ""),
        ("https://user:hunter2@git.example.com/shop", "credentials"),
        ("https://hunter2@git.example.com/shop", "credentials"),
        ("ssh://git:hunter2@git.example.com/shop", "credentials"),
        ("user:hunter2@git.example.com/shop", "credentials"),
        ("user:hunter2@git.example.com:shop", "credentials"),
        ("git.example.com:team/hunter2@2", "credentials"),
        ("git@git.example.com:team/shop@2", ""),
        ("https://git.example.com/shop?private_token=hunter2", "query"),
        ("ext::sh -c hunter2", "blanks"),
        ("ext::hunter2", "must be"),
        ("ftp://hunter2/x", "must be"),
        ("-oProxyCommand=hunter2", "dash"),
        ("https:///hunter2", "host"),
        ("https://hunter2", "names no repository"),
        ("https://h:hunter2/x", "well-formed"),
        ("/srv/hunter2", "must be"),
    ],
)
def test_repository_urls_are_never_echoed(url: str, word: str) -> None:
    obj = application("{source: {}}")
    obj["spec"]["source"]["repository"] = url
    if not word:
        assert Application.parse(obj).spec.source.repository == url
        return
    with pytest.raises(Invalid, match=word) as caught:
        Application.parse(obj)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("1m30s", 90), ("1.5h", 5400), ("500ms", 0.5), ("24h", 86400), ("0s", 0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds
    assert parse_duration(format_duration(parse_duration(text))) == parse_duration(text)


@pytest.mark.parametrize("text", ["", "5", "5 s", "-5s", "5d", "1e3s", "9" * 400 + "h", None, 5, True])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match=r"duration|longer"):
        parse_duration(text)


# ---------------------------------------------------------------- the CRD


def nodes(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


def schema() -> Json:
    return crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_deploy_has_the_crd_of_the_models() -> None:
    assert (ROOT / "deploy/crd.yaml").read_text() == crd_yaml(), (
        "run: python -c 'from gitsync.application import crd_yaml; print(crd_yaml(), end=\"\")' > deploy/crd.yaml"
    )
    assert yaml.safe_load(crd_yaml()) == crd()


def test_every_field_has_a_type_and_a_description() -> None:
    for path, node in nodes(schema()):
        assert node.get("type"), path
        assert not {"$ref", "anyOf", "title", "$defs"} & node.keys(), path
        if not path.endswith("[]") and path != ".metadata":
            assert node.get("description", "").endswith((".", ")")), path


def test_the_schema_has_exactly_the_fields_of_the_models() -> None:
    spec = schema()["properties"]["spec"]
    assert set(spec["properties"]) == {f.alias for f in ApplicationSpec.model_fields.values()}
    defaults = {path: node["default"] for path, node in nodes(spec) if "default" in node}
    assert defaults == {
        ".sync.prune": True,
        ".sync.suspend": False,
        ".sync.deletionPolicy": "orphan",
        ".sync.selfHeal": "repair",
        ".sync.acceptInterruption": False,
        ".sync.timeout": "5m",
        ".zeroDowntime": "warn",
    }


def test_conditions_merge_by_type() -> None:
    conditions = schema()["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])
