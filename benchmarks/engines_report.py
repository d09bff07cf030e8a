"""Figures, table, verdicts and picture of `benchmarks/engines.py`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.engine_peers import Classify
from benchmarks.interleaved import ratios
from tocom_core.throughput import Spread

Ours = Mapping[tuple[str, int], Classify]
"""Backend and degree to what computes with it."""

Rows = Sequence[Mapping[str, Any]]


def as_rows(
    model: str,
    batch: int,
    seconds: Mapping[str, list[float]],
    peers: Sequence[str],
    limits: Mapping[int, float],
) -> list[dict[str, Any]]:
    """One row per variant; ratios are taken round by round.

    Args:
        model: its name.
        batch: images per batch.
        seconds: of each variant in each round.
        peers: the variants that are not ours.
        limits: degree to the ratio of counted multiply-adds.
    """
    best = min(peers, key=lambda name: Spread.of(seconds[name]).median)
    rows: list[dict[str, Any]] = []
    for name, taken in seconds.items():
        backend, _, degree = name.rpartition(", r=")
        row: dict[str, Any] = {"model": model, "batch": batch, "variant": name, "best_peer": best}
        row["rounds"] = len(taken)
        row["images_per_s"] = vars(Spread.of([batch / value for value in taken]))
        row["times_best_peer"] = vars(Spread.of(ratios(seconds[best], taken)))
        if backend:
            row |= {"backend": backend.removeprefix("ours, "), "r": int(degree)}
        own = seconds.get(f"{backend}, r=0")
        if backend and own is not None and (limit := limits[int(degree)]) > 1:
            gained = ratios(own, taken)
            row |= {"arithmetic": limit, "times_own_r0": vars(Spread.of(gained))}
            row["share_of_arithmetic"] = vars(Spread.of([gain / limit for gain in gained]))
        rows.append(row)
    return rows


def as_table(rows: Rows) -> str:
    """One batch size as Markdown."""
    first = rows[0]
    lines = [
        f"\n{first['model']}, batch {first['batch']}; best peer: {first['best_peer']}; "
        f"{first['rounds']} rounds\n",
        "| variant | images/s | × best peer | × own r=0 | arithmetic | share of it |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        cells = [row["variant"], f"{row['images_per_s']['median']:.1f}"]
        cells.append(_spread(row["times_best_peer"]))
        if "arithmetic" in row:
            share = {name: 100 * value for name, value in row["share_of_arithmetic"].items()}
            cells += [_spread(row["times_own_r0"]), f"{row['arithmetic']:.2f} ×"]
            cells.append(_spread(share, ".0f") + " %")
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(rows: Rows) -> list[str]:
    """What was asked for of the fastest backend, and what was reached, at one batch size."""
    ours = [row for row in rows if row.get("r") == 0 and row["backend"] != "bfloat16"]
    if not ours:
        return []
    fastest = max(ours, key=lambda row: float(row["images_per_s"]["median"]))
    lines = [
        f"\n{fastest['backend']}, r=0: {_spread(fastest['times_best_peer'])} × the best peer "
        "(asked for: 0.95)"
    ]
    batch = fastest["batch"]
    degrees = [row for row in rows if row.get("backend") == fastest["backend"]]
    for row in degrees:
        if row["r"] != 16 or "arithmetic" not in row:
            continue
        if batch == 1:
            lines.append(f"r=16: {_spread(row['times_own_r0'])} × r=0 (asked for: 1.4, goal 1.6)")
        else:
            share = _spread(row["share_of_arithmetic"])
            lines.append(f"r=16: {share} of the arithmetic (asked for: 0.85, goal 0.95)")
    for lower, higher in pairwise(degrees):
        if higher["images_per_s"]["median"] < lower["images_per_s"]["median"]:
            lines.append(f"slower than r={lower['r']}: r={higher['r']}")
    return lines


def plot_rows(path: Path, rows: Rows) -> None:
    """Draw "× best peer" per variant, one panel per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"{row['model']}, batch {row['batch']}", []).append(row)
    figure, panels = pyplot.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 5.2), sharey=True, squeeze=False
    )
    for panel, (title, group) in zip(panels[0], groups.items(), strict=True):
        spreads = [row["times_best_peer"] for row in group]
        middle = [spread["median"] for spread in spreads]
        lower = [spread["median"] - spread["low"] for spread in spreads]
        upper = [spread["high"] - spread["median"] for spread in spreads]
        colours = ["tab:blue" if "r" in row else "tab:gray" for row in group]
        names = [row["variant"] for row in group]
        panel.barh(names, middle, xerr=[lower, upper], color=colours, ecolor="black")
        panel.axvline(1, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("× best peer at r=0")
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _spread(spread: Mapping[str, float], digits: str = ".2f") -> str:
    return f"{spread['median']:{digits}} ({spread['low']:{digits}}–{spread['high']:{digits}})"
