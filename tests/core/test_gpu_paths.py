"""The GPU's own paths against the float64 reference, on a GPU."""

import threading

import pytest
import torch

from tests.core.judged import (
    DEGREES,
    SIZE,
    TOLERANCE,
    judged,
    model,
    pipeline_for,
    worst,
)
from tests.core.recorder import uint8_images
from tests.core.test_merger import K, make_bank
from tocom_core import WeightMerger
from tocom_core.cuda_graphs import EAGER_FIRST, CudaCapture, capture_problem
from tocom_core.pipeline import Pipeline
from tocom_core.precision import PRECISIONS, PrecisionName, use_precision

pytestmark = pytest.mark.gpu

LONG_S = 60.0
PATHS = ["eager", "graphs"]


def gpu() -> torch.device:
    """The first one."""
    return torch.device("cuda", 0)


def gpu_pipeline(precision: PrecisionName = "float32", path: str = "graphs") -> Pipeline:
    """The model of `judged` on the GPU."""
    dtype = use_precision(precision, gpu()).dtype
    capture = CudaCapture(gpu()) if path == "graphs" else None
    return pipeline_for(model(), gpu(), dtype, capture=capture)


@pytest.fixture(autouse=True)
def exact_products_afterwards():
    """How float32 is multiplied is a setting of the process."""
    yield
    PRECISIONS["float32"].apply(gpu())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_every_path_and_precision_gives_the_reference_s_answers(
    precision: PrecisionName, path: str
) -> None:
    """All degrees and odd batch sizes, within what the precision can tell."""
    pipeline = gpu_pipeline(precision, path)
    for r in DEGREES:
        for count in (1, 3, 5):
            pipeline.prepare(count, r)
        assert worst(pipeline, r, precision, (1, 3, 5)) <= TOLERANCE[precision], f"r={r}"
    if pipeline.graphs is not None:
        assert len(pipeline.graphs) == 3 * len(DEGREES)  # none of them fell back to eager


def test_graphs_of_all_degrees_run_in_any_order() -> None:
    """They share a memory pool, and none disturbs another's answer."""
    pipeline, plain = gpu_pipeline(), gpu_pipeline(path="eager")
    for count in (5, 1, 8):
        for r in DEGREES:
            pipeline.prepare(count, r)
    cells = [(r, n) for r in DEGREES for n in (1, 5, 8)]
    generator = torch.Generator().manual_seed(0)
    for index in torch.randint(0, len(cells), (60,), generator=generator).tolist():
        r, count = cells[index]
        images = judged(r, "float32").images[:count]
        found, expected = pipeline.classify(images, r), plain.classify(images, r)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_switch_of_the_weights_needs_no_new_graph() -> None:
    """In place, by the merger, on the stream on which batches compute."""
    compressed = model().to(gpu())
    merger = WeightMerger(compressed, make_bank())
    graphs = pipeline_for(compressed, gpu(), torch.float32, capture=CudaCapture(gpu()))
    eager = pipeline_for(compressed, gpu(), torch.float32)
    images = uint8_images(3, SIZE)
    for r in (0, 3, K):
        graphs.prepare(3, r)
    assert graphs.graphs is not None
    before = len(graphs.graphs)
    seen: dict[int, torch.Tensor] = {}
    for r in (0, 3, K, 3, 0, K) * 3:
        merger.set_target(r)
        found = graphs.classify(images, r)
        torch.testing.assert_close(found, eager.classify(images, r), atol=1e-5, rtol=0)
        torch.testing.assert_close(found, seen.setdefault(r, found), atol=1e-5, rtol=0)
    assert len(graphs.graphs) == before == 3
    assert not torch.allclose(seen[0], seen[3], atol=1e-4)


def test_graphs_are_captured_lazily() -> None:
    """After a few eager batches of a cell, in the middle of traffic."""
    pipeline = gpu_pipeline()
    assert pipeline.graphs is not None
    for done in range(EAGER_FIRST + 2):
        assert worst(pipeline, 2, "float32", (5,)) <= TOLERANCE["float32"]
        assert len(pipeline.graphs) == (done >= EAGER_FIRST)


def test_two_threads_stage_launch_and_capture_beside_each_other() -> None:
    """As the engine's do: what each gets is its own, though captures happen in between."""
    pipeline = gpu_pipeline()
    known = {r: judged(r, "float32") for r in DEGREES}
    failures: list[str] = []

    def serve(seed: int) -> None:
        for turn in range(60):
            r, count = turn % len(DEGREES), 1 + (turn + seed) % 7
            rows = [(7 * seed + 3 * turn + i) % len(known[r].images) for i in range(count)]
            found = pipeline.classify([known[r].images[row] for row in rows], r)
            apart = (found.double() - known[r].probabilities[rows]).abs().max()
            if not float(apart) <= TOLERANCE["float32"]:
                failures.append(f"thread {seed}, turn {turn}: off by {float(apart):.1e}")

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert pipeline.graphs is not None and len(pipeline.graphs) > 0


def test_a_forward_that_waits_for_the_device_is_not_captured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It runs eagerly with the right answer, and later captures of others work."""
    broken, r = gpu_pipeline(), 1
    compressed = model().to(gpu())

    def waiting(pixels: torch.Tensor, r: int) -> torch.Tensor:
        float(pixels.max())  # a look at a value
        return compressed(pixels, r)

    broken._logits = waiting
    broken.prepare(3, r)
    assert broken.graphs is not None and len(broken.graphs) == 0
    assert "cannot be captured" in caplog.text
    assert worst(broken, r, "float32", (3,)) <= TOLERANCE["float32"]
    sound = gpu_pipeline()
    sound.prepare(3, r)
    assert sound.graphs is not None and len(sound.graphs) == 1
    assert worst(sound, r, "float32", (3,)) <= TOLERANCE["float32"]


def test_graphs_come_back_after_memory_ended() -> None:
    """All are let go; smaller ones are captured again, into a new pool."""
    pipeline = gpu_pipeline()
    for count in (2, 8):
        pipeline.prepare(count, 1)
    pipeline.make_room(8)
    assert pipeline.graphs is not None and len(pipeline.graphs) == 0
    for count in (2, 8):
        pipeline.prepare(count, 1)
    assert len(pipeline.graphs) == 1
    assert worst(pipeline, 1, "float32", (2, 8)) <= TOLERANCE["float32"]


def test_staging_is_pinned_and_channels_last() -> None:
    """Else copies would wait for the host, and the convolution would turn every image around."""
    pipeline = gpu_pipeline()
    with pipeline.staged(uint8_images(3, SIZE)) as slot:
        assert slot.images.is_pinned() and slot.scores.is_pinned()
        assert slot.pixels.is_contiguous(memory_format=torch.channels_last)
        assert slot.pixels.device == gpu()


def test_this_model_can_be_captured() -> None:
    """What `auto` asks before it takes graphs."""
    assert capture_problem(model().to(gpu()), 3) is None
