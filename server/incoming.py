"""A request as it arrives, where it goes, and what its body may look like.

The ways of asking for classes differ in the form of their bodies and in nothing else: a `Form`
reads a body into parts, and each part knows how it becomes the model's input. `intake` does the
rest, for all of them alike.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self, TypeVar

from PIL import Image

from server.batcher import Batcher
from server.images import ImageLimits, decode
from server.interruption import Receive
from server.pixel_input import PixelFormat
from server.request_record import RequestRecord
from server.schemas import ClassifyQuery
from server.uploads import Upload, UploadLimits, check_headers, read_uploads

T = TypeVar("T")
P_co = TypeVar("P_co", bound="Part", covariant=True)

DRAFT_FACTOR = 2
"""JPEGs are decoded at this multiple of the model's input size at least."""

LimitsFor = Callable[[int], ImageLimits]
"""The limits on an image that is decoded for a given shorter side."""


@dataclass(frozen=True)
class Incoming:
    """A request as it arrives: its headers, and where its body comes from."""

    content_type: str
    content_length: str | None
    receive: Receive
    arrived_at: float
    record: RequestRecord


@dataclass(frozen=True)
class Destination:
    """A model that is served: where images wait for it, and what they are made into.

    Attributes:
        name: of the model.
        labels: of its classes.
        batcher: takes the images.
        transform: from an RGB image to its input.
        input_side: its larger input side in pixels.
        pixels: its input, for who prepares it.
    """

    name: str
    labels: tuple[str, ...]
    batcher: Batcher
    transform: Callable[[Image.Image], object]
    input_side: int
    pixels: PixelFormat


@dataclass(frozen=True)
class Wishes:
    """What the request asks for; the deadline counts from its first byte."""

    deadline_s: float | None = None
    max_r: int | None = None
    priority: int = 1

    @classmethod
    def of(cls, query: ClassifyQuery) -> Self:
        """The same as a query says it."""
        deadline_s = None if query.deadline_ms is None else query.deadline_ms / 1000
        return cls(deadline_s, query.max_r, _PRIORITIES[query.priority])


_PRIORITIES = {"high": 0, "normal": 1, "low": 2}


class Run(Protocol):
    """Runs a job on one of the threads that decode."""

    def __call__(self, job: Callable[[], T]) -> Awaitable[T]:
        """Return what the job returns."""
        ...


@dataclass(frozen=True)
class Reading:
    """A body while it is read.

    Attributes:
        chunks: the bytes as they arrive, counted already.
        limits: on the request.
        take: counts bytes that are held beside those that arrived; may refuse them.
        run: for what takes long.
    """

    chunks: AsyncIterator[bytes]
    limits: UploadLimits
    take: Callable[[int], None]
    run: Run


class Part(Protocol):
    """One image as it was sent."""

    @property
    def filename(self) -> str | None:
        """What it is called, if it is."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def decode(self, limits_for: LimitsFor, destination: Destination) -> object:
        """The model's input, made on a thread of the decoders; the bytes are let go of.

        Raises:
            ServeError: what was sent is no such image.
        """
        ...


class Form(Protocol[P_co]):
    """What bodies look like.

    Attributes:
        all_or_none: an image that cannot be read refuses the request.
    """

    all_or_none: ClassVar[bool]

    @property
    def wishes(self) -> Wishes:
        """What the request asks for, as far as it is known."""
        ...

    def check(self, incoming: Incoming, limits: UploadLimits) -> None:
        """Refuse by the headers alone, before a byte of the body is asked for."""
        ...

    async def read(self, reading: Reading) -> Sequence[P_co]:
        """Read the body to its end."""
        ...

    def fit(self, destination: Destination) -> None:
        """Refuse a body, once it is read, that does not fit the model."""
        ...


class FilePart:
    """An encoded image."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.filename = upload.filename
        self.size = len(upload.data)

    def decode(self, limits_for: LimitsFor, destination: Destination) -> object:
        """See `Part`."""
        return self.decode_with(limits_for, destination.transform, destination.input_side)

    def decode_with(
        self, limits_for: LimitsFor, transform: Callable[[Image.Image], T], input_side: int
    ) -> T:
        """Decode for something else than the model.

        Args:
            limits_for: what it may cost.
            transform: from the decoded RGB image.
            input_side: longer side of what comes out; decoding may stop short of more.
        """
        upload = self._upload
        data, upload.data = upload.data, bytearray()
        if upload.problem is not None:
            raise upload.problem
        limits = limits_for(DRAFT_FACTOR * input_side)
        return decode(data, limits, transform, upload.content_type)


class FilesForm:
    """A multipart form of files, or one raw image."""

    all_or_none: ClassVar[bool] = False

    def __init__(self, wishes: Wishes) -> None:
        self.wishes = wishes
        self._content_type = ""

    def check(self, incoming: Incoming, limits: UploadLimits) -> None:
        """See `uploads.check_headers`."""
        self._content_type = incoming.content_type
        check_headers(incoming.content_type, incoming.content_length, limits)

    async def read(self, reading: Reading) -> list[FilePart]:
        """See `uploads.read_uploads`."""
        uploads = await read_uploads(self._content_type, reading.chunks, reading.limits)
        return [FilePart(upload) for upload in uploads]

    def fit(self, destination: Destination) -> None:
        """Any image fits any model."""
