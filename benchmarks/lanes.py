"""A batch shared out to lanes, beside the same batch with all threads inside each operation.

    OMP_WAIT_POLICY=passive python benchmarks/lanes.py      ViT-Tiny (from TOCOM_DATA) and default
    … --lanes 4 --threads 8 --batch-sizes 1 8 --degrees 0 16 --neighbour 0.2

The server sets that variable for itself.  Ratios are taken round by round; above 1 the lanes are
faster.  ``--neighbour`` is the share of one core that another process takes in bursts of 3 ms, as
decoders do.  Prints a Markdown table per model and one final JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.interleaved import Variant, default_models, measure_rounds, ratios
from server.backends import Eager
from server.forward import Forward
from server.lanes import Lanes, choose_lanes
from tocom_core import CompressedViT, load_model
from tocom_core.throughput import Spread

TURN_S = 0.1
BURST_S = 0.003
NEIGHBOUR = """
import sys, time
burst, pause = map(float, sys.argv[1:])
while True:
    end = time.perf_counter() + burst
    while time.perf_counter() < end:
        pass
    time.sleep(pause)
"""


def main() -> None:
    """Measure all models asked for."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    threads = torch.get_num_threads()
    count = choose_lanes(options.lanes, threads, "cpu")
    rows = []
    for path in options.model or default_models():
        with _neighbour(options.neighbour):
            rows += _measure(path, count, threads, options)
    machine = {"threads": threads, "lanes": count, "torch": str(torch.__version__)}
    machine |= {"neighbour": options.neighbour, "omp": os.environ.get("OMP_WAIT_POLICY", "")}
    record = json.dumps({"benchmark": "lanes", **machine, "rows": rows})
    if options.output:
        options.output.write_text(record + "\n")
    print(record)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", help="models; default: the embedded one and ViT-Tiny")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--degrees", nargs="+", type=int, default=[0, 8, 16])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds-per-cell", type=float, default=10, help="fewer rounds beyond it")
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--lanes", type=int, default=0, help="0: as the server chooses")
    parser.add_argument("--neighbour", type=float, default=0, help="share of a core, 0 to below 1")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    return parser.parse_args()


def _measure(
    path: str, count: int, threads: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One model: print its table, return its rows."""
    loaded = load_model(path, architecture=options.architecture)
    model = CompressedViT(loaded.vit).eval()
    where = torch.device("cpu"), torch.float32
    ways = {
        name: Forward(Eager(model), loaded.normalize, *where, Lanes(lanes, threads))
        for name, lanes in (("plain", 1), ("lanes", count))
    }
    shape = (max(options.batch_sizes), *loaded.input_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    cells = [(r, size) for r in options.degrees for size in options.batch_sizes]
    variants: dict[str, Variant] = {
        f"{name} {r} {size}": partial(way.classify, images[:size], r)
        for r, size in cells
        for name, way in ways.items()
    }
    budget_s = options.seconds_per_cell * len(cells)
    seconds = measure_rounds(
        variants, options.rounds, options.seed, turn_s=TURN_S, budget_s=budget_s
    )
    for way in ways.values():
        way.close()
    print(f"\n{loaded.name}: {count} lanes of {max(1, threads // count)} threads, or {threads}\n")
    print("| r | batch | plain, ms per image | lanes, ms per image | × faster (quartiles) |")
    print("|---|---|---|---|---|")
    return [_row(loaded.name, cell, seconds) for cell in cells]


def _row(model: str, cell: tuple[int, int], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print one line of the table and return it for the record."""
    r, size = cell
    plain, lanes = (seconds[f"{name} {r} {size}"] for name in ("plain", "lanes"))
    each = [Spread.of([1000 * value / size for value in values]) for values in (plain, lanes)]
    gain = Spread.of(ratios(plain, lanes))
    print(f"| {r} | {size} | {each[0].median:.1f} | {each[1].median:.1f} | {gain} |")
    row = {"model": model, "r": r, "batch_size": size, "rounds": len(plain)}
    return row | {"plain_ms": vars(each[0]), "lanes_ms": vars(each[1]), "ratio": vars(gain)}


@contextmanager
def _neighbour(share: float) -> Iterator[None]:
    """Keep another process busy for this share of its time."""
    if not share:
        yield
        return
    pause_s = BURST_S * (1 - share) / share
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(BURST_S), str(pause_s)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
