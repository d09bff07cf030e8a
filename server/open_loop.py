"""An open-loop client for `POST /classify`: a request leaves when due, not when there is room.

A closed loop (so many connections, each waiting for its answer) slows down with the server and is
blind to the queue that real users would stand in. Here the arrival times are drawn beforehand, and
latency counts from the time at which a request was due. Nothing here judges; needs aiohttp.

The load is not sent by `tocom_client`: that client waits, repeats and gives up as a good caller
should, which is the opposite of what is measured here, and takes seven times aiohttp's time for a
request, on cores that the server under test needs. It does what an operator would: `Client.control`
reads and turns the dial, each request once. Both show the key in `TOCOM_API_KEY`, if there is
one.
"""

import asyncio
import gc
import json
import math
import os
import random
import re
import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from tocom_client import NEVER, AsyncClient, TocomClientError

CONNECTIONS = 2000
"""More than ever wait at the server; beyond it requests wait here, and their latency counts on."""
KEEP_ALIVE_S = 3.0
"""Below the 5 s after which uvicorn closes an idle connection: a request could meet the close."""
TIMEOUT_S = 60.0
REFUSED_PAUSE_S = 1.0
"""Who comes back at once after a refusal costs the server time that the capacity would miss."""


@dataclass(frozen=True, slots=True)
class Served:
    """What an answer says of one image; `index` is the likeliest class."""

    r: int
    batch_size: int
    queue_ms: float
    compute_ms: float
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's fate; times are the event loop's, in seconds. Status 0: no answer came.

    `photo` is the place of the (first) photograph in the sequence that the client was given.
    """

    photo: int
    due_s: float
    sent_s: float
    done_s: float
    status: int
    images: tuple[Served, ...] = ()
    retry_after_s: float | None = None
    error: str = ""

    @property
    def latency_s(self) -> float:
        """From when the request was due to the end of its answer."""
        return self.done_s - self.due_s

    @property
    def lag_s(self) -> float:
        """How much later than due this client sent it."""
        return self.sent_s - self.due_s


@dataclass(frozen=True, slots=True)
class Sample:
    """The server's own view at one moment, and how long it took to tell."""

    at_s: float
    took_s: float
    mode: str
    r: int
    queue_depth: float


@dataclass(slots=True)
class Watch:
    """What a `watch` has seen so far."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Client:
    """Keeps its connections open and sends one photo after the other.

    While one is open, the garbage collector leaves alone what was there before: looking through all
    of this process's imports takes it a quarter of a second, in which no answer would be received
    and the server under test would lack a core.

    Args:
        url: where the server is.
        photos: JPEG files; sent in a shuffled order, over and over.
        seed: of that order.
        deadline_ms: sent with each request; None: none. May be changed between requests.

    Attributes:
        control: the same server as its operator sees it; nothing that it sends is repeated.
    """

    control: AsyncClient

    def __init__(
        self, url: str, photos: Sequence[bytes], seed: int, deadline_ms: float | None = None
    ) -> None:
        self._url = url
        self._photos = photos
        self._order = list(range(len(photos)))
        random.Random(seed).shuffle(self._order)
        self.deadline_ms = deadline_ms
        self._sent = 0

    async def __aenter__(self) -> Self:
        raise_file_limit()
        gc.collect()
        gc.freeze()
        self._loop = asyncio.get_running_loop()
        key = os.environ.get("TOCOM_API_KEY")
        self._session = aiohttp.ClientSession(
            self._url,
            headers={"Authorization": f"Bearer {key}"} if key else None,
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        self.control = AsyncClient(self._url, timeout_s=TIMEOUT_S, retry=NEVER)
        return self

    async def __aexit__(self, *_: object) -> None:
        gc.unfreeze()
        await self.control.aclose()
        await self._session.close()

    def _query(self) -> dict[str, str]:
        deadline = {} if self.deadline_ms is None else {"deadline_ms": f"{self.deadline_ms:g}"}
        return {"top_k": "1"} | deadline

    async def classify(self, due_s: float | None = None) -> Answer:
        """Send the next photo as a raw body; due now if no time is given."""
        photo = self._next()
        headers = {"Content-Type": "image/jpeg"}
        return await self._post(photo, due_s, data=self._photos[photo], headers=headers)

    async def classify_files(self, count: int) -> Answer:
        """Send several photos as one multipart request."""
        form = aiohttp.FormData()
        photos = [self._next() for _ in range(count)]
        for photo in photos:
            name, kind = f"{photo}.jpg", "image/jpeg"
            form.add_field("file", self._photos[photo], filename=name, content_type=kind)
        return await self._post(photos[0], None, data=form)

    async def round_trip_s(self) -> float:
        """Return how long the smallest request takes."""
        started = self._loop.time()
        async with self._session.get("/healthz") as reply:
            await reply.read()
        return self._loop.time() - started

    async def gauge(self, name: str) -> float:
        """One unlabelled value of `/metrics`; NaN if the server has none of that name."""
        async with self._session.get("/metrics") as reply:
            reply.raise_for_status()
            found = re.search(rf"^{name} (\S+)", await reply.text(), re.MULTILINE)
        return float(found[1]) if found else math.nan

    def _next(self) -> int:
        photo = self._order[self._sent % len(self._order)]
        self._sent += 1
        return photo

    async def _post(self, photo: int, due_s: float | None, **request: Any) -> Answer:
        sent_s = self._loop.time()
        status, body, retry, error = 0, b"", None, ""
        try:
            async with self._session.post("/classify", params=self._query(), **request) as reply:
                body, retry = await reply.read(), reply.headers.get("Retry-After")
                status = reply.status
        except (aiohttp.ClientError, TimeoutError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        return Answer(
            photo=photo,
            due_s=sent_s if due_s is None else due_s,
            sent_s=sent_s,
            done_s=self._loop.time(),
            status=status,
            images=_served(body) if status == 200 else (),
            retry_after_s=_seconds(retry),
            error=error,
        )


async def open_loop(client: Client, due: Iterable[float]) -> list[Answer]:
    """Send a request at each of these times of the event loop, and wait for all answers."""
    loop = asyncio.get_running_loop()
    tasks = []
    async with asyncio.TaskGroup() as group:
        for due_s in due:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            tasks.append(group.create_task(client.classify(due_s)))
    return [task.result() for task in tasks]


async def closed_loop(client: Client, seconds: float, connections: int) -> list[Answer]:
    """Keep so many requests under way at any time, and wait for the last ones."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + seconds
    answers: list[Answer] = []

    async def one_after_the_other() -> None:
        while loop.time() < give_up:
            answers.append(await client.classify())
            if answers[-1].status != 200:
                await asyncio.sleep(REFUSED_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(one_after_the_other())
    return answers


async def watch(client: Client, every_s: float, seen: Watch) -> None:
    """Sample dial and queue until cancelled."""
    loop = asyncio.get_running_loop()
    next_s = loop.time()
    while True:
        started = loop.time()
        try:
            dial = await client.control.compression()
            took_s = loop.time() - started
            depth = await client.gauge("tocom_queue_depth")
            seen.samples.append(Sample(started, took_s, dial.mode, dial.r, depth))
        except (aiohttp.ClientError, TocomClientError, TimeoutError) as failure:
            seen.failures.append(f"{type(failure).__name__}: {failure}")
        next_s = max(next_s + every_s, loop.time())
        await asyncio.sleep(next_s - loop.time())


def raise_file_limit() -> None:
    """Each connection is an open file; the usual soft limit of 1,024 is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS if hard == resource.RLIM_INFINITY else min(2 * CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _served(body: bytes) -> tuple[Served, ...]:
    """The images that were classified; those with a problem of their own are left out."""
    return tuple(
        Served(
            result["r"],
            result["batch_size"],
            result["queue_ms"],
            result["compute_ms"],
            result["predictions"][0]["index"],
            result["predictions"][0]["score"],
        )
        for result in json.loads(body)["results"]
        if "problem" not in result
    )


def _seconds(header: str | None) -> float | None:
    """`Retry-After` as seconds; a date or nonsense is no number of seconds."""
    return float(header) if header is not None and header.isdecimal() else None
