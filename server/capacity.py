"""What a server can do, measured from outside: the latency of one request, and its capacity.

Both are taken at a pinned degree by the client that will replay the trace, on the host where it
will, so that a trace's multiples of the capacity mean what they say.
"""

import asyncio
import logging
import statistics
from dataclasses import dataclass

from server.answered_batches import find_batches
from server.arrivals import Phase, PhasedTrace
from server.open_loop import Answer, Client, closed_loop, open_loop
from server.served_process import MeasurementError
from tocom_client import CompressionStatus, TocomClientError

logger = logging.getLogger(__name__)

SINGLE_S = 6.0
WARM_UP_S = 2.0
CAPACITY_S = 10.0
ESTIMATE_S = 4.0
FILLING_S = 2.0
"""Until more wait than go into a batch."""
OVERLOAD = 1.15
SATURATED_SHARE = 0.95
"""Of the offered images: who answers more of them could perhaps have answered still more."""
RAISE, MOST_TRIES = 1.25, 5
CONNECTIONS = 64
"""More than fit into a batch, so that the next one always waits."""
PATIENT_MS = 60_000.0
"""A deadline so far that nothing is refused: who is refused pauses, and the server would too."""
SETTLE_WITHIN_S = 60.0
LOOK_EVERY_S = 0.5
FORGET_S = 2.5
"""After so long without answers the controller has forgotten the latencies of the capacity."""
REST_S = 8.0
"""Longer than a controller takes from one change of degree to the next, or one measurement."""
FEWEST_SINGLES = 5


@dataclass(frozen=True, slots=True)
class Capacity:
    """Served images/s at a pinned degree, saturated."""

    r: int
    images_per_s: float


async def single_latency_s(client: Client, r: int = 0, seconds: float = SINGLE_S) -> float:
    """Return the median latency of requests that are alone in the server, after a warm-up.

    Raises:
        MeasurementError: next to none was answered.
    """
    await client.control.pin(r)
    await closed_loop(client, WARM_UP_S, 1)
    answers = await closed_loop(client, seconds, 1)
    good = [answer.latency_s for answer in answers if answer.status == 200]
    if len(good) < FEWEST_SINGLES:
        raise MeasurementError(
            f"of {len(answers)} single requests {len(good)} were answered: {_kinds(answers)}"
        )
    return statistics.median(good)


async def capacity(client: Client, r: int, seconds: float = CAPACITY_S) -> Capacity:
    """Pin a degree and measure how much of a little too much load is answered.

    The requests come when they come, as those of a replay will. A closed loop finds the rate but is
    no measure by itself: its requests follow the batches' ends, so that decoding and HTTP are done
    in step with them, and on two cores it shows a fifth more than independent clients get. It may
    also have met a slow moment: where next to all of the load is answered, it was no overload, and
    more is tried.

    Raises:
        MeasurementError: hardly anything was answered.
    """
    await client.control.pin(r)
    before, client.deadline_ms = client.deadline_ms, PATIENT_MS
    try:
        await closed_loop(client, WARM_UP_S, CONNECTIONS)
        offered = OVERLOAD * _batches_per_s(await closed_loop(client, ESTIMATE_S, CONNECTIONS))
        for _ in range(MOST_TRIES):
            came, answered = await _rates(client, offered, seconds)
            if answered <= SATURATED_SHARE * came:
                break
            offered *= RAISE
        else:
            logger.warning(
                "r=%d: %.0f images/s were no overload; the capacity is more", r, answered
            )
    finally:
        client.deadline_ms = before
    return Capacity(r, answered)


async def _rates(client: Client, offered: float, seconds: float) -> tuple[float, float]:
    """Offer about so many images/s; return how many came and were answered, after the first two."""
    started = asyncio.get_running_loop().time()
    due = PhasedTrace("", (Phase(1, 1, FILLING_S + seconds),)).times(offered, seed=0)
    answers = await open_loop(client, (started + at for at in due))
    first = started + FILLING_S
    came = sum(first < a.due_s <= first + seconds for a in answers)
    answered = sum(a.status == 200 and first < a.done_s <= first + seconds for a in answers)
    if not answered:
        raise MeasurementError(f"nothing was answered in {seconds:g} s: {_kinds(answers)}")
    return came / seconds, answered / seconds


def _batches_per_s(answers: list[Answer]) -> float:
    """Images/s from the end of the first batch to the end of the last: whole batches only."""
    batches = find_batches(answers)
    if len(batches) < 2:
        raise MeasurementError(f"the server finished {len(batches)} batches: {_kinds(answers)}")
    span_s = batches[-1].last_done_s - batches[0].last_done_s
    return sum(batch.seen for batch in batches[1:]) / span_s


async def settle(client: Client) -> None:
    """Hand the dial to the controller and wait until it rests and has measured its degrees.

    Where it does neither, until nothing has changed for a while: a static policy has its own
    resting place, and a server may have been told not to measure.
    """
    loop = asyncio.get_running_loop()
    await client.control.auto()
    await asyncio.sleep(FORGET_S)
    state = _progress(await client.control.compression())
    give_up, changed = loop.time() + SETTLE_WITHIN_S, loop.time()
    while loop.time() < give_up:
        if state.done or loop.time() - changed >= REST_S:
            return
        await asyncio.sleep(LOOK_EVERY_S)
        before, state = state, _progress(await client.control.compression())
        if state != before:
            changed = loop.time()
    logger.info("the server still changes or measures its degrees; going on")


async def restore(client: Client, mode: str) -> None:
    """Give the dial back as it was found; a pin counts as `auto`, and a server may be gone."""
    try:
        await (client.control.shadow() if mode == "shadow" else client.control.auto())
    except TocomClientError as error:
        logger.warning("the dial could not be handed back: %s", error)


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a server is with settling."""

    r: int
    low: bool
    unmeasured: int

    @property
    def done(self) -> bool:
        return self.low and not self.unmeasured


def _progress(state: CompressionStatus) -> _Progress:
    """Read it from the state of the dial."""
    unmeasured = sum(not level.measured for level in state.levels)
    return _Progress(state.r, state.r <= state.min_r, unmeasured)


def _kinds(answers: list[Answer]) -> str:
    """What came instead of results."""
    statuses = sorted({answer.status for answer in answers if answer.status})
    errors = sorted({answer.error for answer in answers if answer.error})
    return f"statuses {statuses}, errors {errors[:3]}"
