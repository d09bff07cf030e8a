"""With a profile of this model on this device `auto` is what the profile was measured with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from server.degrees import device_identity
from server.profiled_backend import asked_backend
from server.settings import Settings
from tests.core.test_merger import make_vit
from tocom_core import CompressedViT
from tocom_core.latency_profile import LatencyProfile, Measurement

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")

IDENTITY = {"digest": "d" * 64, "r_source": 0}
CPU = torch.device("cpu")


def stored(path: Path, backend: str, **changes: Any) -> Path:
    """A profile of two cells, measured with a backend."""
    LatencyProfile(
        device=device_identity(CPU, "float32", 2, 2, backend) | changes,
        model=IDENTITY,
        work={0: 1.0, 1: 0.9},
        measurements=[Measurement(r, 1, 0.01, spread=0.0, runs=1) for r in (0, 1)],
        accuracies=[],
        max_batch_size=1,
    ).save(path)
    return path


def asked(path: Path, model: CompressedViT | None = None, **settings: Any) -> str:
    """What is asked for with this profile."""
    given = Settings(profile=str(path), lanes=2, **settings)
    model = model or CompressedViT(make_vit()).eval()
    return asked_backend(given, CPU, 2, None, model, IDENTITY)


@pytest.mark.parametrize("backend", ["eager", "onnx"])
def test_the_profiles_backend_is_taken(tmp_path: Path, backend: str) -> None:
    """Without a trial, which could go either way."""
    assert asked(stored(tmp_path / "profile.json", backend)) == backend


def test_a_profile_of_something_else_says_nothing(tmp_path: Path) -> None:
    """Another device, another model, no file, a broken file: auto goes on to time both."""
    path = tmp_path / "profile.json"
    assert asked(path) == "auto"
    path.write_text("{")
    assert asked(path) == "auto"
    assert asked(stored(path, "onnx", threads=3)) == "auto"
    stored(path, "onnx")
    model = CompressedViT(make_vit()).eval()
    other = {**IDENTITY, "r_source": 4}
    settings = Settings(profile=str(path), lanes=2)
    assert asked_backend(settings, CPU, 2, None, model, other) == "auto"


def test_what_was_asked_for_by_name_is_taken(tmp_path: Path) -> None:
    """The profile's latencies do not apply then, which the log says elsewhere."""
    assert asked(stored(tmp_path / "profile.json", "onnx"), backend="eager") == "eager"


def test_a_backend_that_cannot_run_here_is_not_followed(tmp_path: Path) -> None:
    """A profile with ONNX Runtime, and a model without a graph; or one that is slow to start."""
    pruning = CompressedViT(make_vit(), method="prune").eval()
    path = tmp_path / "profile.json"
    assert asked(stored(path, "onnx"), pruning) == "auto"
    assert asked(stored(path, "compiled")) == "auto"
