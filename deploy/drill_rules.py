"""Shortens the shipped Prometheus configuration, so that alerts come in seconds instead of hours.

`python -m deploy.drill_rules FOLDER` writes it there; `deploy/compose.drill.yml` mounts that folder
(PROMETHEUS_CONFIG). The rules are the shipped ones: only windows, waits and intervals are divided,
by 60, so that an hour is a minute; thresholds and expressions stay as they are.
"""

import re
import sys
from pathlib import Path

SHIPPED = Path(__file__).parent / "prometheus"
DIVISOR = 60
SCRAPE_S = 1
SHORTEST_WINDOW_S = 4 * SCRAPE_S
"""A rate needs two samples, and one scrape may be late."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = r"(\d+)([smhd])"


def write_drill_rules(folder: Path) -> None:
    """Write the configuration and its rules, shortened, into `folder`, which need not exist."""
    (folder / "rules").mkdir(parents=True, exist_ok=True)
    for file in (SHIPPED / "prometheus.yml", *sorted((SHIPPED / "rules").glob("*.yml"))):
        (folder / file.relative_to(SHIPPED)).write_text(shortened(file.read_text()))


def shortened(text: str) -> str:
    """Return the YAML text with all its durations divided; names of metrics stay as they are."""
    text = re.sub(
        rf"\[{_DURATION}\]", lambda window: f"[{_divided(window, SHORTEST_WINDOW_S)}]", text
    )
    return re.sub(
        rf"\b(for|interval|scrape_interval|evaluation_interval): {_DURATION}$",
        lambda line: f"{line[1]}: {_divided(line, SCRAPE_S, first=2)}",
        text,
        flags=re.MULTILINE,
    )


def _divided(found: re.Match[str], least_s: int, first: int = 1) -> str:
    seconds = int(found[first]) * _SECONDS[found[first + 1]]
    return f"{max(least_s, seconds // DIVISOR)}s"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deploy.drill_rules FOLDER")
    write_drill_rules(Path(sys.argv[1]))
