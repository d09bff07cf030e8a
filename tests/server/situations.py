"""Builders of what a policy sees: levels of a made-up machine, and loads in front of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from server.stats import NO_LIMIT, Backlog, LoadSnapshot
from tocom_core.operating_point import OperatingPoint

SLO_S = 0.25


def linear_speedup(at_zero: float, gain: float, highest: int = 16) -> Callable[[int], float]:
    """Return images/s by degree: `at_zero` at r=0, `gain` times that at the highest degree."""
    return lambda r: at_zero * (1 + (gain - 1) * r / highest)


SPEED = linear_speedup(100.0, 2.0)


def level(
    r: int,
    images_per_s: float,
    *,
    max_batch: int = 8,
    overhead_s: float = 0.0,
    batch_size: int | None = None,
    relative_throughput: float = 1.0,
    accuracy: float | None = None,
    measured: bool = True,
    pays: bool = True,
) -> OperatingPoint:
    """Return a level that serves `images_per_s` in batches of `max_batch`.

    Each batch costs `overhead_s`, which small ones share out among fewer images, and the same
    time again for each image. `batch_size` is the efficient batch; unset: the largest.
    """
    full_s = max_batch / images_per_s
    image_s = (full_s - overhead_s) / max_batch
    assert image_s > 0, f"{overhead_s=} leaves no time for the images of a batch of {full_s} s"
    seconds = tuple(full_s - (max_batch - size) * image_s for size in range(1, max_batch + 1))
    return OperatingPoint(
        r, seconds, batch_size or max_batch, relative_throughput, accuracy, measured, pays
    )


def levels(
    images_per_s: Callable[[int], float] = SPEED,
    degrees: Sequence[int] = tuple(range(17)),
    *,
    accuracy: Callable[[int], float | None] = lambda r: None,
    **options: Any,
) -> tuple[OperatingPoint, ...]:
    """Return one level per degree; one that is not faster than every lower one does not pay.

    The other `options` are those of `level`. Without any, r=0 serves 100 images/s and r=16 200.
    """
    built: list[OperatingPoint] = []
    fastest = 0.0
    for r in degrees:
        speed = images_per_s(r)
        built.append(
            level(
                r,
                speed,
                relative_throughput=speed / images_per_s(degrees[0]),
                accuracy=accuracy(r),
                pays=speed > fastest,
                **options,
            )
        )
        fastest = max(fastest, speed)
    return tuple(built)


LEVELS = levels()


def backlog(slack_s: Sequence[float], max_r: Sequence[int | None] | None = None) -> Backlog:
    """Return waiting images with these slacks, in this order; `None` accepts any degree."""
    limits = [None] * len(slack_s) if max_r is None else max_r
    assert len(limits) == len(slack_s)
    return Backlog(
        np.array(slack_s, np.float64),
        np.array([NO_LIMIT if limit is None else limit for limit in limits], np.int64),
    )


def snapshot(
    now: float = 0.0,
    waiting: int = 0,
    *,
    waited_s: float = 0.0,
    slack_s: Sequence[float] | None = None,
    max_r: Sequence[int | None] | None = None,
    rate: float = 0.0,
    slo_s: float = SLO_S,
    levels: Sequence[OperatingPoint] = LEVELS,
    **others: Any,
) -> LoadSnapshot:
    """Return a snapshot with the given load; the rest is calm.

    Args:
        now: time of the snapshot.
        waiting: images in the queue; they arrived at equal distances, the first of them
            `waited_s` ago, and are due `slo_s` after they arrived.
        waited_s: how long the oldest has waited.
        slack_s: seconds until each is due, instead of `waiting`.
        max_r: the highest degree each accepts; unset: any.
        rate: arrival rate, short-term and steady.
        slo_s: the promised latency.
        levels: what may be chosen.
        others: any field of `LoadSnapshot`, such as `late` or `recent_latency_s`.
    """
    if slack_s is None:
        slack_s = [slo_s - waited_s * (1 - i / waiting) for i in range(waiting)]
    fields: dict[str, Any] = {
        "now": now,
        "backlog": backlog(slack_s, max_r),
        "oldest_wait_s": waited_s if len(slack_s) else 0.0,
        "arrival_rate": rate,
        "steady_rate": rate,
        "slo_s": slo_s,
        "levels": tuple(levels),
    }
    return LoadSnapshot(**(fields | others))


@st.composite
def machines(draw: st.DrawFn, max_batch: int | None = None) -> tuple[OperatingPoint, ...]:
    """Return levels of any kind, and more: whether one pays has nothing to do with its speed."""
    degrees = sorted(draw(st.sets(st.integers(0, 16), min_size=1)))
    largest = max_batch or draw(st.integers(1, 16))
    speeds = {r: draw(st.floats(1.0, 2_000.0)) for r in degrees}
    share = draw(st.floats(0.0, 0.9))  # of the shortest batch of one is overhead
    overhead_s = share / max(speeds.values())
    efficient = draw(st.integers(1, largest))
    built = levels(
        speeds.__getitem__,
        degrees,
        max_batch=largest,
        overhead_s=overhead_s,
        batch_size=efficient,
    )
    return tuple(replace(level, pays=draw(st.booleans())) for level in built)


@st.composite
def snapshots(draw: st.DrawFn, now: float = 100.0, max_size: int = 40) -> LoadSnapshot:
    """Return any load in front of any machine, sensible or not."""
    count = draw(st.integers(0, max_size))
    slack = st.floats(-2.0, 5.0) | st.just(math.inf)
    slack_s = sorted(draw(st.lists(slack, min_size=count, max_size=count)))
    limits = draw(st.lists(st.none() | st.integers(0, 16), min_size=count, max_size=count))
    return snapshot(
        now,
        waited_s=draw(st.floats(0.0, 5.0)),
        slack_s=slack_s,
        max_r=limits,
        rate=draw(st.floats(0.0, 3_000.0)),
        slo_s=draw(st.floats(0.01, 2.0)),
        levels=draw(machines()),
        decoding=draw(st.integers(0, 50)),
        in_flight=draw(st.integers(0, 16)),
        recent_latency_s=draw(st.none() | st.floats(0.0, 5.0)),
        answered=draw(st.integers(0, 1_000)),
        late=draw(st.integers(0, 1_000)),
        queue_size=draw(st.none() | st.integers(max(1, count), 300)),
        spread=draw(st.floats(0.0, 0.5)),
        switch_s=draw(st.floats(0.0, 0.1)),
    )
