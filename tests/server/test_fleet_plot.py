"""The picture of fleets: columns, curves, and what is missing is said."""

import builtins
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.errors import SettingsError
from server.fates import Fate
from server.fleet_plot import FleetCurve, plot_fleets
from server.simulated_fleet import Lifetime
from server.timeline_plot import COLOURS

FATES = [Fate(0.1 * n, 0.1 * n + 0.05, "ok", n % 5, 1.0, 2) for n in range(500)]
LIVES = [Lifetime(0, 0, math.inf, math.inf), Lifetime(10, 20, 40, 41)]


@pytest.fixture(autouse=True)
def _plots_are_no_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in this process may have told Pillow to take no large picture."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


def pixels(path: Path, colour: str) -> int:
    """How many pixels of a picture have about this colour; thin lines are blended a little."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as picture:
        found: list[tuple[int, Any]] = picture.convert("RGB").getcolors(1 << 24) or []
    near = (n for n, one in found if max(abs(a - b) for a, b in zip(one, wanted, strict=True)) < 40)
    return sum(near)


def test_every_run_has_its_colour_in_every_column(tmp_path: Path) -> None:
    """A second column is drawn beside the first; a run that answered nobody leaves gaps only."""
    silent = [Fate(fate.due_s, fate.due_s, "shed", None) for fate in FATES]
    runs = [FleetCurve("a", FATES, LIVES, 50.0), FleetCurve("b", silent, LIVES[:1], 50.0)]
    plot_fleets(tmp_path / "one.png", {"": runs[:1]}, 0.25, 5.0, title="one")
    plot_fleets(tmp_path / "two.png", {"x": runs, "y": runs}, 0.25, 5.0)
    blue, red = COLOURS[:2]
    assert pixels(tmp_path / "one.png", blue) > 200
    assert pixels(tmp_path / "one.png", red) == 0
    assert pixels(tmp_path / "two.png", blue) > 200
    assert pixels(tmp_path / "two.png", red) > 200


def test_matplotlib_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the message says how to get it."""
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match="plots"):
        plot_fleets(tmp_path / "x.png", {"": [FleetCurve("a", FATES, LIVES, 50.0)]}, 0.25, 5.0)
