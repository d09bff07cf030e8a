"""Data sets in folders and parquet files, and what is said of those that cannot be read."""

import io
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.core.pictures import digit, digit_label, encoded, write_folder, write_parquet
from tocom_core.errors import DataError
from tocom_core.sources import UNREADABLE, SubsetSource, decode_rgb, open_source

# --- Folders --------------------------------------------------------------------------------------


def test_folder_with_one_sub_folder_per_class(tmp_path: Path) -> None:
    """Classes are the sub-folders in the order of their names; deeper folders belong to them."""
    write_folder(tmp_path, 30)
    deeper = tmp_path / "digit 3" / "more" / "x.PNG"
    deeper.parent.mkdir()
    deeper.write_bytes(encoded(3))
    (tmp_path / "digit 3" / "notes.txt").write_text("no image")
    (tmp_path / "digit 4" / "folder.png").mkdir()

    source = open_source(tmp_path)
    assert source.class_names == tuple(f"digit {i}" for i in range(10))
    assert len(source) == 31
    counts = [sum(digit_label(i) == d for i in range(30)) for d in range(10)]
    counts[3] += 1
    assert [sum(source.label(i) == d for i in range(31)) for d in range(10)] == counts
    assert decode_rgb(source.image_bytes(0)).size == (8, 8)


def test_folder_without_classes(tmp_path: Path) -> None:
    """Images directly in the folder have no label."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    source = open_source(str(tmp_path))
    assert (len(source), source.class_names) == (3, ())
    assert [source.label(i) for i in range(3)] == [None] * 3


def test_folder_with_parts(tmp_path: Path) -> None:
    """``split`` picks the sub-folder of that name; without one of that name all is taken."""
    write_folder(tmp_path / "train", 20)
    write_folder(tmp_path / "test", 10, first=20)
    assert len(open_source(tmp_path, "train")) == 20
    test = open_source(tmp_path, "test")
    assert len(test) == 10
    assert test.class_names[0].startswith("digit")
    assert len(open_source(tmp_path / "train", "train")) == 20


def test_a_part_that_must_exist(tmp_path: Path) -> None:
    """``need_split`` refuses a place without that part, so that nothing is validated on itself."""
    folder = write_folder(tmp_path / "images", 20)
    table = write_parquet(tmp_path / "t.parquet", [encoded(0)])
    for place in (folder, table):
        assert len(open_source(place, "test")) > 0
        with pytest.raises(DataError, match="no part named 'test'"):
            open_source(place, "test", need_split=True)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    """No folder, no image, and images both beside and in sub-folders."""
    with pytest.raises(DataError, match=r"no data set at .*absent"):
        open_source(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no image .*below"):
        open_source(tmp_path)
    write_folder(tmp_path, 5)
    (tmp_path / "stray.png").write_bytes(encoded(0))
    with pytest.raises(DataError, match="both directly and in sub-folders"):
        open_source(tmp_path)


# --- Parquet --------------------------------------------------------------------------------------


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    """Images from structs, labels from their column, class names from the metadata."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(i) for i in range(4)], [1, 0, 1, 1], "ab")
    source = open_source(path)
    assert len(source) == 4
    assert source.class_names == ("a", "b")
    assert [source.label(i) for i in range(4)] == [1, 0, 1, 1]
    assert [source.image_bytes(i) for i in range(4)] == [encoded(i) for i in range(4)]


def test_parquet_with_plain_bytes_other_columns_and_no_metadata(tmp_path: Path) -> None:
    """A column of bytes will do, under any name; without names or labels there are none."""
    pq.write_table(pa.table({"img": [encoded(0)], "fine": [7]}), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet", image_column="img", label_column="fine")
    assert (source.image_bytes(0), source.label(0), source.class_names) == (encoded(0), 7, ())
    assert open_source(tmp_path / "t.parquet", image_column="img").label(0) is None


def test_parquet_folder_in_several_files_and_parts(tmp_path: Path) -> None:
    """All files of a part are one data set, in the order of their names; folders have parts too."""
    write_parquet(tmp_path / "train-0001.parquet", [encoded(2)], [2])
    write_parquet(tmp_path / "train-0000.parquet", [encoded(0), encoded(1)], [0, 1])
    write_parquet(tmp_path / "test" / "0000.parquet", [encoded(3)], [3])
    train = open_source(tmp_path, "train", need_split=True)
    assert [train.label(i) for i in range(len(train))] == [0, 1, 2]
    assert train.image_bytes(2) == encoded(2)
    test = open_source(tmp_path, "test")
    assert [test.label(i) for i in range(len(test))] == [3]
    assert len(open_source(tmp_path)) == 4
    with pytest.raises(DataError, match=r"no parquet file of split 'validation'.*train-0000"):
        open_source(tmp_path, "validation")


def test_hidden_and_missing_labels_are_none(tmp_path: Path) -> None:
    """The hub marks hidden labels with -1; a null is no label either."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)] * 3, [-1, None, 2])
    source = open_source(path)
    assert [source.label(i) for i in range(3)] == [None, None, 2]


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    """A wrong column, no images in it, labels that are words, and a broken file."""
    path = write_parquet(tmp_path / "t.parquet", [encoded(0)], ["cat"])
    with pytest.raises(DataError, match=r"no column 'img' but \['image', 'label'\]"):
        open_source(path, image_column="img")
    with pytest.raises(DataError, match="'label' holds string, not class indices"):
        open_source(path)
    with pytest.raises(DataError, match="'label' holds string, not encoded images"):
        open_source(path, image_column="label")
    broken = tmp_path / "broken.parquet"
    for content in (b"", b"noise", path.read_bytes()[:-20]):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"broken\.parquet"):
            open_source(broken)


def test_a_row_without_bytes_is_named(tmp_path: Path) -> None:
    """An image that is only a path in the table cannot be had; the error says which row."""
    source = open_source(write_parquet(tmp_path / "t.parquet", [encoded(0), None]))
    with pytest.raises(DataError, match="row 1 holds no image bytes"):
        source.image_bytes(1)


def test_hub_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub data set that cannot be fetched is a DataError that says what to do."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"'someone/something' cannot be fetched.*local folder"):
        open_source("hub:someone/something")


# --- Parts and pictures ---------------------------------------------------------------------------


def test_subset_picks_by_index(tmp_path: Path) -> None:
    """A subset renumbers the images that it keeps."""
    path = write_parquet(
        tmp_path / "t.parquet", [encoded(i) for i in range(4)], [0, 1, 2, 3], "abcd"
    )
    subset = SubsetSource(open_source(path), [3, 1])
    assert len(subset) == 2
    assert subset.class_names == ("a", "b", "c", "d")
    assert [subset.label(i) for i in range(2)] == [3, 1]
    assert subset.image_bytes(1) == encoded(1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_decodes_to_rgb(kind: str) -> None:
    """What a data set may hold comes out as RGB."""
    image = decode_rgb(encoded(0, kind))
    assert (image.mode, image.size) == ("RGB", (8, 8))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_mode_decodes_to_rgb(mode: str) -> None:
    """Grey, palette, transparent, CMYK and 16-bit images come out as RGB."""
    buffer = io.BytesIO()
    digit(0).convert("L").convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert decode_rgb(buffer.getvalue()).mode == "RGB"


def _bomb() -> bytes:
    """A small PNG that claims to be 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", encoded(0)[:40], encoded(0, "JPEG")[:120], _bomb()],
    ids=["empty", "text", "cut png", "cut jpeg", "bomb"],
)
def test_what_is_no_image_raises_what_callers_expect(content: bytes) -> None:
    """Every failure to decode is one of ``UNREADABLE``."""
    with pytest.raises(UNREADABLE):
        decode_rgb(content)


def test_the_picture_is_the_one_that_was_written() -> None:
    """Decoding a lossless file gives the very pixels."""
    assert decode_rgb(encoded(5)).tobytes() == digit(5).tobytes()
