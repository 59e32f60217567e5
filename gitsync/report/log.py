"""Logging: structlog in front, the standard library's loggers of other packages through the same chain.

One line per event: JSON for machines, readable on a terminal. Messages are constants, the variable part is
key-values; the redactor is the last step before rendering, so nothing goes round it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from gitsync.errors import GitsyncError
from gitsync.report.redact import Redactor, shorten

LARGEST_VALUE = 16 << 10  # bytes of one text in a line

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TRACE = frozenset({"exception", "stack"})


def configure(
    *,
    redactor: Redactor,
    format: Literal["auto", "json", "console"] = "auto",  # noqa: A002 (the setting's own name)
    level: str = "info",
    stream: TextIO | None = None,
) -> None:
    """Set up logging for the whole process. ``auto``: console on a terminal, else JSON. May be called again."""
    out = stream or sys.stderr
    console = format == "console" or (format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _say_errors,
        redacting(redactor),
    ]
    if console:
        plain = structlog.dev.plain_traceback
        last += [_printable, structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]
    else:
        last += [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer(serializer=_json)]
    formatter = structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last)
    handler = logging.StreamHandler(out)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # tests and ``--log-level`` configure again
    )


def redacting(redactor: Redactor) -> Callable[[WrappedLogger, str, EventDict], EventDict]:
    """The processor that redacts and bounds every value of a line."""

    def process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        clean = cast("dict[str, Any]", redactor.value(event))
        return {key: shorten(item, LARGEST_VALUE) if isinstance(item, str) else item for key, item in clean.items()}

    return process


def _say_errors(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """An error under any key becomes its sentence; the first one of ours adds its reason."""
    for key, item in list(event.items()):
        if isinstance(item, GitsyncError):
            event.setdefault("reason", item.reason)
        if isinstance(item, BaseException):
            event[key] = str(item) or type(item).__name__
    return event


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What came from a repository must neither steer the terminal nor forge a second line."""

    def escape(value: object, keep: str = "") -> Any:
        if isinstance(value, str):
            return _CONTROL.sub(lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode(), value)
        if isinstance(value, dict):
            return {escape(key): escape(item, keep) for key, item in cast("dict[object, object]", value).items()}
        if isinstance(value, list):
            return [escape(item, keep) for item in cast("Sequence[object]", value)]
        return value

    return {key: escape(item, "\n" if key in _TRACE else "") for key, item in event.items()}


def _json(value: object, default: Callable[[Any], Any] | None = None, **_: object) -> str:
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):  # a lone surrogate from a file name, an integer beyond 64 bits
        return orjson.dumps(repr(value)).decode()
