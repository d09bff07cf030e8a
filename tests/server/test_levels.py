"""Throughput estimates: live, honest about batch size, and stable across degrees."""

import math

import pytest

from server.levels import LevelTable
from server.stats import BatchStats
from tests.server.fakes import linear_speedup, points, table

SPEED = linear_speedup(100.0, 2.0, 16)


def batch(r: int, size: int, images_per_s: float) -> BatchStats:
    """Return a batch that ran at the given rate."""
    return BatchStats(r, size, 0.0, size / images_per_s, 0.0)


def test_warm_up_measurements_are_believed() -> None:
    """Without live batches the given throughputs are what the table says."""
    levels = table(SPEED)
    assert [p.images_per_s for p in levels.points()] == pytest.approx([SPEED(r) for r in range(17)])
    assert levels.batch_s(16, 20) == pytest.approx(0.1)


def test_nothing_is_claimed_before_the_first_batch() -> None:
    """Unmeasured levels have a ratio but no throughput, and batches no estimate."""
    levels = table(None)
    point = levels.points()[16]
    assert (point.images_per_s, point.relative_throughput, point.measured) == (None, 2.0, False)
    assert levels.batch_s(16, 32) == 0.0


def test_the_first_batch_gives_all_levels_a_scale() -> None:
    """One live batch and the arithmetic ratios predict every level."""
    levels = table(None)
    levels.observe(batch(0, 32, 50.0))
    assert levels.images_per_s(0) == pytest.approx(50.0)
    assert levels.images_per_s(16) == pytest.approx(100.0)
    assert [p.measured for p in levels.points()] == [True] + [False] * 16


def test_small_batches_teach_nothing() -> None:
    """A batch of one says nothing about saturated throughput."""
    levels = table(SPEED, max_batch_size=32)
    for _ in range(50):
        levels.observe(batch(0, 1, 20.0))
    assert levels.images_per_s(0) == pytest.approx(100.0)


def test_what_counts_as_full_follows_the_time_budget() -> None:
    """Where the budget of a batch allows four images, three are nearly full."""
    levels = table(linear_speedup(30.0, 2.0, 16), max_batch_size=32, max_batch_s=0.125)
    for _ in range(50):
        levels.observe(batch(0, 3, 24.0))
    assert levels.images_per_s(0) == pytest.approx(24.0, rel=0.01)


def test_a_slower_machine_slows_all_levels() -> None:
    """A drift while the degree stays is the machine's doing: unvisited levels follow."""
    levels = table(SPEED)
    for _ in range(60):
        levels.observe(batch(0, 32, 50.0))
    assert levels.images_per_s(0) == pytest.approx(50.0, rel=0.01)
    assert levels.images_per_s(16) == pytest.approx(100.0, rel=0.01)


def test_a_wrong_ratio_is_corrected_without_touching_other_levels() -> None:
    """A jump right after a switch is the degree's doing: the others keep their estimates."""
    levels = table(SPEED)
    for _ in range(10):
        levels.observe(batch(0, 32, 100.0))
    for _ in range(4):
        levels.observe(batch(16, 32, 130.0))
    assert levels.images_per_s(16) == pytest.approx(130.0, rel=0.1)
    assert levels.images_per_s(0) == pytest.approx(100.0, rel=0.01)
    for _ in range(60):
        levels.observe(batch(16, 32, 130.0))
    assert levels.images_per_s(16) == pytest.approx(130.0, rel=0.01)
    assert levels.images_per_s(0) == pytest.approx(100.0, rel=0.1)


def test_one_outlier_moves_little() -> None:
    """A batch that took a hundred times too long costs the estimate a tenth, not all of it."""
    levels = table(SPEED)
    for _ in range(10):
        levels.observe(batch(0, 32, 100.0))
    levels.observe(batch(0, 32, 1.0))
    assert levels.images_per_s(0) == pytest.approx(100.0, rel=0.11)


def test_relative_throughput_is_relative_to_the_lowest_level() -> None:
    """Whatever is learned, r=0 stays the unit."""
    levels = table(SPEED)
    for r in (0, 16, 0, 16):
        for _ in range(20):
            levels.observe(batch(r, 32, 80.0 if r == 0 else 120.0))
    found = {p.r: p.relative_throughput for p in levels.points()}
    assert found[0] == 1.0
    assert found[16] == pytest.approx(1.5, rel=0.02)


def test_degrees_between_levels_count_as_the_lower_one() -> None:
    """A request's own max_r need not be a level."""
    levels = LevelTable(points(SPEED, degrees=(0, 8, 16)))
    assert levels.images_per_s(11) == levels.images_per_s(8)
    levels.observe(batch(11, 32, 1.0))
    assert levels.images_per_s(8) == pytest.approx(SPEED(8))


def test_measured_levels_keep_their_own_ratio() -> None:
    """Levels that the warm-up did not reach follow their arithmetic ratio, the others do not."""
    measured = points(SPEED)[0], *points(None, ratio=lambda r: 1 + r / 10)[1:16], points(SPEED)[16]
    levels = LevelTable(measured)
    assert levels.images_per_s(8) == pytest.approx(180.0)
    assert levels.images_per_s(16) == pytest.approx(200.0)


@pytest.mark.parametrize("bad", [[], [0, 0]])
def test_levels_must_be_distinct(bad: list[int]) -> None:
    """An empty or ambiguous table is a mistake of the caller."""
    with pytest.raises(ValueError, match="distinct"):
        LevelTable(points(SPEED, degrees=bad) if bad else [])


def test_without_a_time_budget_full_means_the_batch_limit() -> None:
    """The default bound is infinite and must not overflow."""
    levels = table(SPEED, max_batch_size=8, max_batch_s=math.inf)
    levels.observe(batch(0, 5, 50.0))
    assert levels.images_per_s(0) == pytest.approx(100.0)
    levels.observe(batch(0, 6, 50.0))
    assert levels.images_per_s(0) != pytest.approx(100.0)
