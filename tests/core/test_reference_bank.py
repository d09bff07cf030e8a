"""Reading the original research code's checkpoint."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tocom_core import Bank
from tocom_core.errors import BankError

K, RANK, DIM, DEPTH = 4, 3, 8, 2


def research_state(prefix: str = "") -> dict[str, Tensor]:
    """Weights under the research code's names, beside others that are of no interest here."""
    generator = torch.Generator().manual_seed(0)
    state = {f"{prefix}blocks.0.attn.qkv.weight": torch.randn(3 * DIM, DIM, generator=generator)}
    for layer in range(DEPTH):
        for p in "qv":
            place = f"{prefix}blocks.{layer}.attn.{p}_tocom"
            state[f"{place}.adapter_down.weight"] = torch.randn(K * RANK, DIM, generator=generator)
            state[f"{place}.adapter_up.weight"] = torch.randn(DIM, K * RANK, generator=generator)
    return state


def write(path: Path, state: Any) -> Path:
    """A checkpoint as the research code's training script leaves it."""
    torch.save({"model": state, "epoch": 9, "scaler": {}}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."], ids=["single process", "DDP"])
@pytest.mark.parametrize("r", range(K + 1))
def test_degree_r_enables_the_last_rows(tmp_path: Path, prefix: str, r: int) -> None:
    """``delta(0, r)`` is ``s · up[:, last r·h] @ down[last r·h]`` of the file, for q and for v."""
    state = research_state(prefix)
    path = write(tmp_path / "checkpoint.pth", state)
    bank = Bank.from_reference_checkpoint(path, num_groups=K, scaling=0.3)

    assert (bank.num_groups, bank.rank, bank.embed_dim, bank.depth) == (K, RANK, DIM, DEPTH)
    delta = bank.delta(0, r)
    for layer in range(DEPTH):
        for p, actual in zip("qv", delta[layer], strict=True):
            place = f"{prefix}blocks.{layer}.attn.{p}_tocom"
            down, up = state[f"{place}.adapter_down.weight"], state[f"{place}.adapter_up.weight"]
            first = (K - r) * RANK
            torch.testing.assert_close(actual, 0.3 * up[:, first:] @ down[first:])


def test_a_group_is_the_rows_between_two_degrees(tmp_path: Path) -> None:
    """Group i is rows ``(K−i)·h … (K−i+1)·h``, in their own order."""
    state = research_state()
    bank = Bank.from_reference_checkpoint(write(tmp_path / "c.pth", state), K)
    down = state["blocks.1.attn.v_tocom.adapter_down.weight"]
    up = state["blocks.1.attn.v_tocom.adapter_up.weight"]
    for i in range(1, K + 1):
        rows, theirs = slice((i - 1) * RANK, i * RANK), slice((K - i) * RANK, (K - i + 1) * RANK)
        lora_a, lora_b = bank.factors(1, "v")
        assert torch.equal(lora_a[rows], down[theirs])
        assert torch.equal(lora_b[:, rows], up[:, theirs])


def test_converted_bank_survives_our_own_file(tmp_path: Path) -> None:
    """What was converted can be saved and loaded, and says where it comes from."""
    bank = Bank.from_reference_checkpoint(write(tmp_path / "c.pth", research_state()), K)
    bank.save(tmp_path / "bank.safetensors")
    loaded = Bank.load(tmp_path / "bank.safetensors")
    assert loaded.digest == bank.digest
    assert loaded.scaling == 0.1
    assert loaded.provenance["file"] == "c.pth"


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    """A float16 checkpoint becomes float32 on the CPU."""
    state = {key: value.half() for key, value in research_state().items()}
    bank = Bank.from_reference_checkpoint(write(tmp_path / "c.pth", state), K)
    assert {(p.dtype, p.device.type) for p in bank.parameters()} == {(torch.float32, "cpu")}


class Malicious:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._path, "owned")


def test_a_malicious_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    """Code in the file does not run, in torch's format or in a bare pickle."""
    trap = tmp_path / "trap"
    inside = write(tmp_path / "inside.pth", {**research_state(), "extra": Malicious(trap)})
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps({"model": Malicious(trap)}, protocol=2))
    for path in (inside, bare):
        with pytest.raises(BankError, match="plain weights"):
            Bank.from_reference_checkpoint(path, K)
    assert not trap.exists()


@pytest.mark.parametrize("num_groups", [5, 24, 0, -4])
def test_a_wrong_number_of_groups_is_refused(tmp_path: Path, num_groups: int) -> None:
    """Rows that K does not divide cannot be its groups; the error names both numbers."""
    path = write(tmp_path / "c.pth", research_state())
    with pytest.raises(BankError, match=f"{K * RANK} rows.*{num_groups} groups"):
        Bank.from_reference_checkpoint(path, num_groups)


def _without(part: str) -> dict[str, Tensor]:
    return {key: value for key, value in research_state().items() if part not in key}


def _with(key: str, value: Any) -> dict[str, Any]:
    return {**research_state(), key: value}


DOWN, UP = "blocks.1.attn.q_tocom.adapter_down.weight", "blocks.1.attn.q_tocom.adapter_up.weight"
BAD_STATES: dict[str, Any] = {
    "no compensator": _without("_tocom"),
    "a layer missing": _without("blocks.0."),
    "a projection missing": _without("blocks.1.attn.v"),
    "a side missing": _without(UP),
    "sides that do not fit": _with(UP, torch.ones(DIM, 5)),
    "layers of different width": {
        **research_state(),
        DOWN: torch.ones(K * RANK, DIM + 1),
        UP: torch.ones(DIM + 1, K * RANK),
    },
    "not a matrix": _with(DOWN, torch.ones(3)),
    "not a tensor": _with(DOWN, "weights"),
    "NaN": _with(DOWN, torch.full((K * RANK, DIM), float("nan"))),
    "a tensor for a state dict": torch.ones(3),
    "a list for a state dict": [1, 2],
    "nothing": None,
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_bad_checkpoints_are_refused(tmp_path: Path, kind: str) -> None:
    """Whatever is wrong with the content is a BankError that names the file."""
    path = write(tmp_path / "c.pth", BAD_STATES[kind])
    with pytest.raises(BankError, match=r"c\.pth"):
        Bank.from_reference_checkpoint(path, K)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """No file, a folder, other bytes, an empty and a truncated file, and no 'model' inside."""
    good = write(tmp_path / "c.pth", research_state())
    noise, empty, short = tmp_path / "noise", tmp_path / "empty", tmp_path / "short"
    bare, tensor = tmp_path / "bare", tmp_path / "tensor"
    noise.write_bytes(b"not a checkpoint")
    empty.touch()
    short.write_bytes(good.read_bytes()[:200])
    torch.save(research_state(), bare)
    torch.save(torch.ones(3), tensor)
    for path in (tmp_path / "absent", tmp_path, noise, empty, short, bare, tensor):
        with pytest.raises(BankError, match=str(path)):
            Bank.from_reference_checkpoint(path, K)
