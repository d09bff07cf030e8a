"""How many replicas: Ray Serve's autoscaling by the load over what a replica carries.

Compress first, scale out second. A spike is taken by compression within milliseconds, and a replica
takes a minute to come. So replicas are counted by the demand at the degree that the operator is
willing to run in steady state (`tocom_capacity_demand`): it stays high as long as the spike lasts,
however well compression copes, and Ray's delays decide how long that must be.

Ray pickles this module by value into its controller: it imports nothing of ours.
"""

import math
from typing import Any

DEMAND = "tocom_capacity_demand"
"""What each replica reports: offered load ÷ its capacity at the steady degree."""


class CapacityPolicy:
    """As many replicas as bring the demand on each down to a target, like Kubernetes' HPA.

    Args:
        target: the demand that a replica should have, on average; the rest is room for jitter.
        tolerance: no change while the mean is that close to the target, relative to it.
    """

    def __init__(self, target: float = 0.8, tolerance: float = 0.1) -> None:
        if not 0 < target <= 1 or not 0 <= tolerance < 1:
            raise ValueError(
                f"target={target} must lie above 0 and up to 1, tolerance={tolerance} from 0 to "
                "below 1"
            )
        self.target = target
        self.tolerance = tolerance

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and no state; Ray applies its bounds and delays to it.

        A replica that has not reported yet is taken to have no demand: what is offered is in the
        reports of the others until it takes its share. Without any report nothing changes.
        """
        reported: dict[Any, float] = (context.aggregated_metrics or {}).get(DEMAND, {})
        present: int = context.target_num_replicas
        known = [value for value in reported.values() if math.isfinite(value)]
        if not known or not present:
            return present, {}
        wanted = sum(known) / self.target
        if abs(wanted / present - 1) <= self.tolerance:
            return present, {}
        return max(1, math.ceil(wanted)), {}
