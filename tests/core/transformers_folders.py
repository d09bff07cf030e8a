"""Checkpoint folders as `transformers` itself saves them: small, random, every value matters."""

from pathlib import Path
from typing import Any

import torch
import transformers

NAMES = ("cat", "dog", "bird", "fish", "ant", "bee", "fly")
SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "id2label": dict(enumerate(NAMES)),
    "label2id": {name: index for index, name in enumerate(NAMES)},
}


def build(
    kind: str = "ViT", head: str = "ForImageClassification", **changes: Any
) -> transformers.PreTrainedModel:
    """A model of the library with random parameters, none of them at its start of 0 or 1."""
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.add_(noise * scale)
    return model


def processor(kind: str = "ViT", **changes: Any) -> Any:
    """The library's image processor for such a model."""
    usual: dict[str, Any] = {"size": {"height": 32, "width": 32}}
    if kind == "DeiT":
        usual = {
            "size": {"height": 36, "width": 36},
            "crop_size": {"height": 32, "width": 32},
        }
    return getattr(transformers, f"{kind}ImageProcessor")(**{**usual, **changes})


def save(folder: Path, model: Any, prepare: Any = None) -> Path:
    """The folder as the library writes it."""
    model.save_pretrained(folder)
    (prepare or processor()).save_pretrained(folder)
    return folder
