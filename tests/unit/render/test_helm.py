"""What can be told about charts without helm: its arguments, its absence, its dependencies, its comments."""

import pytest

from gitsync.errors import Invalid
from gitsync.render import helm, render
from gitsync.render.helm import Sources, command, is_released
from tests.unit.render.conftest import Commit

CHART = "apiVersion: v2\nname: web\nversion: 1.0.0\n"


def test_arguments() -> None:
    assert command("/bin/helm", release="web", namespace="shop", values=["prod.yaml"]) == [
        "/bin/helm", "template", "web", ".", "--include-crds", "--skip-tests",
        "--namespace", "shop", "--values", "prod.yaml",
    ]  # fmt: skip


async def test_without_helm_it_says_what_to_do(commit: Commit, only_git: None) -> None:
    snapshot = await commit({"chart/Chart.yaml": CHART, "chart/templates/a.yaml": "{{ .Values.x }}\n"})
    with pytest.raises(Invalid, match=r"chart/Chart\.yaml\): helm is not on PATH; install it") as caught:
        await render(snapshot, "chart")
    assert caught.value.reason == "ToolMissing"


async def test_a_dependency_that_is_not_committed_is_refused(commit: Commit, only_git: None) -> None:
    chart = CHART + "dependencies:\n- {name: redis, repository: 'https://example.test', version: 1.0.0}\n"
    with pytest.raises(Invalid, match=r"chart/Chart\.yaml:5 dependencies\[0\]\): the dependency 'redis' is not in"):
        await render(await commit({"chart/Chart.yaml": chart}), "chart")
    with pytest.raises(Invalid, match="helm is not on PATH"):
        await render(await commit({"chart/charts/redis-1.0.0.tgz": b"\x1f\x8b"}), "chart")


def test_the_template_of_each_document_is_known_by_helms_comments() -> None:
    output = b"---\n# Source: web/templates/a.yaml\na: 1\n---\n# Source: web/charts/redis/templates/b.yaml\nb: 2\n"
    sources = Sources(output, "deploy/web")
    assert [sources.at(line) for line in (1, 3, 6)] == [
        "",
        "deploy/web/templates/a.yaml",
        "deploy/web/charts/redis/templates/b.yaml",
    ]


@pytest.mark.parametrize(
    ("events", "released"),
    [
        ("pre-delete", False),  # an uninstaller: what it removes is the data of what serves
        ("post-delete, pre-rollback", False),
        ("test", False),
        ("test-success", False),
        ("post-install,post-upgrade", True),
        ("pre-upgrade, pre-delete", True),
        ("crd-install", True),
        ("", True),
    ],
)
def test_what_is_for_a_deletion_or_a_rollback_is_no_part_of_a_release(events: str, released: bool) -> None:
    assert is_released({"metadata": {"name": "a", "annotations": {"helm.sh/hook": events}}}) is released


def test_what_is_no_hook_is_part_of_a_release() -> None:
    assert is_released({"metadata": {"name": "a"}})
    assert is_released({"metadata": {"name": "a", "annotations": None}})
    assert is_released({})


PRINTED = b"""---
# Source: web/templates/config.yaml
{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}}
---
# Source: web/templates/uninstall.yaml
{apiVersion: batch/v1, kind: Job, metadata: {name: uninstall, annotations: {helm.sh/hook: pre-delete}}}
"""


async def test_the_uninstaller_of_a_chart_is_not_run(commit: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    async def build(*_: object, **__: object) -> bytes:
        return PRINTED  # as helm prints it, which is not here

    monkeypatch.setattr(helm, "build", build)
    desired = await render(await commit({"chart/Chart.yaml": CHART}), "chart")
    assert [str(each.ref) for each in desired.manifests] == ["ConfigMap/kept"]
    assert desired.manifests[0].origin.file == "chart/templates/config.yaml"
