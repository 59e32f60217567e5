"""What is refused is refused at its line and column, with a word on what to do; what is read knows its lines."""

import pytest

from gitsync.errors import Invalid
from gitsync.model import Origin
from gitsync.render.yaml import MAX_BYTES, Unreadable, load, parse

TEMPLATE = "template that was not rendered"
REFUSED = [
    ("a: 1\nb: 2\na: 3\n", 3, 1, "'a' stands here for a second time, first on line 1", "keep one"),
    ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, 3, "first on line 2", "keep one"),
    ('{"a": 1,\n "b": 2,\n "a": 3}', 3, 2, "first on line 1", "keep one"),
    ("b: 1\n<<: {b: 2}\nb: 3\n", 3, 1, "second time, first on line 2", "keep one"),
    ("a: 1\n---\nb: 1\nb: 2\n", 4, 1, "first on line 3", "keep one"),
    ("a: *x\n", 1, 4, "the alias '*x' has no anchor", "quote it"),
    ("a: 1\nb: &x [*x]\n", 2, 8, "the anchor '&x' contains itself", ""),
    ("a: 1\nb: .inf\n", 2, 4, ".inf has no place in JSON", "quote it"),
    ("a: !!float .nan\n", 1, 4, ".nan has no place in JSON", "quote it"),
    ("a: !!int x\n", 1, 4, "'x' is no int", ""),
    ("a: 1\n  b: 2\n", 2, 4, "mapping values are not allowed", ""),
    ("a: {{ .Values.x }}\n", 1, 5, "a key must be", TEMPLATE),
    ("a: 1\n{{- if .Values.x }}\nb: 1\n", 2, 1, "expected ':'", TEMPLATE),
    ("{{ .Values.x }}\n", 1, 2, "a key must be", TEMPLATE),
    ("a: 1\n{{ include }}\n", 2, 1, "expected ':'", TEMPLATE),
    ("spec:\n\treplicas: 1\n", 2, 1, "a tab cannot indent YAML", "spaces"),
    ("\tspec: 1\n", 1, 1, "a tab cannot indent YAML", "spaces"),
    ("a: @x\n", 1, 4, "cannot start any token", "quote what begins with '@'"),
    ("a: 1\nb: \x00\n", 2, 4, "control character U+0000", "remove"),
    ("é: 1\nb: é\x1bx\n", 2, 5, "control character U+001B", "remove"),
    ("a: 1\n--- b: 2\n", 2, 5, "text follows the separator", "next line"),
    ("a: 1\n---#x\n", 2, 4, "text follows the separator", "next line"),
    ("%YAML 1.1\n---\na: 1\n", 1, 1, "directive", "remove"),
    ("a: 1\n\ufeffb: 2\n", 2, 1, "byte order mark", "remove"),
    ("a: 1\n...\nb: 2\n", 3, 1, "expected <document start>", "a line '---'"),
    ("~: 1\n", 1, 1, "a key cannot be empty or null", "quote it"),
    ("? [a]\n: 1\n", 1, 3, "a key must be", ""),
    ("<<: 1\n", 1, 5, "takes a mapping", ""),
    ('a: "x\nb: 1\n', 3, 1, "unexpected end of stream (while scanning a quoted scalar that began on line 1)", ""),
    ("spec:\n  a: [1, 2\n", 3, 1, "expected ',' or ']'", ""),
    ("spec:\n  repl\n  a: 1\n", 3, 4, "mapping values are not allowed", ""),
    ('{"a": 1,\n "b": ]}', 2, 7, "JSON: a value is expected", ""),
    ('{"a": 1', 1, 8, "JSON: ',' or '}' is expected", ""),
    ('{"a": {{ .x }}}', 1, 8, "JSON: a key in double quotes", TEMPLATE),
    ('{"a": 1}{"b": 2}{"c": x}', 1, 23, "JSON: a value is expected", ""),
    ('{"a": 1}\n---\nb: [\n', 4, 1, "expected node content", ""),
    ('{"a": 1e999}', 1, 7, "too large", ""),
]


@pytest.mark.parametrize(("text", "line", "column", "words", "hint"), REFUSED, ids=lambda value: repr(value)[:40])
def test_a_refusal_names_its_place(text: str, line: int, column: int, words: str, hint: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(text.encode())
    error = caught.value
    assert (error.line, error.column) == (line, column), error.message
    assert words in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("data", "line", "column", "words"),
    [
        ("a: 1".encode("utf-16"), 1, 1, "UTF-16"),
        ("a: 1".encode("utf-16-le"), 1, 1, "UTF-16"),
        ("a: 1".encode("utf-32"), 1, 1, "UTF-16 or UTF-32"),
        (b"a: 1\nb: caf\xe9\n", 2, 7, "0xe9 is not UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", 1, 1, "Git LFS pointer"),
        (b"#" * (MAX_BYTES + 1), 1, 1, "bytes long"),
    ],
)
def test_bytes_that_are_no_yaml(data: bytes, line: int, column: int, words: str) -> None:
    with pytest.raises(Unreadable, match=words) as caught:
        parse(data)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_an_error_of_a_file_names_repository_commit_and_file() -> None:
    origin = Origin(repository="https://git.example.test/shop.git", sha="a" * 40, file="web.yaml")
    with pytest.raises(Invalid) as caught:
        load(b"a: 1\na: 2\n", origin)
    assert str(caught.value) == (
        "while reading (shop@aaaaaaa web.yaml:2:1): the key 'a' stands here for a second time, first on line 1; "
        "keep one of them: kubectl would silently take the second"
    )


@pytest.mark.parametrize("password", ["!Hunter2", "!!hunter2", "*hunter2", "!<hunter2> x", "!!int hunter2"])
@pytest.mark.parametrize("head", ["kind: Secret\nstringData:", "secretGenerator:\n- literals:"])
def test_a_password_that_nobody_quoted_is_not_repeated(head: str, password: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse(f"{head}\n    password: {password}\n".encode())
    assert caught.value.line == 3
    assert "unter2" not in caught.value.message
    assert "quote it" in caught.value.hint or password.startswith("!!int")


def test_a_byte_order_mark_at_the_start_is_accepted_as_kubectl_does() -> None:
    (document,) = parse("\ufeffa: 1\nb: 2\n".encode()).documents()
    assert document.value == {"a": 1, "b": 2}
    assert dict(document.lines) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "text",
    [
        "# c\na:\n  b: [x,\n    y]\n  c.d/e:\n  - f: 1\n    g: {h: 2}\n",
        '\n{"a":\n{"b": ["x",\n"y"],\n"c.d/e": [{"f": 1,\n"g": {"h": 2}}]}}',
    ],
)
def test_fields_know_their_lines(text: str) -> None:
    (document,) = parse(text.encode()).documents()
    assert dict(document.lines) == {
        "a": 2,
        "a.b": 3,
        "a.b[0]": 3,
        "a.b[1]": 4,
        "a[c.d/e]": 5,
        "a[c.d/e][0]": 6 if text.startswith("#") else 5,
        "a[c.d/e][0].f": 6 if text.startswith("#") else 5,
        "a[c.d/e][0].g": 7 if text.startswith("#") else 6,
        "a[c.d/e][0].g.h": 7 if text.startswith("#") else 6,
    }
    assert (document.line, document.column) == (2, 1)


def test_what_comes_through_alias_or_merge_has_their_line() -> None:
    text = "a: &x\n  b: {c: 1}\n  d: 2\ne:\n  d: 3\n  <<: *x\n  f: {g: 4}\n  b: {c: 5}\nh: *x\n"
    (document,) = parse(text.encode()).documents()
    assert document.value["e"] == {"d": 2, "b": {"c": 5}, "f": {"g": 4}}
    lines = dict(document.lines)
    assert {path: line for path, line in lines.items() if path.startswith(("e", "h"))} == {
        "e": 4,
        "e.d": 6,
        "e.b": 8,
        "e.b.c": 8,
        "e.f": 7,
        "e.f.g": 7,
        "h": 9,
    }


def test_documents_know_where_they_begin() -> None:
    documents = parse(b"# c\n---\n\na: 1\n---\n# only a comment\n---\n  b: 2\n").documents()
    assert [(document.line, document.column) for document in documents] == [(4, 1), (8, 3)]


def test_lines_seen_from_a_field() -> None:
    (document,) = parse(b"items:\n- a: 1\n  b: [2]\n- c: 3\n").documents()
    assert dict(document.lines.below("items[0]")) == {"a": 2, "b": 3, "b[0]": 3}


BOMBS = {
    "aliases": "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "a long string by alias": "a: &a " + "x" * 1_000_000 + "\nb: [" + ",".join(["*a"] * 1000) + "]\n",
    "one mapping merged again and again": "a: &a {"
    + ", ".join(f"k{i}: 1" for i in range(2000))
    + "}\nb: {"
    + ", ".join(["<<: *a"] * 5000)
    + "}\n",
    "a merge that replaces one of many keys": "b: {"
    + ", ".join([f"k{i}: 1" for i in range(20000)] + ["<<: {k9: 1}"] * 20000)
    + "}\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_refused(text: str) -> None:
    with pytest.raises(Unreadable, match="aliases repeat more than"):
        parse(text.encode())


def test_a_merge_bomb_costs_what_it_holds() -> None:
    text = "a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(20)) + "}\n"
    text += "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    assert len(parse(text.encode()).values) < 3000


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "{a: " * 50_000, "- " * 50_000, '{"a":' * 50_000, '{"a":' + "[" * 50_000]
)
def test_nesting_of_50000_is_refused(text: str) -> None:
    with pytest.raises(Unreadable, match="nested deeper than 200") as caught:
        parse(text.encode())
    assert caught.value.line == 1
