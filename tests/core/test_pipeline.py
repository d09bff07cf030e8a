"""Batches through staging, launch and back: in order, and never beside a capture."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.core.judged import (
    DEGREES,
    MEAN,
    SIZE,
    STD,
    TOLERANCE,
    model,
    pipeline_for,
    worst,
)
from tests.core.recorder import Recorder, Recording, uint8_images
from tocom_core.pipeline import Pipeline
from tocom_core.pixels import Normalise
from tocom_core.streams import Mark

CPU = torch.device("cpu")
LONG_S = 20.0


class Place:
    """A mark that tells when a thread waits for it."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log = log
        self.name = name

    def query(self) -> bool:
        """It was reached."""
        return True

    def synchronize(self) -> None:
        """Tell."""
        self._log.append(f"thread waits for {self.name}")


class Diary:
    """Streams that write down what is asked of them, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._stream = "none"
        self._marks = 0

    def copying(self):
        """Name the stream for what follows."""
        return self._on("copies")

    def computing(self):
        """Name the stream for what follows."""
        return self._on("computing")

    def mark(self) -> Place:
        """Write down where."""
        self._marks += 1
        place = Place(self.log, f"{self._stream} {self._marks}")
        self.log.append(f"mark {place.name}")
        return place

    def after(self, mark: Mark) -> None:
        """Write down what waits for what."""
        assert isinstance(mark, Place)
        self.log.append(f"{self._stream} waits for {mark.name}")

    @contextmanager
    def _on(self, stream: str) -> Iterator[None]:
        before, self._stream = self._stream, stream
        try:
            yield
        finally:
            self._stream = before


def constant(log: list[str]) -> Callable[[Tensor, int], Tensor]:
    """A model that writes down when it is run."""

    def logits(pixels: Tensor, r: int) -> Tensor:
        log.append("model")
        return pixels.mean(dim=(1, 2, 3), keepdim=False).unsqueeze(1).repeat(1, 7)

    return logits


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_every_precision_gives_the_reference_s_answers(precision: str) -> None:
    """All degrees and odd batch sizes, against float64, within what the precision can tell."""
    pipeline = pipeline_for(model(), CPU, getattr(torch, precision))
    for r in DEGREES:
        assert worst(pipeline, r, precision, (1, 3, 5)) <= TOLERANCE[precision]


def test_the_device_computes_only_what_has_arrived() -> None:
    """Copy, mark, and on the computing stream: wait for that mark, run, copy back, mark."""
    diary = Diary()
    normalise = Normalise(MEAN, STD, CPU, torch.float32)
    pipeline = Pipeline(constant(diary.log), normalise, SIZE, 7, CPU, streams=diary)
    with pipeline.staged(uint8_images(2, SIZE)) as slot:
        assert diary.log == ["mark copies 1"]
        launched = pipeline.launch(slot, 0)
        assert diary.log[1:] == [
            "computing waits for copies 1",
            "mark computing 2",
            "model",
            "mark computing 3",
        ]
        launched.done.synchronize()
        assert diary.log[-1] == "thread waits for computing 3"
    assert diary.log[-1] == "thread waits for copies 1"  # before its memory is used again


def test_two_batches_under_way_keep_apart() -> None:
    """The next batch is staged while one is not waited for yet; each has its own scores."""
    pipeline = pipeline_for(model(), CPU, torch.float32)
    first, second = uint8_images(3, SIZE, seed=1), uint8_images(5, SIZE, seed=2)
    alone = [pipeline.classify(images, 2) for images in (first, second)]
    with pipeline.staged(first) as one:
        pipeline.launch(one, 2)
        with pipeline.staged(second) as other:
            pipeline.launch(other, 2)
            assert torch.equal(one.scores, alone[0])
            assert torch.equal(other.scores, alone[1])


def test_a_third_batch_waits_for_a_slot() -> None:
    """There are two, and whoever comes third gets the one that is given back."""
    pipeline = pipeline_for(model(), CPU, torch.float32)
    images = uint8_images(2, SIZE)
    staged = threading.Event()

    def third() -> None:
        with pipeline.staged(images):
            staged.set()

    thread = threading.Thread(target=third)
    with pipeline.staged(images), pipeline.staged(images):
        thread.start()
        assert not staged.wait(0.05)
    thread.join(LONG_S)
    assert staged.is_set()


def test_slots_grow_and_are_used_again() -> None:
    """One buffer per slot serves all sizes up to the largest bucket that it has met."""
    pipeline = pipeline_for(model(), CPU, torch.float32)
    with pipeline.staged(uint8_images(5, SIZE)) as slot:
        room = slot.images.untyped_storage()
    for count in (1, 6, 3):
        with pipeline.staged(uint8_images(count, SIZE)) as slot:
            assert slot.images.shape == (count, *SIZE)
            assert slot.images.untyped_storage().data_ptr() == room.data_ptr()
    with pipeline.staged(uint8_images(7, SIZE)) as slot:
        assert slot.images.untyped_storage().data_ptr() != room.data_ptr()
        assert slot.images.is_contiguous(memory_format=torch.channels_last)


def test_rows_of_a_batch_can_be_computed_apart() -> None:
    """As is done in halves when memory ends."""
    pipeline = pipeline_for(model(), CPU, torch.float32)
    images = uint8_images(5, SIZE)
    whole = pipeline.classify(images, 1)
    with pipeline.staged(images) as slot:
        for rows in (slice(0, 2), slice(2, 5)):
            pipeline.launch(slot, 1, rows)
        torch.testing.assert_close(slot.scores, whole)


def test_a_slot_comes_back_from_a_batch_that_failed() -> None:
    """However many fail, the next ones find room."""

    def broken(pixels: Tensor, r: int) -> Tensor:
        raise RuntimeError("no")

    normalise = Normalise(MEAN, STD, CPU, torch.float32)
    pipeline = Pipeline(broken, normalise, SIZE, 7, CPU)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no"):
            pipeline.classify(uint8_images(1, SIZE), 0)
        with pytest.raises(RuntimeError):  # an image of another size
            pipeline.classify([torch.zeros(3, 8, 9, dtype=torch.uint8)], 0)


def test_nothing_reaches_the_device_while_a_graph_is_captured() -> None:
    """Neither a copy nor a batch, of this model or of another one on the same device."""
    capturing, go_on = threading.Event(), threading.Event()

    class Slow(Recorder):
        def record(self, run: Callable[[], Tensor]) -> Recording:
            capturing.set()
            assert go_on.wait(LONG_S)
            return super().record(run)

    diary = Diary()
    one = pipeline_for(model(), CPU, torch.float32, capture=Slow())
    normalise = Normalise(MEAN, STD, CPU, torch.float32)
    other = Pipeline(constant(diary.log), normalise, SIZE, 7, CPU, streams=diary)
    capture = threading.Thread(target=one.prepare, args=(2, 1))
    batch = threading.Thread(target=other.classify, args=(uint8_images(2, SIZE), 0))
    capture.start()
    assert capturing.wait(LONG_S)
    batch.start()
    batch.join(0.05)
    assert diary.log == []
    go_on.set()
    for thread in (capture, batch):
        thread.join(LONG_S)
    assert "model" in diary.log
    assert one.graphs is not None and len(one.graphs) == 1
