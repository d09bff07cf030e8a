"""The timeline of a load run: what was offered, what came back, at which degree, how late."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.load_report import Run, percentile


def plot(run: Run, path: Path) -> None:
    """Draw the timeline: load and answers, r, queue, latency."""
    figure, axes = pyplot.subplots(4, 1, figsize=(12, 11), sharex=True, height_ratios=[3, 2, 2, 3])
    zero = run.spans[0].start_s
    drawings = (_draw_load, _draw_degree, _draw_queue, _draw_latency)
    for panel, draw in zip(axes, drawings, strict=True):
        draw(panel, run, zero)
        _shade_phases(panel, run, zero)
        panel.grid(alpha=0.25)
        panel.legend(loc="upper right", fontsize=8, ncols=5, framealpha=0.9)
        panel.margins(y=0.3)  # room for the legend
        panel.set_ylim(bottom=0)
    _name_phases(axes[0], run, zero)
    last_s = max([run.spans[-1].end_s, *(a.done_s for a in run.answers)])
    axes[-1].set(xlabel="seconds", xlim=(0, last_s - zero))
    figure.align_ylabels(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _shade_phases(panel: Axes, run: Run, zero: float) -> None:
    """Every other phase is shaded."""
    for span in run.spans[1::2]:
        panel.axvspan(span.start_s - zero, span.end_s - zero, color="0.5", alpha=0.1, zorder=0)


def _name_phases(panel: Axes, run: Run, zero: float) -> None:
    where = panel.get_xaxis_transform()  # seconds along, a share of the panel up
    for span in run.spans:
        middle = (span.start_s + span.end_s) / 2 - zero
        label = f"{span.phase.multiple:g} ×\n{span.phase.seconds:g} s"
        panel.text(middle, 1.02, label, transform=where, ha="center", fontsize=9)


def _draw_load(panel: Axes, run: Run, zero: float) -> None:
    """Answers per second by status, stacked, under the line of what was offered."""
    last = math.ceil(max(a.done_s for a in run.answers) - zero)
    seconds, below = range(last), [0] * last
    colours = {"200": "tab:green", "429": "tab:orange"}
    kinds = sorted({a.status for a in run.answers}, key=lambda status: (status != 200, status))
    for status in kinds:
        counts = _per_second(a.done_s - zero for a in run.answers if a.status == status)
        bars = [counts[second] for second in seconds]
        name = str(status) if status else "dropped"
        colour = colours.get(name, "tab:red")
        panel.bar(seconds, bars, 1.0, below, align="edge", color=colour, alpha=0.75, label=name)
        below = [a + b for a, b in zip(below, bars, strict=True)]
    offered = _per_second(a.due_s - zero for a in run.answers)
    line = [offered[second] for second in seconds]
    panel.step(seconds, line, where="post", color="black", linewidth=1, label="offered")
    panel.axhline(run.capacity, color="tab:blue", linestyle="--", linewidth=1, label="capacity r=0")
    panel.set_ylabel("requests per second")


def _draw_degree(panel: Axes, run: Run, zero: float) -> None:
    """The dial as the server tells it, and each answer's own degree."""
    answers = [(a.done_s - zero, image.r) for a in run.answers for image in a.images]
    if answers:
        at, degrees = zip(*answers, strict=True)
        panel.scatter(at, degrees, 9, "tab:purple", alpha=0.4, linewidths=0)
        panel.scatter([], [], 9, "tab:purple", label="of an answer")
    sampled = [(sample.at_s - zero, sample.r) for sample in run.watch.samples]
    if sampled:
        at, dial = zip(*sampled, strict=True)
        panel.step(at, dial, where="post", color="black", linewidth=1, label="dial")
    if run.pin:
        pinned_at = run.pin.replied_s - zero
        panel.axvline(pinned_at, color="tab:red", linestyle=":", label=f"PUT r={run.pin.r}")
    panel.set_ylabel("r")


def _draw_queue(panel: Axes, run: Run, zero: float) -> None:
    at = [sample.at_s - zero for sample in run.watch.samples]
    depth = [sample.queue_depth for sample in run.watch.samples]
    panel.fill_between(at, depth, step="post", alpha=0.25, color="tab:blue")
    panel.step(at, depth, where="post", color="tab:blue", linewidth=1.2, label="images waiting")
    panel.set_ylabel("queue depth")


def _draw_latency(panel: Axes, run: Run, zero: float) -> None:
    """Percentiles of each second's requests, by when they were due."""
    by_second: dict[int, list[float]] = {}
    for answer in run.answers:
        if answer.status == 200:
            by_second.setdefault(int(answer.due_s - zero), []).append(1000 * answer.latency_s)
    seconds = sorted(by_second)
    for percent, colour in ((50, "tab:blue"), (99, "tab:red")):
        line = [percentile(by_second[second], percent) for second in seconds]
        panel.step(seconds, line, where="post", color=colour, linewidth=1.2, label=f"p{percent}")
    panel.axhline(1000 * run.slo_s, color="black", linestyle="--", linewidth=1, label="SLO")
    panel.set_ylabel("latency from due, ms")


def _per_second(times: Iterable[float]) -> Counter[int]:
    return Counter(int(time) for time in times)
