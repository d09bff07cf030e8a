"""uint8 pixels to the model's input."""

import pytest
import torch

from tests.core.recorder import uint8_images
from tocom_core.pixels import Normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
    ids=str,
)
def test_normalising_is_the_formula_rounded_once(dtype: torch.dtype, tolerance: float) -> None:
    """All 256 values of each channel, against float64; half precision differs by its last digit."""
    values = torch.arange(256, dtype=torch.uint8)
    images = values.view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    expected = (images.double() / 255 - mean) / std
    found = Normalise(MEAN, STD, CPU, dtype)(images)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= tolerance


def test_memory_format_stays() -> None:
    """Channels last in, channels last out; and plain in, plain out."""
    normalise = Normalise(MEAN, STD, CPU, torch.float32)
    last = torch.stack(uint8_images(2, (3, 8, 4))).contiguous(memory_format=torch.channels_last)
    assert normalise(last).is_contiguous(memory_format=torch.channels_last)
    assert normalise(last.contiguous()).is_contiguous()
    assert torch.equal(normalise(last), normalise(last.contiguous()))
