"""Listeners of the live feed: what they get, and how they are let go."""

import asyncio
import logging
from typing import Any

import pytest

from server.errors import Busy, Draining
from server.feed import BACKLOG, LAST_WORDS_S, Feed, FeedEnded
from server.history import SAMPLE_EVERY_S
from tests.server.fakes import loop_time, run_virtual


class Counting:
    """Samples that are numbers, and a fault on demand."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None

    def __call__(self) -> Any:
        """Return the next number."""
        self.count += 1
        if self.error is not None:
            raise self.error
        return self.count


def test_every_listener_gets_every_sample() -> None:
    """Once a second, in order, from joining on."""

    async def story() -> None:
        feed: Any = Feed(Counting())
        running = asyncio.create_task(feed.run())
        first = feed.join()
        assert await first.next() == 1
        second = feed.join()
        assert [await first.next(), await first.next()] == [2, 3]
        assert [await second.next(), await second.next()] == [2, 3]
        assert loop_time() == pytest.approx(3 * SAMPLE_EVERY_S)
        running.cancel()

    run_virtual(story())


def test_listeners_are_bounded() -> None:
    """One too many is refused with a time to come back; who leaves makes room."""

    async def story() -> None:
        feed: Any = Feed(Counting(), most_listeners=2)
        first, _ = feed.join(), feed.join()
        with pytest.raises(Busy) as refused:
            feed.join()
        assert int(refused.value.headers["Retry-After"]) >= 1
        feed.leave(first)
        feed.leave(first)
        feed.join()
        assert len(feed) == 2

    run_virtual(story())


def test_a_slow_listener_is_dropped() -> None:
    """Whatever it waits for ends, and the others go on."""

    async def story() -> None:
        feed: Any = Feed(Counting())
        slow, quick = feed.join(), feed.join()

        async def stuck() -> None:
            async with slow.scope:
                await asyncio.Event().wait()

        waiting = asyncio.create_task(stuck())
        await asyncio.sleep(0)
        for n in range(BACKLOG + 1):
            feed.tick()
            assert await quick.next() == n + 1
        with pytest.raises(FeedEnded):
            await waiting
        assert len(feed) == 1

    run_virtual(story())


def test_the_end_is_told() -> None:
    """At the end each listener gets the last state and then None; nobody joins any more."""

    async def story() -> None:
        feed: Any = Feed(Counting())
        running = asyncio.create_task(feed.run())
        listener = feed.join()
        async with listener.scope:
            feed.close()
            assert [await listener.next(), await listener.next()] == [1, None]
        with pytest.raises(Draining):
            feed.join()
        feed.close()
        await running

    run_virtual(story())


def test_who_does_not_hear_the_end_is_cut_off() -> None:
    """A listener that is stuck holds the server for a moment only."""

    async def story() -> None:
        feed: Any = Feed(Counting())
        listener = feed.join()
        with pytest.raises(FeedEnded):
            async with listener.scope:
                feed.close()
                await asyncio.Event().wait()
        assert loop_time() == pytest.approx(LAST_WORDS_S)

    run_virtual(story())


def test_a_failing_sample_is_logged_and_the_feed_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One bad second does not end the feed."""

    async def story() -> None:
        sample = Counting()
        feed: Any = Feed(sample)
        listener = feed.join()
        sample.error = RuntimeError("no reading")
        with caplog.at_level(logging.ERROR):
            feed.tick()
        sample.error = None
        feed.tick()
        assert await listener.next() == 2
        assert "no reading" in caplog.text

    run_virtual(story())
