"""How long a switch of the degree takes, as a share of one batch-8 forward pass at r=0.

    python benchmarks/switch.py                the default model, and ViT-Tiny (from TOCOM_DATA)

A bank of the usual size (K=16, rank 2) with random values is merged into the live weights over
several distances and back to ``r_source``; forward passes run in the same rounds.  The values do
not matter for the time.  Prints a Markdown table per model and one final JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import default_models, measure_rounds, ratios
from tocom_core import Bank, CompressedViT, WeightMerger, load_model
from tocom_core.bank_header import BankHeader
from tocom_core.throughput import Spread

FORWARD = "forward, batch 8"
DISTANCES = (1, 4, 8, 16)


def main() -> None:
    """Measure all models asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", help="models; default: the embedded one and ViT-Tiny")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the bank and of the rounds' order")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [row for path in options.model or default_models() for row in _measure(path, options)]
    threads = torch.get_num_threads()
    record = json.dumps({"benchmark": "switch", "threads": threads, "rows": rows})
    if options.output:
        options.output.write_text(record + "\n")
    print(record)


@torch.inference_mode()
def _measure(path: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One model: print its table, return its rows."""
    loaded = load_model(path, architecture=options.architecture)
    torch.manual_seed(options.seed)
    model = CompressedViT(loaded.vit.to(options.device)).eval()
    merger = WeightMerger(model, _random_bank(model, loaded.architecture))
    images = torch.randn(8, *loaded.input_size).to(options.device)

    def forward() -> None:
        model(images)
        _synchronize(options.device)

    def switch(r_from: int, r_to: int) -> float:
        """Time the way there only; the way back is a variant of its own."""
        merger.set_target(r_from)
        _synchronize(options.device)
        return _timed(lambda: merger.set_target(r_to), options.device)

    taken: dict[str, list[float]] = {}
    jobs: dict[str, Callable[[], float]] = {
        **{f"0 → {r}": lambda r=r: switch(0, r) for r in DISTANCES},  # type: ignore[misc]
        **{f"16 → {16 - r}": lambda r=r: switch(16, 16 - r) for r in DISTANCES},  # type: ignore[misc]
    }

    def recorded(name: str) -> Callable[[], None]:
        return lambda: taken.setdefault(name, []).append(jobs[name]())

    variants = {FORWARD: forward, **{name: recorded(name) for name in jobs}}
    forwards = measure_rounds(variants, options.rounds, options.seed)[FORWARD]
    merger.set_target(0)
    return _report(loaded.name, forwards, taken)


def _report(
    model: str, forwards: list[float], taken: dict[str, list[float]]
) -> list[dict[str, Any]]:
    print(f"\n{model}: forward of 8 images {1000 * Spread.of(forwards).median:.1f} ms\n")
    print("| switch | ms (quartiles) | share of the forward in % (quartiles) |")
    print("|---|---|---|")
    rows = []
    for name, values in taken.items():
        timed = values[1:]  # the first call was the warm-up
        took = Spread.of([1000 * value for value in timed])
        share = Spread.of([100 * ratio for ratio in ratios(timed, forwards)])
        print(f"| {name} | {took} | {share} |")
        rows.append({"model": model, "switch": name, "ms": vars(took), "percent": vars(share)})
    return rows


def _random_bank(model: CompressedViT, architecture: str) -> Bank:
    bank = Bank(BankHeader(architecture, model.embed_dim, model.depth, num_groups=16, rank=2))
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return bank


def _timed(job: Callable[[], None], device: str) -> float:
    started = time.perf_counter()
    job()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
