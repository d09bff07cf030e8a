"""One line of log per request: who asked, what became of it, where its time went.

A busy server answers hundreds of requests a second, and a call of `logging` for each of them takes
longer than many of its steps. So the lines are made here directly and written together a few times
a second. Answered and shed requests may be sampled; failures and what an operator changes are
always written, and questions that monitoring asks over and over only at `debug`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from random import Random
from typing import Any, TextIO

from server.logs import console_line, encode, timestamp
from server.request_record import RequestRecord

NAME = "server.requests"
FLUSH_AFTER_S = 0.2
LONGEST_PATH = 200
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_ORDINARY = frozenset({"ok", "shed"})
_SERVER_FAULT = 500


class RequestLog:
    """Observer of finished requests that writes a line for each.

    Args:
        stream: where to.
        log_format: `json` or `console`.
        level: the least severe lines that are written, as in `logging`.
        share: of the requests that were answered or shed, so many get a line, from 0 to 1.
        random: draws them.
        now: seconds since 1970.
    """

    def __init__(
        self,
        stream: TextIO,
        log_format: str,
        level: int,
        share: float,
        random: Random | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream
        self._json = log_format == "json"
        self._level = level
        self._share = share
        self._random = random or Random()
        self._now = now
        self._lines: list[str] = []

    def __call__(self, record: RequestRecord) -> None:
        """Note a finished request; must be called on an event loop."""
        level = level_of(record)
        if level < self._level:
            return
        if record.outcome in _ORDINARY and self._random.random() >= self._share:
            return
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self.flush)
        self._lines.append(self._line(record, level))

    def flush(self) -> None:
        """Write what has gathered."""
        lines, self._lines = self._lines, []
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()

    def _line(self, record: RequestRecord, level: int) -> str:
        created = self._now()
        path = record.path if len(record.path) <= LONGEST_PATH else record.path[:LONGEST_PATH] + "…"
        message = f"{record.method} {path} {record.status or '-'}"
        event, name = event_of(record), logging.getLevelName(level)
        if not self._json:
            return console_line(created, name, NAME, message, event)
        head = {"time": timestamp(created), "level": name.lower(), "logger": NAME}
        return encode(head | {"message": message} | event)


def level_of(record: RequestRecord) -> int:
    """How much a request is worth mentioning."""
    if record.outcome == "failed" or record.status == _SERVER_FAULT:
        return logging.WARNING
    if record.outcome is None and record.method in _READING:
        return logging.DEBUG
    return logging.INFO


def event_of(record: RequestRecord) -> dict[str, Any]:
    """What is told of a request; what it does not have is left out.

    Of several images the longest times are told, and each degree once.
    """
    event: dict[str, Any] = {"request_id": record.request_id}
    if record.trace is not None:
        event["trace_id"] = record.trace.trace_id
    if record.client is not None:
        event["client"] = record.client
    event["status"] = record.status
    if record.outcome is not None:
        event["outcome"] = record.outcome
    if record.problem is not None:
        event["problem"] = record.problem
    event["duration_ms"] = _ms(record.duration_s)
    if record.bytes_in:
        event["bytes"] = record.bytes_in
    if record.images:
        event |= _images(record)
    query = record.query
    if query is not None:
        if query.deadline_ms is not None:
            event["deadline_ms"] = query.deadline_ms
        if query.max_r is not None:
            event["max_r"] = query.max_r
        if query.priority != "normal":
            event["priority"] = query.priority
    return event


def _images(record: RequestRecord) -> dict[str, Any]:
    images = record.images
    degrees = {image.r for image in images if image.r is not None}
    event: dict[str, Any] = {"images": len(images)}
    if degrees:
        event["r"] = degrees.pop() if len(degrees) == 1 else sorted(degrees)
        event["batch_size"] = max(image.batch_size for image in images)
    event["decode_ms"] = _ms(max(image.decode_s for image in images))
    event["queue_ms"] = _ms(max(image.queue_s for image in images))
    event["compute_ms"] = _ms(max(image.compute_s for image in images))
    return event


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
