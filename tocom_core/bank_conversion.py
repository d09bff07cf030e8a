"""Turn the original research code's checkpoint into a bank that says what it is for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tocom_core.bank import Bank
from tocom_core.bank_header import BankHeader
from tocom_core.errors import BankError
from tocom_core.models import LoadedModel
from tocom_core.schedule import Method


def convert(
    source: Path,
    *,
    num_groups: int,
    scaling: float,
    method: Method = "merge",
    prop_attn: bool = True,
    backbone: LoadedModel | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Bank:
    """Read a checkpoint of the research code and write down what it does not say.

    Args:
        source: the file; a pickle, of which only weights are read.
        num_groups: ``K`` that it was trained with.
        scaling: ``s`` that it was trained with.
        method: how tokens were removed in training.
        prop_attn: whether proportional attention was on.
        backbone: the model that it was trained on; ``None`` leaves name and digest empty.
        provenance: what else is known of how it was made.

    Raises:
        BankError: no such file, or not such a checkpoint; or the backbone has other sizes.
    """
    _refuse_what_is_no_checkpoint(source)
    bank = Bank.from_reference_checkpoint(source, num_groups, scaling)
    header = replace(
        bank.header,
        method=method,
        prop_attn=prop_attn,
        provenance={**bank.provenance, **(provenance or {})},
    )
    if backbone is not None:
        header = _tagged(header, backbone)
    converted = Bank(header)
    converted.load_state_dict(bank.state_dict())
    return converted


def _tagged(header: BankHeader, backbone: LoadedModel) -> BankHeader:
    there = header.depth, header.embed_dim
    here = len(backbone.vit.blocks), int(backbone.vit.embed_dim)
    if there != here:
        raise BankError(
            f"the checkpoint is for {there[0]} layers of width {there[1]}, but {backbone.name} has "
            f"{here[0]} of width {here[1]}; name the model that it was trained on"
        )
    return replace(header, arch=backbone.architecture, backbone_digest=backbone.digest)


def _refuse_what_is_no_checkpoint(source: Path) -> None:
    """Tell apart what people are likely to name by mistake."""
    if not source.is_file():
        raise BankError(f"there is no file {source}")
    try:
        with safe_open(source, framework="pt") as file:
            ours = "tocom_bank" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return
    if ours:
        raise BankError(f"{source} is a bank already; there is nothing to convert")
    raise BankError(
        f"{source} is a safetensors file, not the research code's checkpoint (a .pth file that "
        "holds the compensator under 'model')"
    )
