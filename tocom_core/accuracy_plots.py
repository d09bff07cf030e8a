"""Pictures of an evaluation: accuracy against the degree, and against throughput.

matplotlib is an optional extra (``plots``) and imported only here, only when something is drawn.
Colours are those of Okabe and Ito, which colour-blind readers tell apart; marks and line styles
differ as well, for print without colour.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Table = Mapping[str, Any]
Row = Mapping[str, Any]

STYLES: Mapping[bool, Mapping[str, Any]] = {
    False: {"color": "#D55E00", "marker": "s", "linestyle": "--", "markersize": 5},
    True: {"color": "#0072B2", "marker": "o", "linestyle": "-", "markersize": 5},
}
"""How rows without and with the bank are drawn."""
REFERENCE: Mapping[str, Any] = {"color": "#444444", "linestyle": ":", "linewidth": 1.2}
DPI = 160


def reduction(table: Table) -> str:
    """What the table's method does to tokens: "merging", "pruning"."""
    return f"{table['method'].removesuffix('e')}ing"


def plot_by_degree(path: Path, table: Table) -> None:
    """Accuracy at each degree with its 95 % band, one panel per ``r_source``.

    Without labels, agreement with the model at ``r_source`` takes accuracy's place.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _panels(table)
    for axis, (r_source, rows) in zip(axes, _by_source(table).items(), strict=True):
        for with_bank, line in _lines(rows):
            degrees = [row["r"] for row in line]
            mean, low, high = _figure(line, table)
            axis.plot(degrees, mean, label=_label(table, with_bank), **STYLES[with_bank])
            axis.fill_between(
                degrees, low, high, color=STYLES[with_bank]["color"], alpha=0.15, linewidth=0
            )
        _mark_reference(axis, rows, table)
        axis.set_xticks(sorted({row["r"] for row in rows}))
        axis.set_xlabel(f"r, tokens {table['method']}d per layer")
        axis.set_title(_title(table, r_source), fontsize=10)
    _finish(figure, axes, path, table, f"bands: 95 % intervals {_intervals(table)}")


def plot_by_throughput(path: Path, table: Table) -> None:
    """Accuracy against images per second, each point one degree, one panel per ``r_source``.

    Bars are 95 % intervals, and sideways the quartiles of the speed.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _panels(table)
    for axis, (r_source, rows) in zip(axes, _by_source(table).items(), strict=True):
        lines = _lines(rows)
        for with_bank, line in lines:
            speed, slow, fast = zip(*(row["images_per_s"] for row in line), strict=True)
            mean, low, high = _figure(line, table)
            axis.plot(speed, mean, label=_label(table, with_bank), **STYLES[with_bank])
            axis.errorbar(
                speed,
                mean,
                xerr=_bars(speed, slow, fast),
                yerr=_bars(mean, low, high),
                fmt="none",
                ecolor=STYLES[with_bank]["color"],
                elinewidth=0.8,
            )
        _name_degrees(axis, lines, table)
        _mark_reference(axis, rows, table)
        axis.set_xlabel(f"throughput (images/s, batches of {table['throughput']['batch']})")
        axis.set_title(_title(table, r_source), fontsize=10)
    words = f"bars: 95 % intervals {_intervals(table)}; quartiles of the speed"
    _finish(figure, axes, path, table, f"{words}, {table['throughput']['device']}")


def _panels(table: Table) -> tuple["Figure", Sequence["Axes"]]:
    """A figure with one panel per ``r_source``; no global state, no display."""
    from matplotlib.figure import Figure

    count = len(_by_source(table))
    figure = Figure(figsize=(1.2 + 4.8 * count, 4.2), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False)[0])


def _finish(
    figure: "Figure", axes: Sequence["Axes"], path: Path, table: Table, caption: str
) -> None:
    name = "top-1 accuracy" if table["labelled"] else "agreement with r_source"
    axes[0].set_ylabel(f"{name} (%)")
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9, loc="lower left")
    words = f"{table['images']} images; {caption}"
    figure.supxlabel(words, fontsize=8, color="#555555")
    figure.savefig(path, dpi=DPI)


def _by_source(table: Table) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in table["rows"]:
        found.setdefault(row["r_source"], []).append(row)
    return found


def _lines(rows: Sequence[Row]) -> list[tuple[bool, list[Row]]]:
    """The rows without the bank and, if there are any, with it, by degree."""
    ordered = sorted(rows, key=lambda row: int(row["r"]))
    lines = [(bank, [row for row in ordered if row["bank"] == bank]) for bank in (False, True)]
    return [(bank, line) for bank, line in lines if line]


def _label(table: Table, with_bank: bool) -> str:
    return "with the bank" if with_bank else f"plain token {reduction(table)}"


def _figure(
    line: Sequence[Row], table: Table
) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
    """Mean, low and high of what is drawn, in percent.

    Accuracy has the interval of its difference to ``r_source``: all points are of the same images,
    and how hard these are is nothing in which they differ.
    """
    if not table["labelled"]:
        spans = [row["agreement_interval"] for row in line]
    else:
        own = _reference(line)
        losses = [row["top1_loss"] for row in line]
        spans = [(own - mean, own - high, own - low) for mean, low, high in losses]
    mean, low, high = zip(*([100 * value for value in span] for span in spans), strict=True)
    return mean, low, high


def _bars(
    middle: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Lengths of error bars, downwards and upwards."""
    below = [max(0.0, m - value) for m, value in zip(middle, low, strict=True)]
    return below, [max(0.0, value - m) for m, value in zip(middle, high, strict=True)]


def _name_degrees(axis: "Axes", lines: Sequence[tuple[bool, list[Row]]], table: Table) -> None:
    """Write each degree above its highest point."""
    highest: dict[int, tuple[float, float]] = {}
    for _, line in lines:
        for row, mean in zip(line, _figure(line, table)[0], strict=True):
            place = (row["images_per_s"][0], mean)
            highest[row["r"]] = max(highest.get(row["r"], place), place, key=lambda xy: xy[1])
    for r, place in highest.items():
        axis.annotate(f"r={r}", place, (5, 5), textcoords="offset points", fontsize=8)


def _mark_reference(axis: "Axes", rows: Sequence[Row], table: Table) -> None:
    """A line at what the model's own weights reach at ``r_source``."""
    own = _reference(rows) if table["labelled"] else 1.0
    axis.axhline(100 * own, label="model at r_source", **REFERENCE)


def _reference(rows: Sequence[Row]) -> float:
    """Top-1 of the model's own weights at ``r_source``."""
    return float(rows[0]["top1"] + rows[0]["top1_loss"][0])


def _intervals(table: Table) -> str:
    """What the intervals are of."""
    return "of the difference to r_source" if table["labelled"] else "(bootstrap over images)"


def _title(table: Table, r_source: int) -> str:
    return f"{table['model']} on {table['data']}, r_source={r_source}"
