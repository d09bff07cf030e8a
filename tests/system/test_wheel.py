"""The wheel in an empty folder: installed by itself, it serves the default model."""

import os
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.system.machine import ROOT, free_port, run, running, wait_until_ready
from tests.system.pinned import entries_of, runtime_entries

# It needs no other program, but half a minute.
pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout as `make build` does."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel"]
    run([*build, f"--outdir={folder}", ROOT])
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_holds_packages_weights_and_types(wheel: Path):
    """All packages, their type markers and the default model are inside, and nothing of tests."""
    names = zipfile.ZipFile(wheel).namelist()
    packages = ("tocom_core", "server", "tocom_client")
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    weights = [Path(name).name for name in names if name.startswith("tocom_core/_weights/")]
    assert {"model.safetensors", "bank.safetensors", "README.md"} <= set(weights)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {
        "server",
        "tocom_client",
        "tocom_core",
        "tocom_serve",
    }


def test_installed_wheel_serves_in_an_empty_folder(wheel: Path, photo: bytes, tmp_path: Path):
    """`pip install` and `tocom serve` are all it takes; no checkout, no settings."""
    tocom = install(wheel, tmp_path / "environment")
    folder = tmp_path / "empty"
    folder.mkdir()
    url = f"http://127.0.0.1:{(port := free_port())}"
    log = tmp_path / "server.log"
    with running([tocom, "serve", f"--port={port}"], log, CLEAN, folder) as process:
        wait_until_ready(url, process.poll, log)
        files = {"file": ("cat.jpg", photo, "image/jpeg")}
        answer = httpx.post(f"{url}/classify", files=files, timeout=60)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"][0]["predictions"]) == 5
    assert process.returncode == 0, log.read_text()
    assert list(folder.iterdir()) == []


def test_the_client_needs_httpx_alone(wheel: Path, tmp_path: Path):
    """`pip install --no-deps` of the wheel, and httpx: no PyTorch, no server, and it works."""
    environment = tmp_path / "environment"
    run([sys.executable, "-m", "venv", environment])
    python = environment / "bin" / "python"
    link_entries(python, entries_of(["httpx"]))
    run([python, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", wheel], env=CLEAN)
    script = (
        "import importlib.util, tocom_client; assert importlib.util.find_spec('torch') is None; "
        "print(tocom_client.Client('http://127.0.0.1:1').ready())"
    )
    assert run([python, "-c", script], env=CLEAN).strip() == "False"


CLEAN = {"PYTHONPATH": ""}


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel into a fresh environment that holds only what it requires."""
    run([sys.executable, "-m", "venv", environment])
    python = environment / "bin" / "python"
    link_entries(python, runtime_entries())
    run([python, "-m", "pip", "install", "--no-index", "--quiet", wheel], env=CLEAN)
    return environment / "bin" / "tocom"


def link_entries(python: Path, entries: dict[str, Path]) -> None:
    """Let this environment have what lies in ours."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", script]).strip())
    for name, path in entries.items():
        if not os.path.lexists(site / name):
            (site / name).symlink_to(path)
