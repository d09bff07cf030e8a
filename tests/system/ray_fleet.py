"""`python -m deploy.ray` as a process under test, and the processes that Ray starts for it."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from tests.system.machine import ROOT, free_port, missing, running, wait_until

READY_WITHIN_S = 500
REPLICA = "ray::ServeReplica:tocom:Classifier"
CONTROL = "ray::ServeReplica:tocom:Control"


def need_ray() -> None:
    """Skip, or fail where it was promised, without Ray Serve."""
    if find_spec("ray") is None:
        missing("Ray Serve is not installed (pip install 'tocom-serve[ray]')")


@dataclass(frozen=True)
class RayFleet:
    """Where it is reached, and where Ray's own files lie, by which its processes are known."""

    url: str
    log: Path
    folder: str

    def pids(self, title: str = "") -> list[int]:
        """Processes of this fleet whose command line begins so."""
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                ours = f"RAY_TMPDIR={self.folder}".encode() in environment
                if ours and command.startswith(title):
                    found.append(int(process.name))
        return sorted(found)

    def compression(self) -> dict[str, Any]:
        """What `GET /compression` answers."""
        answer = httpx.get(f"{self.url}/compression", timeout=30)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def replicas(self) -> dict[str, dict[str, Any]]:
        """What it tells of each replica; nothing while the control room is away."""
        return {one["replica"]: one for one in self.compression()["replicas"] or ()}


@contextlib.contextmanager
def ray_fleet(*flags: str) -> Iterator[RayFleet]:
    """A fleet for the length of the block; it ends by SIGTERM, with all that it started."""
    need_ray()
    port = free_port()
    # Short, for the paths of its sockets; HOME, because Ray writes there too.
    folder = tempfile.mkdtemp(prefix="tr", dir="/tmp")
    fleet = RayFleet(f"http://127.0.0.1:{port}", Path(folder) / "fleet.log", folder)
    environment = {
        "RAY_TMPDIR": folder,
        "HOME": folder,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "deploy.ray", f"--port={port}", *flags]
    try:
        with running(command, fleet.log, env=environment, folder=ROOT) as process:

            def ready() -> bool:
                text = fleet.log.read_text()
                assert process.poll() is None, f"it ended:\n{text[-5000:]}"
                return "ready: url=" in text

            wait_until("the fleet to be ready", ready, READY_WITHIN_S)
            yield fleet
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) == 0, fleet.log.read_text()[-5000:]
        wait_until("Ray's processes to end", lambda: not fleet.pids(), 60)
    finally:
        for pid in fleet.pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Load:
    """Clients that send one request after the other, and what became of each of them."""

    sent: int = 0
    answers: list[httpx.Response] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def count(self, status: int) -> int:
        """How many answers had this status."""
        return sum(answer.status_code == status for answer in self.answers)


@contextlib.contextmanager
def load_on(url: str, photo: bytes, clients: int) -> Iterator[Load]:
    """Load for the length of the block; at its end every request has been accounted for."""
    load, lock, stop = Load(), threading.Lock(), threading.Event()

    def send_on() -> None:
        with httpx.Client(base_url=url, timeout=120) as client:
            while not stop.is_set():
                with lock:
                    load.sent += 1
                try:
                    answer = client.post("/classify", files={"file": ("cat.jpg", photo)})
                except httpx.HTTPError as error:
                    with lock:
                        load.failures.append(error)
                else:
                    with lock:
                        load.answers.append(answer)
                    if answer.status_code != 200:
                        time.sleep(0.1)

    threads = [threading.Thread(target=send_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join()
