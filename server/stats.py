"""What the core reports: plain frozen records.

The batcher and the controller emit these and know nothing of Prometheus, logs or traces;
observers turn them into whatever is needed. All times are seconds on the server's clock.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from tocom_core.operating_point import OperatingPoint

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

FloatArray = np.ndarray[tuple[int], np.dtype[np.float64]]
IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]

NO_LIMIT = 1 << 30
"""`max_r` of a request that accepts any degree."""

Outcome = Literal["ok", "bad_image", "expired", "shed", "abandoned", "failed", "draining"]

RefusalReason = Literal[
    "bad_request",
    "unauthorized",
    "missing_scope",
    "cross_site",
    "unknown_host",
    "rate_limited",
    "too_many_connections",
    "bad_http",
    "slow_head",
    "slow_body",
    "slow_reader",
]
"""Why the door stayed shut, or was shut on someone."""


@dataclass(frozen=True, slots=True)
class RequestStats:
    """How one image fared, from its first byte to its answer.

    `r` is None where the image never reached the model; then `compute_s` is 0.

    Attributes:
        queued_at: when it was decoded and joined the queue; None if it never did.
        batch_id: `BatchStats.id` of the batch that it was part of; None if it was in none.
        batch_size: images in that batch.
    """

    outcome: Outcome
    r: int | None
    decode_s: float
    queue_s: float
    compute_s: float
    total_s: float
    queued_at: float | None = None
    batch_id: int | None = None
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What the model returns for a batch: one output per image, in order.

    An output may be an exception: then that image failed and the others did not. `partial` says
    that the batch had no work for some part of its device, which others may have used meanwhile.
    `busy_s` is for how long each of its largest parts kept a lane of its device from others, in the
    mean; None where there are no lanes. `device` is the number of that device.
    """

    outputs: Sequence[Any]
    r: int
    merge_s: float
    compute_s: float
    partial: bool = False
    busy_s: float | None = None
    device: int = 0


@dataclass(frozen=True, slots=True)
class BatchStats:
    """One forward: its degree, its size, and what merging weights and computing took.

    Attributes:
        limited: the requests' own `max_r` set the degree, not the controller.
        handover_s: the way to the model's thread and back, through whatever else the process has
            to do, and the wait for a batch that was still running.
        overlap_s: for how long after its start it waited for batches before it that were running
            on its device, or on its lanes.
        partial: it ran beside another batch on a part of its device, so that its duration says
            nothing of how long such a batch keeps the whole device busy.
        device: the number of the device that computed it.
        id: names the batch among all of this process.
    """

    r: int
    size: int
    merge_s: float
    compute_s: float
    started_at: float
    limited: bool = False
    handover_s: float = 0.0
    overlap_s: float = 0.0
    partial: bool = False
    device: int = 0
    id: int = 0

    @property
    def ended_at(self) -> float:
        """When its outcome was there."""
        return self.started_at + self.merge_s + self.compute_s + self.handover_s

    @property
    def busy_s(self) -> float:
        """For how long it, and no batch before it, kept others waiting, merging left out."""
        return self.compute_s + self.handover_s - self.overlap_s


@dataclass(frozen=True, slots=True)
class SwitchStats:
    """The live weights went from one degree to another, before a batch."""

    r_from: int
    r_to: int
    reason: str
    merge_s: float
    at: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's name, its meaning, and its value: one, or one for each of something, or none yet.

    `by_degree` and `by_device` are told apart by a label.
    """

    name: str
    meaning: str
    value: float | None = None
    by_degree: Mapping[int, float] | None = None
    by_device: Mapping[int, float] | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """The images that wait, in the order in which they would be served now.

    Attributes:
        slack_s: `(n,)` float64, seconds until each is due; negative where that time is over.
        max_r: `(n,)` int64, the highest degree each accepts; `NO_LIMIT` accepts any.
        begin_s: when each device can begin its next batch, counted from when the first one can;
            ascending.
        least_slack_s: the smallest; infinite if nobody waits.
        least_max_r: the smallest; `NO_LIMIT` if nobody waits.
    """

    slack_s: FloatArray
    max_r: IntArray
    begin_s: tuple[float, ...] = (0.0,)
    least_slack_s: float = field(init=False)
    least_max_r: int = field(init=False)

    def __post_init__(self) -> None:
        """Look for the smallest ones once; a decision asks for them several times."""
        least_s = self.slack_s.min(initial=math.inf)
        object.__setattr__(self, "least_slack_s", float(least_s))
        object.__setattr__(self, "least_max_r", int(self.max_r.min(initial=NO_LIMIT)))

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self.slack_s)


EMPTY_BACKLOG = Backlog(np.empty(0), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """What a policy sees when it decides.

    The scheduler fills in what it observes; the controller adds `slo_s` and `levels` (those
    that the policy may choose from, ascending in `r`).

    Attributes:
        now: time of the snapshot.
        backlog: the images that wait for a batch.
        decoding: images that were admitted and are still being decoded; they join soon.
        oldest_wait_s: how long the longest waiting image has waited; 0 for an empty queue.
        in_flight: images in the batches that are running.
        arrival_rate: offered images/s of the last half second or so.
        steady_rate: offered images/s of the last few seconds.
        recent_latency_s: 95th percentile over the last two seconds of the time from a request's
            last byte to its result; None without an answer in that time.
        answered: images answered with a result since the start.
        late: those of them that came after they were due, and all that were shed or expired.
        queue_size: how many images the queue holds at most; None means unbounded.
        spread: how far off believed batch durations were of late: standard deviation of
            log(measured / believed).
        switch_s: what a change of the degree costs before the next batch.
        slo_s: the latency that the operator promised.
        levels: the degrees to choose from.
    """

    now: float
    backlog: Backlog = EMPTY_BACKLOG
    decoding: int = 0
    oldest_wait_s: float = 0.0
    in_flight: int = 0
    arrival_rate: float = 0.0
    steady_rate: float = 0.0
    recent_latency_s: float | None = None
    answered: int = 0
    late: int = 0
    queue_size: int | None = None
    spread: float = 0.0
    switch_s: float = 0.0
    slo_s: float = math.inf
    levels: tuple[OperatingPoint, ...] = ()

    @property
    def queue_length(self) -> int:
        """Images that wait for a batch."""
        return len(self.backlog)

    @property
    def admitted(self) -> int:
        """Images that hold a place in the queue: they wait for a batch, or are being decoded."""
        return len(self.backlog) + self.decoding


def notify(observers: Iterable[Callable[[Record], None]], record: Record) -> None:
    """Tell all observers; one that fails is logged and must not cost an answer."""
    for observer in observers:
        try:
            observer(record)
        except Exception:
            logger.exception("an observer failed on %r", record)
