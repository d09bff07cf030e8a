"""The bytes of the Open Inference Protocol: a JSON head, and raw tensors behind it.

Triton's binary tensor data extension. A header tells how long the head is, the head tells how long
each tensor is, and each element of a BYTES tensor tells its own length in four bytes, low byte
first. Nothing that is told is believed before it is compared with the bytes that are there.
"""

import struct
from collections.abc import Iterable

from server.errors import BadInference

HEAD_LENGTH = "Inference-Header-Content-Length"
"""The header, in a request or an answer, with the length of the JSON in bytes."""

_LENGTH = struct.Struct("<I")
_MOST_DIGITS = 18


def check_head_length(told: str | None) -> int | None:
    """The length of the head as the header tells it; None: the body is nothing else.

    Raises:
        BadInference: it is no length.
    """
    if told is None:
        return None
    if not (told.isascii() and told.isdecimal() and len(told) <= _MOST_DIGITS):
        raise BadInference(
            f"{HEAD_LENGTH} is {told[:80]!r}; it is the number of bytes of the JSON before the "
            "binary data"
        )
    return int(told)


def split(body: bytearray, head_length: int | None) -> tuple[memoryview, memoryview]:
    """A body as its head and what lies behind it.

    Raises:
        BadInference: the head is said to be longer than the body.
    """
    view = memoryview(body)
    if head_length is None:
        return view, view[len(view) :]
    if head_length > len(view):
        raise BadInference(
            f"{HEAD_LENGTH} is {head_length}, but the body has {len(view)} bytes; send it whole"
        )
    return view[:head_length], view[head_length:]


def elements(data: memoryview, count: int) -> list[memoryview]:
    """The elements of a BYTES tensor.

    Args:
        data: all of it.
        count: how many there should be.

    Raises:
        BadInference: there are not so many, or they do not fill the tensor exactly.
    """
    found: list[memoryview] = []
    start = 0
    while start < len(data) and len(found) <= count:
        if len(data) - start < _LENGTH.size:
            raise _does_not_fit(count)
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise _does_not_fit(count)
        found.append(data[start : start + length])
        start += length
    if len(found) != count:
        raise _does_not_fit(count)
    return found


def packed(strings: Iterable[bytes]) -> bytes:
    """Strings as the data of a BYTES tensor."""
    return b"".join(part for text in strings for part in (_LENGTH.pack(len(text)), text))


def _does_not_fit(count: int) -> BadInference:
    return BadInference(
        f"The binary data is not that of {count} BYTES elements, each its length as 4 bytes "
        "(little endian) and then so many bytes"
    )
