"""Bipartite soft matching: what merges, what it becomes, and how it is undone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.core import reference
from tocom_core import bipartite_soft_matching

# Hypothesis chooses sizes and a seed; torch draws the values.
cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 3),
        "tokens": st.integers(1, 24),
        "prefix": st.integers(0, 5),
        "r": st.integers(0, 14),
        "seed": st.integers(0, 2**31),
    }
)
properties = settings(max_examples=60, deadline=None)


def draw(case: dict[str, int]) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Metric, tokens and whole sizes of a case, with its r and prefix; the prefix always fits."""
    generator = torch.Generator().manual_seed(case["seed"])
    batch, prefix = case["batch"], case["prefix"]
    tokens = case["tokens"] + prefix
    metric = torch.randn(batch, tokens, 6, generator=generator)
    x = torch.randn(batch, tokens, 5, generator=generator)
    size = torch.randint(1, 9, (batch, tokens, 1), generator=generator).float()
    size[:, :prefix] = 1
    return metric, x, size, case["r"], prefix


def removed(case: dict[str, int]) -> int:
    """How many tokens must go: r, cut to half of the patch tokens."""
    return min(case["r"], case["tokens"] // 2)


@given(cases)
@properties
def test_equals_the_reference(case: dict[str, int]) -> None:
    """Pairs, order, means and sizes are those of the loops in float64."""
    metric, x, size, r, prefix = draw(case)
    merged, merged_size = bipartite_soft_matching(metric.double(), r, prefix).merge(
        x.double(), size.double()
    )
    for image in range(len(x)):
        pairs = reference.match(list(metric[image].double().numpy()), r, prefix)
        expected, expected_size = reference.merge(
            list(x[image].double().numpy()), size[image, :, 0].tolist(), pairs, prefix
        )
        np.testing.assert_allclose(merged[image].numpy(), np.stack(expected), rtol=0, atol=1e-12)
        assert merged_size[image, :, 0].tolist() == expected_size


@given(cases)
@properties
def test_conserves_mass(case: dict[str, int]) -> None:
    """Sizes sum to what they were, and so does size times value."""
    metric, x, size, r, prefix = draw(case)
    merged, merged_size = bipartite_soft_matching(metric, r, prefix).merge(x, size)

    assert merged.shape[1] == x.shape[1] - removed(case)
    assert torch.equal(merged_size.sum(dim=1), size.sum(dim=1))
    torch.testing.assert_close(
        (merged_size * merged).sum(dim=1), (size * x).sum(dim=1), rtol=1e-5, atol=1e-4
    )


@given(cases)
@properties
def test_prefix_never_merges(case: dict[str, int]) -> None:
    """Prefix tokens come out first, bit for bit and of their own size, whatever is like them."""
    metric, x, size, r, prefix = draw(case)
    metric[:, :] = metric[:, :1]  # every token is as similar to the prefix as can be
    merged, merged_size = bipartite_soft_matching(metric, r, prefix).merge(x, size)
    assert torch.equal(merged[:, :prefix], x[:, :prefix])
    assert torch.equal(merged_size[:, :prefix], size[:, :prefix])


@given(cases)
@properties
def test_unmerge_copies_the_group_mean(case: dict[str, int]) -> None:
    """At every old position ``unmerge(merge(x))`` holds the mean of that token's group, exactly."""
    metric, x, size, r, prefix = draw(case)
    matching = bipartite_soft_matching(metric, r, prefix)
    merged, _ = matching.merge(x, size)
    restored = matching.unmerge(merged)
    assert restored.shape == x.shape
    for image in range(len(x)):
        pairs = reference.match(list(metric[image].double().numpy()), r, prefix)
        order = reference.order_after(pairs, x.shape[1], prefix)
        for position in range(x.shape[1]):
            place = order.index(pairs.get(position, position))
            assert torch.equal(restored[image, position], merged[image, place])


@given(cases)
@properties
def test_unmerge_then_merge_changes_nothing(case: dict[str, int]) -> None:
    """Merging what was just unmerged gives it back: the round trip is a projection."""
    metric, x, _, r, prefix = draw(case)
    whole = torch.randint(-8, 8, x.shape, generator=torch.Generator().manual_seed(case["seed"]))
    matching = bipartite_soft_matching(metric, r, prefix)
    kept = whole[:, : x.shape[1] - removed(case)].float()
    assert torch.equal(matching.merge(matching.unmerge(kept))[0], kept)


@given(cases)
@properties
def test_no_size_means_ones(case: dict[str, int]) -> None:
    """``size=None`` is every token standing for one patch."""
    metric, x, size, r, prefix = draw(case)
    matching = bipartite_soft_matching(metric, r, prefix)
    merged, merged_size = matching.merge(x)
    expected, expected_size = matching.merge(x, torch.ones_like(size))
    assert torch.equal(merged, expected)
    assert torch.equal(merged_size, expected_size)


@given(cases)
@properties
def test_images_do_not_see_each_other(case: dict[str, int]) -> None:
    """The matching of an image does not depend on the batch that it is in."""
    metric, x, size, r, prefix = draw(case)
    together, _ = bipartite_soft_matching(metric.double(), r, prefix).merge(x, size)
    for image in range(len(x)):
        own = slice(image, image + 1)
        alone, _ = bipartite_soft_matching(metric[own].double(), r, prefix).merge(x[own], size[own])
        torch.testing.assert_close(alone, together[own], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", [0, 1, 2, 3])
def test_ties_go_to_the_lower_index(prefix: int) -> None:
    """With all tokens equal, the first A patches merge, all into the first B patch."""
    tokens, r = prefix + 40, 7
    x = torch.arange(tokens, dtype=torch.float32).view(1, -1, 1)
    merged, size = bipartite_soft_matching(torch.ones(1, tokens, 4), r, prefix).merge(x)

    patches = range(prefix, tokens)
    set_a = [n for n in patches if n % 2 == 0]
    set_b = [n for n in patches if n % 2 == 1]
    gone, first_b = set_a[:r], set_b[0]
    expected = [*range(prefix), *set_a[r:], (sum(gone) + first_b) / (r + 1), *set_b[1:]]
    assert merged.flatten().tolist() == expected
    assert size.flatten().tolist() == [
        float(r + 1) if n == first_b else 1.0 for n in [*range(prefix), *set_a[r:], *set_b]
    ]


def test_order_is_prefix_then_a_then_b_also_without_a_class_token() -> None:
    """What is left stands as prefix, A patches, B patches, each in its own order."""
    directions = torch.eye(8)
    # Positions 2 and 3 are alike, and so are 6 and 5; the others stand alone.
    metric = directions[[0, 1, 2, 2, 4, 5, 5, 7]].unsqueeze(0)
    x = torch.arange(8.0).view(1, 8, 1)

    with_prefix, _ = bipartite_soft_matching(metric, 2, 1).merge(x)
    assert with_prefix.flatten().tolist() == [0, 4, 1, 2.5, 5.5, 7]
    without, _ = bipartite_soft_matching(metric, 2, 0).merge(x)
    assert without.flatten().tolist() == [0, 4, 1, 2.5, 5.5, 7]


def test_the_strongest_edges_merge() -> None:
    """Of several pairs, the more similar ones go first."""
    angles = torch.tensor([0.0, 0.3, 2.0, 2.1, 4.0, 4.2])
    metric = torch.stack([angles.cos(), angles.sin()], dim=-1).unsqueeze(0)
    x = torch.arange(6.0).view(1, 6, 1)
    assert bipartite_soft_matching(metric, 1, 0).merge(x)[0].flatten().tolist() == [0, 4, 1, 2.5, 5]
    assert bipartite_soft_matching(metric, 2, 0).merge(x)[0].flatten().tolist() == [0, 1, 2.5, 4.5]


def test_similarity_ignores_length() -> None:
    """The metric is normalised: a long vector is no more similar than a short one."""
    metric = torch.tensor([[[9.0, 3.0], [50.0, 50.0], [5.0, 0.1], [0.1, 0.001]]])
    x = torch.arange(4.0).view(1, 4, 1)
    # Position 2 and the tiny vector at 3 point the same way almost exactly.
    assert bipartite_soft_matching(metric, 1, 0).merge(x)[0].flatten().tolist() == [0, 1, 2.5]


@pytest.mark.parametrize(
    ("tokens", "prefix", "r", "left"),
    [
        (17, 1, 1000, 9),
        (16, 0, 1000, 8),
        (18, 1, 1000, 10),
        (2, 1, 5, 2),
        (1, 1, 5, 1),
        (9, 4, 2, 7),
    ],
)
def test_r_is_cut_to_half_of_the_patches(tokens: int, prefix: int, r: int, left: int) -> None:
    """At most half of the patch tokens go, prefix tokens not counted."""
    metric = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(0))
    assert bipartite_soft_matching(metric, r, prefix).merge(metric)[0].shape == (2, left, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    """Half-precision tokens are averaged in float32 and rounded once; sizes stay exact."""
    tokens = 4
    metric = torch.ones(1, tokens, 2, dtype=dtype)
    x = torch.tensor([1.0, 2.0, 5.0, 7.0]).view(1, 4, 1).to(dtype)
    size = torch.tensor([1000.0, 3.0, 2049.0, 1.0]).view(1, 4, 1)

    merged, merged_size = bipartite_soft_matching(metric, 2, 0).merge(x, size)

    mean = (1000 * 1 + 3 * 2 + 2049 * 5) / 3052
    assert merged.dtype == dtype
    assert merged_size.flatten().tolist() == [3052, 1]
    assert merged.flatten().tolist() == torch.tensor([mean, 7.0]).to(dtype).tolist()


def test_nothing_to_merge_returns_the_tokens_as_they_are() -> None:
    """r=0 copies nothing, and unmerging it neither."""
    x = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    matching = bipartite_soft_matching(x, 0, 1)
    merged, size = matching.merge(x)
    assert merged is x
    assert matching.unmerge(x) is x
    assert torch.equal(size, torch.ones(1, 5, 1))


def test_gradient_flows_through_merging() -> None:
    """Each token's gradient is its share of the group that it went into."""
    x = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]], requires_grad=True)
    size = torch.tensor([[[3.0], [1.0], [1.0], [1.0]]])
    metric = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    merged, _ = bipartite_soft_matching(metric, 1, 0).merge(x, size)  # 0 goes into 1
    merged.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.75, 0.25, 1.0, 1.0]
