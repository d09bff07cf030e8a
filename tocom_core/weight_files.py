"""Which file of a folder holds a model's weights, and of which parts a sharded one consists.

A folder is what `transformers` and `timm` save, what the hub keeps, and what a training run leaves
behind. Only names are looked at here: nothing is read but the list of a sharded checkpoint's parts,
which may name nothing outside of the folder.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path

from tocom_core.errors import CheckpointError

INDEX = ".index.json"
"""How the list of a sharded checkpoint's parts ends."""

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".bin", ".tar"})
"""What a file of weights ends in (``.tar``: ``.pth.tar`` of timm's training script)."""

WEIGHTS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "model_best.pth.tar",
)
"""Names that stand for a folder's model, the better ones first."""

_BESIDE = re.compile(r"bank\.|training_args\.|optimizer|scheduler|scaler|rng_state")
"""What training leaves beside the weights, and a bank; never a model."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def is_weight_file(path: Path) -> bool:
    """Whether a path looks like a file of weights, by its name alone."""
    return path.suffix in SUFFIXES or path.name.endswith(INDEX)


def choose_weights(names: Collection[str], where: str) -> str:
    """Pick the model out of the files of one folder.

    Args:
        names: of the files, without folders.
        where: the folder, for the message.

    Raises:
        CheckpointError: no weights, or several files that could be meant.
    """
    for name in WEIGHTS:
        if name in names:
            return name
    others = [name for name in sorted(names) if Path(name).suffix in SUFFIXES]
    others = [name for name in others if not _BESIDE.match(name)]
    if len(others) == 1:
        return others[0]
    if others:
        raise CheckpointError(
            f"{where} holds several files of weights ({_listed(others)}); name the one that is "
            "meant by its path"
        )
    raise CheckpointError(
        f"{where} holds no weights, only {_listed(sorted(names)) or 'nothing'}; expected one of "
        f"{', '.join(WEIGHTS)}, or one other .safetensors or .pth file"
    )


def find_weights(folder: Path) -> Path:
    """Find the file of weights in a folder on this machine; errors as of ``choose_weights``."""
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    return folder / choose_weights(names, str(folder))


def parts_of(index: Path) -> list[Path]:
    """Read which files a sharded checkpoint consists of.

    Args:
        index: the ``….index.json`` beside them.

    Raises:
        CheckpointError: it cannot be read, or names something outside of its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} must be a JSON object with a weight_map from tensors to files "
            f"({type(error).__name__}: {error}); fetch it again"
        ) from error
    for name in names:
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise CheckpointError(f"{index} names the part {name!r}, which is no plain file name")
    return [index.with_name(name) for name in names]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
