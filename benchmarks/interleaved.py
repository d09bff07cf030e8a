"""Compare variants on a shared, noisy machine: all of them in one run, round after round.

Each round gives every variant one turn, in an order of its own, and ratios are taken within the
round; what slows the machine for a while slows both sides of a ratio.
"""

import math
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from tocom_core.models import default_model_path

Variant = Callable[[], object]

FEWEST_ROUNDS = 3
"""A median with quartiles needs that many."""


def measure_rounds(
    variants: Mapping[str, Variant],
    rounds: int,
    seed: int = 0,
    *,
    turn_s: float = 0.0,
    budget_s: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of each variant in each round, after one untimed call of each.

    Args:
        variants: what to call, by name.
        rounds: how many turns each gets.
        seed: decides the order within the rounds.
        turn_s: 0 is one call a turn.  Above it, a turn begins with an untimed call, for caches hold
            the previous variant's data, and goes on for at least this long.
        budget_s: no new round after so many seconds, but never fewer than ``FEWEST_ROUNDS``.
        clock: tells a variant's seconds; ``time.process_time`` those of the processor.
    """
    for variant in variants.values():
        variant()
    generator = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    started = time.perf_counter()
    for done in tqdm(range(rounds), unit="round", leave=False):
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > budget_s:
            break
        order = list(variants)
        generator.shuffle(order)
        for name in order:
            if turn_s:
                variants[name]()
            seconds[name].append(_seconds_per_call(variants[name], turn_s, clock))
    return seconds


def _seconds_per_call(variant: Variant, at_least_s: float, clock: Callable[[], float]) -> float:
    """Mean over as many calls as it takes to fill the time; at least one."""
    calls, started = 0, clock()
    while True:
        variant()
        calls += 1
        taken = clock() - started
        if taken >= at_least_s:
            return taken / calls


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Round by round: how many times ``over`` took ``under``'s seconds."""
    return [a / b for a, b in zip(over, under, strict=True)]


def default_models() -> list[str]:
    """The embedded model, and the ViT-Tiny of the folder that ``TOCOM_DATA`` names."""
    models = [str(path) for path in [default_model_path()] if path.is_file()]
    data = os.environ.get("TOCOM_DATA")
    tiny = sorted(Path(data).glob("vit_tiny*.safetensors")) if data else []
    return models + [str(path) for path in tiny]
