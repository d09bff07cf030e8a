"""What a replay's machine could have answered in time, whoever decided: an upper bound at its pace.

A shared machine that is slow for half a second loses images under any policy. So a replay's
attainment says as much of the machine as of the policy, until it stands beside this.

The bound is that of an easier problem: images are done one by one, at the best rate that any batch
has at the fastest degree, by a machine that knows how fast it will be, and nothing else takes time.
All take the same work and are due in the order in which they came. Then whoever would be late is
given up, and no other choice serves more: of any so many images, those that came first are done
first (for jobs of equal work, Moore's 1968 algorithm gives up the newest).
"""

from collections.abc import Sequence

import numpy as np

from server.simulated_machine import SlowDown


def most_in_time(
    arrivals_s: Sequence[float],
    image_s: float,
    slo_s: float,
    slow_downs: Sequence[SlowDown] = (),
) -> int:
    """Return how many of these images can be done within the SLO.

    Args:
        arrivals_s: rising.
        image_s: what one takes on the machine at its own pace.
        slo_s: from arrival to answer.
        slow_downs: by rising time, without overlaps; between them the machine has its own pace.
    """
    edges_s, work_s = _work_done(slow_downs)

    def done_by(time_s: float) -> float:
        """Return the work that the machine does until then, in seconds at its own pace."""
        beyond_s = max(0.0, time_s - edges_s[-1])
        return float(np.interp(time_s, edges_s, work_s)) + beyond_s

    free, served = 0.0, 0
    for arrival_s in arrivals_s:
        done = max(free, done_by(arrival_s)) + image_s
        if done <= done_by(arrival_s + slo_s):
            free = done
            served += 1
    return served


def _work_done(slow_downs: Sequence[SlowDown]) -> tuple[list[float], list[float]]:
    """Return times at which the pace changes, and the work done until then."""
    edges_s, work_s = [0.0], [0.0]
    for slow in slow_downs:
        for end_s, factor in ((slow.start_s, 1.0), (slow.end_s, slow.factor)):
            work_s.append(work_s[-1] + (end_s - edges_s[-1]) / factor)
            edges_s.append(end_s)
    return edges_s, work_s
