"""A line per request: what it says, which requests get one, and when it is written."""

import asyncio
import io
import json
import logging
from random import Random
from typing import Any

import pytest

from server.request_ids import TraceParent
from server.request_log import RequestLog, event_of
from server.request_record import RequestRecord
from server.schemas import ClassifyQuery
from server.stats import RequestStats
from tests.server.fakes import run_virtual


def finished(**told: Any) -> RequestRecord:
    """A classification that took 50 ms."""
    defaults: dict[str, Any] = {"status": 200, "outcome": "ok", "ended_at": 100.05}
    return RequestRecord("the-id", None, "POST", "/classify", 100.0, **(defaults | told))


def image(r: int | None = 3, queue_s: float = 0.02) -> RequestStats:
    """An image that was served in a batch of 8."""
    return RequestStats("ok", r, 0.01, queue_s, 0.015, 0.05, 100.0, 7, 8)


def written(
    *records: RequestRecord, share: float = 1.0, level: int = logging.INFO, form: str = "json"
) -> list[str]:
    """The lines that these requests get."""
    stream = io.StringIO()

    async def story() -> None:
        log = RequestLog(stream, form, level, share, Random(0), now=lambda: 0.0)
        for record in records:
            log(record)
        assert stream.getvalue() == ""  # together, a little later
        await asyncio.sleep(1)

    run_virtual(story())
    return stream.getvalue().splitlines()


def test_what_a_line_says() -> None:
    """Who asked, what became of it, where the time went."""
    record = finished(
        client="10.0.0.9",
        query=ClassifyQuery(deadline_ms=80, max_r=5, priority="high"),
        bytes_in=2000,
        images=[image()],
    )
    (line,) = written(record)
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "logger": "server.requests",
        "message": "POST /classify 200",
        "request_id": "the-id",
        "client": "10.0.0.9",
        "status": 200,
        "outcome": "ok",
        "duration_ms": 50.0,
        "bytes": 2000,
        "images": 1,
        "r": 3,
        "batch_size": 8,
        "decode_ms": 10.0,
        "queue_ms": 20.0,
        "compute_ms": 15.0,
        "deadline_ms": 80.0,
        "max_r": 5,
        "priority": "high",
    }


def test_several_images_are_summed_up() -> None:
    """Each degree once, and the longest times."""
    event = event_of(finished(images=[image(8), image(2, queue_s=0.04), image(8)]))
    assert (event["images"], event["r"], event["queue_ms"]) == (3, [2, 8], 40.0)


def test_a_trace_and_a_problem_are_told() -> None:
    """So that a line leads to its trace, and says what the client was told."""
    trace = TraceParent("ab" * 16, "cd" * 8, 1)
    record = finished(problem="/problems/queue-full", status=429, outcome="shed")
    record.trace = trace
    event = event_of(record)
    assert event["trace_id"] == trace.trace_id and event["problem"] == "/problems/queue-full"


def test_a_strange_path_stays_on_its_line() -> None:
    """The path is a stranger's; the query, where keys may stand, is not written."""
    record = RequestRecord("id", None, "PUT", "/x\n\x1b[2J" + "y" * 500, 0.0, status=404)
    for form in ("json", "console"):
        (line,) = written(record, form=form)
        assert "\x1b" not in line and len(line) < 500


@pytest.mark.parametrize(
    ("record", "level"),
    [
        (finished(), "info"),
        (finished(status=500, outcome="failed"), "warning"),
        (finished(status=0, outcome="abandoned"), "info"),
        (RequestRecord("id", None, "PUT", "/compression", 0.0, status=200), "info"),
        (RequestRecord("id", None, "GET", "/metrics", 0.0, status=200), "debug"),
        (RequestRecord("id", None, "GET", "/readyz", 0.0, status=503), "debug"),
        (RequestRecord("id", None, "GET", "/model", 0.0, status=500), "warning"),
    ],
)
def test_levels(record: RequestRecord, level: str) -> None:
    """Failures warn, control is told, what monitoring asks over and over is for debugging."""
    for threshold in ("debug", "info", "warning"):
        number = logging.getLevelName(threshold.upper())
        lines = written(record, level=number)
        assert bool(lines) == (logging.getLevelName(level.upper()) >= number)
        assert all(json.loads(line)["level"] == level for line in lines)


def test_only_ordinary_requests_are_sampled() -> None:
    """A share of what was answered or shed; failures and refusals of bad requests in full."""
    ordinary = [finished() for _ in range(500)] + [finished(status=429, outcome="shed")] * 500
    others = [finished(status=500, outcome="failed"), finished(status=400, outcome="bad_image")]
    lines = [json.loads(line) for line in written(*ordinary, *others, share=0.1)]
    assert {line["outcome"] for line in lines[-2:]} == {"failed", "bad_image"}
    assert 60 < len(lines) - 2 < 140
    assert len(written(*ordinary, share=0.0)) == 0
