"""The sorted queue: always in order, whatever comes and goes."""

import random
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.due_queue import DueQueue
from server.stats import NO_LIMIT


@dataclass(eq=False)
class Item:
    """Something with a place in the queue; equal only to itself."""

    number: int
    key: float
    max_r: int | None

    @property
    def due(self) -> float:
        """Return a time that is no function of the place."""
        return 1000.0 - self.number


KEYS = st.sampled_from([0.0, 1.0, 2.5, 2.5, 7.0, float("inf")])


@settings(deadline=None)
@given(st.data())
def test_order_survives_any_history(data: st.DataObject) -> None:
    """Adding, removing and taking keep items sorted by key, then by arrival, arrays included."""
    queue: DueQueue[Item] = DueQueue()
    model: list[Item] = []
    for number in range(data.draw(st.integers(0, 200))):
        action = data.draw(st.sampled_from(["add", "add", "add", "remove", "take"]))
        if action == "add":
            item = Item(number, data.draw(KEYS), data.draw(st.none() | st.integers(0, 16)))
            queue.add(item, item.key, item.due, item.max_r)
            model.append(item)
        elif action == "remove" and model:
            item = data.draw(st.sampled_from(model))
            assert queue.remove(item, item.key)
            model.remove(item)
            assert not queue.remove(item, item.key)
        elif action == "take" and model:
            order = sorted(model, key=lambda item: item.key)
            some = data.draw(st.sets(st.integers(0, len(model) - 1), max_size=5))
            gone = [order[place] for place in sorted(some)]
            assert queue.take(np.array(sorted(some), np.int64)) == gone
            model = [item for item in model if item not in gone]
        order = sorted(model, key=lambda item: item.key)
        assert list(queue) == order
        assert queue.dues.tolist() == [item.due for item in order]
        limits = [NO_LIMIT if item.max_r is None else item.max_r for item in order]
        assert queue.limits.tolist() == limits


@given(count=st.integers(1, 60), start=st.integers(0, 60), drawn=st.randoms(use_true_random=False))
def test_any_share_of_the_queue_can_be_taken(count: int, start: int, drawn: random.Random) -> None:
    """One stretch of it, or many here and there: the others stay in order, arrays included."""
    queue: DueQueue[int] = DueQueue()
    for number in range(count):
        queue.add(number, number, 2.0 * number, 3 * number)
    places = list(range(min(start, count), drawn.randint(min(start, count), count)))
    if drawn.random() < 0.5:
        places = sorted(drawn.sample(range(count), len(places)))
    stay = [number for number in range(count) if number not in places]
    assert queue.take(np.array(places, np.int64)) == places
    assert queue.items == stay
    assert queue.dues.tolist() == [2.0 * number for number in stay]
    assert queue.limits.tolist() == [3 * number for number in stay]
    assert [queue.ahead_of(number - 0.5) for number in stay] == list(range(len(stay)))


def test_a_new_item_stands_behind_its_equals() -> None:
    """Of equal keys the first to come is the first to go."""
    queue: DueQueue[str] = DueQueue()
    for name, key in (("b", 2.0), ("a", 1.0), ("c", 2.0)):
        queue.add(name, key, 0.0)
    assert queue.items == ["a", "b", "c"]
    assert queue.ahead_of(2.0) == 3
    assert queue.ahead_of(1.5) == 1


def test_it_grows() -> None:
    """Five hundred items, in falling order of arrival, come out in order."""
    queue: DueQueue[int] = DueQueue()
    for number in range(500):
        queue.add(number, -number, number)
    assert queue.items == list(range(499, -1, -1))
    assert queue.dues.tolist() == list(range(499, -1, -1))
