"""Where a model's input lies in a picture, checked by cutting it out there."""

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea
from timm.data import create_transform

from tocom_core.framing import framed

SIZES = {"wide": (451, 300), "tall": (211, 300), "square": (300, 300), "small": (60, 40)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "side"),
    [("center", 0.9, 96), ("center", 1.0, (64, 96)), ("squash", 0.8, 96), ("border", 0.9, 96)],
)
def test_the_frame_is_what_the_model_sees(
    size: tuple[int, int], crop_mode: str, crop_pct: float, side: int | tuple[int, int]
) -> None:
    """Cutting the frame out of the picture and scaling it gives the transform's own result."""
    picture = Image.fromarray(chelsea()).resize(size)
    transform = create_transform(
        (3, 96, 96) if side == 96 else (3, *side),  # type: ignore[misc]
        is_training=False,
        normalize=False,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        crop_mode=crop_mode,
        crop_pct=crop_pct,
    )
    result, frame = framed(transform, picture)
    assert (result == transform(picture)).all()

    height, width = result.shape[-2:]
    box = (frame.left, frame.top, frame.left + frame.width, frame.top + frame.height)
    scale = (frame.width / width, frame.height / height)
    cut = picture.transform(
        (width, height),
        Image.Transform.AFFINE,
        (scale[0], 0, box[0], 0, scale[1], box[1]),
        Image.Resampling.BILINEAR,
    )
    difference = np.abs(np.asarray(cut, float) - result.permute(1, 2, 0).numpy())
    shifted = np.abs(np.roll(np.asarray(cut, float), 3, axis=1) - result.permute(1, 2, 0).numpy())
    assert difference.mean() < 7
    assert difference.mean() < 0.6 * shifted.mean()
