"""What every server of `benchmarks/overhead.py` does with an image: decode it, answer a constant.

Beside a photograph, which is decoded, there is a body that stands for an input that needs no
decoding: a few hundred bytes, for which the decoder returns pixels that were prepared beforehand.
"""

from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor

from benchmarks.overhead_servers import PREPARED_BELOW_BYTES, SIDE
from server.images import ImageLimits, decode, guard_pillow
from server.resizing import faster

TOP_K = 5
ANSWER = {
    "request_id": "0" * 32,
    "model": "null",
    "results": [
        {
            "filename": None,
            "r": 0,
            "batch_size": 1,
            "queue_ms": 0.123,
            "compute_ms": 0.123,
            "predictions": [
                {"label": f"class {i}", "index": i, "score": 0.1234567} for i in range(TOP_K)
            ],
        }
    ],
}
"""What the peers answer: as long as ours."""


def needs_decoding(body: bytes) -> bool:
    """Whether a body is a photograph, or stands for prepared pixels."""
    return len(body) >= PREPARED_BELOW_BYTES


class Decoder:
    """Bytes to uint8 `(3, 224, 224)`, as our server does it."""

    def __init__(self) -> None:
        self._prepared = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
        self._limits = ImageLimits(20_000_000, 50_000_000, draft_side=2 * SIDE)
        half = (0.5, 0.5, 0.5)
        usual: dict[str, Any] = {"interpolation": "bicubic", "crop_pct": 0.9}
        transform = create_transform(
            (3, SIDE, SIDE), is_training=False, normalize=False, mean=half, std=half, **usual
        )
        self._transform = faster(transform)
        guard_pillow(self._limits)

    def __call__(self, body: bytes) -> Tensor:
        """Decode it, unless it stands for prepared pixels."""
        if not needs_decoding(body):
            return self._prepared
        return decode(body, self._limits, self._transform)
