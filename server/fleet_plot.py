"""A fleet under load as a picture: load, replicas, degree and attainment over one time axis.

Several runs lie over each other in a column, such as ways to scale on the same arrivals; columns
stand side by side, such as start-up delays. Needs Matplotlib, which the extra `plots` installs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from server.errors import SettingsError
from server.fates import Fate
from server.simulated_fleet import Lifetime
from server.stats import FloatArray
from server.timeline_plot import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 90
"""The time axis is drawn in so many steps."""
WIDTH, HEIGHT = 4.6, 8.2
"""Inches of a column, and of the picture."""


@dataclass(frozen=True, slots=True)
class FleetCurve:
    """One run: its name in the legend, what became of its requests, and its replicas."""

    name: str
    fates: Sequence[Fate]
    lifetimes: Sequence[Lifetime]
    seconds: float


def plot_fleets(
    path: Path,
    columns: Mapping[str, Sequence[FleetCurve]],
    slo_s: float,
    replica_rate: float,
    *,
    title: str = "",
) -> None:
    """Draw the columns and write a picture; the suffix of the path says of which kind.

    Args:
        path: where to.
        columns: heading → runs on the same arrivals, at least one each.
        slo_s: what counts as in time.
        replica_rate: images/s of one replica at the lowest degree; the load is shown as a multiple.
        title: above all of it.

    Raises:
        SettingsError: Matplotlib is missing.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise SettingsError(
            "a plot needs Matplotlib: pip install 'tocom-serve[plots]', or leave the plot out"
        ) from missing
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(8.0, WIDTH * len(columns)), HEIGHT), layout="constrained")
        grid = figure.subplots(
            4, len(columns), sharex="col", sharey="row", squeeze=False, height_ratios=[2, 2.4, 2, 2]
        )
        for place, (heading, curves) in enumerate(columns.items()):
            _draw_column(list(grid[:, place]), curves, slo_s, replica_rate)
            grid[0, place].set_title(heading, fontsize=10)
        for panel, label in zip(grid[:, 0], _LABELS, strict=True):
            panel.set_ylabel(label)
        figure.align_ylabels(grid[:, 0])
        figure.suptitle(title, fontsize=12)
        handles, names = grid[2, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, dpi=85)


_LABELS = (
    "offered load,\nreplicas' capacity at r=0",
    "replicas: ready (line),\nwith starting (shade)",
    "mean r",
    "attainment, %",
)


def _draw_column(
    panels: Sequence["Axes"], curves: Sequence[FleetCurve], slo_s: float, replica_rate: float
) -> None:
    seconds = max(curve.seconds for curve in curves)
    edges = np.linspace(0, seconds, STEPS + 1)
    offered = _counts(edges, [fate.due_s for fate in curves[0].fates])
    load = offered / (edges[1] - edges[0]) / replica_rate
    panels[0].stairs(load, edges, fill=True, color="0.82")
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        _draw_replicas(panels[1], curve, seconds, colour)
        served = [fate for fate in curve.fates if fate.r is not None]
        timely = [fate.due_s for fate in curve.fates if fate.on_time(slo_s)]
        degrees = _counts(edges, [f.due_s for f in served], [float(f.r or 0) for f in served])
        answered = _counts(edges, [fate.due_s for fate in served])
        middles = (edges[1:] + edges[:-1]) / 2
        style: dict[str, Any] = {"color": colour, "linewidth": 1.3}
        panels[2].plot(middles, _ratio(degrees, answered), label=curve.name, **style)
        panels[3].plot(middles, 100 * _ratio(_counts(edges, timely), offered), **style)
    for panel in panels:
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_ylim(bottom=0)
    panels[3].set(xlabel="seconds", xlim=(0, seconds), ylim=(0, 103))


def _draw_replicas(panel: "Axes", curve: FleetCurve, seconds: float, colour: str) -> None:
    """How many are ready, and how many are paid for."""
    lives = curve.lifetimes
    moments = sorted({0.0, seconds, *(t for life in lives for t in _moments(life) if t < seconds)})
    ready = [sum(one.ready_at <= t < one.leaving_at for one in lives) for t in moments]
    paid = [sum(one.asked_at <= t < one.gone_at for one in lives) for t in moments]
    panel.step(moments, ready, where="post", color=colour, linewidth=1.5)
    panel.fill_between(moments, ready, paid, step="post", color=colour, alpha=0.2, linewidth=0)


def _moments(life: Lifetime) -> tuple[float, ...]:
    return life.asked_at, life.ready_at, life.leaving_at, life.gone_at


def _counts(
    edges: FloatArray, at: Sequence[float], weights: Sequence[float] | None = None
) -> FloatArray:
    """Sum up what lies in each step, each counting 1 or its weight."""
    found: FloatArray = np.histogram(at, edges, weights=weights)[0].astype(np.float64)
    return found


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Return the quotients; NaN, which is drawn as a gap, where there was nothing."""
    quotient: FloatArray = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return quotient
