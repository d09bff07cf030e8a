"""SIGTERM: not ready, refuse new, finish what was admitted, exit 0 within the bound."""

import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.conftest import end_server, start_server

if TYPE_CHECKING:
    from tests.integration.conftest import Server

FILES = 16
REQUESTS = 12
DRAIN_TIMEOUT_S = 20


@dataclass
class Story:
    """All that was seen while a loaded server shut down."""

    answers: list[httpx.Response] = field(default_factory=list)
    ready: httpx.Response | None = None
    late: httpx.Response | None = None
    finished_upload: bytes = b""
    stuck_upload: bytes = b""
    exit_code: int = -1
    seconds: float = 0.0
    log: str = ""


def open_upload(server: "Server", photo: bytes, sent: int) -> socket.socket:
    """Begin to send a raw image and stop after ``sent`` bytes."""
    parts = urlsplit(server.url)
    assert parts.hostname and parts.port
    connection = socket.create_connection((parts.hostname, parts.port), timeout=30)
    head = (
        "POST /classify HTTP/1.1\r\nHost: test\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(photo)}\r\n\r\n"
    )
    connection.sendall(head.encode() + photo[:sent])
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


@pytest.fixture(scope="module")
def story(model_file: Path, photo: bytes) -> Story:
    """Load a server, end it with SIGTERM, and write down what its clients saw."""
    told = Story()
    # 192 images at once: what is under test is the drain, not what an SLO has shed.
    flags = f"--drain-timeout-s={DRAIN_TIMEOUT_S}", "--slo-ms=20000"
    server = start_server(f"--model={model_file}", *flags)
    try:
        server.wait_until_ready()
        with server.client(60) as client, ThreadPoolExecutor(REQUESTS) as pool:
            slow, stuck = (open_upload(server, photo, sent=1000) for _ in range(2))
            with slow, stuck:
                requests = _load(client, pool, photo)
                _wait_until_busy(client)
                started = time.monotonic()
                server.terminate()
                told.ready = _until_draining(client)
                told.late = client.post("/classify", files={"file": photo})
                slow.sendall(photo[1000:])
                told.finished_upload, told.stuck_upload = read_all(slow), read_all(stuck)
                told.answers = [request.result() for request in requests]
        told.exit_code = server.wait(DRAIN_TIMEOUT_S)
        told.seconds = time.monotonic() - started
        told.log = server.text
    finally:
        end_server(server)
    return told


def _load(
    client: httpx.Client, pool: ThreadPoolExecutor, photo: bytes
) -> list["Future[httpx.Response]"]:
    files = [("file", photo)] * FILES
    return [pool.submit(client.post, "/classify", files=files) for _ in range(REQUESTS)]


def _wait_until_busy(client: httpx.Client) -> None:
    """Until all requests are in the server (the two uploads included)."""
    wanted = f"tocom_in_flight_requests {REQUESTS + 2:.1f}\n"
    give_up = time.monotonic() + 10
    while wanted not in client.get("/metrics").text and time.monotonic() < give_up:
        time.sleep(0.002)


def _until_draining(client: httpx.Client) -> httpx.Response:
    """The first answer of /readyz that is not 200; the stuck upload leaves a second for it."""
    give_up = time.monotonic() + 5
    while True:
        answer = client.get("/readyz")
        if answer.status_code != 200 or time.monotonic() > give_up:
            return answer


def test_admitted_requests_are_answered(story: Story) -> None:
    """Every request that was in the server at the signal gets its results."""
    assert [a.status_code for a in story.answers] == [200] * REQUESTS
    for answer in story.answers:
        assert len(answer.json()["results"]) == FILES


def test_ready_check_says_draining(story: Story) -> None:
    """While draining the port stays open and /readyz is 503."""
    assert story.ready is not None and story.ready.status_code == 503
    assert story.ready.json()["type"] == "/problems/draining"


def test_new_requests_are_refused(story: Story) -> None:
    """A request after the signal is told to go elsewhere, and its connection closes."""
    assert story.late is not None and story.late.status_code == 503
    assert story.late.json()["type"] == "/problems/draining"
    assert story.late.headers["connection"] == "close"


def test_an_upload_that_finishes_soon_is_served(story: Story) -> None:
    """A body that was on its way at the signal is still admitted."""
    assert story.finished_upload.startswith(b"HTTP/1.1 200")


def test_an_upload_that_does_not_finish_is_refused(story: Story) -> None:
    """A body that stays incomplete cannot hold the shutdown up."""
    assert story.stuck_upload.startswith(b"HTTP/1.1 503")
    assert b"/problems/draining" in story.stuck_upload


def test_exit_is_clean_and_in_time(story: Story) -> None:
    """Exit code 0 within the bound, one line each for drain and stop, and no library complains."""
    assert story.exit_code == 0
    assert story.seconds < DRAIN_TIMEOUT_S
    assert "draining: signal=SIGTERM" in story.log and "stopped: exit_code=0" in story.log
    assert "Traceback" not in story.log and "leaked" not in story.log


def test_a_second_signal_forces_the_end(serve: Callable[..., "Server"], photo: bytes) -> None:
    """SIGINT after SIGTERM does not wait for what is stuck; the exit code says so."""
    server = serve("--drain-timeout-s=60")
    with open_upload(server, photo, sent=1000):
        server.terminate()
        give_up = time.monotonic() + 10
        while "draining" not in server.text and time.monotonic() < give_up:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.wait(10) == 1
