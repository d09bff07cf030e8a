"""The Open Inference Protocol through its real client, over a real socket, beside ``/classify``."""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut, chelsea, coffee
from tritonclient.utils import InferenceServerException

from server.resizing import faster
from tests.integration.conftest import LABELS, Server, end_server, start_server
from tocom_core.models import LoadedModel, load_model

if TYPE_CHECKING:
    from pathlib import Path

SIDE = 32
"""Of the test model's input."""


@pytest.fixture(scope="module")
def pinned(model_file: "Path") -> Iterator[Server]:
    """A server at one degree, one image a batch: an image has one answer, to the last bit."""
    flags = ("--max-batch-size=1", "--slo-ms=20000", "--static-r=3", "--policy=static")
    server = start_server(f"--model={model_file}", *flags, "--no-idle-profiling")
    server.wait_until_ready(300)
    yield server
    end_server(server)


@pytest.fixture(scope="module")
def client(pinned: Server) -> Iterator[triton.InferenceServerClient]:
    """A client with room for 32 requests at once."""
    with triton.InferenceServerClient(address(pinned), concurrency=32) as client:
        yield client


@pytest.fixture(scope="module")
def name(client: triton.InferenceServerClient, pinned: Server) -> str:
    """What the model is called."""
    with pinned.client() as http:
        return str(http.get("/model").json()["name"])


@pytest.fixture(scope="module")
def loaded(model_file: "Path") -> LoadedModel:
    """The model as its user has it, to prepare pixels with."""
    return load_model(model_file)


def prepared(loaded: LoadedModel, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture resized and cropped as the model wants it, ``(H, W, 3)``."""
    pixels = faster(loaded.transform)(Image.fromarray(picture))
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def address(server: Server) -> str:
    """Host and port."""
    return server.url.removeprefix("http://")


def encoded(*photos: bytes) -> triton.InferInput:
    """Photographs as a BYTES tensor behind the JSON."""
    tensor = triton.InferInput("image", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo] for photo in photos], np.object_))
    return tensor


def array(name: str, values: NDArray[Any], *, binary: bool = True) -> triton.InferInput:
    """Pixels as a tensor."""
    kind = {"uint8": "UINT8", "float32": "FP32"}[str(values.dtype)]
    tensor = triton.InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def wanted(**how: Any) -> list[triton.InferRequestedOutput]:
    """The output, in a given form."""
    return [triton.InferRequestedOutput("probabilities", **how)]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels as a file that loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def scores(server: Server, *files: bytes) -> list[dict[int, float]]:
    """What ``/classify`` says of some files: index to score."""
    with server.client() as http:
        answer = http.post("/classify?top_k=10", files=[("file", file) for file in files])
    return [
        {p["index"]: p["score"] for p in result["predictions"]}
        for result in answer.raise_for_status().json()["results"]
    ]


def table(result: triton.InferResult) -> list[dict[int, float]]:
    """The same of an inference."""
    return [dict(enumerate(row.tolist())) for row in result.as_numpy("probabilities")]


def as_channels(values: tuple[float, ...]) -> NDArray[np.float32]:
    """A number for each channel."""
    return np.array(values, np.float32).reshape(1, 3, 1, 1)


def refusal(ask: Callable[[], object]) -> tuple[str, str]:
    """Status and message of a request that is refused."""
    with pytest.raises(InferenceServerException) as caught:
        ask()
    return str(caught.value.status()), str(caught.value.message())


def test_health_and_metadata(client: triton.InferenceServerClient, name: str) -> None:
    """What a client asks before it infers."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(name) and client.is_model_ready(name, "1")
    assert not client.is_model_ready("another") and not client.is_model_ready(name, "2")
    server = client.get_server_metadata()
    assert server["name"] == "tocom-serve" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata(name)
    assert model == client.get_model_metadata(name, "1")
    assert (model["name"], model["versions"]) == (name, ["1"])
    shapes = {t["name"]: (t["datatype"], t["shape"]) for t in model["inputs"]}
    assert shapes == {
        "image": ("BYTES", [-1, 1]),
        "pixels": ("UINT8", [-1, SIDE, SIDE, 3]),
        "pixel_values": ("FP32", [-1, 3, SIDE, SIDE]),
    }
    (output,) = model["outputs"]
    assert output == {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(LABELS)]}
    config = client.get_model_config(name)
    assert config["max_batch_size"] == 32 and config["output"][0]["dims"] == [len(LABELS)]
    (entry,) = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == (name, "1", "READY")


def test_what_is_not_offered_says_so(client: triton.InferenceServerClient, name: str) -> None:
    """404 in the protocol's form for other models and for other extensions."""
    for ask in (
        lambda: client.get_model_metadata("another"),
        lambda: client.get_model_config(name, "7"),
        lambda: client.infer("another", [encoded(b"")]),
        lambda: client.get_inference_statistics(name),
        lambda: client.get_system_shared_memory_status(),
        lambda: client.load_model(name),
    ):
        status, message = refusal(ask)
        assert status == "404" and len(message) > 20


def test_encoded_images_get_the_answers_of_classify(
    client: triton.InferenceServerClient, pinned: Server, name: str, photo: bytes
) -> None:
    """One image or several, binary or JSON outputs: the same numbers to the last bit."""
    other = png(coffee())
    expected = scores(pinned, photo, other)
    both = client.infer(name, [encoded(photo, other)], request_id="mine")
    assert table(both) == expected
    as_json = client.infer(name, [encoded(photo)], outputs=wanted(binary_data=False))
    assert as_json.get_output("probabilities")["data"] == [expected[0][i] for i in range(10)]
    head = both.get_response()
    assert (head["model_name"], head["model_version"], head["id"]) == (name, "1", "mine")
    told = head["parameters"]
    assert set(told) == {"r", "batch_size", "queue_ms", "compute_ms"}
    assert told["r"] == 3 and told["batch_size"] == 1 and told["compute_ms"] > 0


def test_prepared_pixels_get_the_answers_of_classify(
    client: triton.InferenceServerClient, pinned: Server, name: str, loaded: LoadedModel
) -> None:
    """RGB bytes and normalised floats of the model's own size, binary and JSON."""
    pictures = [chelsea(), astronaut()]
    expected = scores(pinned, *map(png, pictures))
    pixels = np.stack([prepared(loaded, picture) for picture in pictures])
    floats = loaded.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    for binary in (True, False):
        assert table(client.infer(name, [array("pixels", pixels, binary=binary)])) == expected
        result = client.infer(name, [array("pixel_values", floats, binary=binary)])
        assert table(result) == expected
        assert result.get_response()["parameters"]["rounding"] == 0
    between = np.zeros((1, 3, SIDE, SIDE), np.float32) + np.float32(100.4 / 255)
    between = (between - as_channels(loaded.mean)) / as_channels(loaded.std)
    told = client.infer(name, [array("pixel_values", between)]).get_response()["parameters"]
    assert told["rounding"] == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("binary", [True, False])
def test_classification(
    client: triton.InferenceServerClient, pinned: Server, name: str, photo: bytes, binary: bool
) -> None:
    """The best k as texts, whose numbers are those of ``/classify``; no more than there are."""
    with pinned.client() as http:
        answer = http.post("/classify?top_k=3", files={"file": photo}).json()
    expected = [
        f"{p['score']}:{p['index']}:{p['label']}" for p in answer["results"][0]["predictions"]
    ]
    outputs = wanted(binary_data=binary, class_count=3)
    texts = client.infer(name, [encoded(photo)], outputs=outputs).as_numpy("probabilities")
    assert texts.shape == (1, 3)
    assert [t.decode() if isinstance(t, bytes) else t for t in texts[0]] == expected
    all_of_them = wanted(binary_data=binary, class_count=1000)
    result = client.infer(name, [encoded(photo, photo)], outputs=all_of_them)
    assert result.as_numpy("probabilities").shape == (2, len(LABELS))


def test_plain_json(pinned: Server, name: str, photo: bytes, loaded: LoadedModel) -> None:
    """Whoever has no client library sends base64, or numbers nested as they like."""
    tensor = {
        **{"name": "image", "shape": [1], "datatype": "BYTES"},
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(photo).decode()],
    }
    nested = {
        **{"name": "pixels", "shape": [1, SIDE, SIDE, 3], "datatype": "UINT8"},
        "data": [prepared(loaded, chelsea()).tolist()],
    }
    with pinned.client() as http:
        for body, file in ((tensor, photo), (nested, png(chelsea()))):
            answer = http.post(f"/v2/models/{name}/versions/1/infer", json={"inputs": [body]})
            assert answer.status_code == 200 and "id" not in answer.json()
            (output,) = answer.json()["outputs"]
            assert output["shape"] == [1, len(LABELS)]
            assert dict(enumerate(output["data"])) == scores(pinned, file)[0]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(
    client: triton.InferenceServerClient,
    pinned: Server,
    name: str,
    algorithm: str,
    loaded: LoadedModel,
) -> None:
    """Compressed bodies are unpacked; a compressed answer may be asked for and is not given."""
    pixels = prepared(loaded, chelsea())[None]
    result = client.infer(
        name,
        [array("pixels", pixels)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert table(result) == scores(pinned, png(chelsea()))


def test_errors_have_the_protocols_form(
    client: triton.InferenceServerClient, name: str, photo: bytes
) -> None:
    """Statuses are those of ``/classify``; messages say what was wrong and which image it was."""
    status, message = refusal(lambda: client.infer(name, [encoded(photo, photo[:500])]))
    assert status == "400" and message.startswith("Image 2: ") and "truncated" in message
    status, message = refusal(lambda: client.infer(name, [encoded(*[photo] * 33)]))
    assert status == "400" and "33 images" in message
    status, message = refusal(lambda: client.infer(name, [array("pixels", coffee()[None])]))
    assert status == "400" and f"[n, {SIDE}, {SIDE}, 3]" in message
    raw = np.full((1, 3, SIDE, SIDE), 200, np.float32)
    status, message = refusal(lambda: client.infer(name, [array("pixel_values", raw)]))
    assert status == "400" and "mean" in message
    status, message = refusal(
        lambda: client.infer(
            name, [encoded(photo)], outputs=[triton.InferRequestedOutput("logits")]
        )
    )
    assert status == "400" and "'probabilities'" in message
    status, message = refusal(lambda: client.infer(name, [encoded(photo)], parameters={"max_R": 3}))
    assert status == "400" and "max_R" in message
    status, message = refusal(
        lambda: client.infer(name, [encoded(photo)], sequence_id=1, sequence_start=True)
    )
    assert status == "400" and "sequence_id" in message


def test_other_refusals(pinned: Server, name: str, photo: bytes) -> None:
    """What the framework, the door and the limits say has the form too."""
    path = f"/v2/models/{name}/infer"
    with pinned.client() as http:
        answers = {
            404: http.get("/v2/nothing"),
            405: http.get(path),
            413: http.post(path, content=bytes(70_000_000), headers={"Expect": ""}),
            415: http.post(path, content=photo, headers={"Content-Type": "image/jpeg"}),
            421: http.get("/v2", headers={"Host": "evil.example"}),
        }
        for status, answer in answers.items():
            assert answer.status_code == status, answer.text
            assert set(answer.json()) == {"error"} and len(answer.json()["error"]) > 20
            assert answer.headers["content-type"] == "application/json"
        brotli = {"Content-Encoding": "br"}
        assert http.post(path, content=b"", headers=brotli).status_code == 415


def test_deadline_priority_and_limit(
    client: triton.InferenceServerClient, name: str, photo: bytes
) -> None:
    """A passed deadline is 504; a request may accept less compression than the server's."""
    for late in ({"timeout": 1}, {"parameters": {"deadline_ms": 0.001}}):
        ask = partial(client.infer, name, [encoded(photo)], **late)
        status, message = refusal(ask)
        assert status == "504" and "deadline" in message
    patient = client.infer(name, [encoded(photo)], timeout=60_000_000, priority=1)
    assert patient.get_response()["parameters"]["r"] == 3
    for priority in (1, 2, 9):
        client.infer(name, [encoded(photo)], priority=priority)
    exact = client.infer(name, [encoded(photo)], parameters={"max_r": 1})
    assert exact.get_response()["parameters"]["r"] <= 1


def test_32_at_once(
    client: triton.InferenceServerClient, pinned: Server, name: str, photo: bytes
) -> None:
    """Everybody gets the answer to their own picture."""
    pictures = [photo, png(coffee()), png(astronaut())]
    expected = scores(pinned, *pictures)
    waiting = [client.async_infer(name, [encoded(pictures[i % 3])]) for i in range(64)]
    for i, request in enumerate(waiting):
        assert table(request.get_result()) == [expected[i % 3]]


def test_the_asyncio_client(pinned: Server, name: str, photo: bytes, loaded: LoadedModel) -> None:
    """The same from the client for asyncio: metadata, both forms, classes, errors, 32 at once."""
    expected = scores(pinned, photo)[0]

    async def story() -> None:
        async with triton_aio.InferenceServerClient(address(pinned), conn_limit=32) as client:
            assert await client.is_server_ready() and await client.is_model_ready(name)
            assert (await client.get_model_metadata(name))["name"] == name
            answers = await asyncio.gather(
                *(client.infer(name, [encoded(photo)]) for _ in range(64))
            )
            assert all(table(answer) == [expected] for answer in answers)
            as_json = wanted(binary_data=False, class_count=1)
            answer = await client.infer(name, [encoded(photo)], outputs=as_json, timeout=60_000_000)
            score, index, label = answer.as_numpy("probabilities")[0][0].split(":")
            assert float(score) == expected[int(index)] and label == LABELS[int(index)]
            pixels = array("pixels", prepared(loaded, chelsea())[None], binary=False)
            assert table(await client.infer(name, [pixels])) == scores(pinned, png(chelsea()))
            await fails(client.infer(name, [encoded(b"no image")]), "400")
            await fails(client.infer("another", [encoded(photo)]), "404")
            await fails(client.infer(name, [encoded(photo)], timeout=1), "504")

    asyncio.run(story())


async def fails(asking: "Coroutine[Any, Any, object]", status: str) -> None:
    """A request is refused so."""
    with pytest.raises(InferenceServerException) as caught:
        await asking
    assert caught.value.status() == status


def test_a_full_queue_is_429_with_retry_after(model_file: "Path", photo: bytes) -> None:
    """The limits are those of ``/classify``, and so is the header that says when to come back."""
    flags = ("--queue-size=2", "--slo-ms=20000", "--no-idle-profiling")
    server = start_server(f"--model={model_file}", *flags)
    try:
        server.wait_until_ready(300)
        with server.client() as http, ThreadPoolExecutor(32) as threads:
            name = http.get("/model").json()["name"]
            head, raw = _two_images(photo)
            headers = {"Inference-Header-Content-Length": str(len(head))}

            def ask(_: int) -> httpx.Response:
                return http.post(f"/v2/models/{name}/infer", content=head + raw, headers=headers)

            answers = list(threads.map(ask, range(64)))
        counts = {answer.status_code for answer in answers}
        assert counts == {200, 429}
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1 and set(answer.json()) == {"error"}
        with server.client() as http:
            metrics = http.get("/metrics").text
        assert 'outcome="shed"' in metrics and 'outcome="ok"' in metrics
    finally:
        end_server(server)


def _two_images(photo: bytes) -> tuple[bytes, bytes]:
    element = len(photo).to_bytes(4, "little") + photo
    tensor = {
        **{"name": "image", "shape": [2], "datatype": "BYTES"},
        "parameters": {"binary_data_size": 2 * len(element)},
    }
    return json.dumps({"inputs": [tensor]}).encode(), 2 * element
