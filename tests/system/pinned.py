"""What a plain install of the wheel brings along, taken from this environment.

Fetching 5.5 GB again for each test of the wheel or the image would prove nothing more: the same
pinned packages are already here. Only what the wheel's own requirements lead to is taken, so a
requirement that pyproject.toml forgets is still noticed.
"""

import importlib.metadata
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.system.machine import ROOT


def runtime_entries() -> dict[str, Path]:
    """Name and place of everything in site-packages that a plain install would put there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return entries_of(project["dependencies"])


def entries_of(requirements: Iterable[str]) -> dict[str, Path]:
    """The same of other requirements."""
    entries: dict[str, Path] = {}
    for name in _closure(requirements):
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            top = file.parts[0]
            if top != "..":  # programs; they belong to this environment's bin folder
                entries[top] = Path(str(distribution.locate_file(top)))
    return {name: path for name, path in sorted(entries.items()) if path.exists()}


def _closure(requirements: Iterable[str]) -> set[str]:
    """The names of all distributions that these requirements lead to on this machine."""
    found: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, wanted_by_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_by_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in found:
                found.add((name, extra))
                needed = importlib.metadata.distribution(name).requires or ()
                waiting += [(Requirement(text), extra) for text in needed]
    return {name for name, _ in found}
