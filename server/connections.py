"""What one connection may cost: uvicorn's protocol with the limits that it does not have.

Counted are connections, bytes of the request's head, and requests that wait behind another on the
same connection; timed are the head, the body's rate, and how long a peer lets an answer lie. There
is no timer per request: once a second all connections are looked at, and in between a request costs
a few assignments.
"""

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.access_settings import AccessSettings
from server.client_address import ClientAddresses, counted_as, parse_address
from server.clock import Clock, monotonic
from server.corked import CorkedTransport
from server.errors import (
    BadRequest,
    HeadersTooLarge,
    ServeError,
    SlowRequest,
    TooManyConnections,
    UriTooLong,
)
from server.raw_refusal import raw_refusal
from server.stats import RefusalReason

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
MAX_URI_BYTES = 8192
MAX_HEADERS = 100
MAX_PIPELINED = 32
"""Requests that may wait on one connection; a few bytes each to send, some kilobytes to keep."""
BODY_GRACE_S = 10.0
"""Before this the rate of a body says nothing."""
LINGER_S = 5.0
"""What is left of a body may arrive for so long after an answer that did not wait for it."""
STUCK_S = 30.0
"""A peer may let an answer lie for so long without taking any of it."""
_SPARE_FILES = 256
"""Open files beside connections: the model's, logs, wake-up pipes."""
PROBES = frozenset({b"/healthz", b"/readyz"})
_PROBE_CONNECTIONS, _PROBES_PER_CLIENT = 16, 2
"""Beyond the limit, for probes alone: who finds no room to ask takes a busy server for dead."""


class Connections:
    """All connections of the server, and what they may cost.

    Args:
        settings: the limits.
        max_body_bytes: most bytes of a body, as it is meant; its framing may take some more.
        clock: monotonic seconds.
        on_refusal: told the reason of each refusal.
    """

    def __init__(
        self,
        settings: AccessSettings,
        max_body_bytes: int,
        clock: Clock = monotonic,
        on_refusal: Callable[[RefusalReason], None] = lambda reason: None,
    ) -> None:
        most = settings.max_connections
        self.max_header_bytes = settings.max_header_bytes
        self.header_timeout_s = settings.header_timeout_s
        self.min_body_rate = settings.min_body_rate
        self.max_framed_bytes = 2 * max_body_bytes + 1_000_000
        self.clock = clock
        self.on_refusal = on_refusal
        self._most = most
        self._most_per_client = settings.max_connections_per_client or max(1, most // 2)
        self._proxies = ClientAddresses(settings.proxy_networks)
        self._open: set[GuardedProtocol] = set()
        self._of_client: Counter[str] = Counter()
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """What uvicorn makes for each connection."""
        return cast(type[asyncio.Protocol], partial(GuardedProtocol, self))

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: "GuardedProtocol") -> ServeError | None:
        """Count a connection; returns why it may not stay, if it may not."""
        client = connection.counted_as
        full = len(self._open) >= self._most
        self._open.add(connection)
        self._of_client[client] += 1
        if self._next_look is None:
            self._next_look = connection.loop.call_later(LOOK_EVERY_S, self._look_at_all)
        if full:
            error = TooManyConnections(
                f"The server holds {self._most} connections; try again soon."
            )
            spare = self._of_client[client] <= _PROBES_PER_CLIENT
            if not spare or len(self._open) > self._most + _PROBE_CONNECTIONS:
                return error
            connection.unless_probe = error
            return None
        if self._of_client[client] > self._most_per_client:
            if connection.client and self._proxies.is_trusted(connection.client[0]):
                return None
            return TooManyConnections(
                f"This client holds {self._most_per_client} connections; use them again instead of "
                "opening more."
            )
        return None

    def forget(self, connection: "GuardedProtocol") -> None:
        """The connection is gone."""
        if connection in self._open:
            self._open.discard(connection)
            self._of_client[connection.counted_as] -= 1
            if not self._of_client[connection.counted_as]:
                del self._of_client[connection.counted_as]

    def _look_at_all(self) -> None:
        now = self.clock()
        for connection in tuple(self._open):
            connection.look(now)
        self._next_look = None
        if self._open:
            loop = asyncio.get_running_loop()
            self._next_look = loop.call_later(LOOK_EVERY_S, self._look_at_all)


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    A request is in its head, in its body, or complete: ``_head_since`` is set in the first state,
    ``_body_since`` in the second.
    """

    def __init__(self, connections: Connections, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._connections = connections
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._received = 0
        self._stuck_since: float | None = None
        self._lingers_since: float | None = None
        self._refusal: ServeError | None = None
        self._deaf = False
        self.counted_as = "-"
        self.unless_probe: ServeError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and say so if there is no room."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, CorkedTransport(transport, self.loop))
        address = parse_address(self.client[0]) if self.client else None
        self.counted_as = "-" if address is None else counted_as(address)
        self._head_since = self._connections.clock()
        if (refusal := self._connections.admit(self)) is not None:
            self._hang_up(refusal, "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what is no HTTP ends the connection."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self._head_since is None and self._body_since is None:
            self._head_since = self._connections.clock()
            self._received = 0
        self._received += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._answer_and_close()  # no other protocol is spoken here, which is no error
        except httptools.HttpParserError:
            self._on_nonsense()
        else:
            self._check_sizes()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        super().on_url(url)
        if len(self.url) > MAX_URI_BYTES:
            self._fail(UriTooLong(f"The URI has more than {MAX_URI_BYTES} bytes; shorten it."))

    def on_headers_complete(self) -> None:
        """Check the head as a whole, then start on the request."""
        if self._received > self._connections.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._connections.max_header_bytes:
                self._fail(self._too_large())
        if len(self.headers) > MAX_HEADERS:
            self._fail(HeadersTooLarge(f"There are more than {MAX_HEADERS} headers; send fewer."))
        if len(self.pipeline) >= MAX_PIPELINED:
            self._fail(BadRequest(f"{MAX_PIPELINED} requests wait on this connection already."))
        if self.unless_probe is not None and self.url not in PROBES:
            self._fail(self.unless_probe)
        super().on_headers_complete()
        if self.unless_probe is not None and self.cycle is not None:
            self.cycle.keep_alive = False
        # The list belongs to the request from now on; a trailer must not become one of its headers.
        self.headers = _NO_TRAILERS
        self._head_since = None
        self._body_since = self._connections.clock()
        self._received = 0

    def on_message_complete(self) -> None:
        """The body is there."""
        self._body_since = self._lingers_since = None
        super().on_message_complete()

    def look(self, now: float) -> None:
        """End it if its peer has kept it waiting for too long."""
        if self.transport.is_closing() or self.flow.write_paused:
            self._look_at_stuck(now)
            return
        self._stuck_since = None
        busy = self._under_way is not None
        if self._head_since is not None and not busy:
            if now - self._head_since > self._connections.header_timeout_s:
                seconds = f"{self._connections.header_timeout_s:g} s"
                self._hang_up(SlowRequest(f"The headers took longer than {seconds}."), "slow_head")
        elif self._body_since is not None:
            self._look_at_body(now, self._body_since, busy)

    @property
    def _under_way(self) -> RequestResponseCycle | None:
        """The last request that came, unless it is answered."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _look_at_stuck(self, now: float) -> None:
        """Something is written that the peer does not take."""
        if self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > (LINGER_S if self.transport.is_closing() else STUCK_S):
            if not self.transport.is_closing():
                self._connections.on_refusal("slow_reader")
            self.transport.abort()

    def _look_at_body(self, now: float, since: float, busy: bool) -> None:
        if self.flow.read_paused:
            self._body_since, self._received = now, 0  # it is us who make it wait
        elif not busy:
            # Answered before the body was there: the rest is thrown away, but not for ever.
            self._linger(now)
        elif now - since > BODY_GRACE_S:
            rate = self._connections.min_body_rate
            if self._received < rate * (now - since):
                error = SlowRequest(f"The body brought less than {rate} bytes/s; send it faster.")
                self._hang_up(error, "slow_body")

    def _linger(self, now: float) -> None:
        if self._lingers_since is None:
            self._lingers_since = now
        elif now - self._lingers_since > LINGER_S:
            self.transport.close()

    def _check_sizes(self) -> None:
        if self._head_since is not None:
            if self._received > self._connections.max_header_bytes:
                self._hang_up(self._too_large(), "bad_http")
        elif self._body_since is not None and self._received > self._connections.max_framed_bytes:
            self._hang_up(BadRequest("The body's framing is larger than any body."), "bad_http")

    def _too_large(self) -> HeadersTooLarge:
        limit = self._connections.max_header_bytes
        return HeadersTooLarge(f"The headers have more than {limit} bytes; send fewer or shorter.")

    def _fail(self, refusal: ServeError) -> None:
        """Stop the parser, from within one of its callbacks."""
        self._refusal = refusal
        raise ValueError(refusal.detail)

    def _on_nonsense(self) -> None:
        cycle = self._under_way
        if cycle is not None and not cycle.more_body:
            self._connections.on_refusal("bad_http")
            self._answer_and_close()  # what came before was good
            return
        error = self._refusal or BadRequest("This is no HTTP/1.1 request that could be read.")
        full = error is self.unless_probe
        self._hang_up(error, "too_many_connections" if full else "bad_http")

    def _answer_and_close(self) -> None:
        """Listen no more, and close after the answers that are due."""
        self._deaf = True
        if (cycle := self._under_way) is None:
            self.transport.close()
        else:
            cycle.keep_alive = False

    def _hang_up(self, error: ServeError, reason: RefusalReason) -> None:
        """Say why, if an answer is due that has not begun, and close."""
        self._connections.on_refusal(reason)
        logger.debug("hung up: reason=%s %s", reason, error.detail)
        self._deaf = True
        cycle = self._under_way
        if (cycle is None or not cycle.response_started) and not self.pipeline:
            self.transport.write(raw_refusal(error))
        self.pipeline.clear()
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


class _NoTrailers(list[tuple[bytes, bytes]]):
    """Takes no header any more."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Refuse it; the parser turns this into a bad request."""
        raise ValueError("trailers are not read here")


_NO_TRAILERS = _NoTrailers()


def allow_open_files(connections: int) -> None:
    """Raise this process' own limit on open files, as far as it may, so that all of them fit."""
    wanted = connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        logger.warning(
            "max_connections=%d needs %d open files, but this process may have %d: raise it with "
            "ulimit -n, or lower max_connections",
            connections,
            wanted,
            possible,
        )
