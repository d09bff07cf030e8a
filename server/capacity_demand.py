"""How many replicas like this one the offered load needs: the signal for an autoscaler.

`tocom_capacity_demand` is the offered load over what this replica carries *at the degree that the
operator is willing to run in steady state*. A spike is first taken by compression, within a batch
or two; the use of a processor or GPU then says nothing of it, as a server that compresses is less
busy, and it can never say more than 100 %. This ratio goes on rising with the load, whatever the
degree of the moment and however much is refused, so that an autoscaler can ask at once for as many
replicas as it takes, and `r` comes back down when they are there.

**Offered** are all images that asked for a place in the queue, refused and shed ones included
(those that a client sends again count again). They are counted over the last `WINDOW_S`, the
period of Kubernetes' autoscaler: each image counts in one of its decisions, and noise of single
seconds in none. A replica that has just begun divides by the whole window too, so that the sum
over replicas is what all of them were offered, wherever a balancer has sent it meanwhile.

**Capacity** is what the table of operating points believes, in efficient batches, of all devices
together, the way to the model and back included as live batches have shown it. Decoding that falls
behind is not seen here; see `docs/operations.md`.
"""

from collections import deque
from collections.abc import Callable

from server.clock import Clock
from server.control_status import ControllerStatus
from tocom_core.operating_point import OperatingPoint

WINDOW_S = 15.0
BUCKET_S = 0.25


class OfferedLoad:
    """Images per second over the last `WINDOW_S`, each second counting alike."""

    def __init__(self) -> None:
        self._buckets: deque[tuple[float, int]] = deque()  # when it began, and how many came

    def add(self, now: float, images: int) -> None:
        """Count images that ask for a place, at a time that never goes back."""
        begun_at = now // BUCKET_S * BUCKET_S
        if self._buckets and self._buckets[-1][0] >= begun_at:
            begun_at, before = self._buckets.pop()
            images += before
        self._buckets.append((begun_at, images))
        self._forget(now)

    def per_second(self, now: float) -> float:
        """Return the mean rate of the window; 0 when nothing came in it."""
        self._forget(now)
        if not self._buckets:
            return 0.0
        oldest_at, oldest = self._buckets[0]
        # The oldest bucket leaves bit by bit, or the rate of steady arrivals would saw up and down.
        share = min(1.0, (oldest_at + BUCKET_S - (now - WINDOW_S)) / BUCKET_S)
        return (sum(images for _, images in self._buckets) - (1 - share) * oldest) / WINDOW_S

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] + BUCKET_S <= now - WINDOW_S:
            self._buckets.popleft()


class CapacityDemand:
    """Offered load over the capacity at the steady degree.

    Args:
        offered: what comes in.
        status: what the controller knows; the steady degree is one of those that it may choose.
        steady_r: the degree that the operator is willing to run in steady state; None: the lowest
            that is offered.
        clock: seconds, the one that `offered` is told the time of.
    """

    def __init__(
        self,
        offered: OfferedLoad,
        status: Callable[[], ControllerStatus],
        steady_r: int | None,
        clock: Clock,
    ) -> None:
        self._offered = offered
        self._status = status
        self._steady_r = steady_r
        self._clock = clock

    @property
    def steady_r(self) -> int:
        """The degree that is reckoned with at present."""
        return steady_level(self._status(), self._steady_r).r

    def value(self) -> float:
        """Return how many replicas like this one the load needs: 0 when idle, 1 at capacity."""
        level = steady_level(self._status(), self._steady_r)
        return self._offered.per_second(self._clock()) / level.images_per_s


def steady_level(status: ControllerStatus, steady_r: int | None) -> OperatingPoint:
    """Return the level of the steady degree: of those offered, the nearest that is not higher.

    Where all that are offered are higher, or no degree was named, it is the lowest of them. A pin
    and shadow mode change nothing of what is offered; bounds, the accuracy floor and the policy
    `static` do.
    """
    lower = [r for r in status.allowed if steady_r is not None and r <= steady_r]
    chosen = max(lower, default=min(status.allowed))
    return next(level for level in status.levels if level.r == chosen)
