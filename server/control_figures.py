"""What the controller knows, as named figures for the metrics.

They are read together, when metrics are asked for. What is not known (an expected accuracy, a
degree that was never compared, the policy's wish outside of shadow mode) is absent rather than 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from server.control_status import ControllerStatus


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's name, its meaning, and its value: one, or one for each degree, or none yet."""

    name: str
    meaning: str
    value: float | None = None
    by_degree: Mapping[int, float] | None = None


def control_figures(status: ControllerStatus | None) -> Iterator[Figure]:
    """Yield all figures, also those without a value, so that each is announced."""
    levels = () if status is None else status.levels
    shadow = None if status is None else status.shadow
    agreement = {} if status is None else status.agreement
    yield Figure(
        "tocom_expected_accuracy",
        "Expected top-1 of the present degree, from 0 to 1; absent where unknown.",
        None if status is None else status.expected_accuracy,
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
