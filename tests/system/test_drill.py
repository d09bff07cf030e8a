"""The drill's own parts: shortened rules, and what counts as seen. Runs with the unit tests."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deploy.drill_rules import SHIPPED, shortened, write_drill_rules
from deploy.spike import ALERT, SHOWN, Drill, Shown

LEVELS = {
    "Arrivals and capacity": (40.0, 400.0, 41.0),
    "Attainment": (1.0, 0.4, 1.0),
    "Degree over time": (0.0, 16.0, 0.0),
}


def drill() -> Drill:
    """A drill in which everything was seen."""
    shown = [Shown(p, series, *LEVELS.get(p, (1.0, 1.0, 1.0))) for p, series in SHOWN]
    told = [{"at": float(i), "alert": ALERT, "status": s} for i, s in enumerate(STATUSES)]
    return Drill(tuple(shown), tuple(told), 130.0)


STATUSES = ("firing", "resolved")


def with_level(panel: str, before: float, spike: float, after: float) -> Drill:
    """A drill in which one panel showed something else."""
    seen = drill()
    shown = [
        replace(row, before=before, spike=spike, after=after) if row.panel == panel else row
        for row in seen.shown
    ]
    return replace(seen, shown=tuple(shown))


def test_a_drill_that_went_well_lacks_nothing():
    """Spike, fall, rise, return, alert and its end: all seen."""
    assert drill().failures() == []


@pytest.mark.parametrize(
    ("panel", "levels", "missed"),
    [
        ("Arrivals and capacity", (40.0, 60.0, 40.0), "the spike in the arrivals"),
        ("Attainment", (1.0, 1.0, 1.0), "a fall of the attainment"),
        ("Degree over time", (0.0, 0.0, 0.0), "the rise of the degree"),
        ("Degree over time", (0.0, 16.0, 16.0), "the return of the degree"),
        ("Degree over time", (0.0, 16.0, float("nan")), "the return of the degree"),
    ],
)
def test_what_a_panel_did_not_show_is_named(
    panel: str, levels: tuple[float, float, float], missed: str
):
    """A panel that stays flat, or does not come back, is a failure of its own."""
    assert with_level(panel, *levels).failures() == [missed]


@pytest.mark.parametrize(
    ("statuses", "missed"),
    [((), 2), (("firing",), 1), (("resolved",), 1), (("firing", "resolved", "firing"), 1)],
)
def test_an_alert_must_come_and_end(statuses: tuple[str, ...], missed: int):
    """An alert that never came, never ended, or came back is a failure."""
    told = tuple({"at": 0.0, "alert": ALERT, "status": status} for status in statuses)
    assert len(replace(drill(), alerts=told).failures()) == missed


def test_drill_rules_are_the_shipped_ones_in_a_hurry(tmp_path: Path):
    """The rules keep their names; no window is above 72 minutes, none below four scrapes."""
    write_drill_rules(tmp_path)
    config = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    assert config["global"] == {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for file in (SHIPPED / "rules").glob("*.yml"):
        before, after = file.read_text(), (tmp_path / "rules" / file.name).read_text()
        windows = [int(s) for s in re.findall(r"\[(\d+)s\]", after)]
        assert len(windows) == len(re.findall(r"\[\d+[smhd]\]", before))
        assert all(4 <= window <= 72 * 60 for window in windows)
        assert names(before) == names(after)


def test_an_hour_is_a_minute():
    """Windows and waits are divided by 60; names that hold a duration are not touched."""
    text = "expr: a:b:increase1h > sum(rate(c[1h]))\nfor: 5m\ninterval: 1m\n"
    assert shortened(text) == "expr: a:b:increase1h > sum(rate(c[60s]))\nfor: 5s\ninterval: 1s\n"


def names(rules: str) -> list[str]:
    """The names of all rules, in order."""
    groups = yaml.safe_load(rules)["groups"]
    return [rule.get("alert", rule.get("record")) for g in groups for rule in g["rules"]]
