"""What Ray Serve costs: the same images through Ray's proxy and straight to `tocom serve`.

    python -m benchmarks.ray_serve                         the default model: overhead shows
    TOCOM_DATA=… python -m benchmarks.ray_serve --vit-tiny     a model that has something to compute
    … --variants direct "Ray, 2 × 1 core" --rounds 5 --seconds 10 -- --max-batch-size 16

All have the same cores: one server with all of them, Ray with one replica that has them all, or
with a replica per core. Each variant is started anew for its turn, so that no other one idles
beside it (an idle Ray takes some percent of a core), pinned to --r, warmed up, and then gets a
closed loop of each number of connections, photographs as JPEG. Round after round in an order of
its own; ratios to `direct` are taken within the round; medians and quartiles. The client, a thread
of this process, shares the machine. Ends with one JSON line.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.overhead_client import closed_loop, raw_request
from benchmarks.photographs import photographs
from benchmarks.served import model_flags
from server.served_process import MeasurementError, serve
from tocom_core.throughput import Spread

READY_WITHIN_S = 300.0
WARM_UP_S = 3.0
# Nothing is refused, measured or compared meanwhile: only what requests cost counts.
QUIET = ("--no-shed-late", "--no-idle-profiling", "--live-share=0", "--slo-ms=10000")
DIRECT = "direct"
FIGURES = ("images_per_s", "p50_ms", "p99_ms", "ratio")


def main() -> None:
    """Start, load, compare, report."""
    options = _parse()
    cores = os.cpu_count() or 1
    flags = [*QUIET, *(model_flags(None) if options.vit_tiny else ()), *options.server]
    requests = [raw_request(photo) for photo in photographs(options.images, 200)]
    chosen = {name: _variants(cores)[name] for name in options.variants}
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    generator = random.Random(0)
    for number in range(options.rounds):
        order = list(chosen)
        generator.shuffle(order)
        turns = {}
        for name in order:
            print(f"round {number + 1}: {name}", file=sys.stderr)
            turns[name] = _turn(chosen[name], flags, requests, options)
        for name, by_connections in turns.items():
            for connections, figures in by_connections.items():
                direct = turns.get(DIRECT, {}).get(connections)
                if direct:
                    figures["ratio"] = figures["images_per_s"] / direct["images_per_s"]
                found.setdefault((name, connections), []).append(figures)
    rows = [_row(name, connections, rounds) for (name, connections), rounds in found.items()]
    _report(rows)
    about = {"cores": cores, "model": "vit_tiny" if options.vit_tiny else "default", "r": options.r}
    print("\n" + json.dumps({"benchmark": "ray_serve", **about, "rows": rows}))


def _variants(cores: int) -> dict[str, tuple[Sequence[str], Mapping[str, str]] | None]:
    """Flags and variables of each fleet; None is the server without Ray."""
    one = ("--replicas=1", f"--cpus={cores}")
    each = (f"--replicas={cores}", "--cpus=1")
    fast = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    return {
        DIRECT: None,
        f"Ray, 1 × {cores} cores": (one, {}),
        f"Ray, {cores} × 1 core": (each, {}),
        f"Ray, {cores} × 1 core, throughput optimised": (each, fast),
        f"Ray, {cores} × 1 core, HAProxy": (each, {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
    }


def _parse() -> argparse.Namespace:
    names = list(_variants(os.cpu_count() or 1))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", choices=names, default=names[:3])
    parser.add_argument("--vit-tiny", action="store_true", help="the one in TOCOM_DATA")
    parser.add_argument("--images", help="JPEGs: a folder, a parquet file or hub:owner/name")
    parser.add_argument("--r", type=int, default=0, help="the degree that is pinned")
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each closed loop")
    parser.add_argument("server", nargs="*", help="after --: flags for tocom serve")
    return parser.parse_args()


def _turn(
    fleet: tuple[Sequence[str], Mapping[str, str]] | None,
    flags: Sequence[str],
    requests: Sequence[bytes],
    options: argparse.Namespace,
) -> dict[int, dict[str, float]]:
    """One start of one variant: figures by number of connections."""
    if fleet is None:
        with serve(flags) as server:
            return _measure(server.url, requests, options)
    with _fleet([*fleet[0], *flags], fleet[1]) as url:
        return _measure(url, requests, options)


def _measure(
    url: str, requests: Sequence[bytes], options: argparse.Namespace
) -> dict[int, dict[str, float]]:
    port = int(url.rsplit(":", 1)[1])
    pin = urllib.request.Request(f"{url}/compression?r={options.r}", method="PUT")
    urllib.request.urlopen(pin, timeout=60).close()
    closed_loop(port, requests, max(options.connections), WARM_UP_S)
    return {
        connections: _loop(port, requests, connections, options.seconds)
        for connections in options.connections
    }


def _loop(
    port: int, requests: Sequence[bytes], connections: int, seconds: float
) -> dict[str, float]:
    load = closed_loop(port, requests, connections, seconds)
    if load.failures:
        raise MeasurementError(f"{len(load.failures)} failures, {load.failures[0][-300:]!r}")
    times = statistics.quantiles(load.latencies_s, n=100, method="inclusive")
    rate = len(load.latencies_s) / load.taken_s
    return {"images_per_s": rate, "p50_ms": times[49] * 1000, "p99_ms": times[98] * 1000}


@contextmanager
def _fleet(flags: Sequence[str], variables: Mapping[str, str]) -> Iterator[str]:
    """The URL of `python -m deploy.ray`, for the length of the block.

    Raises:
        MeasurementError: it ended, or was not ready in time; the message holds its log's end.
    """
    # Short, for the paths of Ray's sockets; HOME, because Ray writes there too.
    folder = tempfile.mkdtemp(prefix="tr", dir="/tmp")
    own = {"RAY_TMPDIR": folder, "HOME": folder, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "deploy.ray", "--port=0", "--log-share=0", *flags]
    log = Path(folder) / "fleet.log"
    try:
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**os.environ, **own, **variables}
            )
        try:
            yield _wait_until_ready(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        ready = re.search(r"ready: url=([^\s\"]+)", log.read_text())
        if ready:
            return ready[1]
        time.sleep(0.2)
    raise MeasurementError(f"the fleet was not ready; its log ends:\n{log.read_text()[-3000:]}")


def _row(name: str, connections: int, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    spreads = {
        figure: Spread.of([one[figure] for one in found]).as_list()
        for figure in FIGURES
        if figure in found[0]
    }
    return {"variant": name, "connections": connections, **spreads}


def _report(rows: Sequence[dict[str, Any]]) -> None:
    print("| connections | variant | images/s | p50 ms | p99 ms | ÷ direct |")
    print("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row["connections"]):
        shown = [str(Spread(*row[figure])) if figure in row else "" for figure in FIGURES]
        print(f"| {row['connections']} | {row['variant']} | {' | '.join(shown)} |")


if __name__ == "__main__":
    try:
        main()
    except MeasurementError as error:
        sys.exit(f"no measurement: {error}")
