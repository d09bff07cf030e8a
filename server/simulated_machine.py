"""What is true of a simulated machine, whatever the server that runs on it believes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tocom_core.latency_profile import ServingOverhead

NO_OVERHEAD = ServingOverhead(0.0, 0.0, 0.0)
NOISE_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class SlowDown:
    """A stretch of time in which the machine takes `factor` times as long."""

    start_s: float
    end_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and the model on it.

    Attributes:
        batch_seconds: per degree, the mean durations of batches of 1, 2, … images.
        accuracy: per degree, the share of its answers that are right, where known.
        overhead: what a request costs besides its forward.
        switch_s: what merging the weights of another degree takes.
        noise: standard deviation of the logarithm of a batch's duration; the mean stays.
        slow_downs: when it is slower than that.
        lanes: between how many a batch is shared out by images. A part of `k` of them takes what a
            batch of `lanes · k` takes; a single image that is alone has all of them.
    """

    batch_seconds: Mapping[int, Sequence[float]]
    accuracy: Mapping[int, float] = field(default_factory=dict)
    overhead: ServingOverhead = NO_OVERHEAD
    switch_s: float = 0.0
    noise: float = 0.0
    slow_downs: Sequence[SlowDown] = ()
    lanes: int = 1

    def busy_s(self, r: int, size: int, *, beside: bool = False) -> float:
        """Return what a batch takes of the machine's time: what its parts take of the lanes'.

        Args:
            r: its degree.
            size: its images.
            beside: another batch was running, so that a single image has one lane.
        """
        seconds = self.batch_seconds[r]
        if self.lanes == 1 or (size == 1 and not beside):
            return seconds[size - 1]
        return sum(self.part_s(r, n) for n in self.shares(size)) / self.lanes

    def shares(self, size: int) -> list[int]:
        """Return the images of each part of a batch, the larger ones first."""
        parts = min(size, self.lanes)
        return [(size + k) // parts for k in reversed(range(parts))]

    def part_s(self, r: int, images: int) -> float:
        """Return what a part of so many images takes on its lane."""
        return self.batch_seconds[r][self.part_size(r, images) - 1]

    def part_size(self, r: int, images: int) -> int:
        """Return the size of the batch that takes as long as a part of so many images."""
        return min(images * self.lanes, len(self.batch_seconds[r]))

    def capacity(self, r: int, size: int) -> float:
        """Return the images/s of batch after batch of `size`, while as many more arrive."""
        return size / (self.batch_seconds[r][size - 1] + size * self.overhead.interference_s)


class BatchTimer:
    """How long each batch takes on a machine, with its noise.

    Args:
        machine: as described.
        seed: of the noise; the same one gives the same durations.
    """

    def __init__(self, machine: Machine, seed: Sequence[int]) -> None:
        self._machine = machine
        self._noise = _lognormal(machine.noise, np.random.default_rng(list(seed)))

    def seconds(self, r: int, size: int, now: float) -> float:
        """Return how long a batch takes that begins now."""
        seconds = self._machine.batch_seconds[r][size - 1] * next(self._noise)
        for slow in self._machine.slow_downs:
            if slow.start_s <= now < slow.end_s:
                seconds *= slow.factor
        return seconds


def _lognormal(sigma: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield factors with mean 1; drawn in blocks, as single draws are slow."""
    while True:
        yield from np.exp(sigma * rng.standard_normal(NOISE_BLOCK) - sigma**2 / 2).tolist()
