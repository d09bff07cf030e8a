"""What goes over the wire and what comes back, without a library of HTTP: requests and answers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, Literal, TypeVar

from tocom_client.errors import (
    ConnectionFailed,
    TocomClientError,
    UnexpectedAnswer,
    error_class,
)
from tocom_client.images import EncodedImage

T = TypeVar("T")

LONGEST_S = 1e9
"""Some thirty years: what a header may ask for and still be a number."""
SHOWN = 200
"""Characters of somebody else's error page that an error repeats."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request of the API, as often as it is sent, and how its answer is read.

    Attributes:
        read: from an answer with a status of 200 or 202.
        query: without the deadline, which is another one in each attempt.
        images: the body: one goes raw, several as a multipart form.
        json: the body otherwise; None: there is none.
        deadlined: whether the server is told the remaining deadline.
        repeatable: whether it does no harm if it is done twice.
        extra_s: how much longer than usual an answer may take.
    """

    method: str
    path: str
    read: Callable[["Answer"], T]
    query: Mapping[str, str] = field(default_factory=dict)
    images: tuple[EncodedImage, ...] = ()
    json: Mapping[str, Any] | None = None
    deadlined: bool = False
    repeatable: bool = True
    extra_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt: what is sent, and how long it may take altogether."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    images: tuple[EncodedImage, ...]
    json: Mapping[str, Any] | None
    within_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def good(self) -> bool:
        """Whether what was asked was done, or has begun."""
        return self.status in (200, 202)

    def json(self) -> Any:
        """The body; raises `UnexpectedAnswer` if it is something else."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise UnexpectedAnswer(
                f"the answer is no JSON but {self.text()!r}; is this a ToCom server's address?",
                status=self.status,
            ) from None

    def text(self) -> str:
        """The beginning of the body, for people."""
        return self.body[: 4 * SHOWN].decode("utf-8", "replace")[:SHOWN].strip()


@dataclass(frozen=True, slots=True)
class Lost:
    """No complete answer came.

    Attributes:
        how: `unsent`: no connection, so nothing was done; `broken`: it ended before the answer did;
            `slow`: nothing came in time.
        detail: for people.
    """

    how: Literal["unsent", "broken", "slow"]
    detail: str


def failure_of(answer: Answer, request_id: str, now: datetime) -> TocomClientError:
    """The error that an answer without success stands for.

    Args:
        answer: a problem document, or what a proxy made up.
        request_id: what the client called the request.
        now: for a `Retry-After` that is a date, where the answer has none of its own.
    """
    told = _problem(answer)
    kind = error_class(told.get("type", ""), answer.status)
    return kind(
        told.get("detail") or f"the server answered {answer.status}: {answer.text()!r}",
        status=answer.status,
        type=told.get("type", ""),
        title=told.get("title", ""),
        request_id=told.get("request_id") or answer.headers.get("x-request-id", request_id),
        retry_after_s=retry_after_s(answer.headers, now),
    )


def loss_of(lost: Lost, request_id: str, repeatable: bool) -> ConnectionFailed:
    """The error that a lost answer stands for.

    What was never sent may be sent again; a request that the server may have seen only if it does
    no harm twice; and one that took too long never: the server would have to do still more.
    """
    error = ConnectionFailed(lost.detail, request_id=request_id)
    error.sent = lost.how != "unsent"
    error.repeatable = lost.how == "unsent" or (lost.how == "broken" and repeatable)
    return error


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds until the server wants to be asked again; None: it does not say, or nothing sensible.

    The header is a whole number of seconds or a date (RFC 9110, 10.2.3). A date is compared with
    the answer's own `Date`, so that the two machines' clocks may differ.
    """
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), LONGEST_S)
    until = _date(text)
    if until is None:
        return None
    return max(0.0, (until - (_date(headers.get("date", "")) or now)).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _problem(answer: Answer) -> dict[str, str]:
    """The texts of a problem document; nothing where the answer is none."""
    try:
        told = json.loads(answer.body)
    except ValueError:
        return {}
    if not isinstance(told, dict):
        return {}
    return {name: value for name, value in told.items() if isinstance(value, str)}
