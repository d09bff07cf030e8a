"""A real Chromium that may speak to one server only, and what it complained about."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from skimage import data

from tests.system.machine import tool

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 60_000


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    path = tool("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Console:
    """The console in a tab.

    Attributes:
        page: the tab.
        complaints: errors and warnings of the page.
        strangers: requests to other servers; they are aborted.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)

    def classify(self, content: bytes) -> None:
        """Choose an image and wait for its classes and for what merged."""
        file: Any = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": content}
        self.page.set_input_files("#file", file)
        self.page.wait_for_selector("#result:not([hidden])")
        self.wait_for_text("merging-text", "patches")

    def text(self, name: str) -> str:
        """What an element of the page says."""
        return self.page.locator(f"#{name}").inner_text()

    def wait_for_text(self, name: str, text: str) -> None:
        """Wait until an element says so, among other things."""
        expect(self.page.locator(f"#{name}")).to_contain_text(text, timeout=PATIENCE_MS)


@contextlib.contextmanager
def console(browser: Browser, url: str, **how: Any) -> Iterator[Console]:
    """Open the console and wait until it shows the server's state."""
    context = browser.new_context(**how)
    context.set_default_timeout(PATIENCE_MS)
    found = Console(context.new_page())
    found.page.on("console", lambda message: _note(found, message))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    context.route("**/*", lambda route: _keep_home(found, route, urlsplit(url).netloc))
    found.page.goto(url)
    found.page.wait_for_selector("#state[data-kind=live]")
    found.page.wait_for_selector("#degree:not([disabled])")
    yield found
    context.close()


def photograph(name: str) -> bytes:
    """One of scikit-image's photographs that are free of rights, as JPEG.

    `chelsea` (a cat), `coffee` and `astronaut` are CC0 or in the public domain.
    """
    file = io.BytesIO()
    Image.fromarray(getattr(data, name)()).save(file, "JPEG", quality=92)
    return file.getvalue()


def _note(found: Console, message: Any) -> None:
    if message.type in ("error", "warning"):
        found.complaints.append(message.text)


def _keep_home(found: Console, route: Route, home: str) -> None:
    """Let requests to the server pass; abort all others and remember them."""
    if urlsplit(route.request.url).netloc == home or route.request.url.startswith("blob:"):
        route.continue_()
        return
    found.strangers.append(route.request.url)
    route.abort()
