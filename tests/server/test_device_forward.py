"""The engine's way through a device of its own, run on the CPU where that can be."""

import asyncio
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from server import backends, replica
from server.backends import Captured, Eager, choose_backend
from server.device_forward import DeviceForward, forward_for
from server.engine import Engine
from server.errors import SettingsError
from server.forward import Forward
from server.head_start import HeadStart
from server.lanes import Lanes
from server.settings import Settings
from tests.core.judged import MEAN, SIZE, STD, model, pipeline_for
from tests.core.recorder import Recorder, uint8_images
from tocom_core.models import load_model
from tocom_core.pipeline import Pipeline
from tocom_core.pixels import Normalise

CPU = torch.device("cpu")


def limited(most: int, tried: list[int]) -> Callable[[Tensor, int], Tensor]:
    """A model that has memory for so many images."""
    compressed = model()

    def logits(pixels: Tensor, r: int) -> Tensor:
        tried.append(len(pixels))
        if len(pixels) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compressed(pixels, r)

    return logits


def forward(logits: Callable[[Tensor, int], Tensor], recorder: Recorder | None = None):
    """A `DeviceForward` on the CPU."""
    normalise = Normalise(MEAN, STD, CPU, torch.float32)
    pipeline = Pipeline(logits, normalise, SIZE, 7, CPU, capture=recorder, largest_batch=8)
    return DeviceForward(pipeline, HeadStart()), pipeline


def test_out_of_memory_is_retried_in_halves() -> None:
    """The answers are those of the whole batch, each in its place."""
    tried: list[int] = []
    halved, _ = forward(limited(2, tried))
    images = uint8_images(7, SIZE)
    expected = pipeline_for(model(), CPU, torch.float32).classify(images, 2)
    with halved.staged(images) as batch:
        found = halved.classify(batch, 2)
    torch.testing.assert_close(found, expected)
    assert tried == [7, 3, 1, 2, 4, 2, 2]


def test_no_memory_for_one_image_fails() -> None:
    """With the error as it is."""
    halved, _ = forward(limited(0, []))
    with halved.staged(uint8_images(3, SIZE)) as batch, pytest.raises(torch.OutOfMemoryError):
        halved.classify(batch, 2)


def test_other_failures_come_out_at_once() -> None:
    """A device that is lost is somebody else's to handle."""
    tried: list[int] = []

    def lost(pixels: Tensor, r: int) -> Tensor:
        tried.append(len(pixels))
        raise RuntimeError("CUDA error: device-side assert triggered")

    broken, _ = forward(lost)
    with (
        broken.staged(uint8_images(4, SIZE)) as batch,
        pytest.raises(RuntimeError, match="device-side assert"),
    ):
        broken.classify(batch, 0)
    assert tried == [4]


def test_out_of_memory_in_a_capture_runs_eagerly_and_keeps_the_answer() -> None:
    """A graph's memory comes on top; the batch itself may still have enough."""
    recorder = Recorder()
    recorder.fail = torch.OutOfMemoryError("CUDA out of memory")
    device, pipeline = forward(limited(8, []), recorder)
    images = uint8_images(3, SIZE)
    device.prepare(3, 2)
    with device.staged(images) as batch:
        found = device.classify(batch, 2)
    torch.testing.assert_close(found, pipeline_for(model(), CPU, torch.float32).classify(images, 2))
    assert pipeline.graphs is not None and len(pipeline.graphs) == 0


def test_out_of_memory_gives_up_the_graphs() -> None:
    """They hold memory that a batch may need more."""
    recorder, tried = Recorder(), []  # type: ignore[var-annotated]
    device, pipeline = forward(limited(4, tried), recorder)
    device.prepare(2, 1)
    assert pipeline.graphs is not None and len(pipeline.graphs) == 1
    with device.staged(uint8_images(6, SIZE)) as batch:
        device.classify(batch, 1)
    assert len(pipeline.graphs) == 0


def test_the_next_batch_is_let_in_before_the_end_once_times_are_known() -> None:
    """Not at the first batch of a kind, of which nobody knows how long it takes."""
    device, _ = forward(limited(8, []))
    told: list[int] = []
    for run in range(2):
        with device.staged(uint8_images(3, SIZE)) as batch:
            device.classify(batch, 2, on_part=lambda _, run=run: told.append(run))
    assert told == [1]


def test_only_cuda_has_a_pipeline() -> None:
    """Elsewhere lanes do it."""
    loaded, settings = load_model("default"), Settings()
    chosen = forward_for(Eager(model()), loaded, CPU, torch.float32, Lanes(1, 1), settings)
    assert isinstance(chosen, Forward)


def test_graphs_without_cuda_are_refused() -> None:
    """Asked for by name it is an error that says why."""
    with pytest.raises(SettingsError, match=r"need a CUDA device.*use backend 'eager' or 'auto'"):
        choose_backend("graphs", model(), Lanes(1, 1), 1, 8)


def test_auto_falls_back_where_capture_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason in the log; and takes graphs where it works."""
    monkeypatch.setattr(backends, "capture_problem", lambda model, r: None)
    assert isinstance(backends._captured_or_eager("auto", model(), 8), Captured)
    monkeypatch.setattr(backends, "capture_problem", lambda model, r: "it waits for the device")
    assert backends._captured_or_eager("auto", model(), 8).name == "eager"
    assert "backend eager: it waits for the device" in caplog.text


def test_the_engine_serves_through_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole engine with staging, graphs and two batches under way answers as without."""
    recorder = Recorder()

    def through_a_pipeline(backend, loaded, device, dtype, lanes, settings):
        normalise = Normalise(loaded.mean, loaded.std, device, dtype)
        pipeline = Pipeline(
            lambda pixels, r: backend.logits(pixels, r, whole=True),
            *(normalise, loaded.input_size, loaded.vit.num_classes, device),
            capture=recorder,
            largest_batch=settings.max_batch_size,
        )
        return DeviceForward(pipeline, HeadStart())

    settings = Settings(backend="eager", lanes=1, max_batch_size=8)
    plain = Engine(load_model("default"), None, settings)
    monkeypatch.setattr(replica, "forward_for", through_a_pipeline)
    monkeypatch.setattr(replica, "threads_in_flight", lambda device, lanes: 2)
    engine = Engine(load_model("default"), None, settings)
    images = uint8_images(8, engine.loaded.input_size)

    async def serve() -> None:
        await engine.warm_up()
        jobs = [(images[:n], r) for r in (0, 4, 8, 4, 0) for n in (3,)]
        outcomes = await asyncio.gather(*(engine.run(*job) for job in jobs))
        for (batch, r), outcome in zip(jobs, outcomes, strict=True):
            expected = plain.run_blocking(batch, r).outputs
            assert outcome.r == r
            for found, wanted in zip(outcome.outputs, expected, strict=True):
                assert found == pytest.approx(wanted, abs=1e-5)
        assert await engine.measure(4, 2) > 0

    try:
        asyncio.run(serve())
        assert recorder.recorded >= 3  # two of the warm-up, one to be measured
    finally:
        engine.close()
        plain.close()
