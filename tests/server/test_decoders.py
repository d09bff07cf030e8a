"""The decoders' threads: every job ends in its future, or is dropped."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from server.decoders import Decoders


def tell(story: Callable[[Decoders], Awaitable[None]], threads: int = 1) -> None:
    """Run a story with decoders that are closed in the end."""

    async def run() -> None:
        decoders = Decoders(threads)
        await story(decoders)
        decoders.close()
        for thread in decoders._threads:
            thread.join(10)
            assert not thread.is_alive()

    asyncio.run(run())


def test_results_and_errors_come_back() -> None:
    """Each future ends as its job did, and a job that fails costs nobody its thread."""

    def fail() -> None:
        raise KeyError("broken")

    async def story(decoders: Decoders) -> None:
        failing, names = decoders.run(fail), []
        for _ in range(5):
            names.append(await decoders.run(lambda: threading.current_thread().name))
        assert set(names) == {"decode_0"}
        with pytest.raises(KeyError, match="broken"):
            await failing

    tell(story)


def test_jobs_run_side_by_side() -> None:
    """Two jobs that wait for each other both end."""

    async def story(decoders: Decoders) -> None:
        both = threading.Barrier(2)
        await asyncio.gather(*(decoders.run(lambda: both.wait(10)) for _ in range(2)))

    tell(story, threads=2)


def test_a_cancelled_job_is_not_run() -> None:
    """What is cancelled while it waits is dropped; what runs already ends unheard."""

    async def story(decoders: Decoders) -> None:
        go, done = threading.Event(), []
        running = decoders.run(lambda: go.wait(10))
        waiting = decoders.run(lambda: done.append("cancelled"))
        last = decoders.run(lambda: done.append("last"))
        waiting.cancel()
        running.cancel()
        go.set()
        await last
        assert done == ["last"] and running.cancelled()

    tell(story)


def test_closing_cancels_what_waits() -> None:
    """Nobody waits for ever for decoders that are gone, and nobody can ask them for more."""

    async def story(decoders: Decoders) -> None:
        go, begun = threading.Event(), threading.Event()

        def hold() -> bool:
            begun.set()
            return go.wait(10)

        running = decoders.run(hold)
        waiting = decoders.run(lambda: None)
        assert begun.wait(10)
        decoders.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            decoders.run(lambda: None)
        go.set()
        assert await running is True

    tell(story)


def test_a_job_may_outlive_its_event_loop() -> None:
    """A hanging decoder that comes back after the end of the server breaks nothing."""
    go, decoders = threading.Event(), Decoders(1)

    async def leave() -> None:
        decoders.run(lambda: go.wait(10))

    asyncio.run(leave())
    go.set()
    decoders.close()
    decoders._threads[0].join(10)
    assert not decoders._threads[0].is_alive()
