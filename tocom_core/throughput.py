"""Images per second of a model at several degrees, on this machine, as it is now.

Machines are shared and their clocks wander, so the degrees take turns, in a new order each round:
what slows the machine for a while slows all of them, and the speed-up of a degree is a ratio within
a round.  Medians come with their quartiles, for a figure without its spread says little.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tocom_core.compressed_vit import CompressedViT

FEWEST_ROUNDS = 3
"""A median with quartiles needs that many."""
TURN_S = 0.1
"""Short forward passes are repeated within a turn for about this long."""
NOISY = 0.1
"""Quartiles that lie farther apart than this share of the median are worth a warning."""


@dataclass(frozen=True)
class Spread:
    """Median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median and quartiles of some values; the value itself if there is but one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def relative_width(self) -> float:
        """How far the quartiles lie apart, as a share of the median."""
        return (self.high - self.low) / self.median

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"

    def as_list(self) -> list[float]:
        """``[median, lower quartile, upper quartile]``, for JSON."""
        return [self.median, self.low, self.high]


@dataclass(frozen=True)
class Speed:
    """How fast one degree is.

    Attributes:
        images_per_s: throughput of full batches.
        speedup: how many times the throughput of r=0, round by round.
    """

    images_per_s: Spread
    speedup: Spread


def measure_speed(
    model: CompressedViT,
    degrees: Sequence[int],
    input_size: tuple[int, int, int],
    batch_size: int,
    seconds: float,
) -> dict[int, Speed]:
    """Time forward passes of random images, round by round.

    Args:
        model: on its device, in eval mode; the bank's deltas do not change its speed.
        degrees: which; 0 is timed as well, for the speed-up.
        input_size: ``(3, H, W)``.
        batch_size: images per forward pass.
        seconds: to spend on each degree; at least ``FEWEST_ROUNDS`` turns each, whatever it takes.

    Returns:
        degree to speed.
    """
    weight = next(model.parameters())
    images = torch.randn(batch_size, *input_size, device=weight.device, dtype=weight.dtype)
    runs = {r: partial(_forward, model, images, r) for r in sorted({0, *degrees})}
    taken = time_rounds(runs, seconds * len(runs))
    return {
        r: Speed(
            Spread.of([batch_size / value for value in values]),
            Spread.of([base / value for base, value in zip(taken[0], values, strict=True)]),
        )
        for r, values in taken.items()
    }


def noise(speed: Mapping[int, Speed]) -> str | None:
    """A warning in words, where the quartiles of a degree's throughput lie far apart."""
    widths = {r: measured.images_per_s.relative_width for r, measured in speed.items()}
    noisy = [r for r, width in widths.items() if width > NOISY]
    if not noisy:
        return None
    worst = max(noisy, key=lambda r: widths[r])
    return (
        f"The timing was disturbed: at {len(noisy)} of {len(widths)} degrees the quartiles of the "
        f"throughput lie more than {NOISY:.0%} apart (r={worst}: {widths[worst]:.0%}). Measure "
        "again on a quiet machine, or longer with --throughput-seconds."
    )


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}"


def time_rounds(
    runs: Mapping[int, Callable[[], object]],
    budget_s: float,
    *,
    turn_s: float = TURN_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, list[float]]:
    """Seconds per call of each run in each round, after one untimed call of each.

    Args:
        runs: what to call.
        budget_s: no new round after so many seconds, but never fewer than ``FEWEST_ROUNDS``.
        turn_s: a turn repeats its call until so many seconds have passed.
        clock: seconds that go by.
    """
    for run in runs.values():
        run()
    order = list(runs)
    generator = random.Random(0)
    seconds: dict[int, list[float]] = {name: [] for name in runs}
    started, rounds = clock(), 0
    while rounds < FEWEST_ROUNDS or clock() - started < budget_s:
        generator.shuffle(order)
        for name in order:
            runs[name]()  # untimed: the caches hold what the last one left
            seconds[name].append(_seconds_per_call(runs[name], turn_s, clock))
        rounds += 1
    return seconds


def _seconds_per_call(
    run: Callable[[], object], at_least_s: float, clock: Callable[[], float]
) -> float:
    """Mean over as many calls as it takes to fill the time; at least one."""
    calls, started = 0, clock()
    while True:
        run()
        calls += 1
        taken = clock() - started
        if taken >= at_least_s:
            return taken / calls


@torch.inference_mode()
def _forward(model: CompressedViT, images: torch.Tensor, r: int) -> None:
    model(images, r)
    if images.device.type != "cpu":
        torch.accelerator.synchronize(images.device)
