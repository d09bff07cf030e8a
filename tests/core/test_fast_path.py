"""What makes the eager forward fast, where a change could lose it unnoticed."""

import gc

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom_core import CompressedViT
from tocom_core.attention import key_metric


@torch.no_grad()
def test_queries_and_keys_are_let_go_before_the_mlp() -> None:
    """No tensor of a query's shape is alive when an MLP starts: it would crowd the cache."""
    heads, width = 3, 8
    vit = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=heads * width, depth=2, num_heads=heads, num_classes=2
    ).eval()
    found: dict[str, int] = {"attention": 0, "mlp": 0}

    def count(where: str) -> None:
        tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor]
        found[where] += sum(t.ndim == 4 and t.shape[1::2] == (heads, width) for t in tensors)

    for block in vit.blocks:
        block.attn.q_norm.register_forward_pre_hook(lambda *_: count("attention"))
        block.mlp.register_forward_pre_hook(lambda *_: count("mlp"))
    CompressedViT(vit)(torch.zeros(1, 3, 32, 32), 3)
    assert found["attention"] > 0  # the search finds them where they are
    assert found["mlp"] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [1, 3])
def test_key_metric_points_where_the_mean_does(dtype: torch.dtype, heads: int) -> None:
    """Adding up heads changes the mean's length only, and in no less than float32."""
    key = torch.randn(2, heads, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = key.clone()
    metric = key_metric(key)
    assert metric.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(metric / heads, key.to(metric.dtype).mean(dim=1))
    assert torch.equal(key, before)
