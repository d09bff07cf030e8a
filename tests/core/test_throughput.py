"""How speed is measured, under a clock of the test's own."""

from collections import Counter

import pytest
import torch

from tests.core import zoo
from tocom_core import CompressedViT
from tocom_core.throughput import (
    FEWEST_ROUNDS,
    Speed,
    Spread,
    device_name,
    measure_speed,
    noise,
    time_rounds,
)


class Machine:
    """Runs that take as long as the test says, on a clock that only they move."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.calls: list[int] = []
        self.runs = {int(name[1:]): self._run(int(name[1:]), s) for name, s in seconds.items()}

    def _run(self, r: int, seconds: float):
        def run() -> None:
            self.calls.append(r)
            self.now += seconds

        return run


def test_degrees_take_turns() -> None:
    """Every round has one turn of each; turns of short runs repeat them."""
    machine = Machine(r0=2.0, r8=0.25)
    taken = time_rounds(machine.runs, 30.0, turn_s=1.0, clock=lambda: machine.now)
    assert set(taken[0]) == {2.0} and set(taken[8]) == {0.25}
    assert len(taken[0]) == len(taken[8]) >= FEWEST_ROUNDS
    calls = Counter(machine.calls)
    rounds = len(taken[0])
    assert calls[0] == 1 + rounds * 2, "one untimed call at first, and one in each turn"
    assert calls[8] == 1 + rounds * (1 + 4)


def test_the_budget_ends_the_rounds_but_not_before_the_fewest() -> None:
    """Quartiles need some rounds, whatever they take."""
    slow = Machine(r0=100.0)
    assert len(time_rounds(slow.runs, 1.0, clock=lambda: slow.now)[0]) == FEWEST_ROUNDS
    fast = Machine(r0=1.0)
    assert len(time_rounds(fast.runs, 20.0, clock=lambda: fast.now)[0]) == 10


def test_speed_is_relative_to_r0_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians with quartiles; a machine that slows down for a while does not move the ratio."""
    model = CompressedViT(zoo.build("test_vit"))
    asked = []

    def told(runs, budget_s):
        asked.append((list(runs), budget_s))
        for run in runs.values():
            run()
        return {0: [1.0, 2.0, 4.0], 4: [0.5, 1.0, 2.0]}

    monkeypatch.setattr("tocom_core.throughput.time_rounds", told)
    speed = measure_speed(model, [4], (3, 64, 64), 8, 2.5)
    assert asked == [([0, 4], 5.0)]
    assert speed[4].images_per_s.as_list() == [8.0, 6.0, 12.0]
    assert speed[4].speedup.as_list() == [2.0, 2.0, 2.0]
    assert speed[0].speedup.as_list() == [1.0, 1.0, 1.0]


def test_noise_is_called_out() -> None:
    """Quartiles that lie far apart name the worst degree; narrow ones say nothing."""
    still, restless = Spread(100.0, 98.0, 102.0), Spread(100.0, 80.0, 110.0)
    assert noise({0: Speed(still, still)}) is None
    words = noise({0: Speed(still, still), 8: Speed(restless, still)})
    assert words is not None and "1 of 2 degrees" in words and "r=8: 30%" in words


def test_the_device_is_told_with_its_threads() -> None:
    """A CPU's speed means nothing without them."""
    assert device_name(torch.device("cpu")).startswith("cpu, ")
