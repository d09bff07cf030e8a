"""Labels of a data set as the model's classes."""

import dataclasses
import logging
from pathlib import Path

import pytest
import timm

from tests.core.digit_model import write_digit_model
from tests.core.pictures import digit_label, encoded, write_folder, write_parquet
from tocom_core import load_model
from tocom_core.class_matching import match_classes
from tocom_core.errors import DataError
from tocom_core.models import LoadedModel, describe
from tocom_core.sources import ImageSource, open_source


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose labels are "digit 0" to "digit 9"."""
    return load_model(write_digit_model(tmp_path_factory.mktemp("weights")))


def table(folder: Path, labels: list[int], names: tuple[str, ...]) -> ImageSource:
    """A parquet table with these labels and class names."""
    images = [encoded(i) for i in range(len(labels))]
    return open_source(write_parquet(folder / "test.parquet", images, labels, names))


def numbers(source: ImageSource) -> list[int | None]:
    """All labels."""
    return [source.label(index) for index in range(len(source))]


def test_a_missing_class_does_not_shift_the_others(loaded: LoadedModel, tmp_path: Path) -> None:
    """A folder numbers the sub-folders it has; the names say which classes they are."""
    source = open_source(write_folder(tmp_path, 5, first=7))
    assert numbers(source) != [loaded.labels.index(name) for name in _names(source)]
    matched = match_classes(source, loaded)
    assert numbers(matched) == [loaded.labels.index(name) for name in _names(source)]
    assert matched.image_bytes(3) == source.image_bytes(3)
    assert matched.name(3) == source.name(3) and len(matched) == len(source) == 5
    assert matched.class_names == loaded.labels


def _names(source: ImageSource) -> list[str]:
    found = (source.label(index) for index in range(len(source)))
    return [source.class_names[label] for label in found if label is not None]


def test_names_in_the_models_order_change_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    """Case and underscores do not make another class; the source itself comes back."""
    names = tuple(f"Digit_{number}" for number in range(10))
    source = table(tmp_path, [3, 9], names)
    assert match_classes(source, loaded) is source


def test_imagenets_folders_are_known(tmp_path: Path) -> None:
    """An ImageNet model's classes are found by the WordNet ids that its folders carry."""
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    source = table(tmp_path, [1, 0], ("n01443537", "n01440764"))  # goldfish, tench
    assert numbers(match_classes(source, describe(vit, "tiny"))) == [0, 1]


def test_other_words_are_taken_by_position(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many classes under other names may be a translation: used, with a warning."""
    words = ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun")
    source = table(tmp_path, [3, 9], words)
    with caplog.at_level(logging.WARNING):
        assert match_classes(source, loaded) is source
    assert "by position" in caplog.text and "eins" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "dog"),
        ("digit 1", "digit 0", *(f"x{i}" for i in range(8))),
        (*(f"digit {i}" for i in range(10)), "no digit"),
    ],
    ids=["fewer", "moved", "more"],
)
def test_other_classes_are_refused(
    loaded: LoadedModel, tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Accuracy by position would be noise, so there is none."""
    with pytest.raises(DataError, match="are not the model's 10"):
        match_classes(table(tmp_path, [0, 1], names), loaded)


def test_a_label_beyond_the_head_is_named(loaded: LoadedModel, tmp_path: Path) -> None:
    """With the image that has it; unnamed labels are taken as they are."""
    with pytest.raises(DataError, match=r"test.parquet.* has label 12, .* 10 classes are 0 to 9"):
        match_classes(table(tmp_path, [3, 12], ()), loaded)
    source = table(tmp_path, [3, 9], ())
    assert match_classes(source, loaded) is source


def test_a_model_without_names_takes_any(loaded: LoadedModel, tmp_path: Path) -> None:
    """Its labels are mere numbers, so nothing can contradict the data set's names."""
    unnamed = dataclasses.replace(loaded, labels=tuple(f"class {i}" for i in range(10)))
    source = open_source(write_folder(tmp_path, 40))
    assert numbers(match_classes(source, unnamed))[0] == source.label(0)
    assert digit_label(0) == 0
