"""Photographs for a bench: JPEGs from anywhere, with the served model's classes where they fit."""

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.bench_images import open_pictures
from server.served_process import MeasurementError
from tocom_core.errors import DataError


def save(path: Path, colour: str, kind: str = "JPEG") -> None:
    """A small picture on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path, kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cats and a dog; the alphabet numbers them 0 and 1."""
    save(tmp_path / "cat" / "a.jpg", "orange")
    save(tmp_path / "cat" / "b.jpg", "black")
    save(tmp_path / "dog" / "a.jpg", "brown")
    return tmp_path


def test_labels_are_the_models_classes(folder: Path) -> None:
    """Matched by name: the model numbers its classes in another order."""
    pictures = open_pictures(str(folder), None, 10, ("tea", "dog", "cat"))
    assert Counter(pictures.labels) == {1: 1, 2: 2}
    assert pictures.unknown == ""
    place = pictures.labels.index(1)
    with Image.open(io.BytesIO(pictures.files[place])) as picture:
        assert np.asarray(picture)[..., 0].mean() == pytest.approx(165, abs=5)  # brown's red
    assert pictures.correct(place, 1) == 1 and pictures.correct(place, 2) == 0


def test_other_classes_are_told_not_guessed(folder: Path) -> None:
    """The pictures can still be sent, but nobody knows what is right."""
    pictures = open_pictures(str(folder), None, 10, ("oak", "elm", "fir"))
    assert len(pictures.files) == 3
    assert pictures.labels == (None,) * 3
    assert "oak, elm, fir" in pictures.unknown
    assert math.isnan(pictures.correct(0, 0))


def test_images_without_labels_are_told(tmp_path: Path) -> None:
    """A folder without sub-folders has none."""
    save(tmp_path / "a.jpg", "orange")
    pictures = open_pictures(str(tmp_path), None, 10, ("cat", "dog"))
    assert pictures.labels == (None,) and pictures.unknown == "the images have no labels"


def test_only_jpegs_are_sent_and_no_more_than_asked(folder: Path) -> None:
    """The client says image/jpeg of all of them; the choice is the same each time."""
    save(folder / "dog" / "b.png", "white", "PNG")
    assert len(open_pictures(str(folder), None, 10, ("cat", "dog")).files) == 3
    two = open_pictures(str(folder), None, 2, ("cat", "dog"))
    assert len(two.files) == 2
    assert two == open_pictures(str(folder), None, 2, ("cat", "dog"))


def test_a_place_without_jpegs_is_an_error(tmp_path: Path) -> None:
    """So is a place that is not there."""
    save(tmp_path / "cat" / "a.png", "white", "PNG")
    with pytest.raises(MeasurementError, match="no JPEG"):
        open_pictures(str(tmp_path), None, 10, ("cat",))
    with pytest.raises(DataError):
        open_pictures(str(tmp_path / "nowhere"), None, 10, ("cat",))


def test_without_a_place_pictures_are_drawn() -> None:
    """The same ones each time, different from one another, and of nothing."""
    pictures = open_pictures(None, None, 10, ("cat", "dog"))
    assert len(set(pictures.files)) == len(pictures.files) > 1
    assert pictures == open_pictures(None, None, 10, ("cat", "dog"))
    for content in pictures.files:
        assert Image.open(io.BytesIO(content)).format == "JPEG"
    assert "--images" in pictures.unknown
