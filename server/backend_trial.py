"""How many times faster one backend is than another, timed in turn when a model is loaded."""

import statistics
import time
from collections.abc import Callable, Sequence

Job = Callable[[], object]

MOST_ROUNDS = 7
FEWEST_ROUNDS = 3
BUDGET_S = 1.0
"""No new round after so long, for start-up is waited for."""


def times_faster(
    slow: Sequence[Job], fast: Sequence[Job], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return by which factor the second is faster, over all jobs alike.

    Each round times both on every job, so that a machine that changes its pace favours neither, and
    what counts is the median of the rounds, so that a pause in one of them does not.

    Args:
        slow: the same jobs for the one …
        fast: … and for the other, in the same order.
        clock: in seconds.
    """
    for job in (*slow, *fast):
        job()  # the first run of a shape is slow

    def seconds(job: Job) -> float:
        began = clock()
        job()
        return clock() - began

    factors: list[float] = []
    started = clock()
    while len(factors) < MOST_ROUNDS:
        if len(factors) >= FEWEST_ROUNDS and clock() - started > BUDGET_S:
            break
        pairs = [(seconds(a), seconds(b)) for a, b in zip(slow, fast, strict=True)]
        factors.append(statistics.geometric_mean(a / b for a, b in pairs))
    return statistics.median(factors)
