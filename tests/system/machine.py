"""What the system tests ask of the machine: programs, free ports, processes that end again."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import httpx
import pytest

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

# Set by .ci/run, which installs everything: there a missing program is a failure, not a skip.
REQUIRED = os.environ.get("TOCOM_REQUIRE_SYSTEM") == "1"


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where CI promised that nothing is missing."""
    if REQUIRED:
        pytest.fail(f"{reason} (TOCOM_REQUIRE_SYSTEM=1 makes this a failure)")
    pytest.skip(reason)


def tool(name: str, package: str) -> str:
    """The path of the program `name`; Debian's `package` holds it."""
    # Daemons lie in sbin, which is not on every user's PATH.
    path = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if path is None:
        missing(f"{name} is not installed (apt-get install {package})")
    return path


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float = 300,
) -> str:
    """Run a command to its end and return what it printed; a failing one shows all of it."""
    done = subprocess.run(
        command,
        input=stdin,
        env={**os.environ, **(env or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in `folder` that lives as long as the block and writes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, check: Callable[[], T], timeout_s: float, every_s: float = 0.25) -> T:
    """Ask `check` until it returns something true; another process leaves no better way."""
    deadline = time.monotonic() + timeout_s
    while not (result := check()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s in vain for {what}"
        time.sleep(every_s)
    return result


def wait_until_ready(url: str, exit_code: Callable[[], int | None], log: Path) -> None:
    """Wait for /readyz; a server that ended meanwhile fails at once, with its log."""

    def ready() -> bool:
        assert exit_code() is None, f"the server ended:\n{log.read_text()}"
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until("the server to be ready", ready, timeout_s=180)
