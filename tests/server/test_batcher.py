"""The batcher: batches, faults and the end.

Real batcher, real event loop, virtual time: nothing here sleeps.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from server.batcher import ItemResult, Submission
from server.errors import Draining, ForwardFailed, NotReady
from server.stats import BatchOutcome, LoadSnapshot
from tests.server.fakes import Bench, FakeModel, loop_time, run_virtual


def test_answers_carry_output_and_circumstances() -> None:
    """An image gets its own output, the degree and size of its batch, and its times."""

    async def main() -> None:
        bench = Bench(FakeModel(overhead_s=0.01), r=3)
        result = await bench.submit("cat", received_at=-0.5, decode_s=0.1)
        assert (result.output, result.r, result.batch_size) == ("cat", 3, 1)
        assert result.queue_s == pytest.approx(0.002)
        assert result.compute_s == pytest.approx(0.02)
        [stats] = bench.requests
        assert (stats.outcome, stats.r, stats.decode_s) == ("ok", 3, 0.1)
        assert stats.total_s == pytest.approx(0.522)

    run_virtual(main())


def test_images_that_come_close_together_share_a_batch() -> None:
    """An idle model waits max_queue_delay for company."""

    async def main() -> None:
        bench = Bench(max_queue_delay_s=0.01)
        first = bench.submit(1)
        await asyncio.sleep(0.009)
        second = bench.submit(2)
        assert [f.batch_size for f in await asyncio.gather(first, second)] == [2, 2]

    run_virtual(main())


def test_a_full_batch_does_not_wait() -> None:
    """Once max_batch_size images are there, waiting has no point."""

    async def main() -> None:
        bench = Bench(max_queue_delay_s=5.0, max_batch_size=4)
        await asyncio.gather(*bench.submit_many(4))
        assert loop_time() < 1.0

    run_virtual(main())


def test_a_busy_model_goes_on_at_once() -> None:
    """What arrived during a batch is the next batch, without further delay."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 10.0), max_queue_delay_s=0.5)
        first = bench.submit()
        await asyncio.sleep(0.55)
        second = bench.submit()
        await first
        await second
        assert [at for at, _, _ in bench.model.batches] == pytest.approx([0.5, 0.6])

    run_virtual(main())


def test_batch_limit_is_kept() -> None:
    """Twenty images at a limit of eight make batches of 8, 8 and 4."""

    async def main() -> None:
        bench = Bench()
        results = await asyncio.gather(*bench.submit_many(20))
        assert [result.output for result in results] == list(range(20))
        assert [stats.size for stats in bench.batches] == [8, 8, 4]

    run_virtual(main())


def test_each_batch_asks_for_its_degree() -> None:
    """A new degree holds from the next batch on, and no batch mixes two."""

    async def main() -> None:
        bench = Bench(max_batch_size=4)
        futures = bench.submit_many(8)
        await asyncio.sleep(0.01)
        bench.r = 12
        results = await asyncio.gather(*futures)
        assert [result.r for result in results] == [0] * 4 + [12] * 4

    run_virtual(main())


def test_low_max_r_is_honoured_and_reported() -> None:
    """A request with a lower max_r runs in a batch of its own, which is marked as such."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 100.0 + r), r=12)
        free, strict = bench.submit(1), bench.submit(2, max_r=4)
        assert ((await free).r, (await strict).r) == (12, 4)
        assert [(stats.r, stats.limited) for stats in bench.batches] == [(12, False), (4, True)]

    run_virtual(main())


def test_load_is_observed() -> None:
    """The snapshot counts what waits, since when, what runs, what comes and how long it took."""

    async def main() -> None:
        seen: list[LoadSnapshot] = []

        def choose_r(load: LoadSnapshot) -> int:
            seen.append(load)
            return 0

        bench = Bench(FakeModel(lambda r: 10.0), choose_r=choose_r)
        bench.submit_many(3)
        await asyncio.sleep(0.1)
        bench.submit_many(5)
        await asyncio.sleep(0.1)
        load = bench.batcher.load()
        assert (load.queue_length, load.in_flight, load.queue_size) == (5, 3, 64)
        assert load.oldest_wait_s == pytest.approx(0.1)
        assert load.arrival_rate == pytest.approx(12.2, rel=0.01)  # 3 and 5 images, decaying
        assert load.steady_rate == pytest.approx(2.55, rel=0.01)
        assert load.recent_latency_s is None
        await bench.batcher.drain(10)
        assert seen[1].recent_latency_s == pytest.approx(0.302)

    run_virtual(main())


def test_a_failing_forward_fails_its_own_batch_only() -> None:
    """The batches before and after it are answered; the inside story stays inside."""

    def fault(payloads: Sequence[Any], r: int) -> Exception | None:
        return ValueError("secret path") if 5 in payloads else None

    async def main() -> None:
        bench = Bench(FakeModel(fault=fault), max_batch_size=4)
        answers = await asyncio.gather(*bench.submit_many(12), return_exceptions=True)
        kinds = [type(answer) for answer in answers]
        assert kinds == [ItemResult] * 4 + [ForwardFailed] * 4 + [ItemResult] * 4
        assert "secret" not in str(answers[4])
        assert bench.outcomes == {"ok": 8, "failed": 4}
        assert bench.batcher.alive

    run_virtual(main())


def test_the_reason_that_the_engine_gives_is_passed_on() -> None:
    """A ForwardFailed of the engine speaks to the client in its own words."""

    async def main() -> None:
        bench = Bench(FakeModel(fault=lambda payloads, r: ForwardFailed("out of memory")))
        with pytest.raises(ForwardFailed, match="out of memory"):
            await bench.submit()

    run_virtual(main())


def test_one_bad_item_leaves_its_batch_alone() -> None:
    """An output that is an exception fails that image, not its neighbours."""

    async def spoil(payloads: Sequence[Any], r: int) -> BatchOutcome:
        outputs = [ForwardFailed("not finite") if p == 1 else p for p in payloads]
        return BatchOutcome(outputs, r, 0.0, 0.01)

    async def main() -> None:
        bench = Bench(run_batch=spoil)
        answers = await asyncio.gather(*bench.submit_many(3), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ItemResult, ForwardFailed, ItemResult]

    run_virtual(main())


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_wrong_number_of_outputs_fails_the_batch(surplus: int) -> None:
    """Answers are never given to the wrong image."""

    async def miscount(payloads: Sequence[Any], r: int) -> BatchOutcome:
        return BatchOutcome(list(range(len(payloads) + surplus)), r, 0.0, 0.01)

    async def main() -> None:
        bench = Bench(run_batch=miscount)
        answers = await asyncio.gather(*bench.submit_many(3), return_exceptions=True)
        assert {type(answer) for answer in answers} == {ForwardFailed}

    run_virtual(main())


def test_a_forward_cancelled_from_elsewhere_is_a_failure() -> None:
    """An executor that drops its work does not stop the loop."""

    async def cancelled(payloads: Sequence[Any], r: int) -> BatchOutcome:
        raise asyncio.CancelledError

    async def main() -> None:
        bench = Bench(run_batch=cancelled)
        with pytest.raises(ForwardFailed):
            await bench.submit()
        assert bench.batcher.alive

    run_virtual(main())


def test_a_failing_controller_or_observer_costs_no_answer() -> None:
    """The degree stays what it was, and the loop goes on."""

    def broken(_: object) -> int:
        raise RuntimeError("broken")

    async def main() -> None:
        bench = Bench(choose_r=broken, on_batch=[broken], on_request=[broken])
        assert (await bench.submit()).r == 0
        assert (await bench.submit()).r == 0

    run_virtual(main())


def test_a_broken_loop_is_noticed() -> None:
    """If the loop itself fails, everybody is answered and the server says it is not ready."""

    def broken(now: float) -> None:
        raise RuntimeError("broken")

    async def main() -> None:
        bench = Bench()
        bench.scheduler.next_batch = broken  # type: ignore[assignment,method-assign]
        with pytest.raises(Draining):
            await bench.submit()
        assert not bench.batcher.alive
        with pytest.raises(NotReady):
            bench.submit()

    run_virtual(main())


class Chores:
    """Idle work that takes a while and notes when it was done."""

    def __init__(self, seconds: float = 0.1, error: Exception | None = None) -> None:
        self.times: list[float] = []
        self._seconds = seconds
        self._error = error

    async def step(self) -> bool:
        """Do one step."""
        self.times.append(loop_time())
        await asyncio.sleep(self._seconds)
        if self._error is not None:
            raise self._error
        return True


def test_idle_work_is_done_between_the_traffic() -> None:
    """Steps run while nobody waits, never during a batch, and a request waits for one at most."""

    async def main() -> None:
        chores = Chores(0.1)
        bench = Bench(FakeModel(lambda r: 2.0), idle_work=chores, max_queue_delay_s=0.0)
        await asyncio.sleep(1.0)
        before = len(chores.times)
        assert before == 7
        result = await bench.submit()
        assert result.queue_s <= 0.1 + 1e-9
        [batch] = bench.batches
        during = [t for t in chores.times if batch.started_at <= t < batch.started_at + 0.5]
        assert not during
        await asyncio.sleep(1.0)
        assert len(chores.times) > before

    run_virtual(main())


def test_failing_idle_work_is_tried_again() -> None:
    """A step that fails is logged; neither the traffic nor later steps suffer."""

    async def main() -> None:
        chores = Chores(0.0, ValueError("no luck"))
        bench = Bench(idle_work=chores)
        await asyncio.sleep(1.0)
        assert (await bench.submit("cat")).output == "cat"
        assert len(chores.times) > 10

    run_virtual(main())


def test_results_are_passed_on() -> None:
    """Whoever compares results later hears of each, and may fail without harm."""
    seen: list[Any] = []

    def note(payload: Any, output: Any, r: int) -> None:
        seen.append((payload, output, r))
        raise ValueError("a clumsy observer")

    async def main() -> None:
        bench = Bench(r=5, on_served=note)
        await bench.submit("cat")
        assert seen == [("cat", "cat", 5)]

    run_virtual(main())


def test_drain_finishes_what_was_admitted() -> None:
    """Refuse new, finish old: queued, running and still decoding alike."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 4.0), max_batch_size=4)
        futures = bench.submit_many(8)
        decoding = bench.batcher.reserve(1)
        drain = asyncio.create_task(bench.batcher.drain(30))
        await asyncio.sleep(0.1)
        with pytest.raises(Draining):
            bench.submit()
        await asyncio.sleep(5)
        assert not drain.done()
        futures.append(decoding.submit(Submission("decoded")))
        assert await drain
        assert all(isinstance(future.result(), ItemResult) for future in futures)
        assert bench.outcomes == {"ok": 9, "draining": 1}
        assert not bench.batcher.alive

    run_virtual(main())


def test_drain_ends_in_time() -> None:
    """What cannot be finished within the bound is answered with Draining, late arrivals too."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), max_batch_size=1)
        futures = bench.submit_many(5)
        decoding = bench.batcher.reserve(1)
        assert not await bench.batcher.drain(2.5)
        assert loop_time() == pytest.approx(2.5)
        futures.append(decoding.submit(Submission("too late")))
        answers = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(answer) for answer in answers] == [ItemResult] * 2 + [Draining] * 4

    run_virtual(main())


def test_an_idle_batcher_drains_at_once() -> None:
    """Nothing admitted, nothing to wait for; closing again is harmless."""

    async def main() -> None:
        bench = Bench()
        assert await bench.batcher.drain(30)
        await bench.batcher.close()
        assert loop_time() == 0.0

    run_virtual(main())


class TwoLanes:
    """Parts of batches side by side: one image takes 0.1 s on one of two lanes."""

    def __init__(self, busy_s: float | None = None) -> None:
        self.busy_s = busy_s
        self.free_at = [0.0, 0.0]
        self.began: list[float] = []
        self._changed = asyncio.Event()

    async def room(self) -> None:
        """Return once a lane is free."""
        while min(self.free_at) > loop_time() + 1e-9:
            await asyncio.sleep(min(self.free_at) - loop_time())

    async def run(self, payloads: Sequence[Any], r: int) -> BatchOutcome:
        """Give every payload to the lane that is free first; the batch ends with the last one."""
        now = loop_time()
        self.began.append(now)
        ends = []
        for _ in payloads:
            lane = self.free_at.index(min(self.free_at))
            self.free_at[lane] = max(now, self.free_at[lane]) + 0.1
            ends.append(self.free_at[lane])
        await asyncio.sleep(max(ends) - now)
        partial = len(payloads) < 2
        took_s = max(ends) - now
        return BatchOutcome(list(payloads), r, 0.0, took_s, partial, self.busy_s)


def test_the_next_batch_begins_on_a_lane_that_is_free() -> None:
    """Three images on two lanes leave one idle for 0.1 s: the next batch begins there."""

    async def main() -> None:
        machine = TwoLanes()
        bench = Bench(
            run_batch=machine.run, room=machine.room, max_batch_size=3, batch_s=lambda r, n: 0.2
        )
        await asyncio.gather(*bench.submit_many(3), *bench.submit_many(3))
        assert machine.began == pytest.approx([0.0, 0.1])
        assert loop_time() == pytest.approx(0.3)  # without a break: six images, two lanes

    run_virtual(main())


def test_what_two_batches_share_is_counted_once() -> None:
    """A batch kept others waiting from the end of the one before it."""

    async def main() -> None:
        machine = TwoLanes()
        bench = Bench(
            run_batch=machine.run, room=machine.room, max_batch_size=3, batch_s=lambda r, n: 0.2
        )
        await asyncio.gather(*bench.submit_many(3), *bench.submit_many(3))
        first, second = bench.batches
        assert (first.busy_s, second.busy_s) == pytest.approx((0.2, 0.1))
        assert second.overlap_s == pytest.approx(0.1)
        assert (first.ended_at, second.ended_at) == pytest.approx((0.2, 0.3))

    run_virtual(main())


def test_a_lane_tells_better_for_how_long_others_waited() -> None:
    """Who ended first of two that ran side by side is chance; the lane's own time is not."""

    async def main() -> None:
        machine = TwoLanes(busy_s=0.15)
        bench = Bench(
            run_batch=machine.run, room=machine.room, max_batch_size=3, batch_s=lambda r, n: 0.2
        )
        await asyncio.gather(*bench.submit_many(3), *bench.submit_many(3))
        first, second = bench.batches
        assert (first.busy_s, second.busy_s) == pytest.approx((0.2, 0.15))
        assert (first.ended_at, second.ended_at) == pytest.approx((0.2, 0.3))

    run_virtual(main())
