r"""The paper's protocol: one bank serves models that were fine-tuned from its backbone.

    python benchmarks/transfer.py --models runs/ft --bank weights/…/bank.safetensors \
        --data $TOCOM_DATA/tf_flowers $TOCOM_DATA/clothing $TOCOM_DATA/eurosat $TOCOM_DATA/cifar10

``--models`` holds one folder per data set and degree, ``<data set>_r<r_source>/model.safetensors``,
as ``tocom finetune --output`` writes them.  Every model is served at each degree, by plain merging
and with the bank, on the same test images; beside it stands the model that was fine-tuned at that
degree itself, if there is one.  The average gain over the data sets has a 95 % interval (bootstrap
over the images of each set).  Prints Markdown tables and one final JSON line.
"""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.transfer_plot import plot_gains
from tocom_core import Bank, CompressedViT, load_model
from tocom_core.bootstrap import Estimate, estimates
from tocom_core.predictions import Variant, VariantRunner
from tocom_core.sources import ImageSource, open_pool


@dataclass(frozen=True)
class Served:
    """One model at one degree.

    Attributes:
        images: test images.
        plain: top-1 with plain merging.
        banked: top-1 with the bank.
        plain_kl: mean KL of plain merging to the model at its own degree, in nats.
        banked_kl: likewise with the bank.
    """

    images: int
    plain: Estimate
    banked: Estimate
    plain_kl: Estimate
    banked_kl: Estimate


Results = dict[str, dict[tuple[int, int], Served]]
"""Data set to ``(r_source, r_target)`` to what was seen."""


def main() -> None:
    """Evaluate all models, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, required=True, help="folder of the models' folders")
    parser.add_argument("--bank", required=True)
    parser.add_argument("--data", nargs="+", required=True, help="data sets; PLACE@1000 caps one")
    parser.add_argument("--split", default="test")
    parser.add_argument("--r-target", nargs="+", type=int, default=[0, 4, 8, 12, 16])
    parser.add_argument("--scaling", type=float, help="default: the bank's own")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    parser.add_argument("--plot", type=Path, help="write a picture of the gains there")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = {_name(place): _evaluate_set(place, options) for place in options.data}
    table = _table(results)
    print(_as_markdown(table))
    record = json.dumps({"benchmark": "transfer", **table})
    if options.output:
        options.output.write_text(record + "\n")
    if options.plot:
        plot_gains(options.plot, table)
    print(record)


def _name(place: str) -> str:
    return Path(place.split("@")[0]).name


def _evaluate_set(place: str, options: argparse.Namespace) -> dict[tuple[int, int], Served]:
    """All models of one data set."""
    source = open_pool([place], options.split)
    found: dict[tuple[int, int], Served] = {}
    for folder in sorted(options.models.glob(f"{_name(place)}_r*/model.safetensors")):
        found |= _evaluate_model(folder, source, options)
    if not found:
        raise SystemExit(f"no {_name(place)}_r*/model.safetensors in {options.models}")
    return found


def _evaluate_model(
    path: Path, source: ImageSource, options: argparse.Namespace
) -> dict[tuple[int, int], Served]:
    """One model at every degree, with and without the bank."""
    loaded = load_model(path)
    named = re.fullmatch(r".*_r(\d+)", path.parent.name)
    if named is None or int(named[1]) != loaded.r_source:
        raise SystemExit(f"{path} was fine-tuned at r_source={loaded.r_source}, its folder differs")
    bank = Bank.load(options.bank)
    scaling = bank.scaling if options.scaling is None else options.scaling
    model = CompressedViT(
        loaded.vit.to(options.device), bank.method, loaded.choose_prop_attn(None, bank)
    )
    runner = VariantRunner(model, loaded, bank, options.batch_size)
    own = loaded.r_source
    plain = {r: Variant(own, r) for r in options.r_target}
    banked = {r: Variant(own, r, scaling) for r in options.r_target}
    figures = runner.figures(source, [*plain.values(), *banked.values()])
    found = estimates(
        column
        for r in options.r_target
        for column in (
            *(figures[plain[r]].right, figures[banked[r]].right),
            *(figures[plain[r]].kl, figures[banked[r]].kl),
        )
    )
    count = len(figures[plain[options.r_target[0]]])
    return {
        (own, r): Served(count, *found[4 * number : 4 * number + 4])
        for number, r in enumerate(options.r_target)
    }


def _table(results: Results) -> dict[str, Any]:
    """Flat rows per data set, and the averages over the data sets."""
    rows = [
        {
            "data": name,
            "r_source": r_source,
            "r_target": r_target,
            "images": served.images,
            "plain": served.plain.value,
            "bank": served.banked.value,
            "gain": (served.banked - served.plain).interval().as_list(),
            "plain_kl": served.plain_kl.value,
            "bank_kl": served.banked_kl.value,
            "tuned_there": _tuned_at(r_target, found),
        }
        for name, found in results.items()
        for (r_source, r_target), served in found.items()
    ]
    shared = set.intersection(*(set(found) for found in results.values()))
    averages = [_average(pair, results) for pair in sorted(shared)]
    return {"rows": rows, "averages": averages}


def _tuned_at(r: int, found: Mapping[tuple[int, int], Served]) -> float | None:
    """Top-1 of the model that was fine-tuned at the degree itself."""
    return found[r, r].plain.value if (r, r) in found else None


def _average(pair: tuple[int, int], results: Results) -> dict[str, Any]:
    """Mean over the data sets, each resampled by itself."""
    served = [found[pair] for found in results.values()]
    gains = [one.banked - one.plain for one in served]
    gain = Estimate(
        float(np.mean([one.value for one in gains])),
        np.mean([one.samples for one in gains], axis=0),
    )
    tuned = [_tuned_at(pair[1], found) for found in results.values()]
    known = [value for value in tuned if value is not None]
    return {
        "r_source": pair[0],
        "r_target": pair[1],
        "plain": float(np.mean([one.plain.value for one in served])),
        "bank": float(np.mean([one.banked.value for one in served])),
        "gain": gain.interval().as_list(),
        "plain_kl": float(np.mean([one.plain_kl.value for one in served])),
        "bank_kl": float(np.mean([one.banked_kl.value for one in served])),
        "tuned_there": float(np.mean(known)) if len(known) == len(tuned) else None,
    }


def _as_markdown(table: Mapping[str, Any]) -> str:
    """Averages first, then each data set."""
    heads = (
        "| r_source → r_target | plain | with bank | gain in points (95 %) | KL plain | KL bank "
    )
    lines = ["", heads + "| fine-tuned there |", "|---|---|---|---|---|---|---|"]
    lines += [_line(row) for row in table["averages"]]
    for name in dict.fromkeys(row["data"] for row in table["rows"]):
        rows = [row for row in table["rows"] if row["data"] == name]
        lines += ["", f"{name}, {rows[0]['images']} test images", "", *lines[1:3]]
        lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    mean, low, high = (100 * value for value in row["gain"])
    tuned = "" if row["tuned_there"] is None else f"{row['tuned_there']:.2%}"
    cells: Sequence[str] = (
        f"{row['r_source']} → {row['r_target']}",
        f"{row['plain']:.2%}",
        f"{row['bank']:.2%}",
        f"{mean:+.2f} ({low:+.2f} … {high:+.2f})",
        f"{row['plain_kl']:.4f}",
        f"{row['bank_kl']:.4f}",
        tuned,
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
