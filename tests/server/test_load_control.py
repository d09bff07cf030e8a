"""Batcher, controller and policy together: a spike over a minute of virtual time."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from server.controller import Controller
from server.policy import ThresholdPolicy
from tests.server.fakes import Bench, FakeModel, linear_speedup, loop_time, run_virtual, table


async def serve(load: list[tuple[float, float]], gain: float, believed: float) -> dict[str, Any]:
    """Offer (images/s, seconds) to a model of 40 images/s at r=0; return what was seen."""
    levels = table(linear_speedup(40.0, believed, 16), max_batch_size=32, max_batch_s=0.125)
    controller = Controller(ThresholdPolicy(dwell_s=2.0), levels, 0, loop_time, slo_s=0.25)
    bench = Bench(
        FakeModel(linear_speedup(40.0, gain, 16), merge_s=0.001),
        choose_r=controller.next_r,
        max_batch_size=32,
        queue_size=256,
        on_batch=[controller.observe_batch],
        estimate_batch_s=controller.estimate_batch_s,
        max_batch_s=0.125,
    )
    degrees: list[tuple[float, int]] = []

    async def look() -> None:
        while True:
            await asyncio.sleep(0.05)
            if len(degrees) % 5 == 0:
                controller.next_r(bench.batcher.load())
            degrees.append((loop_time(), controller.status().r))

    looking = asyncio.create_task(look())
    futures = []
    for images_per_s, seconds in load:
        end = loop_time() + seconds
        while images_per_s and loop_time() < end:
            futures.append(bench.submit())
            await asyncio.sleep(1 / images_per_s)
        await asyncio.sleep(max(0.0, end - loop_time()))
    looking.cancel()
    await bench.batcher.drain(60)
    results = [future.result() for future in futures]
    return {
        "degrees": degrees,
        "latencies": sorted(result.queue_s + result.compute_s for result in results),
    }


def changes(degrees: list[tuple[float, int]], since: float, until: float) -> int:
    """Count the changes of degree within a time."""
    inside = [r for at, r in degrees if since <= at <= until]
    return sum(a != b for a, b in pairwise(inside))


@pytest.mark.parametrize("rest", [0.0, 10.0])
@pytest.mark.parametrize("believed", [1.5, 2.0, 2.6])
def test_spike_of_one_and_a_half_times_the_capacity(rest: float, believed: float) -> None:
    """The degree rises at once, holds, the SLO is kept, and it comes back; also if misjudged.

    40 images/s at r=0, twice that at r=16, 60 offered for a minute; then a quarter, or nothing.
    """
    seen = run_virtual(serve([(10.0, 5.0), (60.0, 60.0), (rest, 30.0)], 2.0, believed))
    degrees, latencies = seen["degrees"], seen["latencies"]
    assert max(r for at, r in degrees if at < 5.0) == 0
    assert max(r for at, r in degrees if at < 6.0) > 0
    assert changes(degrees, since=20.0, until=65.0) <= 1
    assert latencies[int(0.99 * len(latencies))] < 0.25
    assert degrees[-1][1] == 0
