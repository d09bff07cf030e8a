"""Are users served? Attainment, errors by kind, the budget, latency."""

from typing import Any

from deploy.grafana.panels import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    Panel,
    Query,
    heatmap_panel,
    stat_panel,
    time_panel,
)
from deploy.grafana.queries import ATTAINMENT, HERE, OBJECTIVE, WINDOW, quantile, rate

TITLE = "Are users served?"

AT_THE_DOOR = "not_ready|bad_parameter|denied|limited"
"""Outcomes of requests whose images nobody has looked at."""


def row() -> list[Any]:
    """Return the builders of the panels, in their order."""
    panels: list[Any] = []
    ready = Panel(
        "Ready",
        "Whether every instance is warmed up and takes requests.",
        "bool_yes_no",
        (Query(f"min(tocom_ready{{{HERE}}})", "ready"),),
        width=4,
        limits=((None, RED), (1, GREEN)),
    )
    panels.append(stat_panel(ready))
    for panel in _headline_panels():
        panels.append(stat_panel(panel))
    attainment = Panel(
        "Attainment",
        "Share of the owed images that were answered within the SLO. Refused, failed and late ones "
        "are missed; what is the client's own fault is not owed. The dashed line is the objective.",
        "percentunit",
        (Query(ATTAINMENT, "in time"), Query(f"vector({OBJECTIVE})", "objective")),
    )
    panels.append(time_panel(attainment, most=1, least=None, dashed=("objective",)))
    errors = Panel(
        "Not served, by kind",
        "Images per second that got no class: shed (429), expired (504), failed (500), draining, "
        "or by the client's own doing: bad_image, abandoned. Requests refused before their images "
        "were looked at (not_ready, bad_parameter, denied, limited) are counted as requests.",
        "cps",
        (
            Query(
                rate(f'tocom_images_total{{outcome!="ok", {HERE}}}', by="outcome"), "{{outcome}}"
            ),
            Query(
                rate(f'tocom_requests_total{{outcome=~"{AT_THE_DOOR}", {HERE}}}', by="outcome"),
                "{{outcome}} (requests)",
            ),
        ),
    )
    panels.append(time_panel(errors, stacked=True))
    budget = Panel(
        "Error budget burn",
        "How many times as fast as the objective of 99 % allows images are missed: above 1 the "
        "budget runs out early, and the alerts fire at 14.4 over an hour and at 6 over six hours. "
        "Over all instances; needs the rules in deploy/prometheus/rules.",
        "short",
        tuple(
            Query(f"max(job:tocom_slo_burn:ratio{window})", window)
            for window in ("5m", "1h", "6h", "3d")
        ),
    )
    panels.append(time_panel(budget))
    latency_buckets = f'tocom_request_duration_seconds_bucket{{outcome="ok", {HERE}}}'
    panels.append(
        heatmap_panel(
            Panel(
                "Latency of answered requests",
                "How many answers took how long, from a request's first byte. Two bands mean two "
                "kinds of requests or of moments; the SLO is a boundary between two rows.",
                "s",
                (Query(f"sum by (le) (increase({latency_buckets}{WINDOW}))", "{{le}}"),),
                width=12,
            )
        )
    )
    latency = Panel(
        "Latency percentiles and SLO",
        "Of answered requests, from their first byte. p99 above the dashed line: the slowest one "
        "in a hundred is late.",
        "s",
        (
            *(
                Query(quantile(q, "tocom_request_duration_seconds", labels='outcome="ok"'), name)
                for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
            ),
            Query(f"max(tocom_slo_seconds{{{HERE}}})", "SLO"),
        ),
        width=12,
    )
    panels.append(time_panel(latency, dashed=("SLO",), colours={"SLO": RED}))
    return panels


def _headline_panels() -> tuple[Panel, ...]:
    """Return the figures beside `Ready`: what a glance must tell."""
    return (
        Panel(
            "Attainment now",
            "Share of the owed images that were answered within the SLO.",
            "percentunit",
            (Query(ATTAINMENT, "in time"),),
            width=4,
            limits=((None, RED), (0.95, YELLOW), (0.99, GREEN)),
        ),
        Panel(
            "p99 latency",
            "Of answered requests, from their first byte.",
            "s",
            (
                Query(
                    quantile(0.99, "tocom_request_duration_seconds", labels='outcome="ok"'), "p99"
                ),
            ),
            width=4,
        ),
        Panel(
            "Goodput",
            "Images per second that are answered within the SLO.",
            "cps",
            (Query(rate(f"tocom_in_time_images_total{{{HERE}}}"), "in time"),),
            width=4,
        ),
        Panel(
            "Degree r",
            "Tokens merged away per layer, the highest of all instances: 0 is the model as it is.",
            "short",
            (Query(f"max(tocom_compression_degree{{{HERE}}})", "r"),),
            width=4,
            limits=((None, BLUE),),
        ),
        Panel(
            "Accuracy delivered",
            "Expected top-1 of the present degree, the lowest of all instances.",
            "percentunit",
            (Query(f"min(tocom_expected_accuracy{{{HERE}}})", "expected"),),
            width=4,
            limits=((None, BLUE),),
        ),
    )
