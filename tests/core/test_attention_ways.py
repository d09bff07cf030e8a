"""Every way to proportional attention gives the same, whatever the sizes, in every precision."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from tests.core import reference, zoo
from tocom_core import CompressedViT
from tocom_core.attention_ways import (
    SPLIT_ERROR,
    WAYS,
    AskedWay,
    Way,
    choose_way,
    flex,
    padded_head,
    split_log_size,
    weighted_attention,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-5,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}
"""Largest error of outputs of size 1 or so, for queries and keys rounded to that precision."""
TOLERANCE_OF_PRODUCTS = {torch.bfloat16: 1e-1, torch.float16: 1.2e-2}
"""Products round each score; fused kernels do not."""


def tolerance(way: Way, dtype: torch.dtype) -> float:
    """How far off a way may be."""
    wide = TOLERANCE_OF_PRODUCTS if way == "products" else {}
    return wide.get(dtype, TOLERANCE[dtype])


def draw(head_dim: int, prefix: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and sizes from 1 to 196, the prefix of size 1."""
    generator = torch.Generator().manual_seed(head_dim + prefix)
    shape = (2, 3, prefix + 40, head_dim)
    query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
    size = torch.randint(1, 10, (2, prefix + 40, 1), generator=generator).float()
    size[:, :prefix] = 1
    size[0, -1], size[1, prefix], size[1, -2] = 196, 196, 150
    size = size.to(torch.promote_types(dtype, torch.float32))
    # As timm has them: views of one product, heads apart.
    qkv = torch.stack([2 * query, 2 * key, value]).transpose(2, 3).to(dtype).contiguous()
    query, key, value = qkv.transpose(2, 3).unbind(0)
    return query, key, value, size


def naive(query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> Tensor:
    """Written out in float64: each key counts as often as its size says."""
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = scores.exp() * size.double().transpose(1, 2).unsqueeze(1)
    return weights / weights.sum(dim=-1, keepdim=True) @ value


def run(way: Way, query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> Tensor:
    """``weighted_attention``; FlexAttention as plain PyTorch, for a CPU cannot fuse it."""
    if way != "flex":
        return weighted_attention(way, query, key, value, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        return flex(query, key, value, size, flex_attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("head_dim", "prefix"), [(64, 1), (12, 0), (80, 5)])
@torch.no_grad()
def test_every_way_is_the_definition(
    way: Way, dtype: torch.dtype, head_dim: int, prefix: int
) -> None:
    """Sizes up to 196, heads whose width is no multiple of eight, prefix tokens."""
    tensors = draw(head_dim, prefix, dtype)
    before = [tensor.clone() for tensor in tensors]
    out = run(way, *tensors)
    assert out.dtype == dtype
    assert out.shape == tensors[0].shape
    assert float((out.double() - naive(*tensors)).abs().max()) <= tolerance(way, dtype)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)), "inputs stay"


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_sizes_matter(way: Way) -> None:
    """The tolerances above are far from what leaving the sizes out would cost."""
    query, key, value, size = draw(64, 1, torch.bfloat16)
    weighted = run(way, query, key, value, size)
    plain = run(way, query, key, value, torch.ones_like(size))
    assert float((weighted - plain).abs().max()) > 0.5


@pytest.mark.parametrize("dtype", SPLIT_ERROR, ids=str)
@pytest.mark.parametrize("head_dim", [12, 64, 80])
def test_the_split_keeps_to_its_bound(dtype: torch.dtype, head_dim: int) -> None:
    """High and low part give ``log s`` back within the stated error for sizes 1 to 196.

    One part alone does not: the bound says something.
    """
    size = torch.arange(1.0, 197.0, dtype=torch.float64).view(1, -1, 1)
    high, low = split_log_size(size, head_dim, dtype)
    assert high.dtype == low.dtype == dtype
    exact = size.log()
    smallest = 2.0**-24 if dtype == torch.float16 else 0.0  # what float16 can still tell apart
    allowed = SPLIT_ERROR[dtype] * exact + smallest / math.sqrt(head_dim)
    both = (high.double() + low.double()) / math.sqrt(head_dim)
    assert bool(((both - exact).abs() <= allowed).all())
    alone = high.double() / math.sqrt(head_dim)
    assert float((alone - exact).abs().max()) > 50 * float(allowed.max())


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "asked", "way"),
    [
        ("cpu", torch.float32, 64, "auto", "bias"),
        ("cpu", torch.bfloat16, 64, "auto", "bias"),
        ("cuda", torch.bfloat16, 64, "auto", "bias"),
        ("cuda", torch.float16, 64, "channels", "channels"),
        ("cuda", torch.float16, 256, "channels", "bias"),
        ("cuda", torch.float16, 254, "channels", "channels"),
        ("cpu", torch.float16, 256, "channels", "channels"),
        ("cuda", torch.bfloat16, 64, "flex", "flex"),
        ("cuda", torch.float64, 64, "flex", "bias"),
        ("cuda", torch.bfloat16, 12, "flex", "bias"),
        ("cpu", torch.float32, 64, "flex", "bias"),
        ("cpu", torch.bfloat16, 64, "products", "products"),
    ],
)
def test_the_choice(
    device: str, dtype: torch.dtype, head_dim: int, asked: AskedWay, way: Way
) -> None:
    """What was asked for is taken where it can run, else the bias."""
    assert choose_way(device, dtype, head_dim, asked) == way


def test_padded_heads_suit_flash_attention() -> None:
    """Two channels more at least, and a multiple of eight."""
    assert [padded_head(width) for width in (12, 62, 64, 80, 254)] == [16, 64, 72, 88, 256]


@pytest.mark.parametrize("way", ["bias", "channels", "products"])
@torch.no_grad()
def test_a_model_takes_the_way_that_it_is_told(way: AskedWay) -> None:
    """Whatever the way, the logits are those of the reference in float64."""
    vit = zoo.plain()()
    zoo.randomise(vit)
    model = CompressedViT(vit.eval())
    model.attention = way
    images = zoo.photos(vit, 3)
    expected = reference.ReferenceViT(vit)(images, 3)
    assert expected.margin > 1e-5
    actual = model(images, 3).double()
    assert float((actual - expected.logits).abs().max() / expected.logits.abs().max()) < 1e-4


def test_learning_goes_by_the_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients the asked way is left: only the bias's backward pass is fused."""
    taken: list[str] = []

    def noted(way: Way, *rest: Any) -> Tensor:
        taken.append(way)
        return weighted_attention(way, *rest)

    monkeypatch.setattr("tocom_core.attention.weighted_attention", noted)
    vit = zoo.plain()()
    model = CompressedViT(vit.eval())
    model.attention = "channels"
    images = zoo.photos(vit, 1)
    model(images, 2)
    assert set(taken) == {"bias"}
    taken.clear()
    with torch.no_grad():
        model(images, 2)
    assert set(taken) == {"channels"}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_every_way_on_a_gpu(way: Way, dtype: torch.dtype) -> None:
    """The same tolerances on the device; FlexAttention compiled."""
    tensors = draw(64, 1, dtype)
    query, key, value, size = (tensor.cuda() for tensor in tensors)
    out = weighted_attention(way, query, key, value, size).cpu()
    assert float((out.double() - naive(*tensors)).abs().max()) <= tolerance(way, dtype)


@pytest.mark.gpu
@torch.no_grad()
def test_channels_run_on_flash_attention() -> None:
    """PyTorch does not refuse them there: neither for a mask nor for the heads' width."""
    query, key, value, size = (tensor.cuda() for tensor in draw(64, 1, torch.bfloat16))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        weighted_attention("channels", query, key, value, size)


@pytest.mark.gpu
@torch.no_grad()
def test_the_bias_stays_small_on_a_gpu() -> None:
    """No ``(B, H, N, N)`` mask is made: the memory at the peak is far below it."""
    query, key, value, size = (tensor.cuda() for tensor in draw(64, 1, torch.bfloat16))
    query, key, value = (tensor.repeat(8, 1, 24, 1) for tensor in (query, key, value))
    size = size.repeat(8, 24, 1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    weighted_attention("bias", query, key, value, size)
    dense = 2 * query.shape[0] * query.shape[1] * query.shape[2] ** 2
    assert torch.cuda.max_memory_allocated() - before < dense / 2 + 4 * query.nbytes
