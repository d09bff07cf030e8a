"""WebDataset shards by index, and what is said of those that cannot be read."""

import gzip
import json
import multiprocessing
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.pictures import digit_label, encoded, write_shard, write_tar
from tocom_core.errors import DataError, DataWarning
from tocom_core.shards import ShardSource, expand_braces, is_shard


def test_images_and_labels_by_index(tmp_path: Path) -> None:
    """Shards go on from one to the next; any image can be had in any order."""
    files = [write_shard(tmp_path / f"{n}.tar", range(4 * n, 4 * n + 4)) for n in range(3)]
    source = ShardSource(files)
    assert (len(source), source.class_names) == (12, ())
    for index in (11, 0, 5, 4, 11):
        assert source.image_bytes(index) == encoded(index)
        assert source.label(index) == digit_label(index)
    assert source.name(5) == f"000005.png of {files[1]}"


def test_files_of_one_key_are_one_sample(tmp_path: Path) -> None:
    """The key ends at the first dot of the file's own name, whatever stands in between."""
    members = {
        "a.b/x.cls": b"1",
        "a.b/y.cls": b"2",
        "a.b/y.PNG": encoded(1),
        "a.b/x.crop.png": encoded(0),
        "x.cls": b"3",
        "x.png": encoded(2),
        "a.b/.x.png": encoded(3),
        "without a suffix": encoded(4),
        "only.cls": b"4",
    }
    source = ShardSource([write_tar(tmp_path / "t.tar", members)])
    found = {source.image_bytes(i): source.label(i) for i in range(len(source))}
    assert found == {encoded(0): 1, encoded(1): 2, encoded(2): 3}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar(tmp_path: Path, format: int) -> None:
    """Long names, folders and empty files stand between the images in each dialect."""
    key = "d" * 90 + "/" + "n" * 90
    members = {f"{key}.cls": b"5", f"{key}.txt": b"", f"{key}.png": encoded(5)}
    source = ShardSource([write_tar(tmp_path / "t.tar", members, format)])
    assert (len(source), source.image_bytes(0), source.label(0)) == (1, encoded(5), 5)
    assert source.name(0).endswith(f"of {tmp_path / 't.tar'}")


@pytest.mark.parametrize(
    ("name", "content", "label"),
    [
        ("cls", b"7\n", 7),
        ("label", b" 7", 7),
        ("json", b'{"label": 7, "caption": "seven"}', 7),
        ("json", b'{"cls": 7.0}', 7),
        ("json", b'{"label": "7"}', 7),
        ("json", b'{"caption": "seven"}', None),
        ("json", b"[7]", None),
        ("txt", b"7", None),
        ("cls", b"-1", None),
    ],
)
def test_where_a_label_may_stand(
    tmp_path: Path, name: str, content: bytes, label: int | None
) -> None:
    """A number in ``.cls``, or in ``.json`` under ``label`` or ``cls``; -1 is none."""
    path = write_tar(tmp_path / "t.tar", {"0.png": encoded(0), f"0.{name}": content})
    assert ShardSource([path]).label(0) == label


def test_a_label_by_another_name(tmp_path: Path) -> None:
    """``label_column`` names a suffix or a key of the JSON; ``None`` wants no labels."""
    content = json.dumps({"coarse": 2, "label": 9}).encode()
    members = {"0.png": encoded(0), "0.fine": b"4", "0.cls": b"1", "0.json": content}
    path = write_tar(tmp_path / "t.tar", members)
    for column, label in {"fine": 4, "coarse": 2, "label": 1, None: None, "x": None}.items():
        assert ShardSource([path], label_column=column).label(0) == label


def test_bad_labels_count_as_none_with_one_warning(tmp_path: Path) -> None:
    """Distillation needs no labels: one that is no class index must not end a run."""
    contents = {
        "cls": [b"cat", b"", b"\xff", b"9" * 30],
        "json": [b"{", b'{"label": 1.5}', b'{"label": true}', b'{"label": [1]}', b"\xff"],
    }
    members = {"good.png": encoded(0), "good.cls": b"3"}
    for name, values in contents.items():
        for number, content in enumerate(values):
            members |= {f"{name}{number}.png": encoded(1), f"{name}{number}.{name}": content}
    path = write_tar(tmp_path / "t.tar", members)
    with pytest.warns(DataWarning, match="9 labels are no class indices.*of cls0 in .*cat") as all_:
        source = ShardSource([path])
    assert len(all_) == 1
    assert [source.label(i) for i in range(len(source))] == [3] + [None] * 9


def test_several_images_in_a_sample(tmp_path: Path) -> None:
    """The image that bears the column's name is taken; else there must be only one."""
    members = {"0.left.png": encoded(0), "0.right.png": encoded(1), "1.left.png": encoded(2)}
    path = write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DataError, match=r"0 of .*several images \(left\.png, right\.png\)"):
        ShardSource([path])
    left, right = ShardSource([path], "left"), ShardSource([path], "right.png")
    assert [left.image_bytes(i) for i in range(len(left))] == [encoded(0), encoded(2)]
    assert [right.image_bytes(i) for i in range(len(right))] == [encoded(1)]
    with pytest.raises(DataError, match=r"no image in .*--image-column"):
        ShardSource([path], "middle")

    path = write_tar(tmp_path / "u.tar", {"0.png": encoded(0), "0.mask.png": encoded(1)})
    assert ShardSource([path]).image_bytes(0) == encoded(0)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_without_each_other(tmp_path: Path, start: str) -> None:
    """However processes are started, each reads the images that it was asked for."""
    files = [write_shard(tmp_path / f"{n}.tar", range(20 * n, 20 * n + 20)) for n in range(2)]
    source = ShardSource(files)
    source.image_bytes(0)
    order = [7 * n % 40 for n in range(40)]
    with multiprocessing.get_context(start).Pool(2) as pool:
        contents = pool.map(source.image_bytes, order, chunksize=1)
    assert contents == [encoded(index) for index in order]


def test_the_index_is_small(tmp_path: Path) -> None:
    """What a worker process is sent grows by a few bytes per image, not by names."""
    members = {f"{'long name ' * 8}{n:05d}.png": b"x" for n in range(1000)}
    path = write_tar(tmp_path / "t.tar", members)
    assert len(pickle.dumps(ShardSource([path]))) < 40_000


# --- What cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.tar.gz", "t.tgz", "t.tar"])
def test_a_compressed_shard_is_refused(tmp_path: Path, name: str) -> None:
    """An image inside a compressed file cannot be reached by itself, whatever the file's name."""
    content = write_shard(tmp_path / "plain.tar", range(3)).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content))
    assert is_shard(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is compressed.*decompress"):
        ShardSource([tmp_path / name])


def test_broken_shards_are_refused(tmp_path: Path) -> None:
    """No tar, a cut one, one with a damaged header, and an absent one are named."""
    content = write_shard(tmp_path / "good.tar", range(5)).read_bytes()
    middle = content.index(b"000003.cls")
    broken = {
        b"": "cannot be read as a tar file",
        b"noise" * 300: "cannot be read as a tar file",
        content[: content.index(b"000003.png") + 512 + 10]: "cannot be read as a tar file",
        content[:middle] + b"XX" + content[middle + 2 :]: f"is broken at byte {middle}",
    }
    path = tmp_path / "broken.tar"
    for bad, message in broken.items():
        path.write_bytes(bad)
        with pytest.raises(DataError, match=rf"broken\.tar {message}"):
            ShardSource([tmp_path / "good.tar", path])
    with pytest.raises(DataError, match=r"absent\.tar cannot be read"):
        ShardSource([tmp_path / "absent.tar"])


def test_a_shard_without_images_is_refused(tmp_path: Path) -> None:
    """Not if another one has some."""
    empty = write_tar(tmp_path / "empty.tar", {})
    texts = write_tar(tmp_path / "texts.tar", {"0.txt": b"no image"})
    for files in ([empty], [empty, texts]):
        with pytest.raises(DataError, match=r"no image in .*empty\.tar.*expected"):
            ShardSource(files)
    assert len(ShardSource([empty, texts, write_shard(tmp_path / "t.tar", range(2))])) == 2


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    """A key that is not a sample's own would hide all images but one."""
    path = write_tar(tmp_path / "t.tar", {"0.png": encoded(0), "0.PNG": encoded(1)})
    with pytest.raises(DataError, match=r"holds 0\.PNG twice; each sample needs a key"):
        ShardSource([path])


def test_a_shard_that_shrinks_or_vanishes_is_an_unreadable_image(tmp_path: Path) -> None:
    """Training counts it as skipped and goes on; its name can still be told."""
    path = write_shard(tmp_path / "t.tar", range(2))
    source = ShardSource([path])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="shorter than when it was opened"):
        source.image_bytes(1)
    path.unlink()
    with pytest.raises(OSError, match=r"t\.tar"):
        source.image_bytes(1)
    assert source.name(1) == f"image 1 of {path}"


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("{008..010}", ["008", "009", "010"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{00..01}-{a,b}", ["00-a", "00-b", "01-a", "01-b"]),
        ("{none}", ["{none}"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    """Ranges and lists stand for several names, as in a shell."""
    assert expand_braces(pattern) == names


@given(first=st.integers(0, 120), count=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_padded_braces_name_what_a_writer_counts(first: int, count: int) -> None:
    """``{000100..000111}`` gives the names that ``%06d`` gives."""
    last = first + count - 1
    expected = [f"{n:06d}.tar" for n in range(first, last + 1)]
    assert expand_braces(f"{{{first:06d}..{last:06d}}}.tar") == expected
