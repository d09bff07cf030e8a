"""Which scale a search takes."""

import json
import math

import pytest

from tocom_core.adapter_search import search_scale
from tocom_core.errors import DivergedError

FIGURES = {
    0.01: {"top1": 0.5, "loss": 1.2},
    0.1: {"top1": 0.8, "loss": 0.9},
    1.0: {"top1": 0.8, "loss": 0.7},
    10.0: {"top1": 0.9, "loss": math.nan},
    100.0: {"top1": 0.1, "loss": 0.1},
}


@pytest.mark.parametrize("order", [list(FIGURES), list(reversed(FIGURES))])
def test_highest_accuracy_then_lowest_loss(order: list[float]) -> None:
    """In any order the most accurate scale wins, of equals the surest; never one that diverged."""
    best, table = search_scale(order, FIGURES.__getitem__, 1e-3)
    assert best == 1.0
    assert [row["scale"] for row in table] == order
    assert [row["top1"] for row in table] == [FIGURES[scale]["top1"] for scale in order]


def test_the_table_is_json() -> None:
    """A loss that is no number is null, which every reader of JSON understands."""
    _, table = search_scale(list(FIGURES), FIGURES.__getitem__, 1e-3)
    read = json.loads(json.dumps(table, allow_nan=False))
    assert [row["loss"] for row in read] == [1.2, 0.9, 0.7, None, 0.1]


def test_a_search_without_a_survivor_says_so() -> None:
    """Nothing is trained in full with a scale that is known to diverge."""

    def diverged(scale: float) -> dict[str, float]:
        return {"top1": 0.0, "loss": math.inf if scale > 1 else math.nan}

    with pytest.raises(DivergedError, match=r"--adapter-scale 0\.1 10: none.*--lr \(now 0\.5\)"):
        search_scale([0.1, 10.0], diverged, 0.5)
