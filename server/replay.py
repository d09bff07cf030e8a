"""One replay of a trace against a running server: from arrival times to fates and figures."""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from server.answered_batches import Batch, count_switches, find_batches
from server.bench_images import Pictures
from server.fates import Fate, Figures, Outcome, percentile, summarise
from server.open_loop import Answer, Client, open_loop

LEAD_S = 0.5
"""Between the decision to start and the first possible arrival."""
TELL_EVERY_S = 10.0
LAG_SHARE = 0.1
"""A client whose 99th percentile of lag is above this share of the SLO did not keep up."""

_OUTCOMES: dict[int, Outcome] = {200: "ok", 429: "shed", 504: "expired"}


@dataclass(frozen=True, slots=True)
class ServedBatch:
    """A batch as the answers tell of it.

    Attributes:
        done_s: when its first answer was there, in seconds since the trace began.
        compute_s: what the server says it took.
        r: the degree.
        size: images in it.
    """

    done_s: float
    compute_s: float
    r: int
    size: int


@dataclass(frozen=True, slots=True)
class Replay:
    """What one seed's replay showed.

    Attributes:
        seed: of arrivals and order of photographs.
        fates: one per request, in order of arrival.
        figures: their summary.
        lag_p99_s: by how much requests were sent late; counted in their latency all the same.
        lag_max_s: the largest such lag.
        kept_up: whether the client sent what was due when it was due.
        errors: what else went wrong, and how often.
        batches: all of which every answer came back, in order of completion.
    """

    seed: int
    fates: tuple[Fate, ...]
    figures: Figures
    lag_p99_s: float
    lag_max_s: float
    kept_up: bool
    errors: dict[str, int]
    batches: tuple[ServedBatch, ...] = ()


async def replay(
    client: Client,
    pictures: Pictures,
    times: Sequence[float],
    *,
    seed: int,
    seconds: float,
    slo_s: float,
) -> Replay:
    """Send a request at each of these times and wait for all answers.

    Args:
        client: sends the photographs of `pictures`.
        pictures: know which answers are right.
        times: seconds from the start on, rising.
        seed: kept with the result.
        seconds: length of the trace.
        slo_s: what `on time` means.
    """
    start_s = asyncio.get_running_loop().time() + LEAD_S
    telling = asyncio.create_task(_tell(f"seed {seed}", start_s, seconds))
    try:
        answers = await open_loop(client, (start_s + at for at in times))
    finally:
        telling.cancel()
    return judge(answers, pictures, start_s, seed=seed, seconds=seconds, slo_s=slo_s)


def judge(
    answers: Sequence[Answer],
    pictures: Pictures,
    start_s: float,
    *,
    seed: int,
    seconds: float,
    slo_s: float,
) -> Replay:
    """Turn answers into fates and figures; see `replay` for the arguments."""
    fates = tuple(_fate(answer, pictures, start_s) for answer in answers)
    lags = [answer.lag_s for answer in answers]
    lag_p99_s = percentile(lags, 99) or 0.0
    errors = Counter(_error(answer) for answer in answers if answer.status not in _OUTCOMES)
    found = find_batches(answers)
    return Replay(
        seed=seed,
        fates=fates,
        figures=summarise(fates, slo_s, seconds=seconds, switches=count_switches(found)),
        lag_p99_s=lag_p99_s,
        lag_max_s=max(lags, default=0.0),
        kept_up=lag_p99_s <= LAG_SHARE * slo_s,
        errors=dict(errors.most_common()),
        batches=tuple(_served(batch, start_s) for batch in found if batch.is_whole),
    )


def _fate(answer: Answer, pictures: Pictures, start_s: float) -> Fate:
    due_s, done_s = answer.due_s - start_s, answer.done_s - start_s
    outcome = _OUTCOMES.get(answer.status, "failed")
    if outcome != "ok" or not answer.images:
        return Fate(due_s, done_s, "failed" if outcome == "ok" else outcome, None)
    (image,) = answer.images
    correct = pictures.correct(answer.photo, image.index)
    return Fate(due_s, done_s, "ok", image.r, correct, image.batch_size)


def _served(batch: Batch, start_s: float) -> ServedBatch:
    (r,) = batch.degrees
    return ServedBatch(batch.first_done_s - start_s, batch.compute_s, r, batch.size)


def _error(answer: Answer) -> str:
    return f"status {answer.status}" if answer.status else answer.error


async def _tell(what: str, start_s: float, seconds: float) -> None:
    """Say now and then how far it is."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(TELL_EVERY_S)
        passed = min(max(0.0, loop.time() - start_s), seconds)
        print(f"{what}: {passed:.0f} of {seconds:.0f} s", file=sys.stderr, flush=True)
