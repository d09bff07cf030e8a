"""How fast a forward pass could be at best: arithmetic and memory traffic of each part.

A part takes at least its arithmetic at the rate at which the device multiplies large matrices, and
at least its bytes at the rate at which it copies large buffers, whichever is longer; the bound is
the sum over the parts. Traffic is counted as if each part read its inputs once and wrote its
outputs once, so a better kernel can beat the bound only by fusing parts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tocom_core.compressed_vit import CompressedViT
from tocom_core.schedule import patch_counts, resolve_schedule

FLOPS_PER_CLOCK = {(8, 0): 2048, (9, 0): 4096}
"""Dense, of half precision's matrix units, per multiprocessor: A100, H100."""


@dataclass(frozen=True)
class Device:
    """What a device does when asked for the simplest thing.

    Attributes:
        flops_per_s: of a large matrix product in the model's dtype.
        bytes_per_s: of a large copy, reading and writing counted.
    """

    flops_per_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return f"{self.flops_per_s / 1e12:.3g} TFLOP/s, {self.bytes_per_s / 1e9:.3g} GB/s"


@dataclass(frozen=True)
class Part:
    """A part of the forward pass of a whole batch."""

    name: str
    flops: float
    bytes: float

    def seconds(self, device: Device) -> float:
        """The least that it can take."""
        return max(self.flops / device.flops_per_s, self.bytes / device.bytes_per_s)


def bound_s(parts: list[Part], device: Device) -> float:
    """The least that all of it can take."""
    return sum(part.seconds(device) for part in parts)


def by_name(parts: list[Part], device: Device) -> dict[str, float]:
    """Seconds of each kind of part, all blocks together."""
    total: dict[str, float] = {}
    for part in parts:
        total[part.name] = total.get(part.name, 0.0) + part.seconds(device)
    return total


def forward_parts(model: CompressedViT, r: int, batch: int, item: int) -> list[Part]:
    """The parts of one forward pass.

    Args:
        model: of plain blocks.
        r: the degree.
        batch: images.
        item: bytes of a number.
    """
    shape, width = model.shape, model.embed_dim
    hidden = shape.mlp_macs_per_token / (2 * width)
    head_dim = model.vit.blocks[0].attn.head_dim
    height, columns = model.vit.patch_embed.img_size
    pixels = model.vit.in_chans * height * columns
    stem_bytes = item * batch * (pixels + width * shape.num_patches)
    parts = [Part("stem and head", 2.0 * batch * shape.stem_macs, stem_bytes)]
    schedule = resolve_schedule(r, model.depth)
    for before, after in patch_counts(shape.num_patches, schedule, model.method):
        n, m = (count + shape.num_prefix_tokens for count in (before, after))
        tokens, left = batch * n * width, batch * m * width  # numbers, not bytes
        parts += [
            Part("norms and residuals", 0, item * (5 * tokens + 5 * left)),
            _product("projections", batch * n, width, 3 * width, item),
            Part("attention", 4.0 * n * tokens, item * 4 * tokens),
            _product("projections", batch * n, width, width, item),
            _product("MLP", batch * m, width, hidden, item),
            Part("MLP", 0, item * 2 * batch * m * hidden),
            _product("MLP", batch * m, hidden, width, item),
        ]
        if n > m:
            similarity = 2.0 * batch * (before / 2) ** 2 * head_dim
            parts.append(Part("matching", similarity, item * tokens + 8 * batch * n * head_dim))
            parts.append(Part("merging", 0, item * (tokens + left)))
    return parts


def measure_device(device: torch.device, dtype: torch.dtype, size: int, copied: int) -> Device:
    """Time a product of two ``size``² matrices and a copy of ``copied`` bytes; the best of ten."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_s = _best_s(lambda: torch.mm(a, b), device)
    copy_s = _best_s(lambda: target.copy_(source), device)
    return Device(2.0 * size**3 / product_s, 2.0 * copied / copy_s)


def nominal(device: torch.device) -> Device | None:
    """What its clocks and widths promise; ``None`` where they or their meaning are not known."""
    if device.type != "cuda":
        return None
    told = torch.cuda.get_device_properties(device)
    per_clock = FLOPS_PER_CLOCK.get((told.major, told.minor))
    clock, memory_clock, width = (
        getattr(told, name, None)
        for name in ("clock_rate", "memory_clock_rate", "memory_bus_width")
    )
    if per_clock is None or not (clock and memory_clock and width):
        return None
    flops = per_clock * told.multi_processor_count * clock * 1e3
    return Device(flops, 2 * memory_clock * 1e3 * width / 8)  # data on both edges of the clock


def _product(name: str, rows: float, inner: float, outer: float, item: int) -> Part:
    """A linear layer: ``(rows, inner) @ (inner, outer)``."""
    moved = rows * inner + inner * outer + rows * outer
    return Part(name, 2.0 * rows * inner * outer, item * moved)


def _best_s(job: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(11):  # the first one is the warm-up
        started = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best
