"""WebDataset shards: images and labels in tar files, by index.

The format is made to be read from front to back; training here asks for image number n, so that a
run resumes exactly and any number of processes shares the work.  So the headers are read once on
opening, some ten thousand a second, and an image later from its place in the file.  An index costs
32 bytes per image and holds no open file, so that worker processes can have it in any way.

WebDataset's conventions: files of one sample share their key, which is the path up to the first
dot of the file's own name; what follows, in lower case, says what the file is.
"""

import json
import os
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tocom_core.decoding import IMAGE_SUFFIXES
from tocom_core.errors import DataError, DataWarning

_DEFAULT_IMAGE, _DEFAULT_LABEL = "image", "label"
# What gzip, bzip2, xz and zstd files begin with.
_COMPRESSED = re.compile(rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\x00|\x28\xb5\x2f\xfd")
_BLOCK = 512
_LARGEST_LABEL = 2**31 - 1
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class ShardSource:
    """The images of some shards, in the order of the files and of their members.

    Args:
        files: uncompressed tar files.
        image_column: which image to take where a sample has several: the suffix of
            ``0001.<image_column>.jpg`` or ``0001.<image_column>``.
        label_column: suffix of a file that holds the class index, or key of that number in
            ``.json``.  The default also reads WebDataset's ``.cls``; ``None`` for no labels.

    Samples without an image are left out.  A label that is no class index counts as none, with
    one ``DataWarning``.

    Raises:
        DataError: a shard is compressed, cut short or no tar file, holds two members of one name,
            or all of them hold no image.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        files: Sequence[Path],
        image_column: str = _DEFAULT_IMAGE,
        label_column: str | None = _DEFAULT_LABEL,
    ) -> None:
        self._files = list(files)
        bad: list[str] = []
        rows = [_index(file, image_column, label_column, bad) for file in self._files]
        self._shards = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        self._rows = np.concatenate(rows)  # offset, size, label
        if not len(self._rows):
            raise DataError(
                f"no image in {self._files[0]}{' and the other shards' * (len(rows) > 1)}: "
                "expected members such as 0001.jpg with 0001.cls, or, with --image-column x, "
                "0001.x.jpg"
            )
        if bad:
            warnings.warn(
                f"{len(bad)} labels are no class indices and count as none; the first is {bad[0]}",
                DataWarning,
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._rows)

    def label(self, index: int) -> int | None:
        """The class index of an image, if its sample has one."""
        label = int(self._rows[index, 2])
        return None if label < 0 else label

    def image_bytes(self, index: int) -> bytes:
        """The encoded image, read from its place in the shard."""
        offset, size, _ = map(int, self._rows[index])
        with self._file(index).open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) != size:
            raise DataError(f"{self._file(index)} is shorter than when it was opened")
        return content

    def name(self, index: int) -> str:
        """The member and its shard, for messages; read from the header in front of the image."""
        try:
            with self._file(index).open("rb", buffering=0) as file:
                header = os.pread(file.fileno(), _BLOCK, int(self._rows[index, 0]) - _BLOCK)
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (tarfile.TarError, OSError):
            member = f"image {index}"
        return f"{member} of {self._file(index)}"

    def _file(self, index: int) -> Path:
        return self._files[int(self._shards[index])]


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a tar file, compressed or not."""
    return path.suffix.lower() in (".tar", ".tgz") or ".tar." in path.name.lower()


def expand_braces(pattern: str) -> list[str]:
    """File names from ``train-{000..010}.tar`` or ``{a,b}.tar``, the leftmost varying slowest.

    A number keeps the width of its range's ends if one of them starts with 0.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for choice in _choices(found[1]) for name in expand_braces(head + choice + tail)]


def _choices(text: str) -> list[str]:
    """What one pair of braces stands for."""
    ends = _RANGE.fullmatch(text)
    if ends is None:
        return text.split(",")
    first, last = int(ends[1]), int(ends[2])
    padded = any(end.startswith("0") and len(end) > 1 for end in ends.groups())
    width = max(map(len, ends.groups())) if padded else 0
    numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return [f"{number:0{width}d}" for number in numbers]


class _Place(NamedTuple):
    """Where a member's content lies in its shard."""

    offset: int
    size: int


class _Member(NamedTuple):
    """One file in a shard: its name, and the two parts that WebDataset splits it into."""

    name: str
    key: str
    suffix: str
    place: _Place


def _members(shard: Path) -> Iterator[_Member]:
    """All files of a shard that have a key."""
    try:
        with shard.open("rb") as file:
            if _COMPRESSED.match(file.read(10)):
                raise DataError(
                    f"{shard} is compressed, so that no image can be read by itself; decompress "
                    "it (JPEG and PNG are compressed already)"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept
                    parts = _KEY.fullmatch(info.name)
                    if info.isreg() and parts is not None:
                        place = _Place(info.offset_data, info.size)
                        yield _Member(info.name, parts[1], parts[2].lower(), place)
                rest = os.pread(file.fileno(), _BLOCK, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{shard} cannot be read as a tar file: {error}") from error
    if rest.strip(b"\0"):  # tarfile takes a broken header for the end
        raise DataError(
            f"{shard} is broken at byte {tar.offset}; fetch or write it again, or leave it out"
        )


def _index(
    shard: Path, image_column: str, label_column: str | None, bad: list[str]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Offset, size and label (-1: none) of every image; bad labels are added to ``bad``."""
    samples: dict[str, dict[str, _Place]] = {}
    for name, key, suffix, place in _members(shard):
        sample = samples.setdefault(key, {})
        if suffix in sample:
            raise DataError(f"{shard} holds {name} twice; each sample needs a key of its own")
        sample[suffix] = place
    rows: list[tuple[int, int, int]] = []
    with shard.open("rb", buffering=0) as file:

        def read(place: _Place) -> bytes:
            return os.pread(file.fileno(), place.size, place.offset)

        for key, sample in samples.items():
            image = _image(sample, image_column, f"{key} of {shard}")
            if image is None:
                continue
            try:
                label = _label(sample, label_column, read)
            except (ValueError, TypeError) as error:
                label = -1
                bad.append(f"of {key} in {shard}: {error}")
            rows.append((*image, label))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _image(sample: Mapping[str, _Place], column: str, name: str) -> _Place | None:
    """The sample's image: the one that is named, else the only one."""
    images = [s for s in sample if f".{s.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    named = [s for s in sample if s == column or (s in images and s.startswith(f"{column}."))]
    plain = [s for s in images if "." not in s]
    chosen = named or (plain or images) * (column == _DEFAULT_IMAGE)
    if len(chosen) > 1:
        raise DataError(f"{name} has several images ({', '.join(chosen)}); name --image-column")
    return sample[chosen[0]] if chosen else None


def _label(
    sample: Mapping[str, _Place], column: str | None, read: Callable[[_Place], bytes]
) -> int:
    """The class index, -1 without one; ``ValueError`` or ``TypeError`` if it is no number."""
    if column is None:
        return -1
    names = (_DEFAULT_LABEL, "cls") if column == _DEFAULT_LABEL else (column,)
    for name in names:
        if name in sample:
            return _integer(read(sample[name]))
    content = json.loads(read(sample["json"])) if "json" in sample else None
    if isinstance(content, dict):
        for name in names:
            if name in content:
                return _integer(content[name])
    return -1


def _integer(value: Any) -> int:
    """What stands for a class index, as one."""
    number = int(value)
    fraction = isinstance(value, float) and not value.is_integer()
    if isinstance(value, bool) or fraction or number > _LARGEST_LABEL:
        raise ValueError(f"{value} is no class index")
    return number
