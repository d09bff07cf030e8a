"""Turning the dial under load: every answer is valid, and computed with one degree's weights."""

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server.engine import load_engine
from server.images import ImageLimits, decode
from server.resizing import faster
from server.settings import Settings

if TYPE_CHECKING:
    from tests.integration.conftest import Server

CLIENTS = 12
DEGREES = (12, 0, 7, 3, 10)


@pytest.fixture(scope="module")
def expected(model_file: Path, photo: bytes) -> np.ndarray:
    """Scores of the photo at each degree, computed without a server: ``(13, 10)``."""
    engine = load_engine(Settings(model=str(model_file)))
    draft = ImageLimits(10**7, 10**7, draft_side=64)
    image = decode(photo, draft, faster(engine.loaded.transform))
    rows = [engine.run_blocking([image], r).outputs[0] for r in range(engine.max_r + 1)]
    engine.close()
    return np.stack(rows)


def test_degrees_can_be_told_apart(expected: np.ndarray) -> None:
    """The test below means something: no two degrees give the same scores."""
    gaps = np.abs(expected[:, None] - expected[None]).max(axis=-1)
    assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 1e-4


def test_pins_under_load(server: "Server", photo: bytes, expected: np.ndarray) -> None:
    """Once PUT has answered, the next batch has that r; each answer's scores are its own r's."""
    _dial_and_compare(server.url, photo, expected)


def test_pins_under_load_on_two_devices(
    serve: Callable[..., "Server"], photo: bytes, expected: np.ndarray
) -> None:
    """One queue and one dial for all devices, each with weights of its own."""
    server = serve("--devices=cpu,cpu", "--threads=2", "--slo-ms=20000", "--max-batch-size=4")
    _dial_and_compare(server.url, photo, expected)
    with server.client() as client:
        assert client.get("/model").json()["device"] == "cpu, cpu"
        text = client.get("/metrics").text
    for device in "01":  # both had work
        busy = f'tocom_device_busy_seconds_total{{device="{device}"}}'
        found = [line for line in text.splitlines() if line.startswith(busy)]
        assert found and float(found[0].split()[-1]) > 0


def _dial_and_compare(url: str, photo: bytes, expected: np.ndarray) -> None:
    results = asyncio.run(_dial_under_load(url, photo))
    assert len(results) > 3 * CLIENTS
    for pinned, result in results:
        if pinned is not None:
            assert result["r"] == pinned
        scores = np.zeros(10)
        for p in result["predictions"]:
            scores[p["index"]] = p["score"]
        distances = np.abs(expected - scores).max(axis=1)
        assert int(distances.argmin()) == result["r"]
        assert distances.min() < 1e-5


async def _dial_under_load(url: str, photo: bytes) -> list[tuple[int | None, dict[str, Any]]]:
    """Post without pause while the pin changes.

    Returns:
        for each answer, the pin that was in force from before the request was sent until after its
        answer came (None if it changed meanwhile), and the result.
    """
    results: list[tuple[int | None, dict[str, Any]]] = []
    pin: int | None = None
    done = False

    async def post_on(client: httpx.AsyncClient) -> None:
        while not done:
            before = pin
            answer = await client.post("/classify?top_k=10", files={"file": photo})
            assert answer.status_code == 200, answer.text
            results.append((before if before == pin else None, answer.json()["results"][0]))

    limits = httpx.Limits(max_connections=CLIENTS + 2)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        clients = [asyncio.create_task(post_on(client)) for _ in range(CLIENTS)]
        for r in DEGREES:
            pin = None
            answer = await client.put(f"/compression?r={r}")
            assert answer.json()["r"] == r
            pin = r
            target = len(results) + 2 * CLIENTS
            while len(results) < target and not any(c.done() for c in clients):
                await asyncio.sleep(0.01)
        done = True
        await asyncio.gather(*clients)
        await client.put("/compression?mode=auto")
    return results


def test_png_and_jpeg_of_other_modes_under_load(server: "Server") -> None:
    """Gray, palette, transparent and 16-bit pictures side by side are all classified."""
    pictures = [Image.new("L", (50, 40), 90), Image.new("P", (9, 9)), Image.new("RGBA", (64, 64))]
    pictures.append(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16))
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        files.append(("file", buffer.getvalue()))
    with server.client() as client:
        results = client.post("/classify", files=files).json()["results"]
    assert len(results) == len(pictures) and all("predictions" in r for r in results)
