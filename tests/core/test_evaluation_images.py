"""Test images, and validation images that are none of them."""

import logging
from pathlib import Path

import pytest

from tests.core.digit_model import LABELS, write_digit_model
from tests.core.pictures import digit_label, encoded, write_folder, write_parquet
from tocom_core import load_model
from tocom_core.errors import DataError
from tocom_core.evaluation_images import (
    ImagePlace,
    JudgingImages,
    open_images,
    validation_images,
)
from tocom_core.models import LoadedModel


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model of digits."""
    return load_model(write_digit_model(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tables of 20 training and 10 test images; 3 of the training images are test images."""
    return write_tables(
        tmp_path / "digits", train=(*range(17), 100, 101, 102), test=range(100, 110)
    )


def write_tables(folder: Path, **parts) -> Path:
    """One parquet table for each part, of these digits."""
    for name, indices in parts.items():
        images = [encoded(i) for i in indices]
        write_parquet(folder / f"{name}.parquet", images, [digit_label(i) for i in indices], LABELS)
    return folder


def contents(images: JudgingImages) -> set[bytes]:
    """What is in the files."""
    return {images.source.image_bytes(index) for index in range(len(images.source))}


def test_training_images_validate_where_there_is_nothing_else(
    data: Path, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Not one test image is among them, though the training table holds some."""
    test = open_images(ImagePlace(str(data), "test"), loaded)
    with caplog.at_level(logging.WARNING):
        found = validation_images(ImagePlace(str(data)), test, loaded, 0)
    assert len(found.source) == 17 and not contents(found) & contents(test)
    assert str(found.place) == "digits, split train" and found.labelled
    assert "3 images of digits, split train are left out" in caplog.text
    few = validation_images(ImagePlace(str(data)), test, loaded, 5)
    assert len(few.source) == 5 and contents(few) < contents(found)
    again = validation_images(ImagePlace(str(data)), test, loaded, 5)
    assert contents(few) == contents(again)


def test_a_validation_part_goes_before_the_training_images(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    """The model has not seen it."""
    data = write_tables(tmp_path / "d", train=range(9), val=range(20, 26), test=range(30, 36))
    test = open_images(ImagePlace(str(data), "test"), loaded)
    assert str(validation_images(ImagePlace(str(data)), test, loaded, 0).place) == "d, split val"
    on_val = open_images(ImagePlace(str(data), "val"), loaded)
    found = validation_images(ImagePlace(str(data)), on_val, loaded, 0)
    assert str(found.place) == "d, split train", "what is evaluated does not validate"


def test_images_can_be_named(data: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    """Another place, or another part."""
    test = open_images(ImagePlace(str(data), "test"), loaded)
    other = ImagePlace(str(write_folder(tmp_path / "own", 12, first=200)))
    assert len(validation_images(other, test, loaded, 0).source) == 12
    part = ImagePlace(str(data), "train", need_split=True)
    assert len(validation_images(part, test, loaded, 0).source) == 17


def test_test_images_never_validate(data: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    """Neither under the split's own name, nor as a copy elsewhere."""
    test = open_images(ImagePlace(str(data), "test"), loaded)
    copy = write_folder(tmp_path / "copy", 10, first=100)
    for place in (ImagePlace(str(data), "test"), ImagePlace(str(copy))):
        with pytest.raises(DataError, match=r"evaluated on as well.*--val-data"):
            validation_images(place, test, loaded, 0)


def test_no_validation_images_is_an_error_that_asks_for_some(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    """A data set in one piece."""
    folder = write_folder(tmp_path / "digits", 8)
    place = ImagePlace(str(folder))
    with pytest.raises(DataError, match=r"no part named val, valid, validation, train.*--val-data"):
        validation_images(place, open_images(place, loaded), loaded, 0)


def test_labels_are_all_or_none(tmp_path: Path, loaded: LoadedModel) -> None:
    """Some missing labels, or a label column that is not there, are told."""
    images = [encoded(i) for i in range(3)]
    mixed = write_parquet(tmp_path / "mixed.parquet", images, [1, -1, 2])
    with pytest.raises(DataError, match="1 of 3 images have no label"):
        open_images(ImagePlace(str(mixed)), loaded)
    with pytest.raises(DataError, match="no labels in column 'kind'"):
        open_images(ImagePlace(str(mixed), label_column="kind"), loaded)
    bare = write_parquet(tmp_path / "bare.parquet", images)
    assert not open_images(ImagePlace(str(bare)), loaded).labelled
