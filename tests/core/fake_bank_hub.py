"""A Hugging Face hub on loopback that takes repositories and gives their files back."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants


def ask_hub(
    monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, *, offline: bool = False
) -> None:
    """Let the hub's client ask that address, with that cache."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)


@dataclass
class FakeBankHub:
    """Repositories in memory, and what was asked.

    Attributes:
        repositories: content of the files by ``owner/name``.
        gated: repositories whose terms nobody has accepted.
        token: what a request must carry to write.
        status: answer everything with this instead.
        commit: what the main branch and the tag v1 are at.
        asked: method and path of each request.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"
    status: int | None = None
    commit: str = "fedcba9876543210fedcba9876543210fedcba98"
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator["FakeBankHub"]:
        """Serve on a free port of loopback."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET

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
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(request.path.partition("?")[0]).strip("/")
        if self.status is not None:
            self._send(request, self.status)
        elif request.command == "POST":
            self._written(request, path, body)
        else:
            self._read(request, path)

    def _written(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if path == "api/validate-yaml":
            return self._send(request, 200, {"errors": [], "warnings": []})
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(request, 401)
        if path == "api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.repositories.setdefault(name, {})
            return self._send(request, 200, {"url": f"{self.url}/{name}", "id": name})
        _, _, owner, name, action, _ = path.split("/", 5)
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]
            ]
            told = [{**file, "shouldIgnore": False, "oid": None} for file in files]
            return self._send(request, 200, {"files": told})
        assert action == "commit", path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.repositories[f"{owner}/{name}"][entry["value"]["path"]] = content
        url = f"{self.url}/{owner}/{name}/commit/{self.commit}"
        return self._send(
            request, 200, {"success": True, "commitOid": self.commit, "commitUrl": url}
        )

    def _read(self, request: BaseHTTPRequestHandler, path: str) -> None:
        parts = path.removeprefix("api/models/").split("/")
        name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        if name not in self.repositories:
            return self._send(request, 401, error="RepoNotFound")
        if revision not in ("main", "v1", self.commit):
            return self._send(request, 404, error="RevisionNotFound")
        files = self.repositories[name]
        if len(parts) > 4 and parts[2] == "resolve":
            if name in self.gated:
                return self._send(request, 403, error="GatedRepo")
            content = files.get("/".join(parts[4:]))
            if content is None:
                return self._send(request, 404, error="EntryNotFound")
            return self._send(request, 200, content)
        siblings = [{"rfilename": file} for file in files]
        return self._send(request, 200, {"id": name, "sha": self.commit, "siblings": siblings})

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: Any = b"",
        error: str | None = None,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("X-Repo-Commit", self.commit)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if error is not None:
            request.send_header("X-Error-Code", error)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)
