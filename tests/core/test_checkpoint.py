"""Reading model files: what they hold, and that nothing in them ever runs."""

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tocom_core import Bank
from tocom_core.checkpoint import nearest, read_checkpoint, write_safetensors
from tocom_core.errors import BankError, CheckpointError

STATE = {"head.weight": torch.ones(2, 3), "head.bias": torch.zeros(2)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Same names, same values."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_safetensors_with_a_config_in_its_header(tmp_path: Path) -> None:
    """The header's config wins over a config.json beside the file."""
    path = tmp_path / "m.safetensors"
    save_file(STATE, path, metadata={"config": json.dumps({"architecture": "test_vit"})})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit2"}))
    state, config = read_checkpoint(path)
    assert equal(state, STATE)
    assert config == {"architecture": "test_vit"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_config_json_beside_the_file(tmp_path: Path, suffix: str) -> None:
    """A file that says nothing itself is described by the config.json in its folder."""
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        save_file(STATE, path)
    assert read_checkpoint(path)[1] == {}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit2"}))
    state, config = read_checkpoint(path)
    assert equal(state, STATE)
    assert config == {"architecture": "test_vit2"}


PREFIXED = {f"module.{key}": value for key, value in STATE.items()}
ARGUMENTS = argparse.Namespace(model="test_vit", lr=0.1, opt_betas=None, tags=["a", "b"])
PICKLES: dict[str, tuple[Any, dict[str, str]]] = {
    "plain": (STATE, {}),
    "ordered": (nn.Linear(3, 2).state_dict(), {}),
    "model": ({"model": STATE, "epoch": 3}, {}),
    "state_dict": ({"state_dict": STATE, "optimizer": {"lr": 0.1}}, {}),
    "timm": (
        {"epoch": 1, "arch": "test_vit", "state_dict": STATE, "args": ARGUMENTS, "version": 2},
        {"architecture": "test_vit"},
    ),
    "timm with EMA": (
        {"arch": "test_vit", "state_dict": {"x": torch.ones(1)}, "state_dict_ema": STATE},
        {"architecture": "test_vit"},
    ),
    "DDP": ({"model": PREFIXED}, {}),
    "compiled": ({"model": {f"_orig_mod.{k}": v for k, v in PREFIXED.items()}}, {}),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_of_training_scripts(tmp_path: Path, kind: str) -> None:
    """Weights are found where training scripts put them; averaged ones are preferred."""
    content, expected_config = PICKLES[kind]
    path = tmp_path / "last.pth.tar"
    torch.save(content, path)
    state, config = read_checkpoint(path)
    assert equal(state, dict(content) if kind == "ordered" else STATE)
    assert config == expected_config


class Malicious:
    """A pickle that creates a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self._path, "owned")


def test_a_malicious_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    """Code in the file does not run, in torch's format, in a bare pickle, or in the namespace."""
    trap = tmp_path / "trap"
    files = [tmp_path / name for name in ("inside.pth", "bare.pth", "arguments.pth")]
    torch.save({"model": STATE, "extra": Malicious(trap)}, files[0])
    files[1].write_bytes(pickle.dumps(Malicious(trap), protocol=2))
    torch.save({"model": STATE, "args": argparse.Namespace(x=Malicious(trap))}, files[2])
    for path in files:
        with pytest.raises(CheckpointError, match="never loaded"):
            read_checkpoint(path)
    assert not trap.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    """A file that needs a class to be rebuilt is refused with what to do instead."""
    path = tmp_path / "whole.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"convert it to \.safetensors"):
        read_checkpoint(path)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    """Every unreadable file is a CheckpointError that names it."""
    good = tmp_path / "good.safetensors"
    save_file(STATE, good)
    torch.save(STATE, tmp_path / "good.pth")
    broken = {
        "noise.safetensors": b"not a model",
        "short.safetensors": good.read_bytes()[:-4],
        "empty.safetensors": b"",
        "noise.pth": b"not a model",
        "short.pth": (tmp_path / "good.pth").read_bytes()[:100],
        "empty.pth": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.pth").mkdir()
    for name in [*broken, "folder.pth", "absent.pth", "absent.safetensors"]:
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [torch.ones(3), [1, 2], "text", {"a": 1}, {}], ids=repr)
def test_files_without_weights_are_refused(tmp_path: Path, content: Any) -> None:
    """A pickle must hold a dict with at least one tensor."""
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"m\.pth"):
        read_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize(
    "text", ["{", "[1]", "7", "\udcff"], ids=["cut", "list", "number", "bytes"]
)
def test_a_broken_config_is_refused(tmp_path: Path, text: str) -> None:
    """A config that is no JSON object is a CheckpointError, in the header and beside the file."""
    beside, inside = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(STATE, beside)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(beside)
    if text.isascii():
        save_file(STATE, inside, metadata={"config": text})
        with pytest.raises(CheckpointError, match=r"b\.safetensors"):
            read_checkpoint(inside)


@given(content=st.binary(max_size=64), suffix=st.sampled_from([".pth", ".safetensors"]))
@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_random_bytes_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    """No content of a file makes reading fail in any other way than with our own errors."""
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    with pytest.raises(BankError):
        Bank.load(path)
    with pytest.raises(BankError):
        Bank.from_reference_checkpoint(path)


def test_hint_at_the_nearest_name() -> None:
    """A misspelt architecture is answered with the one that was meant."""
    assert nearest("vit_tiny_patch16_244") == "; did you mean 'vit_tiny_patch16_224'?"
    assert nearest("@") == ""


def test_written_files_can_be_read_by_other_users(tmp_path: Path) -> None:
    """A server runs as another user than the one who trained; nothing partial stays behind."""
    path = tmp_path / "new" / "model.safetensors"
    write_safetensors(path, {"weight": torch.ones(2)}, {"config": "{}"})
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    assert read_checkpoint(path)[0]["weight"].tolist() == [1.0, 1.0]
