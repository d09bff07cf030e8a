"""What each degree delivers on this machine, kept honest while the server runs.

Here the belief about latencies (`latency_belief`) becomes the operating points that policies and
scheduler work with: durations by batch size, the efficient batch, the throughput, and whether a
degree pays at all.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from server.latency_belief import LatencyBelief
from server.stats import BatchStats
from tocom_core.latency_fit import Array, fit_latency
from tocom_core.latency_profile import LONGEST_S, SHORTEST_S, LatencyProfile, Measurement
from tocom_core.operating_point import OperatingPoint

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

EFFICIENT_SHARE = 0.97
"""The efficient batch reaches this share of the best throughput; larger ones only cost time."""
LEAST_GAIN = 0.01
"""A degree begins to pay when it is faster by this share."""
MOST_LOSS = 0.3
"""One that pays does so until it is believed to be slower by this share.

Beliefs of a degree that is not visited do not mend: under overload, where nothing is measured at
leisure, a wrong one would lock out the fastest degree for as long as the load lasts.
"""
LEAST_MOVE = 0.005
"""Points are built anew once an estimate moved by this share."""
LEARN_EVERY_S = 0.02
"""After a batch that was learned from, the next ones at its degree are not until they took so long.

Learning, and building the points anew, takes a few hundred microseconds on the event loop: nothing
beside a batch of 20 ms, half of the server's own work beside one of 0.5 ms. Which ones are left out
is decided before they are seen, so that slow and fast ones are as likely to be.
"""
WIDEN_AFTER = 8
"""After so many full batches of a degree one may be twice as large, to see whether that pays.

A size that was believed to be slow in a bad moment would else never be run again: what comes in
smaller batches than it could never gathers for a larger one.
"""
UNKNOWN_SPREAD = 0.1
"""Of batch durations, until live batches show it, where the profile says nothing."""


class OperatingTable:
    """The degrees of the served model and what is believed of them.

    Args:
        profile: what was measured so far.
        devices: how many such devices compute batches of their own, side by side.
        max_batch_size: most images in one batch; None takes the profile's.
        max_batch_s: longest time that an efficient batch may take; infinity means no such bound.
        accuracy: degree → expected accuracy; None takes the profile's.
    """

    def __init__(
        self,
        profile: LatencyProfile,
        *,
        devices: int = 1,
        max_batch_size: int | None = None,
        max_batch_s: float = math.inf,
        accuracy: Mapping[int, float] | None = None,
    ) -> None:
        self.max_batch_size = profile.max_batch_size if max_batch_size is None else max_batch_size
        self.degrees = profile.degrees
        self.devices = devices
        self._profile = profile
        self._max_batch_s = max_batch_s
        self._accuracy = dict(profile.expected_accuracy() if accuracy is None else accuracy)
        self._measured = {(m.r, m.batch): m for m in profile.measurements}
        self._tried = {m.r for m in profile.measurements}
        fit = fit_latency(profile.measurements, profile.work, self.max_batch_size, profile.lanes)
        self._belief = LatencyBelief(fit, _first_spread(profile))
        self._learned_r: int | None = None
        self._pause_s = 0.0
        self._pays = np.zeros(len(self.degrees), bool)
        self._efficient = np.ones(len(self.degrees), np.int64)
        self._full_batches = np.zeros(len(self.degrees), np.int64)  # since a larger one
        self._seen_state = self._built_state = self._belief.state
        self._stale = True

    @property
    def spread(self) -> float:
        """How far off live batches were of late: standard deviation of log(measured / believed)."""
        return self._belief.spread

    @property
    def measured_cells(self) -> frozenset[tuple[int, int]]:
        """Each (degree, batch) that the profile or `measure` knows."""
        return frozenset(self._measured)

    def points(self) -> tuple[OperatingPoint, ...]:
        """Return all degrees, ascending; the same tuple until an estimate moved by over 0.5 %."""
        self._refresh()
        return self._points

    def batch_s(self, r: int, size: int) -> float:
        """Return the believed seconds of a batch, as exact as `points`.

        A degree that the model does not have counts as the next lower one, or as the lowest.
        """
        self._refresh()
        return self._points[self._row(r)].batch_s(size)

    def observe(self, batch: BatchStats) -> None:
        """Learn from a live batch; one that cannot be (unknown degree, no duration) is ignored.

        Of batches that are much shorter than `LEARN_EVERY_S`, some are.

        What counts is how long it kept others waiting: the way to the model's thread and back is
        in it, and what it shared with the batch before is not.
        """
        if batch.partial:
            return
        if not self._is_plausible(batch.r, batch.size, batch.busy_s):
            return
        if batch.r == self._learned_r and self._pause_s > 0:
            self._pause_s -= batch.busy_s
            return
        self._learned_r, self._pause_s = batch.r, LEARN_EVERY_S - batch.busy_s
        self._belief.learn_live(self.degrees.index(batch.r), batch.size, batch.busy_s)
        self._note_tried(batch.r)
        self._note_full(self.degrees.index(batch.r), batch.size)

    def measure(self, r: int, batch: int, seconds: float) -> None:
        """Learn from a forward of `batch` images that ran while no request waited.

        Whoever measures a row of new cells should measure a known one now and then: only those tell
        that the machine, not the cells, became slow.

        Raises:
            ValueError: the model or the table has no such cell, or it is no duration.
        """
        if not self._is_plausible(r, batch, seconds):
            raise ValueError(
                f"r={r}, batch={batch}, seconds={seconds}: expected a degree of {self.degrees}, "
                f"1 to {self.max_batch_size} images and a positive duration"
            )
        self._belief.learn_idle(self.degrees.index(r), batch, seconds)
        self._note_tried(r)
        known = self._measured.get((r, batch))
        runs = 1 if known is None else known.runs + 1
        self._measured[r, batch] = Measurement(
            r, batch, seconds, known.spread if known else 0, runs
        )

    def set_accuracy(self, accuracy: Mapping[int, float]) -> None:
        """Replace the expected accuracy of all degrees; of those left out, nothing is known."""
        if accuracy != self._accuracy:
            self._accuracy = dict(accuracy)
            self._stale = True

    def to_profile(self) -> LatencyProfile:
        """Return the profile with all measured cells, as they are believed to be now.

        A cell run only once stays a single run there: a table made from the profile leans it
        towards its neighbours again, by up to a tenth where it contradicts them.
        """
        seconds = self._belief.seconds()
        believed = [
            replace(m, seconds=min(max(float(seconds[self._row(r), b - 1]), SHORTEST_S), LONGEST_S))
            for (r, b), m in sorted(self._measured.items())
        ]
        largest = max(self.max_batch_size, *(m.batch for m in believed))
        return replace(self._profile, measurements=believed, max_batch_size=largest)

    def _row(self, r: int) -> int:
        return max(0, bisect_right(self.degrees, r) - 1)

    def _is_plausible(self, r: int, size: int, seconds: float) -> bool:
        known = r in self.degrees and 1 <= size <= self.max_batch_size
        return known and SHORTEST_S <= seconds <= LONGEST_S

    def _note_tried(self, r: int) -> None:
        if r not in self._tried:
            self._tried.add(r)
            self._stale = True

    def _note_full(self, row: int, size: int) -> None:
        """Count batches of the efficient size, and begin anew after a larger one."""
        before = self._full_batches[row]
        if size > self._efficient[row]:
            self._full_batches[row] = 0
        elif size == self._efficient[row]:
            self._full_batches[row] += 1
        self._stale |= (before >= WIDEN_AFTER) != (self._full_batches[row] >= WIDEN_AFTER)

    def _refresh(self) -> None:
        state = self._belief.state
        if state is not self._seen_state:
            change = state - self._built_state
            moved = float(np.abs(change[1:] + change[0]).max())
            self._stale = self._stale or moved > LEAST_MOVE
            self._seen_state = state
        if self._stale:
            self._rebuild()

    def _rebuild(self) -> None:
        self._built_state = self._belief.state
        self._stale = False
        seconds = self._belief.seconds()[:, : self.max_batch_size]
        self._efficient = self._efficient_batches(seconds)
        efficient = self._widened(seconds)
        self._pays = _which_pay(seconds, self._efficient, self._pays)
        rows = np.arange(len(seconds))
        rates = efficient / seconds[rows, efficient - 1]
        relative = (rates / rates[0]).tolist()
        durations = seconds.tolist()
        self._points: tuple[OperatingPoint, ...] = tuple(
            OperatingPoint(
                r=r,
                batch_seconds=tuple(durations[row]),
                batch_size=int(efficient[row]),
                relative_throughput=relative[row],
                expected_accuracy=self._accuracy.get(r),
                measured=r in self._tried,
                pays=bool(self._pays[row]),
                devices=self.devices,
            )
            for row, r in enumerate(self.degrees)
        )

    def _efficient_batches(self, seconds: Array) -> IntArray:
        """Return the smallest size per degree with next to the best throughput in bearable time."""
        rates = np.arange(1, seconds.shape[1] + 1) / seconds
        rates[:, 1:][seconds[:, 1:] > self._max_batch_s] = 0.0
        enough = rates >= EFFICIENT_SHARE * rates.max(axis=1, keepdims=True)
        smallest: IntArray = np.argmax(enough, axis=1) + 1
        return smallest

    def _widened(self, seconds: Array) -> IntArray:
        """Return the efficient sizes, twice that where it is time to see what a larger one does."""
        larger = np.minimum(2 * self._efficient, seconds.shape[1])
        bearable = seconds[np.arange(len(seconds)), larger - 1] <= self._max_batch_s
        due = (self._full_batches >= WIDEN_AFTER) & bearable
        return np.where(due, larger, self._efficient)


def _which_pay(seconds: Array, efficient: IntArray, before: BoolArray) -> BoolArray:
    """Say which degrees are faster than every lower one with their efficient batch.

    That is the size at which throughput counts, so where a higher degree is wanted. One that is
    faster only with smaller batches would answer a single image sooner and a full queue later.
    """
    columns = efficient[1:] - 1
    rows = np.arange(len(columns))
    fastest_below = np.minimum.accumulate(seconds, axis=0)[rows, columns]
    needed = np.where(before[1:], 1.0 + MOST_LOSS, 1.0 - LEAST_GAIN)
    return np.concatenate([[True], seconds[rows + 1, columns] < needed * fastest_below])


def _first_spread(profile: LatencyProfile) -> float:
    known = [m.spread for m in profile.measurements if m.spread > 0]
    return float(np.median(known)) if known else UNKNOWN_SPREAD
