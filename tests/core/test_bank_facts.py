"""What is told of a bank."""

from pathlib import Path

import pytest
import torch

from tocom_core.bank import Bank
from tocom_core.bank_facts import as_text, bank_facts, group_norms
from tocom_core.bank_header import BankHeader

K, DIM, DEPTH = 3, 8, 2


def filled(**changes: object) -> Bank:
    """A small bank whose parameters all matter."""
    header = BankHeader("some_vit", DIM, DEPTH, K, 2, scaling=0.5, **changes)  # type: ignore[arg-type]
    bank = Bank(header)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return bank


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [(0, 1), (1, 2), (2, 3)]),
        ({"shared": True}, [(0, 1)]),
        ({"inversion": False}, [(0, 1), (1, 2), (2, 3), (1, 0), (2, 1), (3, 2)]),
    ],
    ids=["plain", "shared", "without inversion"],
)
def test_norms_are_those_of_the_deltas(
    changes: dict[str, object], steps: list[tuple[int, int]]
) -> None:
    """Each group of the file, once, with the Frobenius norm of its delta over all layers."""
    bank = filled(**changes)
    told = group_norms(bank)
    assert [(group["r_from"], group["r_to"]) for group in told] == steps
    for group in told:
        delta = bank.delta(group["r_from"], group["r_to"])
        for number, projection in enumerate("qv"):
            whole = torch.stack([delta[layer][number] for layer in range(DEPTH)])
            assert group[projection] == pytest.approx(float(whole.norm()), rel=1e-5)


def test_facts_are_the_header_s_and_the_file_s(tmp_path: Path) -> None:
    """Sizes, method, provenance, the file's bytes."""
    bank = filled(prop_attn=False, backbone_digest="abc", provenance={"images": 7})
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    facts = bank_facts(Bank.load(path), path)
    assert facts["bytes"] == path.stat().st_size
    assert facts["parameters"] == DEPTH * 2 * 2 * K * 2 * DIM
    for name in ("arch", "embed_dim", "depth", "num_groups", "rank", "scaling", "prop_attn"):
        assert facts[name] == getattr(bank.header, name)
    assert (facts["backbone_digest"], facts["digest"]) == ("abc", bank.digest)
    assert facts["provenance"] == {"images": 7}


def test_text_says_what_the_bank_does_not_know() -> None:
    """A converted bank has no name, digest or recipe; the text says so instead of nothing."""
    header = BankHeader("", DIM, DEPTH, K, 2)
    text = as_text(bank_facts(Bank(header)), "that.safetensors")
    assert text.startswith("that.safetensors\n")
    assert "does not name" in text and "backbone      unknown" in text and "not say how" in text
    assert "2 → 3" in text
