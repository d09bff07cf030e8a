"""The bank's variants for the paper's ablations: one shared group, no inversion, other ranks."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core import zoo
from tocom_core import Bank, CompressedViT, WeightMerger
from tocom_core.bank_header import PROJECTIONS, BankHeader
from tocom_core.errors import BankError
from tocom_core.models import weights_folder

K, DIM, DEPTH = 4, 8, 2
PAIRS = list(itertools.product(range(K + 1), repeat=2))
VARIANTS: dict[str, dict[str, bool]] = {
    "paper": {},
    "shared": {"shared": True},
    "no inversion": {"inversion": False},
    "shared, no inversion": {"shared": True, "inversion": False},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_bank(variant: str, seed: int = 0, **header: Any) -> Bank:
    """A bank of a variant with random factors."""
    sizes = {"arch": "", "embed_dim": DIM, "depth": DEPTH, "num_groups": K, "rank": 2}
    bank = Bank(BankHeader(**{**sizes, **VARIANTS[variant], **header}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bank


def tensors(bank: Bank, r_source: int, r_target: int) -> Tensor:
    """The deltas of all layers in one tensor ``(L, 2, D, D)``."""
    delta = bank.delta(r_source, r_target)
    return torch.stack([torch.stack(delta[layer]) for layer in sorted(delta)])


def written_out(state: dict[str, Tensor], header: BankHeader, place: str, m: int, n: int) -> Tensor:
    """``ΔW(m → n)`` in float64 as the ablations define it, one outer product at a time."""
    own = n < m and not header.inversion
    name_a, name_b = ("lora_A_lower", "lora_B_lower") if own else ("lora_A", "lora_B")
    lora_a, lora_b = state[f"{name_a}.{place}"].double(), state[f"{name_b}.{place}"].double()
    total = torch.zeros(header.embed_dim, header.embed_dim, dtype=torch.float64)
    groups = [1] if header.shared and m != n else range(min(m, n) + 1, max(m, n) + 1)
    for group in groups:
        for row in range((group - 1) * header.rank, group * header.rank):
            total += torch.outer(lora_b[:, row], lora_a[row])
    return (-header.scaling if n < m and header.inversion else header.scaling) * total


# --- What the deltas are --------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("rank", [1, 2, 4, 8])
@given(seed=st.integers(0, 99), scaling=st.sampled_from([0.01, 0.1, 0.15, 1.0]))
@settings(deadline=None, max_examples=3)
def test_delta_is_the_formula(variant: str, rank: int, seed: int, scaling: float) -> None:
    """In float64 every variant's delta is what is written, at every rank and for every pair."""
    bank = make_bank(variant, seed, rank=rank, scaling=scaling).double()
    state = bank.state_dict()
    for m, n in PAIRS:
        for layer, pair in bank.delta(m, n).items():
            for projection, actual in zip(PROJECTIONS, pair, strict=True):
                expected = written_out(state, bank.header, f"{layer}.{projection}", m, n)
                torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@each_variant
def test_antisymmetric_if_and_only_if_it_inverts(variant: str) -> None:
    """With inversion, there and back is nothing, exactly; without, it never is."""
    bank = make_bank(variant)
    for m, n in PAIRS:
        there, back = tensors(bank, m, n), tensors(bank, n, m)
        assert torch.equal(there, -back) == (bank.header.inversion or m == n), (m, n)


@each_variant
def test_which_deltas_add_up(variant: str) -> None:
    """The paper's over any stop; without inversion over one between; shared, only to nothing."""
    bank = make_bank(variant)
    for a, b, c in itertools.product(range(K + 1), repeat=3):
        if a == b or b == c:
            continue
        sums = torch.allclose(
            tensors(bank, a, c), tensors(bank, a, b) + tensors(bank, b, c), atol=1e-6
        )
        returns = bank.header.inversion and a == c  # there and back
        adds_up = not bank.header.shared and (bank.header.inversion or a < b < c or a > b > c)
        assert sums == (returns or adds_up), (a, b, c)


@pytest.mark.parametrize("variant", ["shared", "shared, no inversion"])
def test_a_shared_group_ignores_the_distance(variant: str) -> None:
    """Every pair in one direction has the same delta, which is not zero; no step has none."""
    bank = make_bank(variant)
    for pairs in ([p for p in PAIRS if p[0] < p[1]], [p for p in PAIRS if p[0] > p[1]]):
        deltas = [tensors(bank, m, n) for m, n in pairs]
        assert deltas[0].any()
        assert all(torch.equal(delta, deltas[0]) for delta in deltas)
    assert not any(tensors(bank, r, r).any() for r in range(K + 1))


@each_variant
def test_a_step_trains_its_own_groups(variant: str) -> None:
    """Only the groups between the degrees learn, in the direction's own factors.

    All others of the layer have a gradient of zero, not none: a process group waits for it.
    """
    bank = make_bank(variant)
    for m, n in ((1, 3), (3, 1)):
        bank.zero_grad(set_to_none=True)
        torch.stack(bank.layer_delta(1, m, n)).square().sum().backward()
        for lower in (False,) if bank.header.inversion else (False, True):
            here = bank.header.inversion or lower == (n < m)
            between = (
                [True] * 2 if bank.header.shared else [False, False, *[True] * 4, *[False] * 2]
            )
            for projection in PROJECTIONS:
                for factor, dim in zip(bank.factors(1, projection, lower), (1, 0), strict=True):
                    assert factor.grad is not None
                    assert factor.grad.any(dim=dim).tolist() == [here and b for b in between]


@each_variant
def test_an_untrained_variant_changes_nothing(variant: str) -> None:
    """``A`` starts random and ``B`` at zero in both directions, the same for the same seed."""
    banks = [make_bank(variant, seed) for seed in (1, 2)]
    for bank in banks:
        bank.reset_parameters(torch.Generator().manual_seed(3))
    assert banks[0].digest == banks[1].digest
    assert not any(tensors(banks[0], m, n).any() for m, n in PAIRS)
    starts = [p.detach() for name, p in banks[0].named_parameters() if name.startswith("lora_A")]
    assert all(p.abs().min() > 0 for p in starts)
    assert len({float(p[0, 0]) for p in starts}) == len(starts), "each has draws of its own"


def test_a_bank_that_inverts_has_no_factors_for_steps_down() -> None:
    """Asking for them is an error that says why."""
    with pytest.raises(BankError, match="inversion=True"):
        make_bank("shared").factors(0, "q", lower=True)


# --- The file -------------------------------------------------------------------------------------


@each_variant
def test_round_trip(tmp_path: Path, variant: str) -> None:
    """A file gives back the variant, every bit, and the same deltas."""
    path, bank = tmp_path / "bank.safetensors", make_bank(variant, scaling=0.05)
    bank.save(path)
    loaded = Bank.load(path)
    assert loaded.header == bank.header
    assert loaded.digest == bank.digest
    assert all(torch.equal(tensors(loaded, m, n), tensors(bank, m, n)) for m, n in PAIRS)


@each_variant
def test_a_file_names_only_what_differs_from_the_paper(tmp_path: Path, variant: str) -> None:
    """So an older version reads every bank but the variants, whose field it does not know."""
    path = tmp_path / "bank.safetensors"
    make_bank(variant).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tocom_bank"])
    assert {k: v for k, v in header.items() if k in ("shared", "inversion")} == VARIANTS[variant]
    assert header["format_version"] == 1


def test_files_from_before_the_variants_load_unchanged(tmp_path: Path) -> None:
    """Without the fields a bank is the paper's, under the digest that it always had."""
    width, groups, rank = 4, 3, 2
    shapes = {"A": (groups * rank, width), "B": (width, groups * rank)}
    state = {
        f"lora_{side}.{layer}.{p}": torch.arange(24.0).reshape(shape) / (2 + layer)
        for side, shape in shapes.items()
        for layer in range(2)
        for p in "qv"
    }
    header = {"format_version": 1, "arch": "test_vit", "embed_dim": width, "depth": 2}
    header |= {"num_groups": groups, "rank": rank, "scaling": 0.1, "method": "merge"}
    header |= {"prop_attn": True, "backbone_digest": "abc", "provenance": {"seed": 1}}
    save_file(state, tmp_path / "bank", metadata={"tocom_bank": json.dumps(header)})
    bank = Bank.load(tmp_path / "bank")
    assert (bank.header.shared, bank.header.inversion) == (False, True)
    assert bank.digest == "bb50f22146d8ac060286af835e54eb221248ba6ffd04fea1b8e81ceb4077afa1"
    for m, n in itertools.product(range(groups + 1), repeat=2):
        expected = written_out(state, bank.header, "1.v", m, n)
        torch.testing.assert_close(bank.delta(m, n)[1][1], expected.float())


def test_shipped_banks_are_the_paper_s() -> None:
    """The banks in the wheel load, and are no ablation."""
    paths = sorted(weights_folder().glob("*/bank.safetensors"))
    assert paths
    for path in paths:
        header = Bank.load(path).header
        assert (header.shared, header.inversion) == (False, True)


@pytest.mark.parametrize(("saved", "claimed"), list(itertools.permutations(VARIANTS, 2)))
def test_a_file_of_another_variant_is_refused(tmp_path: Path, saved: str, claimed: str) -> None:
    """A header that claims another variant than the tensors are is refused, and nothing built."""
    path = tmp_path / "bank.safetensors"
    make_bank(saved).save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tocom_bank"])
    header |= {"shared": False, "inversion": True} | VARIANTS[claimed]
    save_file(load_file(path), path, metadata={"tocom_bank": json.dumps(header)})
    with pytest.raises(BankError, match="do not fit the header") as caught:
        Bank.load(path)
    assert str(path) in str(caught.value)
    assert f"inversion={header['inversion']}" in str(caught.value)


@each_variant
def test_every_tensor_is_checked_before_a_bank_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """One missing, surplus or misshapen tensor, wherever it is: named, and nothing allocated."""
    path = tmp_path / "bank.safetensors"
    make_bank(variant).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    good = load_file(path)

    def allocate(*_: object) -> None:
        raise AssertionError("a bank was built before its tensors were checked")

    monkeypatch.setattr(Bank, "__init__", allocate)
    for name, tensor in good.items():
        without = {key: value for key, value in good.items() if key != name}
        for bad in (
            without,
            {**good, name: tensor[1:].clone()},
            {**good, f"{name}_": tensor[:1].clone()},
        ):
            save_file(bad, path, metadata=metadata)
            with pytest.raises(BankError, match=name):
                Bank.load(path)


@pytest.mark.parametrize("field", ["shared", "inversion", "prop_attn"])
@pytest.mark.parametrize("bad", [1, "yes", None], ids=repr)
def test_switches_are_true_or_false(field: str, bad: Any) -> None:
    """Anything else is refused by name."""
    with pytest.raises(BankError, match=f"{field}={bad!r} must be true or false"):
        make_bank("paper", **{field: bad})


# --- In a model -----------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_merged_weights_are_exact_and_come_back(variant: str, dtype: torch.dtype) -> None:
    """At each degree the weights are pristine plus delta; at r_source, the checkpoint's bits."""
    vit = zoo.plain(depth=DEPTH)()
    zoo.randomise(vit)
    model = CompressedViT(vit.eval().to(dtype))
    weights = [block.attn.qkv.weight for block in vit.blocks]
    pristine = [weight.detach().clone() for weight in weights]
    bank = make_bank(variant, embed_dim=32)
    for r_source in (0, 2, K):
        merger = WeightMerger(model, bank, r_source)
        for r in (K, 1, 3, 0, r_source, 2, r_source):
            merger.set_target(r)
            delta = bank.delta(r_source, r)
            for layer, (weight, before) in enumerate(zip(weights, pristine, strict=True)):
                query, value = delta[layer]
                change = torch.cat([query, torch.zeros_like(query), value])
                assert torch.equal(weight, (before.float() + change).to(dtype))
        for weight, before in zip(weights, pristine, strict=True):
            assert torch.equal(weight.view(torch.uint8), before.view(torch.uint8))
