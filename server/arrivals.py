"""When requests arrive: the traces that `tocom bench` replays and `tocom simulate` computes with.

A load is only comparable between machines as a multiple of what the machine can do, so a trace is
a shape: its rates are multiples of a capacity in images/s that whoever replays it has measured.
From shape, capacity and seed the arrival times follow, always the same ones. The grammar, where M
is a multiple of the capacity and S a number of seconds:

    constant:0.9x60            M x S
    step:0.5x20,1.5x60,0.5x20  several of them, one after the other
    ramp:0.2-2.0x120           from one multiple to another, linearly
    gamma:0.9x60,cv2=4         bursts: see below
    arrivals.csv               a recording: see `server.recorded_arrivals`

`step`, `ramp` and `gamma` alone stand for the examples above.

Inter-arrival times are exponential (Poisson arrivals) unless an option at the end says otherwise:
`cv2=C` draws them from a gamma distribution whose squared coefficient of variation is C (1 is
Poisson, 4 and 8 are bursts), `even` makes them equal. Where the rate changes, they are stretched:
intervals of mean 1 are drawn and laid on the integral of the rate over time.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from server.errors import SettingsError
from server.recorded_arrivals import RecordedTrace, read_recording
from server.stats import FloatArray

EVEN, POISSON = 0.0, 1.0
MOST_MULTIPLE = 1000.0
MOST_SECONDS = 7 * 86_400.0

KINDS = ("constant", "step", "ramp", "gamma")
EXAMPLES = {
    "step": "step:0.5x20,1.5x60,0.5x20",
    "ramp": "ramp:0.2-2.0x120",
    "gamma": "gamma:0.9x60,cv2=4",
}

_GRAMMAR = (
    "expected constant:MxS, step:MxS,MxS,…, ramp:M-MxS or gamma:MxS,cv2=C (M a multiple of the "
    "capacity, S seconds; ',even' or ',cv2=C' at the end spaces arrivals evenly or in bursts), or "
    "the path of a CSV file"
)
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_PHASE = re.compile(rf"{_NUMBER}[x×]{_NUMBER}")
_SLOPE = re.compile(rf"{_NUMBER}-{_NUMBER}[x×]{_NUMBER}")


class Trace(Protocol):
    """A shape of load that turns into arrival times.

    Attributes:
        name: what the user called it.
    """

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def times(self, rate_unit: float, seed: int) -> list[float]:
        """Return arrival times in seconds from 0 on, rising.

        Args:
            rate_unit: the capacity in images/s that the trace's multiples refer to.
            seed: the same one gives the same arrivals.
        """
        ...

    def seconds(self, rate_unit: float) -> float:
        """Return how long the arrivals go on, the quiet end included."""
        ...

    def describe(self, rate_unit: float, seed: int) -> str:
        """Say what is replayed, for a report: window and factor of a recording, for instance."""
        ...


@dataclass(frozen=True, slots=True)
class Phase:
    """Load that goes linearly from one multiple of the capacity to another, in some seconds."""

    first: float
    last: float
    seconds: float

    @property
    def mean(self) -> float:
        """Mean multiple of the capacity."""
        return (self.first + self.last) / 2


@dataclass(frozen=True, slots=True)
class PhasedTrace:
    """Phases one after the other, with gamma-distributed intervals between arrivals.

    Attributes:
        name: as the user wrote it.
        phases: in order; all multiples are already scaled.
        cv2: squared coefficient of variation of the intervals; 0 is even, 1 Poisson.
    """

    name: str
    phases: tuple[Phase, ...]
    cv2: float = POISSON

    def times(self, rate_unit: float, seed: int) -> list[float]:
        """Return arrival times; see `Trace.times`."""
        ends = np.cumsum([0.0, *(rate_unit * p.mean * p.seconds for p in self.phases)])
        arrivals = _renewals(float(ends[-1]), self.cv2, np.random.default_rng(seed))
        places = np.searchsorted(ends[1:], arrivals, side="left")
        starts = np.cumsum([0.0, *(phase.seconds for phase in self.phases)])
        times = [
            float(starts[place]) + _seconds_until(float(at - ends[place]), rate_unit, phase)
            for at, place in zip(arrivals, places, strict=True)
            for phase in [self.phases[place]]
        ]
        return list(itertools.accumulate(times, max))  # rounding may turn close ones around

    def seconds(self, rate_unit: float) -> float:
        """Return the length of all phases together; the capacity does not change it."""
        return math.fsum(phase.seconds for phase in self.phases)

    def describe(self, rate_unit: float, seed: int) -> str:
        """Name the trace and its mean rate."""
        seconds = self.seconds(rate_unit)
        mean = math.fsum(phase.mean * phase.seconds for phase in self.phases) / seconds
        spacing = {EVEN: "evenly spaced", POISSON: "Poisson"}.get(self.cv2, f"CV² {self.cv2:g}")
        return f"{self.name}: {seconds:g} s, mean {mean:.3g} × capacity, {spacing}"


def parse_trace(
    spec: str,
    *,
    scale: float = 1.0,
    duration_s: float | None = None,
    start_s: float | None = None,
) -> Trace:
    """Read what the user wrote; see the module for the grammar.

    Args:
        spec: `kind:phases,options`, or the path of a recording.
        scale: multiplies all rates; a recording's own mean counts as 1.
        duration_s: how much of a recording is replayed; None: all of it.
        start_s: where in the rescaled recording that begins; None: a place that the seed chooses.

    Raises:
        SettingsError: the specification or the file makes no sense; the message says where.
    """
    if not 0 < scale <= MOST_MULTIPLE:
        raise SettingsError(f"scale {scale:g}: expected more than 0 and at most {MOST_MULTIPLE:g}")
    spec = EXAMPLES.get(spec, spec)
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in KINDS:
        if colon and re.fullmatch(r"[a-z]{2,}", kind):
            raise SettingsError(f"trace {spec!r}: there is no kind {kind!r}; {_GRAMMAR}")
        return RecordedTrace(read_recording(spec), spec, scale, duration_s, start_s)
    if duration_s is not None or start_s is not None:
        raise SettingsError(
            f"trace {spec!r} itself says how long it lasts; duration and start are for CSV files"
        )
    return _parse_phases(spec, kind, rest.split(","), scale)


def _parse_phases(spec: str, kind: str, parts: Sequence[str], scale: float) -> PhasedTrace:
    *parts, last = parts
    cv2 = _spacing(last)
    if cv2 is None:
        parts, cv2 = [*parts, last], POISSON
    elif not 0 <= cv2 <= 100:
        raise SettingsError(f"trace {spec!r}: expected a cv2 from 0 to 100, not {cv2:g}")
    if kind == "gamma" and not last.startswith("cv2="):
        raise SettingsError(f"trace {spec!r}: a gamma trace needs ',cv2=C' at its end; {_GRAMMAR}")
    phases = [_phase(kind, part) for part in parts]
    if None in phases or not phases or (len(phases) > 1 and kind != "step"):
        raise SettingsError(f"trace {spec!r} cannot be read; {_GRAMMAR}")
    known = [phase for phase in phases if phase is not None]
    _check(spec, known)
    scaled = (Phase(scale * p.first, scale * p.last, p.seconds) for p in known)
    name = spec if scale == 1 else f"{scale:g} × ({spec})"
    return PhasedTrace(name, tuple(scaled), cv2)


def _phase(kind: str, text: str) -> Phase | None:
    if kind == "ramp":
        slope = _SLOPE.fullmatch(text.strip())
        return Phase(*(float(number) for number in slope.groups())) if slope else None
    level = _PHASE.fullmatch(text.strip())
    return Phase(float(level[1]), float(level[1]), float(level[2])) if level else None


def _spacing(option: str) -> float | None:
    """Read `even` or `cv2=C`; None if it is neither (NaN, refused later, if C is no number)."""
    if option.strip() == "even":
        return EVEN
    name, equals, value = option.partition("=")
    if name.strip() != "cv2" or not equals:
        return None
    try:
        return float(value)
    except ValueError:
        return math.nan


def _check(spec: str, phases: Sequence[Phase]) -> None:
    for phase in phases:
        if max(phase.first, phase.last) > MOST_MULTIPLE or not 0 < phase.seconds <= MOST_SECONDS:
            raise SettingsError(
                f"trace {spec!r}: expected phases of at most {MOST_MULTIPLE:g} times the capacity "
                f"that last more than 0 and at most {MOST_SECONDS:g} seconds"
            )
    if not any(phase.mean for phase in phases):
        raise SettingsError(f"trace {spec!r} has no arrivals: give a multiple above 0")


def _renewals(until: float, cv2: float, generator: np.random.Generator) -> FloatArray:
    """Draw points on `(0, until]` whose distances have mean 1 and this CV².

    Evenly spaced ones lie in the middle of their unit.
    """
    if cv2 == EVEN:
        return np.arange(0.5, until)
    points = np.empty(0)
    while not points.size or points[-1] <= until:
        count = int(until / 10 + 64)
        drawn = generator.gamma(1 / cv2, cv2, count)
        points = np.concatenate([points, np.cumsum(drawn) + (points[-1] if points.size else 0.0)])
    return points[points <= until]


def _seconds_until(arrivals: float, rate_unit: float, phase: Phase) -> float:
    """When in the phase so many have arrived, by its rate alone.

    Solves `first·t + (last − first)/(2·seconds)·t² = arrivals/rate_unit` for t in the form that
    neither divides by a vanishing slope nor cancels.
    """
    area, slope = arrivals / rate_unit, (phase.last - phase.first) / phase.seconds
    root = math.sqrt(max(0.0, phase.first**2 + 2 * slope * area))
    return min(phase.seconds, 2 * area / (phase.first + root)) if area else 0.0
