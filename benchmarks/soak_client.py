"""A client that keeps exact books: each request it sends ends as one thing.

It speaks HTTP itself, since it must know what a usual client hides: whether a request went out in
full before the connection was closed, by whom, and after how many bytes.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

ANSWER_WITHIN_S = 60.0
IDLE_CONNECTIONS = 64

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Books:
    """What became of all requests.

    Attributes:
        sent: requests whose head reached the server.
        answers: how many got which status.
        left: requests whose client closed the connection on purpose before an answer.
        broken: connections that the server closed before it had answered.
        unsent: requests that found nobody listening.
        skipped: requests that were due while too many were under way.
        latencies_s: of the answers with status 200.
    """

    sent: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    left: int = 0
    broken: list[str] = field(default_factory=list)
    unsent: int = 0
    skipped: int = 0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def accounted(self) -> int:
        """Requests of which it is known how they ended."""
        return sum(self.answers.values()) + self.left

    @property
    def refused(self) -> int:
        """Answers that were none: everything but 200."""
        return sum(self.answers.values()) - self.answers[200]


class Client:
    """Sends classification requests, some of which it gives up.

    Args:
        port: of a server on this machine.
        bodies: encoded images.
        seed: decides who leaves, and when.
        leave_share: of the requests, so many are given up, half of them before their body is sent.
        bad_share: so many carry a broken image.
        several_share: so many carry three images.
        deadline_share: so many name a deadline.
    """

    def __init__(
        self,
        port: int,
        bodies: Sequence[bytes],
        seed: int = 0,
        *,
        leave_share: float = 0.0,
        bad_share: float = 0.0,
        several_share: float = 0.0,
        deadline_share: float = 0.0,
    ) -> None:
        self.books = Books()
        self.under_way = 0
        self._port = port
        self._bodies = bodies
        self._random = random.Random(seed)
        self._leave_share = leave_share
        self._bad_share = bad_share
        self._several_share = several_share
        self._deadline_share = deadline_share
        self._idle: list[Connection] = []

    async def classify(self) -> int | None:
        """One request from start to end; its status, None if there was none."""
        self.under_way += 1
        try:
            return await self._classify()
        finally:
            self.under_way -= 1

    async def _classify(self) -> int | None:
        head, body = self._request()
        draw = self._random
        leaves = draw.random() < self._leave_share
        cut = draw.randrange(len(body)) if leaves and draw.random() < 0.5 else len(body)
        after_s = draw.uniform(0, 0.3)
        try:
            reader, writer = await self._connection()
        except OSError:
            self.books.unsent += 1
            return None
        started = asyncio.get_running_loop().time()
        self.books.sent += 1
        try:
            writer.write(head + body[:cut])
            await writer.drain()
            if leaves:
                return await self._leave(reader, writer, after_s, in_full=cut == len(body))
            status, closes = await asyncio.wait_for(read_answer(reader), ANSWER_WITHIN_S)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.books.broken.append(repr(error))
            writer.close()
            return None
        self._note(status, asyncio.get_running_loop().time() - started)
        if closes or len(self._idle) >= IDLE_CONNECTIONS:
            writer.close()
        else:
            self._idle.append((reader, writer))
        return status

    def close(self) -> None:
        """Close all connections."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _leave(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        after_s: float,
        *,
        in_full: bool,
    ) -> int | None:
        """Hang up after a while, unless the answer is there before."""
        status = None
        with suppress(TimeoutError, asyncio.IncompleteReadError, OSError):
            status, _ = await asyncio.wait_for(read_answer(reader), after_s)
        writer.close()
        if status is None or not in_full:
            self.books.left += 1
            return None
        self._note(status, after_s)
        return status

    def _note(self, status: int, seconds: float) -> None:
        self.books.answers[status] += 1
        if status == 200:
            self.books.latencies_s.append(seconds)

    async def _connection(self) -> Connection:
        """An idle connection that is still open, else a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    def _request(self) -> tuple[bytes, bytes]:
        draw = self._random
        count = 3 if draw.random() < self._several_share else 1
        images = [draw.choice(self._bodies) for _ in range(count)]
        if draw.random() < self._bad_share:
            images[0] = images[0][: len(images[0]) // 2]
        query = ""
        if draw.random() < self._deadline_share:
            query = f"?deadline_ms={draw.randint(20, 500)}"
        if count == 1:
            return head_of(f"/classify{query}", "image/jpeg", len(images[0])), images[0]
        boundary = "soak"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{i}.jpg"'
            "\r\nContent-Type: image/jpeg\r\n\r\n".encode()
            + image
            + b"\r\n"
            for i, image in enumerate(images)
        ]
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        return head_of(f"/classify{query}", kind, len(body)), body


def head_of(target: str, kind: str, length: int) -> bytes:
    """The head of a request."""
    lines = f"POST {target} HTTP/1.1", "Host: soak", f"Content-Type: {kind}"
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one answer in full: its status, and whether the connection ends with it.

    Raises:
        IncompleteReadError: the connection ended first.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(lines.get("content-length", "0")))
    return int(head.split(" ", 2)[1]), lines.get("connection") == "close"
