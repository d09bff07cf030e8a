"""What a bank's file says about itself, and whether its tensors can be what it says."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from tocom_core.errors import BankError
from tocom_core.schedule import Method

FORMAT_VERSION = 1
PROJECTIONS = ("q", "v")
"""Query and value; the key weights are never changed."""


@dataclass(frozen=True)
class BankHeader:
    """What a bank is for and how it was made; stored in the file.

    Attributes:
        arch: timm's name of the architecture.
        embed_dim: token width ``D``.
        depth: number of layers.
        num_groups: ``K``, the highest degree with a compensation.
        rank: ``h``, rank of each group.
        scaling: ``s``, the factor on every delta.
        method: how tokens were removed in training.
        prop_attn: whether proportional attention was on in training.
        backbone_digest: ``backbone_digest`` of the model that it was trained on.
        provenance: data, recipe, command, figures; free form.

    Raises:
        BankError: a size is not a whole number of 1 or more, ``scaling`` is not finite, or
            ``method`` is not known.
    """

    arch: str
    embed_dim: int
    depth: int
    num_groups: int
    rank: int
    scaling: float = 0.1
    method: Method = "merge"
    prop_attn: bool = True
    backbone_digest: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_groups", "rank"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise BankError(f"{name}={value!r} must be a whole number of 1 or more")
        scaling: object = self.scaling  # as a file may hold it
        if not isinstance(scaling, int | float) or not math.isfinite(scaling):
            raise BankError(f"scaling={scaling!r} must be a finite number")
        if self.method not in get_args(Method):
            raise BankError(f"method={self.method!r} must be one of {get_args(Method)}")


def read_header(text: str, path: str | Path) -> BankHeader:
    """Parse the JSON of a bank file's header.

    Raises:
        BankError: not such a header, or of a newer format.
    """
    try:
        content = json.loads(text)
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise BankError(
                f"it has bank format {version}, this version reads {FORMAT_VERSION}; "
                "update tocom-serve"
            )
        return BankHeader(**content)
    except (ValueError, KeyError, TypeError, AttributeError, BankError) as error:
        raise BankError(f"{path}: the bank's header cannot be read: {error}") from error


def check_sizes(header: BankHeader, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ``BankError`` before a bank of the header's sizes, however absurd, is allocated."""
    expected = (header.num_groups * header.rank, header.embed_dim)
    count = 2 * len(PROJECTIONS) * header.depth
    first = state.get("lora_A.0.q")
    if first is None or first.shape != expected or len(state) != count:
        found = "missing" if first is None else tuple(first.shape)
        raise BankError(
            f"{path}: the tensors do not fit the header: lora_A.0.q is {found}, expected "
            f"{expected}; there are {len(state)} tensors, expected {count}"
        )
