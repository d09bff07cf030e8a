"""Pinned memory on the host, and its like on the device, that batches pass through.

A copy runs beside the host's and the device's other work only from *pinned* memory, which is slow
to get. So a few slots are kept and used again: each has room for the pixels on both sides and for
the scores that come back, and grows to the largest bucket that it has met. Two slots are enough:
one batch computes while the next one is copied.

Images are laid out channels last, as decoders make them, so that each is one plain copy.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from tocom_core.buckets import bucket_for
from tocom_core.device_calls import CALLS
from tocom_core.streams import Mark, Streams

SLOTS = 2


class Slot:
    """Room for one batch on its way there and back.

    Attributes:
        count: images that it holds now.
        copied: when their pixels are on the device; ``None`` before they are sent.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, device: torch.device) -> None:
        self._shape = shape
        self._classes = classes
        self._device = device
        self._room = 0
        self.count = 0
        self.copied: Mark | None = None

    @property
    def images(self) -> Tensor:
        """uint8 ``(count, C, H, W)`` in pinned memory."""
        return self._images[: self.count]

    @property
    def pixels(self) -> Tensor:
        """The same on the device."""
        return self._pixels[: self.count]

    @property
    def scores(self) -> Tensor:
        """float32 ``(count, classes)`` in pinned memory."""
        return self._scores[: self.count]

    def make_room(self, count: int) -> None:
        """Grow to the bucket of ``count`` images, if need be.

        Called while the stream for copies is current: memory belongs to the stream on which it was
        asked for, and this is the one that writes to it first.
        """
        self.count = count
        if count <= self._room:
            return
        self._room = 0
        self._images = self._pixels = self._scores = torch.empty(0)  # let go before asking for more
        room = bucket_for(count)
        channels, height, width = self._shape
        shape = (room, height, width, channels)
        pin = self._device.type == "cuda"
        images = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        pixels = torch.empty(shape, dtype=torch.uint8, device=self._device)
        self._scores = torch.empty(room, self._classes, pin_memory=pin)
        self._images, self._pixels = (x.permute(0, 3, 1, 2) for x in (images, pixels))
        self._room = room

    def fill(self, images: Sequence[Tensor]) -> None:
        """Take over as many images ``(C, H, W)`` as there was room made for."""
        for row, image in zip(self.images, images, strict=True):
            row.copy_(image)

    def send(self, streams: Streams) -> None:
        """Begin to copy the pixels to the device, on the current stream."""
        self.pixels.copy_(self.images, non_blocking=True)
        self.copied = streams.mark()


class Staging:
    """The slots of one model.

    Args:
        shape: of one image, ``(C, H, W)``.
        classes: scores per image.
        device: where the model is.
        streams: of that device.
        slots: how many batches may be under way at once.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        device: torch.device,
        streams: Streams,
        slots: int = SLOTS,
    ) -> None:
        self._streams = streams
        self._free = [Slot(shape, classes, device) for _ in range(slots)]
        self._returned = threading.Condition()

    def stage(self, images: Sequence[Tensor]) -> Slot:
        """Send images on their way to the device; waits for a free slot.

        Args:
            images: uint8, each ``(C, H, W)``, on the CPU.

        Returns:
            A slot that belongs to the caller until `give_back`.

        Raises:
            Exception: what the device says, out of memory among it; no slot is taken then.
        """
        with self._returned:
            self._returned.wait_for(lambda: self._free)
            slot = self._free.pop()
        try:
            with self._streams.copying():
                with CALLS.shared():
                    slot.make_room(len(images))
                slot.fill(images)  # the long part, beside which a batch may be launched
                with CALLS.shared():
                    slot.send(self._streams)
        except BaseException:
            self.give_back(slot)
            raise
        return slot

    def give_back(self, slot: Slot) -> None:
        """Let others have a slot. Whoever calls has waited for its batch, or given it up."""
        copied, slot.copied = slot.copied, None
        try:
            if copied is not None:
                copied.synchronize()
        finally:
            with self._returned:
                self._free.append(slot)
                self._returned.notify()
