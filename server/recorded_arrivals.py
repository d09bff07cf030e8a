"""Arrival times that were recorded somewhere else, replayed at a multiple of this capacity.

A recording is a CSV file with one arrival time in seconds per line and an optional header; where
there are several columns, the header names the one that counts `arrival_s`. All arrivals are kept:
time is compressed (or stretched) by one factor so that the whole recording has the wanted mean
rate. Then a window may be cut out of it; its own mean is what the recording has there.
"""

import csv
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from server.errors import SettingsError

COLUMN = "arrival_s"


@dataclass(frozen=True, slots=True)
class RecordedTrace:
    """A recording at `scale` times the capacity, whole or in part.

    Attributes:
        recorded: the times in seconds, from 0 on, rising; at least two different ones.
        name: the file, as the user wrote it.
        scale: mean rate of the whole recording as a multiple of the capacity.
        duration_s: at most so much of it, in replayed seconds; None: to its end.
        start_s: where that begins, in replayed seconds; None: the seed chooses a place from which
            `duration_s` are left.
    """

    recorded: tuple[float, ...] = field(repr=False)
    name: str
    scale: float = 1.0
    duration_s: float | None = None
    start_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse windows that are none."""
        if self.duration_s is not None and not 0 < self.duration_s < math.inf:
            raise SettingsError(f"duration {self.duration_s:g} s: expected more than 0")
        if self.start_s is not None and not 0 <= self.start_s < math.inf:
            raise SettingsError(f"start {self.start_s:g} s: expected 0 or more")

    def times(self, rate_unit: float, seed: int) -> list[float]:
        """Return the window's arrival times from its beginning on; see `Trace.times`."""
        start, seconds = self._window(rate_unit, seed)
        factor = self._factor(rate_unit)
        replayed = (factor * at - start for at in self.recorded)
        return [at for at in replayed if 0 <= at <= seconds]

    def seconds(self, rate_unit: float) -> float:
        """Return how long the window is: shorter than asked where the recording ends before."""
        return self._window(rate_unit, 0)[1]

    def describe(self, rate_unit: float, seed: int) -> str:
        """Name the file, how it was rescaled and which part is replayed."""
        start, seconds = self._window(rate_unit, seed)
        chosen = ", chosen by the seed" if self._free(rate_unit) else ""
        return (
            f"{self.name}: {len(self.recorded)} arrivals, time × {self._factor(rate_unit):.4g} for "
            f"a mean of {self.scale:g} × capacity; {start:.1f} to {start + seconds:.1f} s of "
            f"{self._length(rate_unit):.1f} s{chosen}"
        )

    def _factor(self, rate_unit: float) -> float:
        """What recorded times are multiplied by."""
        mean = (len(self.recorded) - 1) / self.recorded[-1]
        return mean / (self.scale * rate_unit)

    def _length(self, rate_unit: float) -> float:
        return self.recorded[-1] * self._factor(rate_unit)

    def _free(self, rate_unit: float) -> bool:
        """Whether the seed may choose the window."""
        shorter = self.duration_s is not None and self.duration_s < self._length(rate_unit)
        return shorter and self.start_s is None

    def _window(self, rate_unit: float, seed: int) -> tuple[float, float]:
        """Start and length in replayed seconds."""
        length = self._length(rate_unit)
        start = self.start_s or 0.0
        if start >= length:
            raise SettingsError(
                f"start {start:g} s: at {self.scale:g} × the capacity {self.name} lasts only "
                f"{length:.1f} s; start earlier, or give a smaller scale"
            )
        if self.duration_s is not None and self._free(rate_unit):
            room = length - self.duration_s
            return float(np.random.default_rng(seed).uniform(0, room)), self.duration_s
        return start, min(self.duration_s or math.inf, length - start)


def read_recording(path: str | Path) -> tuple[float, ...]:
    """Read the arrival times of a file, shifted so that the first is 0.

    Raises:
        SettingsError: it is not there, or a line is no number, negative, or earlier than the one
            before; the message names the line.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"trace {str(path)!r} cannot be read: {error}") from error
    times: list[float] = []
    for line, value in _column(str(path), text):
        at = _number(value)
        if at is None or not 0 <= at < math.inf:
            raise SettingsError(
                f"{path}, line {line}: expected a time in seconds, 0 or more, not {value!r}"
            )
        if times and at < times[-1]:
            raise SettingsError(
                f"{path}, line {line}: {value} is earlier than the line before; sort the file"
            )
        times.append(at)
    if len(times) < 2 or times[-1] == times[0]:
        raise SettingsError(f"{path}: expected at least two different arrival times")
    return tuple(at - times[0] for at in times)


def _column(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of the values; a header is left out, and so are empty lines."""
    reader = csv.reader(text.splitlines())
    rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    filled = ((line, row) for line, row in rows if any(row))
    first = next(filled, None)
    if first is None:
        return
    line, cells = first
    headed = _number(cells[0]) is None and any(character.isalpha() for character in cells[0])
    place = 0
    if len(cells) > 1:
        if COLUMN not in cells:
            raise SettingsError(
                f"{path}, line {line}: of several columns the one with the arrival times must be "
                f"headed {COLUMN!r}"
            )
        place = cells.index(COLUMN)
    for number, row in filled if headed else itertools.chain([first], filled):
        yield number, row[place] if place < len(row) else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
