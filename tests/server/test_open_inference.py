"""The Open Inference Protocol in process: what it shares with ``/classify``, and what not."""

import asyncio
import json
import threading
import zlib
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from server import inference_form
from server.inference_framing import packed
from server.inference_request import parse
from tests.server.test_app import PICTURE, Bench, model_path, tell

__all__ = ["model_path"]  # a fixture

SIDE = 32


def path_of(bench: Bench) -> str:
    """Where to ask for classes."""
    return f"/v2/models/{bench.engine.loaded.name}/infer"


async def send(
    bench: Bench, *files: bytes, parameters: Any = None, **headers: str
) -> httpx.Response:
    """Ask for the classes of some files."""
    raw = packed(files)
    tensor = {
        **{"name": "image", "datatype": "BYTES", "shape": [len(files)]},
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    told = {"Inference-Header-Content-Length": str(len(head))} | headers
    return await bench.client.post(path_of(bench), content=head + raw, headers=told)


def said(answer: httpx.Response, status: int) -> str:
    """The message of an error in the protocol's form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert set(document) == {"error"} and len(document["error"]) > 20
    assert answer.headers["x-request-id"]
    return str(document["error"])


def test_not_ready_until_warm(model_path: str) -> None:
    """Alive, with metadata, but not ready; and the answer says when to come back."""

    async def story(bench: Bench) -> None:
        name = bench.engine.loaded.name
        assert (await bench.client.get("/v2/health/live")).json() == {"live": True}
        assert (await bench.client.get(f"/v2/models/{name}")).json()["name"] == name
        (entry,) = (await bench.client.post("/v2/repository/index")).json()
        assert entry["state"] == "UNAVAILABLE" and "warming up" in entry["reason"]
        for answer in (
            await bench.client.get("/v2/health/ready"),
            await bench.client.get(f"/v2/models/{name}/ready"),
            await send(bench, PICTURE),
        ):
            said(answer, 503)
            assert answer.headers["retry-after"] == "1"
        await bench.app.state.starting
        assert (await bench.client.get("/v2/health/ready")).json() == {"ready": True}
        assert (await send(bench, PICTURE)).status_code == 200

    tell(model_path, story, warm=False)


def test_a_bad_image_refuses_all(model_path: str) -> None:
    """Nothing is computed for a request that cannot be answered whole."""

    async def story(bench: Bench) -> None:
        for files, number in (([PICTURE, b"no", PICTURE, b"no"], 2), ([b"no", PICTURE], 1)):
            assert said(await send(bench, *files), 400).startswith(f"Image {number}: ")
        assert not said(await send(bench, b"no"), 400).startswith("Image")
        assert bench.engine.sizes == []
        assert bench.service.core.batcher.load().admitted == 0
        page = (await bench.client.get("/metrics")).text
        assert 'tocom_requests_total{outcome="bad_image"} 3.0' in page
        assert 'tocom_images_total{outcome="bad_image"} 4.0' in page

    tell(model_path, story)


def test_requests_are_counted_and_recorded_as_those_of_classify(model_path: str) -> None:
    """Outcome, problem, bytes and wishes."""
    records: list[Any] = []

    async def story(bench: Bench) -> None:
        bench.service.on_finished.append(records.append)
        assert (await send(bench, PICTURE, parameters={"max_r": 2, "priority": 1})).is_success
        said(await send(bench, PICTURE, parameters={"nonsense": 1}), 400)
        said(await bench.client.post("/v2/models/another/infer", content=b"{}"), 404)
        said(await send(bench, PICTURE, parameters={"deadline_ms": 0.0001}), 504)
        page = (await bench.client.get("/metrics")).text
        for outcome, count in (("ok", 1), ("bad_parameter", 2), ("expired", 1)):
            assert f'tocom_requests_total{{outcome="{outcome}"}} {count}.0' in page

    tell(model_path, story)
    good, bad, unknown, late = records[:4]
    assert (good.outcome, good.problem, good.bytes_in) == ("ok", None, len(PICTURE))
    assert (good.query.max_r, good.query.priority, len(good.images)) == (2, "high", 1)
    assert (bad.outcome, bad.problem) == ("bad_parameter", "/problems/bad-inference-request")
    assert (unknown.outcome, unknown.problem) == ("bad_parameter", "/problems/unknown-model")
    assert (late.outcome, late.problem) == ("expired", "/problems/deadline-expired")


def test_a_bug_is_a_500_without_a_trace(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the protocol's form, on the short way and through the framework."""

    def bug(*arguments: Any) -> None:
        raise KeyError("inside information")

    monkeypatch.setattr(inference_form, "decode", bug)
    monkeypatch.setattr("server.open_inference.model_metadata", bug)

    async def story(bench: Bench) -> None:
        for answer in (
            await send(bench, PICTURE),
            await bench.client.get(f"/v2/models/{bench.engine.loaded.name}"),
        ):
            assert "inside information" not in said(answer, 500)

    tell(model_path, story)


def test_a_failing_forward_has_the_form(model_path: str) -> None:
    """And the server goes on."""

    async def story(bench: Bench) -> None:
        bench.engine.error = RuntimeError("inside information")
        assert "inside information" not in said(await send(bench, PICTURE), 500)
        bench.engine.error = None
        assert (await send(bench, PICTURE)).status_code == 200

    tell(model_path, story)


def test_a_full_queue_says_when_to_come_back(model_path: str) -> None:
    """Images of a request are admitted all or none, beside those of ``/classify``."""

    async def story(bench: Bench) -> None:
        bench.engine.go.clear()
        running = asyncio.create_task(bench.post(count=1))
        await bench.held(1)
        waiting = asyncio.create_task(bench.post(count=2))
        await bench.held(3)
        answer = await send(bench, PICTURE, PICTURE)
        said(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        bench.engine.go.set()
        assert (await running).is_success and (await waiting).is_success
        assert (await send(bench, PICTURE, PICTURE, PICTURE)).is_success

    tell(model_path, story, queue_size=3)


def test_unpacked_bodies_count_as_memory(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compressed is counted as what it is, and given back; a bomb is refused."""
    taken: list[int] = []

    async def story(bench: Bench) -> None:
        memory = bench.service._intake._memory
        take = memory.take

        def noting(count: int) -> None:
            taken.append(count)
            take(count)

        monkeypatch.setattr(memory, "take", noting)
        pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
        tensor = {
            **{"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)},
            "parameters": {"binary_data_size": pixels.nbytes},
        }
        head = json.dumps({"inputs": [tensor]}).encode()
        body = zlib.compress(head + pixels.tobytes())
        told = {
            "Inference-Header-Content-Length": str(len(head)),
            "Content-Encoding": "deflate",
        }
        answer = await bench.client.post(path_of(bench), content=body, headers=told)
        assert answer.status_code == 200, answer.text
        assert sum(taken) == len(body) + len(head) + pixels.nbytes
        assert memory.taken_bytes == 0
        bomb = zlib.compress(bytes(10_000_000))
        answer = await bench.client.post(path_of(bench), content=bomb, headers=told)
        assert "unpacked" in said(answer, 413)
        for wrong, status in (({"Content-Encoding": "br"}, 415), ({"Content-Type": "text/x"}, 415)):
            answer = await bench.client.post(path_of(bench), content=body, headers=told | wrong)
            said(answer, status)
        assert memory.taken_bytes == 0

    tell(model_path, story, max_body_bytes=1_000_000)


def test_long_json_is_read_on_a_thread(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is not held up by what it does not have to do itself."""
    names: list[str] = []

    def noting(*arguments: Any) -> Any:
        names.append(threading.current_thread().name)
        return parse(*arguments)

    monkeypatch.setattr(inference_form, "parse", noting)

    async def story(bench: Bench) -> None:
        values = np.zeros((1, 3, SIDE, SIDE), np.float32)
        tensor = {"name": "pixel_values", "datatype": "FP32", "shape": list(values.shape)}
        body = {"inputs": [tensor | {"data": values.ravel().tolist()}]}
        assert (await send(bench, PICTURE)).is_success
        assert (await bench.client.post(path_of(bench), json=body)).is_success

    tell(model_path, story)
    assert names[0] == threading.current_thread().name and names[1].startswith("decode_")


def test_a_reload_in_between_is_told(model_path: str) -> None:
    """A request is not answered by another model than the one that it asked for."""

    async def story(bench: Bench) -> None:
        path = path_of(bench)
        core = bench.service.core
        other = replace(core.destination, name="hub:owner/other")
        bench.service._core = replace(core, destination=other)
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        coded = {"parameters": {"content_type": "base64"}, "data": ["eA=="]}
        answer = await bench.client.post(path, json={"inputs": [tensor | coded]})
        assert "not served any more" in said(answer, 404)

    tell(model_path, story)
