"""The live feed: samples the server once a second, and hands each snapshot to whoever listens.

Without a listener a sample costs a millisecond a second at most and goes into the history only. A
listener that does not keep up is let go, so that it holds neither memory nor the end of the server.
All of it lives on the event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from server.errors import Busy, Draining
from server.history import SAMPLE_EVERY_S, Snapshot
from server.interruption import Interruption

logger = logging.getLogger(__name__)

MOST_LISTENERS = 32
BACKLOG = 10
"""Snapshots that wait for a slow listener."""
LAST_WORDS_S = 1.0
"""How long a listener may take to hear what is left when the feed ends."""


class FeedEnded(Exception):
    """The listener was let go: it was too slow, or the server shuts down."""


class Listener:
    """One who gets every snapshot, until ``next`` returns None or ``scope`` is interrupted.

    Attributes:
        scope: everything that the listener waits for should be inside of it.
    """

    def __init__(self) -> None:
        self.scope = Interruption()
        self._waiting: asyncio.Queue[Snapshot | None] = asyncio.Queue(BACKLOG + 1)

    async def next(self) -> Snapshot | None:
        """Wait for the next snapshot; None: there will be no more."""
        return await self._waiting.get()

    def tell(self, snapshot: Snapshot) -> bool:
        """Queue a snapshot; False if too many wait already."""
        if self._waiting.qsize() >= BACKLOG:
            return False
        self._waiting.put_nowait(snapshot)
        return True

    def end(self) -> None:
        """Say that nothing follows, and give it a moment to hear that."""
        self._waiting.put_nowait(None)
        with suppress(RuntimeError):  # no event loop: nobody is listening
            self.scope.interrupt_after(LAST_WORDS_S, FeedEnded())


class Feed:
    """Samples and listeners.

    Args:
        sample: takes and keeps a snapshot of the server.
        most_listeners: further ones are refused.
    """

    def __init__(
        self, sample: Callable[[], Snapshot], most_listeners: int = MOST_LISTENERS
    ) -> None:
        self._sample = sample
        self._most = most_listeners
        self._listeners: set[Listener] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return how many listen."""
        return len(self._listeners)

    def join(self) -> Listener:
        """Begin to listen; to be ended with ``leave``.

        Raises:
            Draining: the server is shutting down.
            Busy: too many listen already.
        """
        if self._closed:
            raise Draining
        if len(self._listeners) >= self._most:
            raise Busy(
                f"{self._most} clients watch already; close one of them, or ask /metrics instead",
                retry_after_s=10,
            )
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """End listening; harmless when done twice."""
        self._listeners.discard(listener)

    async def run(self) -> None:
        """Sample for as long as the server lives."""
        while not self._closed:
            await asyncio.sleep(SAMPLE_EVERY_S)
            self.tick()

    def tick(self) -> None:
        """Take one sample and tell the listeners; a failure is logged, and the next may go well."""
        try:
            snapshot = self._sample()
        except Exception:
            logger.exception("sampling the server failed")
            return
        for listener in tuple(self._listeners):
            if not listener.tell(snapshot):
                logger.info("a listener of /events did not keep up and is let go")
                self.leave(listener)
                listener.scope.interrupt(FeedEnded())

    def close(self) -> None:
        """Tell the last state and let all listeners go; further ones are refused."""
        if self._closed:
            return
        self.tick()
        self._closed = True
        for listener in tuple(self._listeners):
            self.leave(listener)
            listener.end()
