"""The log's two forms, and that nobody can forge a line of it."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs
from server.logs import ConsoleLines, JsonLines, choose_format, escaped, fields


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    logger = logging.getLogger()
    names = ("server", "tocom_core", "uvicorn")
    handlers, level = logger.handlers[:], logger.level
    levels = {name: logging.getLogger(name).level for name in names}
    yield logger
    logger.handlers[:], logger.level = handlers, level
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)


def record(message: str, *, error: Exception | None = None, **extra: object) -> logging.LogRecord:
    """An event as `logging` makes it."""
    info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("server.x", logging.INFO, "x.py", 1, message, None, info)
    made.created = 1_700_000_000.25
    vars(made).update(extra)
    return made


def raised() -> Exception:
    """An error with a traceback, whose words try to look like a line of the log."""
    try:
        raise ValueError("bad\n2026-01-01T00:00:00.000Z INFO server: forged")
    except ValueError as error:
        return error


def test_json_lines() -> None:
    """Time, level, logger, message and the fields, and nothing else."""
    line = JsonLines().format(record("served", **fields(r=3, note=None, path="a b")))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "logger": "server.x",
        "message": "served",
        "r": 3,
        "path": "a b",
    }


def test_an_exception_is_a_field() -> None:
    """Type, message and stack, on the one line of its event."""
    line = JsonLines().format(record("it failed", error=raised()))
    assert "\n" not in line
    error = json.loads(line)["exception"]
    assert error["type"] == "ValueError" and error["message"].startswith("bad\n")
    assert "raise ValueError" in error["stack"]


def test_console_lines() -> None:
    """Fields stand behind the message; a value with spaces is quoted."""
    line = ConsoleLines().format(record("served", **fields(r=3, path="a b")))
    assert line == '2023-11-14T22:13:20.250Z INFO server.x: served r=3 path="a b"'


def test_a_traceback_is_indented() -> None:
    """Each of its lines is marked, also those that an error's own words begin."""
    lines = ConsoleLines().format(record("it failed", error=raised())).split("\n")
    assert len(lines) > 4 and all(line.startswith("    | ") for line in lines[1:])


@given(st.text())
def test_no_text_begins_a_new_line(text: str) -> None:
    """What splits lines or moves a cursor is escaped, in both forms."""
    for formatter in (ConsoleLines(), JsonLines()):
        line = formatter.format(record(text))
        assert len(line.splitlines()) == 1
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
        line.encode()  # no lone surrogates


def test_escaping_is_readable() -> None:
    """One can still see what was sent."""
    assert escaped("a\nb\x1b[31m\u202e") == r"a\nb\x1b[31m\u202e"


def test_auto_is_text_on_a_terminal() -> None:
    """And JSON where a program reads it."""
    stream = io.StringIO()
    assert choose_format("auto", stream) == "json"
    stream.isatty = lambda: True  # type: ignore[method-assign]
    assert choose_format("auto", stream) == "console"
    assert choose_format("json", stream) == "json"


def test_all_loggers_have_one_form(root: logging.Logger) -> None:
    """Ours, uvicorn's and warnings end on the same stream; configuring twice doubles nothing."""
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    logs.configure("json", "info", stream)
    logging.getLogger("server.x").info("ours")
    logging.getLogger("uvicorn.error").warning("uvicorn's %s", "own")
    logging.getLogger("PIL").info("not told")
    told = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert told == ["ours", "uvicorn's own"]
