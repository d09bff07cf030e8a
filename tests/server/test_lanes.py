"""Lanes: a shared-out batch gives what a whole one gives, and is over when it is over."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.errors import SettingsError
from server.lanes import MOST_LANES, Lanes, choose_lanes, use_threads


class ManualClock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.read = threading.Event()

    def __call__(self) -> float:
        """Return the time, and tell that somebody asked."""
        now = self.now
        self.read.set()
        return now


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    """Three lanes that share four threads; this thread's own number is put back at the end."""
    before = torch.get_num_threads()
    use_threads(4)
    made = Lanes(3, 4)
    yield made
    made.close()
    use_threads(before)


@pytest.mark.parametrize(
    ("asked", "threads", "device", "count"),
    [
        (0, 1, "cpu", 1),
        (0, 2, "cpu", 2),
        (0, 3, "cpu", 3),
        (0, 4, "cpu", 4),
        (0, 5, "cpu", 4),
        (0, 6, "cpu", 3),
        (0, 7, "cpu", 3),
        (0, 8, "cpu", 4),
        (0, 64, "cpu", 4),
        (1, 8, "cpu", 1),
        (6, 8, "cpu", 6),
        (0, 8, "cuda", 1),
        (4, 2, "mps", 1),
    ],
)
def test_choice_of_lanes(asked: int, threads: int, device: str, count: int) -> None:
    """One per thread up to a bound, as asked for where asked, one on an accelerator."""
    assert choose_lanes(asked, threads, device) == count


@given(threads=st.integers(2, 512))
def test_chosen_lanes_leave_few_threads_idle(threads: int) -> None:
    """At least three quarters of the threads have work, and there is something to run side by side.

    (Five threads are four lanes of one: the worst there is, beside 80 % in use.)
    """
    count = choose_lanes(0, threads, "cpu")
    assert 2 <= count <= min(threads, MOST_LANES)
    assert threads // count * count >= 0.75 * threads


def test_more_lanes_than_threads_are_refused() -> None:
    """The message names both numbers and what to change."""
    with pytest.raises(SettingsError, match=r"lanes=4: the model has 2 CPU threads .* lower lanes"):
        choose_lanes(4, 2, "cpu")


@pytest.mark.parametrize("images", [1, 2, 3, 7, 9])
def test_results_are_in_order_and_parts_as_equal_as_possible(lanes: Lanes, images: int) -> None:
    """Nothing is lost, nothing swapped, and no lane has two images more than another."""
    sizes: list[int] = []

    def double(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return part * 2

    batch = torch.arange(images)
    assert lanes.run(double, batch).tolist() == (batch * 2).tolist()
    assert sum(sizes) == images and len(sizes) == min(images, 3)
    assert max(sizes) - min(sizes) <= 1


def test_parts_run_at_the_same_time(lanes: Lanes) -> None:
    """Each waits for the others: one after the other, they would never end."""
    together = threading.Barrier(3, timeout=60)

    def meet(part: Tensor) -> Tensor:
        together.wait()
        return part

    assert len(lanes.run(meet, torch.zeros(5))) == 5


def test_threads_are_shared_out(lanes: Lanes) -> None:
    """Inside a lane PyTorch uses that lane's share; outside it is as before, new threads included.

    The matrix product comes first because PyTorch looks at a thread's number at its first one.
    """

    def threads_of(part: Tensor) -> Tensor:
        torch.ones(64, 64) @ torch.ones(64, 64)
        return torch.full((len(part),), torch.get_num_threads())

    assert lanes.run(threads_of, torch.zeros(6)).tolist() == [1] * 6
    assert lanes.run(threads_of, torch.zeros(1)).tolist() == [4]
    elsewhere: list[Tensor] = []
    thread = threading.Thread(target=lambda: elsewhere.append(threads_of(torch.zeros(1))))
    thread.start()
    thread.join()
    assert elsewhere[0].tolist() == [4]


def test_a_failure_waits_for_the_other_parts(lanes: Lanes) -> None:
    """When the call fails, nothing of it is running any more."""
    failed = threading.Event()
    finished: list[int] = []

    def job(part: Tensor) -> Tensor:
        if part[0] == 0:
            failed.set()
            raise MemoryError("the first part")
        assert failed.wait(60)
        for _ in range(300):  # long enough for the failure to come out first
            torch.ones(128, 128) @ torch.ones(128, 128)
        finished.append(int(part[0]))
        return part

    with pytest.raises(MemoryError, match="the first part"):
        lanes.run(job, torch.arange(3))
    assert sorted(finished) == [1, 2]
    assert lanes.run(torch.neg, torch.arange(3)).tolist() == [0, -1, -2]


def test_the_first_images_failure_is_told(lanes: Lanes) -> None:
    """Of several failures it is always the same one, whichever lane was quicker."""

    def job(part: Tensor) -> Tensor:
        raise RuntimeError(f"part {int(part[0])}")

    with pytest.raises(RuntimeError, match="part 0"):
        lanes.run(job, torch.arange(3))


def test_a_failed_pass_lets_go_of_its_tensors(lanes: Lanes) -> None:
    """Once the failure was handled its tensors are gone, for a second try needs their room."""
    held: list[weakref.ref[Tensor]] = []

    def job(part: Tensor) -> Tensor:
        large = part + 1
        held.append(weakref.ref(large))
        raise MemoryError

    gc.disable()
    try:
        with pytest.raises(MemoryError):
            lanes.run(job, torch.arange(3))
        assert len(held) == 3 and [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()


def test_a_part_is_timed_from_when_its_lane_was_free() -> None:
    """What waits for the parts of another batch is not believed to take their time too."""
    clock, told = ManualClock(), list[float | None]()
    lanes = Lanes(2, 2, clock)
    go, begun = threading.Event(), threading.Barrier(3)

    def long(part: Tensor) -> Tensor:
        begun.wait()
        go.wait()
        return part

    def short(part: Tensor) -> Tensor:
        clock.now = 1.25
        return part

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(lanes.run, long, torch.zeros(4))
        begun.wait()
        clock.read.clear()
        second = threads.submit(lanes.run, short, torch.zeros(2), on_part=told.append)
        clock.read.wait()  # it was handed over at 0, while both lanes had work
        clock.now = 1.0
        go.set()
        wait([first, second])
    lanes.close()
    # One part may end before the other has set the clock; none is believed to have taken 1.25 s.
    assert len(told) == 2 and max(taken for taken in told if taken is not None) == 0.25


def test_smaller_parts_are_not_timed() -> None:
    """Of five images on two lanes the part of three tells how long such a batch takes."""
    told: list[float | None] = []
    lanes = Lanes(2, 2)
    lanes.run(torch.neg, torch.arange(5), on_part=told.append)
    lanes.close()
    assert len(told) == 2 and told.count(None) == 1


def test_a_single_lane_is_the_calling_thread() -> None:
    """Nothing is shared out, and no thread is started."""
    before = set(threading.enumerate())
    lanes = Lanes(1, 8)
    seen: list[str] = []

    def job(part: Tensor) -> Tensor:
        seen.append(threading.current_thread().name)
        return part

    lanes.run(job, torch.zeros(8))
    lanes.close()
    assert seen == [threading.current_thread().name]
    assert set(threading.enumerate()) <= before


def test_closed_lanes_end_their_threads_and_take_nothing() -> None:
    """After closing there is no thread left to wait for."""
    before = set(threading.enumerate())
    lanes = Lanes(2, 2)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    lanes.close()
    for thread in mine:
        thread.join(60)
        assert not thread.is_alive()
    with pytest.raises(RuntimeError):
        lanes.run(torch.neg, torch.arange(2))
