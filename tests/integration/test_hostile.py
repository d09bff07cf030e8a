"""A siege: broken images and hostile HTTP, and good requests beside them that nobody may miss.

Everything is made on the spot, the same each time; one server goes through all of it, and then has
to be what it was before.
"""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.bad_images import Sample, samples
from tests.integration.conftest import end_server, start_server
from tests.integration.hostile_http import HEAD, Attack, attacks

if TYPE_CHECKING:
    from tests.integration.conftest import Server

START_S = 300
"""For a machine that is busy with other tests."""
GOOD_REQUESTS = 50
SLOW_CLIENTS = 20
QUITTERS = 60
PATIENCE_S = 20.0
"""Free memory goes back within half of that."""
CLIENT = httpx.Client(timeout=60)

pytestmark = pytest.mark.timeout(600)


@dataclass
class Siege:
    """What was seen during it."""

    corpus: dict[str, tuple[int, Sample]] = field(default_factory=dict)
    http: dict[str, tuple[list[int], bool, Attack]] = field(default_factory=dict)
    good: list[int] = field(default_factory=list)
    slow: dict[str, list[bytes]] = field(default_factory=dict)
    endless: bytes = b""
    rss_before: int = 0


@pytest.fixture(scope="module")
def besieged(model_file: Path) -> Iterator["Server"]:
    """A server with a short patience for headers; no busy machine makes it shed."""
    server = start_server(
        f"--model={model_file}",
        "--slo-ms=20000",
        "--max-image-pixels=4000000",
        "--header-timeout-s=1.5",
        "--live-share=0",
        "--no-idle-profiling",
    )
    server.wait_until_ready(START_S)
    with CLIENT:
        yield server
    end_server(server)


@pytest.fixture(scope="module")
def siege(besieged: "Server", photo: bytes) -> Siege:
    """All attacks at once, beside 50 good requests."""
    seen = Siege()
    corpus = samples()
    good = [sample for sample in corpus if sample.name.startswith("good: ")]
    for sample in good * 2:  # decoders and arenas take their memory once, and keep it
        classify(besieged, sample.data)
    seen.rss_before = rss_bytes(besieged)
    slow = [
        threading.Thread(target=drip, args=(besieged, "head", A_HEAD, seen)),
        threading.Thread(target=drip, args=(besieged, "line ends", b"\r\n", seen)),
        threading.Thread(target=drip, args=(besieged, "body", HEAD_OF_A_BODY, seen)),
        threading.Thread(target=drip, args=(besieged, "chunks", HEAD_OF_CHUNKS, seen)),
    ]
    with ThreadPoolExecutor(6) as pool:
        well = pool.submit(good_requests, besieged, photo, seen)
        for thread in slow:
            thread.start()
        images = [(s, pool.submit(classify, besieged, s.data)) for s in corpus]
        quitters = [pool.submit(quit_early, besieged, photo, n) for n in range(QUITTERS)]
        hostile = [(a, pool.submit(exchange, besieged, a)) for a in attacks(good[5].data)]
        endless = pool.submit(endless_form, besieged, photo)
        for sample, answer in images:
            seen.corpus[sample.name] = answer.result(), sample
        for attack, outcome in hostile:
            seen.http[attack.name] = *outcome.result(), attack
        for quitter in quitters:
            quitter.result()
        seen.endless = endless.result()
        well.result()
    for thread in slow:
        thread.join(60)
    return seen


def test_every_bad_image_gets_its_answer(siege: Siege) -> None:
    """4xx for what is no good image, 200 for one that is merely odd; never a failure of ours."""
    assert len(siege.corpus) >= 300
    wrong = {
        name: status
        for name, (status, sample) in siege.corpus.items()
        if status not in sample.statuses
    }
    assert wrong == {}


def test_every_hostile_request_is_refused_or_closed(siege: Siege) -> None:
    """4xx or an end; nothing is answered twice, and what could hide a request is cut off."""
    assert len(siege.http) >= 80
    wrong = {
        name: (statuses, closed)
        for name, (statuses, closed, attack) in siege.http.items()
        if not set(statuses) <= attack.statuses or (attack.then_closes and not closed)
    }
    assert wrong == {}


def test_a_smuggled_request_is_not_answered(siege: Siege) -> None:
    """What follows an ambiguous head is never taken for a request of its own."""
    suspects = [
        n for n in siege.http if n.startswith(("length and", "line ", "upgrade", "trailer"))
    ]
    assert len(suspects) > 15
    assert {name: len(siege.http[name][0]) for name in suspects} == dict.fromkeys(suspects, 1)


def test_good_requests_beside_them_are_all_answered(siege: Siege) -> None:
    """50 of 50."""
    assert siege.good == [200] * GOOD_REQUESTS


@pytest.mark.parametrize("kind", ["head", "line ends", "body", "chunks"])
def test_slow_clients_are_cut_off(siege: Siege, kind: str) -> None:
    """A head, or a body, that drips in is answered 408 and its connection closed."""
    endings = siege.slow[kind]
    assert len(endings) == SLOW_CLIENTS
    assert all(ending.startswith(b"HTTP/1.1 408") for ending in endings), endings


def test_an_endless_form_ends(siege: Siege) -> None:
    """A multipart body without an end is refused as soon as it has too many parts."""
    assert siege.endless.startswith(b"HTTP/1.1 422")


def test_the_server_is_what_it_was(besieged: "Server", siege: Siege, photo: bytes) -> None:
    """Ready, nothing in flight, memory soon within 10 % of before, no traceback; it classifies."""
    assert wait_until_true(lambda: in_flight(besieged) == 0)
    assert CLIENT.get(f"{besieged.url}/readyz").status_code == 200
    assert classify(besieged, photo) == 200
    limit = 1.1 * siege.rss_before
    assert wait_until_true(lambda: rss_bytes(besieged) <= limit), (
        f"{rss_bytes(besieged) / 1e6:.0f} MB now, {siege.rss_before / 1e6:.0f} MB before"
    )
    assert "Traceback" not in besieged.text


A_HEAD = b"GET /healthz HTTP/1.1\r\nHost: test\r\nX: "
HEAD_OF_A_BODY = HEAD + b"Content-Length: 1000000\r\n\r\nx"
HEAD_OF_CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"


def rss_bytes(server: "Server") -> int:
    """Resident memory of the process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def in_flight(server: "Server") -> float:
    """Requests that are being handled."""
    page = CLIENT.get(f"{server.url}/metrics").text
    found = re.search(r"^tocom_in_flight_requests (\S+)$", page, re.M)
    assert found is not None
    return float(found[1])


def wait_until_true(condition: Callable[[], bool]) -> bool:
    """Whether it became true in good time."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.1)
    return False


def classify(server: "Server", data: bytes) -> int:
    """Send one raw image; the bytes decide, so that it is always declared as the same type."""
    headers = {"Content-Type": "image/png"}
    answer = CLIENT.post(f"{server.url}/classify", content=data, headers=headers)
    document = answer.json()
    assert "results" in document or document["status"] == answer.status_code
    return answer.status_code


def good_requests(server: "Server", photo: bytes, seen: Siege) -> None:
    """50 of them, one after the other, each on its own connection."""
    for _ in range(GOOD_REQUESTS):
        seen.good.append(classify(server, photo))
        time.sleep(0.05)


def connect(server: "Server") -> socket.socket:
    """A plain connection."""
    parts = urlsplit(server.url)
    assert parts.hostname and parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S)


def exchange(server: "Server", attack: Attack) -> tuple[list[int], bool]:
    """Send it; returns the statuses that came (0: none) and whether the connection was closed."""
    received, closed = b"", False
    with connect(server) as connection:
        try:
            connection.sendall(attack.data)
        except ConnectionError:
            closed = True
        try:
            while attack.then_closes or not is_whole(received):
                piece = connection.recv(65536)
                if not piece:
                    closed = True
                    break
                received += piece
        except ConnectionError:
            closed = True
    statuses = [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) [A-Z]", received)]
    return statuses or [0], closed


def is_whole(received: bytes) -> bool:
    """Whether this is at least one whole answer."""
    head, found, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(found) and length is not None and len(body) >= int(length[1])


def drip(server: "Server", kind: str, start: bytes, seen: Siege) -> None:
    """Open connections that go on by a byte now and then, until each is closed."""
    crowd = [connect(server) for _ in range(SLOW_CLIENTS)]
    more = b"1\r\nx\r\n" if kind == "chunks" else b"\r\n" if kind == "line ends" else b"x"
    endings: list[bytes] = []
    for connection in crowd:
        connection.sendall(start)
        connection.settimeout(0.01)
    give_up = time.monotonic() + 3 * PATIENCE_S
    while crowd and time.monotonic() < give_up:
        time.sleep(0.2)
        for connection in tuple(crowd):
            try:
                connection.send(more)
                endings.append(connection.recv(1000))
            except TimeoutError:
                continue
            except ConnectionError:
                endings.append(b"")
            crowd.remove(connection)
            connection.close()
    seen.slow[kind] = endings


def quit_early(server: "Server", photo: bytes, number: int) -> None:
    """Send a part of a request and vanish, by a reset."""
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(photo) + photo
    connection = connect(server)
    connection.sendall(request[: len(request) * (number + 1) // QUITTERS])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def endless_form(server: "Server", photo: bytes) -> bytes:
    """Parts without end; returns the beginning of the answer."""
    head = b"POST /classify HTTP/1.1\r\nHost: test\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + photo[:1000] + b"\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            try:
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
            except ConnectionError:
                break
            if b"HTTP/1.1" in (start := peek(connection)):
                return start
        return connection.recv(100)


def peek(connection: socket.socket) -> bytes:
    """What is there already, without waiting."""
    connection.setblocking(False)
    try:
        return connection.recv(100, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
    finally:
        connection.settimeout(PATIENCE_S)
