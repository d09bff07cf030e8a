"""The picture of a replay: it is drawn from whatever fates there are."""

import builtins
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.errors import SettingsError
from server.fates import Fate
from server.timeline_plot import PlottedRun, plot_timeline

SERVED = [Fate(0.1 * n, 0.1 * n + 0.05, "ok", n % 17, 1.0, 2) for n in range(200)]
REFUSED = [Fate(0.1 * n, 0.1 * n, "shed", None) for n in range(200)]


def colours(path: Path) -> dict[Any, int]:
    """How many pixels of a picture have each colour."""
    with Image.open(path) as picture:
        assert picture.width > 800 and picture.height > 800
        return {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 24) or ()}


@pytest.fixture(autouse=True)
def _plots_are_no_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in this process may have told Pillow to take no large picture."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


def test_one_run_shows_how_requests_ended(tmp_path: Path) -> None:
    """In time, late and not answered have colours of their own."""
    mixed = [*SERVED[:100], *REFUSED[100:150], *(Fate(15, 16, "ok", 4) for _ in range(20))]
    plot_timeline(tmp_path / "one.png", [PlottedRun("demand", mixed, 20)], 0.2, title="step")
    plot_timeline(tmp_path / "served.png", [PlottedRun("demand", SERVED, 20)], 0.2)
    in_time, late, lost = (0x8C, 0xC5, 0xA2), (0xF2, 0xC1, 0x4E), (0xD1, 0x49, 0x5B)
    mixture, served = colours(tmp_path / "one.png"), colours(tmp_path / "served.png")
    assert served[in_time] > mixture[in_time] > 10 * served[late]
    assert mixture[late] > 3 * served[late]  # there it is in the legend only
    assert mixture[lost] > 3 * served[lost]


def test_several_runs_are_laid_over_each_other(tmp_path: Path) -> None:
    """Each with its colour; capacities are lines beside the offered load."""
    names = ("demand", "static r=0", "aimd")
    runs = [PlottedRun(name, SERVED[shift:], 20) for shift, name in enumerate(names)]
    plot_timeline(tmp_path / "all.png", runs, 0.2, capacities={"capacity r=0": 5.0})
    seen = colours(tmp_path / "all.png")
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= seen.keys()


@pytest.mark.parametrize("fates", [[], REFUSED, SERVED[:1]])
def test_runs_with_next_to_nothing_in_them_are_drawn(tmp_path: Path, fates: list[Fate]) -> None:
    """No answers, or no requests: panels stay empty, and nothing warns."""
    plot_timeline(tmp_path / "plot.png", [PlottedRun("demand", fates, 20)], 0.2)
    assert (tmp_path / "plot.png").exists()


def test_long_traces_are_drawn_too(tmp_path: Path) -> None:
    """An hour has steps of half a minute, not of a second."""
    hour = [Fate(float(n), n + 0.1, "ok", 0) for n in range(3600)]
    plot_timeline(tmp_path / "plot.svg", [PlottedRun("demand", hour, 3600)], 0.2)
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_without_matplotlib_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    real = builtins.__import__

    def without(name: str, *args, **options):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"tocom-serve\[plots\]"):
        plot_timeline(tmp_path / "plot.png", [PlottedRun("demand", SERVED, 20)], 0.2)
