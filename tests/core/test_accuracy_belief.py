"""What is believed of a noisy table: the closest one that never rises from `r_source` on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from tocom_core.accuracy_belief import believed_accuracy

tables = st.dictionaries(st.integers(0, 24), st.floats(0, 1), max_size=20)
counts = st.lists(st.integers(1, 5000), min_size=25, max_size=25)


def naive(values: list[float], weights: list[int]) -> list[float]:
    """Return the least-squares fit that never rises, by the min-max formula."""

    def mean(first: int, last: int) -> float:
        part = range(first, last + 1)
        return sum(weights[k] * values[k] for k in part) / sum(weights[k] for k in part)

    size = len(values)
    return [min(max(mean(s, t) for t in range(i, size)) for s in range(i + 1)) for i in range(size)]


@given(tables, counts, st.integers(0, 24))
def test_it_is_the_isotonic_regression(
    measured: dict[int, float], images: list[int], r_source: int
) -> None:
    """Equal to the min-max formula and to scikit-learn from r_source on, untouched below."""
    found = believed_accuracy(measured, r_source, dict(enumerate(images)))
    assert list(found) == sorted(measured)
    above = [r for r in found if r >= r_source]
    values, weights = [measured[r] for r in above], [images[r] for r in above]
    assert [found[r] for r in above] == pytest.approx(naive(values, weights), abs=1e-9)
    if above:
        other = isotonic_regression(values, sample_weight=weights, increasing=False)
        assert [found[r] for r in above] == pytest.approx(other.tolist(), abs=1e-9)
    assert all(found[r] == measured[r] for r in measured if r < r_source)


@given(tables, st.integers(0, 24))
def test_it_never_rises_and_believing_twice_changes_nothing(
    measured: dict[int, float], r_source: int
) -> None:
    """Exactly, so that a comparison of two degrees needs no tolerance."""
    found = believed_accuracy(measured, r_source)
    above = [found[r] for r in found if r >= r_source]
    assert above == sorted(above, reverse=True)
    assert believed_accuracy(found, r_source) == found


@given(tables)
def test_a_table_without_a_rise_is_believed_as_it_is(measured: dict[int, float]) -> None:
    """Only what contradicts itself is changed."""
    falling = dict(zip(sorted(measured), sorted(measured.values(), reverse=True), strict=True))
    assert believed_accuracy(falling, 0) == falling


@given(tables, counts)
def test_the_mean_over_all_images_stays(measured: dict[int, float], images: list[int]) -> None:
    """Right answers are moved between degrees, not made up."""
    found = believed_accuracy(measured, 0, dict(enumerate(images)))
    before = sum(images[r] * value for r, value in measured.items())
    assert sum(images[r] * value for r, value in found.items()) == pytest.approx(before, abs=1e-6)


def test_the_example_of_the_shipped_bank() -> None:
    """Half a point that r=2 to 4 stand above r=0 by chance is shared; what falls stays."""
    measured = {0: 0.866, 1: 0.87, 2: 0.872, 4: 0.872, 5: 0.862}
    believed = believed_accuracy(measured, 0)
    assert [round(value, 3) for value in believed.values()] == [0.87, 0.87, 0.87, 0.87, 0.862]
