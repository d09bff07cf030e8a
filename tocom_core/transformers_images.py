"""How a `transformers` checkpoint wants its images prepared, said in timm's terms.

``preprocessor_config.json`` tells how pictures are resized, cropped and normalised. timm's
evaluation transform can do the same with four words (crop mode, share of the crop, interpolation,
mean and deviation), which also is what our own model files record. What it cannot do is refused.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tocom_core.errors import CheckpointError

logger = logging.getLogger(__name__)

Sides = tuple[int, int]
"""Height and width in pixels."""

_HALF, _IMAGENET = (
    {"mean": [0.5] * 3, "std": [0.5] * 3},
    {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
)
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""timm's words for Pillow's numbers."""

# What each image processor does unless its file says otherwise; `resample` is Pillow's number.
_VIT = {"do_center_crop": False, "resample": 2, **_HALF}
_DEIT = {"do_center_crop": True, "resample": 3, **_IMAGENET}
_BIT = {"do_center_crop": True, "resample": 3, **_IMAGENET}
_CONVNEXT = {"do_center_crop": False, "resample": 3, "crop_pct": 224 / 256, **_IMAGENET}
_FAMILIES = {"ViT": _VIT, "DeiT": _DEIT, "Bit": _BIT, "ConvNext": _CONVNEXT}
_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")


def preparation(processor: Mapping[str, Any], sides: Sides, where: Path) -> dict[str, Any]:
    """Say in timm's ``pretrained_cfg`` what an image processor does.

    Args:
        processor: the content of ``preprocessor_config.json``.
        sides: of the model's input.
        where: the file, for messages.

    Returns:
        ``interpolation``, ``crop_pct``, ``crop_mode``, ``mean``, ``std``.

    Raises:
        CheckpointError: timm's transform cannot do that; the message says what.
    """
    given = {**_defaults(processor, where), **{k: v for k, v in processor.items() if v is not None}}
    if given.get("do_pad"):
        raise CheckpointError(f"{where} asks for padding (do_pad), which is not supported")
    number = given["resample"]
    if not isinstance(number, int) or not 0 <= number < len(_RESAMPLE):
        raise CheckpointError(f"{where}: resample={number!r} is none of Pillow's filters, 0 to 5")
    mode, resized, crop = _steps(given, sides, where)
    if crop != sides:
        raise CheckpointError(
            f"{where} makes images of {crop[0]} x {crop[1]}, but config.json asks for "
            f"{sides[0]} x {sides[1]} (image_size); make the two agree"
        )
    return {
        "interpolation": _RESAMPLE[number],
        "crop_mode": mode,
        "crop_pct": _crop_share(crop, resized, where),
        **_normalisation(given, where),
    }


def default_preparation(model_type: str, sides: Sides, where: Path) -> dict[str, Any]:
    """What the library's own processor of this family does, for a checkpoint without the file."""
    logger.warning(
        "%s is not there; images are prepared as %s models usually want it", where, model_type
    )
    if model_type == "deit":
        short = [round(side * 256 / 224) for side in sides]
        processor = {"image_processor_type": "DeiTImageProcessor", "size": _by_name(short)}
        processor["crop_size"] = _by_name(list(sides))
    else:
        processor = {"image_processor_type": "ViTImageProcessor", "size": _by_name(list(sides))}
    return preparation(processor, sides, where)


def _by_name(sides: list[int]) -> dict[str, int]:
    return {"height": sides[0], "width": sides[1]}


def _defaults(processor: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What holds for this kind of processor where the file is silent."""
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if kind is None:
        return _VIT
    for family, defaults in _FAMILIES.items():
        if kind in {f"{family}{ending}" for ending in _ENDINGS}:
            return defaults
    known = ", ".join(f"{family}{_ENDINGS[0]}" for family in _FAMILIES)
    raise CheckpointError(f"{where} is of a {kind}; known are {known}")


def _steps(given: Mapping[str, Any], sides: Sides, where: Path) -> tuple[str, Sides, Sides]:
    """Crop mode, size after resizing, size after cropping."""
    if not given.get("do_resize", True):
        logger.warning("%s does not resize (do_resize); images are resized to the input", where)
        return "squash", sides, sides
    size = given.get("size", _by_name(list(sides)))
    shortest = _shortest_edge(size, where)
    if "crop_pct" in given:  # ConvNext's: a square cut out of a larger one, unless it is large
        edge = shortest or _sides(size, "size", where)[0]
        if edge < 384:
            return "center", (int(edge / given["crop_pct"]),) * 2, (edge, edge)
        return "squash", (edge, edge), (edge, edge)
    cropped = _sides(given.get("crop_size", sides), "crop_size", where)
    if shortest is None:
        resized = _sides(size, "size", where)
        return "squash", resized, cropped if given["do_center_crop"] else resized
    if not given["do_center_crop"]:
        raise CheckpointError(
            f"{where} resizes the short side to {shortest} and crops nothing, so that images keep "
            "different sizes; set do_center_crop and crop_size"
        )
    return "center", (shortest, shortest), cropped


def _shortest_edge(size: Any, where: Path) -> int | None:
    """The short side that images are resized to, if that is what the size says."""
    if not isinstance(size, Mapping) or "height" in size:
        return None
    if set(size) - {"shortest_edge"} or not isinstance(size.get("shortest_edge"), int):
        raise CheckpointError(
            f"{where}: size={dict(size)!r} is not understood; expected height and width, or "
            "shortest_edge"
        )
    return int(size["shortest_edge"])


def _sides(value: Any, name: str, where: Path) -> Sides:
    """A size as a file may write it: a number, a pair, or by name."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    elif isinstance(value, int):
        value = [value, value]
    match value:
        case [int() as height, int() as width] | (int() as height, int() as width):
            return height, width
    raise CheckpointError(f"{where}: {name}={value!r} is no height and width in pixels")


def _crop_share(crop: Sides, resized: Sides, where: Path) -> float:
    """The share with which timm, which divides by it and rounds down, resizes to the same."""
    shares = [inner / outer for inner, outer in zip(crop, resized, strict=True)]
    for share in (max(shares), math.nextafter(max(shares), 0), min(shares)):
        if 0 < share <= 1 and tuple(math.floor(side / share) for side in crop) == resized:
            return share
    raise CheckpointError(
        f"{where} cuts {crop[0]} x {crop[1]} out of {resized[0]} x {resized[1]}, which is not the "
        "same share of both sides; make size larger than crop_size in proportion"
    )


def _normalisation(given: Mapping[str, Any], where: Path) -> dict[str, list[float]]:
    """Mean and deviation of pixels between 0 and 1, whatever they are scaled to there."""
    scale = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    mean, std = given.get("image_mean", given["mean"]), given.get("image_std", given["std"])
    if not given.get("do_normalize", True):
        mean, std = 0.0, 1.0
    one = 1 / (255 * scale)
    try:
        means, stds = ([float(v) * one for v in _thrice(value)] for value in (mean, std))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: image_mean and image_std must be numbers: {error}"
        ) from error
    if len(means) != 3 or len(stds) != 3 or not all(value > 0 for value in stds):
        raise CheckpointError(
            f"{where}: image_mean={mean!r} and image_std={std!r} must be three numbers each, the "
            "latter positive"
        )
    return {"mean": means, "std": stds}


def _thrice(value: Any) -> list[Any]:
    return [value] * 3 if isinstance(value, int | float) else list(value)
