"""How accurate the answers are, without labels: how often a degree agrees with `r_source`.

Some served images are run again at `r_source` (see `shadow`); this module counts, per degree, how
often the most likely class was the same. It looks back over a window of comparisons, not over the
server's whole life, so that a change of the traffic shows.

**From agreement to accuracy.** Let `A` be the accuracy of `r_source` and `a` the agreement. Of the
answers that agree, as many are right at `r` as at `r_source`; of the share `1 - a` that does not,
`r_source` is right at most always and `r` at least never. So the accuracy at `r` is at least
`A - (1 - a)`, whatever the images. `A · a` is what remains if `r_source` is as often right where
they differ as elsewhere, and `r` never. In practice they differ on the harder images, where
`r_source` is wrong more often and `r` right now and then: `A · a` errs on the low side, and it is
what `LiveAccuracy` uses. The caution lies there, so the agreement itself goes in as measured and
not as the lower end of its interval: that would shut out good degrees for want of comparisons, and
a degree that is shut out gets no more of them. Nor does it replace a lower figure from labelled
images; a degree that is known to be bad does not come back because the traffic looks easy. Like a
measured table it may rise by chance where it cannot be expected to; `believed_accuracy` mends that.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.clock import Clock
from tocom_core.accuracy_belief import believed_accuracy

WINDOW = 1000
"""Comparisons of one degree that count, the newest ones: at 97 % one point up and down."""

WINDOW_S = 6 * 3600.0
"""How long a comparison counts. A degree that live accuracy has shut out is not served, so nothing
new is learned of it; once the old has aged it gets another chance."""

ENOUGH = 100
"""Comparisons before live accuracy speaks: two points of standard error at 95 % agreement."""

WORTH_TELLING = 0.0005


@dataclass(frozen=True, slots=True)
class Comparison:
    """One served image, run again at `r_source`: whether both gave the same class."""

    r: int
    agrees: bool


@dataclass(frozen=True, slots=True)
class AgreementEstimate:
    """A degree's share of equal answers, its 95 % interval, and the comparisons behind it."""

    agreement: float
    low: float
    high: float
    samples: int


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a share that was seen `successes` times in `trials`.

    Unlike the textbook's, it stays inside 0 and 1 and has a width where all trials agree
    (Wilson 1927; Brown, Cai and DasGupta 2001 recommend it for small samples).

    Raises:
        ValueError: there were no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 <= successes <= trials > 0, got {successes} of {trials}")
    share, weight = successes / trials, z * z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


class Agreement:
    """Comparisons of each degree, the newest ones.

    Args:
        clock: seconds, monotonic.
        window: comparisons of one degree that count.
        window_s: how long each of them counts.
    """

    def __init__(self, clock: Clock, *, window: int = WINDOW, window_s: float = WINDOW_S) -> None:
        self._clock = clock
        self._size = window
        self._window_s = window_s
        self._windows: dict[int, _Window] = {}

    def add(self, comparison: Comparison) -> None:
        """Count one comparison."""
        window = self._windows.setdefault(comparison.r, _Window())
        window.add(self._clock(), comparison.agrees)
        window.shorten(self._size)

    def of(self, r: int) -> AgreementEstimate | None:
        """Return what is known of a degree; None without a comparison that still counts."""
        return self.estimates().get(r)

    def estimates(self) -> dict[int, AgreementEstimate]:
        """Return what is known of each degree that was compared, ascending."""
        oldest = self._clock() - self._window_s
        found = {}
        for r, window in sorted(self._windows.items()):
            window.forget_before(oldest)
            if window.outcomes:
                found[r] = window.estimate()
        return found


class _Window:
    """Outcomes in the order they came, and how many of them agree."""

    def __init__(self) -> None:
        self.outcomes: deque[tuple[float, bool]] = deque()
        self._agreeing = 0

    def add(self, now: float, agrees: bool) -> None:
        self.outcomes.append((now, agrees))
        self._agreeing += agrees

    def shorten(self, size: int) -> None:
        while len(self.outcomes) > size:
            self._drop_oldest()

    def forget_before(self, oldest: float) -> None:
        while self.outcomes and self.outcomes[0][0] < oldest:
            self._drop_oldest()

    def estimate(self) -> AgreementEstimate:
        low, high = wilson_interval(self._agreeing, len(self.outcomes))
        return AgreementEstimate(self._agreeing / len(self.outcomes), low, high, len(self.outcomes))

    def _drop_oldest(self) -> None:
        self._agreeing -= self.outcomes.popleft()[1]


class LiveAccuracy:
    """The expected accuracy of each degree, corrected by what live traffic shows.

    Args:
        agreement: the comparisons.
        evaluated: degree to expected accuracy from what was measured before, where it was.
        r_source: the degree that the others are compared with; where its accuracy is not known it
            counts as 1, and the accuracy of the others is then their agreement with it.
        publish: takes the new figures when one of them has moved.
        enough: comparisons of a degree before they say anything.
    """

    def __init__(
        self,
        agreement: Agreement,
        evaluated: Mapping[int, float],
        r_source: int,
        publish: Callable[[Mapping[int, float]], None],
        *,
        enough: int = ENOUGH,
    ) -> None:
        self._agreement = agreement
        self._evaluated = dict(evaluated)
        self._r_source = r_source
        self._publish = publish
        self._enough = enough
        self._published = dict(evaluated)

    def expected(self) -> dict[int, float]:
        """Return degree to expected accuracy, for the degrees of which anything is known."""
        reference = self._evaluated.get(self._r_source, 1.0)
        expected = dict(self._evaluated)
        for r, live in self._agreement.estimates().items():
            if live.samples >= self._enough:
                expected[r] = min(reference * live.agreement, expected.get(r, 1.0))
        return believed_accuracy(expected, self._r_source)

    def refresh(self) -> None:
        """Publish the figures if one has moved; for after a comparison and now and then."""
        expected = self.expected()
        if expected.keys() == self._published.keys() and all(
            abs(value - self._published[r]) < WORTH_TELLING for r, value in expected.items()
        ):
            return
        self._published = expected
        self._publish(expected)
