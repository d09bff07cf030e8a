"""Images from where people keep them: folders, parquet files, the Hugging Face hub.

A data set is opened once and gives ``PIL`` images by index; ``TrainingImages`` adds augmentation
whose every random draw depends on ``(seed, epoch, index)`` alone, so that a resumed run, with any
number of workers, sees exactly the images that it would have seen.
"""

import io
import json
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tocom_core.errors import DataError, DataWarning

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


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
        found = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
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
        schema = pq.read_schema(files[0])
        if image_column not in schema.names:
            raise DataError(
                f"{files[0].name} has no column {image_column!r} but {schema.names}; "
                "name the image column"
            )
        columns = [image_column] + [c for c in (label_column,) if c in schema.names]
        table = pa.concat_tables([pq.read_table(f, columns=columns) for f in files])
        images = table[image_column]
        if pa.types.is_struct(images.type):
            images = pa.chunked_array([chunk.field("bytes") for chunk in images.chunks])
        if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
            raise DataError(f"column {image_column!r} holds {images.type}, not encoded images")
        self._images = images
        labels = table[label_column].to_pylist() if label_column in schema.names else None
        self._labels: list[int] | None = labels
        self.class_names = _class_names(schema, label_column)

    def __len__(self) -> int:
        return len(self._images)

    def label(self, index: int) -> int | None:
        """The class index of an image, if the table has labels."""
        return None if self._labels is None else int(self._labels[index])

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
) -> ImageSource:
    """Open a data set.

    Args:
        spec: a folder of images (sub-folders are classes), a ``.parquet`` file, a folder of
            parquet files, or ``hub:owner/name`` for those of a data set on the Hugging Face hub.
        split: with parquet folders and the hub: only files whose name holds this word.
        image_column: parquet column of the encoded images.
        label_column: parquet column of the class indices; need not exist.

    Raises:
        DataError: nothing is there, or it cannot be read; the message says what was expected.
    """
    text = str(spec)
    if text.startswith("hub:"):
        return open_source(_download(text.removeprefix("hub:")), split, image_column, label_column)
    path = Path(spec).expanduser()
    if path.suffix == ".parquet" and path.is_file():
        return ParquetSource([path], image_column, label_column)
    if not path.is_dir():
        raise DataError(
            f"no data set at {path}: expected a folder, a .parquet file or hub:owner/name"
        )
    tables = sorted(path.rglob("*.parquet"))
    if not tables:
        return FolderSource(path)
    chosen = [t for t in tables if split is None or split in t.name]
    if not chosen:
        raise DataError(
            f"no parquet file of split {split!r} in {path}; it has {[t.name for t in tables]}"
        )
    return ParquetSource(chosen, image_column, label_column)


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
    """Decode one image to RGB; raises ``OSError`` or ``ValueError`` if it is none."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")


def augmentation(
    input_size: tuple[int, int, int],
    interpolation: str,
    min_scale: float,
    color_jitter: float,
    auto_augment: str | None = None,
) -> Callable[[Image.Image], Tensor]:
    """Build timm's training transform without normalisation: RGB image to uint8 tensor."""
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size,
        is_training=True,
        scale=(min_scale, 1.0),
        color_jitter=color_jitter or None,
        auto_augment=auto_augment,
        interpolation=interpolation,
        normalize=False,
    )
    return transform


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Augmented images, addressed by ``(epoch, index)``.

    Args:
        source: where the images come from.
        transform: PIL image to tensor.
        seed: with epoch and index it decides every random draw of the transform.

    An image that cannot be decoded is replaced by the next one, with a warning; the label of an
    unlabelled image is -1.
    """

    def __init__(
        self, source: ImageSource, transform: Callable[[Image.Image], Tensor], seed: int
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        index, image = self._readable(index)
        seed_all(hash((self.seed, epoch, index)) & 0x7FFFFFFF)
        label = self.source.label(index)
        return self.transform(image), -1 if label is None else label

    def _readable(self, index: int) -> tuple[int, Image.Image]:
        """The image at ``index``, or the first readable one after it."""
        for step in range(len(self.source)):
            candidate = (index + step) % len(self.source)
            try:
                return candidate, decode_rgb(self.source.image_bytes(candidate))
            except (OSError, ValueError, DataError, Image.DecompressionBombError) as error:
                warnings.warn(
                    f"image {candidate} cannot be read and is replaced by the next one: {error}",
                    DataWarning,
                    stacklevel=2,
                )
        raise DataError("not one image of the data set can be read")


def seed_all(seed: int) -> None:
    """Seed the three generators that timm's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` from step ``start`` on, shuffled anew each epoch.

    Args:
        length: images in the data set.
        batch_size: images per step; the incomplete last batch of an epoch is left out.
        steps: where the run ends.
        start: the first step to give; what comes before is skipped, not drawn.
        seed: with the epoch it decides the order.
    """

    def __init__(self, length: int, batch_size: int, steps: int, start: int, seed: int) -> None:
        if length < batch_size:
            raise DataError(f"{length} images do not fill one batch of {batch_size}")
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._start, self._steps = start, steps

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the data."""
        return self._length // self._batch_size

    def __len__(self) -> int:
        return max(0, self._steps - self._start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[int] = []
        ordered_epoch = -1
        for step in range(self._start, self._steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = self._order(epoch), epoch
            first = batch * self._batch_size
            yield [(epoch, i) for i in order[first : first + self._batch_size]]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        result: list[int] = torch.randperm(self._length, generator=generator).tolist()
        return result


def evaluation_batches(
    source: ImageSource, transform: Callable[[Image.Image], Tensor], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, transformed without randomness.

    Yields:
        ``(B, 3, H, W)`` images as the transform gives them and ``(B,)`` int64 labels, -1 where
        there is none.  An unreadable image raises ``DataError``: a figure must not hide it.
    """
    for first in range(0, len(source), batch_size):
        indices = range(first, min(first + batch_size, len(source)))
        images, labels = [], []
        for index in indices:
            try:
                images.append(transform(decode_rgb(source.image_bytes(index))))
            except (OSError, ValueError) as error:
                raise DataError(f"image {index} cannot be read: {error}") from error
            label: Any = source.label(index)
            labels.append(-1 if label is None else label)
        yield torch.stack(images), torch.tensor(labels)
