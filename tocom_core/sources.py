"""Where images come from: folders, parquet files, WebDataset shards, the Hugging Face hub.

A source is opened once and gives encoded images and labels by index.  Several make one pool.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from tocom_core.decoding import UNREADABLE, decode_rgb
from tocom_core.errors import DataError
from tocom_core.folders import FolderSource, image_files, visible_files
from tocom_core.parquet import ParquetSource
from tocom_core.shards import ShardSource, expand_braces, is_shard

__all__ = [
    "UNREADABLE",
    "ConcatSource",
    "ImageSource",
    "SubsetSource",
    "decode_rgb",
    "open_part",
    "open_pool",
    "open_source",
]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|pipe:")
_CAPPED = re.compile(r"(.+)@(\d+)")
_USUAL_SPLITS = ("train", "val", "test")


class ImageSource(Protocol):
    """Labelled or unlabelled images by index."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int | None:
        """The class index of an image; ``None`` if it has none."""

    def image_bytes(self, index: int) -> bytes:
        """The encoded image; raises one of ``UNREADABLE`` if it cannot be had."""

    def name(self, index: int) -> str:
        """Where the image lies, for messages."""


class SubsetSource:
    """Some images of another source, by index."""

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices
        self.class_names = source.class_names

    def __len__(self) -> int:
        return len(self._indices)

    def label(self, index: int) -> int | None:
        """The class index of an image, if the source has labels."""
        return self._source.label(self._indices[index])

    def image_bytes(self, index: int) -> bytes:
        """The encoded image."""
        return self._source.image_bytes(self._indices[index])

    def name(self, index: int) -> str:
        """Where the image lies."""
        return self._source.name(self._indices[index])


class ConcatSource:
    """Several sources, one after the other.

    Labels are kept if all parts name the same classes in the same order, or none; a class index
    would mean different things otherwise, and the pool is unlabelled.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)
        self._ends = list(accumulate(len(source) for source in sources))
        self._labelled = len({source.class_names for source in sources}) == 1
        self.class_names = sources[0].class_names if self._labelled else ()

    def __len__(self) -> int:
        return self._ends[-1]

    def label(self, index: int) -> int | None:
        """The class index of an image, if the parts agree on classes."""
        source, place = self._find(index)
        return source.label(place) if self._labelled else None

    def image_bytes(self, index: int) -> bytes:
        """The encoded image."""
        source, place = self._find(index)
        return source.image_bytes(place)

    def name(self, index: int) -> str:
        """Where the image lies."""
        source, place = self._find(index)
        return source.name(place)

    def _find(self, index: int) -> tuple[ImageSource, int]:
        """The source that an image is in, and its index there."""
        number = bisect_right(self._ends, index)
        return self._sources[number], index - (self._ends[number - 1] if number else 0)


def open_pool(
    specs: Sequence[str | Path],
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
) -> ImageSource:
    """Open several data sets as one.

    Args:
        specs: as of ``open_source``, each perhaps with a cap: ``PLACE@2000`` takes at most 2,000
            of its images, evenly spread over it, so that one large set does not drown the others
            and sorted classes stay in proportion.  A file that really has such a name comes first.
        split: as of ``open_source``, for each of them.
        image_column: likewise.
        label_column: likewise.

    Raises:
        DataError: as ``open_source`` does, or a cap of 0.
    """
    if not specs:
        raise DataError("no data set was named; expected at least one place")
    sources = []
    for spec in specs:
        place, cap = _cap(str(spec))
        source = open_source(place, split, image_column, label_column)
        sources.append(source if cap is None else _spread(source, cap))
    return sources[0] if len(sources) == 1 else ConcatSource(sources)


def _cap(spec: str) -> tuple[str, int | None]:
    """Split off ``@N``."""
    found = _CAPPED.fullmatch(spec)
    if found is None or Path(spec).expanduser().exists():
        return spec, None
    if int(found[2]) < 1:
        raise DataError(f"{spec} takes no image; expected a number from 1 on behind the @")
    return found[1], int(found[2])


def _spread(source: ImageSource, count: int) -> ImageSource:
    """At most ``count`` images, evenly spread."""
    if count >= len(source):
        return source
    return SubsetSource(source, [number * len(source) // count for number in range(count)])


def open_source(
    spec: str | Path,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    *,
    need_split: bool = False,
) -> ImageSource:
    """Open a data set, or a part of it; arguments and errors as of ``open_part``."""
    return open_part(spec, split, image_column, label_column, need_split=need_split)[0]


def open_part(
    spec: str | Path,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    *,
    need_split: bool = False,
) -> tuple[ImageSource, str | None]:
    """Open a data set, or a part of it, and tell which.

    Args:
        spec: a folder of images (sub-folders are classes), a ``.parquet`` file or a folder of
            them, a WebDataset shard (``.tar``) or a folder of them, several files by braces
            (``train-{000..010}.tar``), or ``hub:owner/name`` for the parquet files of a data set
            on the Hugging Face hub.
        split: with folders of parquet files or shards, and the hub: only files whose path holds
            this word, or all if none has the name of a usual split (train, val, test); with a
            folder of images: its sub-folder of this name, if there is one.
        image_column: parquet column of the encoded images; for shards see ``ShardSource``.
        label_column: parquet column of the labels, need not exist; for shards see
            ``ShardSource``; ``None`` for no labels.
        need_split: refuse to open a place that is not split, instead of opening all of it.

    Returns:
        the images, and the part's name: ``split``, or ``None`` where all there is was taken.

    Raises:
        DataError: nothing is there, or it cannot be read; the message says what was expected.
    """
    path = _local(str(spec))
    columns = image_column, label_column
    if not path.is_dir():
        files = _named_files(path)
        if need_split:
            raise DataError(f"{path} has no part named {split!r}; name another place")
        return (ShardSource if is_shard(files[0]) else ParquetSource)(files, *columns), None
    if tables := _tables(path):
        files, part = _of_split(tables, path, split, need_split)
        return ParquetSource(files, *columns), part
    if split and (path / split).is_dir():
        return open_source(path / split, None, *columns), split
    if shards := _shards(path):
        files, part = _of_split(shards, path, split, need_split)
        return ShardSource(files, *columns), part
    if need_split:
        raise DataError(f"{path} has no part named {split!r}; name another place or make one")
    return FolderSource(path), None


def _local(spec: str) -> Path:
    """The place on this machine."""
    if spec.startswith("hub:"):
        return _download(spec.removeprefix("hub:"))
    if _ADDRESS.match(spec):
        raise DataError(f"{spec} is an address; download the files and name their local place")
    return Path(spec).expanduser()


def _download(repository: str) -> Path:
    """Fetch a hub data set's parquet files, or reuse the local cache."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(repository, repo_type="dataset", allow_patterns="*.parquet")
    except Exception as error:
        raise DataError(
            f"data set {repository!r} cannot be fetched from the hub ({error}); check the name and "
            "the network, or give a local folder"
        ) from error
    return Path(folder)


def _named_files(path: Path) -> list[Path]:
    """The file, or those that its braces stand for: all shards or all tables."""
    files = [path] if path.exists() else [Path(name) for name in expand_braces(str(path))]
    missing = [file for file in files if not file.is_file()]
    if missing and len(missing) < len(files):
        raise DataError(f"{len(missing)} of {len(files)} files are not there, first {missing[0]}")
    tables = [file for file in files if file.suffix == ".parquet"]
    shards = [file for file in files if is_shard(file)]
    if missing or not files or files not in (tables, shards):
        raise DataError(
            f"no data set at {path}: expected a folder, .parquet files, WebDataset shards (.tar) "
            "or hub:owner/name"
        )
    return files


def _tables(root: Path) -> list[Path]:
    """The parquet files below a folder; one beside a shard of its name only describes it."""
    found = (path for path in visible_files(root) if path.suffix == ".parquet")
    return sorted(path for path in found if not path.with_suffix(".tar").exists())


def _shards(root: Path) -> list[Path]:
    """The shards below a folder; compressed archives beside images are none."""
    found = sorted(path for path in visible_files(root) if is_shard(path))
    if not found or next(image_files(root), None) is None:
        return found
    plain = [path for path in found if path.suffix == ".tar"]
    if plain:
        raise DataError(
            f"{root} holds both image files and shards such as {plain[0].name}; name the shards "
            "themselves (train-{000..010}.tar), or move them away"
        )
    return []


def _of_split(
    files: Sequence[Path], root: Path, split: str | None, needed: bool
) -> tuple[list[Path], str | None]:
    """The files whose path below ``root`` holds the split's name, and that name.

    All of them and ``None`` where no file's path holds a usual one.
    """
    names = [file.relative_to(root).as_posix() for file in files]
    chosen = [f for f, name in zip(files, names, strict=True) if split is None or split in name]
    if chosen:
        return chosen, split
    if not needed and not any(usual in name for name in names for usual in _USUAL_SPLITS):
        return list(files), None
    raise DataError(
        f"no {files[0].suffix} file of split {split!r} in {root}; it has {names[:9]}, so name one "
        "of these parts, or the files themselves"
    )
