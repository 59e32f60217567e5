"""Verdicts checked against github.com/moby/patternmatcher, the library that BuildKit itself uses."""

import pytest

from gitsync.errors import Invalid
from gitsync.images.ignore import ignore_file, matcher
from gitsync.model import Origin


@pytest.mark.parametrize(
    ("rules", "ignored", "kept"),
    [
        ("", [], ["a", "a/b"]),
        ("# a\n\n  \n", [], ["a"]),
        (" a ", ["a", "a/b"], ["b/a", "ab"]),
        ("a/", ["a", "a/b"], ["b/a"]),
        ("/a", ["a", "a/b/c"], ["b/a"]),
        ("./a/../b", ["b"], ["a"]),
        ("*.md", ["x.md"], ["docs/x.md"]),
        ("**/*.md", ["x.md", "docs/x.md", "a/b/x.md"], ["x.mdx"]),
        ("*/*.md", ["docs/x.md", "docs/x.md/y"], ["x.md", "a/b/x.md"]),
        ("**.md", ["x.md", "docs/x.md"], ["x.md5"]),
        ("a**b", ["ab", "a/b", "a/x/b", "ax/b"], ["axb"]),
        ("a/**", ["a/b", "a/b/c"], ["a"]),
        ("**", ["a", "a/b"], []),
        ("**/a", ["a", "x/a", "x/a/y"], ["xa"]),
        ("?.txt", ["a.txt"], ["ab.txt", "x/a.txt"]),
        ("[a-c]x", ["ax", "bx"], ["dx"]),
        ("[^a]x", ["bx"], ["ax"]),
        ("a.b", ["a.b"], ["aXb"]),
        ("a+(b)$", ["a+(b)$"], ["aab"]),
        ("\\*", ["*"], ["a"]),
        ("*\n!keep", ["a", "a/b"], ["keep", "keep/x"]),
        ("a\n!a/keep", ["a/x"], ["a/keep", "a/keep/x"]),
        ("*\n!**/keep.txt", ["a/x"], ["keep.txt", "a/b/keep.txt"]),
        ("!a\na", ["a"], ["b"]),
        ("a/b\n!a", [], ["a/b"]),
        ("\ufeffa\r\nb\r\n", ["a", "b"], ["c"]),
        ("a b", ["a b"], ["a", "b"]),
        (" #a", ["#a"], ["a"]),
        ("a\x0cb\nc\u2028d", ["a\x0cb", "c\u2028d"], ["a", "b", "c", "d"]),
    ],
)
def test_what_is_ignored(rules: str, ignored: list[str], kept: list[str]) -> None:
    test = matcher(rules)
    assert [path for path in ignored if not test(path)] == []
    assert [path for path in kept if test(path)] == []


@pytest.mark.parametrize("rules", ["ok\n!", "ok\n[a", "ok\nx\\", "ok\n[]a]"])
def test_a_malformed_pattern_is_named_with_its_line(rules: str) -> None:
    with pytest.raises(Invalid, match=r"shop@3f2a1b0 web/\.dockerignore:2\)"):
        matcher(rules, Origin(repository="shop", sha="3f2a1b0c", file="web/.dockerignore"))


def test_the_dockerfiles_own_file_comes_first() -> None:
    assert ignore_file("docker/web.Dockerfile", "web") == ("docker/web.Dockerfile.dockerignore", "web/.dockerignore")
    assert ignore_file("Dockerfile", ".") == ("Dockerfile.dockerignore", ".dockerignore")
