"""What would be built from a commit and what a change touches: without registry, builder and cluster."""

from dataclasses import replace
from pathlib import Path

import pytest

from gitsync.errors import Invalid
from gitsync.images import Destination, Images, describe
from gitsync.images.buildah import Buildah
from gitsync.model import ImageSpec
from tests.unit.images.support import HELLO, Repository

WEB = ImageSpec(name="shop/web", context="web", dockerfile="docker/web.Dockerfile", platforms=("linux/amd64",))
FILES = {
    "hello/Dockerfile": "ARG T=slim\nFROM node:$T\nCOPY . .\n",
    "hello/hello.js": "1",
    "hello/.dockerignore": "*.md\nDockerfile\n",
    "hello/README.md": "x",
    "docker/web.Dockerfile": "FROM scratch\nCOPY . .\nHEALTHCHECK NONE\n",
    "docker/web.Dockerfile.dockerignore": "*\n!index.html",
    "web/.dockerignore": "index.html",
    "web/index.html": "x",
    "web/other": "x",
}


async def test_a_row_says_what_a_build_would_use(tmp_path: Path) -> None:
    commit = await Repository(tmp_path / "shop").commit(FILES)
    hello, shop = await describe(commit, [HELLO, WEB], platforms=("linux/arm64",))
    assert (hello["name"], hello["context"], hello["dockerfile"]) == ("kubetm/hello", "hello", "hello/Dockerfile")
    assert (hello["bases"], hello["resolved"], hello["platforms"]) == ({"node:slim": None}, False, ["linux/arm64"])
    assert hello["tag"] == f"gs-{hello['fingerprint'][:32]}"
    assert hello["inputs"] == 2  # hello.js and .dockerignore
    assert (shop["bases"], shop["resolved"], shop["platforms"]) == ({}, True, ["linux/amd64"])
    assert (shop["format"], hello["format"]) == ("docker", "oci")
    assert shop["inputs"] == 1  # the Dockerfile's own ignore file comes first
    digest = "sha256:" + "1" * 64
    (locked,) = await describe(commit, [HELLO], bases={"node:slim": digest}, platforms=("linux/arm64",))
    assert (locked["bases"], locked["resolved"]) == ({"node:slim": digest}, True)
    assert locked["fingerprint"] != hello["fingerprint"]
    both, turned = [
        (await describe(commit, [replace(WEB, platforms=platforms)]))[0]["fingerprint"]
        for platforms in (("linux/amd64", "linux/arm64"), ("linux/arm64", "linux/amd64"))
    ]
    assert both == turned != shop["fingerprint"]


@pytest.mark.parametrize(
    ("change", "hello", "web"),
    [
        ({"README.md": "y"}, [], []),
        ({"hello/README.md": "y"}, [], []),
        ({"hello/hello.js": "2"}, ["hello/hello.js"], []),
        ({"hello/new.js": "2", "web/other": "y"}, ["hello/new.js"], []),
        ({"hello/hello.js": None}, ["hello/hello.js"], []),
        ({"hello/Dockerfile": "FROM node\n"}, ["hello/Dockerfile"], []),
        ({"hello/.dockerignore": "Dockerfile\n"}, ["hello/.dockerignore"], []),
        ({"web/.dockerignore": "nothing"}, [], []),
        ({"docker/web.Dockerfile.dockerignore": "*\n!index.html\n# why"}, [], []),
        ({"docker/web.Dockerfile.dockerignore": "*\n!other"}, [], ["docker/web.Dockerfile.dockerignore"]),
    ],
)
async def test_what_a_change_touches(
    tmp_path: Path, change: dict[str, str | None], hello: list[str], web: list[str]
) -> None:
    repo = Repository(tmp_path / "shop")
    before = await repo.commit(FILES)
    after = await repo.commit(change)
    old = await describe(before, [HELLO, WEB])
    rows = await describe(after, [HELLO, WEB], since=before)
    assert [row["files"] for row in rows] == [hello, web]
    assert [row["touched"] for row in rows] == [bool(hello), bool(web)]
    assert [row["fingerprint"] != was["fingerprint"] for row, was in zip(rows, old, strict=True)] == [
        row["touched"] for row in rows
    ]


async def test_each_platform_has_the_bases_of_its_own_stages(tmp_path: Path) -> None:
    text = "FROM one:1 AS base-amd64\nFROM two:2 AS base-arm64\nFROM base-${TARGETARCH}\nCOPY . .\n"
    commit = await Repository(tmp_path / "shop").commit(FILES | {"hello/Dockerfile": text})
    both = replace(HELLO, platforms=("linux/amd64", "linux/arm64"))
    (alone,) = await describe(commit, [replace(HELLO, platforms=("linux/amd64",))])
    (row,) = await describe(commit, [both])
    assert (set(alone["bases"]), set(row["bases"])) == ({"one:1"}, {"one:1", "two:2"})


async def test_a_base_that_no_build_for_several_platforms_can_name_is_refused(tmp_path: Path) -> None:
    text = "FROM --platform=$BUILDPLATFORM tool-$BUILDARCH AS tool\nFROM base-${TARGETARCH}:1\nCOPY . .\n"
    commit = await Repository(tmp_path / "shop").commit(FILES | {"hello/Dockerfile": text})
    (row,) = await describe(commit, [replace(HELLO, platforms=("linux/arm64",))])
    assert set(row["bases"]) == {"base-arm64:1"}
    with pytest.raises(
        Invalid, match=r"hello/Dockerfile:2\): “base-\$\{TARGETARCH\}:1” is base-amd64:1 or base-arm64:1"
    ):
        await describe(commit, [replace(HELLO, platforms=("linux/amd64", "linux/arm64"))])


async def test_an_image_that_is_new_is_touched(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "shop")
    before = await repo.commit({"README": ""})
    (row,) = await describe(await repo.commit(FILES), [WEB], since=before)
    assert row["files"] == ["docker/web.Dockerfile", "web/index.html"]


async def test_rules_that_are_a_link_let_nothing_in_unnoticed(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "shop")
    await repo.commit(FILES)
    (repo.path / "hello" / "rules").write_text("*.key\n")
    (repo.path / "hello" / ".dockerignore").unlink(missing_ok=True)
    (repo.path / "hello" / ".dockerignore").symlink_to("rules")
    with pytest.raises(Invalid, match=r"hello/\.dockerignore\): it is no plain file"):
        await describe(await repo.commit({}), [HELLO])


async def test_a_commit_that_could_not_be_built_is_no_hindrance_to_comparing_with_it(tmp_path: Path) -> None:
    repo = Repository(tmp_path / "shop")
    before = await repo.commit(FILES | {"docker/web.Dockerfile.dockerignore": "[a"})
    after = await repo.commit({"docker/web.Dockerfile.dockerignore": "*\n!index.html"})
    (row,) = await describe(after, [WEB], since=before)
    assert row["files"] == ["docker/web.Dockerfile", "web/index.html"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            ImageSpec(name="x", context="web", dockerfile="web/Dockerfile"),
            "image x has no Dockerfile",
        ),
        (ImageSpec(name="x", context="gone", dockerfile="hello/Dockerfile"), "directory “gone” of image x is not"),
        (ImageSpec(name="x", context="hello", dockerfile="link"), "it is no plain file"),
        (ImageSpec(name="x", context="hello", dockerfile="hello/Dockerfile", target="t"), "no stage “t”"),
    ],
)
async def test_an_entry_that_does_not_fit_the_repository(tmp_path: Path, spec: ImageSpec, said: str) -> None:
    repo = Repository(tmp_path / "shop")
    (repo.path / "link").symlink_to("hello/Dockerfile")
    commit = await repo.commit(FILES)
    with pytest.raises(Invalid, match=said):
        await describe(commit, [spec])


async def test_without_a_registry_nothing_is_pushed_anywhere(tmp_path: Path) -> None:
    commit = await Repository(tmp_path / "shop").commit(FILES)
    async with Images(Buildah(tmp_path / "store"), tmp_path / "work") as images:
        with pytest.raises(Invalid, match=r"no registry to push image shop/web to.*set a registry"):
            await images.ensure(commit, [WEB], to=Destination())
