"""A replay as a picture: offered load, queue, degree and latency over one time axis.

Real and simulated replays are drawn alike, from their fates alone, and several may be laid over
each other: policies on the same arrivals, or a simulation over what really happened. Needs
Matplotlib, which the extra `plots` installs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from server.errors import SettingsError
from server.fates import Fate, percentile
from server.stats import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#7A5C3E")
"""Okabe and Ito's, told apart by colour-blind readers too, and two more."""
IN_TIME, LATE, NOT_ANSWERED = "#8CC5A2", "#F2C14E", "#D1495B"
STEPS = 120
"""At most so many steps of the time axis: more than the eye tells apart."""
LOOKS = 20
"""How often in each step the requests under way are counted."""
WIDTHS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)


@dataclass(frozen=True, slots=True)
class PlottedRun:
    """One line of the plot: its name in the legend, and what became of its requests."""

    name: str
    fates: Sequence[Fate]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Steps:
    """The time axis in equal steps."""

    edges: FloatArray

    @property
    def width_s(self) -> float:
        """Length of a step."""
        return float(self.edges[1] - self.edges[0])

    def rate(self, at: Sequence[float]) -> FloatArray:
        """Return how many of these moments lie in each step, per second."""
        return np.histogram(at, self.edges)[0] / self.width_s

    def reduce(
        self, at: Sequence[float], values: Sequence[float], how: Callable[[list[float]], float]
    ) -> FloatArray:
        """Return one number for the values in each step; NaN where there is none."""
        parts: list[list[float]] = [[] for _ in self.edges[1:]]
        places = np.digitize(at, self.edges) - 1
        for place, value in zip(places, values, strict=True):
            if place < len(parts):
                parts[place].append(value)
        return np.array([how(part) if part else np.nan for part in parts])


def plot_timeline(
    path: Path,
    runs: Sequence[PlottedRun],
    slo_s: float,
    *,
    title: str = "",
    capacities: Mapping[str, float] | None = None,
) -> None:
    """Draw the runs and write a picture; the suffix of the path says of which kind.

    Args:
        path: where to.
        runs: at least one; the offered load is that of the first.
        slo_s: drawn as a line over the latencies.
        title: above all panels.
        capacities: name and images/s of lines over the offered load.

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
    seconds = max([1.0, *(run.seconds for run in runs)])
    steps = _steps(seconds)
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 10), layout="constrained")
        panels = figure.subplots(4, 1, sharex=True, height_ratios=[3, 1.8, 2, 3])
        _draw_load(panels[0], runs, steps, slo_s, capacities or {})
        for run, colour in zip(runs, COLOURS * len(runs), strict=False):
            _draw_waiting(panels[1], run, steps, colour)
            _draw_degree(panels[2], run, steps, colour, alone=len(runs) == 1)
            _draw_latency(panels[3], run, steps, colour, alone=len(runs) == 1)
        _draw_promise(panels[3], slo_s)
        for panel in panels:
            panel.grid(alpha=0.25, linewidth=0.6)
            panel.set_axisbelow(True)
            panel.set_ylim(bottom=0)
        panels[3].set(xlabel="seconds", xlim=(0, seconds))
        figure.align_ylabels(panels)
        figure.suptitle(title, fontsize=12)
        _add_legends(panels, alone=len(runs) == 1)
        figure.savefig(path, dpi=120)


def _steps(seconds: float) -> _Steps:
    width = next((width for width in WIDTHS_S if seconds <= STEPS * width), WIDTHS_S[-1])
    return _Steps(np.arange(0, seconds + width, width))


def _draw_load(
    panel: "Axes",
    runs: Sequence[PlottedRun],
    steps: _Steps,
    slo_s: float,
    capacities: Mapping[str, float],
) -> None:
    """What was offered and what became of it, by when it was due.

    Of several runs only what was missed is drawn: the rest would hide one line behind another.
    """
    offered = steps.rate([fate.due_s for fate in runs[0].fates])
    if len(runs) == 1:
        _draw_ends(panel, runs[0], steps, slo_s)
    else:
        panel.stairs(offered, steps.edges, fill=True, color="0.88")
        for run, colour in zip(runs, COLOURS * len(runs), strict=False):
            missed = steps.rate([fate.due_s for fate in run.fates if not fate.on_time(slo_s)])
            panel.plot(_middles(steps), missed, color=colour, linewidth=1.4)
        panel.plot([], [], linestyle="none", label="coloured: not answered in time")
    panel.stairs(offered, steps.edges, color="0.35", linewidth=1, label="offered")
    for style, (name, images_per_s) in zip(("--", ":", "-."), capacities.items(), strict=False):
        label = f"{name}: {images_per_s:.1f}/s"
        panel.axhline(images_per_s, color="black", linestyle=style, linewidth=1.2, label=label)
    panel.set_ylabel("requests/s")


def _draw_ends(panel: "Axes", run: PlottedRun, steps: _Steps, slo_s: float) -> None:
    """In time, late, not answered: stacked, they are what was offered."""
    timely = steps.rate([fate.due_s for fate in run.fates if fate.on_time(slo_s)])
    served = steps.rate([fate.due_s for fate in run.fates if fate.outcome == "ok"])
    offered = steps.rate([fate.due_s for fate in run.fates])
    stack = (
        ("not answered", NOT_ANSWERED, offered, served),
        ("late", LATE, served, timely),
        ("in time", IN_TIME, timely, np.zeros_like(timely)),
    )
    for name, colour, top, bottom in stack:
        edges = steps.edges
        panel.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=name)


def _draw_waiting(panel: "Axes", run: PlottedRun, steps: _Steps, colour: str) -> None:
    """The most requests that were due and not over: those in the queue and in the batch."""
    moments = np.linspace(0, steps.edges[-1], LOOKS * (len(steps.edges) - 1), endpoint=False)
    came = np.searchsorted(np.sort([fate.due_s for fate in run.fates]), moments, "right")
    left = np.searchsorted(np.sort([fate.done_s for fate in run.fates]), moments, "right")
    most = (came - left).reshape(-1, LOOKS).max(axis=1)
    panel.plot(_middles(steps), most, color=colour, linewidth=1.4, label=run.name)
    panel.set_ylabel("requests\nunder way")


def _draw_degree(
    panel: "Axes", run: PlottedRun, steps: _Steps, colour: str, *, alone: bool
) -> None:
    served = [(fate.done_s, float(fate.r)) for fate in run.fates if fate.r is not None]
    at, degrees = [moment for moment, _ in served], [r for _, r in served]
    if alone:
        panel.scatter(at, degrees, 7, colour, alpha=0.25, linewidths=0, label="of an answer")
    mean = steps.reduce(at, degrees, lambda values: sum(values) / len(values))
    _draw_line(panel, steps, mean, color=colour, linewidth=1.5, label="mean")
    panel.set_ylabel("r")


def _draw_latency(
    panel: "Axes", run: PlottedRun, steps: _Steps, colour: str, *, alone: bool
) -> None:
    """Of results, by when they were due."""
    served = [(fate.due_s, 1000 * fate.latency_s) for fate in run.fates if fate.outcome == "ok"]
    at, latencies = [moment for moment, _ in served], [value for _, value in served]
    for percent, style in ((50, "-"), (99, ":")) if alone else ((99, "-"),):
        line = steps.reduce(at, latencies, partial(_percentile, percent=percent))
        name = "median" if percent == 50 else f"p{percent}"
        label = name if alone else None
        _draw_line(panel, steps, line, color=colour, linestyle=style, linewidth=1.3, label=label)
    panel.set_ylabel("latency, ms" if alone else "latency p99, ms")


def _draw_line(panel: "Axes", steps: _Steps, line: FloatArray, **style: Any) -> None:
    """Draw what is known, without a gap where a step had no answer: batches may be rare."""
    known = ~np.isnan(line)
    panel.plot(_middles(steps)[known], line[known], **style)


def _percentile(values: list[float], percent: float) -> float:
    found = percentile(values, percent)
    return math.nan if found is None else found


def _draw_promise(panel: "Axes", slo_s: float) -> None:
    label = f"SLO {1000 * slo_s:.0f} ms"
    panel.axhline(1000 * slo_s, color=NOT_ANSWERED, linestyle="--", linewidth=1.3, label=label)


def _add_legends(panels: Sequence["Axes"], *, alone: bool) -> None:
    """Above each panel, where it hides nothing; the names of several runs stand once."""
    for place, panel in enumerate(panels):
        if place == (1 if alone else 2):
            continue
        panel.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=8, frameon=False, fontsize=8,
            borderaxespad=0.1, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip


def _middles(steps: _Steps) -> FloatArray:
    return (steps.edges[1:] + steps.edges[:-1]) / 2
