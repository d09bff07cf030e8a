"""Parquet tables of images, and what is said of those that cannot be read."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.core.pictures import encoded, write_parquet
from tocom_core.errors import DataError
from tocom_core.parquet import ParquetSource


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    """Images from structs, labels from their column, class names from the metadata."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(i) for i in range(4)], [1, 0, 1, 1], "ab")
    source = ParquetSource([path])
    assert len(source) == 4
    assert source.class_names == ("a", "b")
    assert [source.label(i) for i in range(4)] == [1, 0, 1, 1]
    assert [source.image_bytes(i) for i in range(4)] == [encoded(i) for i in range(4)]


def test_parquet_with_plain_bytes_other_columns_and_no_metadata(tmp_path: Path) -> None:
    """A column of bytes will do, under any name; without names or labels there are none."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"img": [encoded(0)], "fine": [7]}), path)
    source = ParquetSource([path], "img", "fine")
    assert (source.image_bytes(0), source.label(0), source.class_names) == (encoded(0), 7, ())
    assert ParquetSource([path], "img").label(0) is None
    assert ParquetSource([path], "img", None).label(0) is None


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    """Rows go on from file to file, and an image's name says which."""
    first = write_parquet(tmp_path / "0.parquet", [encoded(0), encoded(1)], [0, 1])
    second = write_parquet(tmp_path / "1.parquet", [encoded(2)], [2])
    source = ParquetSource([first, second])
    assert [source.label(i) for i in range(3)] == [0, 1, 2]
    assert [source.name(i) for i in range(3)] == [
        f"row 0 of {first}",
        f"row 1 of {first}",
        f"row 0 of {second}",
    ]


def test_hidden_and_missing_labels_are_none(tmp_path: Path) -> None:
    """The hub marks hidden labels with -1; a null is no label either."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)] * 3, [-1, None, 2])
    source = ParquetSource([path])
    assert [source.label(i) for i in range(3)] == [None, None, 2]


@pytest.mark.parametrize("as_dictionary", [False, True])
def test_labels_may_be_names(tmp_path: Path, as_dictionary: bool) -> None:
    """Classes are numbered as the table's metadata says, else by the alphabet, as in folders."""
    words = pa.array(["dog", "cat", None, "dog"])
    labels: Any = words.dictionary_encode() if as_dictionary else words
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)] * 4, labels)
    source = ParquetSource([path])
    assert source.class_names == ("cat", "dog")
    assert [source.label(i) for i in range(4)] == [1, 0, None, 1]

    path = write_parquet(tmp_path / "u.parquet", [encoded(0)] * 4, labels, ["dog", "bird", "cat"])
    source = ParquetSource([path])
    assert source.class_names == ("dog", "bird", "cat")
    assert [source.label(i) for i in range(4)] == [0, 2, None, 0]

    path = write_parquet(tmp_path / "v.parquet", [encoded(0)] * 4, labels, ["dog", "bird"])
    with pytest.raises(DataError, match=r"\['cat'\], which are not among .*\['dog', 'bird'\]"):
        ParquetSource([path])


def test_labels_may_be_yes_or_no(tmp_path: Path) -> None:
    """A column of truth values has the classes 0 and 1."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)] * 2, [True, False])
    assert [ParquetSource([path]).label(i) for i in range(2)] == [1, 0]


def test_a_wrong_column_is_answered_with_the_likely_ones(tmp_path: Path) -> None:
    """The error names the columns that there are, and those that hold images."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)], [1], image_column="img")
    with pytest.raises(DataError, match=r"no column 'image' but \['img', 'label'\]; .*'img' looks"):
        ParquetSource([path])
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DataError, match=r"no column 'image' but \['x'\]; name the image column$"):
        ParquetSource([path])


def test_columns_of_something_else_are_refused(tmp_path: Path) -> None:
    """Images that are numbers, and labels that are lists, which those who need none can skip."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)], [[1, 2]])
    with pytest.raises(
        DataError, match=r"'label' holds list.*neither class indices nor class names"
    ):
        ParquetSource([path])
    assert ParquetSource([path], label_column=None).label(0) is None
    pq.write_table(pa.table({"image": [1]}), path)
    with pytest.raises(DataError, match="'image' holds int64, not encoded images"):
        ParquetSource([path])


@pytest.mark.parametrize("kind", ["text", "struct"])
def test_a_column_of_paths_is_refused(tmp_path: Path, kind: str) -> None:
    """A table that only says where the images once lay cannot be trained on."""
    path = tmp_path / "t.parquet"
    where: Any = "cats/0001.jpg"
    value = where if kind == "text" else {"bytes": pa.scalar(None, pa.binary()), "path": where}
    pq.write_table(pa.table({"image": pa.array([value])}), path)
    with pytest.raises(DataError, match=r"'image' holds .*'?cats/0001\.jpg.*not encoded images"):
        ParquetSource([path])


def test_broken_files_are_refused(tmp_path: Path) -> None:
    """No table, a cut table, an empty one, and tables that do not fit together."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)], [1])
    broken = tmp_path / "broken.parquet"
    for content in (b"", b"noise", path.read_bytes()[:-20]):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.parquet cannot be read"):
            ParquetSource([broken])
    with pytest.raises(DataError, match=r"empty\.parquet holds no row"):
        ParquetSource([write_parquet(tmp_path / "empty.parquet", [])])
    other = write_parquet(tmp_path / "other.parquet", [encoded(0)], ["cat"])
    with pytest.raises(DataError, match=r"t\.parquet, .*other\.parquet cannot be read"):
        ParquetSource([path, other])


def test_a_row_without_bytes_is_named(tmp_path: Path) -> None:
    """One image that is only a path in the table cannot be had; the error says which row."""
    source = ParquetSource([write_parquet(tmp_path / "t.parquet", [encoded(0), None])])
    with pytest.raises(DataError, match="row 1 holds no image bytes"):
        source.image_bytes(1)
