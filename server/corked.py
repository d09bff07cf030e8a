"""The head of an answer and its body in one system call.

uvicorn writes an answer's head as soon as it is told, and its body a moment later; uvloop hands
each over to the kernel at once. That is two system calls, two packets, and two wake-ups of whoever
reads them, for an answer of a kilobyte. Here a head waits for what follows, at most until the event
loop turns.
"""

import asyncio
from typing import Any

HEAD = b"HTTP/1."


class CorkedTransport:
    """A transport that keeps the head of an answer back for what follows.

    All else is the transport's own.

    Args:
        transport: of the connection.
        loop: the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Write what was kept back and this, or keep this back."""
        head = self._head
        if head is not None:
            self._head = None
            self._transport.write(head + data)
        elif data.startswith(HEAD):
            self._head = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write what was kept back, if anything was and the connection is still there."""
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._transport.write(head)

    def close(self) -> None:
        """Write what was kept back and close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
