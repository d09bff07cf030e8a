"""Training a bank, from options to files."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.core import zoo
from tests.core.pictures import encoded, write_folder
from tocom_core import Bank, CompressedViT, WeightMerger, load_model
from tocom_core.distill_options import DistillOptions
from tocom_core.distillation import main, train_bank
from tocom_core.errors import BankError, DataError, TrainingError
from tocom_core.models import save_model
from tocom_core.self_distillation import Classification, SelfDistillation

K, RANK = 4, 2


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
        "data": (str(data),),
        "model": str(model),
        "output": output,
        "num_groups": K,
        "rank": RANK,
        "epochs": 1.0,
        "batch_size": 8,
        "accumulate": 1,
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
    figures = json.loads((tmp_path / "train.json").read_text())
    assert figures["score"] > 0
    assert f"score {figures['score']:.3f}" in (tmp_path / "report.md").read_text()


def test_an_interrupted_run_ends_in_the_same_bank(
    backbone: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from its checkpoint, the pairs of degrees and the images are the same."""
    whole = Bank.load(train_bank(options(digits, backbone, tmp_path / "whole")))
    original = SelfDistillation.forward

    def interrupted(self: Any, step: int, *args: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return original(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SelfDistillation, "forward", interrupted)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 1},
        {"rank": 8},
        {"shared": True},
        {"inversion": False},
        {"loss": "cross-entropy"},
        {"loss": "l1"},
        {"adapter_dropout": 0.1, "drop_path": 0.1, "ema": 0.9},
        {"mixup": 0.8, "cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25},
        {"anchor_share": 0.0, "temperature": 2.0, "scaling": 0.05},
        {"accumulate": 2, "amp": True},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_variant_trains_and_is_served(
    backbone: Path, digits: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """The paper's ablations and recipe are options; each bank loads, merges, changes something."""
    bank = Bank.load(train_bank(options(digits, backbone, tmp_path, **changes)))
    for name in {"rank", "shared", "inversion", "scaling"} & changes.keys():
        assert getattr(bank.header, name) == changes[name]
    model = CompressedViT(load_model(backbone).vit)
    pristine = {name: value.clone() for name, value in model.state_dict().items()}
    merger = WeightMerger(model, bank)
    for r in (K, 1, 0):
        merger.set_target(r)
        same = [torch.equal(value, pristine[name]) for name, value in model.state_dict().items()]
        assert all(same) == (r == 0)


def test_a_backbone_without_a_head_is_distilled_by_its_features(
    digits: Path, tmp_path: Path
) -> None:
    """An MAE or DINO backbone: L1 between final features; the bank serves it."""
    vit = zoo.named("vit_mini_conv4_32", depth=2, img_size=16, num_classes=0)()
    zoo.randomise(vit)
    headless = tmp_path / "model.safetensors"
    save_model(headless, vit, (), model_args={"depth": 2, "img_size": 16})
    bank = Bank.load(train_bank(options(digits, headless, tmp_path / "out", lr=1e-3, epochs=8.0)))
    assert bank.provenance["score"] < 1.0, "on held-out images it is closer than without a bank"
    with pytest.raises(DataError, match="no classifier, so --loss kl means nothing"):
        train_bank(options(digits, headless, tmp_path / "kl", loss="kl"))


def test_a_bank_can_be_refined(backbone: Path, digits: Path, tmp_path: Path) -> None:
    """Training goes on from a bank, on the served model; another kind of bank is refused."""
    first = train_bank(options(digits, backbone, tmp_path / "first", lr=1e-2))
    same = options(digits, backbone, tmp_path / "second", init_bank=first, lr=0.0)
    assert Bank.load(train_bank(same)).digest == Bank.load(first).digest
    other = options(digits, backbone, tmp_path / "third", init_bank=first, rank=1)
    with pytest.raises(BankError, match=r"cannot be gone on from.*rank: 2 there, 1 here"):
        train_bank(other)


def test_a_bank_can_grow(backbone: Path, digits: Path, tmp_path: Path) -> None:
    """With more groups the old ones stay as they are and the new ones learn; never fewer."""
    first = train_bank(options(digits, backbone, tmp_path / "first", lr=1e-2))
    more = options(
        digits, backbone, tmp_path / "more", init_bank=first, num_groups=K + 2, lr=1e-2, epochs=4
    )
    old, grown = Bank.load(first), Bank.load(train_bank(more))
    assert grown.num_groups == K + 2
    for layer, deltas in old.delta(0, K).items():
        for before, after in zip(deltas, grown.delta(0, K)[layer], strict=True):
            assert torch.equal(before, after)
    assert any(matrix.any() for pair in grown.delta(K, K + 2).values() for matrix in pair)
    assert grown.provenance["grown_from"]["num_groups"] == K
    assert grown.provenance["grown_from"]["digest"] == old.digest
    assert f"bank_0_to_{K + 2}" in grown.provenance
    second = train_bank(options(digits, backbone, tmp_path / "second", lr=1e-2, seed=1))
    other = options(
        digits, backbone, tmp_path / "more", init_bank=second, num_groups=K + 2, lr=1e-2, epochs=4
    )
    with pytest.raises(TrainingError, match="init_bank"):  # its checkpoint grew from another bank
        train_bank(other)
    fewer = options(digits, backbone, tmp_path / "fewer", init_bank=first, num_groups=K - 1)
    with pytest.raises(BankError, match=f"num_groups: {K} there, {K - 1} here"):
        train_bank(fewer)


def test_a_model_of_another_degree_is_the_anchor_of_its_bank(digits: Path, tmp_path: Path) -> None:
    """For a model fine-tuned at r=2 the pairs start at 2, and so does the validation."""
    vit = zoo.named("vit_mini_conv4_32", depth=2, img_size=16)()
    zoo.randomise(vit)
    model = tmp_path / "model.safetensors"
    arguments = {"depth": 2, "img_size": 16}
    names = tuple("0123456789")
    save_model(model, vit, names, model_args=arguments, tocom={"r_source": 2})
    train_bank(options(digits, model, tmp_path / "out"))
    figures = json.loads((tmp_path / "out/train.json").read_text())
    assert {"bank_2_to_0", "bank_2_to_4", "bank_4_to_0"} <= figures.keys()
    assert "bank_0_to_3" not in figures


def test_a_run_that_breaks_leaves_its_best_bank(
    backbone: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite ends the run; what was best until then can be used."""
    original = SelfDistillation.forward

    def breaks(self: Any, step: int, *args: Any) -> Any:
        loss, figures = original(self, step, *args)
        return loss * (math.nan if step == 8 else 1.0), figures

    monkeypatch.setattr(SelfDistillation, "forward", breaks)
    with pytest.raises(TrainingError, match="step 8 has the loss nan"):
        train_bank(options(digits, backbone, tmp_path, epochs=2.0))
    bank = Bank.load(tmp_path / "best.safetensors")
    assert bank.provenance["interrupted"] is True
    assert any(matrix.any() for pair in bank.delta(0, K).values() for matrix in pair)


def test_a_bank_that_is_worse_than_none_is_warned_of(
    backbone: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Far too high a learning rate gives a bank that harms; the run says so, and what to do."""
    train_bank(options(digits, backbone, tmp_path, lr=0.3))
    assert "worse than no bank" in caplog.text
    assert "lower --lr (now 0.3)" in caplog.text


def test_what_cannot_be_distilled_is_refused(
    backbone: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More held-out images than half; labels that are missing where they are asked for."""
    with pytest.raises(DataError, match="--val-images 40 is too many of 64"):
        train_bank(options(digits, backbone, tmp_path, val_images=40))
    unlabelled = tmp_path / "flat"
    unlabelled.mkdir()
    for number in range(40):
        (unlabelled / f"{number}.png").write_bytes(encoded(number))
    argv = f"--data {unlabelled} --model {backbone} --output {tmp_path} --loss cross-entropy"
    assert main([*argv.split(), "--val-images", "4", "--num-groups", "4"]) == 1
    assert "has no label, but --loss cross-entropy needs one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_images": -4}, "--val-images -4 must be 0 or more"),
        ({"adapter_dropout": 1.5}, "--adapter-dropout 1.5 must be from 0 to 1"),
        ({"anchor_share": -0.1}, "--anchor-share -0.1 must be from 0 to 1"),
        ({"mixup": 0.2, "batch_size": 5}, "--batch-size 5 with mixup or cutmix"),
    ],
)
def test_values_that_no_distillation_can_have_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Before anything is read, with what is allowed."""
    with pytest.raises(TrainingError, match=message):
        train_bank(options(tmp_path / "none", tmp_path / "none", tmp_path, **change))


def test_refining_delivers_nothing_worse_than_its_start(
    backbone: Path, digits: Path, tmp_path: Path
) -> None:
    """A learning rate that ruins the bank leaves it as it was."""
    first = train_bank(options(digits, backbone, tmp_path / "first", lr=1e-3))
    ruined = options(digits, backbone, tmp_path / "second", init_bank=first, lr=0.3)
    assert Bank.load(train_bank(ruined)).digest == Bank.load(first).digest


def test_labels_are_the_model_s_classes_by_name(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For cross-entropy a folder's classes are matched by name, whatever its alphabet says."""
    vit = load_model(backbone).vit
    names = tuple(f"digit {n}" for n in reversed(range(10)))
    model = tmp_path / "model.safetensors"
    save_model(model, vit, names, model_args={"depth": 2, "img_size": 16})
    seen: set[int] = set()
    original = Classification.forward

    def watched(self: Any, step: int, images: Any, labels: Any) -> Any:
        seen.update(labels.tolist())
        return original(self, step, images, labels)

    monkeypatch.setattr(Classification, "forward", watched)
    few = write_folder(tmp_path / "zeros", 64)
    for folder in few.iterdir():
        if folder.name != "digit 0":
            shutil.rmtree(folder)
    zeros = options(few, model, tmp_path / "out", loss="cross-entropy", batch_size=2, val_images=0)
    train_bank(zeros)
    assert seen == {9}


def test_l1_compares_features_also_where_there_is_a_head(
    backbone: Path, digits: Path, tmp_path: Path
) -> None:
    """Whether something classifies them or not, final features are what L1 is between."""
    bank = Bank.load(train_bank(options(digits, backbone, tmp_path, loss="l1")))
    assert bank.backbone_digest == load_model(backbone).digest


def test_groups_beyond_the_model_are_warned_of(
    backbone: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """16 patches can lose 8 at most; what lies above does nothing."""
    train_bank(options(digits, backbone, tmp_path, num_groups=12))
    assert "can lose no more than 8 tokens per layer" in caplog.text
