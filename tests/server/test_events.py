"""``GET /events`` by plain ASGI: what is sent, and how it ends."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from fastapi import FastAPI

from server import events, feed
from tests.server.test_app import Bench, kind, model_path, tell

__all__ = ["model_path"]  # a fixture


class Client:
    """One that reads events, or does not."""

    def __init__(self, app: FastAPI, *, reads: bool = True) -> None:
        self.messages: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.hang_up = asyncio.Event()
        self.reads = reads
        self.task = asyncio.create_task(self._run(app))

    async def event(self) -> tuple[str, Any]:
        """The next event: its name and data."""
        while True:
            message = await asyncio.wait_for(self.messages.get(), 10)
            body = message.get("body", b"").decode()
            if body.startswith("event: "):
                first, second, *rest = body.split("\n")
                assert rest == ["", ""]
                return first.removeprefix("event: "), json.loads(second.removeprefix("data: "))

    async def _run(self, app: FastAPI) -> None:
        scope = {
            **{"type": "http", "method": "GET", "path": "/events", "raw_path": b"/events"},
            **{"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"},
            **{"headers": [(b"host", b"test")], "server": ("test", 80)},
        }
        request = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if request:
                return request.pop()
            await self.hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if not self.reads and message["type"] == "http.response.body":
                await asyncio.Event().wait()
            await self.messages.put(message)

        await app(scope, receive, send)


def test_history_first_then_snapshots(model_path: str) -> None:
    """A listener gets the last minutes at once, and then what happens."""

    async def story(bench: Bench) -> None:
        await bench.post(count=3)
        bench.service.feed.tick()
        client = Client(bench.app)
        name, history = await client.event()
        assert name == "history"
        assert history["slo_ms"] == 60_000
        assert history["snapshots"][-1]["outcomes"] == {"ok": 3}
        assert history["snapshots"][-1]["latency_ms"]["samples"] == 3
        await bench.client.put("/compression?r=2&ttl_s=50")
        bench.service.feed.tick()
        while True:
            name, snapshot = await client.event()
            assert name == "snapshot"
            if snapshot["mode"] == "pinned":
                break
        assert (snapshot["r"], snapshot["ready"]) == (2, True)
        assert 40 < snapshot["pinned_ttl_s"] <= 50
        client.hang_up.set()
        await client.task

    tell(model_path, story)


def test_headers_keep_proxies_from_holding_it_back(model_path: str) -> None:
    """An event stream that nobody stores or buffers."""

    async def story(bench: Bench) -> None:
        client = Client(bench.app)
        start = await client.messages.get()
        headers = {key.decode().lower(): value.decode() for key, value in start["headers"]}
        assert start["status"] == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers
        client.hang_up.set()
        await client.task

    tell(model_path, story)


def test_a_client_that_leaves_is_forgotten(model_path: str) -> None:
    """Hanging up gives the place back."""

    async def story(bench: Bench) -> None:
        client = Client(bench.app)
        await client.event()
        assert len(bench.service.feed) == 1
        client.hang_up.set()
        await asyncio.wait_for(client.task, 10)
        assert len(bench.service.feed) == 0

    tell(model_path, story)


def test_one_listener_too_many(model_path: str) -> None:
    """It is refused with 429, not left waiting."""

    async def story(bench: Bench) -> None:
        bench.service.feed._most = 1
        client = Client(bench.app)
        await client.event()
        refused = await bench.client.get("/events")
        assert kind(refused) == (429, "busy") and "retry-after" in refused.headers
        client.hang_up.set()
        await client.task

    tell(model_path, story)


def test_draining_ends_it(model_path: str) -> None:
    """The last snapshot says so, the stream ends, and it is refused from then on."""

    async def story(bench: Bench) -> None:
        client = Client(bench.app)
        await client.event()
        assert await bench.service.drain()
        await asyncio.wait_for(client.task, 10)
        last = None
        while not client.messages.empty():
            message = client.messages.get_nowait()
            if b"data: " in message["body"]:
                last = json.loads(message["body"].split(b"data: ")[1])
        assert last is not None and last["draining"] is True and last["ready"] is False
        assert message["more_body"] is False
        assert kind(await bench.client.get("/events")) == (503, "draining")

    tell(model_path, story)


def test_a_client_that_does_not_read_cannot_hold_the_drain(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut off soon after the drain begins."""
    monkeypatch.setattr(feed, "LAST_WORDS_S", 0.01)
    monkeypatch.setattr(events, "LAST_WORDS_S", 0.01)

    async def story(bench: Bench) -> None:
        client = Client(bench.app, reads=False)
        await client.messages.get()
        assert await bench.service.drain()
        await asyncio.wait_for(client.task, 10)

    tell(model_path, story)


def test_silence_is_broken(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment keeps the connection open while there is nothing to tell."""
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)

    async def story(bench: Bench) -> None:
        client = Client(bench.app)
        bodies = [(await client.messages.get()).get("body", b"") for _ in range(4)]
        assert b": still here\n\n" in bodies
        client.hang_up.set()
        await client.task

    tell(model_path, story)
