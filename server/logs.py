"""The log's form: one line per event, as JSON for programs or as text for people.

Every logger of the process ends here (ours, uvicorn's, the libraries'), so that a collector sees
one form. What a stranger can put into a message (a file name, a path) cannot begin a new line or
move a terminal's cursor: control characters are escaped in both forms. An exception is a field of
its event in JSON, and indented below it in text.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

OWN_LOGGERS = ("server", "tocom_core")

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_INDENT = "    | "

encode = json.JSONEncoder(default=str, check_circular=False).encode
"""To one line of ASCII."""


def configure(log_format: str, level: str, stream: TextIO | None = None) -> str:
    """Let every logger of the process write to `stream` in one form.

    Args:
        log_format: `json`, `console`, or `auto`: text on a terminal, else JSON.
        level: the least severe messages of our own that are written; libraries only speak up when
            something is wrong.
        stream: None means standard error.

    Returns:
        the form that was chosen.
    """
    stream = sys.stderr if stream is None else stream
    chosen = choose_format(log_format, stream)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if chosen == "json" else ConsoleLines())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(level.upper())
    # It complains of each form that a stranger builds badly, and the stranger is told anyway.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.INFO if level == "debug" else logging.NOTSET)
    return chosen


def choose_format(log_format: str, stream: TextIO) -> str:
    """`auto` is text where a person reads it, else JSON."""
    if log_format != "auto":
        return log_format
    return "console" if stream.isatty() else "json"


def fields(**values: Any) -> dict[str, Any]:
    """`extra` of a log call: values that stay apart from its message; None is left out."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class JsonLines(logging.Formatter):
    """An event as one JSON object: time, level, logger, message, its fields, its exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        event = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            event["exception"] = _exception(record.exc_info[1])
        return encode(event)


class ConsoleLines(logging.Formatter):
    """An event as a line of text; the traceback of its exception indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, or lines."""
        head = f"{timestamp(record.created)} {record.levelname} {record.name}: "
        text = escaped(head + record.getMessage() + _as_text(_fields_of(record)))
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            text += "".join(f"\n{_INDENT}{escaped(line)}" for line in trace.split("\n") if line)
        return text


def console_line(created: float, level: str, name: str, message: str, event: Any) -> str:
    """A line of text, as `ConsoleLines` would write it."""
    return escaped(f"{timestamp(created)} {level} {name}: {message}{_as_text(event)}")


def escaped(text: str) -> str:
    """The text on one line, without anything that a terminal would obey."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def timestamp(created: float) -> str:
    """Seconds since 1970 as UTC, to the millisecond."""
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    found = getattr(record, "fields", None)
    return found if isinstance(found, dict) else {}


def _as_text(event: Mapping[str, Any]) -> str:
    """Fields as ` name=value`; a value with spaces is quoted."""
    return "".join(f" {name}={_value(value)}" for name, value in event.items())


def _value(value: Any) -> str:
    text = str(value)
    return encode(text) if " " in text or "=" in text or not text else text


def _exception(error: BaseException) -> dict[str, str]:
    return {
        "type": type(error).__qualname__,
        "message": str(error),
        "stack": "".join(traceback.format_exception(error)),
    }
