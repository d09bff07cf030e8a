"""A closed-loop HTTP client that costs next to nothing, so that it is the server that is measured.

Sockets and epoll, no event loop: a connection writes bytes that were built beforehand and looks for
the end of the answer; nothing is parsed beyond its status and length. The server shares the machine
with it: what a general client takes per request (a third of a millisecond) would be missing there.
What this one took is part of the outcome.
"""

import json
import select
import socket
import time
from base64 import b64encode
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice

ANSWER_WITHIN_S = 300.0
_CHUNK = 1 << 18


@dataclass
class Load:
    """What became of the requests of one closed loop.

    Attributes:
        latencies_s: of the answers with status 200, in the order in which they came.
        failures: all other answers, as they came.
        taken_s: from the first request to the last answer.
        cpu_s: what the client itself computed meanwhile, on one core.
    """

    latencies_s: list[float] = field(default_factory=list)
    failures: list[bytes] = field(default_factory=list)
    taken_s: float = 0.0
    cpu_s: float = 0.0


class _Connection:
    """Sends the next of its requests whenever the answer to the last one is complete."""

    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = cycle(requests)
        self._seen = b""
        self._wanted = 0
        self.sent_at = 0.0

    def send(self) -> None:
        """Write a request; it fits the socket's buffer, or the server is reading."""
        self.sent_at = time.monotonic()
        self.socket.sendall(next(self._requests))

    def receive(self) -> bytes | None:
        """Read what there is; returns the answer once it is complete.

        Raises:
            ConnectionError: the server hung up instead of answering.
        """
        chunk = self.socket.recv(_CHUNK)
        if not chunk:
            raise ConnectionError(f"the server hung up after {self._seen[-300:]!r}")
        self._seen += chunk
        if not self._wanted:
            head, separator, _ = self._seen.partition(b"\r\n\r\n")
            if not separator:
                return None
            length = _length(head)
            if length is None:  # in chunks, the last of which is empty
                if not self._seen.endswith(b"0\r\n\r\n"):
                    return None
                length = 0
            self._wanted = len(head) + len(separator) + length
        if len(self._seen) < self._wanted:
            return None
        answer, self._seen, self._wanted = self._seen, b"", 0
        return answer


def closed_loop(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Keep so many requests under way, each on its own connection, for so long.

    Args:
        port: of the server, on this machine.
        requests: sent in turns; each connection begins with another one.
        connections: how many.
        seconds: after this no further request is sent, and the last answers are awaited.

    Raises:
        OSError: the server cannot be reached, or hung up.
        TimeoutError: a request was never answered.
    """
    load = Load()
    with ExitStack() as stack:
        opened = [
            _Connection(port, [*islice(cycle(requests), index, index + len(requests))])
            for index in range(connections)
        ]
        for connection in opened:
            stack.enter_context(connection.socket)
        started, started_cpu = time.monotonic(), time.thread_time()
        _exchange(opened, load, started + seconds)
        load.taken_s = time.monotonic() - started
        load.cpu_s = time.thread_time() - started_cpu
    return load


def _exchange(opened: Sequence[_Connection], load: Load, give_up: float) -> None:
    """Send and receive until the time is over and all is answered."""
    open_by_number = {connection.socket.fileno(): connection for connection in opened}
    poller = select.epoll()
    try:
        for number, connection in open_by_number.items():
            poller.register(number, select.EPOLLIN)
            connection.send()
        while open_by_number:
            ready = poller.poll(give_up + ANSWER_WITHIN_S - time.monotonic())
            if not ready:
                raise TimeoutError(f"no answer within {ANSWER_WITHIN_S:g} s")
            for number, _ in ready:
                connection = open_by_number[number]
                answer = connection.receive()
                if answer is None:
                    continue
                now = time.monotonic()
                if answer.startswith(b"HTTP/1.1 200"):
                    load.latencies_s.append(now - connection.sent_at)
                else:
                    load.failures.append(answer)
                if now < give_up:
                    connection.send()
                else:
                    poller.unregister(number)
                    del open_by_number[number]
    finally:
        poller.close()


def raw_request(body: bytes) -> bytes:
    """A request to classify one image, sent as it is."""
    return _post(body, "image/jpeg")


def json_request(image: bytes) -> bytes:
    """The same for servers that take JSON only."""
    return _post(json.dumps({"image": b64encode(image).decode()}).encode(), "application/json")


def _post(body: bytes, content_type: str) -> bytes:
    """The bytes of a request, with the headers that a usual client sends."""
    head = (
        "POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nAccept-Encoding: gzip, "
        f"deflate\r\nUser-Agent: overhead\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {content_type}\r\n\r\n"
    )
    return head.encode() + body


def _length(head: bytes) -> int | None:
    """The announced length of an answer's body; None if it comes in chunks."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
        if name.lower() == b"transfer-encoding" and value.strip().lower() == b"chunked":
            return None
    raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
