"""Limits, overload, deadlines and clients that leave: over a real socket, with tight settings."""

import io
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.integration.conftest import end_server, start_server

if TYPE_CHECKING:
    from tests.integration.conftest import Server

QUEUE_SIZE = 8
MAX_FILES = 4
MAX_IMAGE_BYTES = 150_000
MAX_BODY_BYTES = 400_000


@pytest.fixture(scope="module")
def tight(model_file: Path) -> Iterator["Server"]:
    """A server with small limits that waits 800 ms for fuller batches, so that things queue up."""
    server = start_server(
        f"--model={model_file}",
        "--max-queue-delay-ms=800",
        "--slo-ms=20000",
        f"--queue-size={QUEUE_SIZE}",
        f"--max-files={MAX_FILES}",
        f"--max-image-bytes={MAX_IMAGE_BYTES}",
        f"--max-body-bytes={MAX_BODY_BYTES}",
        "--max-image-pixels=1000000",
    )
    server.wait_until_ready()
    yield server
    end_server(server)


@pytest.fixture
def client(tight: "Server") -> Iterator[httpx.Client]:
    """A client of it."""
    with tight.client() as client:
        yield client


def slug(response: httpx.Response) -> tuple[int, str]:
    """Status and kind of a problem."""
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["type"].removeprefix("/problems/")


def metric(client: httpx.Client, name: str) -> float:
    """One sample's value; 0 if it is not there yet."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def bomb() -> bytes:
    """A small file with more pixels than allowed."""
    buffer = io.BytesIO()
    Image.new("1", (2000, 2000)).save(buffer, "PNG")
    return buffer.getvalue()


def connect(server: "Server") -> socket.socket:
    """A plain connection."""
    parts = urlsplit(server.url)
    assert parts.hostname and parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=10)


def request_head(length: int | None, query: str = "") -> bytes:
    """The head of a raw image request; without a length it is chunked."""
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /classify{query} HTTP/1.1\r\nHost: test\r\nContent-Type: image/jpeg\r\n{framing}\r\n"
        "\r\n"
    ).encode()


def wait_for(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Return as soon as the condition holds."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.005)


def test_pixel_bomb(client: httpx.Client) -> None:
    """Too many pixels are 413, whatever the file weighs."""
    assert len(bomb()) < 5000
    assert slug(client.post("/classify", files={"file": bomb()})) == (413, "image-too-large")


def test_too_large_a_file(client: httpx.Client) -> None:
    """Too many bytes in one file are 413, raw and as form."""
    data = b"\xff\xd8\xff" + bytes(MAX_IMAGE_BYTES)
    assert slug(client.post("/classify", files={"file": data})) == (413, "image-too-large")
    headers = {"Content-Type": "image/jpeg"}
    assert slug(client.post("/classify", content=data, headers=headers))[0] == 413


def test_too_large_a_file_does_not_cost_the_others(client: httpx.Client, photo: bytes) -> None:
    """In a form, only the large one carries a problem."""
    files = [("file", ("big.jpg", bytes(MAX_IMAGE_BYTES + 1))), ("file", ("cat.jpg", photo))]
    big, cat = client.post("/classify", files=files).json()["results"]
    assert big["problem"]["status"] == 413 and cat["predictions"]


def test_announced_length_is_refused_before_the_body(tight: "Server") -> None:
    """A Content-Length over the limit is answered without a byte of the body."""
    with connect(tight) as connection:
        connection.sendall(request_head(MAX_BODY_BYTES + 1))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_chunked_body_is_counted(tight: "Server") -> None:
    """Without a Content-Length the body is cut off at the limit, while it still arrives."""
    chunk = b"%x\r\n" % 50_000 + bytes(50_000) + b"\r\n"
    with connect(tight) as connection:
        connection.sendall(request_head(None))
        for _ in range(MAX_BODY_BYTES // 50_000 + 1):
            connection.sendall(chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_too_many_files(client: httpx.Client, photo: bytes) -> None:
    """More parts than allowed are 422 with the number that is."""
    answer = client.post("/classify", files=[("file", b"x")] * (MAX_FILES + 1))
    assert slug(answer) == (422, "bad-parameter")
    assert f"more than {MAX_FILES} files" in answer.json()["detail"]


def test_deadline_is_kept(client: httpx.Client, photo: bytes) -> None:
    """504 comes when the deadline passes, before the batch would run, and costs no compute."""
    before = metric(client, "tocom_batch_size_count")
    started = time.monotonic()
    answer = client.post("/classify?deadline_ms=150", files={"file": photo})
    assert slug(answer) == (504, "deadline-expired")
    assert 0.14 < time.monotonic() - started < 0.7
    time.sleep(0.8)  # the batch that it would have been part of
    assert metric(client, "tocom_batch_size_count") == before
    assert metric(client, 'tocom_images_total{outcome="expired"}') >= 1


def test_deadline_counts_from_the_first_byte(tight: "Server", photo: bytes) -> None:
    """A body that dawdles uses up the deadline."""
    with connect(tight) as connection:
        connection.sendall(request_head(len(photo), "?deadline_ms=200") + photo[:1000])
        started = time.monotonic()
        assert connection.recv(100).startswith(b"HTTP/1.1 504")
        assert time.monotonic() - started < 1


def test_abandoned_work_never_reaches_the_model(
    tight: "Server", client: httpx.Client, photo: bytes
) -> None:
    """A client that hangs up while its image waits is dropped before batching."""
    before = metric(client, "tocom_batch_size_count")
    abandoned = metric(client, 'tocom_requests_total{outcome="abandoned"}')
    with connect(tight) as connection:
        connection.sendall(request_head(len(photo)) + photo)
        wait_for(lambda: metric(client, "tocom_queue_depth") == 1)
    wait_for(lambda: metric(client, "tocom_queue_depth") == 0, within_s=0.6)
    time.sleep(0.8)  # the batch that it would have been part of
    assert metric(client, "tocom_batch_size_count") == before
    assert metric(client, 'tocom_requests_total{outcome="abandoned"}') == abandoned + 1
    assert metric(client, 'tocom_images_total{outcome="abandoned"}') >= 1


def test_client_that_leaves_in_mid_body(tight: "Server", client: httpx.Client) -> None:
    """Half a body and a closed connection leave nothing behind."""
    with connect(tight) as connection:
        connection.sendall(request_head(100_000) + bytes(50_000))
        wait_for(lambda: metric(client, "tocom_in_flight_requests") == 1)
    wait_for(lambda: metric(client, "tocom_in_flight_requests") == 0)


def test_overload_is_429_with_retry_after_and_nothing_else(
    client: httpx.Client, photo: bytes
) -> None:
    """Far more than the queue holds: the excess is told when to come back, the rest is answered."""
    with ThreadPoolExecutor(32) as pool:
        answers = list(
            pool.map(lambda _: client.post("/classify", files={"file": photo}), range(96))
        )
    refused = [a for a in answers if a.status_code == 429]
    assert {a.status_code for a in answers} == {200, 429}
    assert len(answers) - len(refused) >= QUEUE_SIZE
    for answer in refused:
        assert slug(answer) == (429, "queue-full")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert client.get("/readyz").status_code == 200
    assert metric(client, 'tocom_requests_total{outcome="shed"}') == len(refused)


def test_files_are_admitted_all_or_none(client: httpx.Client, photo: bytes) -> None:
    """Under overload each request of several files has all its results or is refused whole."""
    files = [("file", photo)] * MAX_FILES
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/classify", files=files), range(24)))
    assert {a.status_code for a in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 200:
            results = answer.json()["results"]
            assert len(results) == MAX_FILES and all("predictions" in r for r in results)
