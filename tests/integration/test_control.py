"""Pin, bound, ttl, shadow and auto over a real socket, while clients post without pause.

The policy is a fixed degree and the SLO is generous, so that what the controller should do is
known; what the adaptive policies make of a load is tested with a simulated clock.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.integration.conftest import end_server, start_server

if TYPE_CHECKING:
    from tests.integration.conftest import Server

CLIENTS = 6
ANSWERS = 2 * CLIENTS
PATIENCE_S = 30.0
CALM = ("--slo-ms=60000", "--policy=static", "--static-r=12")


class Load:
    """Clients that post a photo without pause; each of their requests must be answered.

    Attributes:
        degrees: of the answers to requests that were sent after the last change.
    """

    def __init__(self, client: httpx.AsyncClient, photo: bytes) -> None:
        self.client = client
        self.degrees: list[int] = []
        self._photo = photo
        self._changes = 0
        self._stopped = False
        self._tasks = [asyncio.create_task(self._post_on()) for _ in range(CLIENTS)]

    async def put(self, query: str) -> dict[str, Any]:
        """Change the controller and return its state."""
        answer = await self.client.put(f"/compression?{query}")
        assert answer.status_code == 200, answer.text
        self._changes += 1
        self.degrees.clear()
        state: dict[str, Any] = answer.json()
        return state

    async def served(self) -> set[int]:
        """Wait for answers to requests that are sent from now on; return their degrees."""
        self._changes += 1
        self.degrees.clear()
        await self.until(self._has_answers)
        return set(self.degrees)

    async def state(self) -> dict[str, Any]:
        """Return what GET /compression says."""
        state: dict[str, Any] = (await self.client.get("/compression")).json()
        return state

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it holds, while the load goes on."""
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():
                for task in self._tasks:
                    assert not task.done(), task.exception()
                await asyncio.sleep(0.01)

    async def until_mode(self, mode: str) -> None:
        """Wait until the mode is this one."""

        async def is_on() -> bool:
            return bool((await self.state())["mode"] == mode)

        await self.until(is_on)

    async def stop(self) -> None:
        """End the clients."""
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def _has_answers(self) -> bool:
        return len(self.degrees) >= ANSWERS

    async def _post_on(self) -> None:
        while not self._stopped:
            changes = self._changes
            answer = await self.client.post("/classify", files={"file": self._photo})
            assert answer.status_code == 200, answer.text
            if changes == self._changes:
                self.degrees.append(answer.json()["results"][0]["r"])


@asynccontextmanager
async def under_load(server: "Server", photo: bytes) -> AsyncIterator[Load]:
    """Keep the server busy; at the end hand the degree back."""
    limits = httpx.Limits(max_connections=CLIENTS + 4)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        load = Load(client, photo)
        try:
            yield load
        finally:
            await load.stop()
            await client.put("/compression?mode=auto&min_r=0&max_r=12")


@pytest.fixture(scope="module")
def calm(model_file: Path) -> Iterator["Server"]:
    """A server whose policy wants the highest degree."""
    running = start_server(f"--model={model_file}", *CALM)
    running.wait_until_ready()
    yield running
    end_server(running)


def test_pins_and_bounds(calm: "Server", photo: bytes) -> None:
    """A pin holds against the bounds, bounds hold the policy, and auto goes back to them."""

    async def story() -> None:
        async with under_load(calm, photo) as load:
            state = await load.put("min_r=4&max_r=6")
            assert (state["mode"], state["min_r"], state["max_r"]) == ("auto", 4, 6)
            assert await load.served() <= {4, 5, 6}
            assert (await load.put("r=9"))["mode"] == "pinned"
            assert await load.served() == {9}
            assert 4 <= (await load.put("mode=auto"))["r"] <= 6
            assert await load.served() <= {4, 5, 6}
            await load.put("min_r=11&max_r=11")
            assert await load.served() == {11}

    asyncio.run(story())


def test_a_pin_with_ttl_ends_under_load(calm: "Server", photo: bytes) -> None:
    """It counts down, and then the policy has its degree again within the bounds."""

    async def story() -> None:
        async with under_load(calm, photo) as load:
            await load.put("min_r=10&max_r=10")
            state = await load.put("r=2&ttl_s=1")
            assert state["r"] == 2 and 0 < state["pinned_ttl_s"] <= 1
            await load.until_mode("auto")
            assert await load.served() == {10}

    asyncio.run(story())


def test_shadow_under_load(calm: "Server", photo: bytes) -> None:
    """The degree stays while what the policy would do is shown, measured and logged."""

    async def story() -> None:
        async with under_load(calm, photo) as load:
            await load.put("r=3")
            state = await load.put("mode=shadow&min_r=8&max_r=8")
            assert (state["mode"], state["r"]) == ("shadow", 3)
            assert await load.served() == {3}
            assert (await load.state())["shadow"]["r"] == 8
            await load.put("min_r=10&max_r=10")
            assert await load.served() == {3}
            assert (await load.state())["shadow"]["r"] == 10
            page = (await load.client.get("/metrics")).text
            assert re.search(r"^tocom_shadow_degree 10\.0$", page, re.M)
            assert re.search(r'^tocom_compression_mode\{mode="shadow"\} 1\.0$', page, re.M)
            assert (await load.put("mode=auto"))["shadow"] is None
            assert await load.served() == {10}

    asyncio.run(story())
    assert "shadow: would set r=10" in calm.text


def test_shadow_holds_a_degree_for_a_while(calm: "Server", photo: bytes) -> None:
    """With r and ttl_s; a pin over it gives way to it again."""

    async def story() -> None:
        async with under_load(calm, photo) as load:
            await load.put("min_r=10&max_r=10")
            state = await load.put("mode=shadow&r=1&ttl_s=600")
            assert state["r"] == 1 and 0 < state["shadow"]["ttl_s"] <= 600
            await load.put("r=5&ttl_s=0.5")
            await load.until_mode("shadow")
            assert await load.served() == {1}
            await load.put("mode=shadow&ttl_s=0.5")
            await load.until_mode("auto")
            assert await load.served() == {10}

    asyncio.run(story())


BAD = [
    ("r=13", "0 to 12"),
    ("r=-1", "0 to 12"),
    ("r=99999999999999999999", "0 to 12"),
    ("r=x", "GET /compression lists"),
    ("r=1.5", "GET /compression lists"),
    ("r=", "GET /compression lists"),
    ("mode=shadow&r=13", "0 to 12"),
    ("min_r=-1", "0 to 12"),
    ("max_r=13", "0 to 12"),
    ("min_r=7&max_r=3", "0 to 12"),
    ("mode=shadow&min_r=9&max_r=13", "0 to 12"),
    ("mode=fast", "'auto' or 'shadow'"),
    ("mode=pinned", "'auto' or 'shadow'"),
    ("r=3&mode=auto", "one of the two"),
    ("mode=shadow&r=3&max_r=5", "two requests"),
    ("r=3&ttl_s=0", "greater than 0"),
    ("r=3&ttl_s=-5", "greater than 0"),
    ("r=3&ttl_s=1e9", "less than or equal to 31536000"),
    ("r=3&ttl_s=nan", "finite"),
    ("mode=auto&ttl_s=5", "needs r"),
    ("max_r=5&ttl_s=5", "needs r"),
    ("degree=3", "no query parameter 'degree'"),
    ("", "nothing to change"),
]


def test_bad_values_are_survived_under_load(calm: "Server", photo: bytes) -> None:
    """Each is a 422 that names what is allowed, nothing changes, and no request suffers."""

    async def story() -> None:
        async with under_load(calm, photo) as load:
            await load.put("min_r=2&max_r=11")
            await load.put("r=7")
            before = await load.state()
            for query, said in BAD:
                answer = await load.client.put(f"/compression?{query}")
                assert (answer.status_code, query) == (422, query)
                assert answer.headers["content-type"] == "application/problem+json"
                assert said in answer.json()["detail"], query
            after = await load.state()
            for name in ("mode", "r", "min_r", "max_r", "pinned_ttl_s", "shadow"):
                assert after[name] == before[name]
            assert await load.served() == {7}

    asyncio.run(story())


def test_shadow_from_the_start_and_the_floor(serve: Callable[..., "Server"], photo: bytes) -> None:
    """A floor over degrees of which nothing is known leaves the checkpoint's, and says so."""
    server = serve(*CALM, "--mode=shadow", "--min-accuracy=0.5")
    assert "shuts out r=1, 2" in server.text and "tocom profile" in server.text

    async def story() -> None:
        async with under_load(server, photo) as load:
            state = await load.state()
            assert (state["mode"], state["r"], state["min_accuracy"]) == ("shadow", 0, 0.5)
            assert [level["r"] for level in state["levels"] if level["allowed"]] == [0]
            await load.put("mode=auto")
            assert await load.served() == {0}
            refused = await load.client.put("/compression?min_r=3")
            assert refused.status_code == 422
            assert "min_accuracy=0.5" in refused.json()["detail"]
            await load.put("r=9")
            assert await load.served() == {9}

    asyncio.run(story())


def test_live_agreement_is_measured_once_nobody_waits(
    serve: Callable[..., "Server"], photo: bytes
) -> None:
    """All images are drawn here: each served at r=12 is compared with r=0, and shown."""
    server = serve(*CALM, "--live-share=1")

    async def compared(load: Load) -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await load.state())["levels"][12]["agreement"]
        return found

    async def story() -> None:
        async with under_load(server, photo) as load:
            await load.put("r=12")
            await load.served()
            await load.stop()
            async with asyncio.timeout(PATIENCE_S):
                while not (found := await compared(load)) or found["samples"] < 3:
                    await asyncio.sleep(0.01)
            assert 0 <= found["low"] <= found["agreement"] <= found["high"] <= 1
            assert found["agreement"] in (0.0, 1.0)  # it is one photo
            page = (await load.client.get("/metrics")).text
            assert re.search(r'^tocom_compared_images_total\{agrees="\w+",r="12"\} ', page, re.M)
            assert (await load.state())["levels"][0]["agreement"] is None

    asyncio.run(story())
