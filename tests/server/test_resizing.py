"""The fast resize against the transform that the model was evaluated with."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from timm.data import create_transform

from server.resizing import CentreOfResized, faster


def transform(side: int = 224, crop_pct: float = 0.9, **changed: object):
    """Timm's evaluation transform without normalisation."""
    usual = {
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    return create_transform((3, side, side), is_training=False, normalize=False, **usual | changed)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (97, 61), (1000, 250), (248, 248)])
@pytest.mark.parametrize(("side", "crop_pct"), [(224, 0.9), (32, 1.0), (224, 0.875)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_pixels_are_those_of_the_models_transform(
    size: tuple[int, int], side: int, crop_pct: float, interpolation: str, crop_mode: str
) -> None:
    """At most two levels apart, and next to none of them are; a sixth where both sides differ."""
    photo = Image.fromarray(data.chelsea()).resize(size)
    slow = transform(side, crop_pct, interpolation=interpolation, crop_mode=crop_mode)
    fast = faster(slow)
    assert isinstance(fast, CentreOfResized)
    want, got = slow(photo), fast(photo)
    assert got.dtype == torch.uint8 and got.is_contiguous() and got.shape == want.shape
    apart = np.abs(want.numpy().astype(int) - got.numpy().astype(int))
    assert apart.max() <= 2
    assert apart.mean() < (0.2 if crop_mode == "squash" else 0.01)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    """Small square images, as of CIFAR, keep every bit."""
    photo = Image.fromarray(data.chelsea()).resize((32, 32))
    got = faster(transform(32, 1.0))(photo)
    assert (got.permute(1, 2, 0).numpy() == np.asarray(photo)).all()


def test_what_is_not_known_stays_as_it_is() -> None:
    """Padded inputs, other filters and unknown callables keep their own transform."""
    others = [
        transform(crop_mode="border"),
        transform(crop_pct=1.0, interpolation="nearest"),
        lambda image: torch.zeros(3, 8, 8),
    ]
    for other in others:
        assert faster(other) is other
