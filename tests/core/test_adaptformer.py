"""AdaptFormer: the formula, and that adapted models go through everything that plain ones do."""

import warnings
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tests.core import zoo
from tocom_core import Bank, CompressedViT, WeightMerger, load_model
from tocom_core.adaptformer import AdapterConfig, adapter_config, adapters_of, add_adapters
from tocom_core.bank import backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.errors import UnsupportedModelError
from tocom_core.models import save_model
from tocom_core.schedule import count_macs

ADAPTABLE = [name for name in zoo.COVERED if name != "res_post_block"]
LABELS = tuple(f"kind {i}" for i in range(7))


def adapted(name: str = "test_vit", bottleneck: int = 4, scale: float = 0.5) -> VisionTransformer:
    """A model of the zoo whose adapters matter."""
    vit = zoo.build(name)
    for number, adapter in enumerate(add_adapters(vit, bottleneck, scale)):
        zoo.randomise(adapter, seed=number + 1)
    return vit


def bank_for(vit: VisionTransformer, digest: str) -> Bank:
    """A random bank of four groups that was, as it says, trained on a backbone."""
    header = BankHeader(
        arch=vit.pretrained_cfg["architecture"],
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_groups=4,
        rank=2,
        scaling=0.1,
        backbone_digest=digest,
    )
    bank = Bank(header)
    zoo.randomise(bank, seed=9)
    return bank


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """Layer normalisation in float64, written out."""
    assert norm.weight is not None
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    return scaled * norm.weight.double() + norm.bias.double()


@pytest.mark.parametrize("name", ["vit_tiny", "deit3_small"], ids=["plain", "layer scale"])
def test_block_computes_the_paper_s_formula(name: str) -> None:
    """In float64: x + g·MLP(LN(x)) + s·(ReLU(LN(x) W_down + b_down) W_up + b_up)."""
    plain, vit = zoo.build(name), adapted(name)
    before, block = plain.blocks[0], vit.blocks[0]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 5, vit.embed_dim, generator=generator)
    adapter = adapters_of(vit)[0]

    normalised = layer_norm(x.double(), before.norm2)
    down = adapter.down.weight.double(), adapter.down.bias.double()
    up = adapter.up.weight.double(), adapter.up.bias.double()
    hidden = (normalised @ down[0].T + down[1]).clamp(min=0)
    branch = 0.5 * (hidden @ up[0].T + up[1])
    with torch.no_grad():
        mlp = before.mlp.double()(normalised)
        gamma = before.ls2.gamma.double() if hasattr(before.ls2, "gamma") else 1.0
        expected = x.double() + gamma * mlp + branch
        out = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    assert branch.abs().max() > 0.1, "the adapter matters"
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ADAPTABLE)
@torch.inference_mode()
def test_fresh_adapters_change_nothing(name: str) -> None:
    """Before training, the logits are bit for bit what they were, at any degree."""
    plain, vit = zoo.build(name), zoo.build(name)
    add_adapters(vit)
    images = zoo.photos(vit)
    assert torch.equal(vit(images), plain(images))
    assert torch.equal(CompressedViT(vit)(images, 3), CompressedViT(plain)(images, 3))


@pytest.mark.parametrize("name", ADAPTABLE)
@torch.inference_mode()
def test_adapted_models_run_at_every_degree(name: str) -> None:
    """At r=0 the wrapped model is timm's own; at any other the adapters count, too."""
    vit, plain = adapted(name), zoo.build(name)
    model, images = CompressedViT(vit), zoo.photos(vit)
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block in vit.blocks:
        x = block(x)
    assert torch.equal(model(images, 0), vit(images))
    torch.testing.assert_close(vit.forward_head(vit.norm(x)), model(images, 0))
    assert (model(images, 2) - CompressedViT(plain)(images, 2)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_half_precision(dtype: torch.dtype) -> None:
    """Adapters follow the model's type; one that is added to a half model is of that type."""
    vit = adapted()
    images = zoo.photos(vit)
    expected = CompressedViT(vit)(images, 4)
    half = CompressedViT(vit.to(dtype))(images.to(dtype), 4)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.15)
    other = zoo.build("test_vit").to(dtype)
    add_adapters(other)
    assert {p.dtype for p in other.parameters()} == {dtype}


def test_arithmetic_of_the_adapters_is_counted() -> None:
    """Every block costs two more products of D × bottleneck per token that its MLP sees."""
    plain, vit = CompressedViT(zoo.build("test_vit")), CompressedViT(adapted(bottleneck=4))
    tokens = plain.num_patches + vit.vit.num_prefix_tokens
    extra = plain.depth * tokens * 2 * plain.embed_dim * 4
    assert count_macs(vit.shape) - count_macs(plain.shape) == extra
    saved = sum(2 * (block + 1) for block in range(plain.depth))
    less = extra - saved * 2 * plain.embed_dim * 4
    assert count_macs(vit.shape, 2) - count_macs(plain.shape, 2) == less


def test_gradients_reach_a_fresh_adapter_and_nothing_is_lost() -> None:
    """From the zero start, W_up learns at once, so that W_down can follow."""
    torch.manual_seed(0)  # by chance all four units of an adapter may be dead
    vit = zoo.build("test_vit")
    adapters = add_adapters(vit.requires_grad_(False), 4, 0.1)
    CompressedViT(vit)(zoo.photos(vit), 2).square().sum().backward()
    for adapter in adapters:
        assert adapter.up.weight.grad is not None
        assert adapter.up.weight.grad.abs().max() > 0
        assert adapter.down.weight.grad is not None
    assert all(p.grad is None for n, p in vit.named_parameters() if ".adapter." not in n)


def test_start_of_an_adapter() -> None:
    """Kaiming-uniform within ±1/√D downwards, zeros upwards; the generator decides."""
    vit, other = zoo.build("test_vit"), zoo.build("test_vit")
    torch.manual_seed(0)
    first = add_adapters(vit)
    bound = vit.embed_dim**-0.5
    assert 0.9 * bound < first[0].down.weight.abs().max() <= bound
    assert all(not p.any() for a in first for p in (a.down.bias, a.up.weight, a.up.bias))
    torch.manual_seed(0)
    for a, b in zip(first, add_adapters(other), strict=True):
        assert torch.equal(a.down.weight, b.down.weight)


# --- Refusals -------------------------------------------------------------------------------------


def test_a_second_application_is_refused() -> None:
    """Adapters on adapters are an error that leaves the model as it was."""
    vit = adapted(scale=0.25)
    before = list(vit.state_dict())
    with pytest.raises(UnsupportedModelError, match=r"has an adapter.*bottleneck 4, scale 0.25"):
        add_adapters(vit)
    assert list(vit.state_dict()) == before
    assert adapter_config(vit) == AdapterConfig(4, 0.25)
    assert adapter_config(zoo.build("test_vit")) is None


def test_blocks_that_the_formula_does_not_describe_are_refused() -> None:
    """Norms behind the MLP, and blocks of another kind, are named; nothing is half adapted."""
    vit = zoo.build("res_post_block")
    with pytest.raises(UnsupportedModelError, match=r"block 0 is a ResPostBlock.*in full"):
        add_adapters(vit)
    mixed = zoo.build("test_vit")
    mixed.blocks[2] = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="block 2 is a Identity"):
        add_adapters(mixed)
    assert not adapters_of(mixed)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "0.1", True])
def test_scales_that_make_no_adapter_are_refused(scale: float) -> None:
    """Zero would never learn; what is no positive number is named."""
    with pytest.raises(ValueError, match=r"scale=.*finite number above 0"):
        add_adapters(zoo.build("test_vit"), 4, scale)
    with pytest.raises(ValueError, match=r"bottleneck=0"):
        add_adapters(zoo.build("test_vit"), 0)


# --- Served like any other model ------------------------------------------------------------------


@torch.inference_mode()
def test_a_saved_model_is_served_with_the_bank_of_its_backbone(tmp_path: Path) -> None:
    """Loaded from its file, with a bank and no warning, it gives the trained model's logits."""
    backbone = timm.create_model("test_vit", num_classes=7, img_size=64)
    zoo.randomise(backbone)
    digest = backbone_digest(backbone)
    bank = bank_for(backbone, digest)
    vit = backbone.eval()
    for adapter in add_adapters(vit, 4, 0.5):
        zoo.randomise(adapter)
    path = tmp_path / "model.safetensors"
    tocom = {"r_source": 1, "trained_from": digest}
    save_model(path, vit, LABELS, model_args={"img_size": 64}, tocom=tocom)

    loaded = load_model(path)
    served, trained = CompressedViT(loaded.vit), CompressedViT(vit)
    images = zoo.photos(vit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merger = WeightMerger(served, bank, loaded.r_source, trained_from=loaded.trained_from)
    pristine = [block.attn.qkv.weight.clone() for block in vit.blocks]
    dim = vit.embed_dim
    for r in (1, 3, 0, 1):
        merger.set_target(r)
        delta = bank.delta(1, r)
        for number, block in enumerate(vit.blocks):
            query, value = delta[number]
            block.attn.qkv.weight[:dim] = pristine[number][:dim] + query
            block.attn.qkv.weight[2 * dim :] = pristine[number][2 * dim :] + value
        assert torch.equal(served(images, r), trained(images, r)), r
    assert loaded.digest != digest, "the adapters are part of what it computes"


@pytest.mark.parametrize("name", ["test_vit", "test_vit3", "deit3_small_patch16_224"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@torch.inference_mode()
def test_round_trip_through_a_file(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """Bottleneck and scale come back with the weights, and with another image size."""
    vit = timm.create_model(name, num_classes=7, depth=2)
    zoo.randomise(vit)
    for adapter in add_adapters(vit.eval(), 5, 10.0):
        zoo.randomise(adapter)
    path = tmp_path / "model.safetensors"
    save_model(path, vit, LABELS, dtype=dtype, model_args={"depth": 2})
    loaded = load_model(path)
    vit = vit.to(dtype).float()
    images = zoo.photos(vit)
    assert torch.equal(loaded.vit(images), vit(images))
    assert adapter_config(loaded.vit) == AdapterConfig(5, 10.0)
    assert backbone_digest(loaded.vit) == loaded.digest
    other = load_model(path, img_size=64, num_classes=3)
    assert other.vit(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    again = tmp_path / "again.safetensors"
    save_model(again, other.vit, ("a", "b", "c"), model_args=other.model_args)
    assert load_model(again).input_size == (3, 64, 64)
    assert adapter_config(load_model(again).vit) == AdapterConfig(5, 10.0)
