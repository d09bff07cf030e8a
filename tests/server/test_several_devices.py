"""Several devices behind one queue, with replicas on the CPU as the devices."""

import asyncio
import heapq
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.demand import excess, finish_s, in_time, paced
from server.devices import choose_places
from server.engine import Engine
from server.errors import ForwardFailed, SettingsError
from server.lanes import use_threads
from server.meters import LoadMeter
from server.reach import Levels
from server.settings import Settings
from server.stats import Backlog, BatchOutcome, BatchStats
from tests.server.fakes import believed
from tests.server.situations import machines
from tocom_core.bank import Bank
from tocom_core.models import LoadedModel, find_bank, load_model
from tocom_core.operating_point import OperatingPoint

TWO = Settings(backend="eager", devices="cpu,cpu", threads=2, profile="none")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Take back what a test's settings said of this thread's number of threads."""
    before = torch.get_num_threads()
    yield
    use_threads(before)


@pytest.fixture
def loaded() -> LoadedModel:
    """The default model, fresh for each test as the engine takes it over."""
    return load_model("default")


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    """The default model with its bank on two devices."""
    path = find_bank("default", "auto", loaded)
    assert path is not None
    engine = Engine(loaded, Bank.load(path), TWO)
    yield engine
    engine.close()


def images(count: int) -> list[Tensor]:
    """Random uint8 images."""
    generator = torch.Generator().manual_seed(3)
    shape = (count, 3, 32, 32)
    return list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def each_forward(engine: Engine, wrap: Callable[[int, Any], Any], mp: pytest.MonkeyPatch) -> None:
    """Wrap the forward of each device's model."""
    for number, replica in enumerate(engine._replicas):
        mp.setattr(replica.model, "forward", wrap(number, replica.model.forward))


def test_every_device_answers_like_one_alone(engine: Engine) -> None:
    """Batches of all degrees side by side, each with the weights of its own degree."""
    path = find_bank("default", "auto", loaded := load_model("default"))
    alone = Engine(loaded, Bank.load(path) if path else None, Settings(backend="eager"))
    expected = [np.stack(alone.run_blocking(images(3), r).outputs) for r in range(alone.max_r + 1)]
    alone.close()
    degrees = [r for pair in zip(range(13), reversed(range(13)), strict=True) for r in pair]

    async def run() -> list[Any]:
        return await asyncio.gather(*(engine.run(images(3), r) for r in degrees))

    outcomes = asyncio.run(run())
    assert {outcome.device for outcome in outcomes} == {0, 1}
    for r, outcome in zip(degrees, outcomes, strict=True):
        assert outcome.r == r
        np.testing.assert_allclose(np.stack(outcome.outputs), expected[r], atol=1e-5)


def test_two_degrees_are_computed_at_the_same_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each device has weights of its own: one does not wait for the other's degree."""
    met = threading.Barrier(2, timeout=60)

    def wrap(number: int, forward: Any) -> Any:
        def forward_once_both_are_here(pixels: Tensor, r: int) -> Tensor:
            met.wait()
            logits: Tensor = forward(pixels, r)
            return logits

        return forward_once_both_are_here

    each_forward(engine, wrap, monkeypatch)

    async def run() -> tuple[BatchOutcome, BatchOutcome]:
        return await asyncio.gather(engine.run(images(2), 0), engine.run(images(2), 9))

    first, second = asyncio.run(run())
    assert (first.r, second.r) == (0, 9) and {first.device, second.device} == {0, 1}


def test_there_is_room_until_all_devices_have_work(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch leaves a device free, the second none, and an end makes room."""
    go = [threading.Event(), threading.Event()]

    def wrap(number: int, forward: Any) -> Any:
        def held(pixels: Tensor, r: int) -> Tensor:
            assert go[number].wait(60)
            logits: Tensor = forward(pixels, r)
            return logits

        return held

    each_forward(engine, wrap, monkeypatch)

    async def run() -> None:
        first = asyncio.create_task(engine.run(images(2), 0))
        await asyncio.sleep(0)
        await asyncio.wait_for(engine.room(), 60)
        second = asyncio.create_task(engine.run(images(2), 0))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(engine.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        go[1].set()
        assert (await second).device == 1
        await asyncio.wait_for(waiting, 60)
        assert not first.done()
        go[0].set()
        assert (await first).device == 0

    asyncio.run(run())


def test_a_broken_device_makes_the_engine_unhealthy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device's success does not hide that one fails batch after batch."""

    def wrap(number: int, forward: Any) -> Any:
        def broken(pixels: Tensor, r: int) -> Tensor:
            raise RuntimeError("broken")

        return forward if number == 0 else broken

    with monkeypatch.context() as broken:
        each_forward(engine, wrap, broken)
        for _ in range(3):
            with pytest.raises(ForwardFailed):
                engine._replicas[1].run_blocking(images(1), 0)
            engine.run_blocking(images(1), 0)
        assert not engine.healthy
    engine._replicas[1].run_blocking(images(1), 0)
    assert engine.healthy


def test_warm_up_tries_every_device(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that cannot run the model is found before the first request."""

    def wrap(number: int, forward: Any) -> Any:
        def broken(pixels: Tensor, r: int) -> Tensor:
            raise RuntimeError("no such kernel")

        return forward if number == 0 else broken

    each_forward(engine, wrap, monkeypatch)
    with pytest.raises(RuntimeError, match="no such kernel"):
        asyncio.run(engine.warm_up())


def test_replicas_on_the_cpu_share_its_threads() -> None:
    """Two of four threads each; no more replicas than threads."""
    places = choose_places(Settings(devices="cpu,cpu", threads=4))
    assert [(str(place.device), place.threads) for place in places] == [("cpu", 2)] * 2
    with pytest.raises(SettingsError, match="3 replicas on the CPU have 2 threads"):
        choose_places(Settings(devices="cpu,cpu,cpu", threads=2))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"devices": "cpu,cpu", "device": "cpu"}, "contradict each other"),
        ({"devices": "cuda:0,cuda:0"}, "names a GPU twice"),
        ({"devices": "cpu;cpu"}, "pattern"),
    ],
)
def test_devices_that_make_no_sense_are_refused(given: dict[str, str], message: str) -> None:
    """With the setting's name and how to mend it."""
    with pytest.raises(ValueError, match=message):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_all_gpus_of_a_machine_without_any() -> None:
    """A clear refusal."""
    with pytest.raises(SettingsError, match="no GPU"):
        choose_places(Settings(devices="all"))


# What scheduler and policies reckon with.


def on(devices: int, machine: Levels) -> Levels:
    """The same levels on several devices."""
    return tuple(replace(level, devices=devices) for level in machine)


def one_by_one(level: OperatingPoint, count: int, begin_s: tuple[float, ...]) -> list[float]:
    """When each image's batch and all before it are over, from a plain loop over batches."""
    free, finish, last = list(begin_s), list[float](), 0.0
    heapq.heapify(free)
    while len(finish) < count:
        size = min(level.batch_size, count - len(finish))
        end = heapq.heappop(free) + level.batch_s(size)
        heapq.heappush(free, end)
        last = max(last, end)
        finish += [last] * size
    return finish


begins = st.lists(st.floats(0, 0.5), min_size=1, max_size=3).map(lambda s: (0.0, *sorted(s)))


@given(machine=machines(), count=st.integers(0, 60), begin_s=begins)
def test_batches_go_to_the_device_that_is_free_first(
    machine: Levels, count: int, begin_s: tuple[float, ...]
) -> None:
    """The reckoning agrees with batches handed out one by one."""
    level = on(len(begin_s), machine)[0]
    assert finish_s(level, count, begin_s) == pytest.approx(one_by_one(level, count, begin_s))


@given(machine=machines(), count=st.integers(0, 60), devices=st.integers(1, 4))
def test_the_time_to_clear_a_queue(machine: Levels, count: int, devices: int) -> None:
    """`clear_s` is the end of the last batch where all devices are free."""
    level = on(devices, machine)[0]
    ends = one_by_one(level, count, (0.0,) * devices)
    assert level.clear_s(count) == pytest.approx(ends[-1] if ends else 0.0)


@given(
    machine=machines(),
    slack_s=st.lists(st.floats(-0.5, 2), max_size=40),
    begin_s=begins,
    margin_s=st.sampled_from([0.0, 0.01]),
)
def test_in_time_on_several_devices(
    machine: Levels, slack_s: list[float], begin_s: tuple[float, ...], margin_s: float
) -> None:
    """Short cuts and a look per batch say the same as a look at each image."""
    levels = on(len(begin_s), machine)
    limits = np.full(len(slack_s), 1 << 30)
    waiting = Backlog(np.array(slack_s, np.float64), limits, begin_s)
    done = np.array(one_by_one(levels[-1], len(slack_s), begin_s)) + margin_s
    if len(done) and abs(done - waiting.slack_s).min() < 1e-9:
        return  # a tie: the order of sums decides
    timely = bool((done <= waiting.slack_s).all())
    assert in_time(levels[-1], levels, waiting, margin_s) == timely
    if margin_s:
        return
    gone = excess(waiting, levels[-1], levels, lambda _: 1)
    rest = np.delete(waiting.slack_s, gone)
    assert in_time(levels[-1], levels, Backlog(rest, np.delete(limits, gone), begin_s))
    assert timely == (len(gone) == 0)


def test_two_devices_carry_twice_the_load() -> None:
    """Throughput doubles; a batch takes as long as before, and half its size keeps pace."""
    one = believed(lambda r, size: 0.01 + 0.01 * size, batch_size=8)[0]
    two = replace(one, devices=2)
    assert two.images_per_s == pytest.approx(2 * one.images_per_s)
    assert two.batch_s(8) == one.batch_s(8)
    assert paced(one, 66.6).batch_size == 2 and paced(two, 66.6).batch_size == 1


def test_the_meter_follows_each_device() -> None:
    """The next batch goes to the free one; the third waits for whichever ends first."""
    meter = LoadMeter(devices=2)
    first = meter.started(0.0, 8, 0, 1.0)
    assert meter.residual_s(0.0) == 0.0 and meter.share_s(0.0) == 0.5
    second = meter.started(0.4, 8, 5, 1.0)
    assert (first.device, second.device) == (0, 1)
    assert meter.residual_s(0.5) == pytest.approx(0.5)
    assert meter.begin_s(0.5) == pytest.approx((0.0, 0.4))
    meter.ended(BatchStats(5, 8, 0.002, 0.4, 0.4, device=1), second)  # ahead of its time
    assert meter.residual_s(0.8) == 0.0 and meter.begin_s(0.8) == pytest.approx((0.0, 0.2))
    third = meter.started(0.8, 8, 5, 1.0)
    assert third.device == 1 and third.done_at == pytest.approx(1.8)
