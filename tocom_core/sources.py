"""Where images come from: folders, parquet files, the Hugging Face hub.

A source is opened once and gives encoded images and labels by index.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from tocom_core.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# What reading and decoding an image may raise.
UNREADABLE = (OSError, ValueError, SyntaxError, DataError, Image.DecompressionBombError)


class ImageSource(Protocol):
    """Labelled or unlabelled images by index."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int | None:
        """The class index of an image; ``None`` if it has none."""

    def image_bytes(self, index: int) -> bytes:
        """The encoded image."""


class FolderSource:
    """Images below a folder: one sub-folder per class, or all in one folder without labels."""

    def __init__(self, root: Path) -> None:
        found = sorted(
            p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        )
        if not found:
            raise DataError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) below {root}")
        names = sorted({p.relative_to(root).parts[0] for p in found if p.parent != root})
        if names and any(p.parent == root for p in found):
            raise DataError(
                f"{root} holds images both directly and in sub-folders; use one sub-folder per "
                "class, or no sub-folder at all"
            )
        self.class_names = tuple(names)
        self._paths = found
        numbers = {name: number for number, name in enumerate(names)}
        self._labels = [numbers.get(p.relative_to(root).parts[0]) for p in found]

    def __len__(self) -> int:
        return len(self._paths)

    def label(self, index: int) -> int | None:
        """The class of an image, if the folder has classes."""
        return self._labels[index]

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return self._paths[index].read_bytes()


class ParquetSource:
    """Hugging Face parquet tables: a column of encoded images, and perhaps one of labels."""

    def __init__(
        self, files: Sequence[Path], image_column: str = "image", label_column: str = "label"
    ) -> None:
        table = _read_tables(files, image_column, label_column)
        images = table[image_column]
        if pa.types.is_struct(images.type) and "bytes" in [f.name for f in images.type]:
            images = pc.struct_field(images, "bytes")
        if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
            raise DataError(f"column {image_column!r} holds {images.type}, not encoded images")
        self._images = images
        self._labels: list[int | None] | None = None
        if label_column in table.column_names:
            if not pa.types.is_integer(table[label_column].type):
                raise DataError(
                    f"column {label_column!r} holds {table[label_column].type}, not class indices"
                )
            self._labels = table[label_column].to_pylist()
        self.class_names = _class_names(table.schema, label_column)

    def __len__(self) -> int:
        return len(self._images)

    def label(self, index: int) -> int | None:
        """The class index of an image; ``None`` without labels, and for the hub's -1."""
        label = None if self._labels is None else self._labels[index]
        return None if label is None or label < 0 else label

    def image_bytes(self, index: int) -> bytes:
        """The encoded image."""
        content = self._images[index].as_py()
        if content is None:
            raise DataError(f"row {index} holds no image bytes")
        return bytes(content)


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


def _read_tables(files: Sequence[Path], image_column: str, label_column: str) -> pa.Table:
    """Read the image column, and the label column if there is one, of all files."""
    try:
        schema = pq.read_schema(files[0])
        if image_column not in schema.names:
            raise DataError(
                f"{files[0].name} has no column {image_column!r} but {schema.names}; "
                "name the image column"
            )
        wanted = dict.fromkeys([image_column, label_column])  # each once, should they be the same
        columns = [column for column in wanted if column in schema.names]
        return pa.concat_tables([pq.read_table(file, columns=columns) for file in files])
    except (pa.ArrowException, OSError) as error:
        names = ", ".join(str(file) for file in files[:3])
        raise DataError(f"{names} cannot be read as parquet tables: {error}") from error


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...]:
    """Class names from the table's Hugging Face metadata; empty if it has none."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return ()
    features = json.loads(metadata).get("info", {}).get("features", {})
    return tuple(features.get(label_column, {}).get("names") or ())


def open_source(
    spec: str | Path,
    split: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    *,
    need_split: bool = False,
) -> ImageSource:
    """Open a data set.

    Args:
        spec: a folder of images (sub-folders are classes), a ``.parquet`` file, a folder of
            parquet files, or ``hub:owner/name`` for those of a data set on the Hugging Face hub.
        split: with parquet folders and the hub: only files whose path holds this word; with a
            folder of images: its sub-folder of this name, if there is one.
        image_column: parquet column of the encoded images.
        label_column: parquet column of the class indices; need not exist.
        need_split: refuse to open a place that is not split, instead of opening all of it.

    Raises:
        DataError: nothing is there, or it cannot be read; the message says what was expected.
    """
    text = str(spec)
    path = _download(text.removeprefix("hub:")) if text.startswith("hub:") else Path(spec)
    path = path.expanduser()
    if not path.is_dir() and not (path.suffix == ".parquet" and path.is_file()):
        raise DataError(
            f"no data set at {path}: expected a folder, a .parquet file or hub:owner/name"
        )
    tables = sorted(path.rglob("*.parquet")) if path.is_dir() else []
    if tables:
        return ParquetSource(_of_split(tables, path, split), image_column, label_column)
    if path.is_dir() and split and (path / split).is_dir():
        return FolderSource(path / split)
    if need_split:
        raise DataError(f"{path} has no part named {split!r}; name another place or make one")
    return (
        FolderSource(path) if path.is_dir() else ParquetSource([path], image_column, label_column)
    )


def _of_split(tables: Sequence[Path], root: Path, split: str | None) -> list[Path]:
    """The tables whose path below ``root`` holds the split's name."""
    names = [table.relative_to(root).as_posix() for table in tables]
    chosen = [t for t, name in zip(tables, names, strict=True) if split is None or split in name]
    if not chosen:
        raise DataError(f"no parquet file of split {split!r} in {root}; it has {names}")
    return chosen


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


def decode_rgb(content: bytes) -> Image.Image:
    """Decode one image to RGB; raises one of ``UNREADABLE`` if it is none."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")
