"""Which batches run by graphs, and everything around a capture; recorded here without a GPU."""

import logging

import pytest
import torch
from torch import Tensor

from tests.core.judged import DEGREES, SIZE, TOLERANCE, model, pipeline_for, worst
from tests.core.recorder import Recorder, uint8_images
from tests.core.test_merger import K, make_bank
from tocom_core import WeightMerger
from tocom_core.cuda_graphs import EAGER_FIRST, Graphs, capture_problem
from tocom_core.pipeline import Pipeline

CPU = torch.device("cpu")


@pytest.fixture
def recorder() -> Recorder:
    """Records with PyTorch's tracer."""
    return Recorder()


def recorded_pipeline(recorder: Recorder, **options: object) -> Pipeline:
    """The model of `judged` with graphs for batches of up to 8."""
    return pipeline_for(model(), CPU, torch.float32, capture=recorder, **options)


def test_graphs_give_the_reference_s_answers(recorder: Recorder) -> None:
    """All degrees, odd batch sizes that are padded to their bucket, against float64."""
    pipeline = recorded_pipeline(recorder)
    for r in DEGREES:
        for count in (1, 5):
            pipeline.prepare(count, r)
        assert worst(pipeline, r, "float32", (1, 5)) <= TOLERANCE["float32"]
    assert recorder.recorded == len(DEGREES) * 2  # buckets 1 and 6


def test_all_graphs_read_the_live_weights(recorder: Recorder) -> None:
    """Recorded once per degree; however the weights are switched in place, answers are theirs."""
    compressed = model()
    merger = WeightMerger(compressed, make_bank())
    pipeline = pipeline_for(compressed, CPU, torch.float32, capture=recorder)
    plain = pipeline_for(compressed, CPU, torch.float32)
    images = uint8_images(3, SIZE)
    merger.set_target(K)
    for r in (0, 3, K):
        pipeline.prepare(3, r)  # with the weights of another degree, even
    seen = []
    for r in (0, 3, K, 3, 0, K):
        merger.set_target(r)
        seen.append(pipeline.classify(images, r))
        assert torch.equal(seen[-1], plain.classify(images, r))
    assert recorder.recorded == 3
    assert not torch.allclose(seen[0], seen[1], atol=1e-4)
    assert torch.equal(seen[0], seen[4]) and torch.equal(seen[2], seen[5])


def test_the_rows_of_an_earlier_batch_do_not_show(recorder: Recorder) -> None:
    """A padded batch says the same whatever was in the buffer before."""
    pipeline = recorded_pipeline(recorder)
    pipeline.prepare(5, 2)
    alone = pipeline.classify(uint8_images(5, SIZE, seed=1), 2)
    pipeline.classify(uint8_images(6, SIZE, seed=2), 2)
    assert torch.equal(pipeline.classify(uint8_images(5, SIZE, seed=1), 2), alone)


def test_a_cell_is_captured_when_it_was_met_before(recorder: Recorder) -> None:
    """The first batches of a (degree, bucket) run eagerly; sizes of one bucket share its graph."""
    pipeline = recorded_pipeline(recorder)
    for done in range(EAGER_FIRST):
        pipeline.classify(uint8_images(5 + done, SIZE), 1)
    pipeline.classify(uint8_images(5, SIZE), 2)  # another degree is another cell
    pipeline.classify(uint8_images(4, SIZE), 1)  # and another bucket too
    assert recorder.recorded == 0
    for count in (6, 5):
        pipeline.classify(uint8_images(count, SIZE), 1)
        assert recorder.recorded == 1


def test_at_the_cap_the_rest_runs_eagerly(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that are there stay; the reason is logged once."""
    pipeline = recorded_pipeline(recorder, most_graphs=2)
    for r in (0, 1, 2, 3):
        pipeline.prepare(3, r)
    assert pipeline.graphs is not None and len(pipeline.graphs) == 2
    assert worst(pipeline, 3, "float32", (3,)) <= TOLERANCE["float32"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "2 graphs, the most that are kept; such batches run eagerly" in caplog.text


def test_where_memory_is_short_nothing_more_is_captured(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The device's own reason is logged, and heeded only while it lasts."""
    pipeline = recorded_pipeline(recorder)
    recorder.full = "memory is short"
    pipeline.prepare(3, 1)
    pipeline.prepare(3, 2)
    assert recorder.recorded == 0
    assert caplog.text.count("memory is short") == 1
    recorder.full = None
    pipeline.prepare(3, 1)
    assert recorder.recorded == 1


def test_a_failed_capture_falls_back_and_is_told_once(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch is answered eagerly, the cell not tried again, others are."""
    pipeline = recorded_pipeline(recorder)
    recorder.fail = RuntimeError("operation not permitted when stream is capturing")
    for _ in range(EAGER_FIRST + 3):
        assert worst(pipeline, 2, "float32", (3,)) <= TOLERANCE["float32"]
    pipeline.prepare(1, 2)
    assert caplog.text.count("cannot be captured (RuntimeError: operation not permitted") == 1
    recorder.fail = None
    pipeline.prepare(3, 2)
    assert recorder.recorded == 0
    pipeline.prepare(3, 1)
    assert recorder.recorded == 1


def test_the_first_cause_of_a_failed_capture_is_told(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Ending a capture that broke off raises an error of its own on top."""
    try:
        try:
            raise ValueError("the cause")
        except ValueError:
            raise RuntimeError("capture was invalidated")  # noqa: B904 - as CUDA's is
    except RuntimeError as error:
        recorder.fail = error
    recorded_pipeline(recorder).prepare(3, 1)
    assert "(ValueError: the cause)" in caplog.text


def test_what_fails_eagerly_too_is_not_hidden() -> None:
    """A device that is lost fails the capture and then the batch: the error comes out."""

    def lost(pixels: Tensor, r: int) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    graphs = Graphs(lost, torch.zeros(8, *SIZE, dtype=torch.uint8), Recorder())
    assert not graphs.prepare(2, 1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graphs(torch.zeros(2, *SIZE, dtype=torch.uint8), 1)


def test_batches_beyond_the_largest_are_not_captured(recorder: Recorder) -> None:
    """They do not fit the graphs' input, and run eagerly."""
    pipeline = recorded_pipeline(recorder)
    pipeline.prepare(9, 1)
    assert recorder.recorded == 0
    assert worst(pipeline, 1, "float32", (9,)) <= TOLERANCE["float32"]


def test_when_memory_ends_all_graphs_go(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """So large a batch is captured no more, smaller ones are, into a new pool."""
    pipeline = recorded_pipeline(recorder)
    for count in (1, 3, 8):
        pipeline.prepare(count, 1)
    assert pipeline.graphs is not None and len(pipeline.graphs) == 3
    pipeline.make_room(3)
    assert len(pipeline.graphs) == 0
    assert recorder.begun == 1
    for count in (1, 3, 8):
        pipeline.prepare(count, 1)
    assert len(pipeline.graphs) == 1
    assert "memory ended with 3 images" in caplog.text
    assert worst(pipeline, 1, "float32", (1, 3, 8)) <= TOLERANCE["float32"]


def test_without_a_cuda_device_there_are_no_graphs() -> None:
    """It says so in words."""
    assert (
        capture_problem(model(), 1) == "CUDA graphs need a CUDA device, and the model is on 'cpu'"
    )
