"""Latencies of many cells on a shared, noisy machine: all of them, round after round.

Each round runs every cell once, in an order of its own: what slows the machine for a while slows
all cells a little instead of some of them a lot.  What an earlier call measured can be continued.
"""

import logging
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator

from server.errors import ForwardFailed
from tocom_core.latency_profile import Measurement

logger = logging.getLogger(__name__)

Cell = tuple[int, int]
"""A degree and a batch size."""


class LatencyRounds:
    """Runs cells until each was run often enough.

    Args:
        measure: runs one batch, `(r, batch)` to seconds.
        cells: what to run; a cell that fails is left out from then on.
        repeats: how often each is run, earlier runs included.
        known: measurements to continue, also of other cells, which are kept as they are.
        seed: decides the order within the rounds.
    """

    def __init__(
        self,
        measure: Callable[[int, int], float],
        cells: Iterable[Cell],
        repeats: int,
        known: Iterable[Measurement] = (),
        seed: int = 0,
    ) -> None:
        self._measure = measure
        self._cells = list(cells)
        self._repeats = repeats
        self._known = {(m.r, m.batch): m for m in known}
        self._seconds = {cell: _as_if_run(m) for cell, m in self._known.items()}
        self._order = random.Random(seed)
        self._warm: set[Cell] = set()

    def next_round(self) -> list[Cell]:
        """The cells that lack a run, shuffled; empty when all is measured."""
        lacking = [c for c in self._cells if len(self._seconds.get(c, ())) < self._repeats]
        self._order.shuffle(lacking)
        return lacking

    def run(self, cell: Cell) -> None:
        """Run one cell; the first time twice, as the first run of a shape is slow."""
        try:
            if cell not in self._warm:
                self._measure(*cell)
                self._warm.add(cell)
            seconds = self._measure(*cell)
        except ForwardFailed as error:
            logger.warning("r=%d with %d images left out: %s", *cell, error)
            self._cells.remove(cell)
            return
        self._seconds.setdefault(cell, []).append(seconds)

    def measurements(self) -> tuple[Measurement, ...]:
        """Median and spread of each cell that was run, in the order of cells."""
        return tuple(self._summarise())

    def _summarise(self) -> Iterator[Measurement]:
        for cell, seconds in sorted(self._seconds.items()):
            known = self._known.get(cell)
            if known is not None and known.runs == len(seconds):
                yield known
            else:
                spread = statistics.pstdev(map(math.log, seconds))
                yield Measurement(*cell, statistics.median(seconds), spread, len(seconds))


def _as_if_run(measurement: Measurement) -> list[float]:
    """So many durations with this median and spread, as their own were not kept.

    They lie evenly on both sides: the median itself (if their number is odd) and pairs around it.
    """
    pairs, single = divmod(measurement.runs, 2)
    width = measurement.spread * math.sqrt(measurement.runs / (2 * pairs)) if pairs else 0.0
    around = [measurement.seconds * math.exp(side * width) for side in (-1, 1)] * pairs
    return around + [measurement.seconds] * single
