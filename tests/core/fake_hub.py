"""A Hugging Face hub on loopback: what its client asks to learn of a model and to fetch files."""

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class HubServer(ABC):
    """What a hub on loopback has whatever its repositories are.

    Attributes:
        status: answer everything with this instead.
        commit: what the main branch and the tag v1 are at.
        asked: method and path of each request.
        url: where it answers, while it runs.
    """

    status: int | None = None
    commit: str = COMMIT
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serve on a free port of loopback."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                if hub.status is None:
                    hub.answer(self)
                else:
                    hub.send(self, hub.status)

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

    @abstractmethod
    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request of the client's."""

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: Any = b"",
        error: str | None = None,
    ) -> None:
        """Answer with bytes or what becomes JSON, as the hub labels it."""
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

    def known(self, revision: str) -> bool:
        """Whether there is such a branch, tag or commit."""
        return revision in ("main", "v1", self.commit)


@dataclass
class FakeHub(HubServer):
    """Repositories in folders.

    Attributes:
        repositories: folders by ``owner/name``.
        tokens: which token opens a private repository.
        gated: repositories whose terms nobody has accepted.
    """

    repositories: dict[str, Path]
    tokens: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Tell of a repository, or give a file."""
        path = request.path.partition("?")[0].strip("/").removeprefix("api/models/")
        name = "/".join(path.split("/")[:2])
        revision = path.split("/")[3] if path.count("/") >= 3 else "main"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if name in self.gated:
            return self.send(request, 403, error="GatedRepo")
        if name not in self.repositories or self.tokens.get(name, token) != token:
            return self.send(request, 401, error="RepoNotFound")
        if not self.known(revision):
            return self.send(request, 404, error="RevisionNotFound")
        folder = self.repositories[name]
        if "/resolve/" in path:
            file = folder / path.rpartition("/")[2]
            if not file.is_file():
                return self.send(request, 404, error="EntryNotFound")
            return self.send(request, 200, file.read_bytes())
        files = [{"rfilename": entry.name} for entry in sorted(folder.iterdir())]
        return self.send(request, 200, {"id": name, "sha": self.commit, "siblings": files})
