"""A kustomization is built by the real binary, from the commit's files alone."""

import os
import tempfile
from pathlib import Path

import pytest

from gitsync.errors import Invalid
from gitsync.render import RenderOptions, render
from gitsync.render.tool import Bounds
from tests.unit.render.conftest import Commit, Files, config_map
from tests.unit.source.conftest import Repository

DEPLOYMENT = """# the web
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: shop/web}]}
"""
FILES: Files = {
    "base/kustomization.yaml": "resources: [web.yaml, ../common]\n",
    "base/web.yaml": DEPLOYMENT,
    "common/kustomization.yml": "resources: [settings.yaml]\n",
    "common/settings.yaml": config_map(),
    "prod/kustomization.yaml": "resources: [../base]\nnamespace: prod\nnamePrefix: p-\n"
    "patches: [{path: patch.yaml}]\n"
    "configMapGenerator: [{name: made, files: [a.txt]}]\n",
    "prod/patch.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3}\n",
    "prod/a.txt": "hello\n",
}


async def test_objects_come_with_the_file_they_came_from(commit: Commit) -> None:
    desired = await render(await commit(FILES), "prod")
    found = {str(m.ref).rsplit("-", 1)[0] if m.ref.kind == "ConfigMap" else str(m.ref): m for m in desired.manifests}
    assert {name: (m.origin.file, m.origin.line) for name, m in found.items()} == {
        "Deployment/prod/p-web": ("base/web.yaml", 2),
        "ConfigMap/prod/p": ("common/settings.yaml", 1),
        "ConfigMap/prod/p-made": ("prod/kustomization.yaml", 0),
    }
    web = found["Deployment/prod/p-web"]
    assert web.object["spec"]["replicas"] == 3
    assert str(web.at("spec.replicas")).endswith("base/web.yaml:6 spec.replicas")
    assert web.origin.sha == desired.revision.sha
    assert all("annotations" not in m.object["metadata"] for m in desired.manifests)


async def test_a_kustomization_at_the_root(commit: Commit) -> None:
    desired = await render(await commit({"Kustomization": "resources: [a.yaml]\n", "a.yaml": config_map()}), "")
    assert str(desired.manifests[0].origin).endswith("a.yaml:1:1")


REFUSED = {
    "resources: [https://git.example.test/base?ref=v1]\n": (
        "1",
        "'https://git.example.test/base?ref=v1' is not in the",
    ),
    "resources:\n- a.yaml\n- github.com/example/base\n": ("3", "'github.com/example/base' is not in the commit"),
    "resources: [git@git.example.test:base]\n": ("1", "'git@git.example.test:base' is not in the commit"),
    "resources: [../../etc]\n": ("1", "'../../etc' is not in the commit"),
    "resources: [/etc]\n": ("1", "'/etc' is not in the commit"),
    "resources: [gone.yaml]\n": ("1", "'gone.yaml' is not in the commit"),
    "components:\n- ../gone\n": ("2", "'../gone' is not in the commit"),
    "resources: [a.yaml]\npatches:\n- path: http://example.test/p.yaml\n": ("3", "is remote"),
    "configMapGenerator:\n- name: a\n  files: [k=https://example.test/f]\n": ("3", "is remote"),
    "helmCharts: [{name: x, repo: 'https://example.test'}]\n": ("1", "inflating a Helm chart"),
    "resources: a.yaml\nresources: b.yaml\n": ("2", "second time"),
    "- a\n": ("", "must hold exactly one object"),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.items(), ids=lambda value: repr(value)[:50])
async def test_what_is_not_in_the_commit_is_refused_before_anything_runs(
    text: str, expected: tuple[str, str], commit: Commit, only_git: None
) -> None:
    snapshot = await commit({"app/kustomization.yaml": text, "app/a.yaml": config_map()})
    with pytest.raises(Invalid) as caught:
        await render(snapshot, "app")
    origin = caught.value.origin
    assert origin is not None
    assert f"{origin.file}:{origin.line or ''}" == f"app/kustomization.yaml:{expected[0]}"
    assert expected[1] in caught.value.message


async def test_without_a_binary_it_says_what_to_do(commit: Commit, only_git: None) -> None:
    snapshot = await commit(FILES)
    with pytest.raises(Invalid, match=r"neither kustomize nor kubectl is on PATH.*install one of them") as caught:
        await render(snapshot, "prod")
    assert caught.value.reason == "ToolMissing"


async def test_the_tools_own_complaint_is_passed_on(commit: Commit) -> None:
    patch = DEPLOYMENT.replace("name: web}\nspec", "name: other}\nspec")
    with pytest.raises(Invalid, match="no matches for Id Deployment") as caught:
        await render(await commit(FILES | {"prod/patch.yaml": patch}), "prod")
    assert caught.value.origin is not None
    assert caught.value.origin.file == "prod/kustomization.yaml"


async def test_files_outside_the_root_are_refused_by_the_tool(commit: Commit) -> None:
    files: Files = {
        "app/kustomization.yaml": "resources: [../other]\nconfigMapGenerator: [{name: a, files: [../other/a.txt]}]\n",
        "other/kustomization.yaml": "resources: [a.yaml]\n",
        "other/a.yaml": config_map(),
        "other/a.txt": "x\n",
    }
    with pytest.raises(Invalid, match=r"security; file .* is not in or below 'tree/app'") as caught:
        await render(await commit(files), "app")
    assert tempfile.gettempdir() not in str(caught.value)


async def test_links_submodules_and_lfs_pointers_are_refused_by_name(work: Repository, commit: Commit) -> None:
    (work.path / "base").mkdir()
    (work.path / "base/evil").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match=r"base/evil\): is a symbolic link"):
        await render(await commit(FILES), "prod")
    (work.path / "base/evil").unlink()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    with pytest.raises(Invalid, match=r"prod/a\.txt.*is a Git LFS pointer"):
        await render(await commit({"prod/a.txt": pointer}), "prod")


async def test_too_much_is_refused(commit: Commit) -> None:
    snapshot = await commit(FILES | {"base/big.bin": b"x" * 5000})
    with pytest.raises(Invalid, match="hold more than 4000 bytes"):
        await render(snapshot, "prod", options=RenderOptions(size=4000))
    with pytest.raises(Invalid, match="gives more than 100 bytes"):
        await render(snapshot, "prod", options=RenderOptions(bounds=Bounds(output=100)))


@pytest.mark.parametrize(
    ("kustomization", "words"),
    [
        ("secretGenerator: [{name: s, literals: [user=bob, pw=hunter2, 'pw:hunter2']}]\n", "expected key=value"),
        (f"secretGenerator: [{{name: s, literals: [{', '.join(f'k{n}=hunter2{n:0300}' for n in range(9))}, hunter2]}}]",
         "expected key=value"),
        ("patches:\n- target: {kind: Secret}\n  patch: '[{op: add, path: /data/a, value: hunter2}'\n",
         "unable to parse SM or JSON patch"),
        ("patches:\n- patch: |-\n    kind: Secret\n    hunter2 `x`: y\n", "unable to parse SM or JSON patch"),
    ],
    ids=["literals", "many literals", "json patch", "merge patch"],
)  # fmt: skip
async def test_what_kustomize_says_holds_no_value_of_a_secret(commit: Commit, kustomization: str, words: str) -> None:
    secret = "{apiVersion: v1, kind: Secret, metadata: {name: s2}, data: {a: eA==}}\n"
    with pytest.raises(Invalid, match=words) as caught:
        await render(await commit({"app/kustomization.yaml": f"resources: [s.yaml]\n{kustomization}",
                                   "app/s.yaml": secret}), "app")  # fmt: skip
    assert "hunter2" not in str(caught.value)


async def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a ``kustomize`` of our own first on PATH."""
    binary = tmp_path / "bin" / "kustomize"
    binary.parent.mkdir()
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")


async def test_a_tool_that_hangs_is_killed_with_its_children(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = await commit(FILES)
    await tool(tmp_path, monkeypatch, f"/bin/sleep 300 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(Invalid, match="takes more than 1 s"):
        await render(snapshot, "prod", options=RenderOptions(bounds=Bounds(deadline=1)))
    child = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"


async def test_the_tool_sees_no_environment_of_ours_and_no_network(
    commit: Commit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = await commit(FILES)
    await tool(tmp_path, monkeypatch, f"/usr/bin/env > {tmp_path}/seen; exit 3")
    monkeypatch.setenv("GIT_TOKEN", "hunter2")
    with pytest.raises(Invalid, match="ends with code 3"):
        await render(snapshot, "prod")
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines())
    assert "hunter2" not in seen.values()
    assert (seen["PATH"], seen["HTTPS_PROXY"], seen["KUBECONFIG"]) == ("", "http://127.0.0.1:9", "/dev/null")
    assert not Path(seen["HOME"]).exists(), "the private directory is gone"
