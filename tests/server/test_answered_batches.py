"""Batches found from outside: by their size and their duration to the microsecond."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.answered_batches import count_switches, find_batches, own_seconds
from server.open_loop import Answer, Served


def answers(r: int, size: int, compute_ms: float, done_s: float) -> list[Answer]:
    """All answers of one batch, a millisecond apart."""
    image = Served(r, size, 0.0, compute_ms, 0, 0.9)
    moments = (done_s + 0.001 * number for number in range(size))
    return [Answer(0, at, at, at, 200, (image,)) for at in moments]


@given(st.lists(st.tuples(st.integers(0, 16), st.integers(1, 8)), max_size=20), st.randoms())
def test_batches_are_told_apart(made: list[tuple[int, int]], shuffled) -> None:
    """Whatever the order of answers: as many batches as there were, each whole, in order."""
    all_answers = [
        answer
        for number, (r, size) in enumerate(made)
        for answer in answers(r, size, 30 + 0.001 * number, 0.05 * number)
    ]
    shuffled.shuffle(all_answers)
    found = find_batches(all_answers)
    assert [(batch.size, batch.seen, batch.degrees) for batch in found] == [
        (size, size, {r}) for r, size in made
    ]


def test_the_same_duration_much_later_is_another_batch() -> None:
    """Coincidences happen, seconds apart."""
    found = find_batches([*answers(0, 2, 30.0, 1.0), *answers(4, 2, 30.0, 5.0)])
    assert [batch.degrees for batch in found] == [{0}, {4}]


def test_refusals_are_of_no_batch() -> None:
    """An answer without images says nothing of one."""
    assert find_batches([Answer(0, 0.0, 0.0, 0.1, 429)]) == []


def test_switches_are_changes_between_batches() -> None:
    """0, 0, 8, 0 are two changes."""
    runs = [answers(r, 2, 30 + r + at, at) for at, r in ((1.0, 0), (2.0, 0), (3.0, 8), (4.0, 0))]
    assert count_switches(find_batches(answer for run in runs for answer in run)) == 2


def test_a_batch_s_own_time_begins_when_the_one_before_it_was_done() -> None:
    """What two batches share is the first one's; a pause is nobody's."""
    times = [(0.1, 0.1), (0.18, 0.12), (0.18, 0.05), (1.0, 0.1)]
    assert own_seconds(times) == pytest.approx([0.1, 0.08, 0.0, 0.1])
