"""The original research code's checkpoint becomes a bank that says what it is for."""

from pathlib import Path

import pytest
import timm
import torch

from tests.core import zoo
from tests.core.test_reference_bank import DEPTH, DIM, K, research_state, write
from tocom_core.bank import Bank
from tocom_core.bank_conversion import convert
from tocom_core.bank_fit import examine
from tocom_core.bank_header import BankHeader
from tocom_core.errors import BankError
from tocom_core.models import LoadedModel, describe


def backbone(depth: int = DEPTH) -> LoadedModel:
    """A model of the checkpoint's sizes."""
    arguments = {"depth": depth, "embed_dim": DIM, "num_heads": 2, "img_size": 64}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, **arguments)
    zoo.randomise(vit)
    return describe(vit.eval(), "the backbone")


def test_converted_bank_says_what_it_is_for(tmp_path: Path) -> None:
    """Same deltas as the plain reader's; the header is filled in, and it fits its backbone."""
    path = write(tmp_path / "checkpoint.pth", research_state())
    loaded = backbone()
    bank = convert(
        path,
        num_groups=K,
        scaling=0.05,
        prop_attn=False,
        backbone=loaded,
        provenance={"command": "how"},
    )
    plain = Bank.from_reference_checkpoint(path, K, 0.05)
    assert bank.digest == plain.digest
    assert (bank.scaling, bank.prop_attn, bank.arch) == (0.05, False, "vit_tiny_patch16_224")
    assert bank.backbone_digest == loaded.digest
    assert bank.provenance["file"] == "checkpoint.pth" and bank.provenance["command"] == "how"
    bank.save(tmp_path / "bank.safetensors")
    again = Bank.load(tmp_path / "bank.safetensors")
    assert again.header == bank.header and again.digest == bank.digest
    assert all(finding.severity in ("ok", "note") for finding in examine(loaded, again))


def test_backbone_of_other_sizes_is_refused(tmp_path: Path) -> None:
    """A wrong model is not written down as the bank's."""
    path = write(tmp_path / "checkpoint.pth", research_state())
    with pytest.raises(BankError, match="2 layers of width 8, but the backbone has 3 of width 8"):
        convert(path, num_groups=K, scaling=0.1, backbone=backbone(3))


def test_wrong_files_are_told_apart(tmp_path: Path) -> None:
    """Nothing there, a bank of ours, another safetensors file, other weights, no pickle."""
    ours = tmp_path / "bank.safetensors"
    Bank(BankHeader("", DIM, DEPTH, K, 1)).save(ours)
    from safetensors.torch import save_file

    model = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, model)
    other = write(tmp_path / "other.pth", {"head.weight": torch.zeros(2, 2)})
    text = tmp_path / "text.pth"
    text.write_text("no pickle")
    for path, says in (
        (tmp_path / "missing.pth", "there is no file"),
        (ours, "is a bank already"),
        (model, "is a safetensors file, not"),
        (other, "holds no complete compensator"),
        (text, "cannot be read as plain weights"),
    ):
        with pytest.raises(BankError, match=says):
            convert(path, num_groups=K, scaling=0.1)
