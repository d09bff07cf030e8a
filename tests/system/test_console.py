"""The console in a real Chromium, against a real server."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageStat

from tests.system.machine import ROOT, free_port, missing, running, wait_until, wait_until_ready

try:
    from axe_playwright_python.sync_playwright import Axe

    from tests.system.browser import Console, chromium, console, photograph
except ImportError:
    missing("playwright is not installed (pip install -e '.[dev]')")

pytestmark = pytest.mark.system

PHONE = {"viewport": {"width": 360, "height": 740}}
DARK = {"color_scheme": "dark"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own: nobody else pins its degree."""
    folder = tmp_path_factory.mktemp("console")
    port = free_port()
    command = [sys.executable, "-m", "server.cli", "serve", f"--port={port}", "--slo-ms=20000"]
    url = f"http://127.0.0.1:{port}"
    with running(command, folder / "server.log", folder=ROOT) as process:
        wait_until_ready(url, process.poll, folder / "server.log")
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    with chromium() as one:
        yield one


@pytest.fixture
def tab(browser: Any, url: str) -> Iterator[Console]:
    """The console, at desk size; the test fails if the page complains or asks anybody else."""
    httpx.put(f"{url}/compression?mode=auto").raise_for_status()
    with console(browser, url, viewport={"width": 1280, "height": 900}) as one:
        yield one
        assert one.complaints == []
        assert one.strangers == []


def test_an_image_is_classified_and_what_merged_is_shown(tab: Console) -> None:
    """Top classes as bars, the degree and the times; the groups follow degree and layer."""
    tab.classify(photograph("chelsea"))
    rows = tab.page.locator("#classes li")
    assert rows.count() == 5
    assert "%" in rows.first.inner_text()
    assert tab.text("fact-r").isdecimal() and float(tab.text("fact-compute")) > 0
    widths = [bar.bounding_box()["width"] for bar in tab.page.locator("#classes .fill").all()]  # type: ignore[index]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[-1]

    tab.page.locator("#merge-r").press("End")
    tab.wait_for_text("merging-text", "patches became")
    most = tab.text("merging-text")
    before = tab.page.locator("#stage").screenshot()
    tab.page.locator("#fill").check()
    assert tab.page.locator("#stage").screenshot() != before
    tab.page.locator("#merge-layer").press("Home")
    assert tab.text("merge-layer-text").startswith("1 of ")
    assert tab.text("merging-text") != most
    tab.page.locator("#merge-r").press("Home")
    tab.wait_for_text("merging-text", "nothing merges")


def test_a_degree_is_pinned_and_handed_back(tab: Console, url: str) -> None:
    """The slider pins from the keyboard, the chart and the readouts move, auto takes over again."""
    chart = tab.page.locator("figure.chart", has_text="Degree")
    line = chart.locator(".plot path.line.first")
    assert tab.text("mode") == "auto"
    levels = httpx.get(f"{url}/compression").json()["levels"]
    highest = levels[-1]["r"]

    tab.page.locator("#ttl").select_option("600")
    tab.page.locator("#degree").press("End")
    tab.wait_for_text("mode", "pinned until")
    status = httpx.get(f"{url}/compression").json()
    assert (status["mode"], status["r"]) == ("pinned", highest)
    assert 500 < status["pinned_ttl_s"] <= 600
    tab.wait_for_text("now-r", str(highest))
    assert chart.locator(".legend b").inner_text() == str(highest)
    heights = [float(y) for y in re.findall(r"V([\d.]+)", line.get_attribute("d") or "")]
    assert heights[-1] == min(heights) < max(heights)  # SVG counts from the top
    assert tab.text("level-r") == str(highest)

    tab.page.get_by_role("button", name="Return to auto").click()
    wait_until("auto", lambda: tab.text("mode") == "auto", timeout_s=30)
    assert httpx.get(f"{url}/compression").json()["mode"] == "auto"
    assert tab.page.get_by_role("button", name="Return to auto").is_disabled()


def test_charts_show_what_is_served(tab: Console, url: str, photo: bytes) -> None:
    """Requests of others move load, latency and counts; a crosshair tells the values."""

    def classified() -> int:
        return int(tab.page.locator("#outcomes dd").first.inner_text().replace(",", ""))

    before = classified()
    for _ in range(10):
        httpx.post(f"{url}/classify", files={"file": photo}, timeout=60).raise_for_status()
    wait_until("the count", lambda: classified() >= before + 10, timeout_s=30)
    latency = tab.page.locator("figure.chart", has_text="Latency")
    assert latency.locator(".plot path.line.first").get_attribute("d")
    plot = latency.get_by_role("img")
    plot.press("ArrowLeft")
    plot.press("ArrowLeft")
    assert "ago" in latency.locator(".tip").inner_text()
    assert "p95" in tab.text("live")
    assert "p95" in (plot.get_attribute("aria-label") or "")


def test_the_example_needs_no_file(tab: Console) -> None:
    """A button paints a picture in the browser and classifies it."""
    tab.page.get_by_role("button", name="Example").click()
    tab.page.wait_for_selector("#result:not([hidden])")
    assert tab.page.locator("#classes li").count() == 5
    assert "served at r" in tab.text("live")


def test_what_is_no_image_is_explained(tab: Console) -> None:
    """The server's own words are shown, and the page goes on."""
    broken: Any = {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"}
    tab.page.set_input_files("#file", broken)
    tab.page.locator("#image-problem", has_text="image").wait_for()
    tab.classify(photograph("coffee"))
    assert tab.page.locator("#image-problem").is_hidden()
    assert len(tab.complaints) == 1 and "400" in tab.complaints.pop()  # the browser's own note


@pytest.mark.parametrize("how", [{}, DARK, PHONE, PHONE | DARK], ids=["", "dark", "phone", "both"])
def test_it_fits_and_is_accessible(
    browser: Any, url: str, how: dict[str, Any], tmp_path: Path
) -> None:
    """No side scrolling, the scheme that is preferred, and nothing that axe objects to."""
    with console(browser, url, **how) as tab:
        tab.classify(photograph("astronaut"))
        tab.page.locator("summary").click()
        wide, window = tab.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window
        tab.page.screenshot(path=tmp_path / "console.png", full_page=True)
        corner = Image.open(tmp_path / "console.png").convert("L").crop((0, 0, window, 200))
        assert (ImageStat.Stat(corner).median[0] < 80) is ("color_scheme" in how)
        found = Axe().run(tab.page, options={"runOnly": ["wcag2a", "wcag2aa", "best-practice"]})
        assert found.violations_count == 0, found.generate_report()


def test_everything_is_reached_by_keyboard(tab: Console) -> None:
    """Tab goes to each control in turn, and each is named."""
    tab.classify(photograph("chelsea"))
    tab.page.locator("body").press("Tab")
    reached = set()
    for _ in range(60):
        reached.add(
            tab.page.evaluate("document.activeElement.id || document.activeElement.tagName")
        )
        tab.page.keyboard.press("Tab")
    controls = {"file", "example", "merge-r", "merge-layer", "outline", "fill", "degree", "ttl"}
    assert controls <= reached
    assert {"SUMMARY", "svg", "A"} <= reached
    tree = tab.page.context.new_cdp_session(tab.page).send("Accessibility.getFullAXTree")
    roles = {"button", "slider", "checkbox", "combobox", "link", "textbox", "image", "img"}
    nameless = [
        node
        for node in tree["nodes"]
        if node.get("role", {}).get("value") in roles
        and not node.get("ignored")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []


def test_a_key_is_asked_for_and_sent(browser: Any, url: str) -> None:
    """Where the server answers 401, the page shows a field, keeps the key, and tries again."""
    with console(browser, url) as tab:
        asked: list[str | None] = []

        def guard(route: Any) -> None:
            key = route.request.headers.get("authorization")
            asked.append(key)
            if key == "Bearer open sesame":
                route.continue_()
            else:
                problem = '{"title": "Unauthorized", "status": 401, "detail": "No key."}'
                route.fulfill(status=401, content_type="application/problem+json", body=problem)

        tab.page.route("**/compression?*", guard)
        assert tab.page.locator("#key-form").is_hidden()
        tab.page.locator("#degree").press("Home")
        tab.page.locator("#degree").press("End")
        field = tab.page.get_by_label("This server asks for an API key")
        field.fill("wrong")
        field.press("Enter")
        tab.wait_for_text("key-hint", "No key.")
        field.fill("open sesame")
        field.press("Enter")
        tab.wait_for_text("mode", "pinned")
        assert asked == [None, "Bearer wrong", "Bearer open sesame"]
        assert tab.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    httpx.put(f"{url}/compression?mode=auto").raise_for_status()


def test_an_open_console_does_not_hold_the_end_of_the_server(browser: Any, tmp_path: Path) -> None:
    """SIGTERM ends the stream and the server; the page says so and goes on trying."""
    port = free_port()
    log = tmp_path / "server.log"
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "server.cli", "serve", f"--port={port}"]
    with running(command, log, folder=ROOT) as process:
        wait_until_ready(address, process.poll, log)
        with console(browser, address) as tab:
            process.send_signal(signal.SIGTERM)
            wait_until("the end", lambda: process.poll() is not None, timeout_s=25)
            assert process.returncode == 0, log.read_text()
            tab.wait_for_text("state-text", "Connection lost, retrying in")
