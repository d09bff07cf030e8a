"""A server that plays a script in virtual time, and either client against it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tocom_client import AsyncClient, Client

Kind = Literal["sync", "async"]
Step = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]

PREDICTIONS = [{"label": "cat", "index": 3, "score": 0.75}]
RESULT = {
    "filename": None,
    "r": 4,
    "batch_size": 2,
    "queue_ms": 1.5,
    "compute_ms": 30,
    "predictions": PREDICTIONS,
}
JPEG = b"\xff\xd8\xff and so on"


@dataclass
class Script:
    """Answers in turn what it was given; an exception is raised in the answer's place.

    The last step is repeated. `(2.5, step)` takes 2.5 virtual seconds. Waits take virtual time too.
    """

    steps: tuple[Any, ...]
    draw: float = 0.0
    now: float = 1000.0
    requests: list[httpx.Request] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Play the next step."""
        step = self.steps[min(len(self.requests), len(self.steps) - 1)]
        self.requests.append(request)
        self.sent_at.append(self.now)
        if isinstance(step, tuple):
            took_s, step = step
            self.now += took_s
        if isinstance(step, Exception):
            raise step
        if callable(step):
            return step(request)
        assert isinstance(step, httpx.Response)
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.slept.append(seconds)
        self.now += seconds

    async def sleep_on_loop(self, seconds: float) -> None:
        """The same for tasks."""
        self.sleep(seconds)

    def client(self, kind: Kind, **options: Any) -> Any:
        """A client that talks to nobody else."""
        given: dict[str, Any] = {
            "base_url": "http://tocom.example",
            "transport": httpx.MockTransport(self),
            "clock": lambda: self.now,
            "draw": lambda: self.draw,
            "api_key": "",
            **options,
        }
        if kind == "sync":
            return Client(sleep=self.sleep, **given)
        return AsyncClient(sleep=self.sleep_on_loop, **given)

    def ask(self, kind: Kind, method: str, *args: Any, **options: Any) -> Any:
        """Call one method of a fresh client."""
        return ask(self.client(kind), method, *args, **options)

    def queries(self, name: str) -> list[str | None]:
        """A query parameter of each request."""
        return [request.url.params.get(name) for request in self.requests]


def ask(client: Any, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of either client; an async generator becomes a list, as a generator does."""

    async def awaited() -> Any:
        async with client:
            asked = getattr(client, method)(*args, **options)
            if isinstance(asked, Awaitable):
                return await asked
            return [one async for one in asked]

    if isinstance(client, AsyncClient):
        return asyncio.run(awaited())
    with client:
        found = getattr(client, method)(*args, **options)
        return list(found) if method == "classify_many" else found


def served(count: int = 1) -> httpx.Response:
    """So many good results."""
    body = {"request_id": "theirs", "model": "some model", "results": [RESULT] * count}
    return httpx.Response(200, json=body)


def served_as_many_as_sent(request: httpx.Request) -> httpx.Response:
    """A good result for each image of the request."""
    return served(images_in(request))


def images_in(request: httpx.Request) -> int:
    """How many images a request brings."""
    return max(1, request.content.count(b'name="file"'))


def problem(status: int, slug: str, **headers: str) -> httpx.Response:
    """A problem document."""
    document = {
        "type": f"/problems/{slug}",
        "title": slug,
        "status": status,
        "detail": f"{slug} happened",
        "request_id": "theirs",
    }
    shown = {"Content-Type": "application/problem+json"}
    shown |= {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=shown, content=json.dumps(document))
