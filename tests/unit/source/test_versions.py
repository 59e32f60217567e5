import pytest

from gitsync.source.versions import highest

TAGS = [
    "v0.0.3", "v0.1.0", "v0.1.9", "v1.0.0", "v1.2.0", "1.2.3", "v1.10.0", "v2.0.0-rc.1", "v2.0.0", "v2.1.0-alpha",
    "latest", "release-9", "v3", "v01.0.0", "app-v9.9.9",
]  # fmt: skip


@pytest.mark.parametrize(
    ("range_", "tag"),
    [
        ("*", "v2.0.0"),
        ("1.x", "v1.10.0"),
        ("1", "v1.10.0"),
        ("v1.2", "1.2.3"),
        ("1.2.*", "1.2.3"),
        ("~1.2", "1.2.3"),
        ("~1", "v1.10.0"),
        ("^1.2", "v1.10.0"),
        ("^0.1", "v0.1.9"),
        ("^0.0.3", "v0.0.3"),
        ("^0.0", "v0.0.3"),
        ("^0", "v0.1.9"),
        (">=1.0.0 <1.10.0", "1.2.3"),
        (">=1.0.0, <1.10.0", "1.2.3"),
        (">= 1.0.0 < 1.10.0", "1.2.3"),
        (">1.2", "v2.0.0"),
        (">1.10", "v2.0.0"),
        ("<=1.2", "1.2.3"),
        ("<=1.2.0", "v1.2.0"),
        ("<1.2", "v1.0.0"),
        ("1.0.0 - 1.2.0", "v1.2.0"),
        ("1.0 - 1.2", "1.2.3"),
        ("0.1.x || 1.0.x", "v1.0.0"),
        (">=1.0.0 !=2.0.0", "v1.10.0"),
        ("=1.2.3", "1.2.3"),
        ("1.2.3", "1.2.3"),
        (">=2.0.0-0", "v2.1.0-alpha"),
        ("2.0.0-rc.1", "v2.0.0-rc.1"),
        (">2.0.0", None),
        ("^4", None),
        ("<0.0.1", None),
    ],
)
def test_highest_tag_in_range(range_: str, tag: str | None) -> None:
    assert highest(TAGS, range_) == tag


def test_two_names_of_one_version_choose_the_same_on_every_replica() -> None:
    assert highest(["v1.0.0", "1.0.0"], "1.x") == highest(["1.0.0", "v1.0.0"], "1.x") == "v1.0.0"


@pytest.mark.parametrize("range_", ["", " || ", "main", ">=", "1.2.3.4", "1..2", ">=1 and <2", "1" * 300, "^^1"])
def test_what_is_no_range_is_refused(range_: str) -> None:
    with pytest.raises(ValueError, match=r"range|read"):
        highest(TAGS, range_)
