"""Groups of images side by side, their outcomes in order: on threads, or as tasks of an event loop.

Twice as many groups are begun as run at once, so that a slow one at the front does not idle the
others; further ones are not even taken from their source until outcomes were fetched.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from tocom_client.classifying import Item, Outcome, Tally

AHEAD = 2


def on_threads(
    groups: Iterator[list[Item]],
    outcomes_of: Callable[[list[Item]], list[Outcome]],
    concurrency: int,
    tally: Tally,
) -> Generator[Outcome, None, None]:
    """Each group on a thread; to close the generator gives up what has not begun."""
    waiting: deque[Future[list[Outcome]]] = deque()
    with ThreadPoolExecutor(concurrency, "tocom-client") as pool:
        try:
            for group in groups:
                waiting.append(pool.submit(outcomes_of, group))
                while waiting and (waiting[0].done() or len(waiting) >= AHEAD * concurrency):
                    yield from map(tally.add, waiting.popleft().result())
            while waiting:
                yield from map(tally.add, waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()


async def as_tasks(
    groups: AsyncIterator[list[Item]],
    outcomes_of: Callable[[list[Item]], Awaitable[list[Outcome]]],
    concurrency: int,
    tally: Tally,
) -> AsyncGenerator[Outcome, None]:
    """Each group a task; to close the generator cancels what is under way."""
    room = asyncio.Semaphore(concurrency)
    waiting: deque[asyncio.Task[list[Outcome]]] = deque()

    async def in_turn(group: list[Item]) -> list[Outcome]:
        async with room:
            return await outcomes_of(group)

    try:
        async for group in groups:
            waiting.append(asyncio.create_task(in_turn(group)))
            while waiting and (waiting[0].done() or len(waiting) >= AHEAD * concurrency):
                for outcome in await waiting.popleft():
                    yield tally.add(outcome)
        while waiting:
            for outcome in await waiting.popleft():
                yield tally.add(outcome)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
