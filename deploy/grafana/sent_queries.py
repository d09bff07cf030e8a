"""The dashboard's queries as Grafana would send them to Prometheus."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parent / "dashboards" / "tocom.json").read_text()
)
PANELS: list[dict[str, Any]] = [p for p in DASHBOARD["panels"] if p["type"] != "row"]


@dataclass(frozen=True)
class Target:
    """One query of one panel."""

    panel: str
    legend: str
    expr: str

    @property
    def needs_gpu(self) -> bool:
        """Whether it yields nothing on a machine without a GPU."""
        return "tocom_gpu_" in self.expr


def targets() -> tuple[Target, ...]:
    """Return every query of every panel, from top to bottom."""
    return tuple(
        Target(panel["title"], target["legendFormat"], target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    )


def expanded(expr: str, *, scrape_s: int, range_s: int = 900, instance: str = ".*") -> str:
    """Put in values for the variables of a query, as Grafana does.

    Args:
        expr: the query.
        scrape_s: the data source's scrape interval in seconds.
        range_s: what the reader looks at, in seconds; a panel has about 1,000 points.
        instance: a regular expression of the chosen instances; all of them by default.

    Raises:
        KeyError: the query has a variable that is none of the dashboard's.
    """
    interval_s = max(scrape_s, round(range_s / 1000))
    values = {
        "__interval": f"{interval_s}s",
        "__range": f"{range_s}s",
        "__rate_interval": f"{max(interval_s + scrape_s, 4 * scrape_s)}s",
        "instance": instance,
    }
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], expr)
