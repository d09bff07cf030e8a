r"""The paper's ablations of the bank, on whatever model and data are cheap enough.

    tocom finetune --model weights/vit_mini_conv4_32/model.safetensors --r-source 16 \
        --data $TOCOM_DATA/cifar10 --output runs/default_r16 --epochs 1 --lr 2e-4 …
    python benchmarks/ablations.py --high runs/default_r16/model.safetensors \
        --data $TOCOM_DATA/cifar10 --output runs/ablations -- --epochs 1 --batch-size 64

Trains one bank per variant on the same backbone with the same options (those after ``--`` go to
``tocom train``), then serves a model of degree 0 at 16 and at 12, and one of degree 16 at 0.  Each
variant is a folder of the output: an interrupted run goes on where it stopped.  Prints a Markdown
table beside the paper's own figures and one final JSON line.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tocom_core import Bank, CompressedViT, load_model
from tocom_core.bootstrap import Interval, paired_bootstrap
from tocom_core.distill_options import DistillOptions
from tocom_core.distillation import train_bank
from tocom_core.models import default_model_path
from tocom_core.options import parse_options
from tocom_core.predictions import Variant, VariantRunner
from tocom_core.sources import open_pool

PAIRS = ((0, 16), (0, 12), (16, 0))
VARIANTS: Mapping[str, str] = {
    "ToCom (rank 2)": "--rank 2",
    "one shared group": "--shared",
    "classification loss": "--loss cross-entropy",
    "no inversion": "--no-inversion",
    "rank 1": "--rank 1",
    "rank 4": "--rank 4",
    "rank 8": "--rank 8",
    "uniform pairs (paper)": "--anchor-share 0",
}
PAPER: Mapping[str, tuple[str, str, str]] = {
    "plain merging": ("67.9", "70.1", "70.0"),
    "ToCom (rank 2)": ("69.9", "70.9", "70.9"),
    "one shared group": ("69.2", "70.6", "70.1"),
    "classification loss": ("69.9", "70.9", "70.6"),
    "no inversion": ("69.8", "70.9", "70.8"),
    "rank 1": ("69.7", "", ""),
    "rank 4": ("69.9", "", ""),
    "rank 8": ("70.1", "", ""),
}
"""VTAB-1k averages of the paper, for the same pairs (its tables 5 and 6)."""


def main() -> None:
    """Train what is missing, evaluate all, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default=str(default_model_path()), help="of degree 0: backbone")
    parser.add_argument("--high", required=True, help="the model fine-tuned at r_source=16")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--test-images", type=int, default=5000, help="spread over the test split")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    own, passed_on = _split_arguments(sys.argv[1:])
    options = parser.parse_args(own)
    if options.threads:
        torch.set_num_threads(options.threads)
    banks = {name: _bank(name, flags, options, passed_on) for name, flags in VARIANTS.items()}
    table = _evaluate(banks, options)
    print(_as_markdown(table))
    record = json.dumps({"benchmark": "ablations", "rows": table})
    (options.output / "ablations.json").write_text(record + "\n")
    print(record)


def _split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _bank(name: str, flags: str, options: argparse.Namespace, passed_on: list[str]) -> Bank:
    """Train a variant, unless its bank is there already."""
    folder = options.output / name.replace(" ", "_").replace("(", "").replace(")", "")
    path = folder / "bank.safetensors"
    if not path.is_file():
        command = ["--model", options.model, "--data", options.data, "--split", "train"]
        command += ["--output", str(folder), *passed_on, *flags.split()]
        command += ["--threads", str(options.threads)]
        train_bank(parse_options(DistillOptions, command, "tocom train", ""))
    return Bank.load(path)


def _evaluate(banks: Mapping[str, Bank], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Top-1 of each variant for each pair, and its gain over plain merging."""
    source = open_pool([f"{options.data}@{options.test_images}"], "test")
    rights: dict[tuple[str, int, int], torch.Tensor] = {}
    for path, own in ((options.model, 0), (options.high, 16)):
        loaded = load_model(path)
        if loaded.r_source != own:
            raise SystemExit(f"{path} has r_source={loaded.r_source}, expected {own}")
        for name, bank in banks.items():
            model = CompressedViT(loaded.vit, bank.method, loaded.choose_prop_attn(None, bank))
            targets = [r for source_r, r in PAIRS if source_r == own]
            known = ("plain merging", own, targets[0]) in rights
            scalings = (bank.scaling,) if known else (None, bank.scaling)
            variants = [Variant(own, r, s) for r in targets for s in scalings]
            figures = VariantRunner(model, loaded, bank).figures(source, variants)
            for variant, found in figures.items():
                label = "plain merging" if variant.scaling is None else name
                rights[label, own, variant.r] = found.right.double()
    return [_row(name, rights) for name in ("plain merging", *banks)]


def _row(name: str, rights: Mapping[tuple[str, int, int], torch.Tensor]) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": name}
    for pair in PAIRS:
        own, plain = rights[name, *pair], rights["plain merging", *pair]
        gain: Interval = paired_bootstrap(own - plain)
        key = f"{pair[0]}_to_{pair[1]}"
        row |= {f"top1_{key}": float(own.mean()), f"gain_{key}": gain.as_list()}
    return row


def _as_markdown(table: list[dict[str, Any]]) -> str:
    heads = [f"{m} → {n}" for m, n in PAIRS]
    lines = ["", f"| variant | {' | '.join(heads)} | the paper: {' / '.join(heads)} |"]
    lines.append("|---|---|---|---|---|")
    for row in table:
        cells = [row["variant"]]
        for m, n in PAIRS:
            mean, low, high = (100 * value for value in row[f"gain_{m}_to_{n}"])
            cell = f"{row[f'top1_{m}_to_{n}']:.2%}"
            if row["variant"] != "plain merging":
                cell += f", {mean:+.2f} ({low:+.2f} … {high:+.2f})"
            cells.append(cell)
        cells.append(" / ".join(value or "–" for value in PAPER.get(row["variant"], ())))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
