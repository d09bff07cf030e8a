"""A small model of handwritten digits with a bank that matters, on disk."""

from pathlib import Path

import torch

from tests.core import zoo
from tocom_core import Bank
from tocom_core.bank import backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.models import save_model

K = 8
LABELS = tuple(f"digit {number}" for number in range(10))


def write_digit_model(folder: Path, labels: tuple[str, ...] = LABELS) -> Path:
    """A random model of 16 patches and, beside it, a bank whose deltas are large."""
    vit = zoo.named("vit_mini_conv4_32", depth=2, img_size=16, num_classes=len(labels))()
    zoo.randomise(vit)
    path = folder / "model.safetensors"
    arguments = {"depth": 2, "img_size": 16}
    save_model(path, vit, labels, model_args=arguments)
    bank = Bank(BankHeader("", 128, 2, K, 2, backbone_digest=backbone_digest(vit)))
    bank.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in bank.lora_B.parameters():
            parameter.fill_(0.1)
    bank.save(path.with_name("bank.safetensors"))
    return path
