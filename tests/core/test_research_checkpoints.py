"""Checkpoints of DeiT's and MAE's code: told or inferred, the logits of what was trained."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.core import zoo
from tocom_core import CompressedViT, LoadedModel, load_model
from tocom_core.errors import CheckpointError
from tocom_core.models import save_model

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}


def trained(name: str = "vit_tiny_patch16_224", **changes: Any) -> VisionTransformer:
    """A model as research code trains it: timm's parts and names, 7 classes."""
    vit = timm.create_model(name, **{**TINY, "num_classes": 7, **changes})
    zoo.randomise(vit)
    return vit.eval()


def write(path: Path, state: dict[str, Any], **beside: Any) -> Path:
    """As DeiT's and MAE's ``main`` write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "epoch": 3, "optimizer": {"state": {}}, **beside}, path)
    return path


@torch.inference_mode()
def assert_same(loaded: LoadedModel, vit: VisionTransformer) -> None:
    """Same logits at r=0; merging runs."""
    images = torch.randn(2, *loaded.input_size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.vit(images), vit(images), rtol=0, atol=1e-4)
    assert CompressedViT(loaded.vit)(images, 4).shape == (2, vit.num_classes)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "deit": ("vit_tiny_patch16_224", {}),
    "deit distilled": ("deit_tiny_distilled_patch16_224", {}),
    "mae, patches pooled": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "without q/k/v bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "with q/k norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "deit III": ("vit_tiny_patch16_224", {"no_embed_class": True, "init_values": 1e-6}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    "narrow MLP": ("vit_tiny_patch16_224", {"mlp_ratio": 2}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_is_read_off_the_shapes(tmp_path: Path, kind: str) -> None:
    """Nothing but weights; all sizes, tokens and pooling are found, and recorded."""
    name, changes = KINDS[kind]
    vit = trained(name, **changes)
    loaded = load_model(write(tmp_path / "a" / "mine.pth", vit.state_dict()))
    assert_same(loaded, vit)
    assert loaded.mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.transform_info["crop_pct"] == 0.875
    save_model(tmp_path / "b.safetensors", loaded.vit, loaded.labels, model_args=loaded.model_args)
    assert_same(load_model(tmp_path / "b.safetensors"), vit)


def test_layer_scales_of_deit_iii_are_renamed(tmp_path: Path) -> None:
    """They are called gamma_1 and gamma_2 there."""
    vit = trained(no_embed_class=True, init_values=1e-6)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for key, value in vit.state_dict().items()
    }
    assert "blocks.0.gamma_1" in state
    assert_same(load_model(write(tmp_path / "mine.pth", state)), vit)


def test_stored_arguments_of_mae(tmp_path: Path) -> None:
    """MAE's fine-tuning leaves the size out of its model's name, and stores that of its images."""
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, global_pool="avg")
    zoo.randomise(vit)
    arguments = argparse.Namespace(
        model="vit_tiny_patch16", input_size=32, nb_classes=7, global_pool=True, data_path="/x"
    )
    path = write(tmp_path / "checkpoint-49.pth", vit.state_dict(), args=arguments)
    loaded = load_model(path)
    assert_same(loaded, vit.eval())
    assert loaded.architecture == "vit_tiny_patch16_224"
    assert loaded.mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.labels == tuple(f"class {i}" for i in range(7))


@pytest.mark.parametrize(
    ("arguments", "crop"),
    [
        ({"input_size": 224}, 0.875),
        ({"input_size": 384}, 1.0),
        ({"input_size": 384, "data_set": "IMNET"}, 0.875),
        ({"input_size": 384, "data_set": "IMNET", "eval_crop_ratio": 1.0}, 1.0),
    ],
)
def test_images_are_prepared_as_the_run_evaluated(
    tmp_path: Path, arguments: dict[str, Any], crop: float
) -> None:
    """MAE crops nothing above 224 pixels, DeiT as its eval_crop_ratio says."""
    vit = trained(img_size=arguments["input_size"], patch_size=32, depth=1)
    run = argparse.Namespace(model="nobody_s_vit", nb_classes=7, **arguments)
    path = write(tmp_path / "c.pth", vit.state_dict(), args=run)
    with pytest.raises(CheckpointError, match="does not say its architecture, and width 192"):
        load_model(path)
    vit = trained(img_size=arguments["input_size"], patch_size=32)
    loaded = load_model(write(path, vit.state_dict(), args=run))
    assert loaded.transform_info["crop_pct"] == crop
    assert loaded.input_size[1] == arguments["input_size"]


def test_the_encoder_of_a_pre_training_checkpoint(tmp_path: Path) -> None:
    """MAE's pre-training leaves an encoder to fine-tune; its decoder is left out."""
    vit = trained(num_classes=0)
    decoder = {
        "mask_token": torch.zeros(1, 1, 64),
        "decoder_pos_embed": torch.zeros(1, 17, 64),
        "decoder_blocks.0.norm1.weight": torch.ones(64),
    }
    path = write(tmp_path / "mae_pretrain.pth", {**vit.state_dict(), **decoder})
    assert load_model(path).vit.num_classes == 0
    tuned = load_model(path, num_classes=5)
    assert tuned.vit(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    torch.testing.assert_close(tuned.vit.blocks[3].mlp.fc1.weight, vit.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 128, "num_heads": 4}, "width 128 and depth 12 leave the number of heads op"),
        ({"img_size": (32, 48)}, "25 position embeddings are of no square image"),
        ({"pos_embed": "none"}, "no position embeddings"),
    ],
)
def test_what_the_shapes_leave_open_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The error says what is missing, and which flag tells it."""
    path = write(tmp_path / "mine.pth", trained(**changes).state_dict())
    with pytest.raises(CheckpointError, match=rf"{message}.*--architecture"):
        load_model(path)


def test_what_is_no_vit_is_refused(tmp_path: Path) -> None:
    """Weights of something else altogether."""
    path = write(tmp_path / "mine.pth", torch.nn.Linear(3, 2).state_dict())
    with pytest.raises(CheckpointError, match="not those of a plain Vision Transformer"):
        load_model(path)


def test_the_flag_may_use_mae_s_name(tmp_path: Path) -> None:
    """An architecture without its image size is the one for 224 pixels."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    path = write(tmp_path / "mine.pth", vit.state_dict())
    loaded = load_model(path, architecture="vit_tiny_patch16")
    assert loaded.architecture == "vit_tiny_patch16_224"
