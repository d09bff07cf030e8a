"""Where the time goes, for people: a table in three formats, and stacked bars."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tocom_core.stages import STAGES, Breakdown


def as_markdown(breakdowns: Sequence[Breakdown]) -> str:
    """One line per cell: milliseconds and share of each stage."""
    stages = _stages(breakdowns)
    header = ["backend", "r", "batch", "ms", "ms traced", *stages]
    lines = [header, ["---"] * len(header)]
    for one in breakdowns:
        cells = [one.backend, str(one.r), str(one.batch)]
        cells += [f"{1000 * one.untraced_s:.2f}", f"{1000 * one.traced_s:.2f}"]
        cells += [f"{1000 * one.seconds.get(s, 0.0):.2f} ({one.share(s):.0%})" for s in stages]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write_report(
    folder: Path, breakdowns: Sequence[Breakdown], machine: Mapping[str, object]
) -> None:
    """Write ``stages.md``, ``stages.csv`` and ``stages.json`` into a folder.

    Args:
        folder: exists.
        breakdowns: what was traced.
        machine: what else to note, in the JSON file.
    """
    stages = _stages(breakdowns)
    (folder / "stages.md").write_text(as_markdown(breakdowns) + "\n")
    with (folder / "stages.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["backend", "r", "batch", "untraced_s", "traced_s", *stages])
        for one in breakdowns:
            times = [one.seconds.get(stage, 0.0) for stage in stages]
            writer.writerow([one.backend, one.r, one.batch, one.untraced_s, one.traced_s, *times])
    record = {**machine, "cells": [vars(one) for one in breakdowns]}
    (folder / "stages.json").write_text(json.dumps(record, indent=1) + "\n")


def plot_stages(path: Path, breakdowns: Sequence[Breakdown], title: str) -> None:
    """Milliseconds per image, stacked by stage: a panel per backend and batch size, a bar per r.

    Needs matplotlib, which the extra `plots` installs.
    """
    from matplotlib import pyplot

    panels = list(dict.fromkeys((one.backend, one.batch) for one in breakdowns))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), squeeze=False)
    colours = {stage: f"C{number}" for number, stage in enumerate(STAGES)}
    for axis, (backend, batch) in zip(axes[0], panels, strict=True):
        own = [one for one in breakdowns if (one.backend, one.batch) == (backend, batch)]
        places, below = range(len(own)), [0.0] * len(own)
        axis.set_xticks(places, [str(one.r) for one in own])
        for stage in _stages(breakdowns):
            each = [1000 * one.seconds.get(stage, 0.0) / batch for one in own]
            axis.bar(places, each, bottom=below, color=colours[stage], label=stage)
            below = [a + b for a, b in zip(below, each, strict=True)]
        axis.set(title=f"{backend}, batch {batch}", xlabel="r", ylabel="ms per image, traced")
    axes[0][-1].legend(fontsize="small", bbox_to_anchor=(1, 1), loc="upper left")
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _stages(breakdowns: Sequence[Breakdown]) -> list[str]:
    """Those that any cell has, and always ``other``."""
    found = {stage for one in breakdowns for stage in one.seconds} | {"other"}
    return [stage for stage in STAGES if stage in found]
