"""An inference request as a form of body: the intake takes it as it takes files.

Images become parts: encoded ones are decoded as those of ``POST /classify`` are, prepared pixels go
to the queue as they are. A request is answered as a whole, so that one bad image refuses it.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from numpy.typing import NDArray

from server.body_encoding import check_encoding, unpacked
from server.errors import BadInference, NotAnImage, ServeError, UnknownModel, UnsupportedMedia
from server.images import decode
from server.incoming import DRAFT_FACTOR, Destination, Incoming, LimitsFor, Reading, Wishes
from server.inference_framing import check_head_length, split
from server.inference_request import IMAGE, NORMALISED, PIXELS, Inference, known_as, parse
from server.pixel_input import OutOfRange
from server.uploads import UploadLimits, check_total, media_type

READ_AT_ONCE = 4096
"""A head of so many bytes is read on the event loop; longer ones on a thread."""

_MEDIA_TYPES = ("", "application/json", "application/octet-stream")

Data = memoryview | str | NDArray[Any] | None


class InferencePart:
    """One image of an inference request.

    Args:
        data: encoded bytes, base64, or an array.
        given_as: the name of its input.
        place: how to call it in a message; empty where it is the only one.

    Attributes:
        rounding: see `PixelFormat.of_normalised`; known once it is decoded.
    """

    filename = None

    def __init__(self, data: Data, given_as: str, place: str) -> None:
        self._data = data
        self._given_as = given_as
        self._place = place
        self.size = _size(data)
        self.rounding: float | None = None

    def decode(self, limits_for: LimitsFor, destination: Destination) -> object:
        """See `incoming.Part`."""
        data, self._data = self._data, None
        try:
            return self._input(data, limits_for, destination)
        except ServeError as error:
            error.detail = f"{self._place}{error.detail}"
            raise

    def _input(self, data: Any, limits_for: LimitsFor, destination: Destination) -> object:
        if self._given_as == IMAGE:
            limits = limits_for(DRAFT_FACTOR * destination.input_side)
            return decode(_plain(data), limits, destination.transform)
        if self._given_as == PIXELS:
            return destination.pixels.of_bytes(data)
        try:
            made, self.rounding = destination.pixels.of_normalised(data)
        except OutOfRange as error:
            raise BadInference(f"In {NORMALISED!r}, {error}") from None
        return made


class InferenceForm:
    """The body of one ``POST /v2/models/…/infer``.

    Args:
        model: the name in the path.
        head_length: the header with the length of the JSON.
        encoding: the header Content-Encoding.

    Attributes:
        asked: what was asked for; None until the body is read.
        parts: its images.
    """

    all_or_none: ClassVar[bool] = True

    def __init__(self, model: str, head_length: str | None, encoding: str | None) -> None:
        self._model = model
        self._told_length = head_length
        self._told_encoding = encoding
        self._head_length: int | None = None
        self._encoding: str | None = None
        self._incoming: Incoming | None = None
        self.asked: Inference | None = None
        self.parts: Sequence[InferencePart] = ()

    @property
    def wishes(self) -> Wishes:
        """None before the body is read."""
        return Wishes() if self.asked is None else Wishes.of(self.asked.query)

    @property
    def rounding(self) -> float | None:
        """The largest of its parts."""
        known = [part.rounding for part in self.parts if part.rounding is not None]
        return max(known, default=None)

    def check(self, incoming: Incoming, limits: UploadLimits) -> None:
        """Refuse by the headers alone.

        Raises:
            UnsupportedMedia: another type or encoding.
            ImageTooLarge: the announced length is above the limit.
            BadInference: the length of the head is none.
        """
        kind = media_type(incoming.content_type)
        if kind not in _MEDIA_TYPES:
            raise UnsupportedMedia(
                f"The Content-Type {kind[:80]!r} is not read here; send application/json, or "
                "application/octet-stream for JSON with binary data behind it. Image files as they "
                "are go to POST /classify"
            )
        self._encoding = check_encoding(self._told_encoding)
        self._head_length = check_head_length(self._told_length)
        length = incoming.content_length
        if length is not None and length.isdecimal():
            check_total(int(length), limits)
        self._incoming = incoming

    async def read(self, reading: Reading) -> Sequence[InferencePart]:
        """Read the body to its end; what takes long is done on a thread.

        Raises:
            ServeError: it is too large, malformed, or asks for what there is not.
        """
        body = bytearray()
        async for chunk in reading.chunks:
            check_total(len(body) + len(chunk), reading.limits)
            body += chunk
        if self._encoding is not None:
            most = reading.limits.max_body_bytes
            body = await reading.run(partial(unpacked, body, self._encoding, most))
            reading.take(len(body))
        head, tail = split(body, self._head_length)
        job = partial(parse, head, tail, reading.limits.max_files)
        asked = job() if len(head) <= READ_AT_ONCE else await reading.run(job)
        self.asked = replace(asked, images=())  # the parts have them, until they are decoded
        if self._incoming is not None:
            self._incoming.record.query = asked.query
        several = len(asked.images) > 1
        self.parts = [
            InferencePart(image, asked.input, f"Image {number}: " if several else "")
            for number, image in enumerate(asked.images, start=1)
        ]
        return self.parts

    def fit(self, destination: Destination) -> None:
        """Refuse a tensor of another size than the model's.

        Raises:
            BadInference: it has one.
            UnknownModel: another model was put in the place of the one that was asked for.
        """
        if known_as(destination.name) != self._model:
            raise UnknownModel(f"The model {self._model[:80]!r} is not served any more.")
        assert self.asked is not None
        pixels, shape = destination.pixels, self.asked.shape
        wanted = {
            PIXELS: (pixels.height, pixels.width, 3),
            NORMALISED: (3, pixels.height, pixels.width),
        }.get(self.asked.input)
        if wanted is not None and shape[1:] != wanted:
            expected = ", ".join(map(str, wanted))
            raise BadInference(
                f"The shape {list(shape)} of {self.asked.input!r} is not [n, {expected}]; send an "
                f"encoded image as {IMAGE!r} to have it resized"
            )


def _plain(data: memoryview | str) -> bytes:
    if not isinstance(data, str):
        return bytes(data)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotAnImage(f"The text is not base64 ({error}); encode the whole file") from error


def _size(data: Data) -> int:
    if data is None or isinstance(data, str):
        return len(data or "")
    return data.nbytes
