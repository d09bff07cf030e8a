"""`tocom bench` as a process: against a running server, with one of its own, and interrupted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.recorded_arrivals import read_recording
from tests.integration.conftest import LABELS, ROOT, Server, end_server, start_server

COMMAND = [sys.executable, "-m", "server.cli", "bench"]
QUICK = ("--capacity=20", "--slo-ms=2000")


@pytest.fixture(scope="module")
def quick_server(model_file: Path) -> Iterator[Server]:
    """A server that has soon measured its few batch sizes, with an SLO that is not the bench's."""
    running = start_server(f"--model={model_file}", "--max-batch-size=2", "--slo-ms=250")
    running.wait_until_ready()
    yield running
    end_server(running)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One labelled photograph, so to say, of each of two classes."""
    for label, colour in zip(LABELS[:2], ("orange", "navy"), strict=True):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (64, 48), colour).save(tmp_path / "images" / label / "a.jpg")
    return tmp_path / "images"


def bench(*argv: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the last line of stdout as JSON, and stderr."""
    done = subprocess.run([*COMMAND, *argv], cwd=ROOT, capture_output=True, text=True, timeout=110)
    lines = done.stdout.splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def test_replay_against_a_running_server(
    quick_server: Server, images: Path, tmp_path: Path
) -> None:
    """Two seeds: figures, files, what the server aims at, and the dial back in auto."""
    out = tmp_path / "out"
    options = [f"--url={quick_server.url}", *QUICK, f"--images={images}", f"--output={out}"]
    code, told, stderr = bench(*options, "--trace", "constant:1x2,even", "--seeds", "0", "3")
    assert code == 0, stderr
    assert [seed["seed"] for seed in told["seeds"]] == [0, 3]
    for seed in told["seeds"]:
        assert seed["offered"] == 40 and seed["failed"] == 0
        assert 0 <= seed["on_time_correct"] <= 1
    assert told["complete"] is True and told["server_slo_ms"] == 250
    assert any("SLO of 250 ms" in note for note in told["notes"])
    assert json.loads((out / "report.json").read_text()) == told
    assert {path.name for path in out.iterdir()} == {
        *("report.json", "report.md", "requests_seed0.csv", "requests_seed3.csv"),
        *("timeline_seed0.png", "timeline_seed3.png"),
    }
    with quick_server.client() as client:
        assert client.get("/compression").json()["mode"] == "auto"


def test_requests_of_a_replay_are_a_trace(quick_server: Server, tmp_path: Path) -> None:
    """The CSV that a bench writes can be replayed: the same arrivals at the same capacity."""
    out = str(tmp_path / "out")
    options = [f"--url={quick_server.url}", *QUICK, f"--output={out}", "--no-plot", "--seeds", "0"]
    _, first, stderr = bench(*options, "--trace", "constant:1x2")
    recorded = read_recording(tmp_path / "out" / "requests_seed0.csv")
    assert len(recorded) == first["seeds"][0]["offered"], stderr
    assert first["correctness_unknown"] is not None
    assert first["seeds"][0]["accuracy"] is None


def test_bench_with_a_server_of_its_own(model_file: Path) -> None:
    """Started with the flags after the dashes and with the bench's SLO, ended afterwards."""
    options = [*QUICK, "--trace", "constant:1x1,even", "--seeds", "0"]
    code, told, stderr = bench(*options, "--", f"--model={model_file}", "--max-batch-size=2")
    assert code == 0, stderr
    assert told["server_slo_ms"] == 2000 and told["notes"] == [
        "the capacity was given, not measured"
    ]
    assert told["seeds"][0]["attainment"] > 0


def test_ctrl_c_keeps_finished_seeds(quick_server: Server, tmp_path: Path) -> None:
    """The first seed is reported, the dial given back, the exit code that of an interrupt."""
    out = tmp_path / "out"
    options = [f"--url={quick_server.url}", *QUICK, f"--output={out}", "--no-plot"]
    trace = ["--trace", "constant:1x1", "--seeds", "0", "1", "2", "3", "4", "5"]
    process = subprocess.Popen(
        [*COMMAND, *options, *trace],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("seed 1: constant"):
            process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a background job ignores
            break
    stdout, _ = process.communicate(timeout=60)
    told = json.loads(stdout.splitlines()[-1])
    assert process.returncode == 130
    assert told["complete"] is False
    assert [seed["seed"] for seed in told["seeds"]] == [0]
    assert json.loads((out / "report.json").read_text()) == told
    with quick_server.client() as client:
        assert client.get("/compression").json()["mode"] == "auto"
