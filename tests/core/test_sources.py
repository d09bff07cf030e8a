"""Which kind of data set a place is, its parts, and several places as one pool."""

from pathlib import Path

import pytest

from tests.core.pictures import (
    digit_label,
    encoded,
    write_folder,
    write_parquet,
    write_shard,
    write_tar,
)
from tocom_core.errors import DataError
from tocom_core.sources import ConcatSource, SubsetSource, open_part, open_pool, open_source

# --- Places and their parts -----------------------------------------------------------------------


def test_folder_with_parts(tmp_path: Path) -> None:
    """``split`` picks the sub-folder of that name; without one of that name all is taken."""
    write_folder(tmp_path / "train", 20)
    write_folder(tmp_path / "test", 10, first=20)
    assert len(open_source(tmp_path, "train")) == 20
    test = open_source(tmp_path, "test")
    assert len(test) == 10
    assert test.class_names[0].startswith("digit")
    assert len(open_source(str(tmp_path / "train"), "train")) == 20
    assert open_part(tmp_path, "train")[1] == "train"
    assert open_part(tmp_path / "train", "train")[1] is None, "all of it was taken"


def test_a_part_that_must_exist(tmp_path: Path) -> None:
    """``need_split`` refuses a place without that part, so that nothing is validated on itself."""
    folder = write_folder(tmp_path / "images", 20)
    table = write_parquet(tmp_path / "t.parquet", [encoded(0)])
    shard = write_shard(tmp_path / "shards" / "0.tar", range(3))
    for place in (folder, table, shard, shard.parent):
        images, part = open_part(place, "test")
        assert len(images) > 0 and part is None
    for place in (folder, table, shard):
        with pytest.raises(DataError, match="no part named 'test'"):
            open_source(place, "test", need_split=True)
    with pytest.raises(DataError, match=r"no \.tar file of split 'test'"):
        open_source(shard.parent, "test", need_split=True)
    write_shard(tmp_path / "parts" / "test-0.tar", range(3))
    write_parquet(tmp_path / "tables" / "test.parquet", [encoded(0)])
    for name in ("parts", "tables"):
        assert open_part(tmp_path / name, "test", need_split=True)[1] == "test"


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
    with pytest.raises(DataError, match=r"no \.parquet file of split 'validation'.*train-0000"):
        open_source(tmp_path, "validation")


def test_shards_by_file_folder_braces_and_part(tmp_path: Path) -> None:
    """One shard, all below a folder in the order of their names, those of a range, or of a part."""
    for number in range(3):
        write_shard(tmp_path / f"train-{number:03d}.tar", range(4 * number, 4 * number + 4))
    write_shard(tmp_path / "val" / "000.tar", range(20, 22))
    assert len(open_source(tmp_path)) == 14
    assert len(open_source(tmp_path / "train-001.tar")) == 4
    source = open_source(f"{tmp_path}/train-{{001..002}}.tar")
    assert [source.image_bytes(i) for i in range(8)] == [encoded(i) for i in range(4, 12)]
    assert [source.label(i) for i in range(8)] == [digit_label(i) for i in range(4, 12)]
    assert len(open_source(tmp_path, "train")) == 12
    assert len(open_source(tmp_path, "val", need_split=True)) == 2
    with pytest.raises(DataError, match=r"1 of 3 files are not there, first .*train-003\.tar"):
        open_source(f"{tmp_path}/train-{{001..003}}.tar")
    with pytest.raises(DataError, match=r"no data set at .*\{7\.\.9\}"):
        open_source(f"{tmp_path}/{{7..9}}.tar")


def test_a_split_means_nothing_where_files_name_none(tmp_path: Path) -> None:
    """Files that are only numbered are not split: a usual word picks all of them."""
    write_shard(tmp_path / "shards" / "00000.tar", range(4))
    write_parquet(tmp_path / "tables" / "0000.parquet", [encoded(0)] * 3)
    assert len(open_source(tmp_path / "shards", "train")) == 4
    assert len(open_source(tmp_path / "tables", "train")) == 3


def test_tables_that_describe_shards_are_no_data(tmp_path: Path) -> None:
    """A parquet file beside the shard of its name holds metadata, not images."""
    write_shard(tmp_path / "00000.tar", range(4))
    write_parquet(tmp_path / "00000.parquet", [], image_column="url")
    assert len(open_source(tmp_path)) == 4


def test_shards_beside_images(tmp_path: Path) -> None:
    """Which of both is meant must be said; the compressed original of a folder is left alone."""
    write_folder(tmp_path / "images", 10)
    (tmp_path / "images" / "download.tar.gz").write_bytes(b"an archive")
    assert len(open_source(tmp_path / "images")) == 10
    write_shard(tmp_path / "train.tar", range(3))
    with pytest.raises(DataError, match=r"both image files and shards such as train\.tar"):
        open_source(tmp_path)
    write_folder(tmp_path / "train", 6)
    assert len(open_source(tmp_path, "train")) == 6


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    """They are not taken for an empty folder."""
    (tmp_path / "0.tar.gz").write_bytes(b"\x1f\x8b\x08")
    for place in (tmp_path, tmp_path / "0.tar.gz"):
        with pytest.raises(DataError, match=r"0\.tar\.gz is compressed"):
            open_source(place)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/train-{000..010}.tar", "s3://bucket/x.tar", "pipe:cat x.tar"],
)
def test_addresses_are_refused(address: str) -> None:
    """What lies elsewhere has to be fetched first."""
    with pytest.raises(DataError, match="is an address; download"):
        open_source(address)


def test_no_data_set_at_all(tmp_path: Path) -> None:
    """An absent place, a file of another kind and a folder without data say what was expected."""
    (tmp_path / "notes.txt").write_text("nothing")
    for name in ("absent", "notes.txt"):
        with pytest.raises(DataError, match=rf"no data set at .*{name}: expected a folder"):
            open_source(tmp_path / name)
    with pytest.raises(DataError, match=r"no image .*below"):
        open_source(tmp_path)


def test_hub_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub data set that cannot be fetched is a DataError that says what to do."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"'someone/something' cannot be fetched.*local folder"):
        open_source("hub:someone/something")


# --- Subsets and pools ----------------------------------------------------------------------------


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
    assert subset.name(1) == f"row 1 of {path}"


def test_several_places_are_one_pool(tmp_path: Path) -> None:
    """Images of all kinds of places stand one after the other; one place is just itself."""
    folder = write_folder(tmp_path / "images", 10)
    table = write_parquet(tmp_path / "t.parquet", [encoded(i) for i in range(20, 23)])
    shard = write_shard(tmp_path / "shards" / "0.tar", range(30, 35)).parent
    pool = open_pool([folder, str(table), shard])
    assert len(pool) == 18
    contents = [pool.image_bytes(i) for i in range(18)]
    assert sorted(contents[:10]) == sorted(encoded(i) for i in range(10))
    assert contents[10:] == [encoded(i) for i in (*range(20, 23), *range(30, 35))]
    assert [pool.name(i).rsplit(" of ")[-1] for i in (10, 13)] == [str(table), str(shard / "0.tar")]
    assert not isinstance(open_pool([table]), ConcatSource)


def test_a_pool_has_labels_if_its_parts_agree_on_classes(tmp_path: Path) -> None:
    """Class 1 of one set is not class 1 of another; then the pool is unlabelled."""

    def table(name: str, labels: list[int], names: str) -> Path:
        return write_parquet(tmp_path / name, [encoded(0)] * len(labels), labels, names)

    one, same = table("1.parquet", [0, 1], "ab"), table("2.parquet", [1], "ab")
    other, nameless = table("3.parquet", [0], "ba"), table("4.parquet", [1], "")
    pool = open_pool([one, same])
    assert (pool.class_names, [pool.label(i) for i in range(3)]) == (("a", "b"), [0, 1, 1])
    for different in (other, nameless):
        pool = open_pool([one, different])
        assert (pool.class_names, [pool.label(i) for i in range(3)]) == ((), [None] * 3)


def test_a_cap_takes_evenly_spread_images(tmp_path: Path) -> None:
    """``PLACE@N`` takes at most N, from all over the place, the same ones each time."""
    table = write_parquet(tmp_path / "t.parquet", [encoded(i) for i in range(9)], list(range(9)))
    pool = open_pool([f"{table}@3"])
    assert [pool.label(i) for i in range(len(pool))] == [0, 3, 6]
    assert [len(open_pool([f"{table}@{n}"])) for n in (1, 8, 9, 1000)] == [1, 8, 9, 9]
    assert len(open_pool([f"{table}@2", table])) == 11
    with pytest.raises(DataError, match="@0 takes no image"):
        open_pool([f"{table}@0"])
    with pytest.raises(DataError, match=r"no data set at .*absent:"):
        open_pool([tmp_path / "absent@3"])


def test_a_place_whose_name_looks_like_a_cap(tmp_path: Path) -> None:
    """What is there under the very name is taken as it is, and can be capped in turn."""
    folder = write_folder(tmp_path / "icons@2", 10)
    assert len(open_pool([folder])) == 10
    assert len(open_pool([f"{folder}@4"])) == 4


def test_a_pool_of_shards_that_a_shell_has_spelled_out(tmp_path: Path) -> None:
    """Unquoted braces arrive as single files: the same images, and still their labels."""
    files = [write_shard(tmp_path / f"{n}.tar", range(3 * n, 3 * n + 3)) for n in range(3)]
    pool, folder = open_pool(files), open_source(tmp_path)
    assert [pool.image_bytes(i) for i in range(9)] == [folder.image_bytes(i) for i in range(9)]
    assert [pool.label(i) for i in range(9)] == [digit_label(i) for i in range(9)]


def test_an_empty_pool_is_refused() -> None:
    """At least one place must be named."""
    with pytest.raises(DataError, match="no data set was named"):
        open_pool([])


def test_a_pool_in_which_one_place_is_bad(tmp_path: Path) -> None:
    """The error is that of the place."""
    empty = write_tar(tmp_path / "t.tar", {})
    with pytest.raises(DataError, match=r"no image in .*t\.tar"):
        open_pool([write_folder(tmp_path / "images", 3), empty])
