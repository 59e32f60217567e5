"""Which images are ours."""

import pytest

from gitsync.errors import Invalid
from gitsync.images import ImageUse, left_alone, select
from gitsync.model import ImageSpec, Origin

REPOSITORY = "https://git.example/team/hello.git"


def use(reference: str, line: int = 1) -> ImageUse:
    return ImageUse(reference=reference, origin=Origin(repository=REPOSITORY, sha="3f2a1b0c", file="m.yaml", line=line))


def chosen(files: list[str], *references: str, specs: tuple[ImageSpec, ...] = ()) -> dict[str, str]:
    found = select(files, [use(reference) for reference in references], specs, repository=REPOSITORY)
    return {spec.name: spec.dockerfile for spec in found}


@pytest.mark.parametrize(
    ("files", "reference", "expected"),
    [
        (["hello/Dockerfile"], "kubetm/hello", "hello/Dockerfile"),
        (["hello/Dockerfile"], "hello", "hello/Dockerfile"),
        (["hello/Dockerfile"], "kubetm/hello:latest", "hello/Dockerfile"),
        (["apps/deep/hello/Dockerfile", "web/Dockerfile"], "kubetm/hello", "apps/deep/hello/Dockerfile"),
        (["Dockerfile"], "kubetm/hello", "Dockerfile"),  # the root is named like the repository
        (["node/Dockerfile"], "node", "node/Dockerfile"),
        (["node/Dockerfile"], "node:18", None),
        (["hello/Dockerfile"], "kubetm/hello:v1", None),
        (["hello/Dockerfile"], "ghcr.io/kubetm/hello", None),
        (["hello/Dockerfile"], "localhost:5000/hello", None),
        (["hello/Dockerfile"], "kubetm/hello@sha256:" + "0" * 64, None),
        (["hello/Dockerfile"], "kubetm/other", None),
        (["hello/Dockerfile.dev", "hello/web.Dockerfile"], "kubetm/hello", None),
        (["Dockerfile"], "kubetm/other", None),
        (["hello/Dockerfile"], "Not A Reference", None),
    ],
)
def test_the_rule(files: list[str], reference: str, expected: str | None) -> None:
    assert chosen(files, reference) == ({reference: expected} if expected else {})


def test_contexts_and_order_of_first_use() -> None:
    uses = [use("b"), use("hello"), use("b"), use("nginx:1")]
    first, second = select(["x/b/Dockerfile", "Dockerfile"], uses, repository="/srv/hello")
    assert (first.name, first.context) == ("b", "x/b")
    assert (second.name, second.context) == ("hello", ".")


def test_an_entry_decides_before_any_rule() -> None:
    spec = ImageSpec(name="kubetm/hello", context="src", dockerfile="", args=(("A", "1"),))
    files = ["hello/Dockerfile", "other/hello/Dockerfile"]
    assert chosen(files, "kubetm/hello", "kubetm/hello:v1", specs=(spec,)) == {
        "kubetm/hello": "src/Dockerfile",
        "kubetm/hello:v1": "src/Dockerfile",
    }
    assert chosen([], "ghcr.io/a/b:2", specs=(ImageSpec(name="ghcr.io/a/b", context=".", dockerfile="D"),)) == {
        "ghcr.io/a/b:2": "D"
    }
    assert chosen(files, "kubetm/hello@sha256:" + "0" * 64, specs=(spec,)) == {}
    tagged = ImageSpec(name="kubetm/hello:v1", context="v1", dockerfile="v1/Dockerfile")
    assert chosen(["hello/Dockerfile"], "kubetm/hello:v1", "kubetm/hello", specs=(tagged,)) == {
        "kubetm/hello:v1": "v1/Dockerfile",
        "kubetm/hello": "hello/Dockerfile",
    }


def test_an_entry_that_nothing_references_is_not_built() -> None:
    assert chosen([], "other", specs=(ImageSpec(name="kubetm/hello", context=".", dockerfile="D"),)) == {}


def test_ambiguity_names_both() -> None:
    with pytest.raises(Invalid, match=r"hello@3f2a1b0 m.yaml:1\).* a/web/Dockerfile or b/web/Dockerfile"):
        chosen(["a/web/Dockerfile", "b/web/Dockerfile"], "shop/web")
    with pytest.raises(Invalid, match="web/Dockerfile could build “two/web” or “one/web”"):
        chosen(["web/Dockerfile"], "one/web", "two/web")
    twice = ImageSpec(name="web", context="a", dockerfile="a/D"), ImageSpec(name="web", context="b", dockerfile="b/D")
    with pytest.raises(Invalid, match=r"two images: entries are named “web” \(a/D and b/D\)"):
        chosen([], "web", specs=twice)


def test_near_misses_are_told() -> None:
    uses = [use(name) for name in ("node:18", "x.io/node", "kubetm/node@sha256:" + "0" * 64, "node", "redis:7")]
    told = {use.reference: why for use, why in left_alone(["node/Dockerfile"], uses)}
    assert [why.split(",")[0] for why in told.values()] == ["has the tag “18”", "has a registry host", "has a digest"]
