"""The Python in the documentation of the client, run as it stands against a real server."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import LABELS, ROOT

if TYPE_CHECKING:
    from tests.integration.conftest import Server

PAGES = ("README.md", "docs/client.md")


def snippets(page: str) -> list[str]:
    """The page's blocks of Python, if it is about the client; README has others, too."""
    found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [code for code in found if page != "README.md" or "tocom_client" in code]


@pytest.mark.timeout(300)
def test_every_snippet_runs(
    serve: Callable[..., "Server"],
    photo: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order of the page, each with the names of those before it, at our address."""
    server = serve("--slo-ms=60000", "--no-idle-profiling")
    (tmp_path / "photos").mkdir()
    for path in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        (tmp_path / path).write_bytes(photo)
    (tmp_path / "photos/c.jpg").write_text("no photograph")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOCOM_URL", server.url)
    monkeypatch.delenv("TOCOM_API_KEY", raising=False)
    told = {}
    for page in PAGES:
        names: dict[str, object] = {}
        codes = snippets(page)
        assert codes, page
        for number, code in enumerate(codes):
            exec(compile(code, f"{page}, snippet {number}", "exec"), names)
        told[page] = capsys.readouterr().out
    assert any(label in told["README.md"] for label in LABELS)
    for seen in ("c.jpg", "a.jpg class", "pinned", "auto", "done", "of 10"):
        assert seen in told["docs/client.md"], told["docs/client.md"]
