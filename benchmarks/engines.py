"""The engine beside its peers on a CPU: timm, torch.compile, ONNX Runtime, OpenVINO.

    TOCOM_DATA=… OMP_WAIT_POLICY=passive python benchmarks/engines.py --threads 2
    … --model default --batch-sizes 1 8 --degrees 0 16 --seconds 30 --plot engines.png

All compute the logits of the same normalised images with the same weights, in float32; the peers
only know r=0. Ours are PyTorch, PyTorch compiled and ONNX Runtime, in lanes as the server runs
them, and PyTorch in bfloat16. A peer that is not installed is left out and named (`pip install
'tocom-serve[engine-peers,onnx]'`). Every variant has a turn in each round, and all ratios are taken
round by round: median and quartiles. Prints a Markdown table per batch size, what was asked for and
what was reached, checks that all variants agree, and ends with one JSON line. Takes 5 to 8 minutes.

On a machine that others use, `--threads 1 --cpu-time` compares the processor time that each takes.
"""

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine_peers import Classify, make_peers
from benchmarks.engines_report import Ours, as_rows, as_table, plot_rows, verdicts
from benchmarks.interleaved import default_models, measure_rounds
from server.backends import Backend, Compiled, Eager, Onnx, run_part
from server.lanes import Lanes, choose_lanes
from tocom_core import CompressedViT, load_model
from tocom_core.onnx_backend import unsupported_onnx
from tocom_core.schedule import arithmetic_ratio

TURN_S = 0.1
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference of a logit at r=0, relative to the largest one."""


def main() -> None:
    """Measure all models asked for."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    if os.environ.get("OMP_WAIT_POLICY") != "passive":
        print("without OMP_WAIT_POLICY=passive PyTorch's threads spin into others' turns")
    rows = [row for path in options.model or default_models()[-1:] for row in _model(path, options)]
    machine = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    machine |= {"clock": "processor" if options.cpu_time else "wall"}
    machine |= {"omp": os.environ.get("OMP_WAIT_POLICY", ""), "load": os.getloadavg()[0]}
    if options.plot is not None:
        plot_rows(options.plot, rows)
    print("\n" + json.dumps({"benchmark": "engines", **machine, "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", help="default: ViT-Tiny of TOCOM_DATA, or 'default'")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--degrees", nargs="+", type=int, default=[0, 4, 8, 12, 16])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--backends", nargs="+", default=["eager", "compiled", "onnx", "bfloat16"])
    parser.add_argument("--peers", nargs="+", help="only these beside timm")
    parser.add_argument("--cpu-time", action="store_true", help="of the processor; with 1 thread")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=75, help="per batch size: fewer rounds")
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--lanes", type=int, default=0, help="0: as the server chooses")
    parser.add_argument("--plot", type=Path, help="draw the ratios here (needs matplotlib)")
    return parser.parse_args()


def _model(path: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One model: its tables, its rows."""
    loaded = load_model(path, architecture=options.architecture or _architecture(path))
    model = CompressedViT(loaded.vit).eval()
    threads = torch.get_num_threads()
    lanes = Lanes(choose_lanes(options.lanes, threads, "cpu"), threads)
    backends = _backends(model, lanes, threads, options.backends)
    limits = {r: arithmetic_ratio(model, r) for r in options.degrees}
    rows = []
    for batch in options.batch_sizes:
        images = torch.randn(batch, *loaded.input_size)
        peers = make_peers(model.vit, images, threads, options.peers)
        ours = _ours(backends, lanes, options.degrees)
        _check(images, peers, ours)
        variants = peers | {f"ours, {name}, r={r}": job for (name, r), job in ours.items()}
        seconds = measure_rounds(
            {name: partial(job, images) for name, job in variants.items()},
            options.rounds,
            options.seed,
            turn_s=TURN_S,
            budget_s=options.seconds,
            clock=time.process_time if options.cpu_time else time.perf_counter,
        )
        made = as_rows(loaded.name, batch, seconds, list(peers), limits)
        print(as_table(made), *verdicts(made), sep="\n", flush=True)
        rows += made
    return rows


def _architecture(path: str) -> str | None:
    """The shared ViT-Tiny file does not say what it is, but its name does."""
    return "vit_tiny_patch16_224" if Path(path).name.startswith("vit_tiny_patch16_224") else None


def _backends(
    model: CompressedViT, lanes: Lanes, threads: int, names: list[str]
) -> dict[str, Backend]:
    """Our backends by name."""
    made: dict[str, Backend] = {}
    if "eager" in names:
        made["eager"] = Eager(model)
    if "compiled" in names:
        made["compiled"] = Compiled(model)
    if "bfloat16" in names:
        made["bfloat16"] = Eager(copy.deepcopy(model).bfloat16())
    if "onnx" in names and (reason := unsupported_onnx(model)) is not None:
        print(f"WITHOUT our ONNX backend: {reason}", file=sys.stderr)
    elif "onnx" in names:
        made["onnx"] = Onnx(model, threads, lanes.count)
    return made


def _ours(backends: Mapping[str, Backend], lanes: Lanes, degrees: list[int]) -> Ours:
    """Our backends at each degree, as the server runs them; some only at the ends."""

    def classify(images: Tensor, name: str, r: int) -> Tensor:
        whole = lanes.keeps_whole(len(images))
        job = partial(run_part, classify=partial(backends[name].logits, r=r, whole=whole))
        return lanes.run(job, images.bfloat16() if name == "bfloat16" else images)

    ends = {min(degrees), max(degrees)}
    return {
        (name, r): partial(classify, name=name, r=r)
        for name in backends
        for r in degrees
        if name == "onnx" or r in ends
    }


def _check(images: Tensor, peers: Mapping[str, Classify], ours: Ours) -> None:
    """All of them must give timm's logits; a fast wrong answer is no competitor."""
    expected = peers["timm"](images)
    plain = {(name, 0): job for name, job in peers.items()} | dict(ours)
    for (name, r), job in plain.items():
        if r == 0:
            apart = float((job(images).float() - expected).abs().max() / expected.abs().max())
            if not apart <= TOLERANCES.get(name, TOLERANCES["float32"]):
                sys.exit(f"{name}: logits are off by {apart:.1e} of the largest one")


if __name__ == "__main__":
    main()
