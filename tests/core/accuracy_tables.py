"""A table as ``evaluate`` gives it, made of made-up figures."""

from typing import Any

import torch

from tocom_core.accuracy_rows import accuracy_rows
from tocom_core.image_figures import ImageFigures
from tocom_core.predictions import Variant


def accuracy_table(
    *, labelled: bool = True, timed: bool = True, sources: tuple[int, ...] = (0,)
) -> dict[str, Any]:
    """Degrees 0, 8 and 16 of a model; a bank up to 8; accuracy falls with the degree."""
    plain = [Variant(own, r) for own in sources for r in sorted({0, 8, 16, *sources})]
    banked = [variant._replace(scaling=0.1) for variant in plain if variant.r <= 8]
    shown = sorted([*plain, *banked], key=lambda v: (v.r_source, v.r, v.scaling is not None))
    costs: dict[int, dict[str, Any]] = {
        r: {"gflops": 2.5 - r / 10, "arithmetic_ratio": 2.5 / (2.5 - r / 10)} for r in range(17)
    }
    for r, cost in costs.items() if timed else ():
        cost["images_per_s"] = [100.0 + r, 98.0 + r, 101.0 + r]
        cost["speedup"] = [1 + r / 100, 1 + r / 110, 1 + r / 90]
    return {
        "model": "mine",
        "architecture": "vit_tiny_patch16_224",
        "digest": "0" * 64,
        "r_source": sources[0],
        "bank": {"name": "pool", "digest": "1" * 64, "num_groups": 8, "rank": 2, "scaling": 0.1},
        "method": "merge",
        "prop_attn": True,
        "data": "pictures",
        "split": "test",
        "labelled": labelled,
        "images": 200,
        "skipped_images": 0,
        "rows": accuracy_rows(shown, {v: _figures(v) for v in shown}, costs, labelled=labelled),
        "scaling_search": None,
        "throughput": {"batch": 32, "seconds_per_degree": 2.0, "device": "cpu, 2 threads"}
        if timed
        else None,
        "notes": [],
    }


def _figures(variant: Variant) -> ImageFigures:
    lost = abs(variant.r - variant.r_source) * (3 if variant.scaling is None else 2)
    flags = torch.arange(200) < 180 - lost
    return ImageFigures(
        flags, torch.ones(200, dtype=torch.bool), flags, torch.full((200,), lost / 9)
    )
