"""A load spike against the stack of docker-compose.yml, seen through the dashboard's own queries.

    python -m deploy.drill_rules build/drill
    export PROMETHEUS_CONFIG=$PWD/build/drill
    docker compose -f docker-compose.yml -f deploy/compose.drill.yml --profile alerting \
        up --build --detach server prometheus alertmanager webhook
    python -m deploy.spike

The load is that of `tocom bench`: open loop, in multiples of what the server believes to carry at
its lowest degree: little, far too much, little again. Then Prometheus is asked what the panels
of the dashboard would show, and the webhook what it was told. Ends with a table, a line of JSON,
and status 1 if the spike, the rise of the degree, its return, or an alert and its end was not seen.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.drill_rules import SCRAPE_S
from deploy.grafana.sent_queries import expanded, targets
from tocom_client import Client

TRACE = "step:0.3x30,3x40,0.3x60"
ALERT = "TocomSloBurnFast"
RESOLVED_WITHIN_S = 240.0
QUIET_S = 20
"""Seconds at the end of what is looked at that count as after the spike."""

SHOWN = (
    ("Arrivals and capacity", "offered"),
    ("Arrivals and capacity", "answered"),
    ("Attainment", "in time"),
    ("Not served, by kind", "{{outcome}}"),
    ("Error budget burn", "1h"),
    ("Latency percentiles and SLO", "p95"),
    ("Degree over time", "r {{instance}}"),
    ("Accuracy of what was served", "expected"),
    ("Queue", "admitted"),
    ("Batch size", "mean"),
    ("Switches by reason", "{{reason}}"),
    ("Processors in use", "cores"),
)
"""Panel and series: what the report follows through the spike; of several the highest."""


@dataclass(frozen=True)
class Stack:
    """Where the parts are reached: URLs without a slash at the end."""

    server: str
    prometheus: str
    webhook: str


@dataclass(frozen=True)
class Shown:
    """What one series of a panel showed before, at the height of, and after the spike."""

    panel: str
    series: str
    before: float
    spike: float
    after: float


@dataclass(frozen=True)
class Drill:
    """What was seen.

    Attributes:
        shown: the dashboard's series.
        alerts: what the webhook received: time, name, status.
        seconds: from the first to the last moment that was looked at.
    """

    shown: tuple[Shown, ...]
    alerts: tuple[dict[str, Any], ...]
    seconds: float

    def of(self, panel: str) -> Shown:
        """Return the first followed series of a panel."""
        return next(shown for shown in self.shown if shown.panel == panel)

    def failures(self) -> list[str]:
        """Say what should have been seen and was not."""
        offered, degree = self.of("Arrivals and capacity"), self.of("Degree over time")
        told = [alert["status"] for alert in self.alerts if alert["alert"] == ALERT]
        expectations = {
            "the spike in the arrivals": offered.spike > 3 * max(offered.before, offered.after),
            "a fall of the attainment": self.of("Attainment").spike < self.of("Attainment").after,
            "the rise of the degree": degree.spike > degree.before,
            "the return of the degree": degree.after == degree.before,
            f"{ALERT} at the webhook": "firing" in told,
            f"the end of {ALERT} at the webhook": told[-1:] == ["resolved"],
        }
        return [name for name, seen in expectations.items() if not seen]


def drill(stack: Stack, trace: str = TRACE) -> Drill:
    """Drive the stack through the spike and return what was seen of it."""
    started = time.time()
    _bench(stack, trace)
    ended = time.time()

    def over() -> bool:
        told = [a["status"] for a in get(f"{stack.webhook}/") if a["alert"] == ALERT]
        return told[-1:] == ["resolved"]

    _wait(over, RESOLVED_WITHIN_S)
    alerts = [alert for alert in get(f"{stack.webhook}/") if alert["at"] >= started]
    return Drill(_shown(stack, started, ended), tuple(alerts), ended - started)


def get(url: str) -> Any:
    """Return the JSON that a URL answers."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def _bench(stack: Stack, trace: str) -> None:
    """Replay the trace; the report of the bench itself goes to stderr."""
    with Client(stack.server) as client:
        lowest = client.compression().levels[0]
    slo_s = _instant(stack, "max(tocom_slo_seconds)")
    command = [
        *(sys.executable, "-m", "server.cli", "bench", f"--url={stack.server}", "--seeds", "0"),
        *(f"--trace={trace}", f"--capacity={lowest.images_per_s:.1f}"),
        *(f"--slo-ms={1000 * slo_s:g}", "--image-count=50"),
    ]
    subprocess.run(command, stdout=sys.stderr, check=True)


def _shown(stack: Stack, started: float, ended: float) -> tuple[Shown, ...]:
    """Ask for each followed series, and split it where the arrivals rise and fall."""
    found = {key: _series(stack, key, started, ended) for key in SHOWN}
    offered = found[SHOWN[0]]
    height = max(offered.values())
    spike = [at for at, value in offered.items() if value > height / 2]
    windows: dict[str, Callable[[float], bool]] = {
        "before": lambda at: at < spike[0] - SCRAPE_S,
        "spike": lambda at: spike[0] <= at <= spike[-1],
        "after": lambda at: at > ended - QUIET_S,
    }
    return tuple(
        Shown(
            panel,
            series,
            **{
                name: _typical((v for at, v in values.items() if inside(at)), name, panel)
                for name, inside in windows.items()
            },
        )
        for (panel, series), values in found.items()
    )


def _typical(values: Iterable[float], window: str, panel: str) -> float:
    """Return the extreme of the spike, the lowest for what should be high; else the median."""
    known = list(values)
    if not known:
        return float("nan")
    if window != "spike":
        return statistics.median(known)
    return min(known) if panel.startswith(("Attainment", "Accuracy")) else max(known)


def _series(stack: Stack, key: tuple[str, str], start: float, end: float) -> dict[float, float]:
    """Return time to value of one series of a panel, over all instances the highest."""
    (target,) = [t for t in targets() if (t.panel, t.legend) == key]
    query = expanded(target.expr, scrape_s=SCRAPE_S, range_s=round(end - start))
    asked = {"query": query, "start": start, "end": end, "step": SCRAPE_S}
    url = f"{stack.prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    values: dict[float, float] = {}
    for series in get(url)["data"]["result"]:
        for at, text in series["values"]:
            if text != "NaN":
                values[at] = max(float(text), values.get(at, float("-inf")))
    return values


def _instant(stack: Stack, query: str) -> float:
    url = f"{stack.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    (series,) = get(url)["data"]["result"]
    return float(series["value"][1])


def _wait(check: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so; what is not by then is told by the report."""
    give_up = time.monotonic() + seconds
    while not check() and time.monotonic() < give_up:
        time.sleep(SCRAPE_S)


def as_table(seen: Drill) -> str:
    """Return what was seen as Markdown."""
    lines = ["| panel | series | before | spike | after |", "|---|---|---|---|---|"]
    for row in seen.shown:
        figures = " | ".join(f"{value:.3g}" for value in (row.before, row.spike, row.after))
        lines.append(f"| {row.panel} | {row.series} | {figures} |")
    lines.append("")
    for alert in seen.alerts:
        at = time.strftime("%H:%M:%S", time.gmtime(alert["at"]))
        lines.append(f"    {at} {alert['status']:<8} {alert['alert']}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Drill, print what was seen, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.spike", description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--webhook", default="http://127.0.0.1:9095")
    parser.add_argument("--trace", default=TRACE, help="as for tocom bench")
    given = parser.parse_args(argv)
    seen = drill(Stack(given.server, given.prometheus, given.webhook), given.trace)
    print(as_table(seen))
    failures = seen.failures()
    for failure in failures:
        print(f"not seen: {failure}", file=sys.stderr)
    print(json.dumps(asdict(seen) | {"failures": failures}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
