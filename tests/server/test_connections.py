"""One connection's costs, with a clock that is moved by hand and a transport that only notes."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from server.access_settings import AccessSettings
from server.connections import (
    BODY_GRACE_S,
    LINGER_S,
    MAX_PIPELINED,
    STUCK_S,
    Connections,
    GuardedProtocol,
)

GET = b"GET /x HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n"


class Wire(asyncio.Transport):
    """The other end: what was written, and whether it was closed."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closing = self.aborted = self.paused = False

    def write(self, data: Any) -> None:
        """Note it."""
        self.written += bytes(data)

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closing

    def close(self) -> None:
        """Close, and wait for what is written to be taken."""
        self.closing = True

    def abort(self) -> None:
        """Close without waiting."""
        self.closing = self.aborted = True

    def pause_reading(self) -> None:
        """Note it."""
        self.paused = True

    def resume_reading(self) -> None:
        """Note it."""
        self.paused = False

    @property
    def statuses(self) -> list[int]:
        """Of all answers."""
        return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.written)]


class Bench:
    """Connections to an application that reads bodies, or does not, and answers when it may."""

    def __init__(self, reads_body: bool, **settings: Any) -> None:
        self.now = 0.0
        self.refusals: list[str] = []
        self.served: list[Any] = []
        self.disconnected = 0
        self.go = asyncio.Event()
        self.go.set()
        self.reads_body = reads_body
        access = AccessSettings(**settings)
        self.connections = Connections(access, 1000, lambda: self.now, self.refusals.append)
        self.config = uvicorn.Config(self.app, log_config=None, interface="asgi3", lifespan="off")
        self.state = ServerState()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The application."""
        self.served.append(scope)
        while self.reads_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected += 1
                return
            if not message["more_body"]:
                break
        await self.go.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    def connect(self, peer: str = "192.0.2.1") -> tuple[GuardedProtocol, Wire]:
        """A new connection."""
        protocol = GuardedProtocol(self.connections, self.config, self.state, {})
        wire = Wire(peer)
        protocol.connection_made(wire)
        return protocol, wire

    async def pass_time(self, seconds: float) -> None:
        """Move the clock and have all connections looked at, as happens each second."""
        await settle()
        self.now += seconds
        self.connections._look_at_all()
        await settle()


async def settle() -> None:
    """Let tasks run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def tell(story: Callable[[Bench], Awaitable[None]], reads_body: bool = True, **set: Any) -> None:
    """Run a story on a loop of its own."""

    async def run() -> None:
        bench = Bench(reads_body, **set)
        await story(bench)
        for task in tuple(bench.state.tasks):
            task.cancel()
        timer = bench.connections._next_look
        if timer is not None:
            timer.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nX: ", b"\r\n\r\n"])
def test_a_head_has_its_time(start: bytes) -> None:
    """Silence, half a head and mere line ends are all closed after it, and not before."""

    async def story(bench: Bench) -> None:
        protocol, wire = bench.connect()
        if start:
            protocol.data_received(start)
        await bench.pass_time(4.9)
        assert not wire.is_closing()
        await bench.pass_time(0.2)
        assert wire.is_closing() and wire.statuses == [408] and bench.refusals == ["slow_head"]

    tell(story, header_timeout_s=5)


def test_the_next_head_has_its_own_time() -> None:
    """It counts from its first byte, not from the connection's."""

    async def story(bench: Bench) -> None:
        protocol, wire = bench.connect()
        protocol.data_received(GET)
        await bench.pass_time(30)
        assert wire.statuses == [200] and not wire.is_closing()
        protocol.data_received(GET[:10])
        await bench.pass_time(4.9)
        assert not wire.is_closing()
        protocol.data_received(GET[10:])
        await bench.pass_time(4.9)
        assert wire.statuses == [200, 200] and not wire.is_closing()
        protocol.data_received(GET[:10])
        await bench.pass_time(5.1)
        assert wire.is_closing() and wire.statuses == [200, 200, 408]

    tell(story, header_timeout_s=5)


def test_a_body_has_a_rate() -> None:
    """After its grace, one below it ends the request, and the application hears of it."""

    async def story(bench: Bench) -> None:
        fast, fast_wire = bench.connect()
        slow, slow_wire = bench.connect()
        for protocol in (fast, slow):
            protocol.data_received(POST)
        for _ in range(int(BODY_GRACE_S) + 2):
            fast.data_received(bytes(1100))
            slow.data_received(bytes(900))
            await bench.pass_time(1)
        assert not fast_wire.is_closing()
        assert slow_wire.is_closing() and slow_wire.statuses == [408]
        assert bench.refusals == ["slow_body"] and bench.disconnected == 1

    tell(story, min_body_rate=1000)


def test_a_body_that_we_keep_waiting_is_not_slow() -> None:
    """While the application does not read, no time counts."""

    async def story(bench: Bench) -> None:
        bench.go.clear()
        protocol, wire = bench.connect()
        protocol.data_received(POST + bytes(70_000))
        await settle()
        assert wire.paused
        await bench.pass_time(100)
        assert not wire.is_closing()

    tell(story, reads_body=False, min_body_rate=1000)


def test_the_rest_of_an_unread_body_may_not_go_on() -> None:
    """After an early answer it is thrown away for some seconds; then that ends."""

    async def story(bench: Bench) -> None:
        protocol, wire = bench.connect()
        protocol.data_received(POST)
        await settle()
        assert wire.statuses == [200]
        for _ in range(int(LINGER_S)):
            protocol.data_received(bytes(10))
            await bench.pass_time(1)
        assert not wire.is_closing()
        await bench.pass_time(1.5)
        assert wire.is_closing() and wire.statuses == [200]

    tell(story, reads_body=False)


def test_framing_has_a_limit() -> None:
    """Chunk extensions without end are no body, and end."""

    async def story(bench: Bench) -> None:
        protocol, wire = bench.connect()
        protocol.data_received(
            POST.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked")
        )
        protocol.data_received(b"1;")
        for _ in range(110):
            protocol.data_received(b"x" * 10_000)
        await settle()
        assert wire.is_closing() and wire.statuses == [400]

    tell(story)


def test_a_peer_that_takes_nothing_is_cut_off() -> None:
    """An answer may lie for a while; so may what was written before a close."""

    async def story(bench: Bench) -> None:
        lazy, lazy_wire = bench.connect()
        lazy.pause_writing()
        _, gone_wire = bench.connect()
        gone_wire.close()
        await bench.pass_time(1)
        await bench.pass_time(LINGER_S + 1)
        assert gone_wire.aborted and not lazy_wire.is_closing()
        await bench.pass_time(STUCK_S)
        assert lazy_wire.aborted and bench.refusals == ["slow_reader"]

    tell(story)


def test_connections_are_counted() -> None:
    """Per client and in all; a place is free again once its connection is gone."""

    async def story(bench: Bench) -> None:
        first = [bench.connect() for _ in range(3)]
        assert [wire.statuses for _, wire in first] == [[], [], [503]]
        assert (
            "This client holds 2" in json.loads(first[2][1].written.split(b"\r\n\r\n")[1])["detail"]
        )
        proxied = [bench.connect("10.0.0.1") for _ in range(3)]
        assert not any(wire.is_closing() for _, wire in proxied)
        late, over = bench.connect("192.0.2.2")
        late.data_received(GET)
        assert over.statuses == [503] and over.closing
        assert bench.refusals == ["too_many_connections"] * 2
        for protocol, _ in first:
            protocol.connection_lost(None)
            protocol.connection_lost(None)
        assert not bench.connect()[1].is_closing()

    limits: dict[str, Any] = {"max_connections": 6, "max_connections_per_client": 2}
    tell(story, trusted_proxies="10.0.0.0/8", **limits)


def test_probes_find_room_when_connections_are_all_taken() -> None:
    """Who asks whether we live is answered, once a connection; so much is not for everybody."""

    async def story(bench: Bench) -> None:
        for n in range(4):
            bench.connect(f"192.0.2.{n}")
        for path in (b"/healthz", b"/readyz"):
            probe, wire = bench.connect("192.0.2.100")
            probe.data_received(GET.replace(b"/x", path))
            await settle()
            assert wire.statuses == [200] and wire.is_closing()
            probe.connection_lost(None)
        for path in (b"/healthz/", b"/healthz?x", b"/classify"):
            other, wire = bench.connect("192.0.2.100")
            other.data_received(GET.replace(b"/x", path))
            assert wire.statuses == [503] and wire.is_closing()
            other.connection_lost(None)
        greedy = [bench.connect("192.0.2.101")[1] for _ in range(3)]
        assert [wire.is_closing() for wire in greedy] == [False, False, True]
        many = [bench.connect(f"198.51.100.{n}")[1] for n in range(20)]
        assert [wire.is_closing() for wire in many] == [False] * 13 + [True] * 7
        assert [scope["path"] for scope in bench.served] == ["/healthz", "/readyz"]
        assert set(bench.refusals) == {"too_many_connections"}

    tell(story, max_connections=4)


def test_a_network_of_addresses_is_one_client() -> None:
    """Whoever has one IPv6 address has 2^64 of them."""

    async def story(bench: Bench) -> None:
        wires = [bench.connect(f"2001:db8::{n}")[1] for n in range(1, 5)]
        assert [wire.is_closing() for wire in wires] == [False, False, True, True]

    tell(story, max_connections_per_client=2)


def test_a_pipeline_has_an_end() -> None:
    """So many requests may wait; what came before is answered, then the connection closed."""

    async def story(bench: Bench) -> None:
        bench.go.clear()
        protocol, wire = bench.connect()
        protocol.data_received(GET * 1000)
        protocol.data_received(GET * 1000)
        assert len(protocol.pipeline) == MAX_PIPELINED
        bench.go.set()
        for _ in range(MAX_PIPELINED):
            await settle()
        assert wire.statuses == [200] * (MAX_PIPELINED + 1) and wire.is_closing()

    tell(story)


def test_a_trailer_is_no_header() -> None:
    """It would come after the checks, and be a header all the same."""

    async def story(bench: Bench) -> None:
        head = POST.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked")
        protocol, wire = bench.connect()
        protocol.data_received(head + b"1\r\nx\r\n0\r\nX-API-Key: a\r\n\r\n")
        await settle()
        assert all(b"x-api-key" not in dict(scope["headers"]) for scope in bench.served)
        assert wire.is_closing() and wire.statuses == [400]

    tell(story)


def test_a_good_body_is_served() -> None:
    """With a length or in chunks, in any pieces, and one connection serves many."""

    async def story(bench: Bench) -> None:
        protocol, wire = bench.connect()
        head = POST.replace(b"100000", b"5")
        chunked = POST.replace(b"Content-Length: 100000", b"Transfer-Encoding: chunked")
        for request in (head + b"hello", chunked + b"5;a=b\r\nhello\r\n0\r\n\r\n", GET):
            for index in range(len(request)):
                protocol.data_received(request[index : index + 1])
            await settle()
        assert wire.statuses == [200] * 3 and not wire.is_closing() and bench.refusals == []

    tell(story)
