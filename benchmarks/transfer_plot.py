"""A picture of what one bank gains on several data sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito: colour-blind readers tell them apart; marks differ as well.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"))


def plot_gains(path: Path, table: Mapping[str, Any]) -> None:
    """Gain in top-1 against the target degree, one panel per ``r_source``; the mean with bars."""
    sources = sorted({row["r_source"] for row in table["averages"]})
    figure = Figure(figsize=(1.2 + 4.6 * len(sources), 4.2), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axis, r_source in zip(panels, sources, strict=True):
        names = list(dict.fromkeys(row["data"] for row in table["rows"]))
        for (colour, mark), name in zip(STYLES, names, strict=False):
            rows = [r for r in table["rows"] if (r["data"], r["r_source"]) == (name, r_source)]
            gains = [100 * row["gain"][0] for row in rows]
            degrees = [row["r_target"] for row in rows]
            axis.plot(degrees, gains, color=colour, marker=mark, alpha=0.6, label=name)
        _draw_average(axis, [row for row in table["averages"] if row["r_source"] == r_source])
        axis.axhline(0.0, color="#444444", linewidth=0.8, linestyle=":")
        axis.set_title(f"fine-tuned at r={r_source}", fontsize=10)
        axis.set_xlabel("served at r (tokens merged per layer)")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("gain of the bank over plain merging (points of top-1)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


def _draw_average(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The mean over the data sets with its 95 % interval."""
    mean = [100 * row["gain"][0] for row in rows]
    below = [100 * (row["gain"][0] - row["gain"][1]) for row in rows]
    above = [100 * (row["gain"][2] - row["gain"][0]) for row in rows]
    axis.errorbar(
        [row["r_target"] for row in rows],
        mean,
        yerr=(below, above),
        color="black",
        linewidth=2,
        capsize=3,
        label="average (95 %)",
    )
