"""``GET /events``: what the server does, once a second, as server-sent events.

An event ``history`` comes first, with the snapshots of the last minutes, so that charts are full at
once; then an event ``snapshot`` a second.  The stream ends when the server drains.
"""

import asyncio
from contextlib import suppress
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from server.errors import Busy, Draining
from server.feed import LAST_WORDS_S, FeedEnded
from server.history import SAMPLE_EVERY_S
from server.interruption import ClientGone
from server.problems import documented
from server.service import Service

router = APIRouter()

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_S = 10.0
"""So long a silence at most: proxies close connections on which nothing is said."""

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}


@router.get(
    "/events",
    tags=["health"],
    summary="The server's state once a second, as server-sent events",
    response_class=Response,
    responses={
        200: {
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
            "description": "First `history` (latency objective, last minutes), then a `snapshot` "
            "a second, without end.",
        },
        **documented(Busy, Draining),
    },
)
async def events(request: Request) -> Response:
    """Load, queue, latency percentiles, degree and accuracy; what the console draws.

    Try `curl -N localhost:8000/events`. Ends when the server shuts down, or when the client does
    not keep up.
    """
    return EventStream(cast(Service, request.app.state.service))


class EventStream(Response):
    """One listener's stream, from joining the feed to leaving it.

    Args:
        service: whose feed.

    Raises:
        Busy: too many listen.
        Draining: the server is shutting down.
    """

    media_type = MEDIA_TYPE

    def __init__(self, service: Service) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._service = service
        self._listener = service.feed.join()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client or the server has had enough."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            with suppress(FeedEnded):
                async with self._listener.scope as interruption:
                    interruption.watch(receive)
                    await send(start)
                    await self._tell(send)
        except ClientGone:
            return
        finally:
            self._service.feed.leave(self._listener)
        with suppress(TimeoutError):  # nothing can be said to a client that does not read
            await asyncio.wait_for(_send(send, b"", more=False), LAST_WORDS_S)

    async def _tell(self, send: Send) -> None:
        await _send(send, event("history", self._history()))
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    snapshot = await self._listener.next()
            except TimeoutError:
                await _send(send, b": still here\n\n")
                continue
            if snapshot is None:
                return
            await _send(send, event("snapshot", snapshot))

    def _history(self) -> dict[str, Any]:
        settings = self._service.settings
        return {
            "slo_ms": settings.slo_ms,
            "queue_size": settings.queue_size,
            "every_s": SAMPLE_EVERY_S,
            "snapshots": self._service.history.snapshots,
        }


def event(name: str, data: Any) -> bytes:
    """One server-sent event with JSON, which has no line breaks."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data))


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
