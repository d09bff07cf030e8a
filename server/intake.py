"""The way of a request, in one direction: admission, body, decode, queue, result.

Which model a request goes to is asked once, when its body is there: it is decoded for that model
and waits in its queue, whatever is served afterwards.  No web framework and no model here:
``routes`` hands over what arrives, the batcher takes the decoded images, and whatever ends a
request early (deadline, client gone, shutdown) ends it by ``Interruption``, wherever it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TypeVar

from PIL import Image

from server.batcher import ItemResult, Reservation, Submission, Terms
from server.clock import Clock
from server.cores import usable_cores
from server.decoders import Decoders
from server.errors import BadParameter, DeadlineExpired, Draining, ServeError
from server.images import ImageLimits, guard_pillow
from server.incoming import (
    DRAFT_FACTOR,
    Destination,
    FilesForm,
    Form,
    Incoming,
    Part,
    Reading,
    Wishes,
)
from server.interruption import Interruption, body_chunks
from server.settings import Settings
from server.stats import RequestStats
from server.uploads import BodyMemory, UploadLimits

__all__ = ["DRAFT_FACTOR", "Answer", "Destination", "Incoming", "Intake", "Wishes"]

T = TypeVar("T")
P = TypeVar("P", bound=Part)

BODY_TIMEOUT_S = 60.0
"""A body that takes longer than this is given up, so that idle uploads do not pile up."""

BODIES_IN_MEMORY = 16
"""All bodies together may take this many times the largest allowed one."""


@dataclass(frozen=True)
class Answer:
    """What became of one file: a result, or the problem with it."""

    filename: str | None
    result: ItemResult | ServeError


Pending = asyncio.Future[ItemResult] | ServeError
"""A file's place in the queue, or why it got none."""


@dataclass(frozen=True)
class _Decoded:
    image: object
    problem: ServeError | None
    seconds: float


@dataclass(frozen=True)
class _Request:
    """One request under way; ``deadline`` is absolute."""

    incoming: Incoming
    wishes: Wishes
    deadline: float | None
    scope: Interruption


class Intake:
    """Takes requests in and brings their images to the batcher.

    Args:
        settings: limits, decode workers, default deadline.
        clock: seconds, the same as the event loop's.
        on_image: told of images that never reach the batcher.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        on_image: Callable[[RequestStats], None],
    ) -> None:
        self._clock = clock
        self._on_image = on_image
        self._default_deadline_s = settings.default_deadline_s
        self._limits = UploadLimits(
            max_body_bytes=settings.max_body_bytes,
            max_file_bytes=settings.max_image_bytes,
            max_files=min(settings.max_files, settings.queue_size),
        )
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        self._limits_for = cache(lambda draft_side: replace(limits, draft_side=draft_side))
        guard_pillow(limits)
        self._memory = BodyMemory(BODIES_IN_MEMORY * settings.max_body_bytes)
        self._decoders = Decoders(settings.decode_workers or usable_cores())
        self._reading: set[Interruption] = set()
        self._all_read = asyncio.Event()

    async def classify(
        self, destination: Callable[[], Destination], incoming: Incoming, form: Form[Part]
    ) -> tuple[Destination, list[Answer]]:
        """Take one request from its first byte to one answer per file, in their order.

        Args:
            destination: says which model it goes to; asked once, when its body is there.
            incoming: the request.
            form: of its body, and what it asks for.

        Returns:
            where it went, and the answers.

        Raises:
            ServeError: the request as a whole was refused.
            ClientGone: nobody is waiting for the answer any more.
        """
        form.check(incoming, self._limits)
        request = self._request(incoming, form, Interruption())
        async with request.scope:
            with self._memory.hold() as take:
                parts = await self._read(request, take, form)
                incoming.record.bytes_in = sum([part.size for part in parts])
                request.scope.watch(incoming.receive)
                chosen = destination()
                form.fit(chosen)
                request = self._request(incoming, form, request.scope)
                pending = await self._admit(request, parts, chosen, form.all_or_none)
            return chosen, await _collect(parts, pending)

    async def prepare(
        self, incoming: Incoming, transform: Callable[[Image.Image], T], input_side: int
    ) -> T:
        """Read and decode one image for something else than the queue.

        Args:
            incoming: the request.
            input_side: longer side of what comes out, in pixels; decoding may stop short of more.
            transform: what to do with the decoded RGB image, on a thread of the decoders.

        Raises:
            ServeError: the request was refused; more than one image is.
            ClientGone: nobody is waiting for the answer any more.
        """
        form = FilesForm(Wishes())
        form.check(incoming, self._limits)
        request = _Request(incoming, form.wishes, None, Interruption())
        async with request.scope:
            with self._memory.hold() as take:
                parts = await self._read(request, take, form)
                if len(parts) != 1:
                    raise BadParameter(f"{len(parts)} images were sent; send one at a time")
                request.scope.watch(incoming.receive)
                job = partial(parts[0].decode_with, self._limits_for, transform, input_side)
                return await self._decoders.run(job)

    async def settle(self, grace_s: float) -> None:
        """Give bodies that are arriving a moment to be admitted, then refuse them."""
        if self._reading:
            self._all_read.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_read.wait(), grace_s)
        for scope in tuple(self._reading):
            scope.interrupt(Draining())

    def close(self) -> None:
        """End the decoders; what is being decoded is not waited for."""
        self._decoders.close()

    def _request(self, incoming: Incoming, form: Form[Part], scope: Interruption) -> _Request:
        seconds = form.wishes.deadline_s or self._default_deadline_s
        deadline = None if seconds is None else incoming.arrived_at + seconds
        return _Request(incoming, form.wishes, deadline, scope)

    async def _read(
        self, request: _Request, take: Callable[[int], None], form: Form[P]
    ) -> Sequence[P]:
        """The body, unless its time runs out or the server shuts down first."""
        incoming, scope = request.incoming, request.scope
        give_up = incoming.arrived_at + BODY_TIMEOUT_S
        if request.deadline is not None and request.deadline < give_up:
            self._expire_at(request.deadline, "the body was still arriving", scope)
        else:
            self._expire_at(give_up, f"the body took {BODY_TIMEOUT_S:.0f} s to arrive", scope)
        self._reading.add(scope)
        try:
            chunks = body_chunks(incoming.receive, take)
            return await form.read(Reading(chunks, self._limits, take, self._decoders.run))
        finally:
            scope.clear_timer()
            self._reading.discard(scope)
            if not self._reading:
                self._all_read.set()

    async def _admit(
        self,
        request: _Request,
        parts: Sequence[Part],
        destination: Destination,
        all_or_none: bool,
    ) -> list[Pending]:
        """Places in the queue for all files or none, then decode, then queue the good ones."""
        wishes = request.wishes
        terms = Terms(request.deadline, wishes.max_r, wishes.priority)
        with destination.batcher.reserve(len(parts), terms) as places:
            decoded = await self._decode_all(request, parts, destination)
            if all_or_none:
                bad = [self._report(request, item) for item in decoded if item.problem]
                if bad:
                    raise bad[0]
            return [self._submit(request, item, places) for item in decoded]

    async def _decode_all(
        self, request: _Request, parts: Sequence[Part], destination: Destination
    ) -> list[_Decoded]:
        """Decode in the pool; the deadline ends it here, and from then on in the queue."""
        if request.deadline is not None:
            self._expire_at(request.deadline, "the image was being decoded", request.scope)
        started = self._clock()
        decode_one = partial(self._decode, destination, started)
        jobs = [self._decoders.run(partial(decode_one, part)) for part in parts]
        try:
            return await _all(jobs)
        finally:
            request.scope.clear_timer()

    def _decode(self, destination: Destination, started: float, part: Part) -> _Decoded:
        """Decode one image, on a thread of the pool; a bad one is a result like any other."""
        image = problem = None
        try:
            image = part.decode(self._limits_for, destination)
        except ServeError as error:
            problem = error
        return _Decoded(image, problem, self._clock() - started)

    def _submit(self, request: _Request, item: _Decoded, places: Reservation) -> Pending:
        """Queue a decoded image, or report a bad one."""
        if item.problem is not None:
            return self._report(request, item)
        submission = Submission(
            payload=item.image,
            received_at=request.incoming.arrived_at,
            deadline=request.deadline,
            max_r=request.wishes.max_r,
            priority=request.wishes.priority,
            decode_s=item.seconds,
            on_end=request.incoming.record.images.append,
        )
        return places.submit(submission)

    def _report(self, request: _Request, item: _Decoded) -> ServeError:
        """Note a bad image; its problem."""
        assert item.problem is not None
        total_s = self._clock() - request.incoming.arrived_at
        stats = RequestStats("bad_image", None, item.seconds, 0.0, 0.0, total_s)
        request.incoming.record.images.append(stats)
        self._on_image(stats)
        return item.problem

    def _expire_at(self, deadline: float, meanwhile: str, scope: Interruption) -> None:
        error = DeadlineExpired(f"The deadline passed while {meanwhile}; allow more time.")
        scope.interrupt_after(deadline - self._clock(), error)


async def _all(jobs: Sequence[Awaitable[T]]) -> list[T]:
    """`asyncio.gather`, which costs a single job more than waiting for it does."""
    return [await jobs[0]] if len(jobs) == 1 else await asyncio.gather(*jobs)


async def _collect(parts: Sequence[Part], pending: Sequence[Pending]) -> list[Answer]:
    """Wait for all results; cancelling this cancels what has not come yet."""
    futures = [item for item in pending if isinstance(item, asyncio.Future)]
    if len(futures) > 1:
        await asyncio.gather(*futures, return_exceptions=True)
    elif futures:
        with suppress(Exception):  # looked at below
            await futures[0]
    return [
        Answer(part.filename, item if isinstance(item, ServeError) else _outcome(item))
        for part, item in zip(parts, pending, strict=True)
    ]


def _outcome(future: asyncio.Future[ItemResult]) -> ItemResult | ServeError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, ServeError):
        return error
    raise error
