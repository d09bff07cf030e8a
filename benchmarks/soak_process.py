"""The server that a soak is done to: a process of its own, its log, and its operator's requests."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tocom_core.models import default_model_path

HERE = Path(__file__).parents[1]
READY_WITHIN_S = 240.0
DRAIN_TIMEOUT_S = 20.0


class Server:
    """The server under test: its process, its log, its port."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        self.operator_errors: list[str] = []

    def wait_until_ready(self) -> None:
        """Return once it is; raises RuntimeError with its log's end otherwise."""
        give_up = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up and self.process.poll() is None:
            if found := re.search(r"ready: url=http://127.0.0.1:(\d+)", self.log.read_text()):
                self.port = int(found[1])
                return
            time.sleep(0.1)
        raise RuntimeError(f"the server did not become ready:\n{self.log.read_text()[-2000:]}")

    def ask(self, method: str, target: str, body: Any = None) -> tuple[int, str]:
        """A request of the operator: its status and its body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{target}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={} if body is None else {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            self.operator_errors.append(f"{method} {target}: {error}")
            return 0, ""

    def counts(self, metric: str, label: str) -> dict[str, int]:
        """A counter's values by one label."""
        found = re.findall(
            rf'^{metric}{{{label}="(\w+)"}} (\S+)$', self.ask("GET", "/metrics")[1], re.M
        )
        return {name: int(float(value)) for name, value in found if float(value)}

    def rss_mb(self) -> float:
        """Its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@contextmanager
def started(folder: Path, options: argparse.Namespace) -> Iterator[Server]:
    """The server in a process of its own, gone with the block."""
    models = lay_out_models(folder / "models")
    flags = [f"--models-dir={models}", "--host=127.0.0.1", "--port=0", "--log-format=json"]
    flags += [f"--drain-timeout-s={DRAIN_TIMEOUT_S}", f"--threads={options.threads}"]
    flags += [f"--slo-ms={options.slo_ms}"]
    faults = [str(options.decode_faults), str(options.forward_faults), str(options.seed)]
    log = folder / "server.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOCOM_")}
    environment |= {"PYTHONPATH": str(HERE), "OMP_WAIT_POLICY": "passive"}
    script = [sys.executable, str(HERE / "benchmarks/soak_server.py")]
    with log.open("w") as stream:
        process = subprocess.Popen([*script, *faults, *flags], stderr=stream, env=environment)
    try:
        yield Server(process, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def lay_out_models(folder: Path) -> Path:
    """The default model twice, and a file that is none."""
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        for file in default_model_path().parent.glob("*.safetensors"):
            shutil.copy(file, folder / name)
    (folder / "broken.safetensors").write_bytes(b"no model" * 100)
    return folder
