"""Order and augmentation of training images, and batches for evaluation."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from tests.core.pictures import digit, encoded, write_folder, write_parquet
from tocom_core.data import (
    EpochBatches,
    TrainingImages,
    augmentation,
    evaluation_batches,
)
from tocom_core.errors import DataError, DataWarning
from tocom_core.sources import open_source


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image to uint8 ``(3, H, W)``, nothing else."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# --- Order ----------------------------------------------------------------------------------------


@given(
    length=st.integers(1, 30),
    batch_size=st.integers(1, 30),
    steps=st.integers(0, 40),
    start=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=80)
def test_a_resumed_order_is_the_tail_of_the_whole(
    length: int, batch_size: int, steps: int, start: int, seed: int
) -> None:
    """Starting at a step gives exactly the batches that were left from there on."""
    if length < batch_size:
        with pytest.raises(DataError, match=f"{length} images.*batch of {batch_size}"):
            EpochBatches(length, batch_size, steps, 0, seed)
        return
    whole = list(EpochBatches(length, batch_size, steps, 0, seed))
    tail = EpochBatches(length, batch_size, steps, start, seed)
    assert list(tail) == whole[start:]
    assert len(tail) == len(whole[start:])


def test_an_epoch_holds_every_image_once() -> None:
    """Each epoch is a new order of all images; what does not fill a batch is left out."""
    sampler = EpochBatches(10, 3, 9, 0, seed=1)
    assert sampler.steps_per_epoch == 3
    batches = list(sampler)
    epochs = [[key for batch in batches[i : i + 3] for key in batch] for i in (0, 3, 6)]
    for number, epoch in enumerate(epochs):
        assert {e for e, _ in epoch} == {number}
        assert len({index for _, index in epoch}) == 9
    assert len({tuple(index for _, index in epoch) for epoch in epochs}) == 3
    assert list(EpochBatches(10, 3, 9, 0, seed=2)) != batches


# --- Augmentation ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty digits."""
    return write_folder(tmp_path / "digits", 20)


TRANSFORM = augmentation((3, 16, 16), "bicubic", 0.3, 0.4, "rand-m9-mstd0.5-inc1")


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    """Whatever was drawn before, an image of an epoch is augmented the same way."""
    source = open_source(folder)
    images = TrainingImages(source, TRANSFORM, seed=3)
    first = images[2, 7]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    for other in ((0, 7), (2, 8)):
        assert not torch.equal(images[other][0], first[0])
    again = TrainingImages(source, TRANSFORM, seed=3)[2, 7]
    assert torch.equal(again[0], first[0])
    assert again[1] == first[1] == source.label(7)
    assert not torch.equal(TrainingImages(source, TRANSFORM, seed=4)[2, 7][0], first[0])
    assert (first[0].dtype, first[0].shape) == (torch.uint8, (3, 16, 16))


def test_augmentation_does_not_depend_on_the_number_of_workers(folder: Path) -> None:
    """A loader with processes gives what one without gives."""
    images = TrainingImages(open_source(folder), TRANSFORM, seed=0)

    def batches(workers: int) -> list[Tensor]:
        sampler = EpochBatches(20, 5, 6, 1, seed=0)
        loader = DataLoader(images, batch_sampler=sampler, num_workers=workers)
        return [batch for batch, _ in loader]

    for one, two in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one, two)


def test_no_augmentation_but_the_crop() -> None:
    """Colour jitter of 0 changes no colour."""
    transform = augmentation((3, 8, 8), "bicubic", 1.0, 0.0)
    flat = Image.new("RGB", (8, 8), (10, 200, 90))
    assert transform(flat).flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 90]


def test_a_corrupt_image_is_replaced_by_the_next_with_a_warning(tmp_path: Path) -> None:
    """Training goes on with the next readable image and its label, around the end if need be."""
    contents = [encoded(0), b"noise", None, encoded(3)[:30]]
    source = open_source(write_parquet(tmp_path / "t.parquet", contents, [5, 6, 7, 8]))
    images = TrainingImages(source, to_tensor, seed=0)
    for index in (1, 2, 3):
        with pytest.warns(DataWarning) as caught:
            image, label = images[0, index]
        assert "image 3 cannot be read and is replaced" in str(caught[-1].message)
        assert torch.equal(image, to_tensor(digit(0)))
        assert label == 5


@pytest.mark.filterwarnings("ignore::tocom_core.errors.DataWarning")
def test_a_data_set_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    """When nothing can be read, the search ends with an error."""
    source = open_source(write_parquet(tmp_path / "t.parquet", [b"a", b"b"]))
    with pytest.raises(DataError, match="not one image"):
        TrainingImages(source, to_tensor, seed=0)[0, 0]


def test_an_unlabelled_image_has_label_minus_one(tmp_path: Path) -> None:
    """Distillation needs no labels; the loader still gives a number."""
    source = open_source(write_parquet(tmp_path / "t.parquet", [encoded(0)]))
    assert TrainingImages(source, to_tensor, seed=0)[0, 0][1] == -1


# --- Evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_evaluation_goes_through_all_images_in_order(tmp_path: Path, batch_size: int) -> None:
    """Nothing is shuffled, left out or augmented; the last batch may be smaller."""
    contents, labels = [encoded(i) for i in range(7)], [3, 1, 4, 1, 5, 9, 2]
    source = open_source(write_parquet(tmp_path / "t.parquet", contents, labels))
    batches = list(evaluation_batches(source, to_tensor, batch_size))
    assert [len(images) for images, _ in batches][:-1] == [batch_size] * (len(batches) - 1)
    assert torch.cat([t for _, t in batches]).tolist() == labels
    expected = torch.stack([to_tensor(digit(i)) for i in range(7)])
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)


@pytest.mark.parametrize("make", [lambda: b"noise", lambda: None], ids=["noise", "nothing"])
def test_evaluation_does_not_hide_an_unreadable_image(
    tmp_path: Path, make: Callable[[], bytes | None]
) -> None:
    """A figure must be over the images that it says: an unreadable one is an error."""
    source = open_source(write_parquet(tmp_path / "t.parquet", [encoded(0), make()], [0, 1]))
    with pytest.raises(DataError, match="image 1 cannot be read"):
        list(evaluation_batches(source, to_tensor, 2))
