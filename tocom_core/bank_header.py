"""What a bank's file says about itself, and whether its tensors can be what it says."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from tocom_core.errors import BankError
from tocom_core.schedule import Method

FORMAT_VERSION = 1
PROJECTIONS = ("q", "v")
"""Query and value; the key weights are never changed."""
_VARIANTS = ("shared", "inversion")
"""Fields of the paper's ablations; a file holds them only where they differ from the default."""


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
        shared: one group of rank ``h`` for all pairs of degrees instead of ``K`` groups (an
            ablation of the paper).
        inversion: a step to a lower degree is the step to the higher one, negated; without it,
            such steps have factors of their own (an ablation of the paper).

    Raises:
        BankError: a size is not a whole number of 1 or more, ``scaling`` is not finite,
            ``method`` is not known, or a switch is not true or false.
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
    shared: bool = False
    inversion: bool = True

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
        for name in ("prop_attn", *_VARIANTS):
            if type(getattr(self, name)) is not bool:
                raise BankError(f"{name}={getattr(self, name)!r} must be true or false")

    @property
    def total_rank(self) -> int:
        """Rows of every ``A`` and columns of every ``B``: ``K·h``, or ``h`` if shared."""
        return self.rank if self.shared else self.num_groups * self.rank

    @property
    def factor_names(self) -> tuple[tuple[str, str], ...]:
        """Names of ``A`` and ``B``, and of those of the steps down if there are separate ones."""
        upwards = ("lora_A", "lora_B")
        return (upwards,) if self.inversion else (upwards, ("lora_A_lower", "lora_B_lower"))


def write_header(header: BankHeader) -> str:
    """The JSON that ``read_header`` parses.

    The variants share the format's version: an older reader refuses a field that it does not know,
    so it can never take a variant for the method itself, and still reads everything else.
    """
    content = {"format_version": FORMAT_VERSION, **vars(header)}
    content["provenance"] = dict(header.provenance)
    for name in _VARIANTS:
        if content[name] == getattr(BankHeader, name):  # the default
            del content[name]
    return json.dumps(content)


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
    """Raise ``BankError`` before a bank of the header's sizes, however absurd, is allocated.

    Every tensor must be there, with its shape, and no other.
    """
    shapes = _tensor_shapes(header)  # lazily: ends at the first that is missing
    names = set()
    for name, expected in shapes:
        found = tuple(state[name].shape) if name in state else "missing"
        if found != expected:
            raise _misfit(header, path, f"{name} is {found}, expected {expected}")
        names.add(name)
    surplus = sorted(state.keys() - names)
    if surplus:
        expected_count = f"there are {len(state)}, expected {len(names)}"
        raise _misfit(header, path, f"{expected_count}: {surplus[0]} is none of them")


def _misfit(header: BankHeader, path: str | Path, what: str) -> BankError:
    """The error for tensors that are not what the header says."""
    sizes = ("embed_dim", "num_groups", "rank", "depth", *_VARIANTS)
    says = ", ".join(f"{name}={getattr(header, name)}" for name in sizes)
    return BankError(
        f"{path}: the tensors do not fit the header: {what} by its {says}; "
        "the file was changed after it was saved: copy it again from where it was trained"
    )


def _tensor_shapes(header: BankHeader) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and shape of each tensor of a bank's file, layer by layer."""
    total, dim = header.total_rank, header.embed_dim
    for layer in range(header.depth):
        for projection in PROJECTIONS:
            for name_a, name_b in header.factor_names:
                yield f"{name_a}.{layer}.{projection}", (total, dim)
                yield f"{name_b}.{layer}.{projection}", (dim, total)
