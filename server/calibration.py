"""A latency profile taken from outside and under load, so that a simulation can meet reality.

The server's own profile times one batch in a quiet process. While requests come in, decoding and
HTTP take their share of the same processors: the same batch takes longer, and a request spends
time outside of queue and batch. Here some degrees are pinned in turn, loads from light to a little
too much make batches of several sizes, and the answers tell how long those took.

The degrees take turns at each load, short ones and several: a shared machine that is slow for ten
seconds is slow for all of them, and does not make one pass for slower than those below it.
"""

import asyncio
import itertools
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from statistics import NormalDist
from typing import Any

from server.answered_batches import Batch, find_batches, own_seconds
from server.arrivals import Phase, PhasedTrace
from server.capacity import capacity
from server.open_loop import Answer, Client, open_loop
from server.served_process import MeasurementError
from tocom_client import Level, ModelInfo
from tocom_core.latency_profile import (
    SHORTEST_S,
    Accuracy,
    LatencyProfile,
    Measurement,
    ServingOverhead,
)

logger = logging.getLogger(__name__)

DEGREES = 6
LOADS = (0.3, 0.6, 0.8, 0.95, 1.1, 1.4)
"""Multiples of the capacity of the degree."""
TURNS = 3
TURN_S = 1.5
"""So long a degree is measured in each of its turns at each load."""
CAPACITY_S = 4.0
FEWEST_RUNS = 3
PROBE_EVERY_S = 0.25


async def calibrate(client: Client, max_batch_size: int) -> LatencyProfile:
    """Measure batches of several degrees and sizes under load; the dial is left pinned.

    Args:
        client: sends photographs.
        max_batch_size: the server's setting; larger batches are not measured.

    Raises:
        MeasurementError: hardly any batch was seen whole.
    """
    state = await client.control.compression()
    degrees = _spread([level.r for level in state.levels])
    rates = {r: (await capacity(client, r, CAPACITY_S)).images_per_s for r in degrees}
    answers: dict[int, list[Answer]] = defaultdict(list)
    round_trips_s: list[float] = []
    for load in LOADS:
        logger.info("batches at %.0f %% of each degree's capacity", 100 * load)
        for turn, r in itertools.product(range(TURNS), degrees):
            await client.control.pin(r)
            answers[r] += await _answers_at(client, load * rates[r], turn, round_trips_s)
    measurements = [
        measurement
        for r in degrees
        for measurement in batch_measurements(r, find_batches(answers[r]), max_batch_size)
    ]
    overheads_s = _overheads_s(answer for of_degree in answers.values() for answer in of_degree)
    if len(measurements) < 2 or not overheads_s:
        raise MeasurementError(
            "the server hardly answered while its batches were to be measured; is it up, and does "
            "its queue have room?"
        )
    # Of a handful of batches the spread is mere luck, and would make them count for sure.
    usual = statistics.median(measurement.spread for measurement in measurements)
    measurements = [replace(m, spread=max(m.spread, usual)) for m in measurements]
    model = await client.control.model()
    return LatencyProfile(
        device=_device(model),
        model=_model(model),
        work=_work(state.levels),
        measurements=tuple(measurements),
        accuracies=_accuracies(state.levels),
        serving=serving_overhead(overheads_s, round_trips_s),
        max_batch_size=max_batch_size,
    )


def batch_measurements(r: int, batches: Sequence[Batch], max_batch_size: int) -> list[Measurement]:
    """Return the median duration of each size of batch of this degree that was seen often enough.

    A duration begins when the batch before was done: on a machine that begins a batch while the one
    before it ends, the rest was that one's. Only batches of which every image was seen count:
    others may have been two.

    Args:
        r: the degree.
        batches: in order of completion.
        max_batch_size: larger ones are left out.
    """
    durations: dict[int, list[float]] = defaultdict(list)
    own_s = own_seconds((batch.first_done_s, batch.compute_s) for batch in batches)
    for batch, seconds in zip(batches, own_s, strict=True):
        if batch.is_whole and batch.size <= max_batch_size and batch.degrees == {r}:
            durations[batch.size].append(max(seconds, SHORTEST_S))
    return [
        Measurement(r, size, statistics.median(times), _spread_of(times), len(times))
        for size, times in sorted(durations.items())
        if len(times) >= FEWEST_RUNS
    ]


def serving_overhead(
    overheads_s: Sequence[float], round_trips_s: Sequence[float]
) -> ServingOverhead:
    """Split the time outside of queue and batch into before and after.

    Only the sum can be seen. What follows the batch is an answer of a few hundred bytes, so it is
    taken for half of the smallest request's round trip; the rest, decoding above all, comes before.
    Interference is in the batches' durations already, for they were measured under load.
    """
    total_s = max(0.0, statistics.median(overheads_s))
    after_s = min(total_s, statistics.median(round_trips_s) / 2) if round_trips_s else 0.0
    return ServingOverhead(total_s - after_s, after_s, 0.0)


async def _answers_at(
    client: Client, rate: float, seed: int, round_trips_s: list[float]
) -> list[Answer]:
    """Answers of a turn of Poisson arrivals; meanwhile the smallest request is timed."""
    start_s = asyncio.get_running_loop().time()
    due = PhasedTrace("", (Phase(1, 1, TURN_S),)).times(rate, seed)

    async def probe() -> None:
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            round_trips_s.append(await client.round_trip_s())

    probing = asyncio.create_task(probe())
    try:
        return await open_loop(client, (start_s + at for at in due))
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)


def _overheads_s(answers: Iterable[Answer]) -> list[float]:
    return [
        answer.latency_s - (image.queue_ms + image.compute_ms) / 1000
        for answer in answers
        for image in answer.images
    ]


def _spread(degrees: Sequence[int]) -> list[int]:
    """Some of them, evenly, the lowest and the highest among them."""
    last, count = len(degrees) - 1, min(DEGREES, len(degrees))
    if count == 1:
        return list(degrees)
    return [degrees[round(place * last / (count - 1))] for place in range(count)]


def _spread_of(times: Sequence[float]) -> float:
    """Standard deviation of the logarithms, from their median distance to the median.

    Batches that end together, side by side, leave next to no time to the second; they are few.
    """
    logs = [math.log(time) for time in times]
    middle = statistics.median(logs)
    return statistics.median(abs(log - middle) for log in logs) / NormalDist().inv_cdf(0.75)


def _work(levels: Sequence[Level]) -> dict[int, float]:
    """Cost relative to r=0 as the server believes it; the fit needs it for degrees between."""
    return {level.r: min(1.0, 1 / level.relative_throughput) for level in levels}


def _accuracies(levels: Sequence[Level]) -> tuple[Accuracy, ...]:
    """As the server expects them; over how many images it does not tell, so one is claimed."""
    known = [(level.r, level.expected_accuracy) for level in levels]
    return tuple(Accuracy(r, value, "evaluation", 1) for r, value in known if value is not None)


def _device(model: ModelInfo) -> dict[str, str | int]:
    told: dict[str, str | int] = {"device": model.device, "dtype": model.dtype}
    return told | {"lanes": model.lanes, "measured": "under load, over HTTP"}


def _model(model: ModelInfo) -> dict[str, Any]:
    names = ("name", "architecture", "digest", "method", "prop_attn", "r_source", "bank")
    told = asdict(model)
    return {name: told[name] for name in names}
