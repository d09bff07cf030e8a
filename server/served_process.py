"""A real `tocom serve` process under test: started, waited for, ended by its own pid."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tocom_core.errors import TocomError

READY_WITHIN_S = 240.0
GONE_WITHIN_S = 60.0
COMPLAINT = re.compile(
    r"^.* (?:WARNING|ERROR|CRITICAL) .*$|^\w*(?:Error|Exception)\b.*$", re.MULTILINE
)


class MeasurementError(TocomError):
    """The server under test, or the way to it, does not allow a measurement."""


@dataclass
class ServedProcess:
    """Where the server is; once it has ended, how: 0 after a drain, negative if killed.

    `complaints` are the warnings and errors of its log.
    """

    url: str
    exit_code: int | None = None
    complaints: list[str] = field(default_factory=list)


@contextmanager
def serve(flags: Sequence[str]) -> Iterator[ServedProcess]:
    """Run `tocom serve` on a free loopback port for the length of the block.

    It is in a process group of its own: Ctrl-C ends the block, and only then, with it, the server.

    Raises:
        MeasurementError: it ended, or was not ready in time; the message holds its log's end.
    """
    command = [sys.executable, "-m", "server.cli", "serve", "--host=127.0.0.1", "--port=0"]
    command += ["--log-format=console", "--log-share=0", *flags]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, process_group=0)
        try:
            served = ServedProcess(_wait_until_ready(process, log))
            yield served
            served.exit_code = _stop(process)
            served.complaints = COMPLAINT.findall(log.read_text())
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The URL from the server's ready line."""
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up:
        ready = re.search(r"ready: url=(\S+)", log.read_text())
        if ready:
            return ready[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise MeasurementError(
        f"the server did not become ready; its log ends:\n{log.read_text()[-2000:]}"
    )


def _stop(process: "subprocess.Popen[bytes]") -> int:
    """Let it drain, and return its exit code; kill it if it does not end."""
    process.terminate()
    try:
        return process.wait(GONE_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
