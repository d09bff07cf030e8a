"""Order and augmentation of training images, and batches for evaluation."""

import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader

from tests.core.pictures import digit, encoded, write_folder, write_parquet
from tocom_core.data import (
    EpochBatches,
    PixelErasing,
    TrainingImages,
    augmentation,
    seed_all,
)
from tocom_core.errors import DataError, DataWarning
from tocom_core.sources import SubsetSource, open_source


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


@given(
    batch_size=st.integers(1, 4),
    world_size=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    extra=st.integers(0, 70),
    start=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_however_a_step_is_divided_it_sees_the_same_images(
    batch_size: int, world_size: int, accumulate: int, extra: int, start: int
) -> None:
    """Parts and processes in order make up exactly the step of one process and one part."""
    whole_size = batch_size * world_size * accumulate
    length = whole_size + extra
    whole = list(EpochBatches(length, whole_size, 5, start, seed=7))
    ranks = [
        EpochBatches(
            length, batch_size, 5, start, 7, rank=r, world_size=world_size, accumulate=accumulate
        )
        for r in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {len(whole) * accumulate}
    assert {rank.steps_per_epoch for rank in ranks} == {length // whole_size}
    parts = list(zip(*ranks, strict=True))  # per part, the batch of each process
    together = [[key for batch in part for key in batch] for part in parts]
    keys = iter([key for part in together for key in part])
    assert [[next(keys) for _ in step] for step in whole] == whole
    assert next(keys, None) is None
    one = EpochBatches(length, batch_size * world_size, 5, start, 7, accumulate=accumulate)
    assert together == list(one)


def test_too_few_images_for_all_processes_are_refused() -> None:
    """What one process could do may be too little for all; the error says how a step is made up."""
    EpochBatches(10, 4, 1, 0, 0, world_size=2)
    with pytest.raises(DataError, match=r"10 images .*batch of 16 \(4 x 2 processes x 2 accum"):
        EpochBatches(10, 4, 1, 0, 0, world_size=2, accumulate=2)


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
        return [batch for batch, _, _ in loader]

    for one, two in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one, two)


def test_no_augmentation_but_the_crop() -> None:
    """Colour jitter of 0 changes no colour."""
    transform = augmentation((3, 8, 8), "bicubic", 1.0, 0.0)
    flat = Image.new("RGB", (8, 8), (10, 200, 90))
    assert transform(flat).flatten(1).unique(dim=1).flatten().tolist() == [10, 200, 90]


CASES = {"every image": 1.0, "some images": 0.25, "no image": 0.0}


@pytest.mark.parametrize("share", CASES.values(), ids=CASES)
def test_erasing_makes_a_rectangle_noise(share: float) -> None:
    """In that share of the images, one rectangle; the other pixels stay to the bit."""
    flat = torch.full((3, 32, 32), 77, dtype=torch.uint8)
    erase = PixelErasing(share, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    erased = 0
    for seed in range(200):
        seed_all(seed)
        image = erase(flat)
        assert (image.dtype, image.shape) == (flat.dtype, flat.shape)
        rows, columns = torch.nonzero((image != flat).any(0), as_tuple=True)
        if len(rows):
            erased += 1
            height, width = (int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
            assert len(rows) >= 0.9 * height * width  # noise hits the old colour now and then
            assert 0.01 <= height * width / 1024 <= 0.36
    assert share * 200 - 30 <= erased <= share * 200 + 30
    assert flat.unique().tolist() == [77]


def test_erasing_is_what_timm_does_after_normalisation() -> None:
    """Normalised afterwards, the noise is timm's own draw, up to rounding and the pixels' range."""
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    mean, std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    image = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8)
    low, high = -mean / std, (1 - mean) / std
    for seed in range(20):
        seed_all(seed)
        ours = PixelErasing(1.0, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)(image)
        seed_all(seed)
        theirs = RandomErasing(1.0, mode="pixel", device="cpu")((image / 255 - mean) / std)
        expected = theirs.maximum(low).minimum(high)
        assert ((ours / 255 - mean) / std - expected).abs().max() <= 0.51 / 255 / std.min()


def test_the_recipe_of_an_image_is_its_own(folder: Path) -> None:
    """With RandAugment and erasing, an image depends on seed, epoch and index alone."""
    recipe = (0.08, 0.4, "rand-m9-mstd0.5-inc1", 0.9, (0.5,) * 3, (0.5,) * 3)
    transform = augmentation((3, 16, 16), "bicubic", *recipe)
    again = pickle.loads(pickle.dumps(transform))  # as a spawned worker gets it
    images = TrainingImages(open_source(folder), transform, seed=3)
    copies = TrainingImages(open_source(folder), again, seed=3)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(20)]
    first = {key: images[key][0] for key in keys}
    assert all(torch.equal(copies[key][0], first[key]) for key in reversed(keys))
    plain = augmentation((3, 16, 16), "bicubic", *recipe[:3])
    without = TrainingImages(open_source(folder), plain, seed=3)
    assert sum(not torch.equal(without[key][0], first[key]) for key in keys) > 30


# --- Bad data -------------------------------------------------------------------------------------


def test_a_corrupt_image_is_replaced_by_the_next_and_counted(tmp_path: Path) -> None:
    """Training goes on with the next readable image and its label, around the end if need be."""
    contents = [encoded(0), b"noise", None, encoded(3)[:30], encoded(4)]
    path = write_parquet(tmp_path / "t.parquet", contents, [5, 6, 7, 8, 9])
    images = TrainingImages(SubsetSource(open_source(path), [0, 1, 2, 3]), to_tensor, seed=0)
    for index, passed_over in ((3, 1), (1, 3), (0, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            image, label, skipped = images[0, index]
        assert torch.equal(image, to_tensor(digit(0)))
        assert (label, skipped) == (5, passed_over)


def test_each_unreadable_image_is_warned_of_once(tmp_path: Path) -> None:
    """Later epochs only count it; the warning says where it lies and what is wrong."""
    path = write_parquet(tmp_path / "t.parquet", [b"noise", b"", encoded(2)])
    images = TrainingImages(open_source(path), to_tensor, seed=0)
    with pytest.warns(DataWarning) as caught:
        assert [images[epoch, 0][2] for epoch in range(3)] == [2, 2, 2]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert f"image 0 cannot be read and is replaced by the next one: row 0 of {path}" in messages[0]
    assert "no image" in messages[0]
    assert "row 1" in messages[1]
    assert "empty" in messages[1]


def test_what_stands_in_for_a_corrupt_image_is_augmented_anew(tmp_path: Path) -> None:
    """An epoch does not hold the same pixels twice because a neighbour is broken."""
    path = write_parquet(tmp_path / "t.parquet", [b"noise", encoded(2)])
    images = TrainingImages(open_source(path), TRANSFORM, seed=0)
    with pytest.warns(DataWarning):
        stand_in = images[0, 0][0]
    assert not torch.equal(stand_in, images[0, 1][0])


@pytest.mark.filterwarnings("ignore::tocom_core.errors.DataWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_across_workers(tmp_path: Path, workers: int) -> None:
    """The counts come with the batches, so that a training loop can add them up."""
    folder = write_folder(tmp_path / "digits", 20)
    bad = {"0": b"", "1": b"text", "2": encoded(0, "JPEG")[:150], "3": encoded(0)[:30]}
    for name, content in bad.items():
        (folder / f"digit {name}" / "zzz.jpg").write_bytes(content)
    images = TrainingImages(open_source(folder), TRANSFORM, seed=0)
    sampler = EpochBatches(24, 4, 12, 0, seed=0)
    loader = DataLoader(images, batch_sampler=sampler, num_workers=workers)
    assert sum(int(skipped.sum()) for _, _, skipped in loader) == 2 * len(bad)


@pytest.mark.filterwarnings("ignore::tocom_core.errors.DataWarning")
def test_a_data_set_without_one_readable_image_is_refused(tmp_path: Path) -> None:
    """When nothing can be read, the search ends with an error."""
    source = open_source(write_parquet(tmp_path / "t.parquet", [b"a", b"b"]))
    with pytest.raises(DataError, match=r"not one image.*t\.parquet"):
        TrainingImages(source, to_tensor, seed=0)[0, 0]


def test_an_unlabelled_image_has_label_minus_one(tmp_path: Path) -> None:
    """Distillation needs no labels; the loader still gives a number."""
    source = open_source(write_parquet(tmp_path / "t.parquet", [encoded(0)]))
    assert TrainingImages(source, to_tensor, seed=0)[0, 0][1] == -1
