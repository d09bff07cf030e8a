"""Probes of a server whose connections are all taken: a full one is not a dead one."""

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

if TYPE_CHECKING:
    from tests.integration.conftest import Server

CONNECTIONS = 8


def test_probes_are_answered_when_connections_are_all_taken(
    serve: Callable[..., "Server"],
) -> None:
    """Again and again, as the kubelet asks; whoever asks for anything else is told to wait."""
    # Silent connections are to stay for as long as the test takes.
    full = serve(f"--max-connections={CONNECTIONS}", "--header-timeout-s=100").url
    parts = urlsplit(full)
    assert parts.hostname and parts.port
    with contextlib.ExitStack() as stack:
        for n in range(CONNECTIONS):
            client = (f"127.0.1.{1 + n // 4}", 0)
            held = socket.create_connection((parts.hostname, parts.port), source_address=client)
            stack.enter_context(held)
        for _ in range(3):
            for path in ("/healthz", "/readyz"):
                assert httpx.get(full + path).status_code == 200
            refused = httpx.get(f"{full}/model")
            assert refused.status_code == 503
            assert refused.json()["type"] == "/problems/too-many-connections"
