"""Recording and replaying a forward pass without a GPU, by PyTorch's own tracer.

What `make_fx` records is what a CUDA graph records: a plain list of operations on the tensors that
were there, live weights among them by reference, with every decision of Python taken once.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx


class Recording:
    """A list of operations and where its result goes."""

    def __init__(self, operations: Callable[[], Tensor]) -> None:
        self._operations = operations
        self.output = operations()

    def replay(self) -> None:
        """Run all of it again, into the same output."""
        self.output.copy_(self._operations())


class Recorder:
    """A `Capture` for any device.

    Attributes:
        recorded: how many recordings were made.
        fail: raised by the next recordings, if set.
        full: what `refusal` says.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.begun = 0
        self.fail: Exception | None = None
        self.full: str | None = None

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Warm up, then record."""
        run()
        if self.fail is not None:
            raise self.fail
        self.recorded += 1
        return Recording(make_fx(run)())

    def refusal(self) -> str | None:
        """As it was told."""
        return self.full

    def begin_anew(self) -> None:
        """Count it."""
        self.begun += 1


def uint8_images(count: int, size: tuple[int, int, int], seed: int = 0) -> list[Tensor]:
    """Random images ``(C, H, W)``, laid out channels last as a decoder's are."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = size
    shape = (count, height, width, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return list(images.permute(0, 3, 1, 2))
