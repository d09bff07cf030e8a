"""What the server itself costs: the whole way of a request, with a model that answers at once.

    uv pip install -c constraints.txt -e '.[peers]'     LitServe and Ray Serve, if wanted
    python benchmarks/overhead.py
    … --rounds 9 --seconds 3 --connections 1 64 --batch-ms 20
    … --baseline ../other-checkout          ours as it is there, beside ours as it is here

Every server is a process of its own behind a real socket: ours around an engine that returns
constant scores, beside FastAPI, LitServe and Ray Serve with the same handler (`overhead_handler`).
Two bodies: `prepared`, a few hundred bytes that stand for pixels which need no decoding, and
`photo`, a JPEG of 20 kB that all of them decode with the same code. LitServe takes no raw bodies,
so its requests carry the image as base64 in JSON. With `--batch-ms` our engine sleeps so long per
batch, as if the model ran elsewhere.

Requests/s and latency are those of a closed loop; the client's share of one core stands beside
them. CPU is that of the server's main thread, hence of its event loop, per request; it depends less
than the rest on who else uses the machine. Rounds are interleaved and ratios are taken within a
round; medians and quartiles. Prints Markdown tables and ends with one JSON line.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.overhead_client import closed_loop, json_request, raw_request
from benchmarks.overhead_servers import missing
from benchmarks.photographs import resized_cat
from server.served_process import MeasurementError
from server.serving import bind
from tocom_core.throughput import Spread

HERE = Path(__file__).parents[1]
READY_WITHIN_S = 240.0
GONE_WITHIN_S = 20.0
WARM_UP_S = 1.0
BODIES = {"prepared": resized_cat(8, quality=50), "photo": resized_cat(451, quality=75)}
FIGURES = ("requests_per_s", "p50_ms", "p99_ms", "cpu_ms", "client_share")
PEERS = ("FastAPI", "LitServe", "LitServe, a worker per core", "Ray Serve")
TIMES_LITSERVE, MOST_ADDED_MS = 2.0, 1.0
"""What is asked for: of requests/s at the most connections, and of the median at one."""


@dataclass(frozen=True)
class Target:
    """A server under test; `name` says it in the table, `kind` which one it is."""

    name: str
    kind: str
    port: int
    process: "subprocess.Popen[bytes]"

    def request(self, body: bytes) -> bytes:
        """The bytes of one request; LitServe takes no raw bodies."""
        return json_request(body) if self.kind.startswith("LitServe") else raw_request(body)

    def cpu_s(self) -> float:
        """Seconds that its main thread has run; NaN if that is unknown, or not where it works."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/schedstat")
        if self.kind not in ("ours", "FastAPI") or not path.is_file():
            return math.nan
        return int(path.read_text().split()[0]) / 1e9


@dataclass
class Cell:
    """One server under one load: its figures, round by round."""

    server: str
    body: str
    connections: int
    rounds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FIGURES})


def main() -> None:
    """Start the servers, load them in turns, report."""
    options = _parse()
    with ExitStack() as stack:
        started = [stack.enter_context(server) for server in _servers(options)]
        targets = [target for target in started if is_ready(target)]
        cells = _measure(targets, options)
    _report(cells)
    compared = _compare(cells)
    sizes = {name: len(body) for name, body in BODIES.items()}
    run = {"rounds": options.rounds, "batch_ms": options.batch_ms, "bytes": sizes}
    rows = [_row(cell) for cell in cells]
    print("\n" + json.dumps({"benchmark": "overhead", **run, "compared": compared, "rows": rows}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each load in each round")
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--batch-ms", type=float, default=0, help="our engine's sleep per batch")
    parser.add_argument("--baseline", type=Path, help="another checkout to compare with")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="beside ours")
    parser.add_argument("--seed", type=int, default=0, help="decides the order within the rounds")
    return parser.parse_args()


def _servers(options: argparse.Namespace) -> Iterator[Any]:
    """All servers that can be run here, not started yet."""
    yield running("ours", "ours", HERE, options.batch_ms)
    if options.baseline:
        yield running("ours, baseline", "ours", options.baseline, options.batch_ms)
    for kind in options.peers:
        if reason := missing(kind):
            print(f"without {kind}: {reason}", file=sys.stderr)
        else:
            yield running(kind, kind, HERE, 0.0)


@contextmanager
def running(name: str, kind: str, checkout: Path, batch_ms: float) -> Iterator[Target]:
    """A server on a free port, in a process group of its own that ends with the block."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    script = [str(HERE / "benchmarks/overhead_servers.py"), kind, str(port), str(batch_ms)]
    path = os.pathsep.join([str(checkout.resolve()), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(
        [sys.executable, *script], env=environment, process_group=0, stdout=subprocess.DEVNULL
    )
    try:
        yield Target(name, kind, port, process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # LitServe has workers
        try:
            process.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_ready(target: Target) -> bool:
    """Wait until it answers; a peer that does not start here is left out.

    Raises:
        MeasurementError: ours does not start.
    """
    give_up = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < give_up and target.process.poll() is None:
        try:
            load = closed_loop(target.port, [target.request(BODIES["prepared"])], 1, 0.05)
        except OSError:
            load = None
        if load and load.latencies_s:
            return True
        time.sleep(0.5)
    if target.kind == "ours":
        raise MeasurementError(f"{target.name} did not answer within {READY_WITHIN_S:g} s")
    print(f"without {target.name}: it did not start", file=sys.stderr)
    return False


def _measure(targets: Sequence[Target], options: argparse.Namespace) -> list[Cell]:
    """Every round gives every server a turn under every load, in an order of its own."""
    loads = [(body, count) for body in BODIES for count in options.connections]
    cells = {(t, load): Cell(t.name, *load) for load in loads for t in targets}
    generator = random.Random(options.seed)
    for target in targets:
        _load(target, "photo", max(options.connections), WARM_UP_S)
    for _ in tqdm(range(options.rounds), unit="round", leave=False):
        order = list(cells)
        generator.shuffle(order)
        for target, (body, connections) in order:
            figures = _load(target, body, connections, options.seconds)
            for name, value in figures.items():
                cells[target, (body, connections)].rounds[name].append(value)
    return list(cells.values())


def _load(target: Target, body: str, connections: int, seconds: float) -> dict[str, float]:
    """Load one server for a while; a refusal would make it look fast, so there may be none."""
    before = target.cpu_s()
    load = closed_loop(target.port, [target.request(BODIES[body])], connections, seconds)
    cpu_s = target.cpu_s() - before
    if load.failures or len(load.latencies_s) < 2:
        seen = load.failures[0][-300:] if load.failures else b"next to no answer"
        raise MeasurementError(f"{target.name}: {len(load.failures)} failures, {seen!r}")
    percentiles = statistics.quantiles(load.latencies_s, n=100)
    count = len(load.latencies_s)
    latency_ms = 1e3 * percentiles[49], 1e3 * percentiles[98]
    values = (count / load.taken_s, *latency_ms, 1e3 * cpu_s / count, load.cpu_s / load.taken_s)
    return dict(zip(FIGURES, values, strict=True))


def _report(cells: Sequence[Cell]) -> None:
    figures = "requests/s | p50 ms | p99 ms | event loop's CPU ms | client's share"
    print(f"| body | connections | server | {figures} |")
    print("|---" * 8 + "|")
    for cell in cells:
        spreads = [Spread.of(values) for values in cell.rounds.values()]
        shown = ["–" if math.isnan(s.median) else _shown(s) for s in spreads]
        print("| " + " | ".join([cell.body, str(cell.connections), cell.server, *shown]) + " |")


def _compare(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What is asked for, beside what was found: ratios and differences within the rounds."""
    found = {(cell.server, cell.body, cell.connections): cell.rounds for cell in cells}
    counts = sorted({cell.connections for cell in cells})
    compared = []
    for body in BODIES:
        for kind in PEERS[1:]:
            if (kind, body, counts[-1]) in found:
                pair = (found[name, body, counts[-1]]["requests_per_s"] for name in ("ours", kind))
                spread = Spread.of([a / b for a, b in zip(*pair, strict=True)])
                what = f"requests/s, times {kind} at {counts[-1]}"
                held = spread.median >= TIMES_LITSERVE
                compared.append(_comparison(body, what, spread, f">= {TIMES_LITSERVE:g}", held))
        if ("FastAPI", body, 1) in found:
            pair = (found[name, body, 1]["p50_ms"] for name in ("ours", "FastAPI"))
            spread = Spread.of([a - b for a, b in zip(*pair, strict=True)])
            held = spread.median <= MOST_ADDED_MS
            what = "median added to FastAPI at 1, ms"
            compared.append(_comparison(body, what, spread, f"<= {MOST_ADDED_MS:g}", held))
    print("\n| body | compared | found | asked | held |")
    print("|---" * 5 + "|")
    for row in compared:
        shown = _shown(Spread(*row["found"]))
        answer = "yes" if row["held"] else "no"
        print(f"| {row['body']} | {row['compared']} | {shown} | {row['asked']} | {answer} |")
    return compared


def _comparison(body: str, what: str, spread: Spread, asked: str, held: bool) -> dict[str, Any]:
    found = spread.as_list()
    return {"body": body, "compared": what, "found": found, "asked": asked, "held": held}


def _shown(spread: Spread) -> str:
    """Three digits are more than this machine keeps."""
    median, low, high = (f"{value:#.3g}".rstrip(".") for value in spread.as_list())
    return f"{median} ({low}–{high})"


def _row(cell: Cell) -> dict[str, Any]:
    figures = {name: Spread.of(values).as_list() for name, values in cell.rounds.items()}
    known = {name: None if math.isnan(value[0]) else value for name, value in figures.items()}
    return {"server": cell.server, "body": cell.body, "connections": cell.connections} | known


if __name__ == "__main__":
    main()
