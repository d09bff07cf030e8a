"""Real connections to a server that breaks them: what httpx makes of it, and what becomes of calls.

The scripts of the other tests raise httpx's errors; here it is seen that these are the errors that
httpx raises.
"""

import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import tocom_client
from tests.client.scripted import JPEG, RESULT, Kind, ask
from tocom_client import AsyncClient, Client, RetryPolicy, conversation
from tocom_client.transport import Address

both = pytest.mark.parametrize("kind", ["sync", "async"])

BODY = json.dumps({"request_id": "x", "model": "m", "results": [RESULT]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
    BODY
)
FULL = (
    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)


class Loopback:
    """A server on a free port; of each connection it does what its script says.

    `reset`: reads the request and resets. `close`: reads it and closes. `half`: stops in the middle
    of the answer. `silent`: reads it and says nothing until the end. `early`: refuses (429) before
    it has read the body. `answer`: answers, and stays open. `stale`: answers, then closes.
    """

    def __init__(self, script: Sequence[str]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._script = iter(script)
        self.requests: list[bytes] = []
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let nobody wait any longer."""
        self.closed.set()
        self._listener.close()

    def _serve(self) -> None:
        for step in self._script:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._play(step, connection)

    def _play(self, step: str, connection: socket.socket) -> None:
        if step == "early":
            connection.recv(1000)
            self.requests.append(b"")
            connection.sendall(FULL)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
            return
        while request := _read(connection):
            self.requests.append(request)
            if step == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            if step == "silent":
                self.closed.wait(30)
            if step in ("close", "silent"):
                return
            if step == "half":
                connection.sendall(HEAD + BODY[:10])
                return
            connection.sendall(HEAD + BODY)
            if step == "stale":
                return


def _read(connection: socket.socket) -> bytes:
    """One request with its body; nothing once the other side has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    length = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def loopback(*script: str) -> Iterator[Loopback]:
    """Such a server for the length of the block."""
    server = Loopback(script)
    try:
        yield server
    finally:
        server.end()


def client_of(kind: Kind, url: str, **options: Any) -> Any:
    """A client whose waits take no time."""

    async def no_wait(_: float) -> None:
        return None

    if kind == "sync":
        return Client(url, api_key="", sleep=lambda _: None, **options)
    return AsyncClient(url, api_key="", sleep=no_wait, **options)


@both
@pytest.mark.parametrize("step", ["reset", "close", "half"])
def test_a_connection_that_breaks_is_opened_anew(kind: Kind, step: str) -> None:
    """The same request, byte for byte, reaches the next one; the caller sees the answer only."""
    with loopback(step, step, "answer") as server:
        found = ask(client_of(kind, server.url), "classify", JPEG)
        assert found.top.label == "cat"
        assert len(server.requests) == 3 and len(set(server.requests)) == 1
        assert server.requests[0].endswith(JPEG)


@both
def test_no_proxy_stands_before_this_machine(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says of proxies; to other machines they lead."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with loopback("answer") as server:
        assert ask(client_of(kind, server.url), "classify", JPEG).r == 4
        for url in ("http://localhost:1", "http://[::1]:1", "http://127.9.9.9"):
            assert not Address.of(url, "").behind_proxies
        assert Address.of("https://vision.example.com", "").behind_proxies


@both
def test_a_reload_that_breaks_off_is_not_sent_again(kind: Kind) -> None:
    """Nobody knows whether it has begun."""
    with loopback("reset", "answer") as server:
        with pytest.raises(tocom_client.ConnectionFailed, match="connection broke") as caught:
            ask(client_of(kind, server.url), "reload")
        assert caught.value.sent and caught.value.attempts == 1 and len(server.requests) == 1


@both
def test_nobody_there(kind: Kind) -> None:
    """A refused connection is tried as often as the policy says, and was never sent."""
    with loopback() as server:
        server.end()
        client = client_of(kind, server.url, retry=RetryPolicy(attempts=3))
        with pytest.raises(tocom_client.ConnectionFailed, match="cannot be reached") as caught:
            ask(client, "classify", JPEG)
        assert caught.value.attempts == 3 and not caught.value.sent


@both
def test_a_refusal_is_heard_while_the_body_is_still_sent(kind: Kind) -> None:
    """A server that refuses early is not taken for one that breaks."""
    with loopback("early", "answer") as server:
        image = JPEG + bytes(8_000_000)
        assert ask(client_of(kind, server.url), "classify", image).r == 4
        assert len(server.requests) == 2 and len(server.requests[1]) > 8_000_000


def test_a_kept_connection_that_was_closed_meanwhile_is_no_error() -> None:
    """The next request takes another one."""
    with loopback("stale", "answer") as server:
        with client_of("sync", server.url) as client:
            assert client.classify(JPEG).r == client.classify(JPEG).r == 4
        assert len(server.requests) == 2


def test_connections_are_kept() -> None:
    """Two requests, one connection: a second one would find no script."""
    with loopback("answer") as server:
        with client_of("sync", server.url) as client:
            assert client.classify(JPEG).r == client.classify(JPEG).r == 4
        assert len(server.requests) == 2


@both
def test_a_silent_server_is_left_at_the_deadline(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends though the server never does, and what it was told of the deadline is true."""
    monkeypatch.setattr(conversation, "GRACE_S", 0.01)
    with loopback("silent") as server:
        with pytest.raises(tocom_client.DeadlineExceeded):
            ask(client_of(kind, server.url), "classify", JPEG, deadline_s=0.05)
        (request,) = server.requests
        line = request.split(b"\r\n")[0]
        assert 1 <= int(line.split(b"deadline_ms=")[1].split()[0].split(b"&")[0]) <= 50


@both
def test_a_silent_server_is_left_without_a_deadline_too(kind: Kind) -> None:
    """After `timeout_s`; it is not asked twice."""
    with loopback("silent", "answer") as server:
        with pytest.raises(tocom_client.ConnectionFailed, match="did not answer"):
            ask(client_of(kind, server.url, timeout_s=0.05), "model")
        assert len(server.requests) == 1
