"""What goes into the scheduler and what comes out of it: plain records."""

import math
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar


@dataclass(slots=True)
class PendingRequest:
    """One image that waits; times are seconds on the server's clock.

    Attributes:
        id: unique.
        arrived_at: when it entered the queue, decoded.
        received_at: when its request had come in, in full; the SLO counts from there, as a slow
            upload is not the server's doing.
        deadline: when its answer is worth nothing any more; None means never.
        max_r: the highest degree it accepts; None accepts any.
        priority: 0 high, 1 normal, 2 low.
        payload: what the model gets.
        companions: how many other images came with the same request; the SLO is for one image,
            and these get the time that they take on top of it.
        due: when it should be answered; the scheduler sets it. Infinite where no degree could
            ever keep the SLO.
    """

    id: int
    arrived_at: float
    received_at: float
    deadline: float | None = None
    max_r: int | None = None
    priority: int = 1
    payload: Any = None
    companions: int = 0
    due: float = math.inf


RequestT = TypeVar("RequestT", bound=PendingRequest)


@dataclass(frozen=True, slots=True)
class Selection(Generic[RequestT]):
    """The next batch (empty if nothing can be served) and whose time is over.

    Attributes:
        batch: requests to be computed now, together.
        r: their degree.
        wanted_r: the controller's; `r` is lower where the requests' own `max_r` is.
        expired: requests whose deadline cannot be kept any more.
        shed: requests without a deadline that cannot be answered within the SLO any more.
        retry_after_s: when it is worth coming back, for those.
    """

    batch: list[RequestT]
    r: int
    wanted_r: int
    expired: list[RequestT]
    shed: list[RequestT]
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not admitted: no room, or it would be late, or its deadline is too near."""

    why: Literal["full", "late", "hopeless"]
    retry_after_s: float
