"""``GET /``: the console, one page and its files, served as they lie in ``page/``.

The page needs no build step and nothing from elsewhere; it speaks to the same endpoints as any
other client.  Page and files are open to everyone, as they hold nothing of what is served.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""For the page; scripts and styles are files of this server, nothing is inline."""

PAGE = "index.html"

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {"Cache-Control": "no-cache"}  # asked for each time, and sent again only if changed


@dataclass(frozen=True)
class _File:
    content: bytes
    headers: dict[str, str]


def _read(name: str, content: bytes) -> _File:
    headers = _HEADERS | {
        "Content-Type": _MEDIA_TYPES[name.rpartition(".")[2]],
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
    }
    if name == PAGE:
        headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return _File(content, headers)


FILES = {
    entry.name: _read(entry.name, entry.read_bytes())
    for entry in resources.files(__name__).joinpath("page").iterdir()
    if entry.name.rpartition(".")[2] in _MEDIA_TYPES
}
"""All that is served, by name; read once, so no request ever names a path."""


@router.get("/")
async def page(request: Request) -> Response:
    """The console."""
    return _answer(request, FILES[PAGE])


@router.get("/console/{name}")
async def file(request: Request, name: str) -> Response:
    """A script, style or picture of the page."""
    found = FILES.get(name)
    if found is None:
        raise HTTPException(404)
    return _answer(request, found)


def _answer(request: Request, found: _File) -> Response:
    tags = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if found.headers["ETag"] in tags:
        return Response(status_code=304, headers=found.headers)
    return Response(found.content, headers=found.headers)
