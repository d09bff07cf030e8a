"""Images prepared as the processors of `transformers` do it: the same pixels, or a refusal."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from skimage import data as photographs

from tests.core import transformers_folders as folders
from tocom_core import load_model
from tocom_core.errors import CheckpointError
from tocom_core.transformers_images import preparation

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SQUARE = {"height": 32, "width": 32}
PROCESSORS: dict[str, Any] = {
    "vit": lambda: folders.processor(),
    "bicubic": lambda: folders.processor(resample=3),
    "nearest": lambda: folders.processor(resample=0),
    "imagenet": lambda: folders.processor(image_mean=[0.485, 0.456, 0.406], image_std=[0.2] * 3),
    "not rescaled": lambda: folders.processor(do_rescale=False, image_mean=[127.5] * 3),
    "other factor": lambda: folders.processor(rescale_factor=1 / 127.5, image_mean=[1.0] * 3),
    "not normalised": lambda: folders.processor(do_normalize=False),
    "deit": lambda: folders.processor("DeiT"),
    "deit, odd": lambda: folders.processor("DeiT", size={"height": 37, "width": 37}),
    "short side": lambda: transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size=SQUARE
    ),
    "convnext": lambda: transformers.ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.8
    ),
    "pil": lambda: transformers.ViTImageProcessorPil(size=SQUARE),
}


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("photo", ["chelsea", "coffee", "astronaut"])
def test_pixels_are_those_of_the_library_s_processor(tmp_path: Path, kind: str, photo: str) -> None:
    """Within two of 255 levels each (the two resize with PyTorch and with Pillow), 0.2 on average.

    A crop that leaves an odd number of pixels may begin one later, so that only sizes are compared.
    """
    prepare = PROCESSORS[kind]()
    folder = folders.save(tmp_path / "f", folders.build(), prepare)
    loaded = load_model(folder)
    image = Image.fromarray(getattr(photographs, photo)())
    theirs = prepare(images=image, return_tensors="pt")["pixel_values"]
    ours = loaded.normalize(loaded.transform(image).unsqueeze(0))
    assert ours.shape == theirs.shape == (1, 3, 32, 32)
    levels = (ours - theirs).abs() * torch.tensor(loaded.std).view(-1, 1, 1) * 255
    if kind in ("short side", "convnext", "deit, odd"):
        assert levels.mean() < 40
    else:
        assert levels.max() <= 2.01
        assert levels.mean() <= 0.2


def test_without_the_file_images_are_prepared_as_the_library_s_default(tmp_path: Path) -> None:
    """ViT: squeezed to the input, halves; DeiT: 8/7 of it, the centre, ImageNet's figures."""
    for kind, mode, share, mean in (("ViT", "squash", 1.0, 0.5), ("DeiT", "squash", 0.875, 0.485)):
        folder = tmp_path / kind
        folders.build(kind, image_size=224, patch_size=32).save_pretrained(folder)
        info = load_model(folder).transform_info
        assert (info["crop_mode"], info["crop_pct"]) == (mode, share)
        assert info["mean"][0] == mean


@pytest.mark.parametrize("edge", range(33, 120))
def test_the_crop_s_share_gives_the_very_size_back(edge: int) -> None:
    """Timm divides by the share and rounds down; no size comes out one too small."""
    sizes = {"size": {"height": edge, "width": edge}, "crop_size": SQUARE}
    processor = {"image_processor_type": "DeiTImageProcessor", **sizes}
    share = preparation(processor, (32, 32), Path("f"))["crop_pct"]
    assert int(np.floor(32 / share)) == edge


@pytest.mark.parametrize(
    "processor",
    [
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "resample": 3},
        {"image_processor_type": "ViTImageProcessorFast", "size": SQUARE, "resample": 3},
        {"size": [32, 32], "resample": 3, "image_mean": 0.5, "image_std": 0.5},
    ],
)
def test_older_files_are_understood(processor: dict[str, Any]) -> None:
    """Sizes as a number or a pair, one number for three channels, older names."""
    half = [0.5] * 3
    found = preparation(processor, (32, 32), Path("f"))
    assert found["mean"] == pytest.approx(half) and found["std"] == pytest.approx(half)
    assert (found["crop_mode"], found["crop_pct"]) == ("squash", 1.0)
    assert found["interpolation"] == "bicubic"


def test_the_processor_may_lie_in_a_larger_file(tmp_path: Path) -> None:
    """``processor_config.json`` holds it under ``image_processor``."""
    folder = folders.save(tmp_path / "f", folders.build(), folders.processor(resample=3))
    path = folder / "preprocessor_config.json"
    content = {"image_processor": json.loads(path.read_text())}
    path.unlink()
    (folder / "processor_config.json").write_text(json.dumps(content))
    assert load_model(folder).transform_info["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": 48, "width": 48}}, "makes images of 48 x 48.* asks for 32 x 32"),
        ({"size": {"shortest_edge": 32}}, "keep different sizes; set do_center_crop"),
        ({"size": {"longest_edge": 32}}, "is not understood"),
        ({"size": {"height": 32}}, "no height and width"),
        ({"resample": 9}, "resample=9"),
        ({"do_pad": True}, "padding"),
        ({"image_processor_type": "SamImageProcessor"}, "SamImageProcessor; known are ViTImage"),
        ({"image_std": [0.0] * 3}, "three numbers each, the latter positive"),
        ({"image_mean": ["a"]}, "must be numbers"),
        (
            {"do_center_crop": True, "size": {"height": 64, "width": 40}, "crop_size": SQUARE},
            "not the same share",
        ),
        ({"do_center_crop": True, "size": {"height": 16, "width": 16}}, "not the same share"),
    ],
)
def test_what_timm_s_transform_cannot_do_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The error names the file, what it asks for and how to mend it."""
    folder = folders.save(tmp_path / "f", folders.build())
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json.*{message}"):
        load_model(folder)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json cannot be read"):
        load_model(folder)
