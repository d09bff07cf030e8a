"""Which degrees an automatic choice may take: bounds, the accuracy floor, and what pays.

An operator's word (a pin, a degree held in shadow mode) is no automatic choice; nothing here
limits it. What is allowed is worked out anew whenever the table's figures or the bounds change,
not for each decision.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from server.errors import BadParameter
from server.operating_table import OperatingTable
from server.policy import nearest
from tocom_core.operating_point import OperatingPoint

logger = logging.getLogger(__name__)

HOW_TO_KNOW = (
    "tocom profile stores the expected accuracy of each degree: --evaluation takes it from what "
    "tocom evaluate wrote, --calibration measures the agreement with r_source on any images"
)


class Bounds:
    """The degrees from `low` to `high` that keep the accuracy floor.

    A degree whose expected accuracy is unknown counts as below the floor, save `r_source`: there
    the model is what its owner fine-tuned, which is the best that can be served.

    Args:
        table: the degrees and what is believed of them.
        r_source: the degree of the checkpoint; `low` at first, if `max_r` allows.
        max_r: `high` at first; None is the highest degree.
        min_accuracy: the floor under the expected accuracy; None is no floor.

    Raises:
        BadParameter: a bound is no degree of the model, or bounds and floor leave none.

    Attributes:
        low: no automatic choice is lower.
        high: no automatic choice is higher.
        min_accuracy: the floor.
    """

    def __init__(
        self,
        table: OperatingTable,
        r_source: int,
        *,
        max_r: int | None = None,
        min_accuracy: float | None = None,
    ) -> None:
        self._table = table
        self._r_source = r_source
        self.min_accuracy = min_accuracy
        self._points: tuple[OperatingPoint, ...] = ()
        self._allowed: tuple[OperatingPoint, ...] = ()
        self._offered: tuple[OperatingPoint, ...] = ()
        self._keeping: tuple[OperatingPoint, ...] = ()
        self._floor_holds = True
        lowest, highest = table.degrees[0], table.degrees[-1]
        high = highest if max_r is None else max_r
        self.set(min(max(r_source, lowest), high), high)
        self._say_what_is_unknown()

    def set(self, low: int, high: int) -> None:
        """Take these bounds, or change nothing.

        Raises:
            BadParameter: not degrees of the model, the wrong way round, or no degree between them
                is known to keep the floor.
        """
        lowest, highest = self._table.degrees[0], self._table.degrees[-1]
        for name, value in (("min_r", low), ("max_r", high)):
            if not lowest <= value <= highest:
                raise BadParameter(f"{name}={value} must lie from {lowest} to {highest}")
        if low > high:
            raise BadParameter(
                f"min_r={low} lies above max_r={high}; set both, each from {lowest} to {highest}, "
                "or swap them"
            )
        between = self._between(low, high)
        if not between:
            raise BadParameter(f"this model has no degree from {low} to {high}; widen the bounds")
        if not any(map(self._accurate, between)):
            raise BadParameter(self._floor_too_high(low, high, between))
        self.low, self.high = low, high
        self._points = ()

    def allowed(self) -> tuple[OperatingPoint, ...]:
        """Return the degrees that an automatic choice may take, ascending, at least one.

        Where the live accuracy of all of them has sunk below the floor, it is the most accurate
        one: something has to be served, and refusing it all is for the operator to decide.
        """
        self._refresh()
        return self._allowed

    def offered(self) -> tuple[OperatingPoint, ...]:
        """Return those allowed degrees that pay, and `r_source`, which trades nothing away.

        Left out as well is a degree of which a faster one is expected to be as accurate. Where that
        leaves none, it is the allowed degree nearest to `r_source`.
        """
        self._refresh()
        return self._offered

    def keeping(self) -> tuple[OperatingPoint, ...]:
        """Return the degrees that keep the accuracy floor, within the bounds or not, at least one.

        A request that accepts less compression than the bounds ask for is served at one of these.
        """
        self._refresh()
        return self._keeping

    def objection(self, r: int) -> str:
        """Return why `r` is not offered: slug `bounds`, `accuracy-floor`, `slow` or `beaten`."""
        if not self.low <= r <= self.high:
            return "bounds"
        level = next((level for level in self.allowed() if level.r == r), None)
        if level is None:
            return "accuracy-floor"
        return "beaten" if level.pays else "slow"

    def _refresh(self) -> None:
        points = self._table.points()
        if points is self._points:
            return
        self._points = points
        between = self._between(self.low, self.high)
        accurate = tuple(filter(self._accurate, between))
        self._allowed = accurate or (max(between, key=_accuracy),)
        self._warn_once(bool(accurate))
        worth_it = tuple(
            replace(point, pays=True) for point in self._allowed if self._is_worth_it(point)
        )
        paying = _unbeaten(worth_it, self._r_source)
        if not paying:
            rest = nearest(self._r_source, self._allowed)
            paying = tuple(p for p in self._allowed if p.r == rest)
        self._offered = paying
        kept = tuple(p for p in points if self._accurate(p) and self._is_worth_it(p))
        self._keeping = kept or (max(points, key=_accuracy),)

    def _is_worth_it(self, point: OperatingPoint) -> bool:
        """Whether it is faster than lower degrees, or trades nothing away."""
        return point.pays or point.r == self._r_source

    def _between(self, low: int, high: int) -> tuple[OperatingPoint, ...]:
        return tuple(point for point in self._table.points() if low <= point.r <= high)

    def _accurate(self, point: OperatingPoint) -> bool:
        if self.min_accuracy is None:
            return True
        if point.expected_accuracy is None:
            return point.r == self._r_source
        return point.expected_accuracy >= self.min_accuracy

    def _warn_once(self, floor_holds: bool) -> None:
        if self._floor_holds and not floor_holds:
            logger.warning(
                "no degree from %d to %d keeps min_accuracy=%g any more; serving the most accurate "
                "one, r=%d",
                *(self.low, self.high, self.min_accuracy, self._allowed[0].r),
            )
        self._floor_holds = floor_holds

    def _say_what_is_unknown(self) -> None:
        """Tell the operator of a floor which degrees it shuts out for want of a figure."""
        if self.min_accuracy is None:
            return
        unknown = _unknown(self._between(self.low, self.high), self._r_source)
        if unknown:
            logger.warning(
                "min_accuracy=%g shuts out r=%s, whose expected accuracy is unknown; %s",
                *(self.min_accuracy, unknown, HOW_TO_KNOW),
            )

    def _floor_too_high(self, low: int, high: int, between: Sequence[OperatingPoint]) -> str:
        best = max(between, key=_accuracy)
        found = f"the best, r={best.r}, has {best.expected_accuracy}"
        if best.expected_accuracy is None:
            found = "none of theirs is known"
        text = (
            f"no degree from {low} to {high} is expected to reach the accuracy floor "
            f"min_accuracy={self.min_accuracy}: {found}; lower the floor or widen the bounds"
        )
        unknown = _unknown(between, self._r_source)
        return f"{text} (unknown: r={unknown}; {HOW_TO_KNOW})" if unknown else text


def _accuracy(point: OperatingPoint) -> tuple[float, int]:
    """Sort by expected accuracy, unknown last; of equal ones the lower degree is the better."""
    known = point.expected_accuracy
    return (-1.0 if known is None else known, -point.r)


def _unbeaten(points: Sequence[OperatingPoint], r_source: int) -> tuple[OperatingPoint, ...]:
    """Leave out those of which a higher one, hence faster, is expected to be as accurate.

    Worse than a higher one they can only be below `r_source` (`tocom_core.accuracy_belief`).
    """
    kept: list[OperatingPoint] = []
    best = 0.0  # expected accuracy of those above
    for point in reversed(points):
        known = point.expected_accuracy
        if point.r == r_source or known is None or best < known:
            kept.append(point)
        best = max(best, known or 0.0)
    return tuple(reversed(kept))


def _unknown(points: Sequence[OperatingPoint], r_source: int) -> str:
    """List the degrees without an expected accuracy, as `1, 2, 5`."""
    return ", ".join(str(p.r) for p in points if p.expected_accuracy is None and p.r != r_source)
