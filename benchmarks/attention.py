"""Proportional attention in every way there is, beside plain attention, interleaved.

    python benchmarks/attention.py                         the device and its usual precision
    python benchmarks/attention.py --dtype bfloat16 --batch-sizes 1 64 --ways bias channels flex

Queries, keys and values are views of one fused projection, as the model has them. Ratios are to
`bias`, which is what runs unless the setting `attention` says otherwise; "plain" is attention
without sizes, which no way can be expected to beat. `flex` runs on CUDA only. The error is the
largest one against float64. Prints a Markdown table and one final JSON line.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.interleaved import Variant, measure_rounds, ratios
from tocom_core.attention_ways import WAYS, choose_way, weighted_attention
from tocom_core.throughput import Spread

PLAIN = "plain"
TURN_S = 0.02


def main() -> None:
    """Measure all shapes asked for."""
    options = _parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    print("| batch | heads × width | tokens | way | ms (quartiles) | time of bias ÷ its | error |")
    print("|---" * 7 + "|")
    rows = [
        row
        for batch in options.batch_sizes
        for heads in options.heads
        for tokens in options.tokens
        for row in _measure(batch, heads, tokens, options)
    ]
    machine = {"device": options.device, "dtype": options.dtype, "torch": torch.__version__}
    machine["threads"] = torch.get_num_threads()
    record = json.dumps({"benchmark": "attention", **machine, "rows": rows})
    if options.output:
        options.output.write_text(record + "\n")
    print("\n" + record)


def _parse() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--heads", nargs="+", type=int, default=[3, 12], help="3: Tiny, 12: Base")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--tokens", nargs="+", type=int, default=[181, 101, 21])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to PyTorch")
    parser.add_argument("--output", type=Path, help="write the final JSON line there too")
    return parser.parse_args()


@torch.inference_mode()
def _measure(
    batch: int, heads: int, tokens: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One shape: print its lines, return its rows."""
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(options.seed)
    qkv = torch.randn(batch, tokens, 3, heads, options.head_dim).to(options.device, dtype)
    size = torch.randint(1, 9, (batch, tokens, 1)).float().to(options.device)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    ways = [w for w in options.ways if choose_way(qkv.device.type, dtype, qkv.shape[-1], w) == w]
    jobs: dict[str, Callable[[], Tensor]] = {
        way: partial(weighted_attention, way, query, key, value, size) for way in ways
    }
    variants: dict[str, Variant] = {way: partial(_run, job) for way, job in jobs.items()}
    plain = partial(functional.scaled_dot_product_attention, query, key, value)
    variants[PLAIN] = partial(_run, plain)
    seconds = measure_rounds(variants, options.rounds, options.seed, turn_s=TURN_S)
    base = "bias" if "bias" in seconds else PLAIN
    rows = []
    for name, taken in seconds.items():
        spread = Spread.of([1000 * value for value in taken])
        gain = Spread.of(ratios(seconds[base], taken))
        error = _error(jobs[name](), query, key, value, size) if name in jobs else None
        shape = f"{batch} | {heads} × {options.head_dim} | {tokens}"
        off = "" if error is None else f"{error:.1e}"
        print(f"| {shape} | {name} | {_ms(spread)} | {gain} | {off} |", flush=True)
        rows.append(
            {"batch": batch, "heads": heads, "tokens": tokens, "way": name, "error": error}
            | {"ms": vars(spread), "gain": vars(gain)}
        )
    return rows


def _ms(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f}–{spread.high:.3f})"


def _run(job: Variant) -> None:
    out = job()
    if isinstance(out, Tensor) and out.is_cuda:
        torch.cuda.synchronize()


def _error(out: Tensor, query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> float:
    """Largest difference to the same inputs in float64."""
    query, key, value, size = (tensor.cpu().double() for tensor in (query, key, value, size))
    exact = weighted_attention("bias", query, key, value, size)
    return float((out.cpu().double() - exact).abs().max())


if __name__ == "__main__":
    main()
