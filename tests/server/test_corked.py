"""Heads wait for bodies, and nothing is lost or reordered by it."""

import asyncio
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from server.corked import CorkedTransport

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"{}"


class Wire:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        """Note it."""
        self.told.append(data)

    def close(self) -> None:
        """Note it."""
        self.told.append("close")

    def is_closing(self) -> bool:
        """As a transport says it."""
        return "close" in self.told


def corked() -> tuple[Wire, CorkedTransport]:
    """A transport on the running loop, and what it writes to."""
    wire = Wire()
    return wire, CorkedTransport(cast(asyncio.Transport, wire), asyncio.get_running_loop())


def test_an_answer_is_one_write() -> None:
    """Head and body go together, and are not written again when the loop turns."""

    async def main() -> None:
        wire, transport = corked()
        transport.write(HEAD)
        assert wire.told == []
        transport.write(BODY)
        assert wire.told == [HEAD + BODY]
        await asyncio.sleep(0)
        assert wire.told == [HEAD + BODY]
        transport.write(b"more of a stream")
        assert wire.told[-1] == b"more of a stream"

    asyncio.run(main())


def test_a_head_without_a_body_waits_for_one_turn_of_the_loop() -> None:
    """An answer to HEAD, or a stream whose first line comes later."""

    async def main() -> None:
        wire, transport = corked()
        transport.write(HEAD)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert wire.told == [HEAD]

    asyncio.run(main())


def test_closing_writes_what_is_kept_back() -> None:
    """A refusal is written and the connection closed at once."""

    async def main() -> None:
        wire, transport = corked()
        transport.write(HEAD)
        transport.close()
        assert wire.told == [HEAD, "close"] and transport.is_closing()

    asyncio.run(main())


@given(st.lists(st.sampled_from([HEAD, BODY, b"x", None]), max_size=20))
def test_nothing_is_lost_or_reordered(writes: list[bytes | None]) -> None:
    """Whatever is written in whatever turns of the loop (None) arrives as it was written."""

    async def main() -> None:
        wire, transport = corked()
        for data in writes:
            if data is None:
                await asyncio.sleep(0)
            else:
                transport.write(data)
        transport.close()
        arrived = b"".join(part for part in wire.told if isinstance(part, bytes))
        assert arrived == b"".join(data for data in writes if data is not None)

    asyncio.run(main())
