"""End whatever a request is waiting for, from outside and with a reason.

A request waits for its body, for the decoders, for a batch.  Its deadline may pass, its client may
hang up or the server may shut down meanwhile; each of these ends the wait by the same path.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""How ASGI delivers a request's body and the news that its client is gone."""


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


class Interruption:
    """A block of awaits that can be ended by an exception from elsewhere on the event loop.

    An asynchronous context manager, to be used once; raises the reason if it was interrupted.
    """

    def __init__(self) -> None:
        self._scope = asyncio.timeout(None)
        self._open = False
        self._reason: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self.clear_timer()
        if self._watcher is not None:
            self._watcher.cancel()
        try:
            await self._scope.__aexit__(kind, error, traceback)
        except TimeoutError:
            if self._reason is None:
                raise
            raise self._reason from None

    def interrupt(self, reason: Exception) -> None:
        """End the block with ``reason``; the first one counts, and none after its end."""
        if self._open and self._reason is None:
            self._reason = reason
            self._scope.reschedule(asyncio.get_running_loop().time())

    def interrupt_after(self, delay_s: float, reason: Exception) -> None:
        """End the block with ``reason`` unless it ended or the timer was cleared before."""
        self.clear_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, delay_s), self.interrupt, reason)

    def clear_timer(self) -> None:
        """Forget ``interrupt_after``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, receive: Receive) -> None:
        """Interrupt with ``ClientGone`` when the client hangs up; its body must have been read."""
        self._watcher = asyncio.create_task(self._wait_for_disconnect(receive))

    async def _wait_for_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.interrupt(ClientGone())


async def body_chunks(receive: Receive, take: Callable[[int], None]) -> AsyncIterator[bytes]:
    """The request's body as it arrives.

    Args:
        receive: where it comes from.
        take: called with the length of each chunk before it is passed on; may refuse it.

    Raises:
        ClientGone: the client hung up before the end.
    """
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        take(len(chunk))
        yield chunk
        if not message.get("more_body", False):
            return
