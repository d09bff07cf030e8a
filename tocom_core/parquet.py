"""Hugging Face parquet tables: a column of encoded images, and perhaps one of labels."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tocom_core.errors import DataError


class ParquetSource:
    """The images of some tables, in the order of the files and their rows.

    Args:
        files: tables of the same columns.
        image_column: images as bytes, or as Hugging Face's structs that hold them.
        label_column: class indices, or the classes' names, which are then numbered in the order of
            the table's metadata or else of the alphabet; need not exist, ``None`` for no labels.

    Raises:
        DataError: a file that cannot be read, a column that is not there or holds something else.
    """

    def __init__(
        self, files: Sequence[Path], image_column: str = "image", label_column: str | None = "label"
    ) -> None:
        tables = _read_tables(files, image_column, label_column)
        self._files = list(files)
        self._ends = list(accumulate(len(table) for table in tables))
        table = pa.concat_tables(tables)
        self._images = _encoded_images(table[image_column], image_column)
        names = _metadata_names(table.schema, label_column)
        self._labels: list[int | None] | None = None
        if label_column in table.column_names:
            self._labels, names = _class_indices(table[label_column], names, str(label_column))
        self.class_names = names

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

    def name(self, index: int) -> str:
        """The row and the file that it is in."""
        number = bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        return f"row {index - first} of {self._files[number]}"


def _read_tables(
    files: Sequence[Path], image_column: str, label_column: str | None
) -> list[pa.Table]:
    """Read the image column, and the label column if there is one, of all files."""
    try:
        schema = pq.read_schema(files[0])
        if image_column not in schema.names:
            raise DataError(
                f"{files[0].name} has no column {image_column!r} but {schema.names}; "
                f"name the image column{_likely(schema)}"
            )
        wanted = dict.fromkeys([image_column, label_column])  # each once, should they be the same
        columns = [column for column in wanted if column in schema.names]
        tables = [pq.read_table(file, columns=columns) for file in files]
        pa.concat_tables(tables)  # they must agree on types
    except (pa.ArrowException, OSError) as error:
        names = ", ".join(str(file) for file in files[:3])
        raise DataError(f"{names} cannot be read as parquet tables: {error}") from error
    if not any(len(table) for table in tables):
        raise DataError(f"{files[0]} holds no row")
    return tables


def _likely(schema: pa.Schema) -> str:
    """The columns that may hold images, as part of a message."""
    found = [field.name for field in schema if _is_binary(field.type) or _is_image(field.type)]
    return f" with --image-column; {' or '.join(map(repr, found))} looks like it" if found else ""


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_image(kind: pa.DataType) -> bool:
    """Whether it is the struct by which Hugging Face stores an image."""
    return pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]


def _encoded_images(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The column as bytes."""
    images = pc.struct_field(column, "bytes") if _is_image(column.type) else column
    if _is_binary(images.type) and images.null_count < len(images):
        return images
    if _is_text(column.type) or _is_image(column.type):
        example = next((value for value in column.to_pylist() if value), None)
        raise DataError(
            f"column {name!r} holds {column.type} such as {example!r}, not encoded images; a table "
            "must hold the files' content: name another column, write the bytes into it, or give "
            "the folder of the files instead"
        )
    raise DataError(
        f"column {name!r} holds {column.type}, not encoded images; name a column of bytes"
    )


def _metadata_names(schema: pa.Schema, label_column: str | None) -> tuple[str, ...]:
    """Class names from the table's Hugging Face metadata; empty if it has none."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return ()
    features = json.loads(metadata).get("info", {}).get("features", {})
    return tuple(features.get(label_column, {}).get("names") or ())


def _class_indices(
    column: pa.ChunkedArray, names: tuple[str, ...], name: str
) -> tuple[list[int | None], tuple[str, ...]]:
    """Labels as class indices, with the classes' names."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_integer(column.type):
        return column.to_pylist(), names
    if not _is_text(column.type):
        raise DataError(
            f"column {name!r} holds {column.type}, neither class indices nor class names; name "
            "another label column, or 'none' if labels are not needed"
        )
    names = names or tuple(sorted(pc.unique(column).drop_null().to_pylist()))
    known = pa.array(names, column.type)
    unknown = pc.unique(column.filter(pc.invert(pc.is_in(column, known)))).drop_null().to_pylist()
    if unknown:
        raise DataError(
            f"column {name!r} holds {unknown[:3]}, which are not among the classes that the table "
            f"names, {list(names[:9])}; mend the table"
        )
    return pc.index_in(column, known).to_pylist(), names
