"""Nothing that is a secret, or looks like one, gets past the redactor; what tells a reader the place stays."""

import base64
import time

import pytest

from gitsync.report.redact import _MOST, Redactor, shorten

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://user:hunter2-hunter2@git.example.com/x", "https://***@git.example.com/x"),
        ("https://hunter2-hunter2@git.example.com/x", "https://***@git.example.com/x"),
        ("ssh://git@git.example.com/x is kept readable", "ssh://***@git.example.com/x is kept readable"),
        ("Authorization: Basic aHVudGVyMjpodW50ZXIy", "Authorization: Basic ***"),
        ('{"authorization": "Bearer abcdefghijklmnop"}', '{"authorization": "Bearer ***"}'),
        ("sent Bearer abcdefghijklmnop to it", "sent Bearer *** to it"),
        ("token ghp_abcdefghijklmnopqrst refused", "token *** refused"),
        *((f"{prefix}abcdefghijklmnopqrst", "***") for prefix in (
            "glpat-", "gho_", "github_pat_", "gldt-", "dckr_pat_", "npm_", "pypi-", "xoxb-", "whsec_", "AKIA",
        )),
        ("password=abc&x=1", "password=***&x=1"),
        ('{"password": "abc def", "n": 1}', '{"password": ***, "n": 1}'),
        ("password: 'abc def'", "password: ***"),
        ("-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY----- b", "-----BEGIN EC PRIVATE KEY----- *** b"),
        ("-----BEGIN RSA PRIVATE KEY-----\ncut off", "-----BEGIN RSA PRIVATE KEY----- ***"),
        ("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0x.c2lnbmF0dXJl", "***"),
        ("shop@3f2a1b0 manifests/web.yaml:12 spec.replicas: must be ≥ 0", None),
        ("Secret prod/shop-git has no key username", None),
        ("a basic requirement, the bearer of it", None),
    ],
)  # fmt: skip
def test_shapes(text: str, expected: str | None) -> None:
    assert Redactor()(text) == (text if expected is None else expected)


@pytest.mark.parametrize(
    "text", [SECRET, f"x{SECRET}y", "aHVudGVyMi1odW50ZXIy", "user=hunter2%20hunter2", "line two-two", "hunter2 hunter2"]
)
def test_learned_values_in_every_form(text: str) -> None:
    redactor = Redactor([SECRET, "hunter2 hunter2", "line one-one\nline two-two"])
    assert "***" in redactor(text)
    assert "hunter2" not in redactor(text)
    assert "two-two" not in redactor(text)


def test_base64_is_known_with_and_without_its_padding() -> None:
    for padded in (base64.b64encode(b"hunter2-hunter2-").decode(), base64.b64encode(b"hunter2-hunter2-x").decode()):
        redactor = Redactor([base64.b64decode(padded).decode()])
        assert redactor(f"{padded} {padded.rstrip('=')}").replace("=", "") == "*** ***"


def test_the_oldest_of_thousands_are_forgotten() -> None:
    redactor = Redactor([f"value-{number:06}" for number in range(_MOST)])
    redactor.learn("the-newest-value")
    assert redactor("value-000000 value-000001 the-newest-value") == "value-000000 *** ***"


def test_what_is_learned_again_or_to_be_kept_is_not_forgotten() -> None:
    redactor = Redactor()
    redactor.learn("the-api-token", keep=True)
    redactor.learn("of-an-application", "of-nobody-any-more")
    for number in range(_MOST):
        redactor.learn(f"value-{number:06}")
        if number % 1000 == 0:
            redactor.learn("of-an-application", "the-api-token")
    assert redactor("the-api-token of-an-application of-nobody-any-more") == "*** *** of-nobody-any-more"
    assert len(redactor._values) == _MOST


def test_a_value_that_is_another_ones_form_stays_known_when_that_one_is_forgotten() -> None:
    redactor = Redactor(["first value"])
    redactor.learn(*(f"value-{number:06}" for number in range(_MOST - 1)), "first%20value")
    assert redactor("first value, first%20value") == "first value, ***"


def test_a_deploy_key_for_each_of_hundreds_of_repositories_delays_nobody() -> None:
    """Learned again in each run, and asked for each line of a log, on the loop that answers everybody."""
    keys = ["\n".join(f"{key:03}{line:02}{'x' * 65}" for line in range(50)) for key in range(300)]
    redactor, began = Redactor(["the-api-token"]), time.process_time()
    for _ in range(2):
        for key in keys:
            redactor.learn(key)
            assert redactor(f"{'a stage begins; ' * 20} the-api-token {key[:70]}").endswith(" *** ***")
    assert time.process_time() - began < 5.0


def test_short_values_would_mask_ordinary_words() -> None:
    assert Redactor(["admin", ""])("the admin") == "the admin"


def test_a_secret_that_begins_with_another_leaves_no_tail() -> None:
    assert Redactor(["abcdef", "abcdefghij"])("abcdefghij") == "***"


def test_nested_values_and_keys_that_name_a_secret() -> None:
    redactor = Redactor([SECRET])
    value = {"a": [SECRET, {"registry_password": "x", "token": "", "tokens_left": 3}], "n": 1, "b": b"xyz", "o": object}
    clean = redactor.value(value)
    assert clean["a"] == ["***", {"registry_password": "***", "token": "", "tokens_left": 3}]
    assert clean["n"] == 1
    assert clean["b"] == "<3 bytes>"


def test_cyclic_values_end() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "…" in str(Redactor().value(loop))


def test_shorten_keeps_both_ends_within_bytes() -> None:
    text = "begin " + "ä" * 1000 + " end"
    short = shorten(text, 101)
    assert len(short.encode()) <= 101
    assert short.startswith("begin")
    assert short.endswith(" end")
    assert shorten("as it is", 8) == "as it is"
    assert shorten("\udcff", 10) == "?"
