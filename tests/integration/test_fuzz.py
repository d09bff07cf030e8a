"""Every operation of the OpenAPI document, asked for in hundreds of ways that nobody would choose.

`schemathesis` makes the requests from the document, so that an endpoint is tested from the day it
is there. Answers must be documented, fit their schema, and be no failure of the server. `make test`
takes a few examples of each operation, `make test-fuzz` 200.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from server.api_keys import SCOPES, key_line, new_key
from tests.integration.conftest import end_server, start_server

if TYPE_CHECKING:
    from tests.integration.conftest import Server

START_S = 300
"""For a machine that is busy with other tests."""
EXAMPLES = int(os.environ.get("TOCOM_FUZZ_EXAMPLES", "10"))
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_schema_conformance", "response_headers_conformance", "unsupported_method"),
)
STREAM = "text/event-stream"
ALLOWED = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""
"""503 says to come back; 504 that the request's own deadline of a millisecond has passed."""

pytestmark = pytest.mark.timeout(600 + 30 * EXAMPLES)


@pytest.fixture(scope="module")
def open_server(model_file: Path) -> Iterator["Server"]:
    """A server that everybody may use."""
    server = start_server(f"--model={model_file}", "--slo-ms=20000", "--no-idle-profiling")
    server.wait_until_ready(START_S)
    yield server
    end_server(server)


def fuzz(url: str, folder: Path, *options: str, checks: tuple[str, ...] = CHECKS) -> str:
    """Run schemathesis against a server and return what it said; it must have found nothing."""
    document = httpx.get(f"{url}/openapi.json", timeout=30).json()
    streams = [o for path in stream_paths(document) for o in ("--exclude-path", path)]
    (folder / "schemathesis.toml").write_text(ALLOWED)
    run = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "schemathesis.cli"),
            *("--config-file", str(folder / "schemathesis.toml"), "run"),
            *(f"{url}/openapi.json", "--seed", "1", "--no-color", "--request-timeout", "30"),
            *("--max-examples", str(EXAMPLES), "--generation-database", "none"),
            *("--checks", ",".join(checks), "--continue-on-failure"),
            *("--suppress-health-check", "all"),
            *streams,
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout[-20_000:]}\n{run.stderr[-3000:]}"
    return run.stdout


def stream_paths(document: dict[str, Any]) -> list[str]:
    """Paths whose answer has no end: they are read elsewhere, for a while."""
    return [
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if STREAM in operation["responses"].get("200", {}).get("content", {})
    ]


def test_no_request_breaks_the_server(open_server: "Server", tmp_path: Path) -> None:
    """No 5xx but a documented 503, no undocumented answer, and it is as ready as before."""
    said = fuzz(open_server.url, tmp_path)
    tested = re.search(r"Operations:\s+(\d+) selected", said) or re.search(r"(\d+) tested", said)
    assert tested is not None and int(tested[1]) >= 7, said
    assert httpx.get(f"{open_server.url}/readyz", timeout=30).status_code == 200
    assert "Traceback" not in open_server.text


def test_no_key_no_answer(model_file: Path, tmp_path: Path) -> None:
    """With API keys, what wants one ignores no missing or wrong one."""
    keys = tmp_path / "keys"
    key = new_key()
    keys.write_text(key_line("fuzz", SCOPES, key))
    server = start_server(
        f"--model={model_file}", f"--api-keys-file={keys}", "--slo-ms=20000", "--no-idle-profiling"
    )
    try:
        server.wait_until_ready(START_S)
        auth = ("--header", f"Authorization: Bearer {key}")
        fuzz(server.url, tmp_path, *auth, checks=(*CHECKS, "ignored_auth"))
        assert key not in server.text
    finally:
        end_server(server)
