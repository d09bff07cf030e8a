"""The Triton kernels under Triton's interpreter, for machines without a GPU.

Triton must know of it before it is imported, so that these run in a process of their own, which
``test_merging_kernels.py`` starts with ``TRITON_INTERPRET=1``; pytest does not find them by itself.
"""

import pytest
import torch
from torch import Tensor

from tests.core import zoo
from tocom_core import CompressedViT, bipartite_soft_matching, token_matching
from tocom_core.attention import key_metric
from tocom_core.merging_kernels import KernelMatching, match_keys_fused


def draw(batch: int, heads: int, tokens: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys as timm has them (heads apart), tokens and sizes."""
    generator = torch.Generator().manual_seed(tokens + dim)
    qkv = torch.randn(batch, tokens, 3, heads, dim, generator=generator)
    x = torch.randn(batch, tokens, 20, generator=generator)
    size = torch.randint(1, 40, (batch, tokens, 1), generator=generator).float()
    return qkv.permute(2, 0, 3, 1, 4)[1], x, size


@pytest.mark.parametrize(
    ("dtype", "batch", "heads", "tokens", "dim", "prefix", "r"),
    [
        (torch.float32, 2, 3, 19, 16, 1, 5),
        (torch.float32, 1, 2, 12, 12, 0, 100),  # half of all; a width that is no power of two
        (torch.float32, 1, 1, 70, 20, 2, 9),  # more than a tile of each set
        (torch.float32, 2, 1, 3, 16, 1, 1),  # one token in each set
        (torch.float32, 1, 1, 4, 16, 1, 4),
        (torch.float16, 1, 2, 13, 12, 5, 2),  # many prefix tokens
        (torch.bfloat16, 1, 2, 12, 12, 1, 3),
    ],
)
def test_kernels_give_what_pytorch_gives(
    dtype: torch.dtype, batch: int, heads: int, tokens: int, dim: int, prefix: int, r: int
) -> None:
    """The same rows, the same sizes, the same means bit for bit, with sizes and without.

    But for bfloat16, to which the interpreter cuts where a GPU rounds.
    """
    off = 2.0**-7 if dtype == torch.bfloat16 else 0.0
    key, x, size = draw(batch, heads, tokens, dim)
    key, x = key.to(dtype), x.to(dtype)
    fused = match_keys_fused(key, r, prefix)
    plain = bipartite_soft_matching(key_metric(key), r, prefix)
    assert fused.removed == plain.removed
    assert fused.rows is not None
    assert plain.rows is not None
    assert torch.equal(fused.rows, plain.rows)
    for sizes in (None, size):
        (merged, counts), (expected, totals) = fused.merge(x, sizes), plain.merge(x, sizes)
        assert merged.dtype == dtype
        assert counts.dtype == torch.float32
        torch.testing.assert_close(merged, expected, rtol=off, atol=0)
        assert torch.equal(counts, totals)
        assert torch.equal(fused.unmerge(expected), plain.unmerge(expected))


@pytest.mark.parametrize("prefix", [1, 2])
def test_ties_go_to_the_lower_index(prefix: int) -> None:
    """Among equal tokens the first A patches merge, all into the first B patch, over tiles too."""
    tokens, r = prefix + 70, 7
    key = torch.full((1, 1, tokens, 16), 0.3)
    x = torch.arange(tokens, dtype=torch.float32).view(1, -1, 1)
    merged, size = match_keys_fused(key, r, prefix).merge(x)
    patches = range(prefix, tokens)
    set_a = [n for n in patches if n % 2 == 0]
    set_b = [n for n in patches if n % 2 == 1]
    mean = (sum(set_a[:r]) + set_b[0]) / (r + 1)
    assert merged.flatten().tolist() == [*range(prefix), *set_a[r:], mean, *set_b[1:]]
    assert float(size.max()) == r + 1


def test_a_token_without_length_is_like_nothing() -> None:
    """Zero keys do no harm: they are similar to nothing and divide by nothing."""
    key, x, _ = draw(1, 2, 25, 16)
    key = key.clone()
    key[:, :, 4] = 0
    rows = match_keys_fused(key, 5, 1).rows
    expected = bipartite_soft_matching(key_metric(key), 5, 1).rows
    assert rows is not None
    assert expected is not None
    assert torch.equal(rows, expected)
    assert bool(x.isfinite().all())


def test_no_numbers_stay_where_they_are() -> None:
    """NaN in one image reaches no other one, and nothing is written out of place."""
    key, x, size = draw(2, 2, 25, 16)
    key, x = key.clone(), x.clone()
    plain = bipartite_soft_matching(key_metric(key), 5, 1).merge(x, size)
    key[0], x[0] = torch.nan, torch.nan
    merged, _ = match_keys_fused(key, 5, 1).merge(x, size)
    assert bool(merged[0].isnan().all())
    assert torch.equal(merged[1], plain[0][1])


def test_gradients_go_through_pytorch() -> None:
    """The kernel has no backward pass, so that training takes the operations that have one."""
    key, x, size = draw(2, 2, 25, 16)
    x.requires_grad_()
    match_keys_fused(key, 5, 1).merge(x, size)[0].sum().backward()
    assert x.grad is not None
    copy = x.detach().clone().requires_grad_()
    bipartite_soft_matching(key_metric(key), 5, 1).merge(copy, size)[0].sum().backward()
    assert copy.grad is not None
    assert torch.equal(x.grad, copy.grad)


def test_tokens_need_not_lie_in_order() -> None:
    """Tokens with gaps between them are read by their strides."""
    key, x, size = draw(2, 2, 25, 16)
    apart = torch.cat([x, x], dim=2)[:, :, ::2]
    fused = match_keys_fused(key, 5, 1)
    assert torch.equal(fused.merge(apart, size)[0], fused.merge(apart.contiguous(), size)[0])


def test_nothing_to_merge_changes_nothing() -> None:
    """r=0 gives back the very tokens."""
    key, x, _ = draw(1, 2, 9, 16)
    assert match_keys_fused(key, 0, 1).merge(x)[0] is x


def test_a_model_with_kernels_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching and merging by kernels in every block, several prefix tokens."""
    vit = zoo.plain(reg_tokens=2, depth=2)()
    zoo.randomise(vit)
    model = CompressedViT(vit.eval())
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images, 3)
        used: list[type] = []

        def noted(key: Tensor, r: int, prefix: int) -> KernelMatching:
            matching = match_keys_fused(key, r, prefix)
            assert isinstance(matching, KernelMatching)
            used.append(type(matching))
            return matching

        monkeypatch.setattr(token_matching, "kernels_fit", lambda *_: True)
        monkeypatch.setattr(token_matching, "kernels_work", lambda _: True)
        monkeypatch.setattr("tocom_core.merging_kernels.match_keys_fused", noted)
        actual = model(images, 3)
    assert used == [KernelMatching] * 2
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_trial_accepts_what_agrees() -> None:
    """What decides on a GPU whether the kernels are used says yes to right ones, no to wrong."""
    cpu = torch.device("cpu")
    assert token_matching._trial(match_keys_fused, cpu)
    assert not token_matching._trial(lambda key, r, p: match_keys_fused(key, r - 1, p), cpu)
