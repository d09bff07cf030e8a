"""What the controller tells of itself: to `GET /compression` and to the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from server.agreement import AgreementEstimate
from tocom_core.operating_point import OperatingPoint

Mode = Literal["auto", "pinned", "shadow"]


@dataclass(frozen=True, slots=True)
class DegreeChange:
    """The controller's last change of mind; `age_s` seconds ago."""

    r_from: int
    r_to: int
    reason: str
    age_s: float


@dataclass(frozen=True, slots=True)
class ShadowStatus:
    """What the policy would do in shadow mode, and in how many seconds that mode ends."""

    r: int
    reason: str
    ttl_s: float | None


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """The controller at one moment.

    Attributes:
        mode: who decides.
        r: the degree that the next batch will have, save for requests with a lower `max_r`.
        r_source: the degree of the checkpoint.
        min_r: no automatic choice is lower.
        max_r: no automatic choice is higher.
        min_accuracy: the floor under the expected accuracy of automatic choices.
        pinned_ttl_s: seconds until a pin ends by itself.
        last_change: the last change of `r`.
        levels: all degrees and what is believed of them.
        allowed: the degrees that the policy may choose from at present.
        shadow: what it would choose; None outside of shadow mode.
        agreement: degree to how often its answers were those of `r_source`, where compared.
    """

    mode: Mode
    r: int
    r_source: int
    min_r: int
    max_r: int
    min_accuracy: float | None
    pinned_ttl_s: float | None
    last_change: DegreeChange | None
    levels: tuple[OperatingPoint, ...]
    allowed: tuple[int, ...]
    shadow: ShadowStatus | None = None
    agreement: Mapping[int, AgreementEstimate] = field(default_factory=dict)

    @property
    def expected_accuracy(self) -> float | None:
        """What is expected of the present degree."""
        return self._accuracy_of(self.r)

    @property
    def agreement_floor(self) -> float | None:
        """How often a degree must agree with `r_source` to keep the accuracy floor.

        None without a floor, or where nothing is known of `r_source`.
        """
        reference = self._accuracy_of(self.r_source)
        if self.min_accuracy is None or not reference:
            return None
        return min(1.0, self.min_accuracy / reference)

    @property
    def live_accuracies(self) -> Mapping[int, float]:
        """Degree to the accuracy that its agreement speaks for (see `agreement`), where known."""
        reference = self._accuracy_of(self.r_source)
        if reference is None:
            return {}
        agreed = {r: reference * estimate.agreement for r, estimate in self.agreement.items()}
        return {self.r_source: reference} | agreed

    def _accuracy_of(self, r: int) -> float | None:
        return next((level.expected_accuracy for level in self.levels if level.r == r), None)
