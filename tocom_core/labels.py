"""What the classes of a model are called, from wherever somebody wrote it down."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models.vision_transformer import VisionTransformer

from tocom_core.errors import CheckpointError


def class_labels(
    vit: VisionTransformer, config: Mapping[str, Any], given: str | Path | None = None
) -> tuple[str, ...]:
    """Class names: from the user's file, the checkpoint, timm's ImageNet lists, or numbers.

    Args:
        vit: how many classes there are.
        config: the checkpoint's, in timm's or transformers' layout.
        given: a text file with one label per line, or JSON (a list, or ``{"0": "cat", …}``).

    Raises:
        CheckpointError: the labels cannot be read, or are not one per class.
    """
    count = int(vit.num_classes)
    names = _read_labels(Path(given)) if given is not None else _labels_in(config)
    if names is not None:
        if len(names) != count:
            raise CheckpointError(
                f"{len(names)} labels {'in ' + str(given) if given else 'in the checkpoint'} but "
                f"the model has {count} classes; give a label file with {count} lines"
            )
        return names
    subset = infer_imagenet_subset(vit)
    if subset is not None:
        info = ImageNetInfo(subset)
        return tuple(info.index_to_description(i) for i in range(count))
    return tuple(f"class {i}" for i in range(count))


def _labels_in(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Labels from a config: timm's ``label_names``, or transformers' ``id2label``."""
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if names:
        descriptions = config.get("label_descriptions") or {}
        return tuple(str(descriptions.get(name, name)) for name in names)
    try:
        return _ordered(config["id2label"]) if config.get("id2label") else None
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"id2label in the checkpoint must map indices to names: {error}; give a label file"
        ) from error


def _ordered(by_id: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(by_id[key] for key in sorted(by_id, key=int))


def _read_labels(path: Path) -> tuple[str, ...]:
    """Labels from a text file (one per line) or JSON (list, or index to label)."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"label file {path} cannot be read as UTF-8: {error}") from error
    if path.suffix != ".json":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        content = json.loads(text)
        content = content.get("id2label", content) if isinstance(content, dict) else content
        return _ordered(content) if isinstance(content, dict) else tuple(map(str, content))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"label file {path} must hold a JSON list of names or an object from index to name: "
            f"{error}"
        ) from error
