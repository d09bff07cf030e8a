"""A table of levels whose figures a test sets by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from server.stats import BatchStats
from tocom_core.operating_point import OperatingPoint

DEGREES = tuple(range(17))


def level(r: int, images_per_s: float, **figures: object) -> OperatingPoint:
    """Return a level whose every batch of up to eight runs at this rate."""
    seconds = tuple(size / images_per_s for size in range(1, 9))
    return replace(OperatingPoint(r, seconds, 8, images_per_s / 100), **figures)  # type: ignore[arg-type]


class SetTable:
    """Stands in for the operating table: 100 images/s at r=0, 200 at r=16, all of it pays.

    Attributes:
        observed: the live batches that it was told of.
    """

    spread = 0.1

    def __init__(
        self,
        degrees: Sequence[int] = DEGREES,
        accuracy: Mapping[int, float] | None = None,
        slow: Sequence[int] = (),
    ) -> None:
        self.degrees = tuple(degrees)
        self.observed: list[BatchStats] = []
        self._points = tuple(
            level(r, 100 + 100 * r / 16, measured=True, pays=r not in slow) for r in degrees
        )
        self.set_accuracy(accuracy or {})

    def points(self) -> tuple[OperatingPoint, ...]:
        """Return all levels; a new tuple after each change."""
        return self._points

    def observe(self, batch: BatchStats) -> None:
        """Note the batch."""
        self.observed.append(batch)

    def set_accuracy(self, accuracy: Mapping[int, float]) -> None:
        """Replace the expected accuracy of all degrees."""
        self._points = tuple(
            replace(point, expected_accuracy=accuracy.get(point.r)) for point in self._points
        )

    def set_paying(self, slow: Sequence[int]) -> None:
        """Say which degrees do not pay."""
        self._points = tuple(replace(point, pays=point.r not in slow) for point in self._points)
