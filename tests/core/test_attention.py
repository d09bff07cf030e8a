"""Proportional attention with a timm layer's own parameters."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from timm.layers import LayerNorm, RmsNorm
from timm.layers.attention import Attention

from tests.core import reference, zoo
from tocom_core.attention import proportional_attention
from tocom_core.attention_ways import log_size_bias

LAYERS: dict[str, Callable[[], Attention]] = {
    "plain": partial(Attention, 12, num_heads=3, qkv_bias=True),
    "no biases": partial(Attention, 12, num_heads=2, proj_bias=False),
    "qk_norm": partial(Attention, 12, num_heads=3, qk_norm=True, norm_layer=RmsNorm),
    "output norm": partial(Attention, 12, num_heads=3, scale_norm=True, norm_layer=LayerNorm),
    "gated": partial(Attention, 12, num_heads=3, qkv_bias=True, gated=True),
    "narrow heads": partial(Attention, 12, num_heads=2, attn_head_dim=4),
}


def layer(kind: str) -> Attention:
    """One of ``LAYERS``, in eval mode, with random parameters."""
    attn = LAYERS[kind]()
    zoo.randomise(attn)
    return attn.eval()


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_equals_explicit_softmax_with_log_size(kind: str) -> None:
    """The output is ``softmax(QKᵀ/√d + log s) V``, written out query by query."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 12, generator=generator, dtype=torch.float64)
    size = torch.randint(1, 30, (2, 9, 1), generator=generator).double()
    attn = layer(kind).double()
    for sizes in (size, None):
        attended = proportional_attention(attn, x, sizes)
        for image in range(2):
            expected = reference.self_attention(
                attn, list(x[image].numpy()), None if sizes is None else sizes[image, :, 0].tolist()
            )
            np.testing.assert_allclose(attended.out[image], np.stack(expected.out), atol=1e-10)
            np.testing.assert_allclose(attended.query[image], np.array(expected.query), atol=1e-10)
            np.testing.assert_allclose(attended.key[image], np.array(expected.key), atol=1e-10)


@pytest.mark.parametrize("kind", LAYERS)
@torch.no_grad()
def test_without_sizes_it_is_timm(kind: str) -> None:
    """No sizes, or all sizes 1, is timm's own forward."""
    attn = layer(kind)
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(proportional_attention(attn, x).out, attn(x))
    torch.testing.assert_close(proportional_attention(attn, x, torch.ones(2, 9, 1)).out, attn(x))


@torch.no_grad()
def test_a_token_of_size_s_counts_like_s_copies() -> None:
    """What proportional attention is for: three equal tokens may become one of size 3."""
    attn = layer("plain").double()
    x = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    copies = torch.cat([x, x[:, 3:], x[:, 3:]], dim=1)
    size = torch.tensor([1.0, 1, 1, 3], dtype=torch.float64).view(1, 4, 1)
    merged = proportional_attention(attn, x, size).out
    torch.testing.assert_close(merged, proportional_attention(attn, copies).out[:, :4])


def test_dropout_is_honoured_in_training() -> None:
    """Attention and projection dropout act in training mode, and only there."""
    x = torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(0))
    for rates in ({"attn_drop": 0.5}, {"proj_drop": 0.5}):
        attn = Attention(12, num_heads=3, **rates)
        torch.manual_seed(0)
        attn.train()
        assert not torch.equal(
            proportional_attention(attn, x).out, proportional_attention(attn, x).out
        )
        attn.eval()
        assert torch.equal(proportional_attention(attn, x).out, proportional_attention(attn, x).out)


def test_bias_is_the_logarithm_as_a_broadcast_mask() -> None:
    """``(B, N, 1)`` sizes become ``(B, 1, 1, N)``: no head and no query dimension is stored."""
    bias = log_size_bias(torch.tensor([[[1.0], [8.0]]]), torch.float16)
    assert bias.shape == (1, 1, 1, 2)
    assert bias.dtype == torch.float16
    assert bias.flatten().tolist() == pytest.approx([0.0, np.log(8)], abs=1e-3)
