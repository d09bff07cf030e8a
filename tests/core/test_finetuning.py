"""``tocom finetune`` from end to end, on real digits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from tests.core.pictures import digit_label, encoded, write_folder, write_parquet
from tocom_core import load_model
from tocom_core.errors import CheckpointError, DataError
from tocom_core.evaluation import predict, top1
from tocom_core.finetuning import FinetuneOptions, finetune, main
from tocom_core.models import save_model
from tocom_core.sources import open_source

IMAGES = 64


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parts train and test, one sub-folder per digit each."""
    root = tmp_path_factory.mktemp("digits")
    write_folder(root / "train", IMAGES)
    write_folder(root / "test", 32, first=IMAGES)
    return root


def options(data: Path, output: Path, **changes: Any) -> FinetuneOptions:
    """Four steps of sixteen images on a model of 16 tokens."""
    fields: dict[str, Any] = {
        "data": str(data),
        "output": output,
        "model": "vit_mini_conv4_32",
        "epochs": 1.0,
        "batch_size": 16,
        "workers": 0,
        "device": "cpu",
        "checkpoint_every": 2,
        "log_every": 1,
    }
    return FinetuneOptions(**{**fields, **changes})


def test_command_line_from_end_to_end(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command trains, says where the model is, and ``load_model`` takes it as it is."""
    argv = (
        f"--data {digits} --model vit_mini_conv4_32 --output {tmp_path} --epochs 1 "
        "--batch-size 16 --workers 0 --device cpu --r-source 3 --mixup 0.2 --amp --seed 5"
    )
    assert main(argv.split()) == 0

    path = tmp_path / "model.safetensors"
    assert capsys.readouterr().out.strip().endswith(str(path))
    loaded = load_model(path)
    assert (loaded.architecture, loaded.r_source) == ("vit_mini_conv4_32", 3)
    assert loaded.labels == tuple(f"digit {i}" for i in range(10))
    assert loaded.trained_from is None, "it was trained from scratch"
    provenance = json.loads((tmp_path / "finetune.json").read_text())
    assert provenance["command"] == f"tocom finetune {argv}"
    assert (provenance["seed"], provenance["images"]) == (5, IMAGES)
    assert 0 <= provenance["top1"] <= 1
    assert (tmp_path / "log.csv").read_text().startswith("step,name,value\n")
    assert loaded.transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_reported_accuracy_is_that_of_the_stored_model(digits: Path, tmp_path: Path) -> None:
    """What finetune.json says is what the file gives on the test part at r_source."""
    chosen = options(digits, tmp_path, store_dtype="float32", r_source=2)
    loaded = load_model(finetune(chosen))
    from tocom_core import CompressedViT

    logits, labels = predict(CompressedViT(loaded.vit), loaded, open_source(digits, "test"), 2)
    reported = json.loads((tmp_path / "finetune.json").read_text())["top1"]
    assert top1(logits, labels) == pytest.approx(reported)


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.5, "cutmix": 0.5, "drop_path": 0.2}])
def test_an_interrupted_run_ends_in_the_same_model(
    digits: Path, tmp_path: Path, augment: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from its checkpoint, a run with every kind of randomness gives the same bits."""
    whole = load_model(finetune(options(digits, tmp_path / "whole", **augment)))

    chosen = options(digits, tmp_path / "parts", **augment)
    from tocom_core import finetuning

    calls = []
    original = finetuning._Objective.__call__

    def interrupted(self: Any, step: int, *args: Any) -> Any:
        calls.append(step)
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning._Objective, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(chosen)
    assert not (tmp_path / "parts" / "model.safetensors").exists()

    resumed = load_model(finetune(chosen))
    for key, value in whole.vit.state_dict().items():
        assert torch.equal(resumed.vit.state_dict()[key], value), key


def test_fine_tuning_a_checkpoint_on_other_classes(digits: Path, tmp_path: Path) -> None:
    """A file with arguments and labels of its own gets a new head, and says what it came from."""
    arguments = {"img_size": 32, "patch_size": 8, "depth": 2, "reg_tokens": 1}
    start = tmp_path / "start.safetensors"
    vit = timm.create_model("test_vit", num_classes=3, **arguments)
    save_model(start, vit, ("a", "b", "c"), model_args=arguments, tocom={"r_source": 7})
    before = load_model(start)

    chosen = options(digits, tmp_path / "out", model=str(start), lr=1e-4)
    loaded = load_model(finetune(chosen))

    assert loaded.labels == tuple(f"digit {i}" for i in range(10))
    assert loaded.trained_from == before.digest != loaded.digest
    assert (loaded.r_source, loaded.input_size) == (0, (3, 32, 32))
    difference = loaded.vit.blocks[0].mlp.fc1.weight - before.vit.blocks[0].mlp.fc1.weight
    assert difference.abs().max() < 1e-2, "it starts from the checkpoint's weights"


def test_data_without_a_test_part_is_not_validated_on_itself(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without data of its own there is no validation and no accuracy, and a warning says so."""
    finetune(options(digits / "train", tmp_path))
    assert "no validation data" in caplog.text
    assert "top1" not in json.loads((tmp_path / "finetune.json").read_text())


def test_parquet_with_parts(tmp_path: Path) -> None:
    """Class names come from the table; those without an image are kept."""
    names = [f"number {i}" for i in range(12)]
    for part, first, count in (("train", 0, 32), ("test", 40, 16)):
        indices = range(first, first + count)
        images, labels = [encoded(i) for i in indices], [digit_label(i) for i in indices]
        write_parquet(tmp_path / "data" / f"{part}.parquet", images, labels, names)
    loaded = load_model(finetune(options(tmp_path / "data", tmp_path / "out")))
    assert loaded.labels == tuple(names)
    assert "top1" in json.loads((tmp_path / "out" / "finetune.json").read_text())


def test_bad_data_is_refused(digits: Path, tmp_path: Path) -> None:
    """No labels, labels beyond the names, and other classes for validation."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in list((digits / "train").rglob("*.png"))[:20]:
        shutil.copy(path, flat)
    chosen = options(flat, tmp_path / "out")
    with pytest.raises(DataError, match="needs a label for every image"):
        finetune(chosen)
    table = write_parquet(tmp_path / "t.parquet", [encoded(0)] * 2, [0, 5], ["a", "b"])
    with pytest.raises(DataError, match=r"label 5 occurs.*names only 2"):
        finetune(replace(chosen, data=str(table)))
    other = tmp_path / "other"
    shutil.copytree(digits / "test" / "digit 1", other / "one")
    with pytest.raises(DataError, match="classes of the validation data, one, are not"):
        finetune(replace(chosen, data=str(digits), val_data=str(other)))
    with pytest.raises(DataError, match="absent"):
        finetune(replace(chosen, data=str(digits), val_data=str(tmp_path / "absent")))


def test_a_model_that_cannot_be_used_is_refused(digits: Path, tmp_path: Path) -> None:
    """Another family, or a misspelt name, ends before training."""
    with pytest.raises(CheckpointError, match="ResNet"):
        finetune(options(digits, tmp_path, model="test_resnet"))
    with pytest.raises(CheckpointError, match="did you mean"):
        finetune(options(digits, tmp_path, model="vit_mini_conv4_23"))


def test_errors_of_the_command_line_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the user got wrong is told without a stack trace, and the exit code is 1."""
    argv = f"--data {tmp_path}/absent --model test_vit --output {tmp_path}/out"
    assert main(argv.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("tocom finetune: no data set at ")
    assert len(error.splitlines()) == 1
