"""Training a bank by self-distillation."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core import zoo
from tests.core.pictures import write_folder
from tocom_core import Bank, CompressedViT, WeightMerger, load_model
from tocom_core.bank_header import BankHeader
from tocom_core.distillation import (
    CompensatedViT,
    DistillOptions,
    SelfDistillation,
    main,
    soft_target_loss,
    train_bank,
)
from tocom_core.errors import DataError
from tocom_core.models import save_model

K, RANK = 4, 2


def make_bank(model: CompressedViT) -> Bank:
    """A bank that fits the model, with random ``A`` and ``B``."""
    bank = Bank(BankHeader("", model.embed_dim, model.depth, K, RANK))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bank


@pytest.mark.parametrize(("r_source", "r_target"), [(0, 0), (0, 3), (3, 1), (4, 0), (1, 4)])
@torch.no_grad()
def test_training_s_forward_is_serving_s_forward(r_source: int, r_target: int) -> None:
    """What training computes with the bank is what merged weights compute when served."""
    student_model, served = (
        CompressedViT(zoo.build("test_vit")),
        CompressedViT(zoo.build("test_vit")),
    )
    bank = make_bank(student_model)
    student = CompensatedViT(student_model, bank)
    images = zoo.photos(served.vit)

    merger = WeightMerger(served, bank, r_source)
    merger.set_target(r_target)
    torch.testing.assert_close(
        student(images, r_source, r_target), served(images, r_target), rtol=1e-4, atol=1e-5
    )


def test_only_the_bank_learns() -> None:
    """The backbone is frozen; of the bank, the groups between the degrees get gradients."""
    model = CompressedViT(zoo.build("test_vit"))
    student = CompensatedViT(model, make_bank(model))
    assert {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad} == {
        "bank"
    }
    student(zoo.photos(model.vit), 1, 3).sum().backward()
    for layer in range(model.depth):
        for p in "qv":
            gradient = student.bank.factors(layer, p)[1].grad
            assert gradient is not None
            used = (gradient.abs().sum(dim=0) > 0).tolist()
            assert used == [False] * RANK + [True] * 2 * RANK + [False] * RANK
    assert all(p.grad is None for p in model.parameters())


def test_the_bank_learns_to_bring_the_logits_back() -> None:
    """Forty steps on one pair of degrees win back most of what merging changed."""
    model = CompressedViT(zoo.build("test_vit"))
    student = CompensatedViT(model, Bank(BankHeader("", model.embed_dim, model.depth, K, RANK)))
    student.bank.reset_parameters(torch.Generator().manual_seed(0))
    images = zoo.photos(model.vit, 16)
    teacher = model(images, 0).detach()
    optimizer = torch.optim.Adam(student.bank.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = soft_target_loss(teacher, student(images, 0, K))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_soft_target_loss_is_the_mean_divergence_over_images() -> None:
    """``T² KL(teacher ‖ student)``, per image, not per logit; zero only for equal distributions."""
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 7, generator=generator).unbind(0)
    for temperature in (1.0, 3.0):
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        expected = temperature**2 * (p * (p / q).log()).sum() / 5
        torch.testing.assert_close(soft_target_loss(teacher, student, temperature), expected)
    assert float(soft_target_loss(teacher, teacher + 2.0)) == pytest.approx(0.0, abs=1e-6)


class Recorder:
    """Stands in for the student and writes down the degrees that it is asked for."""

    def __init__(self) -> None:
        self.bank = Bank(BankHeader("", 8, 1, K, 1))
        self.teachers: list[int] = []
        self.pairs: list[tuple[int, int]] = []

    def model(self, images: Tensor, r: int) -> Tensor:
        """Answer as the teacher."""
        self.teachers.append(r)
        return images.flatten(1)

    def __call__(self, images: Tensor, r_source: int, r_target: int) -> Tensor:
        """Answer as the student."""
        self.pairs.append((r_source, r_target))
        return images.flatten(1)


def test_every_step_draws_two_different_degrees() -> None:
    """Pairs are uniform over all ``m ≠ n`` from 0 to K, and the teacher runs at ``m`` unchanged."""
    loaded = load_model("test_vit", pretrained=False)
    recorder = Recorder()
    objective = SelfDistillation(recorder, loaded, 1.0)  # type: ignore[arg-type]
    random.seed(0)
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    for step in range(600):
        objective(step, images, torch.zeros(1))
    assert recorder.teachers == [m for m, _ in recorder.pairs]
    assert all(m != n for m, n in recorder.pairs)
    counts = {pair: recorder.pairs.count(pair) for pair in recorder.pairs}
    assert len(counts) == (K + 1) * K
    assert max(counts.values()) < 3 * 600 / len(counts)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file with 10 classes."""
    vit = zoo.named("vit_mini_conv4_32", depth=2, img_size=16)()
    zoo.randomise(vit)
    path = tmp_path_factory.mktemp("backbone") / "model.safetensors"
    save_model(path, vit, tuple("0123456789"), model_args={"depth": 2, "img_size": 16})
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four digits."""
    return write_folder(tmp_path_factory.mktemp("digits"), 64)


def options(data: Path, model: Path, output: Path, **changes: Any) -> DistillOptions:
    """Six steps of eight images."""
    fields: dict[str, Any] = {
        "data": str(data),
        "model": str(model),
        "output": output,
        "num_groups": K,
        "rank": RANK,
        "epochs": 1.0,
        "batch_size": 8,
        "val_images": 16,
        "workers": 0,
        "device": "cpu",
        "checkpoint_every": 3,
    }
    return DistillOptions(**{**fields, **changes})


def test_command_line_from_end_to_end(
    backbone: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes a bank that fits the backbone it was trained on, without a warning."""
    argv = (
        f"--data {digits} --model {backbone} --output {tmp_path} --num-groups {K} --rank {RANK} "
        "--epochs 1 --batch-size 8 --val-images 16 --workers 0 --device cpu --scaling 0.2"
    )
    assert main(argv.split()) == 0
    path = tmp_path / "bank.safetensors"
    assert capsys.readouterr().out.strip().endswith(str(path))

    bank, loaded = Bank.load(path), load_model(backbone)
    assert (bank.num_groups, bank.rank, bank.scaling) == (K, RANK, 0.2)
    assert (bank.arch, bank.backbone_digest) == ("vit_mini_conv4_32", loaded.digest)
    assert (bank.method, bank.prop_attn) == ("merge", True)
    assert bank.provenance["command"] == f"tocom train {argv}"
    assert bank.provenance["images"] == 48
    model = CompressedViT(loaded.vit)
    WeightMerger(model, bank).set_target(K)
    assert any(matrix.any() for pair in bank.delta(0, K).values() for matrix in pair)
    assert json.loads((tmp_path / "train.json").read_text())["kl"] >= 0


def test_an_interrupted_run_ends_in_the_same_bank(
    backbone: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from its checkpoint, the pairs of degrees and the images are the same."""
    whole = Bank.load(train_bank(options(digits, backbone, tmp_path / "whole")))
    original = SelfDistillation.__call__

    def interrupted(self: Any, step: int, *args: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return original(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SelfDistillation, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_bank(options(digits, backbone, tmp_path / "parts"))
    resumed = Bank.load(train_bank(options(digits, backbone, tmp_path / "parts")))
    assert resumed.digest == whole.digest


def test_a_bank_for_pruning_without_proportional_attention(
    backbone: Path, digits: Path, tmp_path: Path
) -> None:
    """How tokens were removed in training stands in the bank."""
    chosen = options(digits, backbone, tmp_path, method="prune", prop_attn=False, val_images=0)
    bank = Bank.load(train_bank(chosen))
    assert (bank.method, bank.prop_attn) == ("prune", False)
    with pytest.raises(SystemExit):
        main(f"--data {digits} --model {backbone} --output {tmp_path} --method prun".split())


def test_what_cannot_be_distilled_is_refused(
    backbone: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More held-out images than half, and a backbone without a classifier."""
    with pytest.raises(DataError, match="--val-images 40 is too many of 64"):
        train_bank(options(digits, backbone, tmp_path, val_images=40))
    headless = tmp_path / "model.safetensors"
    save_model(headless, zoo.named("test_vit", num_classes=0)(), ())
    argv = f"--data {digits} --model {headless} --output {tmp_path}"
    assert main(argv.split()) == 1
    assert "no classifier" in capsys.readouterr().err
