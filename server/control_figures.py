"""What the controller knows, as named figures for the metrics.

They are read together, when metrics are asked for. What is not known (an expected accuracy, a
degree that was never compared, the policy's wish outside of shadow mode) is absent rather than 0.
"""

from collections.abc import Iterator

from server.control_status import ControllerStatus
from server.stats import Figure


def control_figures(
    status: ControllerStatus | None, capacity_demand: float | None = None
) -> Iterator[Figure]:
    """Yield all figures, also those without a value, so that each is announced."""
    yield Figure(
        "tocom_capacity_demand",
        "Images offered over the last 15 s, refused ones too, as a multiple of what this replica "
        "carries at its steady degree; summed over replicas: how many such are needed. Absent "
        "until warmed up.",
        capacity_demand,
    )
    levels = () if status is None else status.levels
    shadow = None if status is None else status.shadow
    agreement = {} if status is None else status.agreement
    yield Figure(
        "tocom_expected_accuracy",
        "Expected top-1 of the present degree, from 0 to 1; absent where unknown.",
        None if status is None else status.expected_accuracy,
    )
    yield Figure(
        "tocom_accuracy_floor",
        "Least expected top-1 of automatic choices, from 0 to 1; absent if there is no floor.",
        None if status is None else status.min_accuracy,
    )
    yield Figure(
        "tocom_agreement_floor",
        "Agreement with r_source that keeps the accuracy floor; absent if it is not known.",
        None if status is None else status.agreement_floor,
    )
    yield Figure(
        "tocom_pin_remaining_seconds",
        "Time until a pin ends by itself; absent if none is set, and for one without an end.",
        None if status is None else status.pinned_ttl_s,
    )
    yield Figure(
        "tocom_shadow_degree",
        "Degree r that the policy would set; absent outside of shadow mode.",
        None if shadow is None else shadow.r,
    )
    yield Figure(
        "tocom_degree_throughput",
        "Images per second that a degree is believed to carry on this machine.",
        by_degree={level.r: level.images_per_s for level in levels},
    )
    yield Figure(
        "tocom_degree_expected_accuracy",
        "Expected top-1 of a degree, from 0 to 1; absent where unknown.",
        by_degree={p.r: p.expected_accuracy for p in levels if p.expected_accuracy is not None},
    )
    yield Figure(
        "tocom_agreement_ratio",
        "Share of a degree's compared images with the same class as at r_source.",
        by_degree={r: estimate.agreement for r, estimate in agreement.items()},
    )
    yield Figure(
        "tocom_agreement_low",
        "Lower end of the 95 % interval of tocom_agreement_ratio.",
        by_degree={r: estimate.low for r, estimate in agreement.items()},
    )
    yield Figure(
        "tocom_agreement_high",
        "Upper end of the 95 % interval of tocom_agreement_ratio.",
        by_degree={r: estimate.high for r, estimate in agreement.items()},
    )
    yield Figure(
        "tocom_live_accuracy",
        "Top-1 of a degree by what live traffic shows: that of r_source times the agreement.",
        by_degree={} if status is None else status.live_accuracies,
    )
