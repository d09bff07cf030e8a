"""The banks in ``weights/`` do what their cards say."""

import os
from pathlib import Path

import pytest
import torch

from tocom_core import Bank, CompressedViT, load_model
from tocom_core.bootstrap import paired_bootstrap
from tocom_core.models import find_bank, weights_folder
from tocom_core.predictions import Variant, VariantRunner
from tocom_core.sources import open_pool

DATA = os.environ.get("TOCOM_DATA")
BANKS = sorted(weights_folder().glob("*/bank.safetensors"))


@pytest.mark.parametrize("path", BANKS, ids=lambda path: path.parent.name)
def test_a_shipped_bank_has_a_card_and_says_how_it_was_made(path: Path) -> None:
    """It lies under its backbone's name, with data, recipe and command."""
    bank = Bank.load(path)
    assert bank.arch == path.parent.name
    assert bank.backbone_digest
    assert bank.provenance["command"].startswith("tocom train ")
    assert str(Path.cwd()) not in str(bank.provenance)
    card = path.with_name("README.md").read_text()
    assert card.startswith("---\nlicense:") and "tocom train" in card
    assert all(
        torch.isfinite(matrix).all() for pair in bank.delta(0, 16).values() for matrix in pair
    )


@pytest.mark.skipif(DATA is None, reason="TOCOM_DATA names no data folder")
def test_the_bank_of_vit_tiny_brings_the_logits_back() -> None:
    """On photographs it has not seen, surely closer to r=0 than plain merging at r=16."""
    assert DATA is not None
    file = Path(DATA) / "vit_tiny_patch16_224_fp16.safetensors"
    loaded = load_model(file)
    path = find_bank(file, "auto", loaded)
    assert path == weights_folder() / "vit_tiny_patch16_224" / "bank.safetensors"
    bank = Bank.load(path)
    plain, banked = Variant(0, 16), Variant(0, 16, bank.scaling)
    runner = VariantRunner(CompressedViT(loaded.vit), loaded, bank)
    source = open_pool([f"{DATA}/imagenet_ccby@100"])
    figures = runner.figures(source, [plain, banked])
    change = paired_bootstrap(figures[banked].kl - figures[plain].kl)
    assert change.high < 0
    assert float(figures[banked].kl.mean()) < 0.85 * float(figures[plain].kl.mean())
