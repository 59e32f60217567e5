"""A plain directory of a commit: what counts, what is refused and where, what is dropped."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from gitsync.errors import Invalid
from gitsync.model import Desired, ObjectRef
from gitsync.render import Reader, RenderOptions, render, render_directory, with_namespace
from tests.unit.render.conftest import Commit, Files, config_map
from tests.unit.source.conftest import Repository

WEB = """apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  selector:
    matchLabels:
      app: web
      tier: front
    matchExpressions:
      - {key: app, operator: In, values: [web]}
  template:
    metadata:
      labels:
        app: web
        tier: front
    spec:
      containers:
        - name: web
          image: shop/web
"""


async def names(commit: Commit, files: Files, path: str = "m") -> list[str]:
    return [str(m.ref) for m in (await render(await commit(files), path)).manifests]


async def refused(commit: Commit, files: Files, path: str = "m", options: RenderOptions | None = None) -> Invalid:
    with pytest.raises(Invalid) as caught:
        await render(await commit(files), path, options=options)
    return caught.value


async def test_yaml_and_json_are_read_recursively_in_file_order(commit: Commit) -> None:
    files: Files = {
        "m/b.yml": config_map("b1") + "---\n" + config_map("b2"),
        "m/a.json": '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}',
        "m/sub/deep/c.yaml": config_map("c", namespace="shop"),
        "m/README.md": "not: [read",
        "m/.hidden/x.yaml": "not: [read",
        "m/.x.yaml": "not: [read",
        "m2/x.yaml": "not: [read",
    }
    desired = await render(await commit(files), "./m/")
    assert [(str(m.ref), m.origin.file, m.origin.line) for m in desired.manifests] == [
        ("ConfigMap/a", "m/a.json", 1),
        ("ConfigMap/b1", "m/b.yml", 1),
        ("ConfigMap/b2", "m/b.yml", 6),
        ("ConfigMap/shop/c", "m/sub/deep/c.yaml", 1),
    ]
    assert {m.origin.sha for m in desired.manifests} == {desired.revision.sha}


async def test_a_single_file_may_be_named(commit: Commit) -> None:
    assert await names(commit, {"m/a.yaml": config_map("a"), "m/b.yaml": config_map("b")}, "m/b.yaml") == [
        "ConfigMap/b"
    ]


async def test_lists_are_expanded_and_items_know_their_place(commit: Commit) -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: a}\n"
        "- apiVersion: v1\n  kind: ConfigMapList\n  items:\n  - metadata:\n      name: b\n"
    )
    desired = await render(await commit({"m/a.yaml": text}), "m")
    assert [(str(m.ref), m.ref.api_version, m.origin.line, m.origin.field) for m in desired.manifests] == [
        ("Secret/a", "v1", 4, "items[0]"),
        ("ConfigMap/b", "v1", 10, "items[1].items[0]"),
    ]
    assert str(desired.manifests[1].at("metadata.name")).endswith("m/a.yaml:11 metadata.name")
    assert desired.manifests[1].object["kind"] == "ConfigMap"


async def test_what_only_a_server_writes_is_dropped(commit: Commit) -> None:
    text = WEB.replace(
        "  name: web\nspec", "  name: web\n  creationTimestamp: null\n  uid: x\n  resourceVersion: '1'\nspec"
    )
    text = text.replace("      labels:", "      creationTimestamp: null\n      labels:") + "status: {}\n"
    (manifest,) = (await render(await commit({"m/a.yaml": text}), "m")).manifests
    assert manifest.object["metadata"] == {"name": "web"}
    assert manifest.object["spec"]["template"]["metadata"] == {"labels": {"app": "web", "tier": "front"}}
    assert "status" not in manifest.object
    assert list(manifest.object) == ["apiVersion", "kind", "metadata", "spec"]


async def test_status_alone_is_dropped_too(commit: Commit) -> None:
    (manifest,) = (await render(await commit({"m/a.yaml": config_map() + "status: {phase: Active}\n"}), "m")).manifests
    assert list(manifest.object) == ["apiVersion", "kind", "metadata"]


async def test_a_kustomization_of_configuration_is_not_applied(commit: Commit) -> None:
    component = "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n"
    assert await names(commit, {"m/a.yaml": component + "---\n" + config_map()}) == ["ConfigMap/settings"]


CM = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n"
BAD: dict[str, tuple[str, str]] = {
    # what the file holds → where it is refused, and in which words
    "replicaCount: 1\nimage: x\n": ("1:1", "neither apiVersion nor kind; move it out"),
    "- a\n": ("1:1", "must be an object, this is a list"),
    "hello\n": ("1:1", "must be an object, this is a string"),
    "apiVersion: v1\nmetadata: {name: a}\n": ("1:1 kind", "kind is missing"),
    "kind: A\nmetadata: {name: a}\n": ("1:1 apiVersion", "apiVersion is missing"),
    "apiVersion: 1\nkind: A\n": ("1 apiVersion", "apiVersion must be a string"),
    "apiVersion: v1\nkind: no\n": ("2 kind", "kind must be a string"),
    "apiVersion: V1/\nkind: A\n": ("1 apiVersion", "'V1/' is no apiVersion"),
    "apiVersion: v1\nkind: A\nmetadata: x\n": ("3 metadata", "must be an object"),
    "apiVersion: v1\nkind: A\n": ("1:1 metadata", "metadata.name is missing"),
    CM + "  name:\n": ("4 metadata.name", "metadata.name is missing"),
    CM + "  generateName: a-\n": ("4 metadata.generateName", "would make a new object at every synchronisation"),
    CM + "  name: 1\n": ("4 metadata.name", "must be a string, not the number 1; quote it"),
    CM + "  name: no\n": ("4 metadata.name", "must be a string, not the boolean false; quote it"),
    CM + "  name: My_Map\n": ("4 metadata.name", "'My_Map' is no name for a ConfigMap: lower-case"),
    CM + '  name: "{{ .Values.name }}"\n': ("4 metadata.name", "template that was not rendered"),
    CM + "  name: " + "a" * 254 + "\n": ("4 metadata.name", "at most 253"),
    CM + "  name: a\n  namespace: Shop\n": ("5 metadata.namespace", "'Shop' is no name for a Namespace"),
    CM + "  name: a\n  labels:\n    version: 1.0\n": ("6 metadata.labels.version", "not the number 1; quote it"),
    CM + "  name: a\n  annotations:\n    a.b/c: true\n": ("6 metadata.annotations[a.b/c]", "not the boolean true"),
    CM + "  name: a\n  labels: [x]\n": ("5 metadata.labels", "must be an object"),
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: a.b\n": ("4 metadata.name", "at most 63"),
    "apiVersion: v1\nkind: List\nitems:\n- kind: A\n  apiVersion: v1\n": ("4 items[0].metadata", "name is missing"),
    "apiVersion: v1\nkind: List\nitems:\n- a\n": ("4 items[0]", "must be an object, this is a string"),
    WEB.replace("      app: web\n      tier", "      app: api\n      tier"): (
        "8 spec.selector.matchLabels.app",
        "the selector wants app='api', but the pod template has 'web'; make spec.selector",
    ),
    WEB.replace("        tier: front\n", ""): (
        "9 spec.selector.matchLabels.tier",
        "wants tier='front', but the pod template has no such label",
    ),
    WEB.replace("values: [web]", "values: [api]"): (
        "11 spec.selector.matchExpressions[0]",
        "the expression does not match the labels",
    ),
    WEB.replace("shop/web", '"{{ .Values.image }}"'): (
        "20 spec.template.spec.containers[0].image",
        "'{{ .Values.image }}' is no image; it looks like a template",
    ),
    CM + "  name: a\ndata:\n  a: &x {}\n  a: 2\n": (
        "7:3",
        "the key 'a' stands here for a second time, first on line 6",
    ),
    "apiVersion: v1\nkind: {{ .Values.kind }}\n": ("2:8", "template that was not rendered"),
    CM + "  name: a\n\tlabels: {}\n": ("5:1", "a tab cannot indent YAML"),
    CM + "  name: 'a\n": ("5:1", "unexpected end of stream"),
    config_map("a") + "---\n" + CM: ("8 metadata", "metadata.name is missing"),
}


@pytest.mark.parametrize(("text", "expected"), BAD.items(), ids=lambda value: repr(value)[-60:])
async def test_a_bad_object_is_refused_at_its_place(text: str, expected: tuple[str, str], commit: Commit) -> None:
    place, words = expected
    error = await refused(commit, {"m/a.yaml": config_map("good"), "m/b.yaml": text})
    assert error.origin is not None
    assert str(error.origin) == f"work@{error.origin.sha[:7]} m/b.yaml:{place}"
    assert words in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: 'system:aggregate:View'}\n",
        "apiVersion: example.test/v1\nkind: Other\nmetadata: {name: 'Anything_goes:here'}\n",
        "apiVersion: v1\nkind: ReplicationController\nmetadata: {name: a}\n"
        "spec: {selector: {a: b}, template: {metadata: {labels: {a: b, c: d}}}}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a.b-c.d, labels: {a: }}\n",
        "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {name: a}\n"
        "spec: {containers: [{name: a, image: '{{inputs.parameters.image}}'}]}\n",
    ],
)
async def test_what_is_unusual_but_right_is_left_to_the_server(text: str, commit: Commit) -> None:
    assert len(await names(commit, {"m/a.yaml": text})) == 1


async def test_the_same_object_twice_names_both_places(commit: Commit) -> None:
    error = await refused(
        commit, {"m/a.yaml": config_map("a"), "m/b.yaml": config_map("b") + "---\n# again\n" + config_map("a")}
    )
    assert re.fullmatch(
        r"while rendering ConfigMap/a \(work@[0-9a-f]{7} m/b\.yaml:7:1\): is there twice, first at m/a\.yaml:1:1; "
        "keep one of them",
        str(error),
    )


async def test_the_same_name_of_another_kind_group_or_namespace_is_another_object(commit: Commit) -> None:
    text = "---\n".join(
        [config_map("a"), config_map("a", namespace="x"), config_map("a").replace("ConfigMap", "Secret"),
         config_map("a").replace("v1", "example.test/v1")]
    )  # fmt: skip
    assert len(await names(commit, {"m/a.yaml": text})) == 4


EMPTY: dict[str, tuple[Files, str, str, str]] = {
    "no such directory": ({"x/a.yaml": config_map()}, "m", "is not in the commit; name the directory", "PathNotFound"),
    "a file on the way": ({"m": "x"}, "m/sub", "is a file, not a directory", "Invalid"),
    "no manifest": ({"m/a.txt": "x"}, "m", "holds no file that ends in .yaml, .yml, .json", "Empty"),
    "only comments": ({"m/a.yaml": "# a\n---\n# b\n", "m/b.yaml": ""}, "m", "holds no object, only comments", "Empty"),
    "an empty list": ({"m/a.yaml": "apiVersion: v1\nkind: List\nitems: []\n"}, "m", "holds no object", "Empty"),
    "outside": ({"m/a.yaml": config_map()}, "../m", "leaves the repository", "Invalid"),
    "absolute": ({"m/a.yaml": config_map()}, "/etc", "leaves the repository", "Invalid"),
}


@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY.keys())
async def test_nothing_is_never_taken_for_a_wish_to_delete(case: tuple[Files, str, str, str], commit: Commit) -> None:
    files, path, words, reason = case
    error = await refused(commit, files, path)
    assert words in str(error)
    assert error.reason == reason


@pytest.mark.parametrize("target", ["/etc/passwd", "../../..", ".git/config", "a.yaml", "link.yaml", "b.yaml"])
async def test_a_link_on_a_used_path_is_refused_by_name(target: str, work: Repository, commit: Commit) -> None:
    work.write("m/b.yaml", config_map())
    (work.path / "m/a.yaml").symlink_to(target)
    error = await refused(commit, {})
    assert re.search(r"m/a\.yaml\): is a symbolic link; commit the file itself", str(error))


async def test_a_link_that_could_be_a_directory_is_refused_but_one_to_a_readme_is_not(
    work: Repository, commit: Commit
) -> None:
    work.write("m/b.yaml", config_map())
    (work.path / "m/README.md").symlink_to("../README.md")
    assert len((await render(await commit({}), "m")).manifests) == 1
    (work.path / "m/more").symlink_to("../other")
    assert "m/more): is a symbolic link" in str(await refused(commit, {}))


async def test_a_path_through_a_link_is_refused(work: Repository, commit: Commit) -> None:
    work.write("real/b.yaml", config_map())
    (work.path / "m").symlink_to("real")
    assert "m): is a symbolic link" in str(await refused(commit, {}, "m/sub"))
    assert "m): is a symbolic link" in str(await refused(commit, {}, "m"))


async def test_a_submodule_is_refused_by_name(work: Repository, commit: Commit) -> None:
    await commit({"m/a.yaml": config_map()})
    work.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},m/vendor")
    work.git("commit", "--quiet", "--message", "submodule")
    from gitsync.source import GitSource

    source = GitSource(work.path.parent / "cache2")
    with pytest.raises(Invalid, match=r"m/vendor\): is a submodule; commit its files"):
        await render(await source.snapshot(await source.local(work.path)), "m")


async def test_an_lfs_pointer_is_refused_by_name(commit: Commit) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"
    assert re.search(r"m/a\.yaml\)?.*Git LFS pointer", str(await refused(commit, {"m/a.yaml": pointer})))


async def test_names_of_files_can_be_anything_that_prints(commit: Commit) -> None:
    assert len(await names(commit, {"m/-rf.yaml": config_map("a"), "m/é x.yaml": config_map("b")})) == 2
    error = await refused(commit, {"m/new\nline.yaml": config_map("c")})
    assert r"m/new\nline.yaml): has a name with unprintable characters" in str(error)


async def test_a_file_name_of_invalid_utf8_is_refused(work: Repository, commit: Commit) -> None:
    (work.path / "m").mkdir()
    with open(os.fsencode(work.path / "m") + b"/\xff.yaml", "w") as file:
        file.write(config_map())
    error = await refused(commit, {})
    assert r"m/\udcff.yaml): has a name with unprintable characters" in str(error)
    str(error).encode()


@pytest.mark.parametrize(("name", "kind"), [("kustomization.yaml", "kustomization"), ("Chart.yaml", "chart")])
async def test_a_kustomization_or_chart_in_mid_tree_is_an_error_not_a_guess(
    name: str, kind: str, commit: Commit
) -> None:
    error = await refused(commit, {"m/a.yaml": config_map(), f"m/prod/{name}": "resources: []\n"})
    assert f"m/prod/{name}): is a {kind} within the plain directory 'm'; name 'm/prod' as `path`" in str(error)


async def test_limits(commit: Commit) -> None:
    files: Files = {f"m/{index}.yaml": config_map(f"a{index}") for index in range(5)}
    assert "holds more than 4 files" in str(await refused(commit, files, options=RenderOptions(files=4)))
    assert "beyond what a manifest may be" in str(await refused(commit, files, options=RenderOptions(size=200)))
    assert "beyond what a manifest may be" in str(await refused(commit, {"m/big.yaml": b"#" * ((16 << 20) + 1)}))


async def test_an_object_that_kubernetes_cannot_store_is_refused(commit: Commit) -> None:
    big = config_map("big") + "data:\n  a: " + "x" * (3 << 19) + "\n"
    error = await refused(commit, {"m/a.yaml": config_map("a"), "m/b.yaml": config_map("b") + "---\n" + big})
    assert re.search(
        r"ConfigMap/big \(work@\w+ m/b\.yaml:6:1\): is 1572\d+ bytes long, more than the 1572864", str(error)
    )
    small = "---\n".join(config_map(f"c{index}") + "data:\n  a: " + "x" * 400_000 + "\n" for index in range(6))
    assert len(await names(commit, {"m/a.yaml": small, "m/b.yaml": ""})) == 6


async def test_one_reader_serves_many_renders_and_reads_no_blob_twice(commit: Commit) -> None:
    snapshot = await commit({"m/a.yaml": config_map("a"), "m/b.yaml": config_map("b")})
    asked: list[str] = []

    class Watched:
        """The real snapshot, counting what is read of it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(snapshot, name)

        async def read(self, entries: Any, *, limit: int = 0) -> dict[str, bytes]:
            wanted = list(entries)
            asked.extend(entry.path for entry in wanted)
            return await snapshot.read(wanted, limit=limit)

    async with Reader() as reader:
        options = RenderOptions(reader=reader)
        first = await render(Watched(), "m", options=options)  # pyright: ignore[reportArgumentType] -- see __getattr__
        second = await render(Watched(), "m", options=options)  # pyright: ignore[reportArgumentType]
    assert asked == ["m/a.yaml", "m/b.yaml"]
    assert [m.object for m in first.manifests] == [m.object for m in second.manifests]


# ---------------------------------------------------------------- namespaces


async def desired_of(commit: Commit, text: str) -> Desired:
    return await render(await commit({"m/a.yaml": text}), "m")


def is_namespaced(ref: ObjectRef) -> bool:
    return ref.kind != "ClusterRole"


async def test_namespaces_are_filled_by_scope(commit: Commit) -> None:
    role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: r, namespace: odd}\n"
    before = await desired_of(commit, "---\n".join([config_map("a"), config_map("b", namespace="x"), role]))
    after = with_namespace(before, "shop", is_namespaced)
    assert [str(m.ref) for m in after.manifests] == ["ConfigMap/shop/a", "ConfigMap/x/b", "ClusterRole/r"]
    assert [m.object["metadata"].get("namespace") for m in after.manifests] == ["shop", "x", None]
    assert after.manifests[1] is before.manifests[1]
    assert "namespace" not in before.manifests[0].object["metadata"]


async def test_objects_that_a_filled_namespace_makes_the_same_are_refused(commit: Commit) -> None:
    before = await desired_of(commit, config_map("a") + "---\n" + config_map("a", namespace="shop"))
    with pytest.raises(Invalid, match=r"ConfigMap/shop/a .*is there twice, first at m/a\.yaml:1:1"):
        with_namespace(before, "shop", is_namespaced)


# ---------------------------------------------------------------- a directory on disk


async def test_a_directory_on_disk_is_read_exactly_and_without_git(tmp_path: Path) -> None:
    (tmp_path / "m/sub").mkdir(parents=True)
    (tmp_path / "m/a.yaml").write_text(config_map("a", creationTimestamp="null") + "status: {}\nx: NO\n")
    (tmp_path / "m/sub/b.yaml").write_text(config_map("b"))
    (tmp_path / "m/link.yaml").symlink_to("sub/c.txt")
    (tmp_path / "m/sub/c.txt").write_text(config_map("c"))
    manifests = await render_directory(tmp_path / "m")
    assert [(str(m.ref), str(m.origin)) for m in manifests] == [
        ("ConfigMap/a", "a.yaml:1:1"),
        ("ConfigMap/c", "link.yaml:1:1"),
        ("ConfigMap/b", "sub/b.yaml:1:1"),
    ]
    assert manifests[0].object == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "creationTimestamp": None},
        "status": {},
        "x": False,
    }
    (single,) = await render_directory(tmp_path / "m/sub/b.yaml")
    assert str(single.origin) == "b.yaml:1:1"


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside.yaml", "a.yaml", "nowhere"])
async def test_a_link_that_leaves_the_directory_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "outside.yaml").write_text(config_map())
    (tmp_path / "m/a.yaml").symlink_to(target)
    with pytest.raises(Invalid, match=r"a\.yaml\): is a symbolic link"):
        await render_directory(tmp_path / "m")


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="No such file or directory"):
        await render_directory(tmp_path / "gone")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), r"\(\.\): holds no file that ends in"),
        (("README.md",), r"\(\.\): holds no file that ends in"),
        (("a.yaml",), r"\(\.\): holds no object"),
    ],
)
async def test_a_directory_on_disk_without_objects(files: tuple[str, ...], words: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("# nothing\n")
    with pytest.raises(Invalid, match=words):
        await render_directory(tmp_path)


async def test_an_overlay_on_disk_cannot_leave_its_repository(tmp_path: Path) -> None:
    for path, text in {
        "repo/.git/HEAD": "",
        "repo/prod/kustomization.yaml": "resources: [../../outside]\n",
        "outside/kustomization.yaml": "resources: [a.yaml]\n",
        "outside/a.yaml": config_map("a"),
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    with pytest.raises(Invalid, match=r"'\.\./\.\./outside' is not in the commit"):
        await render_directory(tmp_path / "repo/prod")


async def test_an_overlay_on_disk_sees_its_repository(tmp_path: Path) -> None:
    for path, text in {
        ".git/HEAD": "",
        "base/kustomization.yaml": "resources: [a.yaml]\n",
        "base/a.yaml": config_map("a"),
        "prod/kustomization.yaml": "resources: [../base]\nnamespace: prod\n",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    (manifest,) = await render_directory(tmp_path / "prod")
    assert (str(manifest.ref), str(manifest.origin)) == ("ConfigMap/prod/a", "base/a.yaml:1:1")
