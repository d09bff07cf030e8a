"""SlackFit, the policy of SuperServe (Khare et al., NSDI 2025), for degrees instead of subnets.

**The paper.** A choice is a pair of a subnet and a batch size. Its latency rises with the batch and
with the subnet's accuracy, so choices can be arranged by latency alone. *Offline* they are sorted
into evenly spaced buckets, from the latency of the smallest subnet with one query to that of the
largest subnet with the largest batch. *Online*, before each batch, the slack of the most urgent
query picks the bucket: the one of the highest latency that still is below the slack. Within it the
choice with the largest batch is taken: of choices that take about as long, it serves the most. So
a burst, which eats up slack by queueing, leads to buckets of low latency and hence to small, fast
subnets, and slack that is left over is spent on accuracy. Nothing else counts: not the length of
the queue, no forecast, no damping, as actuating a subnet takes next to no time.

**Ours.** A degree takes the subnet's place, and of equally large batches in a bucket the one with
the lowest degree counts as the most accurate. What differs:

- The latencies are live: the pairs are sorted anew when the levels change (a new estimate, bounds,
  a floor under the accuracy), and only levels that pay are sorted.
- A batch never counts as larger than the queue. On a slow machine one bucket holds small batches
  at r=0 and large ones at the highest degree; an idle server must not compress for a batch that
  nobody fills.
- A batch takes at most a third of the SLO. The paper has several workers; here whoever arrives just
  after a batch has begun waits for that one, and perhaps for one more, before it rides its own.
- Who could not be in time at any level does not count as urgent: the scheduler will give it up.
- A share of the SLO for the way out, the cost of a switch, and a doubt about the durations come off
  the slack.

As in the paper nothing damps the choice: under constant load between two degrees' throughput it
goes round a short cycle of degrees, in time, but with several switches a second.
"""

from bisect import bisect_left, bisect_right

import numpy as np

from server.policy import Decision
from server.stats import LoadSnapshot
from tocom_core.operating_point import OperatingPoint


class SlackFitPolicy:
    """The largest batch, at the lowest degree, of those that take just less than the slack."""

    BUCKETS = 16
    LONGEST = 1 / 3
    """Share of the SLO that a batch takes at most."""
    MARGIN = 0.05
    """Share of the SLO that is kept back for the way out."""
    DOUBT = 2.0
    """So many standard deviations a batch may take longer than believed."""

    def __init__(self) -> None:
        self._buckets: LatencyBuckets | None = None

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Take the choice whose latency fits the slack of the most urgent image best."""
        levels = tuple(level for level in load.levels if level.pays) or load.levels
        buckets, longest_s = self._buckets, self.LONGEST * load.slo_s
        if buckets is None or buckets.levels != levels or buckets.longest_s != longest_s:
            buckets = LatencyBuckets(levels, longest_s=longest_s, count=self.BUCKETS)
            self._buckets = buckets
        slack_s = _most_urgent_s(load, buckets.quickest_s)
        slack_s -= self.MARGIN * load.slo_s + load.switch_s
        bearable_s = slack_s / (1 + self.DOUBT * load.spread)
        batch, r = buckets.fitting(bearable_s, max(1, load.queue_length))
        return Decision(r, "slack", batch)


def _most_urgent_s(load: LoadSnapshot, quickest_s: float) -> float:
    """Return the least slack of an image that can be in time; without images the whole SLO."""
    if not load.queue_length:
        return load.slo_s
    slack_s = load.backlog.slack_s
    meetable = slack_s[slack_s >= quickest_s]
    return float(meetable.min()) if len(meetable) else 0.0


class LatencyBuckets:
    """All pairs of batch size and degree, in buckets of equal width by how long they take.

    Args:
        levels: the degrees, ascending.
        longest_s: no pair takes more, but for the quickest one.
        count: how many buckets.
    """

    def __init__(self, levels: tuple[OperatingPoint, ...], *, longest_s: float, count: int) -> None:
        self.levels = levels
        self.longest_s = longest_s
        self.quickest_s = min(level.batch_seconds[0] for level in levels)
        pairs = [
            (batch, level.r, seconds)
            for level in levels
            for batch, seconds in enumerate(level.batch_seconds, 1)
            if seconds <= max(longest_s, self.quickest_s)
        ]
        slowest_s = max(seconds for _, _, seconds in pairs)
        # No pair takes longer than the edge that its bucket ends at.
        self._edges: list[float] = np.linspace(self.quickest_s, slowest_s, count + 1)[1:].tolist()
        self._batches: list[list[int]] = [[] for _ in range(count)]
        self._degrees: list[list[int]] = [[] for _ in range(count)]
        for batch, r, seconds in sorted(pairs):
            index = bisect_left(self._edges, seconds)
            if self._batches[index][-1:] != [batch]:  # else a lower degree serves as many
                self._batches[index].append(batch)
                self._degrees[index].append(r)

    def fitting(self, bearable_s: float, most: int) -> tuple[int, int]:
        """Return batch size and degree for a slack: the best pair of the highest bucket below it.

        Args:
            bearable_s: how long the batch may take; with less than the lowest bucket's end, that
                bucket is taken all the same.
            most: images that there are to fill a batch, at least 1.
        """
        highest = max(0, bisect_right(self._edges, bearable_s) - 1)
        index = next(  # the lowest bucket holds the quickest pair, which is a batch of one
            i for i in range(highest, -1, -1) if self._batches[i] and self._batches[i][0] <= most
        )
        position = bisect_right(self._batches[index], most) - 1
        return self._batches[index][position], self._degrees[index][position]
