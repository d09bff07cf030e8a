"""The body of ``POST /classify`` to a list of files, with every limit enforced while it arrives.

Two forms are read: ``multipart/form-data`` with parts named ``file``, and a single raw image.
Bytes are counted as they come, whatever ``Content-Length`` claimed; nothing is spooled to disk.
A file over its own limit is dropped and marked, as the other files of the request are still good;
a request over its limit is refused.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.errors import (
    BadParameter,
    ImageTooLarge,
    NotAnImage,
    QueueFull,
    ServeError,
    UnsupportedMedia,
)

FIELD = "file"

MAX_PART_HEADER_BYTES = 8192
"""Of one part; browsers and curl send some hundred."""

_HOW = f"send it as multipart form (curl -F {FIELD}=@photo.jpg …)"


@dataclass(frozen=True)
class UploadLimits:
    """What one request may bring.

    Attributes:
        max_body_bytes: everything, part headers included.
        max_file_bytes: one file.
        max_files: parts named ``file``.
    """

    max_body_bytes: int
    max_file_bytes: int
    max_files: int


@dataclass
class Upload:
    """One file as it was sent.

    ``problem`` is set, and ``data`` empty, if the file alone was too large.
    """

    filename: str | None = None
    content_type: str | None = None
    data: bytearray = field(default_factory=bytearray)
    problem: ServeError | None = None

    def add(self, chunk: bytes, limit: int) -> None:
        """Append, unless the file is or becomes larger than ``limit``."""
        if self.problem is not None:
            return
        if len(self.data) + len(chunk) <= limit:
            self.data += chunk
            return
        self.data = bytearray()
        self.problem = ImageTooLarge(
            f"The file has more than {limit} bytes; send a smaller or more compressed image"
        )


class BodyMemory:
    """Bounds the bytes of all request bodies that are in memory at once.

    The queue bounds how many images wait, but only once their bodies are there; without this,
    enough slow or huge uploads would fill the machine's memory first.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0

    @property
    def taken_bytes(self) -> int:
        """Bytes that are held now."""
        return self._taken_bytes

    def hold(self) -> "HeldBytes":
        """Hold the bytes of one request for the length of a ``with`` block."""
        return HeldBytes(self)

    def take(self, count: int) -> None:
        """Take this much; raises ``QueueFull`` when too much is in memory already."""
        if self._taken_bytes + count > self._limit_bytes:
            raise QueueFull("Too many uploads at once; try again soon.", retry_after_s=1)
        self._taken_bytes += count

    def give_back(self, count: int) -> None:
        """Free what was taken."""
        self._taken_bytes -= count


class HeldBytes:
    """What one request takes of the memory for bodies, until the block ends.

    The block gets a function to call with the number of bytes that arrived.
    """

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._held = 0

    def __enter__(self) -> Callable[[int], None]:
        return self._take

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._memory.give_back(self._held)

    def _take(self, count: int) -> None:
        self._memory.take(count)
        self._held += count


def check_headers(content_type: str, content_length: str | None, limits: UploadLimits) -> None:
    """Refuse by the headers alone, before a byte of the body is asked for.

    Raises:
        UnsupportedMedia: neither a multipart form nor an image.
        ImageTooLarge: the announced length is above the limit.
    """
    kind = media_type(content_type)
    if kind != "multipart/form-data" and not kind.startswith("image/"):
        found = f"The Content-Type {kind[:80]!r}" if kind else "A missing Content-Type"
        raise UnsupportedMedia(
            f"{found} is not read here; {_HOW}, or as raw body with an image type "
            "(curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg …)"
        )
    if content_length is not None and content_length.isdecimal():
        check_total(int(content_length), limits)


async def read_uploads(
    content_type: str, chunks: AsyncIterator[bytes], limits: UploadLimits
) -> list[Upload]:
    """Read the body to its end.

    Args:
        content_type: the request's, as accepted by ``check_headers``.
        chunks: the body as it arrives.
        limits: enforced while reading.

    Raises:
        ImageTooLarge: the body has too many bytes.
        BadParameter: a part with another name, none named ``file``, or too many.
        NotAnImage: the form is malformed or ends early.
    """
    if media_type(content_type) != "multipart/form-data":
        body: _Raw | _Form = _Raw(content_type, limits)
    else:
        body = _Form(content_type, limits)
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        check_total(total, limits)
        body.write(chunk)
    return body.finish()


def check_total(count: int, limits: UploadLimits) -> None:
    """Refuse a body of so many bytes if that is too many; raises ``ImageTooLarge``."""
    if count > limits.max_body_bytes:
        raise ImageTooLarge(
            f"The request has more than {limits.max_body_bytes} bytes; send fewer or smaller images"
        )


def media_type(content_type: str) -> str:
    """A Content-Type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


class _Raw:
    """A body that is one image."""

    def __init__(self, content_type: str, limits: UploadLimits) -> None:
        self._limit = limits.max_file_bytes
        self._upload = Upload(content_type=content_type)

    def write(self, chunk: bytes) -> None:
        """Take the next piece of the body."""
        self._upload.add(chunk, self._limit)

    def finish(self) -> list[Upload]:
        """The one file, once the body is complete."""
        return [self._upload]


class _Form:
    """Collects the parts of one multipart form from the parser's callbacks."""

    def __init__(self, content_type: str, limits: UploadLimits) -> None:
        self._limits = limits
        self._files: list[Upload] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._header_bytes = 0
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise NotAnImage(
                "The multipart Content-Type names no boundary; let your HTTP client set this header"
            )
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open_file,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise _malformed(error) from error

    def write(self, chunk: bytes) -> None:
        """Parse the next piece of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error

    def finish(self) -> list[Upload]:
        """All files, once the body is complete."""
        if not self._ended:
            raise NotAnImage("The multipart form ends before its last boundary; send it whole")
        if not self._files:
            raise BadParameter(f"The form has no part named {FIELD!r}; {_HOW}")
        return self._files

    def _begin_part(self) -> None:
        self._headers = {}
        self._header_bytes = 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._value += data[start:end]

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > MAX_PART_HEADER_BYTES:
            raise NotAnImage(
                f"A part of the form has more than {MAX_PART_HEADER_BYTES} bytes of headers; let "
                "your HTTP client build it"
            )

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _open_file(self) -> None:
        """A part's headers are complete: take it as a file or refuse the form."""
        options = parse_options_header(self._headers.get(b"content-disposition"))[1]
        name = _text(options.get(b"name")) or ""
        if name != FIELD:
            raise BadParameter(
                f"The form has a part named {name[:80]!r}, but only parts named {FIELD!r} are "
                f"read; {_HOW}, and give other parameters in the query"
            )
        if len(self._files) == self._limits.max_files:
            raise BadParameter(
                f"The form has more than {self._limits.max_files} files; send several requests"
            )
        content_type = _text(self._headers.get(b"content-type"))
        self._files.append(Upload(_text(options.get(b"filename")), content_type))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._files[-1].add(data[start:end], self._limits.max_file_bytes)

    def _end(self) -> None:
        self._ended = True


def _malformed(error: FormParserError) -> NotAnImage:
    return NotAnImage(
        f"The multipart form is malformed ({str(error)[:120]}); let your HTTP client build it"
    )


def _text(value: bytes | None) -> str | None:
    """A header's value: UTF-8 as browsers and curl send it, else Latin-1."""
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
