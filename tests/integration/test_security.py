"""The door of a real server: start-up, keys, limits and headers over a socket."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from server.api_keys import key_line, new_key
from tests.integration.conftest import end_server, start_server

if TYPE_CHECKING:
    from tests.integration.conftest import Server

START_S = 300
"""For a machine that is busy with other tests."""
KEYS = {scope: new_key() for scope in ("inference", "control", "metrics")}
REPLACED = new_key()

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One key for each scope, as hashes but for one."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    lines = [key_line(scope, [scope], key) for scope, key in KEYS.items()]  # type: ignore[list-item]
    file.write_text("\n".join([*lines, f"plain metrics {REPLACED}", ""]))
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def locked(model_file: Path, key_file: Path) -> Iterator["Server"]:
    """A server that wants keys and slows clients down, behind a proxy on this machine."""
    server = start_server(
        f"--model={model_file}",
        f"--api-keys-file={key_file}",
        "--trusted-proxies=127.0.0.1",
        "--rate-limit=0.01",
        "--rate-burst=5",
        "--slo-ms=20000",
        "--log-level=debug",
        "--no-idle-profiling",
    )
    server.wait_until_ready(START_S)
    yield server
    end_server(server)


def bearer(scope: str) -> dict[str, str]:
    """The header that shows a key."""
    return {"Authorization": f"Bearer {KEYS[scope]}"}


def test_a_public_address_without_keys_does_not_start() -> None:
    """One sentence, before a model is loaded, and no traceback."""
    run = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve", "--host=0.0.0.0", "--port=0"],
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("TOCOM_")},
    )
    assert run.returncode == 2
    assert "TOCOM_API_KEYS_FILE" in run.stderr and "Traceback" not in run.stderr
    assert "loading" not in run.stderr


def test_keys_are_never_told(locked: "Server", photo: bytes) -> None:
    """Not by the log, however verbose, /metrics, errors, the command line or the document."""
    with locked.client() as client:
        for scope in KEYS:
            for path in ("/metrics", "/model", "/openapi.json", "/nothing"):
                seen = client.get(path, headers=bearer(scope))
                assert not any(key in seen.text for key in KEYS.values())
        client.post("/classify", files={"file": photo}, headers=bearer("inference"))
    told = locked.text + Path(f"/proc/{locked.process.pid}/cmdline").read_text()
    assert "refused: reason=missing_scope" in told
    assert not any(key in told for key in (*KEYS.values(), REPLACED))


def test_a_new_key_file_is_read_on_sighup(locked: "Server", key_file: Path) -> None:
    """A revoked key stops working without a restart, and the server stays."""
    with locked.client() as client:
        shown = {"X-API-Key": REPLACED}
        assert client.get("/metrics", headers=shown).status_code == 200
        before = key_file.read_text()
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        key_file.write_text(before[: before.index("plain")])
        locked.process.send_signal(signal.SIGHUP)
        give_up = time.monotonic() + 20
        while "API keys read anew: 3" not in locked.text and time.monotonic() < give_up:
            time.sleep(0.05)
        assert client.get("/metrics", headers=shown).status_code == 401
        assert client.get("/readyz").status_code == 200


def test_a_proxys_clients_are_told_apart(locked: "Server") -> None:
    """By what the proxy saw, whatever the client wrote before it; uvicorn's own rule is off."""
    with locked.client() as client:
        for number in range(7):
            headers = {"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.5"}
            answer = client.get("/model", headers=headers)
            assert answer.status_code == (401 if number < 5 else 429)
        assert int(answer.headers["retry-after"]) > 50
        other = {"X-Forwarded-For": "203.0.113.5, 203.0.113.6"}
        assert client.get("/model", headers=other).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/nothing", "/model"])
def test_every_answer_has_its_headers(server: "Server", path: str) -> None:
    """No sniffing, no frames, no referrer, and no word about what serves."""
    answer = httpx.get(f"{server.url}{path}", timeout=30)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "server" not in answer.headers
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Host": "evil.example"}, 421),
    ],
)
def test_a_foreign_page_changes_nothing(
    server: "Server", headers: dict[str, str], status: int
) -> None:
    """Across sites or by a rebound name: no pin, no work, and a problem document."""
    with server.client() as client:
        before = client.get("/compression").json()
        for method, path in (("PUT", "/compression?r=3"), ("POST", "/classify")):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == status
            assert json.loads(answer.text)["request_id"] == answer.headers["x-request-id"]
        assert client.get("/compression").json()["mode"] == before["mode"]


def test_filenames_name_no_file(server: "Server", photo: bytes, tmp_path: Path) -> None:
    """What a part calls itself is echoed and never opened or written."""
    target = tmp_path / "written"
    for name in (str(target), f"../../../..{target}", "/etc/passwd", "a\\b", "x" * 2000):
        answer = httpx.post(f"{server.url}/classify", files={"file": (name, photo)}, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["results"][0]["filename"]
    assert not target.exists()
