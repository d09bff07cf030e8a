"""Compressed bodies, and what is no more than a bomb."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest

from server.body_encoding import check_encoding, unpacked
from server.errors import BadRequest, ImageTooLarge, UnsupportedMedia

WAYS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
]


def test_which_encodings_are_read() -> None:
    """Gzip and deflate, one at a time, in any spelling."""
    assert check_encoding(None) is None and check_encoding(" Identity ") is None
    assert check_encoding("GZIP") == "gzip" and check_encoding("deflate") == "deflate"
    for other in ("br", "zstd", "gzip, gzip", "deflate,identity"):
        with pytest.raises(UnsupportedMedia, match="gzip or deflate"):
            check_encoding(other)


@pytest.mark.parametrize(("name", "compress"), WAYS)
def test_a_body_comes_back(name: str, compress: Callable[[bytes], bytes]) -> None:
    """Up to the limit, to the byte."""
    body = bytes(range(256)) * 40
    assert unpacked(compress(body), name, len(body)) == body
    assert unpacked(compress(b""), name, 0) == b""
    with pytest.raises(ImageTooLarge, match="when it is unpacked"):
        unpacked(compress(body), name, len(body) - 1)


@pytest.mark.parametrize(("name", "compress"), WAYS)
def test_what_is_no_stream_is_refused(name: str, compress: Callable[[bytes], bytes]) -> None:
    """Plain bytes, a cut stream, and one with something behind it."""
    whole = compress(b"abc" * 100)
    for body in (b"", b'{"inputs": []}', whole[:-1], whole[: len(whole) // 2], whole + whole):
        with pytest.raises(BadRequest):
            unpacked(body, name, 10_000)


def test_a_bomb_is_not_unpacked() -> None:
    """100 MB in 100 kB: no more than the limit is ever in memory."""
    bomb = zlib.compress(bytes(100_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            unpacked(bomb, "deflate", 1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(bomb) < 200_000 and peak < 5_000_000
