"""The policies by the names that the setting `policy` takes; the one place that knows them all."""

from collections.abc import Callable, Mapping

from server.aimd_policy import AimdPolicy
from server.demand_policy import DemandPolicy
from server.policy import Policy, StaticPolicy
from server.slackfit_policy import SlackFitPolicy
from server.threshold_policy import ThresholdPolicy

Dwell = Mapping[str, float]
"""The keyword argument `dwell_s`, or nothing: then the policy's own."""

BUILDERS: Mapping[str, Callable[[int, Dwell], Policy]] = {
    "demand": lambda static_r, dwell: DemandPolicy(**dwell),
    "static": lambda static_r, dwell: StaticPolicy(static_r),
    "threshold": lambda static_r, dwell: ThresholdPolicy(**dwell),
    "slackfit": lambda static_r, dwell: SlackFitPolicy(),
    "aimd": lambda static_r, dwell: AimdPolicy(**dwell),
}
"""From a name to what builds the policy, given the fixed degree and the dwell time."""


def build_policy(name: str, *, static_r: int, dwell_s: float | None, slo_s: float) -> Policy:
    """Return a fresh policy, without memory.

    Args:
        name: a key of `BUILDERS`.
        static_r: the degree of `static`; no other policy looks at it.
        dwell_s: how long load must be low before a degree is lowered; None leaves it to the
            policy. `static` and `slackfit` do not wait.
        slo_s: the promised latency. Snapshots carry it too, and so far no policy needs it sooner.

    Raises:
        ValueError: no policy has that name, or it cannot work with these values.
    """
    if name not in BUILDERS:
        raise ValueError(f"unknown policy {name!r}: expected one of {', '.join(BUILDERS)}")
    return BUILDERS[name](static_r, {} if dwell_s is None else {"dwell_s": dwell_s})
