"""The same inputs give the same fingerprint, any other input another one."""

from dataclasses import replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from gitsync.images.fingerprint import Inputs, fingerprint, touched
from gitsync.model import FileMode, ImageSpec, TreeEntry

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
ids = st.text("0123456789abcdef", min_size=4, max_size=4)
files = st.dictionaries(
    names.filter(lambda name: "/" not in name), st.tuples(st.sampled_from(FileMode), ids), max_size=5
)
inputs = st.fixed_dictionaries(
    {
        "files": files,
        "args": st.dictionaries(names, names, max_size=3),
        "bases": st.dictionaries(names, ids, max_size=3),
        "target": st.sampled_from(["", "web"]),
        "dockerfile_id": ids,
        "platform": st.sampled_from(["linux/amd64", "linux/arm64"]),
        "output_format": st.sampled_from(["oci", "docker"]),
    }
)


def entries(found: dict[str, tuple[FileMode, str]], context: str) -> list[TreeEntry]:
    below = "" if context == "." else f"{context}/"
    return [TreeEntry(path=below + name, mode=mode, id=id_) for name, (mode, id_) in found.items()]


def value(given: dict[str, Any], *, turned: bool = False, context: str = "web", name: str = "x") -> str:
    def turn(items: list[Any]) -> list[Any]:
        return items[::-1] if turned else items

    spec = ImageSpec(
        name=name,
        context=context,
        dockerfile=f"{context}/Dockerfile",
        target=given["target"],
        args=tuple(turn(list(given["args"].items()))),
    )
    return fingerprint(
        spec,
        turn(entries(given["files"], context)),
        dockerfile_id=given["dockerfile_id"],
        bases=dict(turn(list(given["bases"].items()))),
        platform=given["platform"],
        output_format=given["output_format"],
    ).value


@given(inputs)
def test_order_place_and_name_do_not_matter(one: dict[str, Any]) -> None:
    assert value(one) == value(one, turned=True) == value(one, context="apps/deep") == value(one, context=".", name="y")


@given(
    inputs, inputs, st.sampled_from(["files", "args", "bases", "target", "dockerfile_id", "platform", "output_format"])
)
def test_any_other_input_is_another_image(one: dict[str, Any], other: dict[str, Any], which: str) -> None:
    assume(one[which] != other[which])
    assert value(one) != value({**one, which: other[which]})


@given(inputs, inputs)
def test_no_two_inputs_share_a_fingerprint(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (value(one) == value(other)) == (one == other)


def test_the_fields_cannot_run_into_each_other() -> None:
    plain: dict[str, Any] = {"files": {}, "args": {}, "bases": {}, "target": "", "dockerfile_id": "d", "platform": "p"}
    one = {**plain, "output_format": "oci", "args": {"a": "bc"}}
    assert value(one) != value({**one, "args": {"ab": "c"}})


def test_it_says_what_went_in() -> None:
    entry = TreeEntry(path="web/a.js", mode=FileMode.FILE, id="b10b")
    spec = ImageSpec(name="web", context="web", dockerfile="web/Dockerfile", args=(("A", "1"),))
    made = fingerprint(
        spec, [entry], dockerfile_id="d0c", bases={"node:slim": ""}, platform="linux/amd64", output_format="oci"
    )
    assert dict(made.inputs) == {
        "algorithm": "gitsync-image-1",
        "dockerfile": "d0c",
        "target": "",
        "platform": "linux/amd64",
        "format": "oci",
        "arg A": "1",
        "base node:slim": "not resolved",
        "file a.js": "100644 b10b",
    }
    assert made.tag == f"gs-{made.value[:32]}"


A = TreeEntry(path="web/a", mode=FileMode.FILE, id="1")
B = TreeEntry(path="web/b", mode=FileMode.FILE, id="2")
RULES = TreeEntry(path="web/.dockerignore", mode=FileMode.FILE, id="9")
DOCKERFILE = TreeEntry(path="docker/web", mode=FileMode.FILE, id="8")
OLD = Inputs(context=(A, B), dockerfile=DOCKERFILE)


def test_which_files_touch_an_image() -> None:
    assert touched(OLD, OLD) == ()
    assert touched(OLD, replace(OLD, context=(A, replace(B, id="3")))) == ("web/b",)
    assert touched(OLD, replace(OLD, context=(A, replace(B, mode=FileMode.EXECUTABLE)))) == ("web/b",)
    assert touched(OLD, replace(OLD, context=(A,))) == ("web/b",)
    assert touched(replace(OLD, context=(A,)), OLD) == ("web/b",)
    assert touched(OLD, replace(OLD, dockerfile=replace(DOCKERFILE, id="7"))) == ("docker/web",)
    assert touched(replace(OLD, dockerfile=None), OLD) == ("docker/web",)
    ignored = replace(OLD, ignored=(replace(B, path="web/c"),))
    assert touched(ignored, replace(OLD, ignored=(replace(B, path="web/c", id="4"),))) == ()


def test_rules_that_let_a_file_in_or_out_are_what_touches() -> None:
    without = replace(OLD, context=(A,), ignored=(B,), rules=RULES)
    assert touched(OLD, without) == ("web/.dockerignore",)
    assert touched(without, OLD) == ("web/.dockerignore",)
    also_changed = replace(without, ignored=(replace(B, id="5"),))
    assert touched(OLD, also_changed) == ("web/b",)
