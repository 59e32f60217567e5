"""What deploy/ and manifests/ promise, read from the files: no wildcards, the restricted level, one version."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gitsync.application import Application
from gitsync.model import Json
from gitsync.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY, MANIFESTS = ROOT / "deploy", ROOT / "manifests"


def objects(*places: Path) -> Iterator[Json]:
    for place in places:
        for file in sorted(place.rglob("*.yaml")) if place.is_dir() else [place]:
            yield from filter(None, yaml.safe_load_all(file.read_text()))


def of_kind(kind: str, *places: Path) -> list[Json]:
    return [each for each in objects(*places) if each.get("kind") == kind]


def rules(role: Json) -> list[Json]:
    return role["rules"]


ROLES = of_kind("ClusterRole", DEPLOY) + of_kind("Role", DEPLOY)


@pytest.mark.parametrize("role", ROLES, ids=[role["metadata"]["name"] for role in ROLES])
def test_no_role_has_wildcards_or_grants_more_than_it_is(role: Json) -> None:
    for rule in rules(role):
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"], *rule.get("resourceNames", [])]
        assert not [word for word in words if "*" in word], rule
        assert not {"escalate", "bind", "deletecollection"} & set(rule["verbs"]), rule
        if "impersonate" in rule["verbs"]:
            assert rule["resources"] == ["serviceaccounts"]
            assert rule["resourceNames"], "impersonation is granted by name"


def test_the_services_cluster_wide_rights_reach_no_secret_and_no_workload() -> None:
    (role,) = [role for role in ROLES if role["metadata"]["name"] == "gitsync"]
    assert {resource for rule in rules(role) for resource in rule["resources"]} == {
        "applications", "applications/status", "events", "customresourcedefinitions", "namespaces", "serviceaccounts"
    }  # fmt: skip
    bound = of_kind("ClusterRoleBinding", DEPLOY)
    assert [(each["roleRef"]["name"], each["subjects"][0]["name"]) for each in bound] == [("gitsync", "gitsync")]


def restricted(pod: Json) -> list[str]:
    """What the restricted Pod Security level would refuse, and what it asks for that is missing."""
    found: list[str] = []
    context: Json = pod.get("securityContext", {})
    if not context.get("runAsNonRoot"):
        found.append("runAsNonRoot")
    if not isinstance(context.get("runAsUser"), int) or context["runAsUser"] == 0:
        found.append("runAsUser")
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("seccompProfile")
    for container in pod["containers"]:
        inner: Json = container.get("securityContext", {})
        if inner.get("allowPrivilegeEscalation") is not False:
            found.append("allowPrivilegeEscalation")
        if inner.get("capabilities", {}).get("drop") != ["ALL"]:
            found.append("capabilities")
        if not inner.get("readOnlyRootFilesystem"):
            found.append("readOnlyRootFilesystem")
        if "requests" not in container.get("resources", {}):
            found.append("requests")
    return found


def test_pods_are_fit_for_the_restricted_level() -> None:
    places = [DEPLOY / "gitsync.yaml", MANIFESTS / "hello", MANIFESTS / "shop"]
    workloads = of_kind("Deployment", *places)
    assert len(workloads) == 6
    for workload in workloads:
        assert restricted(workload["spec"]["template"]["spec"]) == [], workload["metadata"]["name"]
    namespaces = {each["metadata"]["name"]: each["metadata"]["labels"] for each in of_kind("Namespace", DEPLOY)}
    assert namespaces["gitsync"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_builds_have_no_token_no_host_and_only_one_caller() -> None:
    (pod,) = [each["spec"]["template"]["spec"] for each in of_kind("Deployment", DEPLOY / "buildkit.yaml")]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert not [each for each in pod["containers"] if each["securityContext"].get("privileged")]
    (policy,) = of_kind("NetworkPolicy", DEPLOY / "buildkit.yaml")
    (caller,) = policy["spec"]["ingress"][0]["from"]
    assert caller["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "gitsync"}
    assert caller["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "gitsync"}


def test_settings_are_settings() -> None:
    names = re.findall(r"^#?GITSYNC_([A-Z_]+)=", (DEPLOY / "settings.env").read_text(), re.MULTILINE)
    (container,) = [
        each["spec"]["template"]["spec"]["containers"][0] for each in of_kind("Deployment", DEPLOY / "gitsync.yaml")
    ]
    names += [each["name"].removeprefix("GITSYNC_") for each in container["env"] if each["name"].startswith("GITSYNC_")]
    assert len(names) > 8
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def test_the_client_and_the_daemon_of_builds_are_of_one_version() -> None:
    (daemon,) = re.findall(r"moby/buildkit:(v[0-9.]+)-rootless", (DEPLOY / "buildkit.yaml").read_text())
    (client,) = re.findall(r"^ARG BUILDKIT=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert daemon == client


def test_the_example_is_valid() -> None:
    (example,) = of_kind("Application", DEPLOY)
    assert Application.parse(example).key == "shop/shop"


@pytest.mark.parametrize("repository", ["hello", "hello-pod", "shop"])
def test_every_image_of_a_sample_is_built_by_exactly_one_dockerfile(repository: str) -> None:
    root = MANIFESTS / repository
    built = sorted(path.parent.name for path in root.rglob("Dockerfile"))
    pods = [each.get("spec", {}).get("template", each) for each in objects(root / "manifests")]
    used = {c["image"].removeprefix("kubetm/") for pod in pods for c in pod.get("spec", {}).get("containers", [])}
    assert sorted(used) == built
    languages = {path.suffix for path in root.rglob("*") if path.suffix in {".js", ".py", ".sh", ".html"}}
    assert len(languages) >= (4 if repository == "shop" else 1)
