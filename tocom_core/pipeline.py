"""Batches on their way through a device: staged, launched, waited for.

    stage                  pinned memory → device        its own stream, beside the batch before
    launch                 normalise, forward, softmax → pinned memory     queued, not waited for
    Launched.done          the scores of this batch, and of no other, are there

Two threads may each see a batch through: while one waits for its scores, the other stages the next.
A graph is captured only while nothing else is put on a device: no copy, no batch, not even another
model's (`device_calls`).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tocom_core.buckets import bucket_for
from tocom_core.cuda_graphs import MOST_GRAPHS, Capture, Graphs
from tocom_core.device_calls import CALLS
from tocom_core.pixels import Normalise
from tocom_core.staging import Slot, Staging
from tocom_core.streams import Mark, Streams, streams_of

Logits = Callable[[Tensor, int], Tensor]
"""Normalised ``(B, C, H, W)`` and a degree to ``(B, classes)``."""
ALL = slice(None)


@dataclass(frozen=True)
class Launched:
    """A batch that the device has been told to compute.

    Attributes:
        begun: when it computes: all that was before it on the device is over.
        done: when its scores lie in its slot.
    """

    begun: Mark
    done: Mark


class Pipeline:
    """One model's way through its device.

    Args:
        logits: the model's forward pass.
        normalise: uint8 pixels to the model's input.
        input_size: ``(C, H, W)``.
        classes: logits per image.
        device: where the model is.
        capture: records graphs; None runs everything eagerly.
        largest_batch: the largest batch for which there may be graphs.
        most_graphs: see `Graphs`.
        streams: of the device; None takes what fits it.
    """

    def __init__(
        self,
        logits: Logits,
        normalise: Normalise,
        input_size: tuple[int, int, int],
        classes: int,
        device: torch.device,
        *,
        capture: Capture | None = None,
        largest_batch: int = 1,
        most_graphs: int = MOST_GRAPHS,
        streams: Streams | None = None,
    ) -> None:
        self._logits = logits
        self._device = device
        self._normalise = normalise
        self._streams = streams_of(device) if streams is None else streams
        self._launching = threading.Lock()
        self._staging = Staging(input_size, classes, device, self._streams)
        self._last: Mark | None = None
        self.graphs: Graphs | None = None
        if capture is not None:
            channels, height, width = input_size
            shape = (bucket_for(largest_batch), height, width, channels)
            pixels = torch.zeros(shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
            self.graphs = Graphs(self._scores, pixels, capture, most_graphs)

    @contextmanager
    def staged(self, images: Sequence[Tensor]) -> Iterator[Slot]:
        """Send images to the device; their slot is free for others when the block ends.

        Args:
            images: uint8, each ``(C, H, W)``, on the CPU.
        """
        slot = self.stage(images)
        try:
            yield slot
        finally:
            self.give_back(slot)

    def stage(self, images: Sequence[Tensor]) -> Slot:
        """``staged`` without a block, for whoever has two batches under way on one thread."""
        return self._staging.stage(images)

    def give_back(self, slot: Slot) -> None:
        """Let others have a slot whose batch was waited for."""
        self._staging.give_back(slot)

    def launch(self, slot: Slot, r: int, rows: slice = ALL) -> Launched:
        """Let the device compute a staged batch, or some rows of it; returns when it is told so.

        The scores lie in ``slot.scores[rows]`` once `Launched.done` is reached.

        Raises:
            Exception: whatever the model or the device raises, out of memory among it.
        """
        assert slot.copied is not None, "the slot is not staged"
        images, scores = slot.pixels[rows], slot.scores[rows]
        with self._launching, self._streams.computing(), torch.inference_mode():
            if self.graphs is not None and self.graphs.is_due(len(images), r):
                with CALLS.alone():
                    self.graphs.prepare(len(images), r)
            return self._launch(slot.copied, images, scores, r)

    def classify(self, images: Sequence[Tensor], r: int) -> Tensor:
        """All of it for one batch: uint8 images to float32 probabilities ``(B, classes)``."""
        with self.staged(images) as slot:
            self.launch(slot, r).done.synchronize()
            return slot.scores.clone()

    def prepare(self, count: int, r: int) -> None:
        """Capture the graph for such a batch, if there are graphs and it has none."""
        if self.graphs is None:
            return
        with self._launching, self._streams.computing(), torch.inference_mode(), CALLS.alone():
            self.graphs.prepare(count, r)

    def make_room(self, count: int) -> None:
        """Give up memory that is held in reserve, graphs included: a batch of ``count`` had none.

        Raises:
            Exception: the device is lost.
        """
        with self._launching, self._streams.computing(), CALLS.alone():
            if self.graphs is not None:
                if self._last is not None:
                    self._last.synchronize()  # a graph must not go while it runs
                self.graphs.make_room(count)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _launch(self, copied: Mark, images: Tensor, scores: Tensor, r: int) -> Launched:
        with CALLS.shared():
            self._streams.after(copied)
            begun = self._streams.mark()
            compute = self._scores if self.graphs is None else self.graphs
            scores.copy_(compute(images, r), non_blocking=True)
            self._last = done = self._streams.mark()
        return Launched(begun, done)

    def _scores(self, pixels: Tensor, r: int) -> Tensor:
        """What a graph records: uint8 ``(B, C, H, W)`` to float32 probabilities, on the device."""
        return self._logits(self._normalise(pixels), r).float().softmax(dim=-1)
