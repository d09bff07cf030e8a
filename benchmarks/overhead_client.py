"""A closed-loop HTTP client that costs next to nothing, so that it is the server that is measured.

A connection writes bytes that were built beforehand and looks for the end of the answer; nothing is
parsed beyond its status and length. The server shares the machine with it: what a general client
takes per request (a third of a millisecond) would be missing there.
"""

import asyncio
import json
import time
from base64 import b64encode
from dataclasses import dataclass, field

ANSWER_WITHIN_S = 300.0


@dataclass
class Load:
    """What became of the requests of one closed loop."""

    latencies_s: list[float] = field(default_factory=list)
    failures: list[bytes] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """Sends its request again whenever the answer to the last one is complete."""

    def __init__(self, request: bytes, give_up: float, load: Load) -> None:
        self._request = request
        self._give_up = give_up
        self._load = load
        self._seen = b""
        self._sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, separator, body = self._seen.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return
        now = time.monotonic()
        if head.startswith(b"HTTP/1.1 200"):
            self._load.latencies_s.append(now - self._sent)
        else:
            self._load.failures.append(self._seen)
        self._seen = b""
        if now < self._give_up:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self) -> None:
        self._sent = time.monotonic()
        self._transport.write(self._request)


async def closed_loop(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Keep so many requests under way, each on its own connection, for so long.

    Raises:
        TimeoutError: a request was never answered.
    """
    loop = asyncio.get_running_loop()
    load = Load()
    give_up = time.monotonic() + seconds
    opened = [
        await loop.create_connection(lambda: _Connection(request, give_up, load), "127.0.0.1", port)
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + ANSWER_WITHIN_S):
        await asyncio.gather(*(protocol.ended for _, protocol in opened))
    return load


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


def _length(head: bytes) -> int:
    """The announced length of an answer's body."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
