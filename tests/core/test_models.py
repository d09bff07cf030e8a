"""load_model and save_model: weights, labels, transform, and what is said when one is wrong."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data as photographs
from timm.data import create_transform, resolve_data_config
from timm.models.vision_transformer import VisionTransformer

from tests.core import zoo
from tocom_core import Bank, CompressedViT, LoadedModel, hub_files, load_model
from tocom_core.bank import backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.errors import CheckpointError, DeviceError, UnsupportedModelError
from tocom_core.evaluation import predict, top1
from tocom_core.models import default_model_path, describe, find_bank, pick_device, save_model
from tocom_core.sources import SubsetSource, open_source

LABELS = tuple(f"kind {i}" for i in range(7))


def small(name: str = "test_vit", **changes: Any) -> VisionTransformer:
    """A registered architecture with 7 classes and random parameters that all matter."""
    vit = timm.create_model(name, num_classes=7, **changes)
    zoo.randomise(vit)
    return vit.eval()


def assert_same_model(loaded: LoadedModel, vit: VisionTransformer, tolerance: float = 0.0) -> None:
    """The loaded model is of the same kind, in eval mode, float32, and computes the same."""
    ours, theirs = loaded.vit.state_dict(), vit.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=tolerance, atol=tolerance)
    assert not loaded.vit.training
    assert {p.dtype for p in loaded.vit.parameters()} == {torch.float32}


# --- Our own files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_save_and_load_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """A saved model needs nothing but its path; float16 halves the file and loads as float32."""
    vit = small(name)
    path = tmp_path / "a" / "model.safetensors"
    table = {"rows": [{"r": 0, "bank": False, "top1": 0.5}]}
    save_model(
        path,
        vit,
        LABELS,
        dtype=dtype,
        tocom={"r_source": 3, "trained_from": "abc", "evaluation": table},
    )
    loaded = load_model(path)

    assert_same_model(loaded, vit.to(dtype).float())
    assert (loaded.labels, loaded.r_source, loaded.architecture) == (LABELS, 3, name)
    assert (loaded.trained_from, loaded.evaluation, loaded.name) == ("abc", table, "a")
    assert loaded.digest == backbone_digest(vit)
    assert loaded.input_size == (3, *vit.patch_embed.img_size)
    assert load_model(path, r_source=1).r_source == 1
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    bytes_per_value = path.stat().st_size / sum(p.numel() for p in vit.parameters())
    assert bytes_per_value == pytest.approx(torch.finfo(dtype).bits / 8, rel=0.1)


def test_model_args_make_another_image_size_survive(tmp_path: Path) -> None:
    """A model that was built with arguments is rebuilt with them."""
    arguments: dict[str, Any] = {"img_size": 48, "depth": 2, "reg_tokens": 2}
    vit = small(**arguments)
    path = tmp_path / "model.safetensors"
    save_model(path, vit, LABELS, model_args=arguments)
    loaded = load_model(path)
    assert_same_model(loaded, vit)
    assert loaded.input_size == (3, 48, 48)
    assert loaded.transform(Image.new("RGB", (100, 60))).shape == (3, 48, 48)


@torch.inference_mode()
def test_batch_norm_statistics_survive(tmp_path: Path) -> None:
    """A convolutional stem's running statistics are stored and loaded like weights."""
    vit = timm.create_model("vit_mini_conv4_32", num_classes=7)
    vit.train()(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    path = tmp_path / "model.safetensors"
    save_model(path, vit.eval(), LABELS)
    loaded = load_model(path)
    images = zoo.photos(vit)
    assert torch.equal(loaded.vit(images), vit(images))
    assert loaded.mean == pytest.approx((0.4914, 0.4822, 0.4465))


# --- Other people's files -------------------------------------------------------------------------


def test_architecture_read_off_the_file_name(tmp_path: Path) -> None:
    """The longest timm name in the file's name is taken, unless the caller names another."""
    vit = small("test_vit2")
    for name in ("test_vit2.safetensors", "best-test_vit2-e300.safetensors"):
        save_file(vit.state_dict(), tmp_path / name)
        loaded = load_model(tmp_path / name)
        assert_same_model(loaded, vit)
        assert loaded.architecture == "test_vit2"
        assert loaded.labels == tuple(f"class {i}" for i in range(7))
    save_file(vit.state_dict(), tmp_path / "test_vit.safetensors")
    assert_same_model(load_model(tmp_path / "test_vit.safetensors", architecture="test_vit2"), vit)


def test_architecture_read_off_the_folder_name(tmp_path: Path) -> None:
    """A file with a general name is known by its folder."""
    vit = small()
    for name in ("model.safetensors", "pytorch_model.bin", "checkpoint-best.pth"):
        folder = tmp_path / name.replace(".", "-") / "test_vit"
        folder.mkdir(parents=True)
        if name.endswith("safetensors"):
            save_file(vit.state_dict(), folder / name)
        else:
            torch.save(vit.state_dict(), folder / name)
        assert_same_model(load_model(folder / name), vit)


def test_timm_training_script_s_checkpoint(tmp_path: Path) -> None:
    """A ``.pth`` of timm's train.py says its own architecture."""
    vit = small("test_vit3")
    torch.save({"arch": "test_vit3", "state_dict": vit.state_dict()}, tmp_path / "last.pth.tar")
    assert_same_model(load_model(tmp_path / "last.pth.tar"), vit)


def test_hub_layout_with_config_json(tmp_path: Path) -> None:
    """The hub layout of timm: architecture, labels, image size, normalisation in config.json."""
    vit = small(img_size=96)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": 7,
        "num_features": 64,
        "global_pool": "token",
        "label_names": [f"n{i}" for i in range(7)],
        "label_descriptions": {"n0": "a tabby cat"},
        "pretrained_cfg": {
            "tag": "mine",
            "custom_load": False,
            "input_size": [3, 96, 96],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": 7,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path / "model.safetensors")
    assert_same_model(loaded, vit)
    assert loaded.labels == ("a tabby cat", "n1", "n2", "n3", "n4", "n5", "n6")
    assert loaded.input_size == (3, 96, 96)
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert loaded.transform_info["interpolation"] == "bilinear"


def test_position_embeddings_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    """A checkpoint fine-tuned at another size loads into the architecture's own size."""
    save_file(small(img_size=96).state_dict(), tmp_path / "test_vit.safetensors")
    loaded = load_model(tmp_path / "test_vit.safetensors")
    assert loaded.input_size == (3, 160, 160)
    assert loaded.vit(torch.zeros(1, 3, 160, 160)).shape == (1, 7)


def test_a_new_number_of_classes_gets_a_new_head(tmp_path: Path) -> None:
    """For transfer, the head is replaced and the old labels with it; the backbone stays."""
    vit = small()
    path = tmp_path / "model.safetensors"
    save_model(path, vit, LABELS)
    loaded = load_model(path, num_classes=3)
    assert loaded.vit(torch.zeros(1, 3, 160, 160)).shape == (1, 3)
    assert len(loaded.labels) == 3
    assert loaded.digest == backbone_digest(vit)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Missing, surplus and misshapen weights are a CheckpointError that names file and model."""
    state = small().state_dict()
    missing = {k: v for k, v in state.items() if k != "norm.weight"}
    wrong: dict[str, dict[str, torch.Tensor]] = {
        "missing": missing,
        "surplus": {**state, "blocks.9.norm1.weight": torch.ones(64)},
        "misshapen": {**state, "norm.weight": torch.ones(3)},
        "foreign": {"encoder.layer.0.weight": torch.ones(2, 2)},
    }
    for kind, content in wrong.items():
        path = tmp_path / f"{kind}-test_vit.safetensors"
        save_file(content, path)
        with pytest.raises(CheckpointError, match=f"{kind}-test_vit.*test_vit"):
            load_model(path)


def test_a_file_of_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """Nothing to go by, or a name that timm does not have: the error says what to do."""
    save_file(small().state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match="does not say its architecture"):
        load_model(tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"test_vitt.*did you mean 'test_vit"):
        load_model(tmp_path / "mine.safetensors", architecture="test_vitt")


def test_arguments_that_timm_refuses_are_refused(tmp_path: Path) -> None:
    """A config whose arguments the architecture does not take is a CheckpointError."""
    for field in ("model_args", "pretrained_cfg"):
        path = tmp_path / "model.safetensors"
        config = {"architecture": "test_vit", field: {"no_such_argument": 1}}
        save_file(small().state_dict(), path, metadata={"config": json.dumps(config)})
        with pytest.raises(CheckpointError, match="no_such_argument"):
            load_model(path)


@pytest.mark.parametrize("key", ["mlp.adapter.down.weight", "adaptmlp.down_proj.weight"])
def test_adapters_without_a_header_of_ours_are_refused(tmp_path: Path, key: str) -> None:
    """Weights alone do not say the adapters' scale: the file is refused, and the reason told."""
    path = tmp_path / "test_vit.safetensors"
    save_file({**small().state_dict(), f"blocks.0.{key}": torch.zeros(4, 64)}, path)
    with pytest.raises(CheckpointError, match=rf"blocks.0.{key}.*no header of ours says their sc"):
        load_model(path)


@pytest.mark.parametrize(
    "recorded", [{"bottleneck": 4}, {"bottleneck": "4", "scale": 1.0}, {"scale": -1.0}, 5, {}, []]
)
def test_a_header_with_malformed_adapters_is_refused(tmp_path: Path, recorded: Any) -> None:
    """What is recorded must name bottleneck and scale, and the weights must be of that size."""
    path = tmp_path / "model.safetensors"
    save_model(path, small(), LABELS, tocom={"adaptformer": recorded})
    with pytest.raises(CheckpointError, match=r"model.safetensors (records the adap|does not fit)"):
        load_model(path)


# --- Changes before training ----------------------------------------------------------------------


def test_another_image_size_resamples_and_is_recorded(tmp_path: Path) -> None:
    """Position embeddings are resampled as timm does, and ``model_args`` records the size."""
    vit = small()
    path = tmp_path / "model.safetensors"
    save_model(path, vit, LABELS)
    loaded = load_model(path, img_size=64)
    grid = timm.layers.resample_abs_pos_embed(vit.pos_embed, (4, 4), num_prefix_tokens=1)
    torch.testing.assert_close(loaded.vit.pos_embed, grid)
    assert loaded.transform(Image.new("RGB", (100, 60))).shape == (3, 64, 64)
    assert (loaded.input_size, dict(loaded.model_args)) == ((3, 64, 64), {"img_size": 64})
    assert torch.equal(loaded.vit.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)
    again = tmp_path / "again.safetensors"
    save_model(again, loaded.vit, LABELS, model_args=loaded.model_args)
    assert_same_model(load_model(again), loaded.vit)
    assert load_model(again, img_size=160).input_size == (3, 160, 160)
    assert load_model("test_vit", img_size=64, pretrained=False).input_size == (3, 64, 64)


def test_weights_of_a_local_hub_folder_take_another_size_and_head(tmp_path: Path) -> None:
    """What timm itself fetches goes through the same changes as a file of ours."""
    vit = small()
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    cfg = {"mean": [0.1] * 3, "num_classes": 7, "classifier": "head"}
    config = {"architecture": "test_vit", "num_classes": 7, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(f"local-dir:{tmp_path}", img_size=64, num_classes=3)
    assert loaded.vit(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert loaded.mean == (0.1, 0.1, 0.1)
    assert torch.equal(loaded.vit.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)


def test_drop_path_is_for_training_only(tmp_path: Path) -> None:
    """Stochastic depth is set up in every block after the first, and never stored."""
    path = tmp_path / "model.safetensors"
    save_model(path, small(), LABELS)
    loaded = load_model(path, drop_path=0.3)
    assert loaded.vit.blocks[-1].drop_path2.drop_prob == pytest.approx(0.3)
    assert dict(loaded.model_args) == {}
    named = load_model("test_vit", drop_path=0.3, pretrained=False)
    assert named.vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_a_size_that_timm_refuses_is_refused(tmp_path: Path) -> None:
    """An image smaller than a patch is the caller's mistake, not a failure to fetch."""
    path = tmp_path / "model.safetensors"
    save_model(path, small(), LABELS)
    for name in (path, "test_vit"):
        with pytest.raises(
            CheckpointError, match=r"img_size \(8, 8\) is less than one patch of test_vit"
        ):
            load_model(name, img_size=8, pretrained=False)


def test_a_bad_argument_is_not_called_a_failure_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TypeError of timm's about an argument is passed on as what it is."""

    def refuse(name: str, **arguments: Any) -> None:
        raise TypeError("unexpected keyword argument 'img_size'")

    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(hub_files, "fetch", lambda repository, weights: Path("weights.bin"))
    with pytest.raises(CheckpointError, match=r"timm refuses \(TypeError\).*'img_size'"):
        load_model("test_vit", img_size=64)


# --- Names ----------------------------------------------------------------------------------------


def test_random_initialisation_needs_no_network() -> None:
    """``pretrained=False`` builds a timm name without fetching anything."""
    loaded = load_model("vit_tiny_patch16_224", pretrained=False)
    assert (loaded.name, loaded.r_source) == ("vit_tiny_patch16_224", 0)
    assert loaded.labels[0].startswith("tench")
    assert len(loaded.labels) == 1000


def test_unknown_names_get_a_hint() -> None:
    """A misspelt timm name is answered with the nearest one; so is a path to nothing."""
    with pytest.raises(CheckpointError, match="did you mean 'vit_tiny_patch16_224'"):
        load_model("vit_tiny_patch16_244")
    with pytest.raises(CheckpointError, match=r"no model file at .*absent\.safetensors"):
        load_model("absent.safetensors")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and an empty cache, whatever the machine has."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "hf-hub:someone/something"])
def test_without_a_network_the_error_says_what_to_do(name: str) -> None:
    """Weights that cannot be fetched are a CheckpointError, not a stack trace of the hub."""
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE forbids .* give a local folder or"):
        load_model(name)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    """What timm has but the method does not cover is named."""
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        load_model("test_resnet", pretrained=False)
    vit = timm.create_model("test_resnet", num_classes=7)
    save_file(vit.state_dict(), tmp_path / "test_resnet.safetensors")
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        load_model(tmp_path / "test_resnet.safetensors")


def test_models_of_other_images_are_refused(tmp_path: Path) -> None:
    """A model that does not take three channels cannot be served pictures."""
    path = tmp_path / "model.safetensors"
    save_model(path, small(in_chans=1), LABELS, model_args={"in_chans": 1})
    with pytest.raises(UnsupportedModelError, match="takes 1 channels"):
        load_model(path)


def test_default_files_lie_together() -> None:
    """The shipped model and its bank are looked for in one folder named after the architecture."""
    assert default_model_path().name == "model.safetensors"
    assert find_bank("default") == default_model_path().with_name("bank.safetensors")
    assert timm.is_model(default_model_path().parent.name)


@pytest.mark.parametrize(("name", "hint"), [("cuda:63", "device=auto"), ("gpu", "cuda:N")])
def test_device_that_is_not_there_is_refused(name: str, hint: str) -> None:
    """The message names the device and the way out."""
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(DeviceError, match=rf"{name}.*{hint}"):
        pick_device(name)


def test_a_bank_is_found_beside_its_model(tmp_path: Path) -> None:
    """``auto`` takes the one beside the file, ``none`` none, and a path that one."""
    model, beside = tmp_path / "model.safetensors", tmp_path / "bank.safetensors"
    model.touch()
    beside.touch()
    assert find_bank(model) == find_bank(str(model), "auto") == beside
    assert find_bank(model, "none") is None
    assert find_bank(model, "other.safetensors") == Path("other.safetensors")
    assert find_bank("vit_tiny_patch16_224") is None
    beside.unlink()
    assert find_bank(model) is None


def test_a_shipped_bank_is_found_by_its_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``auto`` takes the bank in ``weights/`` for the backbone, its copies and its fine-tunes."""
    backbone = describe(small(), "test_vit")
    folder = tmp_path / "weights" / backbone.architecture
    folder.mkdir(parents=True)
    monkeypatch.setattr("tocom_core.models.weights_folder", lambda: tmp_path / "weights")
    header = BankHeader("", 64, 2, 4, 1, backbone_digest=backbone.digest)
    Bank(header).save(folder / "bank.safetensors")
    shipped = folder / "bank.safetensors"

    assert find_bank("mine.safetensors", "auto", backbone) == shipped
    assert find_bank("mine.safetensors", "none", backbone) is None
    tuned = replace(backbone, digest="another", trained_from=backbone.digest)
    assert find_bank("mine.safetensors", "auto", tuned) == shipped
    stranger = replace(backbone, digest="another")
    assert find_bank("mine.safetensors", "auto", stranger) is None
    beside = tmp_path / "bank.safetensors"
    beside.touch()
    (tmp_path / "mine.safetensors").touch()
    assert find_bank(tmp_path / "mine.safetensors", "auto", backbone) == beside


def test_a_float16_copy_has_the_backbone_s_digest(tmp_path: Path) -> None:
    """A bank made on one fits the other without a warning; another weight is another backbone."""
    vit = small()
    save_model(tmp_path / "test_vit.safetensors", vit, LABELS, dtype=torch.float16)
    copy = load_model(tmp_path / "test_vit.safetensors")
    assert copy.digest == backbone_digest(vit)
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight[0, 0] += 0.01
    assert copy.digest != backbone_digest(vit)


# --- Labels ---------------------------------------------------------------------------------------


LABEL_FILES = {
    "labels.txt": "cat\ndog\n\n  bird \nfish\nant\nbee\nfly\n",
    "labels.json": json.dumps(["cat", "dog", "bird", "fish", "ant", "bee", "fly"]),
    "index.json": json.dumps(
        dict(zip("6543210", ["fly", "bee", "ant", "fish", "bird", "dog", "cat"], strict=True))
    ),
    "config.json": json.dumps(
        {"id2label": dict(enumerate(["cat", "dog", "bird", "fish", "ant", "bee", "fly"]))}
    ),
}


@pytest.mark.parametrize("name", LABEL_FILES)
def test_labels_from_a_file(tmp_path: Path, name: str) -> None:
    """Text, a JSON list, an object from index to label, or one with id2label; the file wins."""
    model, labels = tmp_path / "model.safetensors", tmp_path / "other" / name
    labels.parent.mkdir()
    labels.write_text(LABEL_FILES[name])
    save_model(model, small(), LABELS)
    loaded = load_model(model, labels=labels)
    assert loaded.labels == ("cat", "dog", "bird", "fish", "ant", "bee", "fly")


def test_labels_from_id2label_of_the_config(tmp_path: Path) -> None:
    """The id2label of transformers in the checkpoint's config, ordered by index."""
    path = tmp_path / "model.safetensors"
    names = {str(i): LABELS[i] for i in (3, 1, 0, 2, 6, 5, 4)}
    config = json.dumps({"architecture": "test_vit", "id2label": names})
    save_file(small().state_dict(), path, metadata={"config": config})
    assert load_model(path).labels == LABELS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.txt", "cat\ndog\n", "2 labels in .*short.txt but the model has 7"),
        ("broken.json", "{", "broken.json must hold"),
        ("words.json", '{"cat": "0"}', "words.json must hold"),
        ("number.json", "5", "number.json must hold"),
        ("latin.txt", "caf\xe9", "latin.txt cannot be read"),
        ("absent.txt", None, "absent.txt cannot be read"),
    ],
)
def test_bad_labels_are_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    """Too few labels, and files that hold none, are named with what was expected."""
    path = tmp_path / "test_vit.safetensors"
    save_file(small().state_dict(), path)
    if content is not None:
        (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        load_model(path, labels=tmp_path / name)


def test_labels_of_the_checkpoint_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A checkpoint whose labels are not one per class is refused; a label file mends it."""
    path, labels = tmp_path / "model.safetensors", tmp_path / "labels.txt"
    save_model(path, small(), LABELS[:5])
    with pytest.raises(CheckpointError, match="5 labels in the checkpoint but the model has 7"):
        load_model(path)
    labels.write_text("\n".join(LABELS))
    assert load_model(path, labels=labels).labels == LABELS


# --- The transform --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_mini_conv4_32", {}),
        ("test_vit", {"img_size": (96, 64)}),
    ],
)
def test_transform_is_timm_s_own(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Our uint8 transform and ``normalize`` give what timm's own evaluation transform gives."""
    vit = small(name, depth=1, **changes)
    path = tmp_path / "model.safetensors"
    save_model(path, vit, LABELS, model_args={"depth": 1, **changes})
    loaded = load_model(path)
    config = resolve_data_config(pretrained_cfg=vit.pretrained_cfg, model=vit)
    config["input_size"] = (3, *vit.patch_embed.img_size)
    theirs = create_transform(**config, is_training=False)

    for photo in (photographs.chelsea(), photographs.coffee()[:, :120]):
        image = Image.fromarray(np.ascontiguousarray(photo))
        ours = loaded.transform(image)
        assert ours.dtype == torch.uint8
        assert ours.shape == loaded.input_size
        expected = theirs(image)
        step = (1 / 255) / min(loaded.std)
        assert (loaded.normalize(ours.unsqueeze(0))[0] - expected).abs().max() <= step


def test_normalize_dtype() -> None:
    """Normalisation is computed in float32 and cast to what the model runs in."""
    loaded = load_model("test_vit", pretrained=False)
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    half = loaded.normalize(images, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, loaded.normalize(images).bfloat16())


# --- Real weights, real photographs ---------------------------------------------------------------


@pytest.mark.skipif("TOCOM_DATA" not in os.environ, reason="TOCOM_DATA names no data folder")
def test_imagenet_accuracy_of_real_weights() -> None:
    """ViT-Tiny's published weights classify photographs as they should, and merging keeps most."""
    folder = Path(os.environ["TOCOM_DATA"])
    loaded = load_model(folder / "vit_tiny_patch16_224_fp16.safetensors")
    assert loaded.architecture == "vit_tiny_patch16_224"
    source = open_source(folder / "imagenet_ccby")
    model = CompressedViT(loaded.vit)
    first = SubsetSource(source, range(64))
    logits, labels = predict(model, loaded, first)
    assert top1(logits, labels) >= 0.8
    merged, _ = predict(model, loaded, first, 8)
    assert top1(merged, labels) >= top1(logits, labels) - 0.05
    assert float((merged.argmax(-1) == logits.argmax(-1)).float().mean()) >= 0.85


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"r_source": 8, "prop_attn": False}, False),
        ({"r_source": 8, "prop_attn": True}, True),
        ({"r_source": 0, "prop_attn": False}, None),
        ({"r_source": 8}, None),
        ({"r_source": 8, "prop_attn": "no"}, None),
    ],
)
def test_attention_of_the_fine_tuning_is_read(
    tmp_path: Path, header: dict[str, Any], expected: bool | None
) -> None:
    """What the header says; nothing where no token was merged, whatever it says."""
    path = tmp_path / "m.safetensors"
    save_model(path, small(), LABELS, tocom=header)
    assert load_model(path).prop_attn is expected


@pytest.mark.parametrize("wanted", [True, False, None])
@pytest.mark.parametrize("own", [True, False, None])
@pytest.mark.parametrize("banks", [True, False, None])
def test_the_first_that_says_chooses_the_attention(
    wanted: bool | None, own: bool | None, banks: bool | None
) -> None:
    """What is wanted, the model, the bank, and else it is on."""
    loaded = replace(describe(small(), "mine"), prop_attn=own)
    bank = None if banks is None else Bank(BankHeader("", 64, 2, 3, 2, prop_attn=banks))
    said = [value for value in (wanted, own, banks) if value is not None]
    assert loaded.choose_prop_attn(wanted, bank) is (said[0] if said else True)
