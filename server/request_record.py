"""What is written down of one HTTP request while it is handled, for whoever asks afterwards.

The middleware opens a record, the intake and the queue add to it, and at the end the observers of
`Service.on_finished` get it: the request log and the traces. It is filled in on the event loop only
and not changed once it is finished.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from server.request_ids import TraceParent
from server.schemas import ClassifyQuery
from server.stats import RequestStats

RequestOutcome = Literal[
    "ok",
    "bad_image",
    "bad_parameter",
    "denied",
    "limited",
    "shed",
    "expired",
    "abandoned",
    "failed",
    "not_ready",
    "draining",
]
"""How a classification request ended; `stats.Outcome` says the same of a single image."""


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request; times are seconds on the server's clock.

    Attributes:
        request_id: in its answer, in the log and in problems.
        trace: the span of its client that it belongs to.
        arrived_at: when its head had come in.
        client: address of the connection's other end.
        query: what a classification asks for.
        bytes_in: size of its images, once they have come in.
        images: how each fared, in the order in which they ended.
        status: of the answer; 0 where none was begun.
        outcome: of a classification; None for anything else.
        problem: type of the problem that it was answered with, where the endpoint told.
        ended_at: when its answer was handed over.
    """

    request_id: str
    trace: TraceParent | None
    method: str
    path: str
    arrived_at: float
    client: str | None = None
    query: ClassifyQuery | None = None
    bytes_in: int = 0
    images: list[RequestStats] = field(default_factory=list)
    status: int = 0
    outcome: RequestOutcome | None = None
    problem: str | None = None
    ended_at: float = 0.0

    @property
    def duration_s(self) -> float:
        """From its arrival to its answer."""
        return self.ended_at - self.arrived_at


Finished = Callable[[RequestRecord], None]
"""An observer of finished requests."""
