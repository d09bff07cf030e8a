"""Images per second at every degree, beside plain timm, in one interleaved run.

    python benchmarks/throughput.py             the default model, and ViT-Tiny (from TOCOM_DATA)
    python benchmarks/throughput.py --model mine.safetensors --degrees 0 8 16 --batch-sizes 1 32

Ratios are to ``vit(x)`` of plain timm on the same weights and the same images, round by round,
with their quartiles; "arithmetic" is the ratio of counted multiply-adds, which is what a perfect
implementation would reach.  Prints a Markdown table per model and one final JSON line.
"""

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import Variant, default_models, measure_rounds, ratios
from tocom_core import CompressedViT, load_model
from tocom_core.schedule import arithmetic_ratio
from tocom_core.throughput import Spread

PLAIN = "timm"
TURN_S = 0.1
"""Short forward passes are repeated within a turn for about this long."""


def main() -> None:
    """Measure all models asked for."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [
        row
        for path in options.model or default_models()
        for batch_size in options.batch_sizes
        for row in _measure(path, batch_size, options)
    ]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    machine |= {"processor": platform.machine(), "device": options.device}
    if options.plot:
        _plot(results, options.plot)
    record = json.dumps({"benchmark": "throughput", **machine, "rows": results})
    if options.output:
        options.output.write_text(record + "\n")
    print(record)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", help="models; default: the embedded one and ViT-Tiny")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--degrees", nargs="+", type=int, default=list(range(17)))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--seconds-per-cell",
        type=float,
        default=20,
        help="fewer rounds if one degree at one batch size would take longer; 3 at least",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--plot", type=Path, help="write a PNG of throughput against r")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    return parser.parse_args()


@torch.inference_mode()
def _measure(path: str, batch_size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One model at one batch size: print its table, return its rows."""
    loaded = load_model(path, architecture=options.architecture)
    dtype = getattr(torch, options.dtype)
    model = CompressedViT(loaded.vit.to(options.device, dtype)).eval()
    images = torch.randn(batch_size, *loaded.input_size).to(options.device, dtype)
    variants: dict[str, Variant] = {PLAIN: partial(_run, loaded.vit, images)}
    for r in options.degrees:
        variants[f"r={r}"] = partial(_run, model, images, r)
    budget_s = options.seconds_per_cell * len(variants)
    seconds = measure_rounds(
        variants, options.rounds, options.seed, turn_s=TURN_S, budget_s=budget_s
    )
    print(f"\n{loaded.name}, batch {batch_size}\n")
    print("| variant | images/s (quartiles) | × plain timm (quartiles) | arithmetic |")
    print("|---|---|---|---|")
    rows = []
    for name, values in seconds.items():
        speed = Spread.of([batch_size / value for value in values])
        ratio = Spread.of(ratios(seconds[PLAIN], values))
        counted = 1.0 if name == PLAIN else arithmetic_ratio(model, int(name[2:]))
        print(
            f"| {name} | {speed.median:.1f} ({speed.low:.1f}–{speed.high:.1f}) | {ratio} | "
            f"{counted:.2f} |"
        )
        rows.append(
            {"model": loaded.name, "batch_size": batch_size, "variant": name}
            | {"images_per_s": vars(speed), "ratio": vars(ratio), "arithmetic": counted}
            | {"rounds": len(values)}
        )
    return rows


def _run(model: torch.nn.Module, images: torch.Tensor, *degree: int) -> None:
    model(images, *degree)
    if images.is_cuda:
        torch.cuda.synchronize()


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Speed-up over plain timm against r, one panel per model."""
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = pyplot.subplots(1, len(models), figsize=(5.5 * len(models), 4), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row["model"] == model and row["variant"] != PLAIN]
        for size in sorted({row["batch_size"] for row in own}):
            line = [row for row in own if row["batch_size"] == size]
            degrees = [int(row["variant"][2:]) for row in line]
            ratio = [row["ratio"] for row in line]
            axis.plot(degrees, [r["median"] for r in ratio], marker=".", label=f"batch {size}")
            low, high = [r["low"] for r in ratio], [r["high"] for r in ratio]
            axis.fill_between(degrees, low, high, alpha=0.15)
        counted = {int(row["variant"][2:]): row["arithmetic"] for row in own}
        axis.plot(list(counted), list(counted.values()), "k--", linewidth=1, label="arithmetic")
        axis.set(title=model, xlabel="r", ylabel="speed-up over plain timm")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
