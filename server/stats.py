"""What the core reports: plain frozen records.

The batcher and the controller emit these and know nothing of Prometheus, logs or traces;
observers turn them into whatever is needed. All times are seconds on the server's clock.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from tocom_core.operating_point import OperatingPoint

logger = logging.getLogger(__name__)

Record = TypeVar("Record")

Outcome = Literal["ok", "bad_image", "expired", "shed", "abandoned", "failed", "draining"]


@dataclass(frozen=True, slots=True)
class RequestStats:
    """How one image fared, from its first byte to its answer.

    `r` is None where the image never reached the model; then `compute_s` is 0.
    """

    outcome: Outcome
    r: int | None
    decode_s: float
    queue_s: float
    compute_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What the model returns for a batch: one output per image, in order.

    An output may be an exception: then that image failed and the others did not.
    """

    outputs: Sequence[Any]
    r: int
    merge_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class BatchStats:
    """One forward: its degree, its size, and what merging weights and computing took.

    `limited` says that the requests' own `max_r` set the degree, not the controller.
    """

    r: int
    size: int
    merge_s: float
    compute_s: float
    started_at: float
    limited: bool = False


@dataclass(frozen=True, slots=True)
class SwitchStats:
    """The live weights went from one degree to another, before a batch."""

    r_from: int
    r_to: int
    reason: str
    merge_s: float
    at: float


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """What a policy sees when it decides.

    The batcher fills in what it observes; the controller adds `slo_s` and `levels` (those
    that the policy may choose from, ascending in `r`).

    Attributes:
        now: time of the snapshot.
        queue_length: images that wait for a batch.
        oldest_wait_s: how long the oldest of them has waited; 0 for an empty queue.
        in_flight: images in the batch that is running.
        arrival_rate: offered images/s, exponentially weighted over the last seconds.
        recent_latency_s: 95th percentile of queue plus compute time over the last two
            seconds, decoding excluded; None without an answer in that time.
        queue_size: how many images the queue holds at most; None means unbounded.
        slo_s: the latency that the operator promised.
        levels: the degrees to choose from, with their throughput.
    """

    now: float
    queue_length: int
    oldest_wait_s: float
    in_flight: int
    arrival_rate: float
    recent_latency_s: float | None
    queue_size: int | None = None
    slo_s: float = math.inf
    levels: tuple[OperatingPoint, ...] = ()


def notify(observers: Iterable[Callable[[Record], None]], record: Record) -> None:
    """Tell all observers; one that fails is logged and must not cost an answer."""
    for observer in observers:
        try:
            observer(record)
        except Exception:
            logger.exception("an observer failed on %r", record)
