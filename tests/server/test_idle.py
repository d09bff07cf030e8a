"""Idle work takes turns, one step at a time."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from server.idle import IdleShift


class Task:
    """Idle work with so many steps to do."""

    def __init__(self, name: str, steps: int, done: list[str]) -> None:
        self.name = name
        self.left = steps
        self.done = done

    async def step(self) -> bool:
        """Do one, if there is one."""
        if not self.left:
            return False
        self.left -= 1
        self.done.append(self.name)
        return True


def test_works_take_turns() -> None:
    """None has to wait until another has run out of work."""
    done: list[str] = []
    shift = IdleShift([Task("a", 3, done), Task("b", 1, done), Task("c", 2, done)])
    while asyncio.run(shift.step()):
        pass
    assert done == ["a", "b", "c", "a", "c", "a"]


@given(st.lists(st.integers(0, 5), max_size=4))
def test_a_shift_does_all_there_is_and_then_says_so(steps: list[int]) -> None:
    """Each step does exactly one unit of somebody's work; without any, False."""
    done: list[str] = []
    shift = IdleShift([Task(str(i), count, done) for i, count in enumerate(steps)])
    for number in range(sum(steps)):
        assert asyncio.run(shift.step()) and len(done) == number + 1
    assert asyncio.run(shift.step()) is False


def test_what_comes_last_waits_for_all_others() -> None:
    """It is done where none of them has anything to do, and gives way again."""
    done: list[str] = []
    first = Task("a", 2, done)
    shift = IdleShift([first], last=Task("last", 2, done))
    for _ in range(3):
        assert asyncio.run(shift.step())
    first.left = 1
    while asyncio.run(shift.step()):
        pass
    assert done == ["a", "a", "last", "a", "last"]
