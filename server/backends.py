"""What runs the model on a batch: PyTorch as it is, compiled, by CUDA graphs, or ONNX Runtime.

All compute the same function on the same live weights. Whether ONNX Runtime or PyTorch is faster on
a CPU is a matter of the machine, so unless the settings say otherwise both are timed when the model
is loaded: a single image without compression, and a batch at the highest degree. Compiling takes
long, so that is done only when it is asked for.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from server.backend_trial import times_faster
from server.errors import SettingsError
from server.lanes import Lanes
from tocom_core.compiled_vit import CompiledViT
from tocom_core.compressed_vit import CompressedViT
from tocom_core.cuda_graphs import capture_problem
from tocom_core.onnx_backend import OnnxViT, can_spin, unsupported_onnx

logger = logging.getLogger(__name__)

TRIAL_BATCH = 8
SPIN_US = 50
"""Longer than a thread has to wait within a pass, and short enough to lose little where the cores
are wanted by others."""
_SPINNING_WINS = 1.05
"""Spinning costs others their time, so it has to be faster by more than chance."""


class Backend(Protocol):
    """Runs a part of a batch.

    Attributes:
        name: as the setting calls it.
    """

    name: str

    def logits(self, pixels: Tensor, r: int, *, whole: bool) -> Tensor:
        """Compute ``(B, C)`` logits from normalised ``(B, 3, H, W)``.

        Args:
            pixels: in the model's dtype, on its device.
            r: tokens to merge per layer; the weights are those for it already.
            whole: no other part runs beside this one, so all threads are free for it.
        """
        ...


class Eager:
    """PyTorch, operation by operation.

    Args:
        model: in eval mode.
    """

    name = "eager"

    def __init__(self, model: CompressedViT) -> None:
        self._model = model

    def logits(self, pixels: Tensor, r: int, *, whole: bool) -> Tensor:
        """See `Backend`; how many threads are used is PyTorch's setting of this thread."""
        logits: Tensor = self._model(pixels, r)
        return logits


class Captured(Eager):
    """PyTorch, recorded as CUDA graphs by the pipeline that runs it (`device_forward`)."""

    name = "graphs"


class Compiled:
    """PyTorch, with the layers compiled by ``torch.compile``.

    Args:
        model: in eval mode.
    """

    name = "compiled"

    def __init__(self, model: CompressedViT) -> None:
        self._model = CompiledViT(model)

    def logits(self, pixels: Tensor, r: int, *, whole: bool) -> Tensor:
        """See `Backend`; what is of a new kind waits for its compilation."""
        return self._model(pixels, r)


class Onnx:
    """ONNX Runtime, with sessions for a whole batch and, where there are lanes, for parts of one.

    Args:
        model: float32, on the CPU, in eval mode.
        threads: of the model.
        lanes: how many share them.
        spin_us: of the threads of a whole batch, see `OnnxViT`; None times both and takes the
            faster one.

    Raises:
        UnsupportedModelError: see `unsupported_onnx`.
    """

    name = "onnx"

    def __init__(
        self, model: CompressedViT, threads: int, lanes: int, spin_us: int | None = None
    ) -> None:
        share = max(1, threads // lanes)
        if spin_us is None and threads > 1 and can_spin():
            self._whole = _quicker_whole(model, threads)
        else:
            self._whole = OnnxViT(model, threads, spin_us or 0)
        self._part = self._whole if share == threads else OnnxViT(model, share)

    def logits(self, pixels: Tensor, r: int, *, whole: bool) -> Tensor:
        """See `Backend`."""
        return (self._whole if whole else self._part)(pixels, r)


def choose_backend(
    asked: str, model: CompressedViT, lanes: Lanes, threads: int, max_r: int
) -> Backend:
    """Return the backend that the settings name, or for ``auto`` the faster one.

    Args:
        asked: ``auto``, ``eager``, ``compiled``, ``graphs`` or ``onnx``.
        model: on its device, in its dtype, in eval mode.
        lanes: what parts of a batch run on.
        threads: of the model.
        max_r: the highest degree.

    Raises:
        SettingsError: ``onnx`` or ``graphs`` cannot run this model here.
    """
    on_cuda = next(model.parameters()).device.type == "cuda"
    if asked == "graphs" or (asked == "auto" and on_cuda):
        return _captured_or_eager(asked, model, max_r)
    if asked == "compiled":
        return Compiled(model)
    reason = unsupported_onnx(model) if asked != "eager" else None
    if asked == "onnx" and reason is not None:
        raise SettingsError(f"backend='onnx': {reason}; use backend 'eager' or 'auto'")
    if asked == "eager" or reason is not None:
        return Eager(model)
    onnx = Onnx(model, threads, lanes.count)
    if asked == "onnx":
        return onnx
    eager = Eager(model)
    gain = _gain(eager, onnx, model, lanes, max_r)
    chosen = onnx if gain > 1 else eager
    logger.info("backend %s: ONNX Runtime takes 1/%.2f of PyTorch's time", chosen.name, gain)
    return chosen


def _captured_or_eager(asked: str, model: CompressedViT, max_r: int) -> Backend:
    """CUDA graphs if one can be captured of this model, else eager unless they were asked for."""
    reason = capture_problem(model, max_r)
    if reason is None:
        return Captured(model)
    if asked == "graphs":
        raise SettingsError(f"backend='graphs': {reason}; use backend 'eager' or 'auto'")
    logger.warning("backend eager: %s", reason)
    return Eager(model)


def run_part(images: Tensor, classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Run on this thread without gradients: inference mode holds for one thread only."""
    with torch.inference_mode():
        return classify(images)


def _gain(slow: Backend, fast: Backend, model: CompressedViT, lanes: Lanes, max_r: int) -> float:
    """How many times faster one backend is than the other, over two very different batches."""

    def jobs(backend: Backend) -> list[Callable[[], Tensor]]:
        return [
            partial(_run, backend, lanes, _blank(model, count), r)
            for r, count in ((0, 1), (max_r, TRIAL_BATCH))
        ]

    return times_faster(jobs(slow), jobs(fast))


def _run(backend: Backend, lanes: Lanes, pixels: Tensor, r: int) -> Tensor:
    """Run a batch as it is run when it is alone."""
    whole = lanes.keeps_whole(len(pixels))
    job = partial(run_part, classify=partial(backend.logits, r=r, whole=whole))
    return lanes.run(job, pixels)


def _quicker_whole(model: CompressedViT, threads: int) -> OnnxViT:
    """Let threads spin or not, whichever is faster here for one image."""
    waits, spins = OnnxViT(model, threads), OnnxViT(model, threads, SPIN_US)
    pixels = _blank(model, 1)
    first, second = (
        [partial(run_part, pixels, partial(backend, r=r)) for r in (0, model.max_r // model.depth)]
        for backend in (waits, spins)
    )
    gain = times_faster(first, second)
    logger.info("onnx: spinning for %d µs takes 1/%.2f of the time", SPIN_US, gain)
    return spins if gain > _SPINNING_WINS else waits


def _blank(model: CompressedViT, count: int) -> Tensor:
    return torch.zeros(count, model.vit.in_chans, *model.vit.patch_embed.img_size)
