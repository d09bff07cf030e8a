"""The application in process, with an engine that can be held, broken and mended at will."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import timm
import torch
from fastapi import FastAPI
from PIL import Image
from torch import Tensor

from server import incoming, intake
from server.app import create_app
from server.engine import Engine
from server.service import Service
from server.settings import Settings
from server.stats import BatchOutcome
from tocom_core.models import load_model, save_model

Story = Callable[["Bench"], Awaitable[None]]


class HeldEngine(Engine):
    """An engine whose batches wait until they are let go, and fail on demand."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.sizes: list[int] = []
        for replica in self._replicas:
            setattr(replica, "compute", partial(self._hold, replica.compute))  # noqa: B010

    def _hold(
        self, compute: Callable[..., BatchOutcome], images: Sequence[Tensor], r: int, **how: Any
    ) -> BatchOutcome:
        assert self.go.wait(20)
        self.sizes.append(len(images))
        if self.error is not None:
            raise self.error
        return compute(images, r, **how)


class Bench:
    """A running application, its engine and a client."""

    def __init__(self, app: FastAPI, engine: HeldEngine, client: httpx.AsyncClient) -> None:
        self.app = app
        self.engine = engine
        self.client = client
        self.service: Service = app.state.service

    async def post(self, query: str = "", count: int = 1) -> httpx.Response:
        """Classify ``count`` copies of a picture."""
        return await self.client.post(f"/classify{query}", files=[("file", PICTURE)] * count)

    async def held(self, count: int) -> None:
        """Wait until this many images are queued or in a batch that does not end."""
        batcher = self.service.core.batcher
        while (load := batcher.load()).queue_length + load.in_flight < count:
            await asyncio.sleep(0.001)


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **shape)
    path = tmp_path_factory.mktemp("app") / "model.safetensors"
    save_model(path, vit, ("a", "b", "c"), model_args=shape)
    return str(path)


@asynccontextmanager
async def running(path: str, *, warm: bool = True, **settings: Any) -> AsyncIterator[Bench]:
    """Start the application; ready, or with its warm-up held."""
    calm = {"max_queue_delay_ms": 0, "idle_profiling": False, "slo_ms": 60_000}
    chosen = Settings(model=path, **(calm | settings))
    engine = HeldEngine(load_model(path), None, chosen)
    app = create_app(chosen, engine=engine)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        if warm:
            await app.state.starting
            engine.sizes.clear()  # the warm-up's
        try:
            yield Bench(app, engine, client)
        finally:
            engine.go.set()


def tell(path: str, story: Story, **settings: Any) -> None:
    """Run a test's story against a fresh application."""

    async def run() -> None:
        async with running(path, **settings) as bench:
            await story(bench)

    asyncio.run(run())


def kind(answer: httpx.Response) -> tuple[int, str]:
    """Status and type of a problem."""
    return answer.status_code, answer.json()["type"].removeprefix("/problems/")


def test_not_ready_until_warm(model_path: str) -> None:
    """Before the warm-up ends the process is alive, not ready, and says when to come back."""

    async def story(bench: Bench) -> None:
        assert (await bench.client.get("/healthz")).status_code == 200
        for answer in (
            await bench.client.get("/readyz"),
            await bench.post(),
            await bench.client.get("/compression"),
        ):
            assert kind(answer) == (503, "not-ready")
            assert answer.headers["retry-after"] == "1"
        assert (await bench.client.get("/metrics")).status_code == 200
        await bench.app.state.starting
        assert (await bench.client.get("/readyz")).status_code == 200
        assert (await bench.post()).status_code == 200

    tell(model_path, story, warm=False)


def test_failing_forward_is_a_500_and_the_server_goes_on(model_path: str) -> None:
    """The client sees no inside; after three in a row /readyz says so; a success heals it."""

    async def story(bench: Bench) -> None:
        bench.engine.error = RuntimeError("inside information")
        for _ in range(3):
            answer = await bench.post()
            assert kind(answer) == (500, "forward-failed")
            assert "inside information" not in answer.text
        assert kind(await bench.client.get("/readyz")) == (503, "not-ready")
        bench.engine.error = None
        assert (await bench.post()).status_code == 200
        assert (await bench.client.get("/readyz")).status_code == 200

    tell(model_path, story)


def test_full_queue_refuses_and_recovers(model_path: str) -> None:
    """429 with Retry-After for what does not fit, all or none; what fits is answered."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        first = asyncio.create_task(bench.post())
        await bench.held(1)
        rest = asyncio.create_task(bench.post(count=3))
        await bench.held(4)
        refused = await bench.post(count=2)
        assert kind(refused) == (429, "queue-full")
        assert int(refused.headers["retry-after"]) >= 1
        bench.engine.go.set()
        assert (await first).status_code == 200
        assert len((await rest).json()["results"]) == 3
        assert sum(bench.engine.sizes) == 4

    tell(model_path, story, queue_size=4, max_batch_size=1)


def test_deadline_ends_a_wait_for_a_stuck_model(model_path: str) -> None:
    """The server's default deadline and the request's own both end in 504."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        assert kind(await bench.post("?deadline_ms=300")) == (504, "deadline-expired")
        assert kind(await bench.post()) == (504, "deadline-expired")

    tell(model_path, story, default_deadline_ms=300)


def test_deadline_also_counts_while_decoding(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow decoder cannot outlast the deadline, and its image is not queued afterwards."""
    go = threading.Event()

    def slow(*arguments: Any) -> None:
        go.wait(20)

    monkeypatch.setattr(incoming, "decode", slow)

    async def story(bench: Bench) -> None:
        answer = await bench.post("?deadline_ms=300")
        assert kind(answer) == (504, "deadline-expired") and "decoded" in answer.json()["detail"]
        go.set()
        assert bench.service.core.batcher.load().queue_length == 0
        assert bench.engine.sizes == []

    tell(model_path, story)


def test_client_gone_frees_its_place(model_path: str) -> None:
    """Hanging up while waiting drops the work; the place in the queue is free again."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        running = asyncio.create_task(bench.post())
        await bench.held(1)
        hang_up = asyncio.Event()
        gone = asyncio.create_task(_raw_request(bench.app, hang_up))
        await bench.held(2)
        hang_up.set()
        assert await gone == 499
        assert bench.service.core.batcher.load().queue_length == 0
        bench.engine.go.set()
        assert (await running).status_code == 200
        assert bench.engine.sizes == [1]
        page = (await bench.client.get("/metrics")).text
        assert 'tocom_requests_total{outcome="abandoned"} 1.0' in page

    tell(model_path, story, max_batch_size=1)


async def _raw_request(app: FastAPI, hang_up: asyncio.Event) -> int:
    """POST a picture by plain ASGI, and disconnect when told; returns the status."""
    statuses: list[int] = []
    body = [{"type": "http.request", "body": PICTURE, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if body:
            return body.pop()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        **{"type": "http", "method": "POST", "path": "/classify", "raw_path": b"/classify"},
        **{"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"},
        **{"headers": [(b"host", b"test"), (b"content-type", b"image/png")]},
        **{"server": ("test", 80)},
    }
    await app(scope, receive, send)
    return statuses[0]


def test_bug_is_a_500_without_a_trace(
    model_path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody expected is logged under the request's id and told without details."""

    def bug(*arguments: Any) -> None:
        raise KeyError("inside information")

    monkeypatch.setattr(incoming, "decode", bug)

    async def story(bench: Bench) -> None:
        answer = await bench.post()
        assert kind(answer) == (500, "internal")
        assert "inside information" not in answer.text and "Traceback" not in answer.text
        assert answer.json()["request_id"] == answer.headers["x-request-id"]
        assert answer.json()["request_id"] in caplog.text
        assert bench.service.core.batcher.load().queue_length == 0
        page = (await bench.client.get("/metrics")).text
        assert 'tocom_requests_total{outcome="failed"} 1.0' in page

    tell(model_path, story)


def test_too_many_bytes_in_memory_are_shed(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads beyond the memory for bodies get 429, and memory is free again afterwards."""
    monkeypatch.setattr(intake, "BODIES_IN_MEMORY", 1)

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        with bench.service._intake._memory.hold() as take:
            take(3000)
            assert kind(await bench.post(count=3)) == (429, "queue-full")
        bench.engine.go.set()
        assert (await bench.post(count=3)).status_code == 200

    tell(model_path, story, max_body_bytes=3000)


def test_drain_finishes_what_was_admitted(model_path: str) -> None:
    """Admitted requests are answered, new ones refused; afterwards nothing is left."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        admitted = asyncio.create_task(bench.post(count=2))
        await bench.held(2)
        draining = asyncio.create_task(bench.service.drain())
        await asyncio.sleep(0)
        refused = await bench.post()
        assert kind(refused) == (503, "draining")
        assert refused.headers["connection"] == "close"
        assert kind(await bench.client.get("/readyz")) == (503, "draining")
        bench.engine.go.set()
        assert await draining is True
        assert (await admitted).status_code == 200

    tell(model_path, story)


def test_drain_gives_up_at_its_bound(model_path: str) -> None:
    """A model that hangs cannot hold the drain; who waits is told."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        admitted = asyncio.create_task(bench.post())
        await bench.held(1)
        assert await bench.service.drain() is False
        assert kind(await admitted) == (503, "draining")

    tell(model_path, story, drain_timeout_s=0.05)
