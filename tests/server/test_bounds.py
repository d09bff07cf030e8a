"""What an automatic choice may take: bounds, the accuracy floor, and what pays."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bounds import Bounds
from server.errors import BadParameter
from tests.server.fake_table import DEGREES, SetTable

FALLING = {r: 0.9 - 0.01 * r for r in DEGREES}


def bounds(table: SetTable | None = None, r_source: int = 0, **options: Any) -> Bounds:
    """Return bounds over a table that a test sets by hand."""
    stand_in: Any = table or SetTable()
    return Bounds(stand_in, r_source, **options)


def degrees(levels: Any) -> tuple[int, ...]:
    """Return the degrees of some levels."""
    return tuple(level.r for level in levels)


def test_without_bounds_or_floor_all_that_pays_is_offered() -> None:
    """A degree that is not faster than a lower one is never offered."""
    found = bounds(SetTable(slow=(1, 2, 5)))
    assert degrees(found.offered()) == (0, 3, 4, *range(6, 17))
    assert degrees(found.allowed()) == DEGREES


def test_levels_follow_the_table() -> None:
    """A degree that stops to pay is offered no more, and offered again once it does."""
    table = SetTable()
    found = bounds(table)
    table.set_paying((4,))
    assert 4 not in degrees(found.offered())
    table.set_paying(())
    assert 4 in degrees(found.offered())


def test_the_degree_of_the_checkpoint_need_not_pay() -> None:
    """It trades no accuracy for speed, so it is offered whether or not it is fast."""
    found = bounds(SetTable(slow=(8,)), r_source=8)
    assert degrees(found.offered())[0] == 8


def test_where_nothing_pays_the_degree_nearest_to_the_checkpoint_is_left() -> None:
    """Bounds that hold only slow degrees are the operator's wish: one of them is offered."""
    found = bounds(SetTable(slow=(3, 4, 5)))
    found.set(3, 5)
    assert degrees(found.offered()) == (3,)


def test_the_floor_shuts_out_what_is_unknown() -> None:
    """Below the floor or without a figure: not allowed, except for the checkpoint's degree."""
    accuracy = {r: value for r, value in FALLING.items() if r not in (0, 2)}
    found = bounds(SetTable(accuracy=accuracy), min_accuracy=0.865)
    assert degrees(found.allowed()) == (0, 1, 3)


def test_the_floor_counts_for_the_checkpoint_too() -> None:
    """Once its accuracy is known to be below the floor, r_source is no exception."""
    with pytest.raises(BadParameter, match=r"the best, r=0, has 0\.9;"):
        bounds(SetTable(accuracy=FALLING), min_accuracy=0.95)


def test_a_floor_that_nothing_is_known_to_keep_says_how_to_know() -> None:
    """The message names the command that measures expected accuracy."""
    with pytest.raises(BadParameter, match=r"unknown: r=2; tocom profile.*--calibration"):
        bounds(SetTable(), r_source=8, max_r=2, min_accuracy=0.5)


def test_a_floor_over_unknown_degrees_is_told_at_the_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The operator learns which degrees the floor shuts out for want of a figure."""
    with caplog.at_level(logging.WARNING):
        bounds(SetTable(accuracy={0: 0.9, 1: 0.89}), max_r=3, min_accuracy=0.5)
    assert "shuts out r=2, 3" in caplog.text and "tocom profile" in caplog.text


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (9, 3, "min_r=9 .* max_r=3.*from 0 to 16"),
        (0, 17, "max_r=17 .* 0 to 16"),
        (-1, 16, "min_r=-1 .* 0 to 16"),
        (0, 10**30, "0 to 16"),
        (12, 16, "floor min_accuracy=0.8.*the best, r=12, has 0.78"),
    ],
)
def test_bad_bounds_are_refused(low: int, high: int, message: str) -> None:
    """The message names the allowed range, and the bounds stay as they were."""
    found = bounds(SetTable(accuracy=FALLING), min_accuracy=0.8)
    with pytest.raises(BadParameter, match=message):
        found.set(low, high)
    assert (found.low, found.high) == (0, 16)


def test_bounds_between_sparse_degrees_are_refused() -> None:
    """Both bounds lie in the model's range, yet no degree lies between them."""
    found = bounds(SetTable(degrees=(0, 8, 16)))
    with pytest.raises(BadParameter, match="no degree from 9 to 12"):
        found.set(9, 12)


def test_when_all_sink_below_the_floor_the_most_accurate_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Live accuracy may leave no degree: then the best one within bounds, said once."""
    table = SetTable(accuracy=FALLING)
    found = bounds(table, min_accuracy=0.85)
    found.set(2, 5)
    with caplog.at_level(logging.WARNING):
        for accuracy in ({2: 0.7, 3: 0.72, 4: 0.6, 5: 0.5}, {2: 0.7, 3: 0.73}):
            table.set_accuracy(accuracy)
            assert degrees(found.offered()) == (3,)
    assert caplog.text.count("serving the most accurate one, r=3") == 1
    table.set_accuracy(FALLING)
    assert degrees(found.offered()) == (2, 3, 4, 5)


@pytest.mark.parametrize(("r", "why"), [(9, "bounds"), (3, "slow"), (6, "accuracy-floor")])
def test_objections_have_a_name(r: int, why: str) -> None:
    """Why a degree is not offered becomes the reason of a switch."""
    found = bounds(SetTable(accuracy=FALLING, slow=(3,)), max_r=8, min_accuracy=0.85)
    assert found.objection(r) == why


def test_a_degree_that_a_faster_one_equals_is_left_out() -> None:
    """It would trade speed for nothing; r_source stays in any case, and what is not known."""
    table = SetTable(accuracy={0: 0.84, 1: 0.84, 2: 0.83, 4: 0.83, 5: 0.83, 6: 0.8}, slow=(5,))
    found = bounds(table, max_r=6)
    assert degrees(found.offered()) == (0, 1, 3, 4, 6)
    assert found.objection(2) == "beaten"


def test_a_degree_that_the_checkpoints_beats_is_left_out() -> None:
    """Below r_source merging may cost less, or the distance from what was learned more."""
    table = SetTable(accuracy={0: 0.86, 1: 0.84, 2: 0.85, 4: 0.85, 5: 0.82})
    found = bounds(table, r_source=4)
    found.set(0, 5)
    assert degrees(found.offered()) == (0, 3, 4, 5)


@given(
    st.dictionaries(st.sampled_from(DEGREES), st.floats(0, 1)),
    st.sets(st.sampled_from(DEGREES)),
    st.tuples(st.integers(0, 16), st.integers(0, 16)).map(sorted),
    st.none() | st.floats(0, 1),
    st.integers(0, 16),
)
def test_nothing_outside_bounds_and_floor_is_ever_offered(
    accuracy: dict[int, float],
    slow: set[int],
    span: list[int],
    floor: float | None,
    r_source: int,
) -> None:
    """Whatever the table says: within bounds, known to keep the floor, and at least one."""
    try:
        found = bounds(SetTable(accuracy=accuracy, slow=tuple(slow)), r_source, min_accuracy=floor)
        found.set(*span)
    except BadParameter:
        return
    offered = found.offered()
    degrees = {level.r for level in found.allowed()}
    assert offered and {level.r for level in offered} <= degrees
    for level in offered:
        assert span[0] <= level.r <= span[1]
        if floor is not None and level.r != r_source:
            assert level.expected_accuracy is not None
        if floor is not None and level.expected_accuracy is not None:
            assert level.expected_accuracy >= floor
        assert level.pays or level.r == r_source or len(offered) == 1
