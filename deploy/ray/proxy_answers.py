"""What Ray's proxy answers in its own words, in ours.

A replica that dies takes the requests that it held with it. Ray's proxy then ends such a request
without an answer, which its client sees as a bare 500. Around the proxy, this layer answers 503 as
`application/problem+json` with `Retry-After` instead: a classification may be sent again as it is.
What else the proxy says by itself (no replica to be had, no application) is put the same way.

Ray loads it into each proxy where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` is
`deploy.ray.proxy_answers:middlewares`.
"""

import json
from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.request_ids import identify

CALLBACK = "deploy.ray.proxy_answers:middlewares"
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"

_ID = b"x-request-id"
_RAYS_OWN = "/-/"
"""Paths below it are the proxy's: its health and routes, which have readers of their own."""

_LOST = (
    "replica-lost",
    "Replica lost",
    503,
    "The replica that held this request is gone; send it again, another one will take it.",
)
_SAID: dict[int, tuple[str, str, int, str]] = {
    404: (
        "not-found",
        "Not Found",
        404,
        "No application is deployed here yet, or none at this path.",
    ),
    408: (
        "request-timeout",
        "Request Timeout",
        408,
        "The time that Ray's proxy gives a request (request_timeout_s) is over.",
    ),
    429: ("queue-full", "Queue full", 429, "All replicas hold as many requests as they may."),
    503: ("not-ready", "Not ready", 503, "No replica can take requests now; try again shortly."),
}


def middlewares() -> list[Middleware]:
    """What Ray puts around its proxy."""
    return [Middleware(ProxyAnswers)]


class ProxyAnswers:
    """A layer of ASGI around Ray's proxy; see above.

    It also sees to it that a request has an id that every side takes, and an answer carries it
    once: both the proxy and the server add theirs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http" or scope["path"].startswith(_RAYS_OWN):
            await self._app(scope, receive, send)
            return
        request_id, _ = identify(scope["headers"])
        others = [(name, value) for name, value in scope["headers"] if name != _ID]
        scope = {**scope, "headers": [*others, (_ID, request_id.encode())]}
        answer = _Answer(send, request_id)
        await self._app(scope, receive, answer.send)
        if not answer.begun:
            await answer.problem(*_LOST)


class _Answer:
    """One answer on its way out."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._replaced = False
        self.begun = False

    async def send(self, message: Message) -> None:
        """Pass a message on, unless the proxy speaks for itself."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            headers: Sequence[tuple[bytes, bytes]] = message.get("headers", [])
            said = _SAID.get(message["status"])
            if said is not None and _is_rays(headers):
                self._replaced = True
                retry = [value for name, value in headers if name.lower() == b"retry-after"]
                await self.problem(*said, retry_after=retry[0] if retry else b"1")
                return
            self.begun = True
            message = {**message, "headers": self._with_one_id(headers)}
        await self._send(message)

    async def problem(
        self, kind: str, title: str, status: int, detail: str, retry_after: bytes = b"1"
    ) -> None:
        """Answer with a problem document."""
        self.begun = True
        problem = {
            "type": f"/problems/{kind}",
            "title": title,
            "status": status,
            "detail": detail,
            "request_id": self._request_id,
        }
        body = json.dumps(problem).encode()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (_ID, self._request_id.encode()),
            *([(b"retry-after", retry_after)] if status in (429, 503) else []),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _with_one_id(self, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        others = [(name, value) for name, value in headers if name.lower() != _ID]
        return [*others, (_ID, self._request_id.encode())]


def _is_rays(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether an error is the proxy's own: the server's are problem documents."""
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return not kinds or kinds[0].startswith(b"text/plain")
