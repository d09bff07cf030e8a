"""How long a switch of the degree takes: kept rows and built ones, beside a batch-8 forward pass.

    python benchmarks/switch.py                the default model, and ViT-Tiny (from TOCOM_DATA)
    python benchmarks/switch.py --device cuda --dtype bfloat16 --model vit_base_patch16_224

A bank of the usual size (K=16, rank 2) with random values is merged into the live weights over and
over, to degrees drawn at random: "kept" copies rows that were built before, "built" has no memory
for them and builds them every time.  All take turns with forward passes at r=0 in the same rounds,
and a share is that of its round's forward pass.  The values do not matter for the time.  Prints
a Markdown table per model and one final JSON line.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import default_models
from tocom_core import Bank, CompressedViT, WeightMerger, load_model
from tocom_core.bank_header import BankHeader

DEGREES = range(17)
BATCH = 8
ALL_KEPT = 2**40
"""Bytes; more than the rows of all degrees of any model take."""
FEWER_BUILT = 20
"""Building takes so much longer that one in so many switches is enough."""


def main() -> None:
    """Measure all models asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", help="models; default: the embedded one and ViT-Tiny")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--switches", type=int, default=10_000, help="to kept rows")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the bank and of the rounds' order")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [row for path in options.model or default_models() for row in _measure(path, options)]
    threads = torch.get_num_threads()
    machine = {"device": options.device, "dtype": options.dtype, "threads": threads}
    record = json.dumps({"benchmark": "switch", **machine, "rows": rows})
    if options.output:
        options.output.write_text(record + "\n")
    print(record)


@torch.inference_mode()
def _measure(path: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One model: print its table, return its rows."""
    loaded = load_model(path, architecture=options.architecture)
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    model = CompressedViT(loaded.vit.to(options.device, dtype)).eval()
    bank = _random_bank(model, loaded.architecture)
    images = torch.randn(BATCH, *loaded.input_size).to(options.device, dtype)
    # Both write the same bits into the same weights, so that they may take turns.
    mergers = {name: WeightMerger(model, bank, kept_bytes=room) for name, room in ROOMS.items()}
    for r in DEGREES:
        mergers["kept"].set_target(r)
    for merger in mergers.values():
        merger.set_target(0)
    each = {"kept": -(-options.switches // options.rounds)}
    each["built"] = -(-each["kept"] // FEWER_BUILT)
    generator = random.Random(options.seed)
    seconds: dict[str, list[float]] = {name: [] for name in mergers}
    shares: dict[str, list[float]] = {name: [] for name in mergers}
    forwards = []
    for _ in range(options.rounds):
        model(images)
        _synchronize(options.device)
        forwards.append(_timed(lambda: model(images), options.device))
        for name, merger in mergers.items():
            taken = _walk(merger, each[name], generator, options.device)
            seconds[name] += taken
            shares[name] += [value / forwards[-1] for value in taken]
    memory = mergers["kept"].kept_bytes
    return _report(loaded.name, forwards, seconds, shares, memory)


ROOMS = {"kept": ALL_KEPT, "built": 0}


def _walk(merger: WeightMerger, count: int, generator: random.Random, device: str) -> list[float]:
    """Seconds of each of some switches to another degree, in a walk that ends at ``r_source``."""
    taken = []
    for _ in range(count):
        r = generator.choice([r for r in DEGREES if r not in (merger.r_target, merger.r_source)])
        taken.append(_timed(lambda r=r: merger.set_target(r), device))  # type: ignore[misc]
    merger.set_target(merger.r_source)
    _synchronize(device)
    return taken


def _report(
    model: str,
    forwards: list[float],
    seconds: dict[str, list[float]],
    shares: dict[str, list[float]],
    memory: int,
) -> list[dict[str, Any]]:
    forward_ms = 1000 * statistics.median(forwards)
    print(f"\n{model}: forward of {BATCH} images {forward_ms:.1f} ms; ", end="")
    print(f"rows of {len(DEGREES) - 1} degrees take {memory / 2**20:.1f} MiB\n")
    print("| switches | rows | p50 µs | p99 µs | p50 in % of the forward | p99 |")
    print("|---" * 6 + "|")
    rows = []
    for name, taken in seconds.items():
        microseconds = [1e6 * value for value in taken]
        percent = [100 * value for value in shares[name]]
        figures = [*_middle_and_tail(microseconds), *_middle_and_tail(percent)]
        cells = [f"{figures[0]:.1f}", f"{figures[1]:.1f}", *(f"{x:.3f}" for x in figures[2:])]
        print(f"| {len(taken)} | {name} | " + " | ".join(cells) + " |", flush=True)
        names = ("p50_us", "p99_us", "p50_percent", "p99_percent")
        rows.append(
            {"model": model, "rows": name, "switches": len(taken), "kept_bytes": memory}
            | {"forward_ms": forward_ms, **dict(zip(names, figures, strict=True))}
        )
    return rows


def _middle_and_tail(values: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]


def _random_bank(model: CompressedViT, architecture: str) -> Bank:
    bank = Bank(BankHeader(architecture, model.embed_dim, model.depth, num_groups=16, rank=2))
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return bank


def _timed(job: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    job()
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
