"""The bank: its mathematics, its file, and what a bad file is told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.core import reference, zoo
from tocom_core import Bank
from tocom_core.bank import backbone_digest
from tocom_core.bank_header import PROJECTIONS, BankHeader
from tocom_core.errors import BankError, DegreeError, TocomError

K, RANK, DIM, DEPTH = 6, 2, 8, 3


def make_bank(seed: int = 0, **header: Any) -> Bank:
    """A bank with random ``A`` and ``B``."""
    fields = {"arch": "test_vit", "embed_dim": DIM, "depth": DEPTH, "num_groups": K, "rank": RANK}
    bank = Bank(BankHeader(**{**fields, **header}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return bank


def tensors(delta: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
    """All deltas of all layers in one tensor."""
    return torch.stack([matrix for layer in sorted(delta) for matrix in delta[layer]])


degrees = st.integers(0, K)


@given(a=degrees, b=degrees)
@settings(deadline=None, max_examples=49)
def test_delta_is_the_sum_over_the_groups_between(a: int, b: int) -> None:
    """``delta(a, b)`` is ``±s Σ B_i A_i`` over the groups between a and b, for q and for v."""
    bank = make_bank(scaling=0.25)
    delta = bank.delta(a, b)
    assert list(delta) == list(range(DEPTH))
    for layer, pair in delta.items():
        for projection, actual in zip(PROJECTIONS, pair, strict=True):
            down, up = bank.factors(layer, projection)
            expected = reference.bank_delta(down.detach(), up.detach(), RANK, a, b, 0.25)
            assert actual.dtype == torch.float32
            assert not actual.requires_grad
            torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@given(a=degrees, b=degrees, c=degrees)
@settings(deadline=None, max_examples=100)
def test_antisymmetric_and_additive(a: int, b: int, c: int) -> None:
    """There and back is nothing, exactly; any stop on the way changes nothing within 1e-5."""
    bank = make_bank()
    assert torch.equal(tensors(bank.delta(a, b)), -tensors(bank.delta(b, a)))
    direct, by_way_of_b = (
        tensors(bank.delta(a, c)),
        tensors(bank.delta(a, b)) + tensors(bank.delta(b, c)),
    )
    assert (direct - by_way_of_b).abs().max() <= 1e-5 * max(1.0, float(direct.abs().max()))


def test_no_distance_is_no_delta() -> None:
    """From a degree to itself the delta is zero, with its full shape."""
    for layer in make_bank().delta(4, 4).values():
        assert [m.shape for m in layer] == [(DIM, DIM), (DIM, DIM)]
        assert not any(m.any() for m in layer)


def test_scaling_is_the_bank_s_own_unless_given() -> None:
    """A scaling in the call replaces the header's."""
    bank = make_bank(scaling=0.5)
    torch.testing.assert_close(
        tensors(bank.delta(0, 3, scaling=0.05)), tensors(bank.delta(0, 3)) / 10
    )
    assert not tensors(bank.delta(0, 3, scaling=0.0)).any()


def test_an_untrained_bank_changes_nothing() -> None:
    """``A`` starts random and ``B`` at zero, the same for the same seed."""
    banks = [Bank(BankHeader("test_vit", DIM, DEPTH, K, RANK)) for _ in range(2)]
    for bank in banks:
        bank.reset_parameters(torch.Generator().manual_seed(3))
    assert banks[0].digest == banks[1].digest
    assert not tensors(banks[0].delta(0, K)).any()
    assert all(banks[0].factors(layer, p)[0].any() for layer in range(DEPTH) for p in PROJECTIONS)


def test_layer_delta_is_differentiable_in_its_own_groups_only() -> None:
    """Training reaches the groups between the two degrees and no others."""
    bank = make_bank()
    query, value = bank.layer_delta(1, 2, 4)
    (query.sum() + value.sum()).backward()
    for p in PROJECTIONS:
        gradient = bank.factors(1, p)[0].grad
        assert gradient is not None
        assert (gradient.abs().sum(dim=1) > 0).tolist() == [False] * 2 * RANK + [
            True
        ] * 2 * RANK + [False] * 2 * RANK
        assert bank.factors(0, p)[0].grad is None


@pytest.mark.parametrize("bad", [-1, K + 1, 100, True, 1.0, "2", None], ids=repr)
def test_degrees_outside_0_to_k_are_refused(bad: Any) -> None:
    """Below 0 and above K there is no compensation, as source or as target; the error says K."""
    bank = make_bank()
    for source, target in ((bad, 0), (0, bad)):
        with pytest.raises(DegreeError, match=f"0 to {K}") as caught:
            bank.delta(source, target)
        assert repr(bad) in str(caught.value)
    assert issubclass(DegreeError, BankError) and issubclass(BankError, TocomError)


@pytest.mark.parametrize("field", ["embed_dim", "depth", "num_groups", "rank"])
def test_an_empty_bank_is_refused(field: str) -> None:
    """Every size must be 1 or more."""
    with pytest.raises(BankError, match="1 or more"):
        make_bank(**{field: 0})


# --- The file -------------------------------------------------------------------------------------


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    """A file gives back every field, every bit, and the same digest."""
    bank = make_bank(
        scaling=0.12,
        method="prune",
        prop_attn=False,
        backbone_digest="abc",
        provenance={"seed": 1, "data": ["x", "y"], "note": "größer"},
    )
    path = tmp_path / "new folder" / "bank.safetensors"
    bank.save(path)
    loaded = Bank.load(path)

    assert loaded.header == bank.header
    assert (loaded.num_groups, loaded.rank, loaded.scaling) == (K, RANK, 0.12)
    assert (loaded.embed_dim, loaded.depth, loaded.arch) == (DIM, DEPTH, "test_vit")
    assert (loaded.method, loaded.prop_attn, loaded.backbone_digest) == ("prune", False, "abc")
    assert loaded.provenance == {"seed": 1, "data": ["x", "y"], "note": "größer"}
    assert loaded.digest == bank.digest
    assert torch.equal(tensors(loaded.delta(1, 5)), tensors(bank.delta(1, 5)))
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"], "nothing else is left"


def test_digest_depends_on_every_parameter() -> None:
    """One changed number changes the digest; the header does not."""
    bank = make_bank()
    before = bank.digest
    assert make_bank(scaling=0.9).digest == before
    for parameter in bank.parameters():
        with torch.no_grad():
            parameter[0, 0] += 1e-3
        assert bank.digest != before
        before = bank.digest


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change a bank file's header and tensors in place."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["tocom_bank"])
    state = load_file(path)
    change(header, state)
    save_file(state, path, metadata={"tocom_bank": json.dumps(header)})


@pytest.fixture
def bank_file(tmp_path: Path) -> Path:
    """A good bank's file."""
    path = tmp_path / "bank.safetensors"
    make_bank().save(path)
    return path


def _drop(key: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda header, state: header.pop(key)


def _set(**fields: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda header, state: header.update(fields)


def _tensor(value: Tensor | None) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(header: dict[str, Any], state: dict[str, Tensor]) -> None:
        old = state.pop("lora_A.0.q")
        if value is not None:
            state["lora_A.0.q"] = value * old if value.ndim == 0 else value

    return change


BAD_FILES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], None], str]] = {
    "newer version": (_set(format_version=99), "format 99.*update"),
    "no version": (_drop("format_version"), "format_version"),
    "unknown field": (_set(colour="red"), "colour"),
    "missing field": (_drop("embed_dim"), "embed_dim"),
    "size is a word": (_set(depth="three"), "depth"),
    "size is not whole": (_set(rank=1.5), "rank"),
    "scaling is a word": (_set(scaling="much"), "scaling"),
    "scaling is no number": (_set(scaling=float("nan")), "scaling"),
    "unknown method": (_set(method="fuse"), "method"),
    "wrong width": (_set(embed_dim=DIM + 1), "do not fit"),
    "wrong rank": (_set(rank=RANK + 1), "do not fit"),
    "wrong depth": (_set(depth=DEPTH + 1), "do not fit"),
    "absurd size": (_set(num_groups=10**9, embed_dim=10**9), "do not fit"),
    "NaN": (_tensor(torch.tensor(float("nan"))), "lora_A.0.q.*not finite"),
    "infinite": (_tensor(torch.tensor(float("inf"))), "lora_A.0.q.*not finite"),
    "tensor missing": (_tensor(None), "lora_A.0.q"),
    "tensor of another shape": (_tensor(torch.ones(3)), "lora_A.0.q"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_banks_are_refused(bank_file: Path, kind: str) -> None:
    """A header or a tensor that is wrong raises BankError, which names the file and what it is."""
    change, message = BAD_FILES[kind]
    rewrite(bank_file, change)
    with pytest.raises(BankError, match=message) as caught:
        Bank.load(bank_file)
    assert str(bank_file) in str(caught.value)


def test_what_is_no_bank_at_all_is_refused(tmp_path: Path) -> None:
    """No file, a folder, other bytes, a truncated file, and a safetensors of something else."""
    bank = tmp_path / "bank.safetensors"
    make_bank().save(bank)
    noise, short, other = tmp_path / "noise", tmp_path / "short", tmp_path / "other"
    noise.write_bytes(b"not a bank at all")
    short.write_bytes(bank.read_bytes()[:-10])
    save_file({"x": torch.ones(1)}, other)
    for path in (tmp_path / "absent", tmp_path, noise, short, other):
        with pytest.raises(BankError, match=str(path)):
            Bank.load(path)


def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    """The header must be a JSON object."""
    path = tmp_path / "bank.safetensors"
    for text in ("", "[1]", "{", "7"):
        save_file({"x": torch.ones(1)}, path, metadata={"tocom_bank": text})
        with pytest.raises(BankError, match="header"):
            Bank.load(path)


def test_half_precision_files_load_as_float32(bank_file: Path) -> None:
    """A bank stored in float16 is used in float32."""
    rewrite(bank_file, lambda header, state: state.update({k: v.half() for k, v in state.items()}))
    assert {p.dtype for p in Bank.load(bank_file).parameters()} == {torch.float32}


# --- The backbone's digest ------------------------------------------------------------------------


def test_backbone_digest_ignores_the_head_and_the_dtype_it_was_stored_in() -> None:
    """Models with the same features have the same digest; any other change shows."""
    vit = zoo.build("test_vit")
    with torch.no_grad():
        for p in vit.parameters():
            p.copy_(p.half())
    digest = backbone_digest(vit)
    assert backbone_digest(vit.half()) == digest
    vit.float().reset_classifier(3)
    assert backbone_digest(vit) == digest
    with torch.no_grad():
        vit.blocks[2].mlp.fc1.bias[0] += 1
    assert backbone_digest(vit) != digest


def test_backbone_digest_counts_batch_norm_statistics() -> None:
    """A convolutional stem's running statistics decide the features too."""
    vit = zoo.build("vit_mini_conv4_32")
    digest = backbone_digest(vit)
    statistics = [b for name, b in vit.named_buffers() if name.endswith("running_mean")]
    statistics[0] += 1
    assert backbone_digest(vit) != digest
