"""When the waiting images would be done at a degree: the demand side of deadline scheduling.

For earliest-deadline-first on one machine the classic test is the processor-demand criterion: a
set of jobs is feasible if, for every due time, the work due by then fits into the time until then
(Baruah, Rosier and Howell 1990). Here a job is an image, the machine's speed is the degree's, and
work comes in batches: an image is done when its batch is done. Policies ask which degree meets the
demand, the scheduler asks what can be met at all.
"""

from collections.abc import Sequence

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


def clear_s(level: OperatingPoint, count: int) -> FloatArray:
    """Return how long the first 1, 2, … `count` images take if only they are served.

    The difference to `finish_s`: an image need not wait for the rest of an efficient batch.

    Returns:
        `(count,)` float64, seconds from now, rising.
    """
    size = level.batch_size
    images = np.arange(1, count + 1)
    parts = np.array((0.0, *level.batch_seconds[: size - 1]))
    cleared: FloatArray = (images // size) * level.batch_seconds[size - 1] + parts[images % size]
    return cleared


def extra_s(
    level: OperatingPoint, levels: tuple[OperatingPoint, ...], backlog: Backlog
) -> FloatArray | None:
    """Return what images with a limit below this degree cost beyond the others, one by one.

    Returns:
        `(n,)` seconds, in order of service; None if no image has such a limit.
    """
    limited = backlog.max_r < level.r
    if not limited.any():
        return None
    below = [other for other in levels if other.r < level.r]
    if not below:
        return None
    degrees = np.array([other.r for other in below])
    costs = np.array([max(0.0, 1 / o.images_per_s - 1 / level.images_per_s) for o in below])
    at = np.searchsorted(degrees, backlog.max_r[limited], side="right") - 1
    extra = np.zeros(len(backlog))
    extra[limited] = costs[np.maximum(at, 0)]
    return extra


def done_s(
    level: OperatingPoint, levels: tuple[OperatingPoint, ...], backlog: Backlog
) -> FloatArray:
    """Return when each waiting image is done, in efficient batches at this level.

    Args:
        level: the degree.
        levels: all that could be chosen, for images that accept less than `level.r`.
        backlog: who waits, in order of service.

    Returns:
        `(n,)` float64, seconds from now.
    """
    return _with_extra(finish_s(level, len(backlog)), level, levels, backlog)


def feasible(
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    backlog: Backlog,
    doubt: float = 0.0,
) -> bool:
    """Whether everyone could be in time at this level: the processor-demand criterion.

    `in_time` asks for more: that efficient batches suffice.
    """
    done = _with_extra(clear_s(level, len(backlog)), level, levels, backlog)
    return bool((done * (1 - doubt) <= backlog.slack_s).all())


def _with_extra(
    finish: FloatArray,
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    backlog: Backlog,
) -> FloatArray:
    extra = extra_s(level, levels, backlog)
    return finish if extra is None else finish + np.cumsum(extra)


def in_time(
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    backlog: Backlog,
    margin_s: float = 0.0,
) -> bool:
    """Whether every waiting image is done `margin_s` before it is due, at this level."""
    count = len(backlog)
    if count == 0:
        return True
    if count <= level.batch_size and not (backlog.max_r < level.r).any():
        return level.batch_seconds[count - 1] + margin_s <= float(backlog.slack_s.min())
    return bool((done_s(level, levels, backlog) + margin_s <= backlog.slack_s).all())


def excess(
    backlog: Backlog,
    level: OperatingPoint,
    levels: tuple[OperatingPoint, ...],
    priorities: Sequence[int],
    *,
    doubt: float = 0.0,
) -> list[int]:
    """Choose whom to give up so that all others are in time at this level.

    Goes through the images in order of service and keeps who can still be in time. For one that
    cannot, either it is given up itself, or the latest kept one of no higher priority that costs
    more because of its own limit (with equal costs this is Moore and Hodgson's rule, 1968, which
    gives up the fewest).

    Args:
        backlog: who waits, in order of service.
        level: the degree at which all that accept it would be served.
        levels: those up to it.
        priorities: of each; 0 is the highest.
        doubt: share by which the durations may be believed too long.

    Returns:
        Positions, rising.
    """
    finish = clear_s(level, len(backlog)).tolist()
    costs = extra_s(level, levels, backlog)
    extra = [0.0] * len(backlog) if costs is None else costs.tolist()
    surplus, kept, dear, gone = 0.0, 0, [], []
    for index, slack_s in enumerate(backlog.slack_s.tolist()):
        surplus += extra[index]
        kept += 1
        if extra[index]:
            dear.append(index)
        while (finish[kept - 1] + surplus) * (1 - doubt) > slack_s:
            given_up = index
            if dear and priorities[dear[-1]] >= priorities[index]:
                given_up = dear.pop()
            surplus -= extra[given_up]
            kept -= 1
            gone.append(given_up)
            if given_up == index:
                break
    return sorted(gone)
