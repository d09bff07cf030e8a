"""Make the pictures of the console in `docs/` anew: `python -m tests.system.console_pictures URL`.

The server should run ViT-Tiny with its bank. A step of load is sent to it first, so that the charts
have something to show; the photographs are free of rights (see `photograph`).
"""

import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.system.browser import Console, chromium, console, photograph
from tests.system.machine import ROOT

DESK = {"width": 1180, "height": 900}
LOAD = ((30.0, 3.0), (30.0, 24.0), (20.0, 3.0))
"""(seconds, images per second), in turn: calm, a spike for two busy cores, calm again."""


def main(url: str, folder: Path) -> None:
    """Take all pictures."""
    send_load(url)
    with chromium() as browser:
        with console(browser, url, viewport=DESK) as tab:
            tab.classify(photograph("coffee"))
            show_degree(tab, 8)
            take(tab, folder / "console.png", full_page=True)
        with console(browser, url, viewport=DESK, color_scheme="dark") as tab:
            tab.classify(photograph("chelsea"))
            show_degree(tab, 10)
            tab.page.locator("#fill").check()
            take(tab, folder / "console_dark.png", full_page=True)
        phone = {"width": 360, "height": 760}
        with console(browser, url, viewport=phone, device_scale_factor=1.5) as tab:
            tab.classify(photograph("chelsea"))
            show_degree(tab, 8)
            tab.page.locator("#image-title").scroll_into_view_if_needed()
            tab.page.evaluate("scrollTo(0, document.querySelector('.pair').offsetTop - 8)")
            take(tab, folder / "console_phone.png")


def take(tab: Console, path: Path, **how: Any) -> None:
    """Take a picture, and make it small enough for a repository."""
    tab.page.screenshot(path=path, **how)
    Image.open(path).convert("RGB").save(path, optimize=True)


def show_degree(tab: Console, r: int) -> None:
    """Look at what merges at this degree, and wait until it is drawn."""
    slider = tab.page.locator("#merge-r")
    slider.press("Home")
    for _ in range(r):
        slider.press("ArrowRight")
    tab.wait_for_text("merging-text", f"tokens at r = {r} ")
    tab.page.mouse.move(0, 0)
    slider.blur()


def send_load(url: str) -> None:
    """Send photographs in an open loop: few, then more than r=0 can carry, then few."""
    photo = photograph("coffee")

    def post() -> None:
        with suppress(httpx.HTTPError):
            httpx.post(f"{url}/classify", files={"file": photo}, timeout=30)

    with ThreadPoolExecutor(32) as pool:
        for seconds, rate in LOAD:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                pool.submit(post)
                time.sleep(random.expovariate(rate))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs")
