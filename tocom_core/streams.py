"""In which order a device does what it is told, and how to wait for a part of it.

A CUDA device works on *streams*: what is put on one runs in order, what is on two may run side by
side. Here are two of them. Batches compute on the default stream, on which all else runs that
touches the weights (a switch of the degree), so that these need no further order. Copies to the
device have a stream of their own, so that the next batch's pixels travel while this one computes.
A *mark* is a place in a stream that another stream, or a thread, can wait for; nobody waits for the
whole device.

`InOrder` is the same for a device that has done everything by the time a call returns.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch


class Mark(Protocol):
    """A place in a stream, like ``torch.cuda.Event``."""

    def query(self) -> bool:
        """Whether the stream has come past it."""

    def synchronize(self) -> None:
        """Wait on this thread until it has; other Python threads run meanwhile."""


class Streams(Protocol):
    """The streams of one device."""

    def copying(self) -> AbstractContextManager[None]:
        """What is called inside goes to the stream for copies to the device."""

    def computing(self) -> AbstractContextManager[None]:
        """What is called inside goes to the stream that computes."""

    def mark(self) -> Mark:
        """A mark behind all that is on the current stream now."""

    def after(self, mark: Mark) -> None:
        """What follows on the current stream waits, on the device, for the mark."""


class CudaStreams:
    """The streams of a CUDA device.

    Args:
        device: with its index, or the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._compute = torch.cuda.default_stream(device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def copying(self) -> Iterator[None]:
        """See `Streams`; the device becomes the thread's current one too."""
        with torch.cuda.stream(self._copies):
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """See `Streams`; the device becomes the thread's current one too."""
        with torch.cuda.stream(self._compute):
            yield

    def mark(self) -> Mark:
        """See `Streams`. Who waits for it sleeps, rather than take a core from decoding."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def after(self, mark: Mark) -> None:
        """See `Streams`."""
        assert isinstance(mark, torch.cuda.Event)
        torch.cuda.current_stream().wait_event(mark)


class Past:
    """A mark that was reached when it was made."""

    def query(self) -> bool:
        """True."""
        return True

    def synchronize(self) -> None:
        """Return at once."""


class InOrder:
    """A device on which a call has happened when it returns: a CPU."""

    def copying(self) -> AbstractContextManager[None]:
        """See `Streams`."""
        return nullcontext()

    def computing(self) -> AbstractContextManager[None]:
        """See `Streams`."""
        return nullcontext()

    def mark(self) -> Mark:
        """See `Streams`."""
        return Past()

    def after(self, mark: Mark) -> None:
        """See `Streams`."""


def streams_of(device: torch.device) -> Streams:
    """What fits the device."""
    return CudaStreams(device) if device.type == "cuda" else InOrder()
