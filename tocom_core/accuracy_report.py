"""The evaluation's table for people and for other programs: Markdown, CSV, JSON, plots."""

import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tocom_core.accuracy_plots import plot_by_degree, plot_by_throughput, reduction
from tocom_core.errors import BankError, DataError

logger = logging.getLogger(__name__)

Table = Mapping[str, Any]
Row = Mapping[str, Any]

CONVENTIONS = """\
GFLOPs are counted, not measured: 2 per multiply-add of the matrix products, for one image. \
Intervals hold 95 % (paired bootstrap over images). Agreement and KL are with the model's own \
weights at r_source; KL is the mean divergence of the class distributions, in nats. "Won back" is \
the share of the top-1 that plain token {reduction} loses, against r_source, that the bank \
regains; there is none where that loss is not surely above 0."""
OF_ONE_MACHINE = ("images_per_s", "speedup")
"""Figures that do not travel in a model's header."""


def write_report(folder: Path, table: Table) -> None:
    """Write ``evaluation.json``, ``.csv`` and ``.md``, and the plots if matplotlib is installed.

    Args:
        folder: made if it is not there.
        table: as ``evaluate`` gives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(table, indent=2, allow_nan=False) + "\n")
    write_csv(folder / "evaluation.csv", table["rows"])
    plots = write_plots(folder, table)
    (folder / "evaluation.md").write_text(as_document(table, plots))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row; ``[mean, low, high]`` becomes ``name``, ``name_low``, ``name_high``.

    The ``_interval`` of a name that has a column of its own adds only the last two.
    """
    flat = [_flat(row) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)))
        writer.writeheader()
        writer.writerows(flat)


def _flat(row: Row) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        short = name.removesuffix("_interval")
        if isinstance(value, list | tuple):
            value, flat[f"{short}_low"], flat[f"{short}_high"] = value
        if short == name:
            flat[name] = value
    return flat


def write_plots(folder: Path, table: Table) -> list[str]:
    """The plots' file names; none, and one line that says so, without matplotlib."""
    wanted = {"accuracy_by_r.png": plot_by_degree}
    if table["throughput"] is not None:
        wanted["accuracy_by_throughput.png"] = plot_by_throughput
    try:
        for name, plot in wanted.items():
            plot(folder / name, table)
    except ImportError as error:
        logger.warning("no plots (%s): pip install 'tocom-serve[plots]' adds them", error)
        return []
    return list(wanted)


def as_document(table: Table, plots: Sequence[str] = ()) -> str:
    """The whole report in Markdown."""
    bank = table["bank"]
    facts = [
        f"Model: `{table['model']}` ({table['architecture']}), fine-tuned at "
        f"r_source={table['r_source']}",
        f"Bank: `{bank['name']}`, K={bank['num_groups']}, rank {bank['rank']}"
        if bank
        else "Bank: none",
        _method(table),
        f"Data: `{table['data']}`"
        + (f", split {table['split']}" if table["split"] else "")
        + f", {table['images']} images"
        + (
            f" ({table['skipped_images']} unreadable ones left out)" * bool(table["skipped_images"])
        ),
    ]
    parts = [f"# Accuracy of {table['model']}", "\n".join(f"- {fact}" for fact in facts)]
    parts += [as_markdown(table), CONVENTIONS.format(reduction=reduction(table))]
    parts += [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in plots]
    parts += ["## Agreement with the model at r_source", _closeness_table(table["rows"])]
    if table["scaling_search"]:
        parts += ["## The search for the scaling", _search_table(table["scaling_search"])]
    if table["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in table["notes"])]
    return "\n\n".join(parts) + "\n"


def as_markdown(table: Table) -> str:
    """The table for people: one line per degree, plain weights beside the bank's."""
    rows = table["rows"]
    labelled, timed = table["labelled"], table["throughput"] is not None
    several = len({row["r_source"] for row in rows}) > 1
    header = ["r_source"] * several + ["r", "GFLOPs", "arithmetic"] + ["images/s"] * timed
    accuracy = ["top-1 plain", "top-1 bank", "gain, points (95 %)", "won back (95 %)"]
    header += accuracy if labelled else ["agreement plain", "agreement bank"]
    header += ["KL plain", "KL bank"]
    lines = []
    for plain, bank in _pairs(rows):
        cells = [str(plain["r_source"])] * several
        cells += [str(plain["r"]), f"{plain['gflops']:.2f}", f"{plain['arithmetic_ratio']:.2f} ×"]
        cells += [f"{plain['images_per_s'][0]:.1f}"] if timed else []
        name = "top1" if labelled else "agreement"
        cells += [f"{plain[name]:.2%}", f"{bank[name]:.2%}" if bank else ""]
        if labelled:
            cells += [_points(bank["gain"]), _percent(bank["won_back"])] if bank else ["", ""]
        lines.append([*cells, f"{plain['kl']:.4f}", f"{bank['kl']:.4f}" if bank else ""])
    return _markdown(header, lines)


def stored_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """What of a table travels in the model's header: its own degree's rows, no machine's speed.

    Raises:
        DataError: no accuracy in it, or none for the degree that the model was fine-tuned at.
        BankError: the degrees have scalings of their own; a server has one for all.
    """
    own = [row for row in table["rows"] if row["r_source"] == table["r_source"]]
    if not table["labelled"] or not own:
        raise DataError(
            "there is no accuracy to store: --store needs labels, and "
            f"r_source={table['r_source']}, which the model was fine-tuned at"
        )
    scalings = {row["scaling"] for row in own if row["bank"]}
    if len(scalings) > 1:
        raise BankError(
            f"a server has one scaling for all degrees, not {sorted(scalings)}; leave out "
            "--scaling-per-degree to store a table"
        )
    kept = ("model", "images", "r_source", "data", "split")
    rows = [{k: v for k, v in row.items() if k not in OF_ONE_MACHINE} for row in own]
    return {**{name: table[name] for name in kept}, "rows": rows}


def _method(table: Table) -> str:
    """How tokens are reduced; what attention is only matters where they are merged."""
    told = f"Method: `{table['method']}`"
    if table["method"] != "merge":
        return told
    return f"{told}, proportional attention {'on' if table['prop_attn'] else 'off'} (`prop_attn`)"


def _closeness_table(rows: Sequence[Row]) -> str:
    header = ["r_source", "r", "weights", "top-5", "agreement (95 %)", "KL (95 %)"]
    header += ["KL that the bank cuts (95 %)"]
    lines = []
    for row in rows:
        weights = f"bank, s={row['scaling']:g}" if row["bank"] else "plain"
        top5 = f"{row['top5']:.2%}" if "top5" in row else ""
        low, high = row["kl_interval"][1:]
        kl = f"{row['kl']:.4f} ({low:.4f} … {high:.4f})"
        cells = [str(row["r_source"]), str(row["r"]), weights, top5]
        lines.append(
            [*cells, _percent(row["agreement_interval"], 2), kl, _percent(row.get("kl_cut"))]
        )
    return _markdown(header, lines)


def _search_table(search: Mapping[str, Any]) -> str:
    lines = []
    for row in search["rows"]:
        degree = "all" if row["r"] is None else str(row["r"])
        top1 = "" if row["top1"] is None else f"{row['top1']:.2%}"
        mark = "chosen" if row["chosen"] else "eligible" if row["eligible"] else ""
        cells = [str(row["r_source"]), degree, f"{row['scaling']:g}", top1, f"{row['kl']:.4f}"]
        lines.append([*cells, mark])
    header = ["r_source", "r", "scaling", "mean top-1", "mean KL", ""]
    told = (
        f"On {search['images']} validation images ({search['data']}), none of them a test image. "
        "Chosen is the lowest mean KL of the eligible: those whose mean top-1 is within one "
        "standard error of the highest (paired bootstrap), or all where there are no labels."
    )
    return f"{told}\n\n{_markdown(header, lines)}"


def _pairs(rows: Iterable[Row]) -> list[tuple[Row, Row | None]]:
    """Each plain row with the bank's row of the same degrees, if there is one."""
    rows = list(rows)
    bank = {(row["r_source"], row["r"]): row for row in rows if row["bank"]}
    return [(row, bank.get((row["r_source"], row["r"]))) for row in rows if not row["bank"]]


def _points(interval: Sequence[float]) -> str:
    """A difference of shares, in percentage points."""
    mean, low, high = (100 * value for value in interval)
    return f"{mean:+.2f} ({low:+.2f} … {high:+.2f})"


def _percent(interval: Sequence[float] | None, digits: int = 0) -> str:
    if interval is None:
        return ""
    mean, low, high = (f"{100 * value:.{digits}f}" for value in interval)
    return f"{mean} % ({low} … {high})"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
