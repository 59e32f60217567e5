"""Every scalar and document means what kubectl takes it for.

``kubectl.json`` holds texts with the answers of apimachinery v0.34.4's own ``YAMLOrJSONDecoder``: the documents it
gives (as JSON), or its error. A test of ours never writes an expectation into that file by hand.
"""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gitsync.render.yaml import MAX_DEPTH, Unreadable, dump, parse

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "kubectl.json").read_text())

#: Where kubectl reads on in silence, dropping or guessing something, and we refuse: text → part of what we say.
STRICTER = {
    "a: !a b\n": "the tag '!a'",
    "a: 1\na: 2\n": "second time",
    '{"a": 1, "a": 2}': "second time",
    "1: a\n'1': b\n": "second time",
    "a: 1\n...\nb: 2\n": "expected <document start>",
    "a: !!python/name:os.system x\n": "the tag '!!python/name:os.system'",
    "a: !!python/object/apply:os.system [x]\n": "the tag '!!python/object/apply:os.system'",
    "a: !!timestamp 2001-01-01\n": "the tag '!!timestamp'",
    "a: !!set {x}\n": "the tag '!!set'",
    "a: !!binary /w==\n": "!!binary is not the base64 of UTF-8",
    "a: 1\n\ufeffb: 2\n": "byte order mark",
    "%YAML 1.1\n---\na: 1\n": "directive",
}


def read(text: str | bytes) -> list[Any]:
    return [document.value for document in parse(text if isinstance(text, bytes) else text.encode()).documents()]


def as_sent(value: Any) -> Any:
    """A number that Go printed in full although it is no integer of 64 bits is a float; types count in comparisons."""
    if isinstance(value, dict):
        return {key: as_sent(child) for key, child in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [as_sent(child) for child in value]  # pyright: ignore[reportUnknownVariableType]
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        value = float(value)
    return type(value), value


def typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: typed(child) for key, child in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [typed(child) for child in value]  # pyright: ignore[reportUnknownVariableType]
    return type(value), value


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"]))
def test_reads_what_kubectl_reads(case: dict[str, Any]) -> None:
    if "error" in case or case["text"] in STRICTER:
        with pytest.raises(Unreadable):
            read(case["text"])
    else:
        assert typed(read(case["text"])) == as_sent(case["docs"])


@pytest.mark.parametrize(("text", "words"), STRICTER.items())
def test_refuses_what_kubectl_guesses(text: str, words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read(text)
    assert words in caught.value.message


def test_an_escaped_solidus_is_the_one_thing_read_beyond_kubectl() -> None:
    assert read('a: "\\/"\n') == [{"a": "/"}]


@pytest.mark.parametrize("text", ["-9223372036854775809", "-9999999999999999999"])
def test_a_json_integer_below_64_bits_is_a_float(text: str) -> None:
    assert typed(read(f'{{"a": {text}}}')) == typed([{"a": float(text)}])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_json_means_itself(value: Any) -> None:
    assert typed(read(orjson.dumps({"a": value}))) == typed([{"a": value}])


@given(st.binary(max_size=60) | st.text("ab:-[]{}&*!|>'\"%@#?,. \n\t<\\1~é", max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_place(data: bytes) -> None:
    try:
        documents = parse(data).documents()
    except Unreadable as error:
        places = [(error.line, error.column)]
    else:
        places = [(line, 1) for document in documents for line in (document.line, *document.lines.values())]
    assert all(1 <= line <= data.count(b"\n") + data.count(b"\r") + 9 and column >= 1 for line, column in places)


def test_the_deepest_nesting_allowed_can_be_written_again() -> None:
    deep = "a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert orjson.loads(orjson.dumps(read(deep))) == read(deep)


@given(json_values)
@example({"a": ["y", "N", "1e3", "0o17", "1_000", "0b1", "+1", "22:22", "NO", "~", "", "<<", "2001-01-01", ".5"]})
@example({"1e3": 1, "y": 2, "a\u2028b\x85": "\ufeff \n"})
def test_what_is_written_is_read_again(value: Any) -> None:
    assert typed(read(dump({"a": value}))) == typed([{"a": value}])
