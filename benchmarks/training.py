"""What teacher and bank add to a training step, beside what their arithmetic costs.

    python benchmarks/training.py                      ViT-Tiny (from TOCOM_DATA), batch 32
    python benchmarks/training.py --amp --threads 1    as on a small machine
    python benchmarks/training.py --memory             and the memory of a run of 200 steps

The peer is a plain timm forward and backward pass of the same model on the same batch, all weights
learning, with the faster of PyTorch's attention kernels; PyTorch's flop counter counts both sides.
"over arithmetic" is the time ratio divided by the flop ratio: 1.00 means that the distillation step
costs exactly what its arithmetic costs.  Prints a Markdown table and one final JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.interleaved import default_models, measure_rounds, ratios
from tocom_core import Bank, CompressedViT, LoadedModel, load_model
from tocom_core.attention import FUSED_KERNELS, learning_kernels
from tocom_core.bank_header import BankHeader
from tocom_core.self_distillation import CompensatedViT, SelfDistillation, soft_target_divergence
from tocom_core.throughput import Spread

PAIRS = ((0, 8), (0, 16), (8, 0), (16, 8))
Step = Callable[[], object]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", help="default: ViT-Tiny from TOCOM_DATA, else the embedded one")
    parser.add_argument("--architecture", help="of a model file that does not say it")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--amp", action="store_true", help="bfloat16 on both sides")
    parser.add_argument("--memory", action="store_true", help="also a real run of 200 steps")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.model = options.model or default_models()[-1]
    record: dict[str, Any] = {
        "benchmark": "training",
        "threads": torch.get_num_threads(),
        "amp": options.amp,
        "rows": _measure(options),
    }
    if options.memory:
        record["peak_gib"] = _peak_memory_gib(options)
        print(f"\n200 steps of `tocom train`: {record['peak_gib']:.2f} GiB at most in one process")
    line = json.dumps(record)
    if options.output:
        options.output.write_text(line + "\n")
    print(line)


def _measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    loaded = load_model(options.model, architecture=options.architecture)
    images = torch.randint(
        0, 256, (options.batch_size, *loaded.input_size), dtype=torch.uint8, device=options.device
    )
    plain = _plain_steps(loaded, images, options)
    tocom = {f"{m} → {n}": _tocom_step(loaded, images, (m, n), options) for m, n in PAIRS}
    steps = {**plain, **tocom}
    flops = {name: _flops(step) for name, step in steps.items()}
    seconds = measure_rounds(steps, options.rounds)
    peer = min(plain, key=lambda name: sum(seconds[name]))
    print(f"\n{loaded.name}, batch {options.batch_size}; peer: {peer}\n")
    print("| step | steps/s | time × plain timm | arithmetic × plain timm | over arithmetic |")
    print("|---|---|---|---|---|")
    return [_row(name, seconds, flops, peer) for name in steps]


def _row(
    name: str, seconds: dict[str, list[float]], flops: dict[str, int], peer: str
) -> dict[str, Any]:
    taken = ratios(seconds[name], seconds[peer])
    arithmetic = flops[name] / flops[peer]
    over = Spread.of([ratio / arithmetic for ratio in taken])
    rate = 1 / Spread.of(seconds[name]).median
    print(f"| {name} | {rate:.2f} | {Spread.of(taken)} | {arithmetic:.2f} | {over} |")
    return {
        "step": name,
        "steps_per_s": rate,
        "time_ratio": vars(Spread.of(taken)),
        "arithmetic_ratio": arithmetic,
        "over_arithmetic": vars(over),
    }


def _plain_steps(
    loaded: LoadedModel, images: torch.Tensor, options: argparse.Namespace
) -> dict[str, Step]:
    """Supervised steps of a plain timm model, with either attention kernel."""
    vit = load_model(options.model, architecture=options.architecture).vit.to(options.device)
    labels = torch.zeros(len(images), dtype=torch.long, device=options.device)

    def step(kernels: list[SDPBackend]) -> Step:
        def run() -> None:
            with sdpa_kernel(kernels), _autocast(options):
                logits = vit(loaded.normalize(images))
            vit.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            _synchronize(options.device)

        return run

    return {"plain timm, fused": step(FUSED_KERNELS), "plain timm, math": step([SDPBackend.MATH])}


def _tocom_step(
    loaded: LoadedModel,
    images: torch.Tensor,
    pair: tuple[int, int],
    options: argparse.Namespace,
) -> Step:
    """What ``tocom train`` does with one batch, for one fixed pair of degrees."""
    model = CompressedViT(loaded.vit.to(options.device)).eval()
    bank = Bank(BankHeader(loaded.architecture, model.embed_dim, model.depth, 16, 2))
    bank.reset_parameters()
    bank.to(options.device)
    student = CompensatedViT(model, bank)
    objective = SelfDistillation(student, loaded.normalize, lambda: pair, soft_target_divergence())
    labels = torch.zeros(len(images), device=options.device)
    kernels = learning_kernels(torch.device(options.device).type)

    def run() -> None:
        with sdpa_kernel(kernels), _autocast(options):
            loss, _ = objective(0, images, labels)
        bank.zero_grad(set_to_none=True)
        loss.backward()
        _synchronize(options.device)

    return run


def _autocast(options: argparse.Namespace) -> torch.autocast:
    device = torch.device(options.device).type
    return torch.autocast(device, torch.bfloat16, enabled=options.amp)


def _flops(step: Step) -> int:
    """Forward and backward, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak_memory_gib(options: argparse.Namespace) -> float:
    """The largest resident size among the processes of a run of 200 steps on real images."""
    data = os.environ.get("TOCOM_DATA")
    if data is None:
        raise SystemExit("--memory trains on real images: set TOCOM_DATA to their folder")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tocom_core.distillation", "--model", options.model]
        command += ["--data", str(Path(data) / "imagenet_one_per_class"), "--output", folder]
        command += ["--epochs", str(200 / ((1000 - 64) // options.batch_size))]
        command += ["--val-images", "64", "--batch-size", str(options.batch_size // 2)]
        command += ["--device", options.device, "--threads", str(options.threads)]
        command += ["--amp"] if options.amp else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
