"""When the waiting images would be done at a degree: the demand side of deadline scheduling.

For earliest-deadline-first on one machine the classic test is the processor-demand criterion: a
set of jobs is feasible if, for every due time, the work due by then fits into the time until then
(Baruah, Rosier and Howell 1990). Here a job is an image, the machine's speed is the degree's, and
work comes in batches: an image is done when its batch is done. Several devices take the batches in
turn, each the next one as soon as it is free (list scheduling, Graham 1969). Policies ask which
degree meets the demand, the scheduler asks what can be met at all.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from server.stats import Backlog, FloatArray, IntArray
from tocom_core.operating_point import OperatingPoint

CLEARLY = 1 + 1e-9
"""What fits with so much to spare fits whatever rounding does to the exact sums."""
MANY_FALLS = 8
"""With more stretches of rising slack than that, a look at each image takes less time."""


def finish_s(level: OperatingPoint, count: int, begin_s: tuple[float, ...] = (0.0,)) -> FloatArray:
    """Return when each of `count` images is done, in efficient batches one after the other.

    Args:
        level: the degree, and what a batch takes at it.
        count: of images.
        begin_s: see `Backlog`.

    Returns:
        `(count,)` float64, seconds from now, rising.
    """
    finish: FloatArray = np.repeat(_ends_s(level, count, begin_s), level.batch_size)[:count]
    return finish


def extra_s(
    level: OperatingPoint, levels: tuple[OperatingPoint, ...], backlog: Backlog
) -> FloatArray | None:
    """Return what images with a limit below this degree cost beyond the others, one by one.

    Returns:
        `(n,)` seconds, in order of service; None if no image has such a limit.
    """
    below = _below_for(level, levels, backlog)
    if not below:
        return None
    by_limit = np.zeros(level.r + 1)
    own_s = 1 / level.images_per_s
    for index, other in enumerate(below):
        by_limit[other.r if index else 0 : level.r] = max(0.0, 1 / other.images_per_s - own_s)
    extra: FloatArray = by_limit.take(backlog.max_r, mode="clip")
    return extra


def in_time(
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    backlog: Backlog,
    margin_s: float = 0.0,
) -> bool:
    """Whether every waiting image is done `margin_s` before it is due, at this level.

    An image is done at `finish_s` plus the `extra_s` of itself and of those before it; compared is
    once per batch, its end with the least slack in it. Mostly two looks tell: if all are done
    before the first is due, they are in time; if the last one alone is late, they are not.
    """
    if not len(backlog):
        return True
    count, slack_s = len(backlog), backlog.slack_s
    if len(backlog.begin_s) == 1:
        last_s = level.clear_s(count) + margin_s
    else:
        last_s = float(_ends_s(level, count, backlog.begin_s)[-1]) + margin_s
    below = _below_for(level, levels, backlog)
    slowest = min((other.images_per_s for other in below), default=math.inf)
    most_extra_s = count * max(0.0, 1 / slowest - 1 / level.images_per_s)
    if (last_s + most_extra_s) * CLEARLY <= backlog.least_slack_s:
        return True
    if last_s > slack_s[-1]:
        return False
    if (extra := extra_s(level, levels, backlog)) is not None:
        slack_s = slack_s - np.cumsum(extra)
    least_s = np.minimum.reduceat(slack_s, np.arange(0, count, level.batch_size))
    return bool((_ends_s(level, count, backlog.begin_s) + margin_s <= least_s).all())


def paced(level: OperatingPoint, images_per_s: float) -> OperatingPoint:
    """Return the level with batches just large enough to carry this rate.

    Small batches end sooner, but waste the machine: a queue whose head may always ask for a batch
    of its own is served at the throughput of single images, and then never gets shorter. So no
    batch needs to be larger, and under load none should be smaller, than this.
    """
    for size in range(1, level.batch_size):
        if size * level.devices >= images_per_s * level.batch_seconds[size - 1]:
            return replace(level, batch_size=size)
    return level


def excess(
    backlog: Backlog,
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    priority_of: Callable[[int], int],
    doubt: float = 0.0,
) -> IntArray:
    """Choose whom to give up so that all others are in time at this level, in batches of its size.

    What is next must be in time even if it takes longer than believed, for a late answer is of no
    use and took the time of one that would have been. Who comes after it waits as long as it can be
    in time if the rest takes less than believed: giving up early wins nothing, and until it is
    their turn more is known. A slow spell of a shared machine is mostly over by then.

    Goes through the images in order of service and keeps who can still be in time. For one that
    cannot, either it is given up itself, or the latest kept one of no higher priority that costs
    more because of its own limit (with equal costs this is Moore and Hodgson's rule, 1968, which
    gives up the fewest).

    Args:
        backlog: who waits, in order of service.
        level: the degree at which all that accept it would be served.
        levels: those up to it.
        priority_of: the priority of the image at a position; 0 is the highest.
        doubt: share by which durations may be off; below 1.

    Returns:
        Positions, rising.
    """
    slack_s = _as_believed(backlog.slack_s, level.batch_seconds[level.batch_size - 1], doubt)
    extra = extra_s(level, levels, backlog)
    if extra is None:
        return _excess_of_equals(level, slack_s, backlog.begin_s)
    finish = finish_s(level, len(backlog), backlog.begin_s)
    gone = _excess_of_unequals(finish, extra, slack_s, priority_of)
    return np.array(sorted(gone), np.int64)


def _as_believed(slack_s: FloatArray, batch_s: float, doubt: float) -> FloatArray:
    """Return the believed durations of what must fit into these slacks, given the doubt.

    Up to one batch counts `1 + doubt` of it at its end, what comes after it `1 - doubt`.
    """
    if not doubt:
        return slack_s
    first_s = batch_s * (1 + doubt)
    after_s = batch_s + (slack_s - first_s) / (1 - doubt)
    return np.where(slack_s <= first_s, slack_s - batch_s * doubt, after_s)


def _excess_of_equals(
    level: OperatingPoint, slack_s: FloatArray, begin_s: tuple[float, ...]
) -> IntArray:
    """Return whom to give up where all cost the same: who comes when its time is filled already.

    The k-th to stay is the first image after the one before it that has the time to be k-th. Along
    a stretch in which slack rises, whoever comes after the `first[k]` with so much time has it too,
    so that `place[k] = max(place[k - 1] + 1, first[k])`: `place[k] - k` is the running maximum of
    `first[k] - k`. Slack falls where a lower priority begins, seldom elsewhere. If it falls often,
    as where far deadlines mix the priorities, a look at each image is faster.
    """
    count = len(slack_s)
    if not count:
        return np.empty(0, np.int64)
    falls = (slack_s[1:] < slack_s[:-1]).nonzero()[0]
    if len(falls) > MANY_FALLS:
        return _excess_one_by_one(finish_s(level, count, begin_s), slack_s)
    ends = [*(falls + 1).tolist(), count]
    longest_s = max(0.0, *[slack_s.item(end - 1) for end in ends])
    # More batches cannot be done by then, whatever rounding does.
    batches = len(begin_s) * (longest_s / level.batch_seconds[level.batch_size - 1] + 2)
    finish = finish_s(level, min(count, int(min(batches, count)) * level.batch_size), begin_s)
    goes, kept = np.ones(count, bool), 0
    for start, end in pairwise((0, *ends)):
        first = slack_s[start:end].searchsorted(finish[kept : kept + end - start])
        order = np.arange(len(first))
        places = np.maximum.accumulate(first - order) + order
        stay = int(places.searchsorted(end - start))
        goes[start:end][places[:stay]] = False
        kept += stay
    gone: IntArray = goes.nonzero()[0]
    return gone


def _excess_one_by_one(finish_s: FloatArray, slack_s: FloatArray) -> IntArray:
    """Return the same for slack in any order: who would be late as the next one kept."""
    ends, kept, gone = finish_s.tolist(), 0, []
    for index, slack in enumerate(slack_s.tolist()):
        if ends[kept] <= slack:
            kept += 1
        else:
            gone.append(index)
    return np.array(gone, np.int64)


def _excess_of_unequals(
    finish_s: FloatArray,
    extra_s: FloatArray,
    slack_s: FloatArray,
    priority_of: Callable[[int], int],
) -> list[int]:
    """Return whom to give up, in no order, where some cost more."""
    late = np.flatnonzero(finish_s + np.cumsum(extra_s) > slack_s)
    if not len(late):
        return []
    first = int(late[0])  # all before it are in time together
    surplus, kept = float(extra_s[:first].sum()), first
    dear = np.flatnonzero(extra_s[:first]).tolist()
    ends, slacks, extras = finish_s.tolist(), slack_s.tolist(), extra_s.tolist()
    gone: list[int] = []
    for index in range(first, len(slacks)):
        surplus += extras[index]
        kept += 1
        if extras[index]:
            dear.append(index)
        while ends[kept - 1] + surplus > slacks[index]:
            given_up = index
            if dear and priority_of(dear[-1]) >= priority_of(index):
                given_up = dear.pop()
            surplus -= extras[given_up]
            kept -= 1
            gone.append(given_up)
            if given_up == index:
                break
    return gone


def _below_for(
    level: OperatingPoint, levels: tuple[OperatingPoint, ...], backlog: Backlog
) -> list[OperatingPoint]:
    """Return the levels below this one, if an image has a limit that asks for one of them."""
    if backlog.least_max_r >= level.r:
        return []
    return [other for other in levels if other.r < level.r]


def _ends_s(level: OperatingPoint, count: int, begin_s: tuple[float, ...]) -> FloatArray:
    """Return when each batch is over, and all before it: full ones, then one with the rest.

    Returns:
        `(ceil(count / batch_size),)` float64, seconds from now, rising.
    """
    size, rest = level.batch_size, count % level.batch_size
    batches, batch_s = -(-count // size), level.batch_seconds[size - 1]
    ends: FloatArray
    if len(begin_s) == 1:
        ends = np.arange(1.0, batches + 1.0) * batch_s
        if rest:
            ends[-1] = level.clear_s(count)
        return ends
    ends = np.sort(np.add.outer(np.array(begin_s), np.arange(1.0, batches + 1.0) * batch_s).ravel())
    ends = ends[:batches]
    if rest:
        ends[-1] = max(ends[-1] - batch_s + level.batch_seconds[rest - 1], ends[:-1].max(initial=0))
    return ends
