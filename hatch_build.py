"""Puts the default model into the wheel.

The weights lie at the root of the repository, beside the packages. An installed package has no
such neighbour, so the wheel carries them as `tocom_core/_weights`; an editable install reads them
where they are.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WEIGHTS = ("README.md", "bank.safetensors", "model.safetensors")


class WeightsBuildHook(BuildHookInterface[Any]):
    """Maps `weights/<name>/…` to `tocom_core/_weights/<name>/…`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the model files to a standard wheel; `version` is hatchling's word for its kind."""
        if version == "editable":
            return
        root = Path(self.root)
        for path in sorted((root / "weights").glob("*/*")):
            if path.name in WEIGHTS:
                inside = path.relative_to(root / "weights")
                build_data["force_include"][str(path)] = f"tocom_core/_weights/{inside.as_posix()}"
