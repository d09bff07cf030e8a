"""The engine beside its peers on a GPU: timm, compiled timm, timm as a CUDA graph.

    python benchmarks/engines_gpu.py --models vit_base_patch16_224 --output gpu.json --plot gpu.png
    python benchmarks/engines_gpu.py --device cpu --quick          a try of the script itself

All compute the logits of the same normalised images on the device with the same (random) weights;
the peers only know r=0. Ours run eagerly and as CUDA graphs; "pipeline" is the whole way from uint8
images in host memory to probabilities there, one batch staged while another computes. Every variant
has a turn in each round, and ratios are taken round by round. "Bound" is a roofline from what this
device does with a large product and a large copy (`roofline`). Then the degree is switched 10,000
times at random. Prints a Markdown table per model and batch size and ends with one JSON line.

Compiling takes minutes for each model and batch size: where a command may take ten, measure one
model at a time, or leave it out with --no-compile. Needs nothing of the server.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.engines_gpu_report import Cell, plot, print_switches, print_table
from benchmarks.engines_gpu_variants import (
    PIPELINED,
    Bench,
    Job,
    pipelined,
    random_bank,
    switch_times,
)
from benchmarks.interleaved import measure_rounds
from benchmarks.roofline import (
    Device,
    bound_s,
    by_name,
    forward_parts,
    measure_device,
    nominal,
)
from tocom_core import CompressedViT
from tocom_core.precision import PRECISIONS, use_precision
from tocom_core.schedule import arithmetic_ratio

MODELS = [
    "vit_base_patch16_224",
    "vit_base_patch16_384",
    "vit_large_patch16_224",
    "deit_small_patch16_224",
]
QUICK = {"img_size": 64, "depth": 2, "num_classes": 10}
TURN_S = 0.05
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 6e-2}
"""Largest difference of a logit from timm's at r=0, relative to the largest one."""


def main() -> None:
    """Measure all models asked for."""
    options = _parse()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "no CUDA device on this machine: run this on one that has, or try the script itself "
            "with --device cpu --quick"
        )
    precision = use_precision(options.dtype, device)
    sizes = (256, 2**22) if options.quick else (8192, 2**30)
    roof = measure_device(device, precision.dtype, *sizes)
    print(f"{_machine(device)}")
    print(f"large product and large copy in {options.dtype}: {roof}")
    if (told := nominal(device)) is not None:
        print(f"nominal, in bfloat16 and float16: {told}")
    cells: list[Cell] = []
    switches = []
    for name in options.models:
        model = build(name, device, precision.dtype, quick=options.quick)
        for batch in options.batch_sizes:
            cells += _measure(name, model, batch, roof, device, options)
        taken = switch_times(model, random_bank(model), options.switches, device)
        switches.append(print_switches(name, taken))
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.plot:
        plot(cells, options.plot)
    record = _record(device, roof, options, cells, switches)
    if options.output:
        options.output.write_text(record + "\n")
    print("\n" + record)


def build(name: str, device: torch.device, dtype: torch.dtype, *, quick: bool) -> CompressedViT:
    """A timm model with random weights, wrapped; ``quick`` makes it small."""
    torch.manual_seed(0)
    vit = timm.create_model(name, pretrained=False, **(QUICK if quick else {}))
    return CompressedViT(vit).to(device, dtype).eval()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=MODELS, help="timm names [all four]")
    parser.add_argument("--degrees", nargs="+", type=int, default=[0, 4, 8, 12, 16])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds-per-cell", type=float, default=5, help="fewer rounds beyond it")
    parser.add_argument("--switches", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    parser.add_argument("--plot", type=Path, help="picture of the gain per degree (matplotlib)")
    parser.add_argument("--quick", action="store_true", help="tiny models: tries the script itself")
    options = parser.parse_args()
    options.degrees = sorted({0, *options.degrees})
    if options.quick:
        options.models, options.batch_sizes = ["vit_tiny_patch16_224"], [1, 3]
        options.degrees, options.rounds, options.switches = [0, 2, 4], 3, 50
        options.compile = False
    return options


@torch.inference_mode()
def _measure(
    name: str,
    model: CompressedViT,
    batch: int,
    roof: Device,
    device: torch.device,
    options: argparse.Namespace,
) -> list[Cell]:
    """One batch size: its variants, its table."""
    bench = Bench(model, batch, device)
    peers = bench.peers(with_compile=options.compile)
    ours = bench.ours(options.degrees)
    _check(bench, peers | {n: job for (n, r), job in ours.items() if r == 0}, options.dtype)
    memory = {r: bench.peak_bytes(r) for r in options.degrees}
    variants = peers | {f"{n}, r={r}": job for (n, r), job in ours.items()}
    with_pipeline = pipelined(model, batch, device, sorted({0, max(options.degrees)}))
    variants |= {f"pipeline, r={r}": job for r, job in with_pipeline.items()}
    seconds = measure_rounds(
        {n: bench.repeated(n, job) for n, job in variants.items()},
        options.rounds,
        options.seed,
        turn_s=TURN_S,
        budget_s=options.seconds_per_cell * len(variants),
    )
    item = PRECISIONS[options.dtype].dtype.itemsize
    parts = {r: forward_parts(model, r, batch, item) for r in options.degrees}
    cells = [
        Cell(
            *(name, batch, n),
            [s / (PIPELINED if "pipeline" in n else 1) for s in bench.per_call(n, taken)],
            r=(r := int(n.rpartition("=")[2]) if "r=" in n else 0),
            peer=n in peers,
            arithmetic=arithmetic_ratio(model, r),
            bound_s=bound_s(parts[r], roof),
            bound_parts=by_name(parts[r], roof),
            peak_bytes=memory.get(r),
        )
        for n, taken in seconds.items()
    ]
    print_table(cells)
    return cells


def _check(bench: Bench, variants: Mapping[str, Job], dtype: str) -> None:
    """All of them must give timm's logits at r=0; a fast wrong answer is no competitor."""
    expected = variants["timm"]().float()
    for name, job in variants.items():
        apart = float((job().float() - expected).abs().max() / expected.abs().max())
        if not apart <= TOLERANCE[dtype]:
            sys.exit(f"{name}: logits are off by {apart:.1e} of the largest one")


def _machine(device: torch.device) -> str:
    """The device in words."""
    if device.type != "cuda":
        return f"{device}, {torch.get_num_threads()} threads"
    properties = torch.cuda.get_device_properties(device)
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    return f"{properties.name}, {properties.multi_processor_count} multiprocessors, {memory}"


def _record(
    device: torch.device,
    roof: Device,
    options: argparse.Namespace,
    cells: list[Cell],
    switches: list[dict[str, Any]],
) -> str:
    """All of it as one line of JSON."""
    about = {"device": _machine(device), "dtype": options.dtype, "torch": str(torch.__version__)}
    rows = [cell.as_row() for cell in cells]
    return json.dumps(
        {"benchmark": "engines_gpu", **about, "roof": vars(roof), "rows": rows}
        | {"switches": switches}
    )


if __name__ == "__main__":
    main()
