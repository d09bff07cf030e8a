"""A Hugging Face hub on loopback that takes repositories and gives their files back."""

import base64
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from tests.core.fake_hub import HubServer


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
class FakeBankHub(HubServer):
    """Repositories in memory.

    Attributes:
        repositories: content of the files by ``owner/name``.
        gated: repositories whose terms nobody has accepted.
        token: what a request must carry to write.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_right"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Tell of a repository, give a file, or take some."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = unquote(request.path.partition("?")[0]).strip("/")
        if request.command == "POST":
            self._written(request, path, body)
        else:
            self._read(request, path)

    def _written(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        if path == "api/validate-yaml":
            return self.send(request, 200, {"errors": [], "warnings": []})
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(request, 401)
        if path == "api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.repositories.setdefault(name, {})
            return self.send(request, 200, {"url": f"{self.url}/{name}", "id": name})
        _, _, owner, name, action, _ = path.split("/", 5)
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]
            ]
            told = [{**file, "shouldIgnore": False, "oid": None} for file in files]
            return self.send(request, 200, {"files": told})
        assert action == "commit", path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.repositories[f"{owner}/{name}"][entry["value"]["path"]] = content
        url = f"{self.url}/{owner}/{name}/commit/{self.commit}"
        return self.send(
            request, 200, {"success": True, "commitOid": self.commit, "commitUrl": url}
        )

    def _read(self, request: BaseHTTPRequestHandler, path: str) -> None:
        parts = path.removeprefix("api/models/").split("/")
        name, revision = "/".join(parts[:2]), parts[3] if len(parts) > 3 else "main"
        if name not in self.repositories:
            return self.send(request, 401, error="RepoNotFound")
        if not self.known(revision):
            return self.send(request, 404, error="RevisionNotFound")
        files = self.repositories[name]
        if len(parts) > 4 and parts[2] == "resolve":
            if name in self.gated:
                return self.send(request, 403, error="GatedRepo")
            content = files.get("/".join(parts[4:]))
            if content is None:
                return self.send(request, 404, error="EntryNotFound")
            return self.send(request, 200, content)
        siblings = [{"rfilename": file} for file in files]
        return self.send(request, 200, {"id": name, "sha": self.commit, "siblings": siblings})
