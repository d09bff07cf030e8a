"""A real process: its log, its traces, SIGHUP, a lost device, and a short soak."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks import soak
from server.device_loss import EXIT_CODE, EXIT_WITHIN_S
from tests.integration.conftest import ROOT, Server, end_server, read_log

if TYPE_CHECKING:
    import httpx

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def until(condition: Callable[[], bool], within_s: float = 20) -> None:
    """Return as soon as the condition holds."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.02)


def events(server: Server) -> list[dict]:
    """The lines of a JSON log."""
    return [json.loads(line) for line in server.text.splitlines() if line.startswith("{")]


def test_the_log_is_one_form(serve: Callable[..., Server], photo: bytes) -> None:
    """JSON where no terminal reads it: a line per request, uvicorn's own, failures as fields."""
    server = serve()
    with server.client() as client:
        headers = {b"traceparent": PARENT.encode(), b"X-Request-ID": b"two words"}
        answer = client.post("/classify", files={"file": photo}, headers=headers)
        assert answer.json()["request_id"] == answer.headers["x-request-id"] == PARENT[3:35]
        problem = client.post("/classify", files={"file": b"x"}, headers={"X-Request-ID": "mine"})
        assert problem.json()["request_id"] == "mine"
    until(lambda: server.text.count("POST /classify") == 2)
    assert all(line.startswith("{") for line in server.log)
    good, bad = [e for e in events(server) if e["logger"] == "server.requests"]
    assert (good["request_id"], good["outcome"], good["r"]) == (PARENT[3:35], "ok", 0)
    assert good["bytes"] == len(photo) and good["decode_ms"] > 0 and good["client"] == "127.0.0.1"
    assert (bad["request_id"], bad["status"], bad["outcome"]) == ("mine", 400, "bad_image")


def test_sighup_reads_the_model_again(serve: Callable[..., Server], photo: bytes) -> None:
    """The process goes on, and GET /model tells of it."""
    server = serve("--slo-ms=20000")
    with server.client() as client:

        def state() -> str:
            reload = client.get("/model").json()["reload"]
            return "" if reload is None else str(reload["state"])

        assert state() == ""
        server.process.send_signal(signal.SIGHUP)
        until(lambda: state() == "done", 60)
        assert client.post("/classify", files={"file": photo}).status_code == 200
    server.terminate()
    assert server.wait() == 0


def test_traces_need_the_extra_or_a_collector(serve: Callable[..., Server], photo: bytes) -> None:
    """A collector that is not there costs nobody an answer, nor the exit its bound."""
    server = serve("--traces=otlp", "--drain-timeout-s=10")
    with server.client() as client:
        assert client.post("/classify", files={"file": photo}).status_code == 200
    server.terminate()
    assert server.wait(30) == 0


@pytest.fixture
def doomed(model_file: Path) -> "Server":
    """A server whose device is lost by the first forward after its start-up."""
    script = str(ROOT / "benchmarks/soak_server.py")
    flags = [f"--model={model_file}", "--port=0", "--no-idle-profiling", "--slo-ms=20000"]
    process = subprocess.Popen(
        [sys.executable, script, "0", "lost-when-ready", "0", *flags],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    return read_log(process)


def test_a_lost_device_ends_the_process(doomed: Server, photo: bytes) -> None:
    """What it holds gets a clear 503, and the exit code tells the supervisor, within the bound."""
    try:
        doomed.wait_until_ready()
        with doomed.client() as client:
            answer: httpx.Response = client.post("/classify", files={"file": photo})
        started = time.monotonic()
        assert answer.status_code == 503
        assert answer.json()["type"] == "/problems/device-lost"
        assert doomed.wait(60) == EXIT_CODE
        assert time.monotonic() - started < EXIT_WITHIN_S + 5
        until(lambda: "stopped: exit_code=3" in doomed.text)
        assert "the device is lost" in doomed.text
    finally:
        end_server(doomed)


@pytest.mark.timeout(400)
def test_a_short_soak() -> None:
    """Twenty seconds of everything that can go wrong: the books balance and the exit is clean."""
    options = soak.parse(["--seconds=20", "--slo-ms=2000", "--forward-faults=0.002"])
    report = soak.run(options)
    assert report.problems == []
    assert report.exit_code == 0 and report.answered > 0
