"""Growing a bank: what it has stays as it is, and the whole is one bank."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_bank import K, make_bank, tensors
from tocom_core import Bank
from tocom_core.bank_growth import GrowingBank
from tocom_core.errors import BankError, DegreeError
from tocom_core.pair_grid import grid_of_pairs
from tocom_core.self_distillation import PairSampler

MORE = 3
degrees = st.integers(0, K + MORE)


def growing(*, inversion: bool = True) -> GrowingBank:
    """A bank that grows by `MORE` groups, all of them random."""
    base = make_bank(scaling=0.25, inversion=inversion)
    larger = make_bank(seed=1, num_groups=K + MORE, scaling=0.25, inversion=inversion)
    bank = GrowingBank(base, larger.header)
    with torch.no_grad():
        for parameter in bank.top.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    return bank


def summed(bank: GrowingBank | Bank, a: int, b: int) -> torch.Tensor:
    """The deltas of all layers."""
    return tensors({layer: bank.layer_delta(layer, a, b) for layer in range(bank.depth)})


@given(a=degrees, b=degrees, inversion=st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_grown_bank_is_what_was_trained(a: int, b: int, inversion: bool) -> None:
    """Delta and factors of the bank in training are those of the file that comes out of it."""
    bank = growing(inversion=inversion)
    grown = bank.grown()
    torch.testing.assert_close(summed(bank, a, b), summed(grown, a, b), rtol=1e-5, atol=1e-5)
    for layer in range(bank.depth):
        deltas = bank.layer_delta(layer, a, b)
        for (down, up), delta in zip(bank.layer_factors(layer, a, b), deltas, strict=True):
            torch.testing.assert_close(up @ down, delta, rtol=1e-5, atol=1e-5)


@given(a=st.integers(0, K), b=st.integers(0, K))
@settings(deadline=None, max_examples=30)
def test_what_it_had_stays_to_the_last_bit(a: int, b: int) -> None:
    """Between degrees of the old bank, the grown one is the old one."""
    bank = growing()
    assert torch.equal(summed(bank.grown(), a, b), summed(bank.base, a, b))


def test_it_begins_as_the_old_bank_at_its_highest_degree() -> None:
    """Untrained, the new groups change nothing; A is drawn anew, so that they can learn."""
    base = make_bank()
    larger = make_bank(num_groups=K + MORE)
    bank = GrowingBank(base, larger.header)
    assert torch.equal(summed(bank, 0, K + MORE), summed(base, 0, K))
    assert all(parameter.any() for parameter in bank.top.lora_A.parameters())


def test_only_the_new_groups_learn() -> None:
    """All of them get a gradient in every step, the old ones none."""
    bank = growing()
    summed(bank, 0, K + 1).sum().backward()
    assert all(parameter.grad is None for parameter in bank.base.parameters())
    assert all(parameter.grad is not None for parameter in bank.top.parameters())


def test_it_refuses_what_cannot_grow() -> None:
    """No more groups, a shared bank, a degree beyond the grown bank."""
    base = make_bank()
    with pytest.raises(BankError, match=f"has {K} groups already"):
        GrowingBank(base, base.header)
    shared = make_bank(shared=True)
    with pytest.raises(BankError, match="one group for all degrees"):
        GrowingBank(shared, make_bank(num_groups=K + 1, shared=True).header)
    with pytest.raises(DegreeError, match="0 to"):
        growing().layer_delta(0, 0, K + MORE + 1)


@pytest.mark.parametrize(("anchor", "share"), [(0, 0.5), (0, 0.0), (K + 1, 0.5)])
def test_pairs_reach_a_new_group(anchor: int, share: float) -> None:
    """Each pair has a degree above the old bank's, and each new degree is a teacher and a pupil."""
    random.seed(0)
    draw = PairSampler(K + MORE, anchor, share, above=K)
    pairs = [draw() for _ in range(2000)]
    assert all(m != n and max(m, n) > K for m, n in pairs)
    new = set(range(K + 1, K + MORE + 1))
    assert {m for m, _ in pairs} >= new
    assert {n for _, n in pairs} >= new


def test_it_is_judged_by_the_new_degrees() -> None:
    """The grid asks each quarter of the new degrees, and nothing that cannot change."""
    assert set(grid_of_pairs(20, 0, above=16)) == {
        *((0, 17), (0, 18), (0, 19), (0, 20)),
        *((20, 16), (18, 16), (20, 18)),
    }
