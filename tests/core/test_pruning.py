"""Token pruning by class-token attention."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import reference
from tocom_core.pruning import class_attention, prune_tokens


@given(
    patches=st.integers(1, 20),
    prefix=st.integers(1, 4),
    r=st.integers(0, 25),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_reference(patches: int, prefix: int, r: int, seed: int) -> None:
    """The least attended patches go, the others keep their order, at least one stays."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, prefix + patches, 3, generator=generator)
    attention = torch.rand(2, prefix + patches, generator=generator)
    pruned = prune_tokens(x, attention, r, prefix)

    assert pruned.shape == (2, prefix + max(1, patches - r), 3)
    for image in range(2):
        expected = reference.prune(
            list(x[image].numpy()), attention[image].tolist(), r, prefix, reference.Margin()
        )
        assert pruned[image].tolist() == [token.tolist() for token in expected]


def test_of_equally_attended_tokens_the_lower_index_goes_first() -> None:
    """Ties are broken the same way on every machine."""
    x = torch.arange(40.0).view(1, 40, 1)
    pruned = prune_tokens(x, torch.full((1, 40), 0.025), 3, 1)
    assert pruned.flatten().tolist() == [0.0, *range(4, 40)]


def test_a_prefix_token_stays_however_little_it_is_looked_at() -> None:
    """Only patch tokens are ranked."""
    x = torch.arange(5.0).view(1, 5, 1)
    attention = torch.tensor([[0.0, 0.0, 0.5, 0.1, 0.4]])
    assert prune_tokens(x, attention, 2, 2).flatten().tolist() == [0, 1, 2]


def test_class_attention_is_the_first_row_of_the_softmax() -> None:
    """It equals the class token's row of explicit attention, averaged over heads."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 7, 4, generator=generator).unbind(0)
    rows = class_attention(query, key, 0.5)
    explicit = (query @ key.transpose(-2, -1) * 0.5).softmax(dim=-1)[:, :, 0].mean(dim=1)
    torch.testing.assert_close(rows, explicit)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(2))


def test_class_attention_of_half_precision_is_float32() -> None:
    """float16 queries and keys are ranked in float32, without overflow."""
    query = torch.full((1, 1, 3, 4), 200.0, dtype=torch.float16)
    rows = class_attention(query, query, 1.0)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.full((1, 3), 1 / 3))
