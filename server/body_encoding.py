"""Bodies that were compressed on their way, and how much they may become.

A few kilobytes can stand for gigabytes: nothing beyond the limit on bodies is ever unpacked.
"""

import zlib

from server.errors import BadRequest, ImageTooLarge, UnsupportedMedia

_WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""What zlib wants to be told of each; HTTP's deflate is zlib's format."""


def check_encoding(header: str | None) -> str | None:
    """The encoding that a Content-Encoding header names; None for none.

    Raises:
        UnsupportedMedia: it is another than gzip and deflate, or there are several.
    """
    name = (header or "").strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _WINDOWS:
        raise UnsupportedMedia(
            f"The Content-Encoding {name[:80]!r} is not read here; compress with gzip or deflate, "
            "or send the body as it is"
        )
    return name


def unpacked(body: bytes | bytearray, encoding: str, limit: int) -> bytearray:
    """Unpack a whole body.

    Args:
        body: as it came.
        encoding: as `check_encoding` gave it.
        limit: most bytes of the result.

    Raises:
        ImageTooLarge: it would become more.
        BadRequest: it is not so encoded, cut off, or followed by something else.
    """
    unpacker = zlib.decompressobj(_WINDOWS[encoding])
    try:
        result = bytearray(unpacker.decompress(body, limit + 1))
    except zlib.error as error:
        raise BadRequest(f"The body is not encoded with {encoding} ({error})") from error
    if len(result) > limit:
        raise ImageTooLarge(
            f"The request has more than {limit} bytes when it is unpacked; send fewer or smaller "
            "images"
        )
    if not unpacker.eof or unpacker.unused_data:
        raise BadRequest(f"The body is not one whole {encoding} stream; send it whole")
    return result
