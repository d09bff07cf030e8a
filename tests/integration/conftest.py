"""A real ``tocom serve`` process on a free port, with a tiny model saved for the occasion."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import timm
import torch
from PIL import Image
from skimage.data import chelsea

from tocom_core.bank import Bank, backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.models import save_model

ROOT = Path(__file__).parents[2]
DEGREES = 12
LABELS = tuple(f"class {i}" for i in range(10))


@dataclass
class Server:
    """A running server: where it is, what it logged, and how to end it."""

    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)
    url: str = ""

    def wait_until_ready(self, timeout_s: float = 100) -> None:
        """Return once the ready line is in the log; it also tells the real port."""
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up and self.process.poll() is None:
            found = re.search(r"ready: url=(\S+)", self.text)
            if found:
                self.url = found[1]
                return
            time.sleep(0.05)
        raise AssertionError(f"the server did not become ready:\n{self.text}")

    @property
    def text(self) -> str:
        """The log so far."""
        return "".join(self.log)

    def terminate(self) -> None:
        """Send SIGTERM to this server's own process."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30) -> int:
        """Wait for its end and return the exit code."""
        return self.process.wait(timeout_s)

    def client(self, timeout_s: float = 30) -> httpx.Client:
        """An HTTP client for it."""
        return httpx.Client(base_url=self.url, timeout=timeout_s)


def start_server(*flags: str) -> Server:
    """Start ``tocom serve`` with these flags; its log is read by a thread."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TOCOM_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--port=0", *flags],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    return read_log(process)


def read_log(process: "subprocess.Popen[str]") -> Server:
    """The server of this process; a thread reads what it logs."""
    server = Server(process)
    threading.Thread(target=_read_log, args=(server,), daemon=True).start()
    return server


def _read_log(server: Server) -> None:
    assert server.process.stderr is not None
    with server.process.stderr as stream:
        server.log.extend(stream)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViT of 64 patches and 4 layers, with a bank of 12 degrees beside it."""
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 4, "depth": 4, "embed_dim": 48, "num_heads": 3}
    name = "vit_tiny_patch16_224"
    vit = timm.create_model(name, pretrained=False, num_classes=len(LABELS), **shape)
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_model(path, vit, LABELS, model_args=shape)
    header = BankHeader(name, 48, 4, DEGREES, 2, backbone_digest=backbone_digest(vit))
    bank = Bank(header)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_(std=0.3)
    bank.save(path.with_name("bank.safetensors"))
    return path


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A real photograph (a cat), as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(chelsea()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture
def serve(model_file: Path) -> Iterator[Callable[..., Server]]:
    """Start servers with flags of the test's own; each is ended with the test."""
    started: list[Server] = []

    def start_one(*flags: str) -> Server:
        server = start_server(f"--model={model_file}", *flags)
        started.append(server)
        server.wait_until_ready()
        return server

    yield start_one
    for server in started:
        end_server(server)


@pytest.fixture(scope="session")
def server(model_file: Path) -> Iterator[Server]:
    """One server for all tests that leave it as they found it; no busy machine makes it shed."""
    running = start_server(f"--model={model_file}", "--slo-ms=20000")
    running.wait_until_ready()
    yield running
    end_server(running)


def end_server(server: Server) -> None:
    """Kill it, by its own pid, if it still runs."""
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait(10)
