"""The engine beside its peers on a CPU: timm, torch.compile, ONNX Runtime, OpenVINO.

    TOCOM_DATA=… OMP_WAIT_POLICY=passive python benchmarks/engines.py --threads 2
    … --model default --batch-sizes 1 8 --degrees 0 16 --seconds-per-cell 20

All compute the logits of the same normalised images with the same weights, in float32; the peers
only know r=0. Ours are PyTorch and ONNX Runtime, in lanes as the server runs them. A peer that is
not installed is left out and named (`pip install onnxscript openvino`). Every variant has a turn in
each round; "× best peer" is taken round by round. Prints a Markdown table per batch size, checks
that all variants agree, and ends with one JSON line.
"""

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.interleaved import default_models, measure_rounds, ratios
from server.backends import Backend, Eager, Onnx, run_part
from server.lanes import Lanes, choose_lanes
from tocom_core import CompressedViT, load_model
from tocom_core.onnx_backend import unsupported_onnx
from tocom_core.schedule import arithmetic_ratio
from tocom_core.throughput import Spread

TURN_S = 0.1
TOLERANCE = 1e-4
"""Largest difference of a logit at r=0, relative to the largest one."""

Classify = Callable[[Tensor], Tensor]


def main() -> None:
    """Measure all models asked for."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [row for path in options.model or default_models() for row in _measure(path, options)]
    machine = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    machine["omp"] = os.environ.get("OMP_WAIT_POLICY", "")
    print("\n" + json.dumps({"benchmark": "engines", **machine, "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", help="models; default: the embedded one and ViT-Tiny")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--degrees", nargs="+", type=int, default=[0, 4, 8, 12, 16])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds-per-cell", type=float, default=10, help="fewer rounds beyond it")
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--lanes", type=int, default=0, help="0: as the server chooses")
    return parser.parse_args()


def _measure(path: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One model: its tables, its rows."""
    loaded = load_model(path, architecture=options.architecture)
    model = CompressedViT(loaded.vit).eval()
    threads = torch.get_num_threads()
    lanes = Lanes(choose_lanes(options.lanes, threads, "cpu"), threads)
    rows = []
    for batch in options.batch_sizes:
        images = torch.randn(batch, *loaded.input_size)
        peers = _peers(model.vit, images, threads)
        ours = _ours(model, lanes, threads, options.degrees)
        _check(images, peers | {name: job for (name, r), job in ours.items() if r == 0})
        variants = peers | {f"{name}, r={r}": job for (name, r), job in ours.items()}
        seconds = measure_rounds(
            {name: partial(job, images) for name, job in variants.items()},
            options.rounds,
            options.seed,
            turn_s=TURN_S,
            budget_s=options.seconds_per_cell * len(variants),
        )
        rows += _report(loaded.name, model, batch, seconds, list(peers))
    return rows


def _ours(
    model: CompressedViT, lanes: Lanes, threads: int, degrees: list[int]
) -> dict[tuple[str, int], Classify]:
    """Our backends at each degree, as the server runs them."""
    backends: list[Backend] = [Eager(model)]
    if (reason := unsupported_onnx(model)) is None:
        backends.append(Onnx(model, threads, lanes.count))
    else:
        print(f"without our ONNX backend: {reason}", file=sys.stderr)

    def classify(images: Tensor, backend: Backend, r: int) -> Tensor:
        whole = lanes.keeps_whole(len(images))
        job = partial(run_part, classify=partial(backend.logits, r=r, whole=whole))
        return lanes.run(job, images)

    return {
        (f"ours, {backend.name}", r): partial(classify, backend=backend, r=r)
        for backend in backends
        for r in degrees
    }


def _peers(vit: nn.Module, images: Tensor, threads: int) -> dict[str, Classify]:
    """Everybody who is installed, ready to run this batch size."""
    found: dict[str, Classify] = {"timm": partial(run_part, classify=vit)}
    makers = {"torch.compile": _compiled, "ONNX Runtime": _onnx_runtime, "OpenVINO": _openvino}
    for name, make in makers.items():
        try:
            found[name] = make(vit, images, threads)
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return found


def _compiled(vit: nn.Module, images: Tensor, threads: int) -> Classify:
    compiled = torch.compile(vit, dynamic=False)
    return partial(run_part, classify=compiled)


def _onnx_runtime(vit: nn.Module, images: Tensor, threads: int) -> Classify:
    import onnxruntime
    import onnxscript  # type: ignore[import-not-found]  # noqa: F401

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vit.onnx"
        torch.onnx.export(vit, (images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(vit: nn.Module, images: Tensor, threads: int) -> Classify:
    import openvino  # type: ignore[import-not-found]

    model = openvino.convert_model(vit, example_input=images, input=[tuple(images.shape)])
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(model, "CPU", hints)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def _check(images: Tensor, variants: Mapping[str, Classify]) -> None:
    """All of them must give timm's logits; a fast wrong answer is no competitor."""
    expected = variants["timm"](images)
    for name, job in variants.items():
        apart = float((job(images) - expected).abs().max() / expected.abs().max())
        if not apart <= TOLERANCE:
            sys.exit(f"{name}: logits are off by {apart:.1e} of the largest one")


def _report(
    model: str,
    vit: CompressedViT,
    batch: int,
    seconds: Mapping[str, list[float]],
    peers: list[str],
) -> list[dict[str, Any]]:
    """Print one table and return its rows."""
    best = min(peers, key=lambda name: Spread.of(seconds[name]).median)
    print(f"\n{model}, batch {batch}; best peer: {best}\n")
    print("| variant | images/s | × best peer | arithmetic | share of it |")
    print("|---" * 5 + "|")
    rows = []
    for name, taken in seconds.items():
        rate = Spread.of([batch / value for value in taken])
        gain = Spread.of(ratios(seconds[best], taken))
        r = int(name.rpartition("=")[2]) if "r=" in name else 0
        limit = arithmetic_ratio(vit, r) if r else math.nan
        own = seconds.get(f"{name.rpartition(',')[0]}, r=0")
        share = Spread.of(ratios(own, taken)).median / limit if r and own else None
        cells = [name, f"{rate.median:.1f}", f"{gain.median:.2f} ({gain.low:.2f}–{gain.high:.2f})"]
        cells += [f"{limit:.2f} ×", f"{100 * share:.0f} %"] if share else ["", ""]
        print("| " + " | ".join(cells) + " |", flush=True)
        rows.append(
            {"model": model, "batch": batch, "variant": name, "images_per_s": vars(rate)}
            | {"times_best_peer": vars(gain), "share_of_arithmetic": share}
        )
    return rows


if __name__ == "__main__":
    main()
