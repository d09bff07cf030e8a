"""The server's application as a replica of Ray Serve: warm before it is asked, and in the fleet.

The application is the one of `tocom serve`, with its queue, scheduler, limits and controller. What
`serving` does around it for a process is done here for a replica: it is ready only when the model
is warm and what is asked of all replicas is known, and its answers carry the same headers.
"""

import gc
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from deploy.ray.fleet_link import FleetLink
from server.app import Application
from server.security import HEADERS

JOIN_WITHIN_S = 30.0
"""A replica that starts waits so long for the control room, which may be starting as well."""

_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS]


class FleetApplication:
    """An ASGI application around the server's.

    Args:
        app: the server's, with the handlers of `fleet_routes`.
        link: to the other replicas.
        join_within_s: how long the start waits to learn what is asked of all.
        on_end: called when all is drained.
    """

    def __init__(
        self,
        app: Application,
        link: FleetLink,
        join_within_s: float = JOIN_WITHIN_S,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._link = link
        self._join_within_s = join_within_s
        self._on_end = on_end
        app.state.link = link  # where `fleet_routes` finds it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_and_leave() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._link.close()
            return message

        async def send_once_ready(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._app.state.starting
                except Exception as error:  # Ray starts another replica, and shows this one's words
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
                else:
                    await self._link.join(self._join_within_s)
                    # As `serving` does: what lives for good need not be looked through again.
                    gc.collect()
                    gc.freeze()
            elif message["type"] == "lifespan.shutdown.complete":
                self._on_end()
                gc.unfreeze()
            await send(message)

        await self._app(scope, receive_and_leave, send_once_ready)
