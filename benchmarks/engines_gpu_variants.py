"""What `engines_gpu` compares: peers, our paths, the whole way from host memory, and switches."""

import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tocom_core import Bank, CompressedViT, WeightMerger
from tocom_core.bank_header import BankHeader
from tocom_core.cuda_graphs import CudaCapture
from tocom_core.pipeline import Pipeline
from tocom_core.pixels import Normalise

Job = Callable[[], Tensor]
"""Puts one forward pass on the device, not waiting for it; the logits, or probabilities."""

LONG_ENOUGH_S = 0.01
"""Calls are repeated for so long before the device is waited for."""
GROUPS = 16
PIPELINED = 8
"""Batches per call of the whole way."""


class Bench:
    """The variants of one model and batch size, on the same input.

    Args:
        model: on the device, in eval mode.
        batch: images.
        device: CUDA, or a CPU, which has no graphs.
    """

    def __init__(self, model: CompressedViT, batch: int, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._repeats: dict[str, int] = {}
        dtype = next(model.parameters()).dtype
        size = (batch, model.vit.in_chans, *model.vit.patch_embed.img_size)
        generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(size, generator=generator).to(device, dtype)
        self._capture = CudaCapture(device) if device.type == "cuda" else None

    def peers(self, *, with_compile: bool) -> dict[str, Job]:
        """Plain timm, and what can be made of it without us; ``"timm"`` is among them."""
        vit = self._model.vit
        found: dict[str, Job] = {"timm": partial(vit, self._images)}
        if with_compile:
            torch.compiler.reset()  # else the next batch size would be compiled for any size
            compiled: Any = torch.compile(vit, dynamic=False)
            try:
                compiled(self._images)
                found["timm, compiled"] = partial(compiled, self._images)
            except Exception as error:  # no compiler on this machine, for one
                print(f"without compiled timm: {error}", file=sys.stderr)
        if self._capture is not None:
            found["timm, graph"] = self._graph(found["timm"])
        return found

    def ours(self, degrees: list[int]) -> dict[tuple[str, int], Job]:
        """Our paths at each degree."""
        found: dict[tuple[str, int], Job] = {}
        for r in degrees:
            eager = partial(self._model, self._images, r)
            found["eager", r] = eager
            if self._capture is not None:
                found["graphs", r] = self._graph(eager)
        return found

    def peak_bytes(self, r: int) -> int | None:
        """Memory that an eager forward pass needs at its peak, beside weights and input."""
        if self._device.type != "cuda":
            return None
        torch.cuda.synchronize(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        self._model(self._images, r)
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_allocated(self._device) - before

    def repeated(self, name: str, job: Job) -> Callable[[], None]:
        """As many calls as take a while, then one wait for the device."""
        for _ in range(2):  # the first one is slow
            taken = _seconds(job, self._device)
        self._repeats[name] = repeats = max(1, round(LONG_ENOUGH_S / taken))

        def run() -> None:
            for _ in range(repeats):
                job()
            synchronize(self._device)

        return run

    def per_call(self, name: str, seconds: list[float]) -> list[float]:
        """Seconds per forward pass from those of ``repeated``."""
        return [value / self._repeats[name] for value in seconds]

    def _graph(self, job: Job) -> Job:
        """A job as a CUDA graph."""
        assert self._capture is not None
        recorded = self._capture.record(job)

        def replay() -> Tensor:
            recorded.replay()
            return recorded.output

        return replay


def pipelined(
    model: CompressedViT, batch: int, device: torch.device, degrees: list[int]
) -> dict[int, Job]:
    """The whole way, several batches long: the next one is staged while one computes.

    Returns:
        per degree a job of `PIPELINED` batches, which returns the last one's probabilities.
    """
    dtype = next(model.parameters()).dtype
    channels, (height, width) = model.vit.in_chans, model.vit.patch_embed.img_size
    generator = torch.Generator().manual_seed(1)
    shape = (batch, height, width, channels)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = list(pixels.permute(0, 3, 1, 2))
    pipeline = Pipeline(
        model,
        Normalise((0.5,) * channels, (0.5,) * channels, device, dtype),
        (channels, height, width),
        int(model.vit.num_classes),
        device,
        capture=CudaCapture(device) if device.type == "cuda" else None,
        largest_batch=batch,
    )

    def run(r: int) -> Tensor:
        scores = torch.empty(0)
        slot = pipeline.stage(images)
        for number in range(PIPELINED):
            launched = pipeline.launch(slot, r)
            following = pipeline.stage(images) if number + 1 < PIPELINED else None
            launched.done.synchronize()
            scores = slot.scores.clone()
            pipeline.give_back(slot)
            if following is not None:
                slot = following
        return scores

    for r in degrees:
        pipeline.prepare(batch, r)
    return {r: partial(run, r) for r in degrees}


def random_bank(model: CompressedViT) -> Bank:
    """A bank of the usual size; its values do not matter for the time."""
    bank = Bank(BankHeader("", model.embed_dim, model.depth, num_groups=GROUPS, rank=2))
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return bank


@torch.no_grad()
def switch_times(
    model: CompressedViT, bank: Bank, count: int, device: torch.device, seed: int = 0
) -> list[tuple[float, float]]:
    """Switch to random other degrees.

    Returns:
        per switch the seconds until the call returned, and until the device was done.
    """
    merger = WeightMerger(model, bank)
    for r in range(GROUPS + 1):  # built once; what is too much to be kept is built again
        merger.set_target(r)
    rng = random.Random(seed)
    taken = []
    for _ in range(count):
        r = rng.choice([other for other in range(GROUPS + 1) if other != merger.r_target])
        synchronize(device)
        started = time.perf_counter()
        merger.set_target(r)
        returned = time.perf_counter()
        synchronize(device)
        taken.append((returned - started, time.perf_counter() - started))
    merger.set_target(0)
    return taken


def synchronize(device: torch.device) -> None:
    """Wait for all that the device has been told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(job: Job, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    job()
    synchronize(device)
    return time.perf_counter() - started
