"""What runs the model on a batch: PyTorch as it is, by CUDA graphs, or ONNX Runtime on a CPU.

All compute the same function on the same live weights. Which one is faster is a matter of the
machine, so unless the settings say otherwise those for a CPU are timed when the model is loaded: a
single image without compression, and a batch at the highest degree.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from server.errors import SettingsError
from server.lanes import Lanes
from tocom_core.compressed_vit import CompressedViT
from tocom_core.cuda_graphs import capture_problem
from tocom_core.onnx_backend import OnnxViT, unsupported_onnx

logger = logging.getLogger(__name__)

TRIAL_BATCH = 8
TRIAL_RUNS = 3


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


class Onnx:
    """ONNX Runtime, with sessions for a whole batch and, where there are lanes, for parts of one.

    Args:
        model: float32, on the CPU, in eval mode.
        threads: of the model.
        lanes: how many share them.

    Raises:
        UnsupportedModelError: see `unsupported_onnx`.
    """

    name = "onnx"

    def __init__(self, model: CompressedViT, threads: int, lanes: int) -> None:
        self._whole = OnnxViT(model, threads)
        share = max(1, threads // lanes)
        self._part = self._whole if share == threads else OnnxViT(model, share)

    def logits(self, pixels: Tensor, r: int, *, whole: bool) -> Tensor:
        """See `Backend`."""
        return (self._whole if whole else self._part)(pixels, r)


def choose_backend(
    asked: str, model: CompressedViT, lanes: Lanes, threads: int, max_r: int
) -> Backend:
    """Return the backend that the settings name, or for ``auto`` the faster one.

    Args:
        asked: ``auto``, ``eager``, ``graphs`` or ``onnx``.
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
    reason = unsupported_onnx(model) if asked != "eager" else None
    if asked == "onnx" and reason is not None:
        raise SettingsError(f"backend='onnx': {reason}; use backend 'eager' or 'auto'")
    if asked == "eager" or reason is not None:
        return Eager(model)
    onnx = Onnx(model, threads, lanes.count)
    if asked == "onnx":
        return onnx
    eager = Eager(model)
    cells = (0, 1), (max_r, TRIAL_BATCH)
    gain = math.exp(sum(_log_gain(eager, onnx, model, lanes, *cell) for cell in cells) / 2)
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


def _log_gain(
    slow: Backend, fast: Backend, model: CompressedViT, lanes: Lanes, r: int, count: int
) -> float:
    """Logarithm of how many times faster one backend is than the other with such a batch."""
    vit = model.vit
    pixels = torch.zeros(count, vit.in_chans, *vit.patch_embed.img_size)
    whole = lanes.keeps_whole(count)
    best = {slow.name: math.inf, fast.name: math.inf}
    for _ in range(TRIAL_RUNS):  # in turn, so that a machine that changes its pace favours neither
        for backend in (slow, fast):
            job = partial(run_part, classify=partial(backend.logits, r=r, whole=whole))
            started = time.perf_counter()
            lanes.run(job, pixels)
            best[backend.name] = min(best[backend.name], time.perf_counter() - started)
    return math.log(best[slow.name] / best[fast.name])
