"""Which degree, and how large a batch, should come next: a decision from a snapshot.

A policy knows the load and the levels it may choose from, and nothing of weights, queues or
HTTP; it keeps at most a memory of its own earlier decisions, and takes the time from the
snapshot, so that a simulation uses the same code. Whoever wants another behaviour writes another
`Policy` and names it in `policies`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.stats import LoadSnapshot
from tocom_core.operating_point import OperatingPoint


@dataclass(frozen=True, slots=True)
class Decision:
    """A degree and why: a stable slug such as `queue-rising` or `steady`.

    Attributes:
        r: the degree.
        reason: few values, as it becomes a metric's label.
        max_batch: most images in the next batch; None leaves the size to the scheduler, which
            fills it as far as all that are in it stay in time.
    """

    r: int
    reason: str
    max_batch: int | None = None


class Policy(Protocol):
    """Decides before each batch, and a few times a second while there is none."""

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Choose one of `load.levels`, which is never empty and holds `current_r`.

        Levels that do not pay (`OperatingPoint.pays`) are there only where nothing else is left.
        """
        ...


class StaticPolicy:
    """Always the same degree, or the nearest one that is allowed."""

    def __init__(self, r: int) -> None:
        self.r = r

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Return the fixed degree, whatever the load."""
        return Decision(nearest(self.r, load.levels), "static")


def nearest(r: int, levels: Sequence[OperatingPoint]) -> int:
    """Return the degree of `levels` closest to `r`, the lower one of two."""
    for level in levels:
        if level.r == r:
            return r
    return min((level.r for level in levels), key=lambda degree: (abs(degree - r), degree))


def fastest(levels: Sequence[OperatingPoint]) -> OperatingPoint:
    """Return the level with the highest throughput, the lowest degree of equal ones."""
    return max(levels, key=lambda level: (level.images_per_s, -level.r))
