"""A profile for people: a table of its degrees, and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.operating_table import OperatingTable
from tocom_core.latency_profile import LatencyProfile
from tocom_core.operating_point import OperatingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def as_markdown(profile: LatencyProfile, max_batch_s: float) -> str:
    """One line per degree.

    Args:
        profile: what was measured.
        max_batch_s: longest time that an efficient batch may take, as when it is served.
    """
    points = OperatingTable(profile, max_batch_s=max_batch_s).points()
    sizes = batch_sizes_of(profile)
    seconds = {(m.r, m.batch): m.seconds for m in profile.measurements}
    measured = {r: accuracy.value for r, accuracy in profile.measured_accuracy().items()}
    header = ["r", "accuracy measured", "expected", *(f"ms at {size}" for size in sizes)]
    header += ["images/s (batch)", "× r=0", "pays"]
    lines = [header, ["---"] * len(header)]
    for point in points:
        cells = [str(point.r), _percent(measured.get(point.r)), _percent(point.expected_accuracy)]
        cells += [f"{1000 * s:.1f}" if (s := seconds.get((point.r, b))) else "" for b in sizes]
        cells.append(f"{point.images_per_s:.1f} ({point.batch_size})")
        cells += [f"{point.relative_throughput:.2f}", "yes" if point.pays else "no"]
        lines.append(cells)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{_head(profile)}\n\n{table}"


def batch_sizes_of(profile: LatencyProfile) -> list[int]:
    """The batch sizes that were measured, ascending."""
    return sorted({m.batch for m in profile.measurements})


def plot_profile(path: Path, profile: LatencyProfile, max_batch_s: float, title: str) -> None:
    """Milliseconds per image by degree for each batch size; beside it accuracy by throughput.

    Needs matplotlib, which the extra `plots` installs.
    """
    from matplotlib import pyplot

    points = OperatingTable(profile, max_batch_s=max_batch_s).points()
    known = [point for point in points if point.expected_accuracy is not None]
    figure, axes = pyplot.subplots(1, 1 + bool(known), figsize=(6.5 * (1 + bool(known)), 4.5))
    left = axes[0] if known else axes
    for size in batch_sizes_of(profile):
        line = [m for m in profile.measurements if m.batch == size]
        each = [1000 * m.seconds / size for m in line]
        left.errorbar(
            [m.r for m in line],
            each,
            [ms * m.spread for ms, m in zip(each, line, strict=True)],
            marker=".",
            capsize=2,
            label=f"batch of {size}",
        )
    left.set(title=title, xlabel="r", ylabel="ms per image")
    left.set_ylim(bottom=0)
    left.legend()
    left.grid(alpha=0.3)
    if known:
        _plot_accuracy(axes[1], known)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _plot_accuracy(axis: "Axes", points: Sequence[OperatingPoint]) -> None:
    for pays, marker in ((True, "o"), (False, "x")):
        shown = [point for point in points if point.pays == pays]
        accuracy = [100 * (point.expected_accuracy or 0) for point in shown]
        label = "pays" if pays else "does not pay"
        axis.plot([p.images_per_s for p in shown], accuracy, marker, label=label)
    for point in points:
        place = point.images_per_s, 100 * (point.expected_accuracy or 0)
        axis.annotate(str(point.r), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel="images/s at the efficient batch", ylabel="expected accuracy, %")
    axis.legend()
    axis.grid(alpha=0.3)


def _head(profile: LatencyProfile) -> str:
    device = ", ".join(f"{name} {value}" for name, value in profile.device.items())
    runs = [m.runs for m in profile.measurements]
    spread = sorted(m.spread for m in profile.measurements)[len(runs) // 2]
    told = f"Medians of {min(runs)} to {max(runs)} runs; they differ by {spread:.0%} (median cell)."
    sources = sorted({(a.source, a.images) for a in profile.accuracies})
    known = "; ".join(f"{source} on {images} images" for source, images in sources)
    accuracy = f" Expected accuracy: {known}." if known else ""
    return f"{device}. {told}{accuracy}"


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.1%}"
