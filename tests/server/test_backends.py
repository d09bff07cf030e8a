"""Which backend computes a batch, and that all of them compute the same."""

import logging
import time
from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from server import backends
from server.backends import SPIN_US, Backend, Compiled, Eager, Onnx, choose_backend
from server.engine import Engine
from server.errors import SettingsError
from server.lanes import Lanes
from server.settings import Settings
from tests.core import zoo
from tests.core.reference import ReferenceViT
from tests.core.test_merger import K, make_bank, make_vit
from tocom_core import CompressedViT, WeightMerger
from tocom_core.models import load_model
from tocom_core.onnx_backend import OnnxViT

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


MAKERS: dict[str, Callable[[CompressedViT], Backend]] = {
    "eager": Eager,
    "compiled": Compiled,
    "onnx, one thread": lambda model: Onnx(model, 1, 1),
    "onnx, two lanes": lambda model: Onnx(model, 2, 2, spin_us=0),
    "onnx, spinning": lambda model: Onnx(model, 2, 1, spin_us=SPIN_US),
}


@pytest.fixture(scope="module")
def judged() -> tuple[VisionTransformer, dict[int, tuple[Tensor, Tensor]]]:
    """A ViT, and per degree three random images with their logits by the float64 reference."""
    vit = zoo.build("vit_tiny")
    reference, found = ReferenceViT(vit), {}
    for r in (0, 1, 2, 5, 12):
        pixels = zoo.photos(vit, 3, seed=r)
        outcome = reference(pixels, r)
        assert outcome.margin > 1e-5, "these images have a near-tie; take another seed"
        found[r] = pixels, outcome.logits
    return vit, found


@pytest.mark.timeout(400)  # compiling takes its time on a busy machine
@pytest.mark.parametrize("name", MAKERS)
def test_every_backend_gives_the_references_answers(
    name: str, judged: tuple[VisionTransformer, dict[int, tuple[Tensor, Tensor]]]
) -> None:
    """Low, high and cut degrees, an odd batch; float32, within 2e-5 of the largest logit."""
    vit, found = judged
    backend = MAKERS[name](CompressedViT(vit).eval())
    for r, (pixels, logits) in found.items():
        for whole in (True, False):
            with torch.inference_mode():
                apart = (backend.logits(pixels, r, whole=whole) - logits).abs().max()
            assert apart < 2e-5 * logits.abs().max(), f"r={r}"


@pytest.mark.parametrize(("gain", "spins"), [(1.2, SPIN_US), (1.01, 0), (0.5, 0)])
def test_threads_spin_only_where_it_is_clearly_faster(
    model: CompressedViT, monkeypatch: pytest.MonkeyPatch, gain: float, spins: int
) -> None:
    """By what was timed; a single thread has nobody to wait for, and nothing is timed."""
    made: list[int] = []

    def noted(model: CompressedViT, threads: int, spin_us: int = 0) -> OnnxViT:
        made.append(spin_us)
        return OnnxViT(model, threads, spin_us)

    monkeypatch.setattr(backends, "OnnxViT", noted)
    monkeypatch.setattr(backends, "can_spin", lambda: True)
    monkeypatch.setattr(backends, "times_faster", lambda *args: gain)
    backend = Onnx(model, threads=2, lanes=2)
    assert backend._whole._spin_us == spins
    assert backend._part._spin_us == 0
    made.clear()
    Onnx(model, threads=1, lanes=1)
    assert made == [0]


def test_auto_takes_the_faster_one(
    model: CompressedViT, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By what was timed, with a word in the log."""
    caplog.set_level(logging.INFO)
    for gain, name in ((1.5, "onnx"), (0.5, "eager")):
        monkeypatch.setattr(backends, "times_faster", lambda *args, gain=gain: gain)
        assert choose_backend("auto", model, Lanes(1, 1), 1, 8).name == name
        assert f"backend {name}:" in caplog.text


def test_auto_really_times_both(model: CompressedViT, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one backend made slow by hand the other is taken."""
    logits = Onnx.logits

    def slow(self: Onnx, pixels: torch.Tensor, r: int, *, whole: bool) -> torch.Tensor:
        time.sleep(0.2)  # longer than a busy machine holds PyTorch up
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
    names = ["eager", "onnx", "compiled"]
    engines = [Engine(load_model("default"), None, Settings(backend=name)) for name in names]
    try:
        assert [engine.device_identity["backend"] for engine in engines] == names
        assert [engine.backend for engine in engines] == names
        size = engines[0].loaded.input_size
        image = torch.randint(0, 256, size, dtype=torch.uint8)
        answers = [engine.run_blocking([image] * 3, 4).outputs for engine in engines[:2]]
        for one, other in zip(*answers, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    finally:
        for engine in engines:
            engine.close()
