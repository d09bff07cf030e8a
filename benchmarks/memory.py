"""Does the server's memory grow with the requests it has answered?

    python benchmarks/memory.py
    … --requests 1000000 --plot memory.png

The whole server behind a real socket around an engine that answers at once, 64 connections in a
closed loop, each request a small JPEG that is decoded. Connections are opened anew every few
seconds. Resident memory after 1,000 requests, on the way, and at the end. Ends with one JSON line.
"""

import argparse
import json
import resource
import sys
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from benchmarks.overhead import HERE, is_ready, running
from benchmarks.overhead_client import closed_loop
from benchmarks.overhead_servers import PREPARED_BELOW_BYTES
from benchmarks.photographs import resized_cat
from server.served_process import MeasurementError

FIRST = 1000
ASKED = 1.05
SLICE_S = 2.0


def main() -> None:
    """Load the server, watch its memory, report."""
    options = _parse()
    with ExitStack() as stack:
        server = stack.enter_context(running("ours", "ours", HERE, 0.0))
        is_ready(server)
        seen = _watch(server.port, server.process.pid, server.request(_small_jpeg()), options)
    first, last = seen[0][1], seen[-1][1]
    print("| requests | resident MB |\n|---|---|")
    for count, megabytes in [*seen[:: max(1, len(seen) // 10)], seen[-1]]:
        print(f"| {count} | {megabytes:.1f} |")
    print(f"\nAfter {seen[-1][0]} requests {last / first:.3f} × that after {seen[0][0]}.")
    if options.plot:
        _plot(seen, options.plot)
    held = last / first <= ASKED
    result = {"first_mb": first, "last_mb": last, "ratio": last / first, "asked": ASKED}
    print("\n" + json.dumps({"benchmark": "memory", **result, "held": held, "seen": seen}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--plot", type=Path, help="write a picture")
    return parser.parse_args()


def _small_jpeg() -> bytes:
    """Small, but decoded."""
    photo = resized_cat(64, quality=90)
    assert len(photo) >= PREPARED_BELOW_BYTES
    return photo


def _watch(
    port: int, pid: int, request: bytes, options: argparse.Namespace
) -> list[tuple[int, float]]:
    """Requests so far and megabytes then; the first is at about `FIRST` requests."""
    count, seen = 0, list[tuple[int, float]]()
    with tqdm(total=options.requests, unit="request", leave=False) as progress:
        while count < options.requests:
            load = closed_loop(port, [request], options.connections, SLICE_S if seen else 0.25)
            if load.failures:
                raise MeasurementError(f"a request failed: {load.failures[0][-300:]!r}")
            count += len(load.latencies_s)
            progress.update(len(load.latencies_s))
            if count >= FIRST:
                seen.append((count, _resident_mb(pid)))
    return seen


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def _plot(seen: list[tuple[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*seen, strict=True), marker=".")
    axes.set(
        xlabel="requests answered",
        ylabel="resident MB",
        ylim=(0, 1.2 * max(megabytes for _, megabytes in seen)),
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    try:
        main()
    except MeasurementError as error:
        sys.exit(f"no measurement: {error}")
