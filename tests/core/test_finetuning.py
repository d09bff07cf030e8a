"""``tocom finetune`` from end to end, on real digits."""

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from tests.core import zoo
from tests.core.pictures import digit_label, encoded, write_folder, write_parquet
from tocom_core import CompressedViT, load_model
from tocom_core.adaptformer import AdapterConfig, adapter_config
from tocom_core.bank import backbone_digest
from tocom_core.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    TrainingError,
    UnsupportedModelError,
)
from tocom_core.evaluation import predict, top1
from tocom_core.finetune_options import FinetuneOptions
from tocom_core.finetuning import finetune, main
from tocom_core.labelled_data import hold_out
from tocom_core.models import save_model
from tocom_core.sources import open_source
from tocom_core.supervision import SupervisedObjective

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


ARCHITECTURE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A checkpoint of three classes with its own normalisation, as if it had been pre-trained."""
    vit = timm.create_model(
        "test_vit",
        num_classes=3,
        pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        **ARCHITECTURE,
    )
    zoo.randomise(vit)
    path = tmp_path / "backbone.safetensors"
    save_model(path, vit, ("a", "b", "c"), model_args=ARCHITECTURE, tocom={"r_source": 7})
    return path


@contextmanager
def stopped_at(step: int) -> Iterator[list[int]]:
    """Runs end like a killed process at this step, counted over all runs; gives the count."""
    calls: list[int] = []
    original = SupervisedObjective.forward

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(args[0])
        if len(calls) > step:
            raise KeyboardInterrupt
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedObjective, "forward", interrupted)
        yield calls


def report(folder: Path) -> dict[str, Any]:
    """What finetune.json says."""
    content: dict[str, Any] = json.loads((folder / "finetune.json").read_text())
    return content


def same_weights(first: Path, second: Path) -> bool:
    """Whether two model files hold the same bits under the same names."""
    ours, theirs = (load_model(path).vit.state_dict() for path in (first, second))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


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
    assert 0 <= provenance["test_top1"] <= 1
    assert provenance["test"] == {"split": "test", "images": 32}
    assert provenance["selected_by"] == "nothing: the last weights"
    assert (tmp_path / "log.csv").read_text().startswith("step,name,value\n")
    assert loaded.transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_reported_accuracy_is_that_of_the_stored_model(digits: Path, tmp_path: Path) -> None:
    """What finetune.json says is what the file gives on the test part at r_source."""
    chosen = options(digits, tmp_path, store_dtype="float32", r_source=2)
    loaded = load_model(finetune(chosen))
    logits, labels = predict(CompressedViT(loaded.vit), loaded, open_source(digits, "test"), 2)
    reported = json.loads((tmp_path / "finetune.json").read_text())["test_top1"]
    assert top1(logits, labels) == pytest.approx(reported)


@pytest.mark.parametrize(
    "augment", [{}, {"mixup": 0.5, "cutmix": 0.5, "drop_path": 0.2, "erasing": 0.5}]
)
def test_an_interrupted_run_ends_in_the_same_model(
    digits: Path, tmp_path: Path, backbone: Path, augment: dict[str, float]
) -> None:
    """Resumed from its checkpoint, a run with every kind of randomness gives the same bits."""
    whole = finetune(options(digits, tmp_path / "whole", model=str(backbone), **augment))
    chosen = options(digits, tmp_path / "parts", model=str(backbone), **augment)
    with stopped_at(3), pytest.raises(KeyboardInterrupt):
        finetune(chosen)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert same_weights(finetune(chosen), whole)


def test_fine_tuning_a_checkpoint_on_other_classes(
    digits: Path, tmp_path: Path, backbone: Path
) -> None:
    """A file with arguments and labels of its own gets a new head, and says what it came from."""
    before = load_model(backbone)
    loaded = load_model(finetune(options(digits, tmp_path / "out", model=str(backbone), lr=1e-4)))

    assert loaded.labels == tuple(f"digit {i}" for i in range(10))
    assert loaded.trained_from == before.digest != loaded.digest
    assert (loaded.r_source, loaded.input_size) == (0, (3, 32, 32))
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    difference = loaded.vit.blocks[0].mlp.fc1.weight - before.vit.blocks[0].mlp.fc1.weight
    assert difference.abs().max() < 1e-2, "it starts from the checkpoint's weights"


def test_head_is_kept_for_the_same_classes_only(digits: Path, tmp_path: Path) -> None:
    """As many classes of other names are other classes; data without names keeps the labels."""
    named = tuple(f"digit {i}" for i in range(10))
    vit = timm.create_model("test_vit", num_classes=10, **ARCHITECTURE)
    start = vit.head.weight.detach().clone()
    nameless = tmp_path / "nameless.parquet"
    write_parquet(nameless, [encoded(i) for i in range(20)], [digit_label(i) for i in range(20)])

    def distance(labels: tuple[str, ...], data: Path) -> float:
        """How far the head is from the checkpoint's after training that hardly moves it."""
        path = tmp_path / "start.safetensors"
        save_model(path, vit, labels, model_args=ARCHITECTURE)
        chosen = options(data, tmp_path / f"{labels[0]}-{data.name}", model=str(path), lr=1e-6)
        loaded = load_model(finetune(chosen))
        assert loaded.labels == (named if data is digits else labels)
        return float((loaded.vit.head.weight.detach() - start).abs().max())

    assert distance(named, digits) < 1e-3
    assert distance(tuple("abcdefghij"), digits) > 1e-2
    assert distance(tuple("abcdefghij"), nameless) < 1e-3


def test_another_image_size(digits: Path, tmp_path: Path, backbone: Path) -> None:
    """Position embeddings are resampled by timm, the file remembers the size and the origin."""
    chosen = options(digits, tmp_path / "out", model=str(backbone), img_size=48, lr=1e-6)
    loaded, before = load_model(finetune(chosen)), load_model(backbone)
    assert loaded.input_size == (3, 48, 48)
    assert loaded.vit.pos_embed.shape[1] == 1 + 6 * 6
    assert loaded.trained_from == before.digest, "the digest that a bank of the backbone names"
    torch.testing.assert_close(
        loaded.vit.pos_embed, load_model(backbone, img_size=48).vit.pos_embed, atol=2e-3, rtol=2e-3
    )
    scratch = options(digits, tmp_path / "scratch", model="test_vit", img_size=32)
    assert load_model(finetune(scratch)).input_size == (3, 32, 32)


def test_stochastic_depth_reaches_a_checkpoint_too(
    digits: Path, tmp_path: Path, backbone: Path
) -> None:
    """The same run with drop-path ends elsewhere, and the stored model drops nothing."""
    files = [
        finetune(options(digits, tmp_path / f"{rate}", model=str(backbone), drop_path=rate))
        for rate in (0.0, 0.5)
    ]
    assert not same_weights(*files)
    assert not any("DropPath" in type(m).__name__ for m in load_model(files[1]).vit.modules())


# --- Only a part learns ---------------------------------------------------------------------------


def adapting(data: Path, output: Path, start: Path, **changes: Any) -> FinetuneOptions:
    """AdaptFormer with one scale."""
    fields = {"tuning": "adaptformer", "adapter_scale": (1.0,), "lr": 1e-2, "bottleneck": 4}
    return options(data, output, **{"model": str(start), **fields, **changes})


@pytest.mark.parametrize("tuning", ["adaptformer", "head"])
def test_frozen_backbone_is_bit_identical(
    digits: Path, tmp_path: Path, backbone: Path, tuning: str
) -> None:
    """After training, every weight of the backbone is what it was; adapters and head have moved."""
    chosen = adapting(
        digits, tmp_path / "out", backbone, tuning=tuning, r_source=2, store_dtype="float32"
    )
    before, after = load_model(backbone), load_model(finetune(chosen))
    state = after.vit.state_dict()
    for key, value in before.vit.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(state.get(key, state.get(key.replace(".mlp.", ".mlp.mlp."))), value)
    assert after.trained_from == before.digest
    assert (after.r_source, after.labels[0]) == (2, "digit 0")
    if tuning == "head":
        assert after.digest == before.digest
        return
    assert adapter_config(after.vit) == AdapterConfig(4, 1.0)
    for block in after.vit.blocks:
        assert block.mlp.adapter.up.weight.abs().max() > 1e-3


def test_running_statistics_of_a_frozen_backbone_stay(digits: Path, tmp_path: Path) -> None:
    """A convolutional stem's batch norms are frozen with the rest of the backbone."""
    vit = timm.create_model("vit_mini_conv4_32", num_classes=3)
    vit.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    start = tmp_path / "start.safetensors"
    save_model(start, vit, ("a", "b", "c"))
    chosen = adapting(digits, tmp_path / "out", start, tuning="head", store_dtype="float32")
    assert load_model(finetune(chosen)).digest == backbone_digest(vit)


def test_checkpoint_holds_only_what_learns(digits: Path, tmp_path: Path, backbone: Path) -> None:
    """Adapters and head are in it; the backbone, which does not change, is not."""
    finetune(adapting(digits, tmp_path / "out", backbone))
    stored = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["learner"]
    assert {key.split(".")[0] for key in stored} == {"adapters", "head"}
    assert len(stored) == 2 * 4 + 2


def test_adapted_model_is_served_as_it_was_trained(
    digits: Path, tmp_path: Path, backbone: Path
) -> None:
    """The file's logits at r_source are those of the model in memory at the end of training."""
    chosen = adapting(digits, tmp_path / "out", backbone, r_source=3, store_dtype="float32")
    loaded = load_model(finetune(chosen))
    logits, labels = predict(CompressedViT(loaded.vit), loaded, open_source(digits, "test"), 3)
    assert top1(logits, labels) == pytest.approx(report(tmp_path / "out")["test_top1"])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss) == pytest.approx(report(tmp_path / "out")["test_loss"], rel=1e-5)


def test_an_interrupted_adaptformer_run_ends_in_the_same_model(
    digits: Path, tmp_path: Path, backbone: Path
) -> None:
    """Frozen parts come from the start, learning ones from the checkpoint: the same bits."""
    whole = finetune(adapting(digits, tmp_path / "whole", backbone))
    chosen = adapting(digits, tmp_path / "parts", backbone)
    with stopped_at(3), pytest.raises(KeyboardInterrupt):
        finetune(chosen)
    assert same_weights(finetune(chosen), whole)


# --- Choices --------------------------------------------------------------------------------------


def searching(data: Path, output: Path, model: Path) -> FinetuneOptions:
    """Three scales of which one is far too small to learn and one far too large."""
    return adapting(data, output, model, adapter_scale=(1e-6, 1.0, 1e6), epochs=2.0, val_images=16)


def test_scale_search_takes_the_best(
    digits: Path, tmp_path: Path, backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every candidate is judged on held-out training images; the best one is trained in full."""
    caplog.set_level(logging.INFO)
    loaded = load_model(finetune(searching(digits, tmp_path / "out", backbone)))
    provenance = report(tmp_path / "out")
    table = provenance["scale_search"]
    assert [row["scale"] for row in table] == [1e-6, 1.0, 1e6]
    best = max(table, key=lambda row: (row["top1"], -row["loss"]))
    adapters = adapter_config(loaded.vit)
    assert adapters is not None
    assert adapters.scale == best["scale"] != 1e6
    assert (provenance["held_out"], provenance["images"]) == (16, IMAGES)
    assert "top1" not in provenance, "nothing is held out of the last training"
    assert f"{best['scale']:g}" in caplog.text
    assert "<- taken" in caplog.text


def test_scale_search_never_sees_the_test_data(
    digits: Path, tmp_path: Path, backbone: Path
) -> None:
    """Other test data changes no candidate's figures, and none is measured on it."""
    finetune(searching(digits, tmp_path / "one", backbone))
    other = write_folder(tmp_path / "other", 48, first=200)
    chosen = searching(digits, tmp_path / "two", backbone)
    finetune(replace(chosen, test_data=str(other)))
    first, second = report(tmp_path / "one"), report(tmp_path / "two")
    assert first["scale_search"] == second["scale_search"]
    assert first["test_loss"] != second["test_loss"]


def test_a_scale_that_diverges_is_out_of_the_search(
    digits: Path, tmp_path: Path, backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its loss is not finite any more; the others are tried all the same, and the best is taken."""
    chosen = replace(searching(digits, tmp_path, backbone), adapter_scale=(1e38, 1.0))
    loaded = load_model(finetune(chosen))
    assert "adapter scale 1e+38 is out" in caplog.text
    adapters = adapter_config(loaded.vit)
    assert adapters is not None and adapters.scale == 1.0
    assert report(tmp_path)["scale_search"][0]["loss"] is None
    assert "NaN" not in (tmp_path / "finetune.json").read_text()
    none = replace(chosen, adapter_scale=(1e37, 1e38), output=tmp_path / "none")
    with pytest.raises(DivergedError, match=r"--adapter-scale 1e\+37 1e\+38: none.*--lr"):
        finetune(none)
    assert not (tmp_path / "none" / "model.safetensors").exists()


@pytest.mark.parametrize("stop", [1, 5, 10])
def test_an_interrupted_search_goes_on_where_it_stopped(
    digits: Path, tmp_path: Path, backbone: Path, stop: int
) -> None:
    """Candidates that are done are not trained again, and the result is the same."""
    with stopped_at(10**6) as all_calls:
        whole = finetune(searching(digits, tmp_path / "whole", backbone))
    chosen = searching(digits, tmp_path / "parts", backbone)
    with stopped_at(stop), pytest.raises(KeyboardInterrupt):
        finetune(chosen)
    with stopped_at(10**6) as calls:
        resumed = finetune(chosen)
    assert same_weights(resumed, whole)
    assert report(tmp_path / "parts")["scale_search"] == report(tmp_path / "whole")["scale_search"]
    assert len(calls) <= len(all_calls) - stop + 2, "at most what came after a checkpoint"


def test_search_is_as_short_as_it_is_told(digits: Path, tmp_path: Path, backbone: Path) -> None:
    """A tenth of the epochs, at least one, never more than the run itself; or as asked."""
    chosen = adapting(digits, tmp_path / "out", backbone, adapter_scale=(0.1, 1.0), epochs=3.0)
    finetune(replace(chosen, search_epochs=2.0, warmup_steps=6))
    log = (tmp_path / "out" / "search" / "scale-0.1" / "log.csv").read_text().splitlines()
    rates = {line.split(",")[0]: float(line.split(",")[2]) for line in log if ",lr," in line}
    assert len(rates) == 2 * ((IMAGES - IMAGES // 10) // 16)
    assert rates["1"] == pytest.approx(1e-2 / 4), "two thirds of the warm-up"


def test_the_best_step_is_kept(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``--select best`` the weights with the best held-out top-1 ship, and say so."""
    seen: list[float] = []
    from tocom_core import tuning

    def worsening(logits: torch.Tensor, labels: torch.Tensor) -> float:
        seen.append(1.0 / (1 + len(seen)) if len(labels) == 10 else 0.5)
        return seen[-1]

    monkeypatch.setattr(tuning, "top1", worsening)
    chosen = options(digits, tmp_path / "best", select="best", epochs=3.0, val_images=10)
    path = finetune(chosen)
    provenance = report(tmp_path / "best")
    assert provenance["best_step"] == 3, "the first validation, after one epoch of three steps"
    assert provenance["selected_by"] == "top1 on held-out training images"
    assert (provenance["images"], provenance["held_out"]) == (IMAGES - 10, 10)
    monkeypatch.undo()

    loaded = load_model(path)
    logits, labels = predict(CompressedViT(loaded.vit), loaded, open_source(digits, "test"))
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert loss == pytest.approx(provenance["test_loss"], abs=0.02), "figures of what ships"


def test_the_last_figures_are_not_measured_twice(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One validation per epoch is enough; a run that was already done is measured once more."""
    from tocom_core import tuning

    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return predict(*args, **kwargs)

    monkeypatch.setattr(tuning, "predict", counted)
    chosen = options(digits, tmp_path, epochs=2.0)
    finetune(chosen)
    assert len(calls) == 2
    first = report(tmp_path)
    finetune(chosen)
    assert len(calls) == 3
    assert report(tmp_path)["test_loss"] == pytest.approx(first["test_loss"], rel=1e-5)


def test_a_part_of_the_images_on_a_small_machine(digits: Path, tmp_path: Path) -> None:
    """Some training and some test images, spread over the classes; the record counts them."""
    chosen = options(digits, tmp_path, train_images=40, test_images=20, model="vit_mini_conv4_32")
    finetune(chosen)
    provenance = report(tmp_path)
    assert provenance["images"] == 40
    assert provenance["test"] == {"split": "test", "images": 20}
    assert provenance["steps"] == 2


def test_data_without_a_test_part_is_not_tested_on_itself(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without data of its own there is no test and no accuracy, and a warning says so."""
    finetune(options(digits / "train", tmp_path))
    assert "no test data" in caplog.text
    assert "test_top1" not in json.loads((tmp_path / "finetune.json").read_text())


def test_parquet_with_parts(tmp_path: Path) -> None:
    """Class names come from the table; those without an image are kept."""
    names = [f"number {i}" for i in range(12)]
    for part, first, count in (("train", 0, 32), ("test", 40, 16)):
        indices = range(first, first + count)
        images, labels = [encoded(i) for i in indices], [digit_label(i) for i in indices]
        write_parquet(tmp_path / "data" / f"{part}.parquet", images, labels, names)
    loaded = load_model(finetune(options(tmp_path / "data", tmp_path / "out")))
    assert loaded.labels == tuple(names)
    assert "test_top1" in json.loads((tmp_path / "out" / "finetune.json").read_text())


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
    with pytest.raises(DataError, match="only the test data has one, only the training data has"):
        finetune(replace(chosen, data=str(digits), test_data=str(other)))
    with pytest.raises(DataError, match="absent"):
        finetune(replace(chosen, data=str(digits), test_data=str(tmp_path / "absent")))


def test_test_labels_must_be_of_the_head(tmp_path: Path) -> None:
    """A label beyond the head, and a test image without a label, are errors before training."""
    encodings = [encoded(i) for i in range(20)]
    train = write_parquet(tmp_path / "train.parquet", encodings, [i % 4 for i in range(20)])
    beyond = write_parquet(tmp_path / "beyond.parquet", encodings[:3], [0, 6, 1])
    unknown = write_parquet(tmp_path / "unknown.parquet", encodings[:3], [0, -1, 1])
    chosen = options(train, tmp_path / "out")
    with pytest.raises(DataError, match=r"label 6 occurs in the test data.*only 4 classes"):
        finetune(replace(chosen, test_data=str(beyond)))
    with pytest.raises(DataError, match=r"unknown\.parquet in the test data has no label"):
        finetune(replace(chosen, test_data=str(unknown)))
    with pytest.raises(DataError, match=r"unknown\.parquet in the training data has no label"):
        finetune(replace(chosen, data=str(unknown)))


def test_an_unreadable_image_does_not_end_a_finished_run(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a test image nor a held-out one: they are counted, and the model is written."""
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    for path in sorted((data / "test").rglob("*.png"))[:2]:
        path.write_bytes(b"no image")
    train = open_source(data, "train")
    held_out = hold_out(train, 12, 0)[1]
    Path(held_out.name(0)).write_bytes(b"no image")
    finetune(options(data, tmp_path / "out", select="best", val_images=12))
    told = report(tmp_path / "out")
    assert (told["unreadable"], told["test_unreadable"]) == (1, 2)
    assert (told["held_out"], told["test"]) == (12, {"split": "test", "images": 30})
    assert 0 <= told["test_top1"] <= 1 and told["best_step"] == 3
    assert "2 of 32 images cannot be read" in caplog.text
    assert "--skip-unreadable" not in caplog.text


def test_an_empty_class_is_named(
    digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A class without a training image is a warning that names it; the head has room for it."""
    names = [f"number {i}" for i in range(12)]
    indices = range(32)
    images, labels = [encoded(i) for i in indices], [digit_label(i) for i in indices]
    data = write_parquet(tmp_path / "train.parquet", images, labels, names)
    loaded = load_model(finetune(options(data, tmp_path / "out")))
    assert "no training image of class number 10, number 11" in caplog.text
    assert len(loaded.labels) == 12


def test_a_model_that_cannot_be_used_is_refused(
    digits: Path, tmp_path: Path, backbone: Path
) -> None:
    """Another family, a misspelt name, adapters upon adapters: each ends before training."""
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        finetune(options(digits, tmp_path, model="test_resnet"))
    with pytest.raises(CheckpointError, match="did you mean"):
        finetune(options(digits, tmp_path, model="vit_mini_conv4_23"))
    path = finetune(adapting(digits, tmp_path / "once", backbone))
    with pytest.raises(UnsupportedModelError, match="has an adapter already"):
        finetune(adapting(digits, tmp_path / "twice", path))
    further = load_model(finetune(options(digits, tmp_path / "further", model=str(path))))
    assert adapter_config(further.vit) == AdapterConfig(4, 1.0), "in full it can go on learning"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 15, "mixup": 0.2}, "--batch-size 15 with mixup.*even"),
        ({"model": "test_vit"}, "--tuning adaptformer.*test_vit would be random"),
        ({"model": "test_vit", "tuning": "head"}, "--tuning head.*--pretrained"),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"train_images": -1}, "--train-images -1 must be 0 or more"),
        ({"val_images": -2}, "--val-images -2 must be 0 or more"),
        ({"test_images": -3}, "--test-images -3 must be 0 or more"),
        ({"search_epochs": 0.0}, "--search-epochs 0.0 must be above 0"),
        ({"search_epochs": -1.0}, "--search-epochs -1.0 must be above 0"),
        ({"img_size": 0}, "--img-size 0 must be 1 or more"),
        ({"r_source": -1}, "--r-source -1 must be 0 or more"),
        ({"drop_path": 1.5}, "--drop-path 1.5 must be from 0 to 1"),
        ({"smoothing": math.nan}, "--smoothing nan"),
        ({"min_scale": -0.5}, "--min-scale -0.5 must be from 0 to 1"),
        ({"erasing": 1.5}, "--erasing 1.5"),
        ({"mixup": -0.5}, "--mixup -0.5"),
        ({"batch_size": 0}, "--batch-size 0 must be 1 or more"),
        ({"adapter_scale": (0.1, -1.0)}, "scale=-1.0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Out of range too: before anything is read, the wrong option is named with the way out."""
    with pytest.raises(TrainingError, match=message):
        finetune(adapting(tmp_path / "absent", tmp_path, tmp_path / "m.safetensors", **changes))


@pytest.mark.parametrize("count", [32, 60, 64])
def test_holding_out_too_much_is_refused(
    digits: Path, tmp_path: Path, backbone: Path, count: int
) -> None:
    """Less than half of the training images may be held out."""
    with pytest.raises(DataError, match=rf"--val-images {count} of 64 .*less than half"):
        finetune(options(digits, tmp_path, model=str(backbone), select="best", val_images=count))


def test_errors_of_the_command_line_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the user got wrong is told without a stack trace, and the exit code is 1."""
    argv = f"--data {tmp_path}/absent --model test_vit --output {tmp_path}/out"
    assert main(argv.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("tocom finetune: no data set at ")
    assert len(error.splitlines()) == 1
