"""Which backend computes a batch, and that all of them compute the same."""

import logging
import time

import pytest
import torch

from server import backends
from server.backends import Eager, Onnx, choose_backend
from server.engine import Engine
from server.errors import SettingsError
from server.lanes import Lanes
from server.settings import Settings
from tests.core import zoo
from tests.core.test_merger import K, make_bank, make_vit
from tocom_core import CompressedViT, WeightMerger
from tocom_core.models import load_model

pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")


@pytest.fixture
def model() -> CompressedViT:
    """Two blocks of width 32."""
    return CompressedViT(make_vit()).eval()


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_backends_agree_on_weights_that_switch(
    model: CompressedViT, count: int, threads: int
) -> None:
    """Whole batches and parts, before and after a switch."""
    pair = Eager(model), Onnx(model, threads, lanes=2 if threads == 2 else 1)
    merger = WeightMerger(model, make_bank())
    pixels = torch.randn(count, 3, 32, 32)
    for r in (0, 3, K):
        merger.set_target(r)
        for whole in (True, False):
            with torch.inference_mode():
                expected, found = (one.logits(pixels, r, whole=whole) for one in pair)
            assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_auto_takes_the_faster_one(
    model: CompressedViT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By what was timed, with a word in the log."""
    caplog.set_level(logging.INFO)
    for log_gain, name in ((0.5, "onnx"), (-0.5, "eager")):
        monkeypatch.setattr(backends, "_log_gain", lambda *args, gain=log_gain: gain)
        assert choose_backend("auto", model, Lanes(1, 1), 1, 8).name == name
        assert f"backend {name}:" in caplog.text


def test_auto_really_times_both(model: CompressedViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one backend made slow by hand the other is taken."""
    logits = Onnx.logits

    def slow(self: Onnx, pixels: torch.Tensor, r: int, *, whole: bool) -> torch.Tensor:
        time.sleep(0.05)
        return logits(self, pixels, r, whole=whole)

    monkeypatch.setattr(Onnx, "logits", slow)
    assert choose_backend("auto", model, Lanes(2, 2), 2, 8).name == "eager"


def test_what_onnx_cannot_run() -> None:
    """Asked for by name it is an error that says why; auto stays with PyTorch."""
    model = CompressedViT(zoo.ASSEMBLED["gated"]().eval())
    assert choose_backend("auto", model, Lanes(1, 1), 1, 8).name == "eager"
    with pytest.raises(SettingsError, match=r"gated attention.*use backend 'eager'"):
        choose_backend("onnx", model, Lanes(1, 1), 1, 8)


def test_the_engine_says_what_it_uses() -> None:
    """A profile of one backend is none of another: it is part of the device's identity."""
    names = ["eager", "onnx"]
    engines = [Engine(load_model("default"), None, Settings(backend=name)) for name in names]
    try:
        assert [engine.device_identity["backend"] for engine in engines] == names
        assert [engine.backend for engine in engines] == names
        size = engines[0].loaded.input_size
        image = torch.randint(0, 256, size, dtype=torch.uint8)
        answers = [engine.run_blocking([image] * 3, 4).outputs for engine in engines]
        for one, other in zip(*answers, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    finally:
        for engine in engines:
            engine.close()
