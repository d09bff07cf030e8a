"""Bytes that are no good HTTP, or good HTTP meant badly; each with what may become of it."""

from collections.abc import Iterator
from dataclasses import dataclass

CLOSED: frozenset[int] = frozenset({0})
"""No answer but a closed connection."""

BAD = frozenset({400})
HEAD = b"POST /classify HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: test\r\n"


@dataclass(frozen=True)
class Attack:
    """What is sent, and the statuses that may answer it (0: none, and the connection is closed)."""

    name: str
    data: bytes
    statuses: frozenset[int]
    then_closes: bool = True


def attacks(picture: bytes) -> Iterator[Attack]:
    """All of them; ``picture`` is a good PNG."""
    yield from _nonsense()
    yield from _framing(picture)
    yield from _smuggling(picture)
    yield from _heads()
    yield from _targets()
    yield from _forms(picture)


def _nonsense() -> Iterator[Attack]:
    yield Attack("tls hello", bytes.fromhex("16030100a5010000a10303") + bytes(150), BAD)
    yield Attack("http2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD)
    yield Attack("http 0.9", b"GET /healthz\r\n\r\n", BAD)
    yield Attack("zeros", bytes(5000), BAD)
    yield Attack("words", b"hello there, general\r\n\r\n", BAD)
    yield Attack("a picture", b"\x89PNG\r\n\x1a\n" * 100, BAD)
    yield Attack("method of no kind", b"CLASSIFY / HTTP/1.1\r\nHost: test\r\n\r\n", BAD)
    yield Attack("version of no kind", b"GET /healthz HTTP/9.9\r\nHost: test\r\n\r\n", BAD)
    yield Attack("bare line feeds in the head", b"GET /healthz HTTP/1.1\nHost: test\n\n", BAD)
    yield Attack("good, then nonsense", GET + b"\r\n\x00\x01\x02", frozenset({200}))
    yield Attack("socks", b"\x05\x01\x00", BAD)


def _framing(picture: bytes) -> Iterator[Attack]:
    for value in (b"-1", b"+5", b"5 5", b"0x10", b"1e3", b"", b"99999999999999999999999", b"5,5"):
        yield Attack(
            f"length {value!r}", HEAD + b"Content-Length: " + value + b"\r\n\r\n12345", BAD
        )
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for size in (b"xyz", b"-5", b"fffffffffffffffff", b"", b"5 5", b"0x5"):
        yield Attack(f"chunk size {size!r}", chunked + size + b"\r\n12345\r\n0\r\n\r\n", BAD)
    yield Attack("chunk longer than it says", chunked + b"2\r\n12345\r\n0\r\n\r\n", BAD)
    yield Attack("chunk with a bare line feed", chunked + b"5\n12345\n0\n\n", BAD)
    yield Attack(
        "trailer that would be a header",
        chunked
        + b"%x\r\n%b\r\n0\r\nHost: evil\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"
        % (len(picture), picture),
        BAD,
    )
    yield Attack(
        "more than the length",
        HEAD + b"Content-Length: %d\r\n\r\n" % len(picture) + picture + b"and more",
        frozenset({200}),
    )


def _smuggling(picture: bytes) -> Iterator[Attack]:
    inner = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"
    both = HEAD + b"Content-Length: %d\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n" + inner
    for encoding in (b"chunked", b"Chunked", b"chunked, identity", b"identity", b"xchunked"):
        yield Attack(f"length and {encoding!r}", both % (5, encoding), BAD)
    for line in (
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Transfer-Encoding\x00: chunked",
        b"Transfer-Encoding: chunked\r\n Transfer-Encoding: identity",
        b"Transfer-Encoding: identity, chunked, identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"Content-Length: 5\r\nContent-Length: 6",
        b" Content-Length: 5",
        b"X: y\rContent-Length: 5",
        b"Content Length: 5",
        b"Host: other",
    ):
        yield Attack(
            f"line {line!r}", HEAD + line + b"\r\n\r\n0\r\n\r\n" + inner, frozenset({400, 415})
        )
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
    for protocol in (b"h2c", b"websocket", b"tocom"):
        yield Attack(f"upgrade to {protocol!r}", upgrade % protocol + inner, frozenset({200}))
    yield Attack("connect", b"CONNECT evil:443 HTTP/1.1\r\nHost: evil:443\r\n\r\n" + inner, BAD)


def _heads() -> Iterator[Attack]:
    yield Attack("no host", b"GET /healthz HTTP/1.1\r\n\r\n", BAD, then_closes=False)
    yield Attack("two hosts", GET + b"Host: test\r\n\r\n", BAD, then_closes=False)
    yield Attack("empty host", b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", BAD, then_closes=False)
    yield Attack(
        "another host",
        b"GET /model HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        frozenset({421}),
        then_closes=False,
    )
    yield Attack("many headers", GET + b"X: y\r\n" * 101 + b"\r\n", frozenset({431}))
    yield Attack("large header", GET + b"X: " + b"y" * 40_000 + b"\r\n\r\n", frozenset({431}))
    yield Attack("large name", GET + b"X" * 40_000 + b": y\r\n\r\n", frozenset({431}))
    yield Attack("endless header", GET + b"X: " + b"y" * 300_000, frozenset({431}))
    yield Attack("endless name", GET + b"X" * 300_000, frozenset({431}))
    yield Attack("header with a zero", GET + b"X: a\x00b\r\n\r\n", BAD)
    yield Attack("folded header", GET + b"X: a\r\n b\r\n\r\n", BAD)
    yield Attack("nameless header", GET + b": y\r\n\r\n", BAD)
    yield Attack("pipeline flood", (GET + b"\r\n") * 2000, frozenset({0, 200}))


def _targets() -> Iterator[Attack]:
    line = b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n"
    yield Attack("long target", line % (b"/" + b"a" * 9000), frozenset({414}))
    yield Attack("endless target", b"GET /" + b"a" * 300_000, frozenset({414}))
    yield Attack("long query", line % (b"/model?" + b"a" * 9000), frozenset({414}))
    for target in (b"*", b"\x80", b"/\xff\xfe", b"/a b", b"//", b"http://", b"\\", b"?x"):
        yield Attack(f"target {target!r}", line % target, frozenset({400, 404}), then_closes=False)
    for path in (b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/docs/../model/", b"/%00"):
        yield Attack(f"path {path!r}", line % path, frozenset({404}), then_closes=False)


def _forms(picture: bytes) -> Iterator[Attack]:
    head = b"POST /classify HTTP/1.1\r\nHost: test\r\n"
    head += b"Content-Type: multipart/form-data; boundary=%b\r\n"
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'

    def form(body: bytes, boundary: bytes = b"b") -> bytes:
        return head % boundary + b"Content-Length: %d\r\n\r\n" % len(body) + body

    bad, open_end = frozenset({400, 422}), False
    bodies = {
        "no end": part % (b"file", picture),
        "many parts": part % (b"file", b"x") * 5000 + b"--b--\r\n",
        "many fields": part % (b"field", b"x") * 5000 + b"--b--\r\n",
        "large part header": b"--b\r\nX: " + b"y" * 9000 + b"\r\n\r\nx\r\n--b--\r\n",
        "many part headers": b"--b\r\n" + b"X: y\r\n" * 3000 + b"\r\nx\r\n--b--\r\n",
        "no header": b"--b\r\n\r\nx\r\n--b--\r\n",
        "nested": part % (b"file", b"Content-Type: multipart/mixed; boundary=c\r\n--c") + b"--b--",
        "long preamble": b"z" * 200_000 + part % (b"file", picture) + b"--b--\r\n",
        "boundary in pieces": b"--b" * 50_000,
        "zeros": bytes(200_000),
    }
    for name, body in bodies.items():
        yield Attack(f"form: {name}", form(body), bad, open_end)
    for boundary in (b"", b"b" * 5000, b'"', b"\xff\xfe", b"a; boundary=b", b"=?utf-8?Q?b?="):
        attack = form(part % (b"file", picture) + b"--c--\r\n", boundary)
        yield Attack(f"form: boundary {boundary[:20]!r}", attack, bad, open_end)
    for field in (b"../../etc/passwd", b"file\x00", b"FILE", b"file[]", b"__class__"):
        yield Attack(
            f"form: part {field!r}", form(part % (field, picture) + b"--b--\r\n"), bad, False
        )
