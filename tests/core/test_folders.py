"""Folders of images, with classes and without."""

from pathlib import Path

import pytest

from tests.core.pictures import digit_label, encoded, write_folder
from tocom_core.decoding import decode_rgb
from tocom_core.errors import DataError, DataWarning
from tocom_core.folders import FolderSource


def test_folder_with_one_sub_folder_per_class(tmp_path: Path) -> None:
    """Classes are the sub-folders in the order of their names; deeper folders belong to them."""
    write_folder(tmp_path, 30)
    deeper = tmp_path / "digit 3" / "more" / "x.PNG"
    deeper.parent.mkdir()
    deeper.write_bytes(encoded(3))
    (tmp_path / "digit 3" / "notes.txt").write_text("no image")
    (tmp_path / "digit 4" / "folder.png").mkdir()

    source = FolderSource(tmp_path)
    assert source.class_names == tuple(f"digit {i}" for i in range(10))
    assert len(source) == 31
    counts = [sum(digit_label(i) == d for i in range(30)) for d in range(10)]
    counts[3] += 1
    assert [sum(source.label(i) == d for i in range(31)) for d in range(10)] == counts
    assert decode_rgb(source.image_bytes(0)).size == (8, 8)
    assert source.name(0) == str(tmp_path / "digit 0" / "0000.png")


def test_folder_without_classes(tmp_path: Path) -> None:
    """Images directly in the folder have no label; a folder beside them changes nothing."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    (tmp_path / "notes").mkdir()
    source = FolderSource(tmp_path)
    assert (len(source), source.class_names) == (3, ())
    assert [source.label(i) for i in range(3)] == [None] * 3


def test_an_empty_class_keeps_its_number(tmp_path: Path) -> None:
    """A class folder without an image is named in a warning, and shifts no other class."""
    for name in "abcd":
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "0.png").write_bytes(encoded(0))
    (tmp_path / "d" / "1.png").write_bytes(encoded(1))
    with pytest.warns(DataWarning, match=r"no image in 'a', 'c' of .*remove the folder"):
        source = FolderSource(tmp_path)
    assert source.class_names == ("a", "b", "c", "d")
    assert [source.label(i) for i in range(2)] == [1, 3]


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    """Subsets are often made of links to the class folders of a larger set."""
    write_folder(tmp_path / "all", 20)
    (tmp_path / "some").mkdir()
    for name in ("digit 2", "digit 7"):
        (tmp_path / "some" / name).symlink_to(tmp_path / "all" / name)
    source = FolderSource(tmp_path / "some")
    assert source.class_names == ("digit 2", "digit 7")
    assert {source.label(i) for i in range(len(source))} == {0, 1}


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    """What notebooks and file managers leave behind is neither an image nor a class."""
    write_folder(tmp_path / "images", 10)
    for stray in (".ipynb_checkpoints/x.png", "__MACOSX/y.png", "digit 0/._z.png", ".w.png"):
        (tmp_path / "images" / stray).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / stray).write_bytes(encoded(0))
    source = FolderSource(tmp_path / "images")
    assert (len(source), len(source.class_names)) == (10, 10)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    """No image, and images both beside and in sub-folders."""
    (tmp_path / "empty class").mkdir()
    with pytest.raises(DataError, match=r"no image .*\.jpg.* below"):
        FolderSource(tmp_path)
    write_folder(tmp_path, 5)
    (tmp_path / "stray.png").write_bytes(encoded(0))
    with pytest.raises(DataError, match="both directly and in sub-folders"):
        FolderSource(tmp_path)
