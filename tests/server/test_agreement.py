"""Agreement without labels: counts, intervals, forgetting, and the accuracy it stands for."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.agreement import Agreement, AgreementEstimate, Comparison, LiveAccuracy, wilson_interval
from tests.server.fakes import ManualClock


def compare(agreement: Agreement, r: int, agreeing: int, of: int) -> None:
    """Add comparisons, the agreeing ones first."""
    for index in range(of):
        agreement.add(Comparison(r, index < agreeing))


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_what_the_share_cannot_be_told_from(counts: tuple[int, int]) -> None:
    """Its ends are the shares p from which the observed one is 1.96 standard errors away."""
    successes, trials = counts
    share = successes / trials
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1 and end != share:
            error = math.sqrt(end * (1 - end) / trials)
            assert abs(share - end) == pytest.approx(1.96 * error, rel=1e-6)


@pytest.mark.parametrize("counts", [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    """No trials, or more successes than trials: a mistake of the caller."""
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
        wilson_interval(*counts)


def test_each_degree_has_its_own_counts() -> None:
    """Ascending by degree; a degree that was never compared is not there."""
    agreement = Agreement(ManualClock())
    compare(agreement, 8, 3, 4)
    compare(agreement, 2, 5, 5)
    assert list(agreement.estimates()) == [2, 8]
    assert agreement.of(8) == AgreementEstimate(0.75, *wilson_interval(3, 4), samples=4)
    assert agreement.of(3) is None


def test_a_change_of_the_traffic_shows() -> None:
    """Only the newest comparisons count, however long the server has been running."""
    agreement = Agreement(ManualClock(), window=100)
    compare(agreement, 4, 5000, 5000)
    compare(agreement, 4, 0, 60)
    found = agreement.of(4)
    assert found is not None and (found.agreement, found.samples) == (0.4, 100)


def test_old_comparisons_are_forgotten() -> None:
    """What was compared hours ago counts no more, so that a degree gets another chance."""
    clock = ManualClock()
    agreement = Agreement(clock, window_s=60)
    compare(agreement, 4, 0, 10)
    clock.now += 40
    compare(agreement, 4, 5, 5)
    clock.now += 21
    found = agreement.of(4)
    assert found is not None and (found.agreement, found.samples) == (1.0, 5)
    clock.now += 40
    assert agreement.of(4) is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=60))
def test_counts_are_those_of_the_window(steps: list[tuple[bool, float]]) -> None:
    """Running counts equal a fresh count over what is left: the newest 20 of the last 100 s."""
    clock = ManualClock()
    agreement = Agreement(clock, window=20, window_s=100)
    seen: list[tuple[float, bool]] = []
    for agrees, pause in steps:
        clock.now += pause
        agreement.add(Comparison(1, agrees))
        seen.append((clock.now, agrees))
        left = [agreed for at, agreed in seen[-20:] if at >= clock.now - 100]
        found = agreement.of(1)
        assert found is not None and found.samples == len(left)
        assert found.agreement == pytest.approx(sum(left) / len(left))


# --- From agreement to accuracy -----------------------------------------------------------------


class Published:
    """Live accuracy over agreement that a test adds to, and what it published."""

    def __init__(self, evaluated: Mapping[int, float], r_source: int = 0) -> None:
        self.clock = ManualClock()
        self.agreement = Agreement(self.clock, window_s=3600)
        self.told: list[Mapping[int, float]] = []
        self.live = LiveAccuracy(self.agreement, evaluated, r_source, self.told.append, enough=100)

    def after(self, r: int, agreeing: int, of: int) -> Mapping[int, float]:
        """Return what is expected after these comparisons."""
        compare(self.agreement, r, agreeing, of)
        self.live.refresh()
        return self.live.expected()


def test_each_disagreement_counts_as_an_error() -> None:
    """The accuracy of r_source times the agreement, which errs on the low side."""
    assert Published({0: 0.8, 6: 0.79}).after(6, 90, 100)[6] == pytest.approx(0.72)


def test_without_the_accuracy_of_the_source_it_is_plain_agreement() -> None:
    """Nothing is known of any degree: r_source counts as right, and stays unknown."""
    assert Published({}).after(6, 90, 100) == {6: pytest.approx(0.9)}


def test_it_never_speaks_better_of_a_degree_than_labels_do() -> None:
    """A degree that labelled images show to be bad stays bad, however easy the traffic."""
    assert Published({0: 0.8, 6: 0.6}).after(6, 100, 100)[6] == 0.6


def test_chance_does_not_make_compression_gain_accuracy() -> None:
    """A higher degree with luckier comparisons is believed to be as good as the lower one."""
    published = Published({0: 0.8})
    published.after(6, 90, 100)
    assert published.after(9, 94, 100) == {0: 0.8, 6: pytest.approx(0.736), 9: pytest.approx(0.736)}


def test_few_comparisons_say_nothing() -> None:
    """Below the number that is enough, what was known before stands, unpublished."""
    published = Published({0: 0.8, 6: 0.79})
    assert published.after(6, 0, 99) == {0: 0.8, 6: 0.79}
    assert published.told == []
    published.after(6, 0, 1)
    assert published.told == [{0: 0.8, 6: 0.0}]


def test_a_degree_that_was_shut_out_gets_another_chance() -> None:
    """Once the comparisons have aged, what was known before holds again."""
    published = Published({0: 0.8, 6: 0.79})
    published.after(6, 50, 100)
    published.clock.now += 3601
    published.live.refresh()
    assert published.told == [{0: 0.8, 6: pytest.approx(0.4)}, {0: 0.8, 6: 0.79}]


def test_figures_that_stand_still_are_not_published_again() -> None:
    """The table is built anew only when something moved."""
    published = Published({0: 0.8})
    published.after(6, 100, 100)
    published.after(6, 10, 10)
    assert len(published.told) == 1


@given(
    st.floats(0, 1),
    st.integers(0, 400),
    st.lists(st.booleans(), min_size=400, max_size=400),
)
def test_it_lies_between_what_is_proven_and_the_reference(
    reference: float, disagreeing: int, order: list[bool]
) -> None:
    """Never below A - (1 - a), the worst case whatever the images, and never above A."""
    published = Published({0: reference})
    expected = published.after(6, 400 - disagreeing, 400)[6]
    assert reference - disagreeing / 400 - 1e-12 <= expected <= reference
