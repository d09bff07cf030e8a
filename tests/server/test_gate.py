"""The gate: batches of one degree side by side, a switch only between them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.gate import DegreeGate
from tests.server.fakes import ManualClock


def test_the_first_degree_needs_no_switch() -> None:
    """The weights are those of the checkpoint already."""
    switched: list[int] = []
    gate = DegreeGate(switched.append, 4, ManualClock())
    with gate.at(4) as switch_s:
        assert switch_s == 0
    assert switched == []


def test_a_switch_is_timed() -> None:
    """Its duration is that of the switch alone."""
    clock = ManualClock()

    def switch(r: int) -> None:
        clock.now += 0.25

    with DegreeGate(switch, 0, clock).at(3) as switch_s:
        assert switch_s == 0.25


def test_a_failed_switch_changes_nothing() -> None:
    """The gate goes on with the degree that it had, and tries again when asked."""
    asked: list[int] = []

    def switch(r: int) -> None:
        asked.append(r)
        raise ValueError("not finite")

    gate = DegreeGate(switch, 0, ManualClock())
    for _ in range(2):
        with pytest.raises(ValueError, match="not finite"), gate.at(3):
            pass
    with gate.at(0):
        pass
    assert asked == [3, 3]


def test_batches_of_one_degree_run_beside_each_other() -> None:
    """Each waits inside for the other: one after the other they would never end."""
    gate = DegreeGate(lambda r: None, 0, ManualClock())
    together = threading.Barrier(2, timeout=60)

    def batch() -> None:
        with gate.at(2):
            together.wait()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(batch) for _ in range(2)]:
            done.result()


@settings(max_examples=30, deadline=None)
@given(degrees=st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_weights_never_change_under_a_batch(degrees: list[int]) -> None:
    """Whatever comes on however many threads: inside, the weights are those asked for."""
    weights = [0]

    def switch(r: int) -> None:
        weights[0] = r

    gate = DegreeGate(switch, 0, ManualClock())

    def batch(r: int) -> bool:
        with gate.at(r):
            return all(weights[0] == r for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(batch, degrees))
