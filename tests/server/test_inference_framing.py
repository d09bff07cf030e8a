"""The protocol's bytes: lengths that are told, and bytes that are there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadInference
from server.inference_framing import check_head_length, elements, packed, split


@pytest.mark.parametrize("told", ["", "-1", "1.5", "0x10", " 3", "٣", "9" * 19, "many"])
def test_a_length_is_digits(told: str) -> None:
    """Everything else is refused, and so is a number that no body could have."""
    with pytest.raises(BadInference, match="Inference-Header-Content-Length"):
        check_head_length(told)


def test_a_body_is_its_head_and_the_rest() -> None:
    """Without the header all of it is the head."""
    assert check_head_length(None) is None and check_head_length("007") == 7
    for length, expected in ((None, (b"abcd", b"")), (0, (b"", b"abcd")), (4, (b"abcd", b""))):
        assert tuple(map(bytes, split(bytearray(b"abcd"), length))) == expected
    with pytest.raises(BadInference, match="has 4 bytes"):
        split(bytearray(b"abcd"), 5)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_what_is_packed_is_unpacked(strings: list[bytes]) -> None:
    """Any strings, empty ones among them."""
    raw = memoryview(packed(strings))
    assert [bytes(element) for element in elements(raw, len(strings))] == strings
    with pytest.raises(BadInference):
        elements(raw, len(strings) + 1)


@given(st.binary(max_size=60), st.integers(0, 5))
def test_any_bytes_are_unpacked_or_refused(raw: bytes, count: int) -> None:
    """Nothing else happens, and what is unpacked fills the tensor exactly."""
    try:
        found = elements(memoryview(raw), count)
    except BadInference:
        return
    assert len(found) == count and packed(map(bytes, found)) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00",
        b"\xff\xff\xff\xffab",
        b"\x02\x00\x00\x00a",
        b"\x01\x00\x00\x00ab",
        b"\x00\x00\x00\x01" + b"x" * 100,
    ],
)
def test_lengths_are_not_believed(raw: bytes) -> None:
    """Cut, too long, too short, or written with the high byte first."""
    with pytest.raises(BadInference, match="1 BYTES elements"):
        elements(memoryview(raw), 1)
