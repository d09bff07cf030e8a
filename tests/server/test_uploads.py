"""Request bodies: what is read, and what is refused while it still arrives."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import BadParameter, ImageTooLarge, NotAnImage, QueueFull, ServeError
from server.uploads import BodyMemory, Upload, UploadLimits, check_headers, read_uploads

LIMITS = UploadLimits(max_body_bytes=2000, max_file_bytes=500, max_files=3)
FORM = "multipart/form-data; boundary=XX"


def part(data: bytes, name: str = "file", filename: str | None = "a.jpg") -> bytes:
    """One part of a form."""
    extra = "" if filename is None else f'; filename="{filename}"'
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A whole form."""
    return b"".join(parts) + b"--XX--\r\n"


def read(body: bytes, content_type: str = FORM, step: int = 64) -> list[Upload]:
    """Read a body that arrives in small pieces."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(read_uploads(content_type, chunks(), LIMITS))


@pytest.mark.parametrize("step", [1, 7, 64, 5000])
def test_parts_come_out_as_they_were_sent(step: int) -> None:
    """Names and bytes survive, wherever the pieces of the body are cut."""
    tricky = b"\r\n--X\r\n--XY--\r\n\x00\xff" * 5
    uploads = read(form(part(tricky), part(b"two", filename="ü.png"), part(b"")), step=step)
    assert [(u.filename, bytes(u.data)) for u in uploads] == [
        ("a.jpg", tricky),
        ("ü.png", b"two"),
        ("a.jpg", b""),
    ]


def test_a_part_without_filename_is_a_file_too() -> None:
    """Some clients send image bytes as a plain field."""
    (upload,) = read(form(part(b"data", filename=None)))
    assert (upload.filename, bytes(upload.data)) == (None, b"data")


def test_raw_body_is_one_upload() -> None:
    """An image body has no name, and keeps its declared type for messages."""
    (upload,) = read(b"data", "image/png")
    assert (upload.filename, upload.content_type, bytes(upload.data)) == (
        None,
        "image/png",
        b"data",
    )


def test_large_file_is_marked_and_dropped() -> None:
    """Its bytes are not kept; the files around it are."""
    before, large, after = read(form(part(b"1"), part(bytes(501)), part(bytes(500))))
    assert isinstance(large.problem, ImageTooLarge) and not large.data
    assert before.problem is None and after.problem is None and len(after.data) == 500


def test_large_body_is_refused_at_the_byte_too_many() -> None:
    """Reading stops there: an endless body costs no more than the limit."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield bytes(100)

    with pytest.raises(ImageTooLarge, match="more than 2000 bytes"):
        asyncio.run(read_uploads("image/png", endless(), LIMITS))
    assert sent == 2100


def test_announced_length_is_checked() -> None:
    """Exactly the limit is fine; a length that is no number is left to the server."""
    check_headers(FORM, "2000", LIMITS)
    check_headers(FORM, "many", LIMITS)
    with pytest.raises(ImageTooLarge):
        check_headers(FORM, "2001", LIMITS)


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (form(part(b"x", name="image")), BadParameter, "'image'"),
        (form(part(b"x"), part(b"5", name="top_k", filename=None)), BadParameter, "query"),
        (form(*[part(b"x")] * 4), BadParameter, "more than 3 files"),
        (b"--XX--\r\n", BadParameter, "no part named 'file'"),
        (part(b"x"), NotAnImage, "last boundary"),
        (b"", NotAnImage, "last boundary"),
        (b"garbage", NotAnImage, "malformed"),
    ],
)
def test_wrong_forms_are_explained(body: bytes, error: type[ServeError], said: str) -> None:
    """Each mistake has its own message."""
    with pytest.raises(error, match=said):
        read(body)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_form_crashes_the_reader(data: st.DataObject) -> None:
    """A form with bytes changed, cut or added: files, or a ServeError."""
    body = bytearray(form(part(b"\xff\xd8 hello"), part(b"two")))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(body)))
        body[at : at + data.draw(st.integers(0, 6))] = data.draw(st.binary(max_size=6))
    try:
        uploads = read(bytes(body))
    except ServeError as error:
        assert 400 <= error.status < 500
    else:
        assert 1 <= len(uploads) <= LIMITS.max_files


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(max_codepoint=255), max_size=80).map("multipart/form-data".__add__))
def test_no_content_type_crashes_the_reader(content_type: str) -> None:
    """Whatever follows the media type (headers are Latin-1): files, or a ServeError."""
    try:
        check_headers(content_type, None, LIMITS)
        read(form(part(b"x")), content_type)
    except ServeError as error:
        assert 400 <= error.status < 500


def test_memory_of_all_bodies_is_bounded_and_given_back() -> None:
    """Two bodies share the bound; the end of one makes room, also when it fails."""
    memory = BodyMemory(100)
    with memory.hold() as take:
        take(60)
        with memory.hold() as take_too, pytest.raises(QueueFull):
            take_too(30)
            take_too(11)
        take(40)
        assert memory.taken_bytes == 100
    assert memory.taken_bytes == 0
