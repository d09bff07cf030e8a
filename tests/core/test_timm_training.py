"""Fine-tunes made by timm: checkpoints as its training script writes them, and its hub layout."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from timm.utils import CheckpointSaver, ModelEmaV3

from tests.core import zoo
from tocom_core import CompressedViT, LoadedModel, load_model
from tocom_core.errors import CheckpointError


def small(**changes: Any) -> VisionTransformer:
    """A registered architecture with 7 classes and random parameters that all matter."""
    vit = timm.create_model("test_vit", **{"num_classes": 7, **changes})
    zoo.randomise(vit)
    return vit.eval()


@torch.inference_mode()
def assert_same(loaded: LoadedModel, vit: VisionTransformer) -> None:
    """Same logits at r=0; merging runs."""
    images = torch.randn(2, *loaded.input_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.vit(images), vit(images), rtol=0, atol=1e-4)
    assert CompressedViT(loaded.vit)(images, 4).shape == (2, 7)


def train_and_save(folder: Path, vit: VisionTransformer, ema: Any = None, **args: Any) -> Path:
    """What timm's ``train.py`` leaves behind after an epoch: its own saver, its own arguments."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"model": "test_vit", "num_classes": 7, "lr": 0.1, "opt_betas": None, "gp": None}
    usual |= {"mean": None, "std": None, "interpolation": "", "crop_pct": None, "img_size": None}
    arguments = argparse.Namespace(**{**usual, "model_kwargs": {}, **args})
    (folder / "args.yaml").write_text(yaml.safe_dump(vars(arguments)))
    optimizer = torch.optim.AdamW(vit.parameters())
    saver = CheckpointSaver(
        vit, optimizer, args=arguments, model_ema=ema, checkpoint_dir=str(folder)
    )
    saver.save_checkpoint(0, metric=float(np.float64(71.5)))
    return folder / "model_best.pth.tar"


def test_the_best_checkpoint_of_a_run(tmp_path: Path) -> None:
    """By its path, or by the folder of the run, after which it is called."""
    vit = small()
    path = train_and_save(tmp_path / "20260101-test_vit-160", vit)
    for given in (path, path.parent):
        loaded = load_model(given)
        assert_same(loaded, vit)
        assert loaded.name == "20260101-test_vit-160"
        assert loaded.architecture == "test_vit"


def test_averaged_weights_go_first(tmp_path: Path) -> None:
    """With --model-ema the script chooses its best epoch by them, so they are what is served."""
    vit, other = small(), small()
    zoo.randomise(other, seed=5)
    ema = ModelEmaV3(other)
    assert_same(load_model(train_and_save(tmp_path / "run", vit, ema)), other)


def test_arguments_of_the_run_shape_the_model_and_its_images(tmp_path: Path) -> None:
    """Image size, pooling, extra arguments and preparation differ from the architecture's own."""
    vit = small(img_size=96, global_pool="avg", init_values=0.1)
    chosen: dict[str, Any] = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    path = train_and_save(
        *(tmp_path / "run", vit), img_size=96, gp="avg", model_kwargs={"init_values": 0.1}, **chosen
    )
    loaded = load_model(path)
    assert_same(loaded, vit)
    assert loaded.input_size == (3, 96, 96)
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert loaded.std == (0.5, 0.5, 0.5)
    assert loaded.transform_info["interpolation"] == "bilinear"
    assert loaded.transform_info["crop_pct"] == 1.0


def test_weights_alone_beside_the_run_s_arguments(tmp_path: Path) -> None:
    """Cleaned to safetensors, the file says nothing itself; ``args.yaml`` of the run does."""
    vit = small(img_size=96)
    path = train_and_save(tmp_path / "run", vit, img_size=96)
    for left in path.parent.glob("*.tar"):
        left.unlink()
    save_file(vit.state_dict(), path.parent / "cleaned.safetensors")
    loaded = load_model(path.parent)
    assert_same(loaded, vit)
    assert loaded.input_size == (3, 96, 96)
    (path.parent / "args.yaml").write_text("- 1")
    with pytest.raises(CheckpointError, match=r"args\.yaml must be a mapping"):
        load_model(path.parent)


def test_numbers_of_numpy_and_paths_beside_the_weights(tmp_path: Path) -> None:
    """Harmless records that training scripts store do not keep a checkpoint from being read."""
    vit = small()
    content = {"arch": "test_vit", "state_dict": vit.state_dict(), "best": np.float64(0.7)}
    content |= {"args": argparse.Namespace(model="test_vit", output=Path("x"), seed=np.int64(3))}
    torch.save(content, tmp_path / "last.pth.tar")
    assert_same(load_model(tmp_path / "last.pth.tar"), vit)


def test_numbers_that_numpy_1_wrote(tmp_path: Path) -> None:
    """It called its module otherwise."""
    vit = small()
    content = {"arch": "test_vit", "state_dict": vit.state_dict(), "best": np.float64(0.7)}
    path = tmp_path / "last.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    assert b"cnumpy._core.multiarray\nscalar" in written
    path.write_bytes(written.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert_same(load_model(path), vit)


@pytest.mark.parametrize(
    ("name", "found"),
    [("hf-hub:timm/test_vit.r160_in1k", "test_vit"), ("test_vit.r160_in1k", "test_vit")],
)
def test_names_with_a_place_and_a_tag(tmp_path: Path, name: str, found: str) -> None:
    """What the run began from is named as timm has it; nothing is fetched for that."""
    vit = small()
    loaded = load_model(train_and_save(tmp_path / "run", vit, model=name))
    assert_same(loaded, vit)
    assert loaded.architecture == found


@pytest.mark.parametrize("safe", [True, False])
def test_timm_s_hub_layout_as_a_folder(tmp_path: Path, safe: bool) -> None:
    """As ``push_to_hf_hub`` writes it: labels, image size and preparation come from config.json."""
    vit = small(img_size=96)
    labels = [f"n{i}" for i in range(7)]
    config = {
        "label_names": labels,
        "label_descriptions": {"n0": "a cat"},
        "pretrained_cfg": {"mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"},
    }
    folder = tmp_path / "pushed"
    save_for_hf(vit, folder, model_config=config, safe_serialization=safe)
    loaded = load_model(folder)
    assert_same(loaded, vit)
    assert loaded.labels == ("a cat", "n1", "n2", "n3", "n4", "n5", "n6")
    assert loaded.input_size == (3, 96, 96)
    assert (loaded.name, loaded.mean) == ("pushed", (0.1, 0.2, 0.3))
    assert loaded.transform_info["interpolation"] == "bilinear"
    again = load_model(f"local-dir:{folder}")
    assert (again.digest, again.labels) == (loaded.digest, loaded.labels)
