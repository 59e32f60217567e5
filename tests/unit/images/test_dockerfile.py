"""What a Dockerfile needs, and mistakes in it, by line."""

import pytest

from gitsync.errors import Invalid
from gitsync.images.dockerfile import Dockerfile, parse
from gitsync.model import Origin

ORIGIN = Origin(repository="https://git.example/shop.git", sha="3f2a1b0c9d", file="web/Dockerfile")


def read(text: str, args: dict[str, str] | None = None) -> Dockerfile:
    return parse(text.encode(), origin=ORIGIN, args=args, platform="linux/arm64/v8")


def bases(text: str, target: str = "", args: dict[str, str] | None = None) -> list[str]:
    return [use.name for use in read(text, args).bases(target)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM node", ["node"]),
        ("FROM scratch\nCOPY a /a", []),
        ("from node:slim as x\nFROM x", ["node:slim"]),
        ("FROM node AS node\nFROM node\nRUN true", ["node"]),
        ("FROM a AS one\nFROM b AS two\nFROM c\nCOPY --from=one /x /x", ["a", "c"]),
        ("FROM a\nFROM b\nCOPY --from=0 /x /x", ["a", "b"]),
        ("FROM a\nCOPY --from=nginx:1 /x /x\nADD --chown=1 y /y", ["a", "nginx:1"]),
        ("FROM a\nRUN --mount=type=cache,target=/c --mount=type=bind,from=golang:1,target=/go true", ["a", "golang:1"]),
        ("FROM --platform=$BUILDPLATFORM a\n", ["a"]),
        ("\ufeffFROM a\r\nRUN true\r\n", ["a"]),
        ("FROM a \\\n  # why\n\n  AS b\nRUN true", ["a"]),
        ("# escape=`\nFROM a\nRUN dir c:\\\nRUN x `\n  y", ["a"]),
        ("FROM a\nRUN <<EOF\nFROM nothing\nEOF\nRUN <<-'X' <<Y cat\n\tX\nFROM b\nY\n", ["a"]),
        ('FROM a\nRUN echo $((1<<2)) <<<word && x="<<EOF"', ["a"]),
        ('FROM a\nCOPY ["a b", "/x"]\nCMD ["node", "x.js"]', ["a"]),
        ("FROM a\nADD https://example.org/../x /x\nONBUILD COPY . /src", ["a"]),
        ("FROM node@sha256:" + "0" * 64, ["node@sha256:" + "0" * 64]),
    ],
)
def test_which_images_a_build_needs(text: str, expected: list[str]) -> None:
    assert bases(text) == expected


@pytest.mark.parametrize(
    ("text", "args", "expected"),
    [
        ("ARG TAG=slim\nFROM node:$TAG", {}, "node:slim"),
        ("ARG TAG=slim\nFROM node:$TAG", {"TAG": "18"}, "node:18"),
        ("ARG TAG\nFROM node:${TAG:-2}", {}, "node:2"),
        ("ARG TAG=\nFROM node:${TAG:-2}", {}, "node:2"),
        ("ARG TAG=\nFROM node:3${TAG-2}", {}, "node:3"),
        ("ARG X=1\nFROM node${X:+-alpine}", {}, "node-alpine"),
        ("FROM node${X:+-alpine}", {}, "node"),
        ('ARG R=reg.io/ T="a"\nFROM "${R}x:$T"', {}, "reg.io/x:a"),
        ("ARG A=1\nARG B=${A}2\nFROM x:$B", {}, "x:12"),
        ("ARG A=1\nFROM x:${B:-${A:-0}}", {}, "x:1"),
        ("FROM x:$TARGETARCH-$TARGETOS", {}, "x:arm64-linux"),
        ("ARG UNUSED\nFROM x", {"TAG": "not declared"}, "x"),
    ],
)
def test_global_args_are_filled_in(text: str, args: dict[str, str], expected: str) -> None:
    assert bases(text, args=args) == [expected]


def test_a_target_needs_only_its_own_stages() -> None:
    text = "FROM a AS one\nFROM b AS two\nCOPY --from=one x y\nFROM c AS three\n"
    assert bases(text, "two") == ["a", "b"]
    assert bases(text, "0") == ["a"]
    assert bases(text, "THREE") == ["c"]
    with pytest.raises(Invalid, match="stages: one, two, three"):
        bases(text, "four")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 0, "no FROM"),
        ("# nothing\nARG X=1\n", 0, "no FROM"),
        ("RUN x\nFROM a", 1, "RUN before the first FROM"),
        ("FROM a\n\nFORM b\n", 3, "unknown instruction “FORM”"),
        ("FROM a\nRUN\n", 2, "RUN needs an argument"),
        ("FROM a AS b c", 1, "FROM takes"),
        ("FROM a AS 1b", 1, "no name for a stage"),
        ("FROM a AS b\nFROM c AS B", 2, "two stages are named “b”"),
        ("FROM a:$X", 1, "X is not declared"),
        ("ARG X\nFROM a:${X}", 2, "X has no value"),
        ("FROM ${X:?give-me-X}", 1, "X is not set: give-me-X"),
        ("ARG X=\nFROM $X", 2, "names no image"),
        ("FROM ${X#a}", 1, "not known"),
        ("FROM a\nCOPY ../x /x", 2, "COPY ../x leaves the build context"),
        ("FROM a\nCOPY x/../../y /x", 2, "leaves the build context"),
        ("FROM a\nADD a ../b /x", 2, "ADD ../b leaves the build context"),
        ('FROM a\nCOPY ["../x", "/x"]', 2, "leaves the build context"),
        ("FROM a\nCOPY x", 2, "a source and a destination"),
        ("FROM a\nCOPY --from=builder /x /x", 2, "no stage “builder”"),
        ("FROM a\nCOPY --from=later /x /x\nFROM b AS later", 2, "no stage “later”"),
        ("FROM a AS me\nCOPY --from=me /x /x", 2, "no stage “me”"),
        ("FROM a\nCOPY --from=0 /x /x", 2, "no stage 0"),
        ("FROM a\nRUN --mount=from=nosuch,target=/x true", 2, "no stage “nosuch”"),
        ("FROM a\nCOPY --from=$X /x /x", 2, "variables are not filled in"),
        ("FROM a\nRUN true \\\n  && <<EOF\nx\n", 2, "“EOF” is never ended"),
        ("# escape=x\nFROM a", 1, "escape character"),
        ("# syntax=a\n# syntax=b\nFROM a", 2, "twice"),
        ("FROM a\n\0", 2, "NUL"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, said: str) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        read(text)
    assert caught.value.origin
    assert caught.value.origin.line == line
    assert str(caught.value).startswith("while reading the Dockerfile (shop@3f2a1b0 web/Dockerfile")


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(Invalid, match=r"web/Dockerfile:2.*UTF-8"):
        parse(b"FROM a\nRUN \xff", origin=ORIGIN)


def test_what_a_builder_must_know() -> None:
    text = "# syntax=docker/dockerfile:1\nFROM a\nCOPY --link x /x\nCOPY --link=false x /x\nRUN <<E\nE\n"
    assert [(feature.name, feature.line) for feature in read(text).features] == [
        ("# syntax=", 1),
        ("--link", 3),
        ("a heredoc", 5),
    ]


@pytest.mark.parametrize("line", ['SHELL ["/bin/bash", "-c"]', "HEALTHCHECK NONE", "ONBUILD RUN true"])
def test_what_oci_would_drop_makes_the_format_docker(line: str) -> None:
    assert read("FROM a\nRUN true").output_format == "oci"
    assert read(f"FROM a\n{line}\n").output_format == "docker"


def test_pinning_replaces_only_what_is_pulled_and_keeps_lines() -> None:
    text = (
        "# syntax=docker/dockerfile:1.7\nARG TAG=1\nFROM --platform=linux/amd64 node:${TAG} AS node\nRUN echo node:1\n"
        "FROM node\nCOPY --from=nginx:1 nginx:1 /x\nRUN --mount=type=bind,from=go:1,target=/y true\n"
        "FROM unused:1\nFROM node AS last"
    )
    found = read(text)
    assert found.pinned("1", {"node:1": "h/node@d", "nginx:1": "h/nginx@d", "go:1": "h/go@d", "unused:1": "no"}) == (
        "#\nARG TAG=1\nFROM --platform=linux/amd64 h/node@d AS node\nRUN echo node:1\n"
        "FROM node\nCOPY --from=h/nginx@d nginx:1 /x\nRUN --mount=type=bind,from=h/go@d,target=/y true\n"
        "FROM unused:1\nFROM node AS last"
    )
    assert "# syntax=my/frontend:1" in read("# syntax=my/frontend:1\nFROM a").pinned("", {})
