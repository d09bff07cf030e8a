"""Checkpoints of `transformers`: the library's own logits, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.core import transformers_folders as folders
from tocom_core import CompressedViT, LoadedModel, load_model
from tocom_core.errors import CheckpointError, UnsupportedModelError
from tocom_core.models import save_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

KINDS: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit without q/k/v bias": {"qkv_bias": False},
    "vit with gelu_new": {"hidden_act": "gelu_new"},
    "vit with gelu_fast": {"hidden_act": "gelu_fast"},
    "vit with quick_gelu": {"hidden_act": "quick_gelu"},
    "vit with relu": {"hidden_act": "relu"},
    "vit with another epsilon": {"layer_norm_eps": 1e-2},
    "vit of oblong images": {"image_size": [32, 48], "patch_size": [8, 16]},
    "msn": {"kind": "ViTMSN"},
    "deit": {"kind": "DeiT"},
    "deit with teacher": {"kind": "DeiT", "head": "ForImageClassificationWithTeacher"},
}


def pixels(loaded: LoadedModel, count: int = 3) -> torch.Tensor:
    """Random normalised images of the model's size."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *loaded.input_size, generator=generator)


def save(folder: Path, model: Any) -> Path:
    """A folder with weights and config, and a processor that fits the model's size."""
    height, width = loaded if isinstance(loaded := model.config.image_size, list) else [loaded] * 2
    prepare = folders.processor(size={"height": height, "width": width})
    return folders.save(folder, model, prepare)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits_are_the_library_s_own(tmp_path: Path, kind: str) -> None:
    """At r=0 within 1e-4; merging runs and changes them; labels come along."""
    model = folders.build(**KINDS[kind])
    loaded = load_model(save(tmp_path / "mine", model))
    images = pixels(loaded)
    expected = model(images).logits
    torch.testing.assert_close(loaded.vit(images), expected, rtol=0, atol=1e-4)
    assert loaded.labels == folders.NAMES
    assert loaded.name == "mine"
    merged = CompressedViT(loaded.vit)(images, 4)
    assert merged.shape == expected.shape
    assert not torch.allclose(merged, expected, atol=1e-4)


@torch.inference_mode()
def test_the_epsilon_survives_our_own_files(tmp_path: Path) -> None:
    """A converted model, saved by us, is the same model when it is read again."""
    model = folders.build(layer_norm_eps=1e-2, hidden_act="gelu_new")
    first = load_model(folders.save(tmp_path / "theirs", model))
    ours = tmp_path / "ours.safetensors"
    save_model(ours, first.vit, first.labels, model_args=first.model_args)
    again = load_model(ours)
    images = pixels(again)
    torch.testing.assert_close(again.vit(images), model(images).logits, rtol=0, atol=1e-4)
    assert again.transform_info == first.transform_info
    assert {m.eps for m in again.vit.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-2}


@torch.inference_mode()
@pytest.mark.parametrize("way", ["sharded", "pickle", "sharded pickle", "new names", "half"])
def test_every_way_to_store_the_weights(tmp_path: Path, way: str) -> None:
    """Parts with an index, pickles, the library's inner names, and half precision."""
    model = folders.build()
    folder = folders.save(tmp_path / "f", model)
    weights = folder / "model.safetensors"
    state = load_file(weights)
    tolerance = 1e-4
    if way == "sharded":
        weights.unlink()
        model.save_pretrained(folder, max_shard_size="40KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif way == "pickle":
        weights.unlink()
        torch.save(state, folder / "pytorch_model.bin")
    elif way == "sharded pickle":
        weights.unlink()
        names = sorted(state)
        parts = {"a.bin": names[:9], "b.bin": names[9:]}
        for part, held in parts.items():
            torch.save({name: state[name] for name in held}, folder / part)
        index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif way == "new names":
        save_file(model.state_dict(), weights)
        assert any("q_proj" in name for name in model.state_dict())
    else:
        tolerance = 2e-2
        save_file({name: value.half() for name, value in state.items()}, weights)
    loaded = load_model(folder)
    images = pixels(loaded)
    difference = (loaded.vit(images) - model(images).logits).abs().max()
    assert difference <= tolerance


def test_a_bare_model_is_a_backbone(tmp_path: Path) -> None:
    """Without a classifier it loads for fine-tuning, which gives it a new head."""
    model = folders.build(head="Model")
    folder = folders.save(tmp_path / "f", model)
    assert load_model(folder).vit.num_classes == 0
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = load_model(folder).vit.forward_features(images)
        torch.testing.assert_close(tokens, model(images).last_hidden_state, rtol=0, atol=1e-4)
    tuned = load_model(folder, num_classes=5, img_size=64)
    assert tuned.vit(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_known_sizes_get_timm_s_name(tmp_path: Path) -> None:
    """So that a bank of the same backbone is found."""
    sizes: dict[str, Any] = {"hidden_size": 192, "num_hidden_layers": 12, "intermediate_size": 768}
    sizes |= {"num_attention_heads": 3, "image_size": 224, "patch_size": 16}
    model = folders.build(**sizes)
    assert load_model(save(tmp_path / "f", model)).architecture == "vit_tiny_patch16_224"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dinov2": (
        {"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"]},
        "dinov2 model .* class token and the mean .* side by side",
    ),
    "swin": ({"model_type": "swin"}, "swin model .* windows"),
    "other": ({"model_type": "siglip"}, "siglip model .* not those of timm"),
    "task": ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling; of vit"),
    "activation": ({"hidden_act": "selu"}, "hidden_act='selu' is none of gelu"),
    "channels": ({"num_channels": 1}, "num_channels=1; images here have 3"),
    "pruned": ({"pruned_heads": {"0": [1]}}, "pruned"),
    "quantised": ({"quantization_config": {"bits": 8}}, "quantised"),
    "several": ({"problem_type": "multi_label_classification"}, "exclude each other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, case: str) -> None:
    """With the reason; nothing is loaded that would compute something else."""
    folder = folders.save(tmp_path / "f", folders.build())
    changes, message = REFUSED[case]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 4}, "block 3 has no query weight"),
        ({"num_hidden_layers": 2}, "does not fit"),
        ({"hidden_size": None}, "does not say its sizes"),
        ({"hidden_size": 64}, "does not fit|timm refuses"),
        ({"id2label": {"0": "cat"}}, "1 labels in the checkpoint but the model has 7"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """The error names the folder and what is wrong."""
    folder = folders.save(tmp_path / "f", folders.build())
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_unknown_weights_are_not_passed_over(tmp_path: Path) -> None:
    """A tensor that no name is known for would be left out of the sum: refused."""
    folder = folders.save(tmp_path / "f", folders.build())
    state = load_file(folder / "model.safetensors")
    save_file(
        {**state, "vit.encoder.layer.0.lora_A.weight": torch.ones(2, 48)},
        folder / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        load_model(folder)


def test_the_library_is_not_needed(tmp_path: Path) -> None:
    """A checkpoint is read, and nothing of `transformers` is imported for it."""
    folder = folders.save(tmp_path / "f", folders.build())
    code = (
        "import sys; from tocom_core import load_model; load_model(sys.argv[1]); "
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


@torch.inference_mode()
def test_timm_inside_of_transformers(tmp_path: Path) -> None:
    """A model of timm's that the library wrapped is timm's again."""
    model = transformers.TimmWrapperForImageClassification(
        transformers.TimmWrapperConfig.from_dict(
            {
                "architecture": "test_vit",
                "num_classes": 7,
                "id2label": dict(enumerate(folders.NAMES)),
                "label_names": list(folders.NAMES),
                "pretrained_cfg": {"input_size": [3, 160, 160], "mean": [0.1] * 3},
            }
        )
    ).eval()
    model.save_pretrained(tmp_path / "f")
    loaded = load_model(tmp_path / "f")
    images = pixels(loaded)
    torch.testing.assert_close(loaded.vit(images), model(images).logits, rtol=0, atol=1e-4)
    assert loaded.labels == folders.NAMES
