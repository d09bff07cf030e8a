"""Conversations about images: one, or many in groups of which no member harms another."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from tocom_client.conversation import Encode, Talk, Terms, converse
from tocom_client.endpoints import ImageAnswer, Wishes, classify_call
from tocom_client.errors import InvalidImage, Refused, TocomClientError, Unauthorized
from tocom_client.images import EncodedImage, ImageSource, name_of
from tocom_client.results import Classification, Problem
from tocom_client.retrying import Timer

MOST_BYTES = 16_000_000
"""Of a request with several images; the server's own limit is 64 MB unless it was told another."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image of many: a classification, or an error.

    Attributes:
        place: its number in what was given, from 0 on.
        source: what was given.
        classification: what the model saw; None: it was not classified.
        error: why not; None: it was.
    """

    place: int
    source: ImageSource
    classification: Classification | None = None
    error: TocomClientError | None = None

    @property
    def filename(self) -> str | None:
        """The last part of the path, where a path was given."""
        return name_of(self.source)

    @property
    def problem(self) -> Problem | None:
        """The error as a record; None: the image was classified."""
        error = self.error
        if error is None:
            return None
        title = error.title or type(error).__name__
        return Problem(error.type, title, error.status or 0, error.detail, error.request_id)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far `classify_many` is.

    Attributes:
        done: images whose outcome is known, and was handed out.
        failed: those of them that were not classified.
        total: None where that is not known, as of a generator.
    """

    done: int
    failed: int
    total: int | None


OnProgress: TypeAlias = Callable[[Progress], None]
Item: TypeAlias = tuple[int, ImageSource]
Encoded: TypeAlias = tuple[int, ImageSource, EncodedImage]


class Tally:
    """Counts outcomes on their way to the caller."""

    def __init__(self, total: int | None, on_progress: OnProgress | None) -> None:
        self._total, self._tell = total, on_progress
        self._done = self._failed = 0

    def add(self, outcome: Outcome) -> Outcome:
        """Count one, tell of it, and return it."""
        self._done += 1
        self._failed += outcome.error is not None
        if self._tell is not None:
            self._tell(Progress(self._done, self._failed, self._total))
        return outcome


def check_sizes(concurrency: int, per_request: int) -> None:
    """Raise `ValueError` unless both are at least one."""
    for name, value in (("concurrency", concurrency), ("per_request", per_request)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")


def grouped(images: Iterable[ImageSource], size: int) -> Iterator[list[Item]]:
    """So many numbered images at a time, taken from the source as they are needed."""
    numbered = enumerate(images)
    while group := list(islice(numbered, size)):
        yield group


async def grouped_as_they_come(
    images: Iterable[ImageSource] | AsyncIterable[ImageSource], size: int
) -> AsyncIterator[list[Item]]:
    """The same of a source that may make one wait for its images."""
    if isinstance(images, Iterable):
        for group in grouped(images, size):
            yield group
        return
    group, place = [], 0
    async for image in images:
        group.append((place, image))
        place += 1
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def classify_one(
    source: ImageSource, wishes: Wishes, terms: Terms, request_id: str | None = None
) -> Talk[Classification]:
    """Read one image and have it classified.

    Raises:
        TocomClientError: it could not be read, sent or classified.
    """
    timer = Timer(terms.clock, wishes.deadline_s)
    image = yield Encode(source)
    if isinstance(image, InvalidImage):
        raise image
    assert isinstance(image, EncodedImage)
    call = classify_call((image,), wishes)
    (answer,) = yield from converse(call, terms, timer, request_id or terms.new_id())
    if isinstance(answer, TocomClientError):
        raise answer
    return answer


def classify_group(items: Sequence[Item], wishes: Wishes, terms: Terms) -> Talk[list[Outcome]]:
    """Read some images, have them classified together, and say what became of each.

    Raises:
        Unauthorized: none of them, nor of any others, will be.
    """
    outcomes: list[Outcome] = []
    encoded: list[Encoded] = []
    for place, source in items:
        image = yield Encode(source)
        if isinstance(image, EncodedImage):
            encoded.append((place, source, image))
        else:
            assert isinstance(image, InvalidImage)
            outcomes.append(Outcome(place, source, error=image))
    for parcel in _parcels(encoded):
        outcomes += yield from _classify_parcel(parcel, wishes, terms)
    return sorted(outcomes, key=lambda outcome: outcome.place)


def _parcels(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Runs of images that fit into one request."""
    parcel: list[Encoded] = []
    size = 0
    for one in encoded:
        if parcel and size + len(one[2].data) > MOST_BYTES:
            yield parcel
            parcel, size = [], 0
        parcel.append(one)
        size += len(one[2].data)
    if parcel:
        yield parcel


def _classify_parcel(
    parcel: Sequence[Encoded], wishes: Wishes, terms: Terms
) -> Talk[list[Outcome]]:
    """One request; where it is refused as a whole, one for each image, to find the culprit."""
    images = tuple(image for _, _, image in parcel)
    timer = Timer(terms.clock, wishes.deadline_s)
    answers: Sequence[ImageAnswer]
    try:
        answers = yield from converse(classify_call(images, wishes), terms, timer, terms.new_id())
    except Unauthorized:
        raise
    except TocomClientError as error:
        if isinstance(error, Refused) and len(parcel) > 1:
            outcomes: list[Outcome] = []
            for one in parcel:
                outcomes += yield from _classify_parcel([one], wishes, terms)
            return outcomes
        answers = [error] * len(parcel)
    return [_outcome(*one, answer) for one, answer in zip(parcel, answers, strict=True)]


def _outcome(place: int, source: ImageSource, _: EncodedImage, answer: ImageAnswer) -> Outcome:
    if isinstance(answer, TocomClientError):
        return Outcome(place, source, error=answer)
    return Outcome(place, source, answer)
