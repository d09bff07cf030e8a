"""The policies by the names that the setting `policy` takes; the one place that knows them all."""

from collections.abc import Callable, Mapping

from server.aimd_policy import AimdPolicy
from server.demand_policy import DemandPolicy
from server.policy import Policy, StaticPolicy
from server.slackfit_policy import SlackFitPolicy
from server.threshold_policy import ThresholdPolicy

BUILDERS: Mapping[str, Callable[[int, float], Policy]] = {
    "demand": lambda static_r, dwell_s: DemandPolicy(dwell_s=dwell_s),
    "static": lambda static_r, dwell_s: StaticPolicy(static_r),
    "threshold": lambda static_r, dwell_s: ThresholdPolicy(dwell_s=dwell_s),
    "slackfit": lambda static_r, dwell_s: SlackFitPolicy(),
    "aimd": lambda static_r, dwell_s: AimdPolicy(dwell_s=dwell_s),
}
"""From a name to what builds the policy, given the fixed degree and the dwell time."""


def build_policy(name: str, *, static_r: int, dwell_s: float, slo_s: float) -> Policy:
    """Return a fresh policy, without memory.

    Args:
        name: a key of `BUILDERS`.
        static_r: the degree of `static`; no other policy looks at it.
        dwell_s: how long load must be low before a degree is lowered; `static` and `slackfit`
            do not wait.
        slo_s: the promised latency. Snapshots carry it too, and so far no policy needs it sooner.

    Raises:
        ValueError: no policy has that name, or it cannot work with these values.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown policy {name!r}: expected one of {', '.join(BUILDERS)}")
    return BUILDERS[name](static_r, dwell_s)
