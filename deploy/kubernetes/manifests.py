"""The manifests as a cluster gets them: what `kubectl kustomize` makes of base and overlays."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCES = (HERE / "base", *sorted(path.parent for path in HERE.glob("overlays/*/*ization.yaml")))

Document = dict[str, Any]


class ManifestError(Exception):
    """A manifest cannot be rendered; the message says why."""


def render(source: Path, kubectl: str = "kubectl") -> str:
    """What `kubectl apply --kustomize` would send.

    Args:
        source: folder of a kustomization.
        kubectl: the program.

    Raises:
        ManifestError: kubectl is not there, too old, or does not like it.
    """
    if shutil.which(kubectl) is None:
        raise ManifestError(f"{kubectl} is not installed; it renders the manifests")
    command = [kubectl, "kustomize", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # A warning tells of a field that the next kustomize will not know.
    if done.returncode or done.stderr:
        said = done.stderr.strip()
        raise ManifestError(f"kubectl kustomize {source.name}: {said} (kubectl 1.22 or newer?)")
    return done.stdout


def documents(text: str) -> list[Document]:
    """The objects of a rendered stream."""
    return [document for document in yaml.safe_load_all(text) if document]
