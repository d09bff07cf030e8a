"""A Hugging Face hub on loopback: what its client asks to learn of a model and to fetch files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Repositories in folders, and what was asked.

    Attributes:
        repositories: folders by ``owner/name``.
        tokens: which token opens a private repository.
        gated: repositories whose terms nobody has accepted.
        status: answer everything with this instead.
        asked: method and path of each request.
    """

    repositories: dict[str, Path]
    tokens: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        """Serve on a free port of loopback."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request of the client's."""
        self.asked.append(f"{request.command} {request.path}")
        path = request.path.partition("?")[0].strip("/").removeprefix("api/models/")
        name = "/".join(path.split("/")[:2])
        revision = path.split("/")[3] if path.count("/") >= 3 else "main"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.status is not None:
            return _send(request, self.status, b"", {})
        if name in self.gated:
            return _send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in self.repositories or self.tokens.get(name, token) != token:
            return _send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", COMMIT):
            return _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        folder = self.repositories[name]
        if "/resolve/" in path:
            return self._file(request, folder / path.rpartition("/")[2])
        files = [{"rfilename": entry.name} for entry in sorted(folder.iterdir())]
        body = json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode()
        return _send(request, 200, body, {"Content-Type": "application/json"})

    def _file(self, request: BaseHTTPRequestHandler, path: Path) -> None:
        if not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return _send(request, 404, b"", headers)
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return _send(request, 200, content, {"X-Repo-Commit": COMMIT, "ETag": tag})


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]
) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
