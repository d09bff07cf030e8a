"""The server's application as replicas of a fleet: two of them in this process, and a room."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import timm
import torch
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from deploy.ray.control_room import ControlRoom, Order, Overview, Pages, Report
from deploy.ray.fleet_app import FleetApplication
from deploy.ray.fleet_link import FleetLink
from deploy.ray.fleet_routes import fleet_api, router
from deploy.ray.wish import Wish
from server.app import Application, create_app
from server.schemas import CompressionQuery
from server.settings import Settings
from tests.server.test_app import PICTURE
from tocom_core.models import save_model


class NearRoom:
    """A control room in this process; out of reach on demand."""

    def __init__(self) -> None:
        self.room = ControlRoom()
        self.there = True

    def _reach(self) -> ControlRoom:
        if not self.there:
            raise ConnectionError("out of reach")
        return self.room

    async def exchange(self, replica: str, wish: Wish, report: Report, ticket: int) -> Order:
        """Like the room's."""
        return await self._reach().exchange(replica, wish, report, ticket)

    async def ask(self, query: CompressionQuery, known: Wish) -> Overview:
        """Like the room's."""
        return await self._reach().ask(query, known)

    async def overview(self) -> Overview:
        """Like the room's."""
        return self._reach().overview()

    async def gather(self) -> Pages:
        """Like the room's."""
        return await self._reach().gather()

    async def deliver(self, replica: str, ticket: int, page: bytes) -> None:
        """Like the room's."""
        self._reach().deliver(replica, ticket, page)

    async def leave(self, replica: str) -> None:
        """Like the room's."""
        self._reach().leave(replica)


class Fleet:
    """Replicas that share a room, and a client of each."""

    def __init__(self, path: str, stack: AsyncExitStack) -> None:
        self.room = NearRoom()
        self.ended: list[str] = []
        self._path = path
        self._stack = stack

    async def start(self, name: str, **settings: Any) -> httpx.AsyncClient:
        """One more replica, ready to serve."""
        calm = {"max_queue_delay_ms": 0, "idle_profiling": False, "slo_ms": 60_000}
        chosen = Settings(model=self._path, **(calm | settings))
        app = create_app(chosen, api=fleet_api())
        assert isinstance(app, Application)
        service = app.state.service
        link = FleetLink(
            *(name, self.room),
            controller=lambda: service.core.controller,
            page=lambda: service.metrics.render()[0],
        )
        served = FleetApplication(app, link, 5.0, on_end=lambda: self.ended.append(name))
        await self._stack.enter_async_context(alive(served))
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        return await self._stack.enter_async_context(client)


@asynccontextmanager
async def alive(app: FleetApplication) -> AsyncIterator[None]:
    """What a server of ASGI does around its requests."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, to_app.get, from_app.put))
    await to_app.put({"type": "lifespan.startup"})
    started = await from_app.get()
    assert started["type"] == "lifespan.startup.complete", started
    yield
    await to_app.put({"type": "lifespan.shutdown"})
    assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
    await life


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random model."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, **shape)
    file = tmp_path_factory.mktemp("fleet") / "model.safetensors"
    save_model(file, vit, ("a", "b", "c"), model_args=shape)
    return str(file)


@asynccontextmanager
async def fleet(path: str) -> AsyncIterator[Fleet]:
    """A fleet without replicas so far."""
    async with AsyncExitStack() as stack:
        yield Fleet(path, stack)


async def classify(client: httpx.AsyncClient) -> dict[str, Any]:
    """The result of one picture."""
    answer = await client.post("/classify", files={"file": PICTURE})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def test_a_pin_reaches_all_and_those_that_start_later(path: str) -> None:
    """Images of each replica are served at the pinned degree, from its first one on."""

    async def story() -> None:
        async with fleet(path) as replicas:
            one, two = await replicas.start("one"), await replicas.start("two")
            answer = await one.put("/compression?r=3&ttl_s=600")
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert (told["replica"], told["mode"], told["r"]) == ("one", "pinned", 3)
            assert (told["asked"]["mode"], told["asked"]["r"]) == ("pinned", 3)
            assert 590 < told["asked"]["ttl_s"] <= 600
            assert [r["replica"] for r in told["replicas"]] == ["one", "two"]
            assert all(r["up_to_date"] and r["r"] == 3 for r in told["replicas"])
            late = await replicas.start("late")
            assert [(await classify(client))["r"] for client in (one, two, late)] == [3, 3, 3]
            status = (await late.get("/compression")).json()
            assert (status["mode"], status["replica"]) == ("pinned", "late")
            assert status["pinned_ttl_s"] < 600
            await late.put("/compression?mode=auto")
            for client in (one, two, late):
                assert (await client.get("/compression")).json()["mode"] == "auto"
        assert sorted(replicas.ended) == ["late", "one", "two"]

    asyncio.run(story())


def test_one_page_of_metrics_tells_of_all(path: str) -> None:
    """Whichever replica is asked, counters are those of each, told apart by a label."""

    async def story() -> None:
        async with fleet(path) as replicas:
            one, two = await replicas.start("one"), await replicas.start("two")
            for client in (one, two, two):
                await classify(client)
            for asked in (one, two):
                page = await asked.get("/metrics")
                assert page.headers["content-type"].startswith("text/plain")
                counted = {
                    sample.labels["replica"]: sample.value
                    for family in text_string_to_metric_families(page.text)
                    for sample in family.samples
                    if sample.name == "tocom_requests_total" and sample.labels["outcome"] == "ok"
                }
                assert counted == {"one": 1, "two": 2}
            replicas.room.there = False
            answer = await one.get("/metrics")
            assert answer.status_code == 503
            assert answer.json()["type"] == "/problems/fleet-unreachable"

    asyncio.run(story())


def test_without_the_room_classification_goes_on(path: str) -> None:
    """What cannot be done is refused; a replica that starts meanwhile serves by its settings."""

    async def story() -> None:
        async with fleet(path) as replicas:
            one = await replicas.start("one")
            await one.put("/compression?r=3")
            replicas.room.there = False
            answer = await one.put("/compression?mode=auto")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert (await classify(one))["r"] == 3
            status = (await one.get("/compression")).json()
            assert (status["mode"], status["asked"], status["replicas"]) == ("pinned", None, None)
            before = time.monotonic()
            late = await replicas.start("late")
            assert (await late.get("/compression")).json()["mode"] == "auto"
            assert time.monotonic() - before < 60
            replicas.room.there = True
            async with asyncio.timeout(30):
                while (await late.get("/compression")).json()["mode"] != "pinned":
                    await asyncio.sleep(0.02)

    asyncio.run(story())


def test_a_reload_of_one_replica_is_refused(path: str) -> None:
    """And it is said what to do instead."""

    async def story() -> None:
        async with fleet(path) as replicas:
            answer = await (await replicas.start("one")).post("/models/reload")
            assert answer.status_code == 409
            problem = answer.json()
            assert problem["type"] == "/problems/reload-by-deployment"
            assert "serve deploy" in problem["detail"]

    asyncio.run(story())


def test_the_door_stands_before_these_too(path: str) -> None:
    """Scopes as on a single server, and its headers on every answer."""

    async def story() -> None:
        async with fleet(path) as replicas:
            key = "kLZ4mR8vQ1xW7nB3tY6pD9sF2gH5jC0aE8uKoI1"
            client = await replicas.start("one", api_keys=f"watcher metrics {key}")
            known = {"Authorization": f"Bearer {key}"}
            assert (await client.put("/compression?r=3")).status_code == 401
            assert (await client.put("/compression?r=3", headers=known)).status_code == 403
            assert (await client.get("/metrics")).status_code == 401
            answer = await client.get("/metrics", headers=known)
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"

    asyncio.run(story())


def test_each_path_is_there_once(path: str) -> None:
    """The single server's handlers are gone, and the document of the API shows these."""

    async def story() -> None:
        async with fleet(path) as replicas:
            client = await replicas.start("one")
            paths = (await client.get("/openapi.json")).json()["paths"]
            replaced = paths["/compression"]["put"]["summary"]
            assert replaced.endswith("on all")
            ours = {route.path for route in router.routes if isinstance(route, APIRoute)}
            assert ours
            assert ours <= paths.keys()
            assert {"/classify", "/model", "/healthz", "/readyz"} <= paths.keys()
            answer = await client.delete("/compression")
            assert answer.status_code == 405

    asyncio.run(story())


def test_a_model_that_does_not_run_fails_the_start(path: str) -> None:
    """So that Ray shows why, instead of sending requests to it."""

    async def story() -> None:
        app = create_app(Settings(model=path), api=fleet_api())
        assert isinstance(app, Application)
        service = app.state.service

        async def broken(**how: Any) -> None:
            raise RuntimeError("no such device")

        setattr(service.engine, "warm_up", broken)  # noqa: B010
        link = FleetLink("one", NearRoom(), lambda: service.core.controller, bytes)
        served = FleetApplication(app, link)
        with pytest.raises(AssertionError, match="no such device"):
            async with alive(served):
                pass

    asyncio.run(story())
