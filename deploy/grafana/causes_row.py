"""Why? Arrivals, queue, batches, switches and their reasons, where the time goes."""

from typing import Any

from deploy.grafana.panels import RED, Panel, Query, time_panel
from deploy.grafana.queries import HERE, OFFERED, mean, quantile, rate

TITLE = "Why?"


def row() -> list[Any]:
    """Return the builders of the panels, in their order."""
    panels: list[Any] = []
    arrivals = Panel(
        "Arrivals and capacity",
        "Images offered per second, and what the machine is believed to carry at its lowest and at "
        "its fastest degree. Between the two dashed lines compression serves what would be shed.",
        "cps",
        (
            Query(rate(OFFERED), "offered"),
            Query(rate(f'tocom_images_total{{outcome="ok", {HERE}}}'), "answered"),
            Query(f'sum(tocom_degree_throughput{{r="0", {HERE}}})', "capacity at r=0"),
            Query(
                f"sum(max by (job, instance) (tocom_degree_throughput{{{HERE}}}))",
                "capacity, fastest",
            ),
        ),
    )
    panels.append(time_panel(arrivals, dashed=("capacity at r=0", "capacity, fastest")))
    queue = Panel(
        "Queue",
        "Images that hold a place (waiting or being decoded), those of them that wait for a batch, "
        "requests in flight, and the places there are.",
        "short",
        (
            Query(f"sum(tocom_admitted_images{{{HERE}}})", "admitted"),
            Query(f"sum(tocom_queue_depth{{{HERE}}})", "waiting"),
            Query(f"sum(tocom_in_flight_requests{{{HERE}}})", "requests in flight"),
            Query(f"sum(tocom_queue_capacity_images{{{HERE}}})", "places"),
        ),
    )
    panels.append(time_panel(queue, dashed=("places",), colours={"places": RED}))
    batches = Panel(
        "Batch size",
        "Images per forward pass. It grows with the queue; small ones under load mean that the "
        "queue does not fill: look at decoding.",
        "short",
        (
            Query(mean("tocom_batch_size"), "mean"),
            Query(quantile(0.95, "tocom_batch_size"), "p95"),
        ),
    )
    panels.append(time_panel(batches))
    switches = Panel(
        "Switches by reason",
        "Changes of the degree per second. demand-rising and overload go up, demand-falling comes "
        "back; pinned, auto and bounds were somebody's doing; request-limit is a request's max_r.",
        "cps",
        (Query(rate(f"tocom_switches_total{{{HERE}}}", by="reason"), "{{reason}}"),),
    )
    panels.append(time_panel(switches, stacked=True))
    stages = Panel(
        "Where the time goes",
        "Mean time of an answered image in each stage, on top of each other: decoding (not enough "
        "cores), queue (not enough capacity), compute (the model itself).",
        "s",
        (Query(mean("tocom_image_stage_seconds", by="stage"), "{{stage}}"),),
    )
    panels.append(time_panel(stages, stacked=True))
    durations = Panel(
        "Forward pass and switch",
        "p95 of a batch's computation, and of merging another degree into the weights before one.",
        "s",
        (
            Query(quantile(0.95, "tocom_batch_compute_seconds"), "forward"),
            Query(quantile(0.95, "tocom_switch_duration_seconds"), "switch"),
        ),
    )
    panels.append(time_panel(durations))
    demand = Panel(
        "Capacity demand",
        "How many replicas the offered load needs at the steady degree (TOCOM_STEADY_R): in all, "
        "and of the busiest one. Compression serves what lies above the replicas that are ready; "
        "if that lasts, it is time for more of them.",
        "short",
        (
            Query(f"sum(tocom_capacity_demand{{{HERE}}})", "needed in all"),
            Query(f"max(tocom_capacity_demand{{{HERE}}})", "of the busiest"),
            Query(f"sum(tocom_ready{{{HERE}}})", "replicas ready"),
        ),
    )
    panels.append(time_panel(demand, dashed=("replicas ready",)))
    return panels
