"""Image files in folders: one sub-folder per class, or all in one folder without labels."""

import warnings
from collections.abc import Iterator
from pathlib import Path

from tocom_core.decoding import IMAGE_SUFFIXES
from tocom_core.errors import DataError, DataWarning


def visible_files(root: Path) -> Iterator[Path]:
    """All files below a folder; what is hidden (``.cache``, ``._x.jpg``) or macOS's is no data."""
    for path in root.rglob("*"):
        if all(_is_visible(part) for part in path.relative_to(root).parts) and path.is_file():
            yield path


def image_files(root: Path) -> Iterator[Path]:
    """All images below a folder, known by their suffix."""
    return (path for path in visible_files(root) if path.suffix.lower() in IMAGE_SUFFIXES)


class FolderSource:
    """Images below a folder: one sub-folder per class, or all in one folder without labels.

    A class folder without an image is still a class, with a ``DataWarning``: leaving it out would
    shift the number of every class behind it.

    Raises:
        DataError: no image, or images both directly in the folder and in sub-folders.
    """

    def __init__(self, root: Path) -> None:
        folders = sorted(p for p in root.iterdir() if p.is_dir() and _is_visible(p.name))
        inside = [sorted(image_files(folder)) for folder in folders]
        images = [path for found in inside for path in found]
        direct = sorted(path for path in image_files(root) if path.parent == root)
        if images and direct:
            raise DataError(
                f"{root} holds images both directly and in sub-folders; use one sub-folder per "
                "class, or no sub-folder at all"
            )
        if not images and not direct:
            raise DataError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) below {root}")
        self._paths = images or direct
        self._labels = [number for number, found in enumerate(inside) for _ in found]
        self.class_names = tuple(folder.name for folder in folders) if images else ()
        empty = [f.name for f, found in zip(folders, inside, strict=True) if images and not found]
        if empty:
            warnings.warn(
                f"no image in {', '.join(map(repr, empty))} of {root}, which still counts as a "
                "class; remove the folder if it is none",
                DataWarning,
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._paths)

    def label(self, index: int) -> int | None:
        """The class of an image, if the folder has classes."""
        return self._labels[index] if self._labels else None

    def image_bytes(self, index: int) -> bytes:
        """The file's content."""
        return self._paths[index].read_bytes()

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._paths[index])


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
