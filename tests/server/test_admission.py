"""Admission: all images of a request or none, before anything is decoded."""

import asyncio

import pytest

from server.batcher import Submission
from server.errors import BadParameter, QueueFull
from tests.server.fakes import Bench, FakeModel, run_virtual


def test_all_or_none() -> None:
    """A request that does not fit whole is refused whole, with a time to come back."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 2.0), queue_size=8)
        bench.submit()
        await asyncio.sleep(1.0)  # one image served: two images/s are known
        futures = bench.submit_many(6)
        with pytest.raises(QueueFull) as refused:
            bench.submit_many(3)
        assert refused.value.headers == {"Retry-After": "3"}
        assert "6 of 8" in refused.value.detail
        bench.submit_many(2)
        await bench.batcher.drain(60)
        assert bench.outcomes == {"ok": 9, "shed": 3}
        assert all(future.done() for future in futures)

    run_virtual(main())


def test_reserved_places_count_before_anything_is_decoded() -> None:
    """Places are taken at the reservation; unused ones come back at its end, once."""

    async def main() -> None:
        bench = Bench(queue_size=4)
        with bench.batcher.reserve(3) as reservation:
            with pytest.raises(QueueFull):
                bench.batcher.reserve(2)
            reservation.submit(Submission("good"))
            assert reservation.places == 2
        reservation.release()
        with bench.batcher.reserve(3) as again:
            assert again.places == 3
        assert bench.outcomes["shed"] == 2

    run_virtual(main())


def test_places_come_back_when_decoding_breaks_off() -> None:
    """A client that leaves during decoding frees its places."""

    async def main() -> None:
        bench = Bench(queue_size=4)

        async def handler() -> None:
            with bench.batcher.reserve(4):
                await asyncio.sleep(10)

        task = asyncio.create_task(handler())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        bench.batcher.reserve(4).release()

    run_virtual(main())


def test_running_images_hold_no_places() -> None:
    """The queue bounds what waits; a batch that runs has left it."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), queue_size=4, max_batch_size=4, slo_s=60)
        bench.submit_many(4)
        await asyncio.sleep(0.5)
        assert len(bench.submit_many(4)) == 4

    run_virtual(main())


def test_a_reservation_cannot_be_overdrawn() -> None:
    """More submissions than places is a bug of the caller, said so."""

    async def main() -> None:
        with Bench().batcher.reserve(1) as reservation:
            reservation.submit(Submission(1))
            with pytest.raises(RuntimeError, match="no place is left"):
                reservation.submit(Submission(2))

    run_virtual(main())


def test_more_than_the_queue_ever_holds_is_a_bad_request() -> None:
    """Coming back later would not help, so it is not 429."""

    async def main() -> None:
        with pytest.raises(BadParameter, match=r"65 images .* queue of 64"):
            Bench().batcher.reserve(65)

    run_virtual(main())


def test_refused_images_count_as_arrivals() -> None:
    """The controller must see the load that is offered, not the one that fits."""

    async def main() -> None:
        bench = Bench(FakeModel(lambda r: 1.0), queue_size=1)
        bench.submit()
        for _ in range(9):
            with pytest.raises(QueueFull):
                bench.submit()
        assert bench.batcher.load().steady_rate == pytest.approx(10 / 3)

    run_virtual(main())
