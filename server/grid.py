"""Measures every degree at several batch sizes while no request waits.

The server opens after two measured batches; what the others take is fitted to them.  This work
replaces belief by measurement, one batch a step, and afterwards looks again at one cell from time
to time, so that a machine that slows down while nobody asks is noticed before somebody does.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol

from server.clock import Clock
from tocom_core.latency_profile import Measurement

logger = logging.getLogger(__name__)

RUNS = 3
"""So many runs make a measurement; another one before them, slow for being the first, is not told
to anyone."""
STEPS_BETWEEN_CHECKS = 4
"""After so many new cells a known one is run again: if the machine has slowed down meanwhile, the
table sees it there, and does not take it for the new cells' own slowness."""
MOST_DEGREES = 17
"""Where a model has more, the fit fills in those between."""

Cell = tuple[int, int]
"""A degree and a batch size."""


class LatencyBeliefs(Protocol):
    """What is told of each run: the `OperatingTable`."""

    def batch_s(self, r: int, size: int, /) -> float:
        """Return the believed duration of a batch in seconds."""
        ...

    def measure(self, r: int, batch: int, seconds: float, /) -> None:
        """Take note of a batch that was run to be measured."""
        ...


class GridMeasurement:
    """Idle work: runs of all cells of a grid, and then of one now and then.

    Cells whose expected duration is over the budget are left to live traffic; which these are is
    judged anew at every step, as beliefs change.  A cell that fails is not tried again.

    Args:
        measure: runs a batch of random images, `(r, batch)` to seconds.
        table: asked for what a cell would take, and told what it took.
        degrees: the most telling ones first.
        clock: seconds.
        max_batch_size: the largest batch that is served.
        budget_s: longest time that one step may be expected to take.
        known: measurements of an earlier run of this server on this device.
        on_complete: called when all cells that fit the budget have been measured, and again when
            beliefs have changed and more of them did.
        recheck_every_s: how often a cell is measured again after that.
    """

    def __init__(
        self,
        measure: Callable[[int, int], Awaitable[float]],
        table: LatencyBeliefs,
        degrees: Iterable[int],
        clock: Clock,
        *,
        max_batch_size: int,
        budget_s: float,
        known: Iterable[Measurement] = (),
        on_complete: Callable[[], None] | None = None,
        recheck_every_s: float = 5.0,
    ) -> None:
        self._measure = measure
        self._table = table
        self._clock = clock
        self._budget_s = budget_s
        self._on_complete = on_complete
        self._told_of = 0
        self._recheck_every_s = recheck_every_s
        sizes = batch_sizes(max_batch_size)
        telling = list(islice(degrees, MOST_DEGREES))
        self._cells = [(r, size) for r in telling for size in sizes]
        self._runs = {(m.r, m.batch): m.runs + 1 for m in known}
        self._steps = 0
        self._checks = 0
        self._next_check_at: float | None = None

    @property
    def done(self) -> bool:
        """Whether no cell lacks a measurement."""
        return next(self._lacking(), None) is None

    @property
    def measured(self) -> int:
        """Cells that lack no run."""
        return sum(self._is_measured(cell) for cell in self._cells)

    @property
    def total(self) -> int:
        """Cells that are measured or will be."""
        return self.measured + sum(1 for _ in self._lacking())

    async def step(self) -> bool:
        """Run one batch; False where there is nothing to measure now."""
        cell = next(self._lacking(), None)
        if cell is None:
            self._complete()
            cell = self._cell_to_check() if self._is_check_due() else None
        elif self._steps % (STEPS_BETWEEN_CHECKS + 1) == STEPS_BETWEEN_CHECKS:
            cell = self._cell_to_check() or cell
        if cell is None:
            return False
        self._steps += 1
        await self._run(cell)
        return True

    async def _run(self, cell: Cell) -> None:
        try:
            seconds = await self._measure(*cell)
            if self._runs.get(cell, 0):
                self._table.measure(*cell, seconds)
        except Exception:
            logger.exception("measuring r=%d with %d images failed; left out from now on", *cell)
            self._cells.remove(cell)
            return
        self._runs[cell] = self._runs.get(cell, 0) + 1

    def _is_measured(self, cell: Cell) -> bool:
        return self._runs.get(cell, 0) > RUNS

    def _fits(self, cell: Cell) -> bool:
        return self._table.batch_s(*cell) <= self._budget_s

    def _lacking(self) -> Iterator[Cell]:
        """Cells to measure, in the order of the grid."""
        return (cell for cell in self._cells if not self._is_measured(cell) and self._fits(cell))

    def _complete(self) -> None:
        """Say that all is measured that fits, and again if more does."""
        if self._on_complete is None or self.measured <= self._told_of:
            return
        self._told_of = self.measured
        try:
            self._on_complete()
        except Exception:
            logger.exception("what was to be done with the measurements failed")

    def _is_check_due(self) -> bool:
        now = self._clock()
        if self._next_check_at is None:
            self._next_check_at = now + self._recheck_every_s
        if now < self._next_check_at:
            return False
        self._next_check_at = now + self._recheck_every_s
        return True

    def _cell_to_check(self) -> Cell | None:
        """The next one, in turn, of those that are measured."""
        known = [cell for cell in self._cells if self._is_measured(cell)]
        if not known:
            return None
        # Where nothing fits, beliefs may just be too high: the shortest one is tried all the same.
        measured = list(filter(self._fits, known)) or [
            min(known, key=lambda cell: self._table.batch_s(*cell))
        ]
        self._checks += 1
        return measured[(self._checks - 1) % len(measured)]


def batch_sizes(largest: int) -> list[int]:
    """The powers of two up to the largest batch."""
    return [1 << power for power in range(largest.bit_length())]
