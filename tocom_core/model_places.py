"""Where the model lies that somebody named: in a file, a folder, on the hub, or with timm."""

from dataclasses import dataclass
from pathlib import Path

import timm

from tocom_core import hub_files
from tocom_core.errors import CheckpointError
from tocom_core.weight_files import find_weights, is_weight_file

_FOLDER = "local-dir:"
_GENERAL = ("model", "pytorch_model", "model_best", "last", "best", "checkpoint")
"""Files called so are known by their folder."""


@dataclass(frozen=True)
class Place:
    """A model that was found.

    Attributes:
        file: its weights; what else belongs to it lies beside them.
        name: what it is called.
        shown: what messages call the folder of the file; ``None``: by its path.
    """

    file: Path
    name: str
    shown: str | None = None


def locate(given: str | Path) -> Place | None:
    """Find what a model's name or path stands for, and bring it here if it is on the hub.

    Args:
        given: a file; a folder; ``hf-hub:owner/name[@revision]``; or a name of timm's, which a
            folder of the same name does not hide.

    Returns:
        The file of weights; ``None`` for a name of timm's.

    Raises:
        CheckpointError: nothing there, nothing in it, or it cannot be fetched.
    """
    text = str(given)
    if text.startswith(hub_files.SCHEMES):
        repository = hub_files.parse(text)
        return Place(hub_files.fetch(repository), repository.name, str(repository))
    path = Path(text.removeprefix(_FOLDER)).expanduser()
    if path.is_file() or is_weight_file(path):
        return Place(path, _name_of(path))
    if path.is_dir() and not timm.is_model(text):
        return Place(find_weights(path), path.resolve().name)
    if text.startswith(_FOLDER):
        raise CheckpointError(f"there is no folder {path}")
    return None


def _name_of(path: Path) -> str:
    """A file's name without its endings, or its folder's."""
    stem = path.name.removesuffix(".tar").partition(".")[0] if path.suffix == ".tar" else path.stem
    stem = stem.removesuffix(".safetensors.index").removesuffix(".bin.index")
    return path.absolute().parent.name if stem in _GENERAL else stem
