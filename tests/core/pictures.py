"""Small image data sets on disk, made of scikit-learn's real 8 x 8 digits."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return (digits.images * 15.9).astype(np.uint8), digits.target


def digit(index: int) -> Image.Image:
    """One handwritten digit, 8 x 8, RGB."""
    return Image.fromarray(_digits()[0][index]).convert("RGB")


def digit_label(index: int) -> int:
    """Which digit it is."""
    return int(_digits()[1][index])


def encoded(index: int, kind: str = "PNG") -> bytes:
    """One digit as an image file."""
    buffer = io.BytesIO()
    digit(index).save(buffer, kind)
    return buffer.getvalue()


def write_folder(root: Path, count: int, first: int = 0) -> Path:
    """``count`` digits as PNG files, one sub-folder per class."""
    for index in range(first, first + count):
        folder = root / f"digit {digit_label(index)}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:04d}.png").write_bytes(encoded(index))
    return root


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any] | None = None,
    names: Sequence[str] = (),
    image_column: str = "image",
    label_column: str = "label",
) -> Path:
    """A table as Hugging Face ``datasets`` writes it: image structs, labels, names in metadata."""
    features: dict[str, Any] = {image_column: {"_type": "Image"}}
    columns: dict[str, Any] = {
        image_column: pa.array(
            [{"bytes": image, "path": None} for image in images],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    }
    if labels is not None:
        columns[label_column] = pa.array(labels)
        features[label_column] = {"_type": "ClassLabel", "names": list(names)}
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_tar(path: Path, members: Mapping[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shard(path: Path, indices: Sequence[int], labelled: bool = True) -> Path:
    """A WebDataset shard of digits: ``000007.cls`` and ``000007.png`` for digit 7, and so on."""
    members: dict[str, bytes] = {}
    for index in indices:
        if labelled:
            members[f"{index:06d}.cls"] = str(digit_label(index)).encode()
        members[f"{index:06d}.png"] = encoded(index)
    return write_tar(path, members)
