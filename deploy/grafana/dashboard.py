"""The dashboard as code: `make dashboard` writes `dashboards/tocom.json` from it.

It tells a story from top to bottom: are users served, what does it cost, why, and how is the
machine. Each row asks for what the row above leaves open. Everything is read from the server's own
metrics, so the dashboard also works with a Prometheus that has none of the rules of
`deploy/prometheus`; only the panel of the error budget needs them.
"""

import itertools
import json
import sys
from pathlib import Path

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import TimeZoneBrowser
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from deploy.grafana import causes_row, cost_row, machine_row, users_row
from deploy.grafana.panels import RED, SOURCE

OUTPUT = Path(__file__).parent / "dashboards" / "tocom.json"

ROWS = (users_row, cost_row, causes_row, machine_row)


def build_dashboard() -> Dashboard:
    """Return the builder of the whole dashboard."""
    instances = "label_values(tocom_ready, instance)"
    board = (
        Dashboard("ToCom Serve")
        .uid("tocom-serve")
        .description("Are users served, what does it cost, why, and how is the machine?")
        .tags(["tocom"])
        .editable()
        .refresh("5s")
        .time("now-15m", "now")
        .timezone(TimeZoneBrowser)
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            QueryVariable("instance")
            .label("Instance")
            .datasource(SOURCE)
            .query(instances)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(text="All", value="$__all"))
        )
        .annotation(
            AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .expr('ALERTS{alertname=~"Tocom.*", alertstate="firing"}')
            .enable(True)
            .icon_color(RED)
        )
    )
    ids = itertools.count(1)
    for part in ROWS:
        board = board.with_row(Row(part.TITLE).id(next(ids)))
        for panel in part.row():
            board = board.with_panel(panel.id(next(ids)))
    return board


def dashboard_json() -> str:
    """Return the dashboard as Grafana reads it, each run the same text."""
    return json.dumps(build_dashboard().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(dashboard_json())
    print(f"wrote {OUTPUT}", file=sys.stderr)
