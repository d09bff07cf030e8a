"""Which files in folders are meant when somebody says "these images"."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from server.errors import SettingsError

_KNOWN = "jpg jpeg jpe jfif png webp gif bmp tif tiff avif ppm pgm pbm pnm"
SUFFIXES = frozenset(f".{name}" for name in _KNOWN.split())
"""Of the files that are looked for in a folder; a file that is named itself may have any."""


def image_files(places: Iterable[Path]) -> list[Path]:
    """Return the files, and those with an image's suffix in the folders and below, each once.

    Folders are read in alphabetical order, so that two calls go through them alike; hidden files
    and folders are passed over.

    Args:
        places: files, which need not be there, and folders.

    Raises:
        SettingsError: a folder holds no image.
    """
    found: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            found[place] = None
            continue
        inside = list(_below(place))
        if not inside:
            known = " ".join(sorted(SUFFIXES))
            raise SettingsError(f"{place}: no images in this folder or below ({known})")
        found |= dict.fromkeys(inside)
    return list(found)


def _below(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _below(entry)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry
