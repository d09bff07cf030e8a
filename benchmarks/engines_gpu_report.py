"""What `engines_gpu` says of its measurements."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.interleaved import ratios
from tocom_core.throughput import Spread

SLOWER = 1.02
"""A degree is called slower than a lower one beyond this ratio of medians."""


@dataclass(frozen=True)
class Cell:
    """One variant of one model at one batch size.

    Attributes:
        seconds: per batch, in each round.
        r: its degree; 0 for peers.
        peer: whether it is somebody else's.
        arithmetic: how many times less arithmetic than r=0.
        bound_s: the least that a batch can take, by the roofline.
        bound_parts: the same by part.
        peak_bytes: memory beside weights and input; None where it is not known.
    """

    model: str
    batch: int
    variant: str
    seconds: list[float]
    r: int
    peer: bool
    arithmetic: float
    bound_s: float
    bound_parts: dict[str, float]
    peak_bytes: int | None

    @property
    def path(self) -> str:
        """The variant without its degree."""
        return self.variant.rpartition(", r=")[0] or self.variant

    @property
    def median_s(self) -> float:
        """Median seconds per batch."""
        return statistics.median(self.seconds)

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        about = {"model": self.model, "batch": self.batch, "variant": self.variant, "r": self.r}
        rate = Spread.of([self.batch / value for value in self.seconds])
        return about | {
            "images_per_s": vars(rate),
            "arithmetic": self.arithmetic,
            "bound_ms": 1000 * self.bound_s,
            "bound_parts_ms": {name: 1000 * s for name, s in self.bound_parts.items()},
            "share_of_bound": self.bound_s / self.median_s,
            "peak_bytes": self.peak_bytes,
        }


def print_table(cells: Sequence[Cell]) -> None:
    """One model and batch size: each variant beside the best peer and beside its own r=0."""
    peers = [cell for cell in cells if cell.peer]
    best = min(peers, key=lambda cell: cell.median_s)
    first = cells[0]
    print(f"\n{first.model}, batch {first.batch}; best peer: {best.variant}\n")
    header = "variant | images/s | × best peer | arithmetic | share of it | ms | bound ms | of it"
    print(f"| {header} | peak MB |")
    print("|---" * 9 + "|")
    for cell in cells:
        print("| " + " | ".join(_row(cell, best, cells)) + " |", flush=True)
    for path, slow in slower_degrees(cells).items():
        print(f"\n{path}: slower than a lower degree: {', '.join(f'r={r}' for r in slow)}")
    slowest = max((cell for cell in cells if not cell.peer), key=lambda cell: cell.r)
    parts = sorted(slowest.bound_parts.items(), key=lambda part: -part[1])
    told = ", ".join(f"{name} {1000 * seconds:.3f} ms" for name, seconds in parts)
    print(f"\nThe bound at r={slowest.r}: {told}")


def share_of_arithmetic(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """The gain over the same path at r=0, as a share of what arithmetic promises."""
    own = [c for c in cells if c.path == cell.path and c.r == 0]
    if cell.r == 0 or not own:
        return None
    return Spread.of(ratios(own[0].seconds, cell.seconds)).median / cell.arithmetic


def slower_degrees(cells: Sequence[Cell]) -> dict[str, list[int]]:
    """Per path the degrees that take longer than a lower one, and so are of no use here."""
    found: dict[str, list[int]] = {}
    for path in {cell.path: None for cell in cells if not cell.peer}:
        fastest = float("inf")
        for cell in sorted((c for c in cells if c.path == path), key=lambda cell: cell.r):
            if cell.median_s > SLOWER * fastest:
                found.setdefault(path, []).append(cell.r)
            fastest = min(fastest, cell.median_s)
    return found


def print_switches(model: str, taken: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Median and 99th percentile of the switches; returns them for JSON."""
    row: dict[str, Any] = {"model": model, "switches": len(taken)}
    for name, values in zip(("returned", "done"), zip(*taken, strict=True), strict=True):
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        row |= {f"{name}_p50_us": 1e6 * cuts[49], f"{name}_p99_us": 1e6 * cuts[98]}
    print(
        f"\n{model}: {len(taken)} random switches, µs: the call returns after "
        f"{row['returned_p50_us']:.0f} (p99 {row['returned_p99_us']:.0f}), the device is done "
        f"after {row['done_p50_us']:.0f} (p99 {row['done_p99_us']:.0f})"
    )
    return row


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Gain over the same path's r=0 against the degree, beside the arithmetic."""
    try:
        import matplotlib
    except ImportError:
        print(f"no {path}: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(cell.model for cell in cells))
    figure, axes = pyplot.subplots(
        1, len(models), figsize=(5 * len(models), 4), squeeze=False, layout="constrained"
    )
    for axis, model in zip(axes[0], models, strict=True):
        mine = [cell for cell in cells if cell.model == model and not cell.peer]
        best_path = "graphs" if any(cell.path == "graphs" for cell in mine) else "eager"
        lines = sorted((c for c in mine if c.path == best_path), key=lambda cell: cell.r)
        for batch in sorted({cell.batch for cell in lines}):
            line = [cell for cell in lines if cell.batch == batch]
            gains = [line[0].median_s / cell.median_s for cell in line]
            axis.plot([cell.r for cell in line], gains, marker="o", label=f"batch {batch}")
        promised = {cell.r: cell.arithmetic for cell in lines}
        axis.plot(*zip(*sorted(promised.items()), strict=True), "k--", label="arithmetic")
        axis.set(title=f"{model}, {best_path}", xlabel="r", ylabel="× r=0")
        axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _row(cell: Cell, best: Cell, cells: Sequence[Cell]) -> list[str]:
    rate = Spread.of([cell.batch / value for value in cell.seconds])
    gain = Spread.of(ratios(best.seconds, cell.seconds))
    share = share_of_arithmetic(cell, cells)
    return [
        cell.variant,
        f"{rate.median:,.0f} ({rate.low:,.0f}–{rate.high:,.0f})",
        str(gain),
        f"{cell.arithmetic:.2f} ×" if cell.r else "",
        "" if share is None else f"{share:.0%}",
        f"{1000 * cell.median_s:.3f}",
        f"{1000 * cell.bound_s:.3f}",
        f"{cell.bound_s / cell.median_s:.0%}",
        "" if cell.peak_bytes is None else f"{cell.peak_bytes / 2**20:.0f}",
    ]
