import pytest

from gitsync.source.tree import Malformed, link_fault, normal, parse_listing, printable

ID = "a" * 40


def row(mode: str, type_: str, path: bytes, size: str = "3") -> bytes:
    return f"{mode} {type_} {ID} {size:>7}\t".encode() + path + b"\0"


@pytest.mark.parametrize(
    "name",
    [b"..", b"../x", b"a/../x", b"a/..", b".git", b".git/config", b"a/.GIT/hooks/x", b".", b"./x"],
)
def test_names_that_could_leave_a_directory_or_hold_a_repository_are_refused(name: bytes) -> None:
    with pytest.raises(Malformed, match="forbids"):
        parse_listing(row("100644", "blob", b"fine") + row("100644", "blob", name), ID)


@pytest.mark.parametrize("name", [b".gitignore", b"..a", b"a..", b"x.git", b".github/w.yaml", b"a.git/b", b"..."])
def test_names_that_only_look_alike_are_kept(name: bytes) -> None:
    assert parse_listing(row("100644", "blob", name), ID).paths == (name.decode(),)


def test_the_same_name_twice_is_refused() -> None:
    link, directory = row("120000", "blob", b"a"), row("040000", "tree", b"a", "-")
    for rows in (link + directory, directory + link, link + link):
        with pytest.raises(Malformed, match="twice"):
            parse_listing(rows, ID)


def test_newline_tab_and_invalid_utf8_in_names_survive() -> None:
    listing = parse_listing(
        row("100644", "blob", b"a\nb") + row("100755", "blob", b"t\tx") + row("100644", "blob", b"\xff"), ID
    )
    assert listing.paths == ("a\nb", "t\tx", "\udcff")
    assert [printable(path) for path in listing.paths] == [r"a\nb", r"t\tx", r"\xff"]


def test_old_modes_are_plain_files_and_only_a_directory_holds_its_own() -> None:
    rows = [("100664", b"a.txt"), ("100644", b"a/b"), ("100644", b"a-b"), ("100644", b"ab/c")]
    listing = parse_listing(b"".join(row(mode, "blob", name) for mode, name in rows), ID)
    assert listing.entry("a.txt") is not None
    assert [entry.path for entry in listing.under("a")] == ["a/b"]
    assert [entry.path for entry in listing.under("")] == ["a-b", "a.txt", "a/b", "ab/c"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", ""), (".", ""), ("./", ""), ("./deploy/", "deploy"), ("a//b/../c", "a/c"), ("../x", "../x"), ("/x", "/x")],
)
def test_normal(path: str, expected: str) -> None:
    assert normal(path) == expected


@pytest.mark.parametrize(
    ("links", "fault"),
    [
        ({"l": "a/b"}, ""),
        ({"l": "./a/../b"}, ""),
        ({"a/l": "../b"}, ""),
        ({"a/b/l": "../../c"}, ""),
        ({"l": "missing"}, ""),
        ({"l": "/etc/passwd"}, "absolute"),
        ({"l": ".."}, "out of"),
        ({"l": "a/../../b"}, "out of"),
        ({"a/l": "../.."}, "out of"),
        ({"l": ".git/config"}, "into .git"),
        ({"l": "a/../.GIT/config"}, "into .git"),
        ({"l": "l"}, "loop"),
        ({"l": "m", "m": "l"}, "loop"),
        ({"l": "m/x", "m": "/etc"}, "absolute"),
        # By the text alone this stays inside: a/up/.. reads as a, but a/up is the root.
        ({"l": "a/up/../x", "a/up": ".."}, "out of"),
    ],
)
def test_links_are_followed_as_the_kernel_would(links: dict[str, str], fault: str) -> None:
    found = link_fault("l" if "l" in links else next(iter(links)), links)
    assert fault in found
    assert bool(found) == bool(fault)
