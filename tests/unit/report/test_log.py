"""Log lines: one line each, redacted, for machines or for a terminal."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from gitsync.errors import Invalid
from gitsync.model import Origin
from gitsync.report import log
from gitsync.report.redact import Redactor


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(**options: object) -> io.StringIO:
    stream = io.StringIO()
    log.configure(redactor=Redactor(["hunter2-hunter2"]), stream=stream, **options)  # pyright: ignore[reportArgumentType]  # tests name real options
    return stream


def test_json_lines_carry_context_and_hide_secrets() -> None:
    stream = configured()
    logger = structlog.get_logger("gitsync.x").bind(application="prod/shop")
    logger.info("fetched", url="https://u:p@h/r", password="x", nested={"a": "hunter2-hunter2"})
    (line,) = lines(stream)
    assert line["message"] == "fetched"
    assert line["level"] == "info"
    assert line["logger"] == "gitsync.x"
    assert line["application"] == "prod/shop"
    assert line["url"] == "https://***@h/r"
    assert line["password"] == "***"
    assert line["nested"] == {"a": "***"}
    assert "timestamp" in line


def test_a_secret_at_the_cut_is_masked_before_it_is_cut() -> None:
    stream = configured()
    cut = (log.LARGEST_VALUE - len(" … ".encode())) // 2
    structlog.get_logger("gitsync.x").info("built", output="x" * (cut - 9) + "hunter2-hunter2" + "y" * 20000)
    assert "hunter2" not in stream.getvalue()


def test_other_packages_go_through_the_same_chain() -> None:
    stream = configured()
    logging.getLogger("aiohttp.access").warning("asked %s", "https://u:p@h/r")
    (line,) = lines(stream)
    assert line["message"] == "asked https://***@h/r"
    assert line["logger"] == "aiohttp.access"


def test_errors_and_tracebacks_are_redacted_sentences() -> None:
    stream = configured()

    def refuse() -> None:
        raise Invalid("is hunter2-hunter2", doing="reading", origin=Origin(file="a.yaml", line=3))

    try:
        refuse()
    except Invalid as error:
        structlog.get_logger("x").exception("refused", error=error)
    (line,) = lines(stream)
    assert line["error"] == "while reading (a.yaml:3): is ***"
    assert line["reason"] == "Invalid"
    assert "Traceback" in str(line["exception"])
    assert "hunter2" not in stream.getvalue()


def test_level() -> None:
    stream = configured(level="warning")
    structlog.get_logger("x").info("quiet")
    structlog.get_logger("x").warning("loud")
    assert [line["message"] for line in lines(stream)] == ["loud"]


def test_console_lines_cannot_be_forged_or_steer_the_terminal() -> None:
    stream = configured(format="console")
    structlog.get_logger("x").info("built", subject="a\nforged line \x1b[2J\u202egnp", other={"k\n": "\r"})
    logging.getLogger("another").warning("said %s", "a\nforged line \x1b[2J")
    text = stream.getvalue()
    assert text.count("\n") == 2
    assert "\\x1b[2J" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_long_values_are_cut_and_strange_ones_still_logged() -> None:
    stream = configured()
    structlog.get_logger("x").info("m", text="x" * 100_000, big=1 << 80, name="\udcff")
    (line,) = stream.getvalue().splitlines()
    assert len(line) < 20_000
    json.loads(line)
