"""How an admitted image can end without a result: its client leaves, its deadline passes."""

import asyncio

import pytest

from server.errors import DeadlineExpired, Overloaded
from tests.server.fakes import Bench, FakeModel, loop_time, run_virtual


def test_a_client_that_leaves_is_forgotten_before_the_model() -> None:
    """Cancelled work is dropped from the queue and counted as abandoned."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), max_batch_size=1)
        running, waiting, last = bench.submit("a"), bench.submit("b"), bench.submit("c")
        await asyncio.sleep(0.5)
        waiting.cancel()
        running.cancel()
        assert (await last).output == "c"
        assert bench.model.served == ["a", "c"]
        assert bench.outcomes == {"abandoned": 2, "ok": 1}

    run_virtual(main())


def test_leaving_in_the_same_moment_as_the_batch_forms() -> None:
    """A cancellation whose callback has not run yet is seen all the same."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), max_batch_size=1, max_queue_delay_s=0.0)
        running, gone, last = bench.submit("a"), bench.submit("gone"), bench.submit("c")
        # Due in the same turn of the loop as the end of the first batch, just after it.
        asyncio.get_running_loop().call_at(1.0 + 1e-10, gone.cancel)
        await asyncio.gather(running, last)
        assert bench.model.served == ["a", "c"]
        assert bench.outcomes == {"ok": 2, "abandoned": 1}

    run_virtual(main())


def test_a_waiting_request_expires_at_its_deadline() -> None:
    """The answer comes at the deadline, not when the model has time; the model never sees it."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), max_batch_size=1, batch_s=lambda r, size: 0.1)
        bench.submit("slow")
        await asyncio.sleep(0.1)
        late = bench.submit("late", deadline=0.25)
        with pytest.raises(DeadlineExpired, match="waited in the queue"):
            await late
        assert loop_time() == pytest.approx(0.25)
        await bench.batcher.drain(10)
        assert bench.model.served == ["slow"]
        assert bench.outcomes == {"ok": 1, "expired": 1}
        assert bench.scheduler.load(loop_time()).late == 1

    run_virtual(main())


def test_a_running_request_expires_at_its_deadline() -> None:
    """No success is reported after the deadline; the batch's other images are answered."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), batch_s=lambda r, size: 0.1 * size, slo_s=5.0)
        late, fine = bench.submit("late", deadline=0.5), bench.submit("fine")
        with pytest.raises(DeadlineExpired, match="being computed"):
            await late
        assert loop_time() == pytest.approx(0.5)
        assert (await fine).output == "fine"
        assert bench.outcomes == {"expired": 1, "ok": 1}
        assert bench.scheduler.load(loop_time()).late == 1

    run_virtual(main())


def test_a_deadline_in_the_past_never_reaches_the_model() -> None:
    """Decoding took too long: 504 at once."""

    async def main() -> None:
        bench = Bench()
        await asyncio.sleep(1.0)
        with pytest.raises(DeadlineExpired):
            await bench.submit(deadline=0.5)
        await asyncio.sleep(1.0)
        assert bench.model.batches == []

    run_virtual(main())


def test_work_that_cannot_be_in_time_is_not_begun() -> None:
    """Its deadline has not passed, but no batch could be done by then: 504 now, no compute."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), max_batch_size=1)
        running = bench.submit("running")
        await asyncio.sleep(0.1)
        late = bench.submit("late", deadline=1.5)
        await running
        with pytest.raises(DeadlineExpired, match="cannot be kept"):
            await late
        assert loop_time() == pytest.approx(1.0)
        with pytest.raises(DeadlineExpired, match="however light the load"):
            bench.submit("hopeless", deadline=loop_time() + 0.2)
        assert bench.model.served == ["running"]
        assert bench.outcomes == {"ok": 1, "expired": 2}

    run_virtual(main())


def test_a_large_request_is_not_late_by_its_own_size() -> None:
    """On an idle server 32 images are served, though they take longer than the SLO of one."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 20.0), slo_s=0.5, shed_late=True)
        results = await asyncio.gather(*bench.submit_many(32))
        assert len(results) == 32
        with pytest.raises(DeadlineExpired, match="however light the load"):
            bench.submit_many(32, deadline=loop_time() + 0.5)
        assert bench.outcomes == {"ok": 32, "expired": 32}

    run_virtual(main())


def test_what_would_be_late_is_shed_with_a_time_to_come_back() -> None:
    """Without a deadline of its own a request that cannot keep the SLO is refused, not served."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 10.0), slo_s=1.0, shed_late=True, max_batch_size=2)
        for _ in range(10):
            bench.submit()
        with pytest.raises(Overloaded) as refused:
            bench.submit()
        assert refused.value.headers == {"Retry-After": "1"}
        bench.model.images_per_s = lambda r: 2.0  # the machine slows down after the admission
        await bench.batcher.drain(20)
        assert bench.outcomes["ok"] + bench.outcomes["shed"] == 11
        assert bench.outcomes["shed"] > 1

    run_virtual(main())
