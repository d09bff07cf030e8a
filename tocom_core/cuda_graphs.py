"""A forward pass as a CUDA graph: hundreds of kernels launched by one call.

One graph holds for one degree and one batch size, so they are kept per cell of (degree, bucket),
and recorded when a cell has been met a few times. All of them read the same live weights where
these lie: a switch of the degree, which writes there in place, needs no new recording. They share
one memory pool, which is safe since they never run beside each other, and one and the same input.

What cannot be captured, or would be too much, runs eagerly: a failed capture is logged once and its
cell is not tried again; at the cap, and where memory ends, capturing stops with the reason.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tocom_core.buckets import bucket_for
from tocom_core.device_calls import CALLS

logger = logging.getLogger(__name__)

Run = Callable[[Tensor, int], Tensor]
"""uint8 pixels ``(B, C, H, W)`` and a degree to float32 ``(B, classes)``, all on the device."""

EAGER_FIRST = 2
"""So many batches of a cell run eagerly before it is captured: rare cells are not worth a graph."""
MOST_GRAPHS = 256
WARM_UPS = 2
"""Eager runs on the capturing stream before a capture, for libraries to get their memory there."""
LEAST_FREE_SHARE = 0.05
"""Of the device's memory; what is captured beyond it might be missing for a large batch."""


class Recorded(Protocol):
    """A recorded forward pass.

    Attributes:
        output: where each replay leaves its result.
    """

    output: Tensor

    def replay(self) -> None:
        """Put all of it on the current stream, reading and writing where it was recorded."""


class Capture(Protocol):
    """Records forward passes. `CudaCapture` is the real one."""

    def record(self, run: Callable[[], Tensor]) -> Recorded:
        """Warm up, then record one call of ``run``; nothing else runs on the device meanwhile.

        Raises:
            Exception: it cannot be recorded; the device is as before.
        """

    def refusal(self) -> str | None:
        """Why no more should be recorded now; ``None`` if it may."""

    def begin_anew(self) -> None:
        """Nothing that was recorded so far is of use any more."""


class CudaRecorded:
    """A CUDA graph and where its result lies."""

    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor) -> None:
        self._graph = graph
        self.output = output

    def replay(self) -> None:
        """See `Recorded`."""
        self._graph.replay()


class CudaCapture:
    """Captures on a stream of its own, into one memory pool.

    Only calls of the capturing thread count as mistakes, so that a thread that waits for an earlier
    batch, or serves another device, spoils nothing. The caller keeps this device quiet.

    Args:
        device: on which the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.begin_anew()

    def record(self, run: Callable[[], Tensor]) -> Recorded:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device):
                torch.cuda.synchronize()
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UPS):
                        run()
                # Waits for the device first, and ends the capture whatever happens inside.
                with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                    output = run()
        except Exception:
            with suppress(Exception):  # the first error is the one to be told
                graph.reset()
            self.begin_anew()  # a stream whose capture broke off may be of no more use
            raise
        return CudaRecorded(graph, output)

    def refusal(self) -> str | None:
        """See `Capture`: little memory is left, counting what PyTorch holds in reserve."""
        free, total = torch.cuda.mem_get_info(self._device)
        reserve = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(
            self._device
        )
        if free + reserve >= LEAST_FREE_SHARE * total:
            return None
        return f"less than {LEAST_FREE_SHARE:.0%} of the device's memory is free"

    def begin_anew(self) -> None:
        """See `Capture`: the last pool's memory is free once its graphs are gone."""
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()


class Graphs:
    """Runs batches by graphs where it can, else eagerly.

    Not for several threads at once: the caller lets one in at a time, on the computing stream, and
    sees to it that nothing else speaks to a device in ``prepare``.

    Args:
        run: the forward pass; must neither wait for the device nor depend on its values.
        pixels: uint8 ``(bucket, C, H, W)`` on the device, the input of all graphs; its bucket is
            the largest one that is captured.
        capture: records.
        most: how many graphs are kept; 0 captures nothing.
    """

    def __init__(self, run: Run, pixels: Tensor, capture: Capture, most: int = MOST_GRAPHS) -> None:
        self._run = run
        self._pixels = pixels
        self._capture = capture
        self._most = most
        self._largest = len(pixels)
        self._graphs: dict[tuple[int, int], Recorded] = {}
        self._refused: set[tuple[int, int]] = set()
        self._met: Counter[tuple[int, int]] = Counter()
        self._told: set[str] = set()

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(self, pixels: Tensor, r: int) -> Tensor:
        """Compute a batch.

        Args:
            pixels: uint8 ``(B, C, H, W)`` on the device.
            r: the degree; the live weights are those for it.

        Returns:
            float32 ``(B, classes)``, overwritten by the next call: copy it on the same stream.

        Raises:
            Exception: what the model raises; it has been run eagerly then.
        """
        graph = self._graphs.get((r, bucket_for(len(pixels))))
        if graph is None:
            return self._run(pixels, r)
        self._pixels[: len(pixels)].copy_(pixels)  # the rows behind keep an earlier batch's images
        graph.replay()
        return graph.output[: len(pixels)]

    def is_due(self, count: int, r: int) -> bool:
        """Note such a batch; whether its graph should be recorded before it is run."""
        cell = (r, bucket_for(count))
        self._met[cell] += 1
        return self._met[cell] > EAGER_FIRST and self._lacks(cell) and self._has_room()

    def prepare(self, count: int, r: int) -> bool:
        """Record the graph for so many images now; whether there is one afterwards."""
        cell = (r, bucket_for(count))
        if self._lacks(cell) and self._has_room():
            self._record(cell)
        return cell in self._graphs

    def make_room(self, count: int) -> None:
        """Let go of all graphs, and record none for so many images again.

        For when memory ended with a batch of ``count``. Nothing may be running on the device.
        """
        self._graphs.clear()
        self._capture.begin_anew()
        self._largest = min(self._largest, bucket_for(count) - 1)
        self._tell(f"memory ended with {count} images; graphs from there on are given up")

    def _record(self, cell: tuple[int, int]) -> None:
        """Record a cell's graph; if that fails it is not tried again."""
        r, bucket = cell
        pixels = self._pixels[:bucket]
        try:
            self._graphs[cell] = self._capture.record(lambda: self._run(pixels, r))
        except Exception as error:
            self._refused.add(cell)
            # A device that is lost fails the eager run that follows as well, and that one is told.
            first = _first(error)
            self._tell(f"the forward pass cannot be captured ({type(first).__name__}: {first})")

    def _lacks(self, cell: tuple[int, int]) -> bool:
        """Whether a cell has no graph and may have one."""
        return cell not in self._graphs and cell not in self._refused and cell[1] <= self._largest

    def _has_room(self) -> bool:
        """Whether one more graph may be kept; if not, the reason is logged."""
        if len(self._graphs) >= self._most:
            reason: str | None = f"there are {len(self._graphs)} graphs, the most that are kept"
        else:
            reason = self._capture.refusal()
        if reason is not None:
            self._tell(reason)
        return reason is None

    def _tell(self, reason: str) -> None:
        """Log each reason once."""
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("%s; such batches run eagerly", reason)


def capture_problem(model: nn.Module, r: int) -> str | None:
    """Why no graph can be captured of this model, tried with one image; ``None`` if it can.

    Args:
        model: a ``CompressedViT`` on its device, in eval mode.
        r: the degree to try.
    """
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and the model is on '{weight.device}'"
    vit: Any = model.vit
    shape = (1, vit.in_chans, *vit.patch_embed.img_size)
    pixels = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    try:
        with CALLS.alone(), torch.inference_mode():
            CudaCapture(weight.device).record(lambda: model(pixels, r))
    except Exception as error:
        return f"no CUDA graph of this model ({_first(error)})"
    return None


def _first(error: BaseException) -> BaseException:
    """The error that others followed: ending a capture that broke off raises one of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return error
