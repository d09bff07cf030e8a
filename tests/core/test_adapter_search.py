"""Which scale a search takes."""

import math

import pytest

from tocom_core.adapter_search import search_scale

FIGURES = {
    0.01: {"top1": 0.5, "loss": 1.2},
    0.1: {"top1": 0.8, "loss": 0.9},
    1.0: {"top1": 0.8, "loss": 0.7},
    10.0: {"top1": 0.8, "loss": math.nan},
    100.0: {"top1": 0.1, "loss": 0.1},
}


@pytest.mark.parametrize("order", [list(FIGURES), list(reversed(FIGURES))])
def test_highest_accuracy_then_lowest_loss(order: list[float]) -> None:
    """In any order the most accurate scale wins, of equals the surest; NaN is the worst loss."""
    best, table = search_scale(order, FIGURES.__getitem__)
    assert best == 1.0
    assert [row["scale"] for row in table] == order
    assert all(row["top1"] == FIGURES[row["scale"]]["top1"] for row in table)
