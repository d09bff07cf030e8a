"""When the waiting images would be done at a degree: the demand side of deadline scheduling.

For earliest-deadline-first on one machine the classic test is the processor-demand criterion: a
set of jobs is feasible if, for every due time, the work due by then fits into the time until then
(Baruah, Rosier and Howell 1990). Here a job is an image, the machine's speed is the degree's, and
work comes in batches: an image is done when its batch is done. Policies ask which degree meets the
demand, the scheduler asks what can be met at all.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from server.stats import Backlog, FloatArray
from tocom_core.operating_point import OperatingPoint


def finish_s(level: OperatingPoint, count: int) -> FloatArray:
    """Return when each of `count` images is done, in efficient batches one after the other.

    Returns:
        `(count,)` float64, seconds from now, rising.
    """
    size = level.batch_size
    batch_s = level.batch_seconds[size - 1]
    full, rest = divmod(count, size)
    finish: FloatArray = (np.arange(count, dtype=np.float64) // size + 1.0) * batch_s
    if rest:
        finish[count - rest :] = full * batch_s + level.batch_seconds[rest - 1]
    return finish


def extra_s(
    level: OperatingPoint, levels: tuple[OperatingPoint, ...], backlog: Backlog
) -> FloatArray | None:
    """Return what images with a limit below this degree cost beyond the others, one by one.

    Returns:
        `(n,)` seconds, in order of service; None if no image has such a limit.
    """
    if int(backlog.max_r.min(initial=level.r)) >= level.r:
        return None
    below = [other for other in levels if other.r < level.r]
    if not below:
        return None
    by_limit = np.zeros(level.r + 1)
    own_s = 1 / level.images_per_s
    for index, other in enumerate(below):
        by_limit[other.r if index else 0 : level.r] = max(0.0, 1 / other.images_per_s - own_s)
    extra: FloatArray = by_limit[np.minimum(backlog.max_r, level.r)]
    return extra


def in_time(
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    backlog: Backlog,
    margin_s: float = 0.0,
) -> bool:
    """Whether every waiting image is done `margin_s` before it is due, at this level.

    An image is done at `finish_s` plus the `extra_s` of itself and of those before it; compared is
    once per batch, its end with the least slack in it.
    """
    count = len(backlog)
    if count == 0:
        return True
    starts = np.arange(0, count, level.batch_size)
    ends_s = (np.arange(len(starts)) + 1.0) * level.batch_seconds[level.batch_size - 1]
    if rest := count % level.batch_size:
        ends_s[-1] += level.batch_seconds[rest - 1] - level.batch_seconds[level.batch_size - 1]
    extra = extra_s(level, levels, backlog)
    slack_s = backlog.slack_s if extra is None else backlog.slack_s - np.cumsum(extra)
    return bool((ends_s + margin_s <= np.minimum.reduceat(slack_s, starts)).all())


def paced(level: OperatingPoint, images_per_s: float) -> OperatingPoint:
    """Return the level with batches just large enough to carry this rate.

    Small batches end sooner, but waste the machine: a queue whose head may always ask for a batch
    of its own is served at the throughput of single images, and then never gets shorter. So no
    batch needs to be larger, and under load none should be smaller, than this.
    """
    for size in range(1, level.batch_size):
        if size >= images_per_s * level.batch_seconds[size - 1]:
            return replace(level, batch_size=size)
    return level


def excess(
    backlog: Backlog,
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    priority_of: Callable[[int], int],
    margin: float = 0.0,
) -> list[int]:
    """Choose whom to give up so that all others are in time at this level, in batches of its size.

    Goes through the images in order of service and keeps who can still be in time. For one that
    cannot, either it is given up itself, or the latest kept one of no higher priority that costs
    more because of its own limit (with equal costs this is Moore and Hodgson's rule, 1968, which
    gives up the fewest).

    Args:
        backlog: who waits, in order of service.
        level: the degree at which all that accept it would be served.
        levels: those up to it.
        priority_of: the priority of the image at a position; 0 is the highest.
        margin: share of the slack that must be left when each is done.

    Returns:
        Positions, rising.
    """
    slack = backlog.slack_s * (1 - margin)
    finish = finish_s(level, len(backlog))
    extra = extra_s(level, levels, backlog)
    if extra is None:
        return _excess_of_equals(finish, slack)
    late = np.flatnonzero(finish + np.cumsum(extra) > slack)
    if not len(late):
        return []
    first = int(late[0])  # all before it are in time together
    surplus, kept = float(extra[:first].sum()), first
    dear = np.flatnonzero(extra[:first]).tolist()
    ends, slacks, extras = finish.tolist(), slack.tolist(), extra.tolist()
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
    return sorted(gone)


def _excess_of_equals(finish_s: FloatArray, slack_s: FloatArray) -> list[int]:
    """Return whom to give up where all cost the same: who comes when its time is filled already."""
    room = np.searchsorted(finish_s, slack_s, side="right")
    late = np.flatnonzero(room <= np.arange(len(room)))
    if not len(late):
        return []
    gone: list[int] = []
    kept = int(late[0])  # all before it are in time together
    for index, most in enumerate(room[kept:].tolist(), kept):
        if kept < most:
            kept += 1
        else:
            gone.append(index)
    return gone
