"""Served ÷ offline: how much of the engine's own throughput reaches 64 clients over HTTP.

    TOCOM_DATA=… python benchmarks/served.py
    … --r 0 16 --rounds 7 --seconds 8
    … -- --threads 1                        flags for the server and the engine beside it

`tocom serve` with a ViT-Tiny and real JPEG files (`TOCOM_DATA`, or --images and --model): a closed
loop of 64 connections, the degree pinned. Beside it, in turns, the same engine in this process gets
the same images decoded, in batches as large as the server's were, the next one begun as soon as
there is room: what the model could do if there were no decoding, no HTTP and no client. Both have
all cores of the machine; the client, a thread of this process, takes its share of the same cores
while the server is measured, as do the server's decoders and its event loop.

Shares are CPU seconds of the threads ÷ (seconds × cores); "model's part" is the model's share ÷ all
four, the ratio that would be found if nothing else ran on the machine. Rounds are interleaved, the
ratio is taken within a round; medians and quartiles. Ends with one JSON line.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.overhead_client import closed_loop, raw_request
from benchmarks.photographs import photographs
from server.served_process import MeasurementError, ServedProcess, serve
from tocom_client import Client
from tocom_core.throughput import Spread

if TYPE_CHECKING:
    from server.engine import Engine

ASKED = 0.90
WARM_UP_S = 2.0
# Nothing is refused, measured or compared meanwhile: only what requests cost counts.
QUIET = ("--no-shed-late", "--no-idle-profiling", "--live-share=0", "--slo-ms=4000")
SHARES = ("model", "decode", "event loop", "client", "model's part")


def main() -> None:
    """Serve, compute, compare, report."""
    options = _parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the server has it
    from server.engine import load_engine
    from server.settings_sources import load_settings

    flags = [*QUIET, *model_flags(options.model), *options.server]
    photos = photographs(options.images, options.image_count)
    engine = load_engine(load_settings(flags))
    # One loop for all turns: the engine's lanes belong to it.
    runner = asyncio.Runner()
    runner.run(engine.warm_up())
    pixels = _decoded(engine, photos)
    degrees = [r for r in options.r if r <= engine.max_r]
    rounds: dict[int, list[dict[str, float]]] = {r: [] for r in degrees}
    with serve(flags) as server, Client(server.url) as client:
        requests = [raw_request(photo) for photo in photos]
        for done in tqdm(range(options.rounds), unit="round", leave=False):
            for r in degrees if done % 2 else reversed(degrees):
                served = _serve_for(server, client, r, requests, options)
                batch = max(1, round(served["batch"]))
                offline = runner.run(_compute_for(engine, pixels, batch, r, options.seconds))
                ratio = served["images_per_s"] / offline
                rounds[r].append(served | {"offline": offline, "ratio": ratio})
    engine.close()
    runner.close()
    rows = [_row(r, found) for r, found in rounds.items()]
    _report(rows)
    about = {"cores": os.cpu_count(), "connections": options.connections, "asked": ASKED}
    print(
        "\n" + json.dumps({"benchmark": "served", "backend": engine.backend, **about, "rows": rows})
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="default: the ViT-Tiny of TOCOM_DATA, or ours")
    parser.add_argument("--images", help="JPEGs: a folder, a parquet file or hub:owner/name")
    parser.add_argument("--image-count", type=int, default=200, help="different ones at most")
    parser.add_argument("--r", nargs="+", type=int, default=[0, 16])
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each turn")
    parser.add_argument("server", nargs="*", help="after --: flags for tocom serve")
    return parser.parse_args()


def model_flags(model: Path | None) -> list[str]:
    """The ViT-Tiny that lies in TOCOM_DATA names no architecture of its own."""
    data = os.environ.get("TOCOM_DATA")
    found = sorted(Path(data).glob("vit_tiny*.safetensors")) if data else []
    if model is None and not found:
        return []
    path = model or found[0]
    architecture = re.match(r"vit_tiny_patch16_\d+", path.stem)
    named = [f"--architecture={architecture[0]}"] if architecture else []
    return [f"--model={path}", *named]


def _decoded(engine: "Engine", photos: Sequence[bytes]) -> list[Any]:
    """The photographs as the server hands them to its engine."""
    from server.images import ImageLimits, decode
    from server.intake import DRAFT_FACTOR
    from server.resizing import faster

    side = DRAFT_FACTOR * max(engine.loaded.input_size[1:])
    limits, transform = ImageLimits(1 << 30, 1 << 30, side), faster(engine.loaded.transform)
    return [decode(photo, limits, transform) for photo in photos]


def _serve_for(
    server: ServedProcess,
    client: Client,
    r: int,
    requests: Sequence[bytes],
    options: argparse.Namespace,
) -> dict[str, float]:
    """One turn of the server: images/s, mean batch, and who used the cores."""
    port = int(server.url.rsplit(":", 1)[1])
    client.pin(r)
    closed_loop(port, requests, options.connections, WARM_UP_S)
    batches, threads = _batches(client), _thread_seconds(port)
    load = closed_loop(port, requests, options.connections, options.seconds)
    after, used = _batches(client), _thread_seconds(port)
    if load.failures:
        raise MeasurementError(f"{len(load.failures)} failures, {load.failures[0][-300:]!r}")
    capacity_s = load.taken_s * (os.cpu_count() or 1)
    shares = {name: (used[name] - threads[name]) / capacity_s for name in used}
    count, own = len(load.latencies_s), load.cpu_s / capacity_s
    return {
        "images_per_s": count / load.taken_s,
        "batch": (after[0] - batches[0]) / max(1.0, after[1] - batches[1]),
        "client": own,
        "model's part": shares["model"] / (own + sum(shares.values())),
        **shares,
    }


def _batches(client: Client) -> tuple[float, float]:
    """Images and batches so far, from the server's metrics."""
    text = client.metrics()
    found = [re.search(rf"^tocom_batch_size_{n} (\S+)", text, re.M) for n in ("sum", "count")]
    images, count = (float(match[1]) if match else 0.0 for match in found)
    return images, count


def _thread_seconds(port: int) -> dict[str, float]:
    """CPU seconds of the server's threads by what they do; the process that listens is looked up.

    The first thread is the event loop's, decoders carry their name, all others belong to the model.
    """
    pid = _listener(port)
    seconds = dict.fromkeys(("model", "decode", "event loop"), 0.0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        kind = "decode" if name.startswith("decode") else "model"
        kind = "event loop" if task.name == str(pid) else kind
        seconds[kind] += int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def _listener(port: int) -> int:
    """The child of this process whose command serves: there is one."""
    me = os.getpid()
    for task in Path(f"/proc/{me}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"server.cli" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise MeasurementError(f"no child of this process serves port {port}")


async def _compute_for(
    engine: "Engine", pixels: Sequence[Any], batch: int, r: int, seconds: float
) -> float:
    """Images/s of the engine by itself, its batches begun as the server begins them."""
    endless, done, running = itertools.cycle(pixels), 0, set[asyncio.Task[Any]]()
    await engine.run([next(endless) for _ in range(batch)], r)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        await engine.room()
        images = [next(endless) for _ in range(batch)]
        task = asyncio.create_task(engine.run(images, r))
        running.add(task)
        task.add_done_callback(running.discard)
        done += batch
        await asyncio.sleep(0)
    if running:
        await asyncio.wait(running)
    return done / (time.monotonic() - started)


def _row(r: int, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    spreads = {name: Spread.of([one[name] for one in found]).as_list() for name in found[0]}
    return {"r": r, **spreads, "held": spreads["ratio"][0] >= ASKED}


def _report(rows: Sequence[dict[str, Any]]) -> None:
    print(f"| r | served/s | offline/s | served ÷ offline | batch | {' | '.join(SHARES)} |")
    print("|---" * (5 + len(SHARES)) + "|")
    for row in rows:
        shown = [str(Spread(*row[name])) for name in ("images_per_s", "offline", "ratio")]
        shares = [f"{row[name][0]:.1%}" for name in SHARES]
        print("| " + " | ".join([str(row["r"]), *shown, f"{row['batch'][0]:.1f}", *shares]) + " |")


if __name__ == "__main__":
    try:
        main()
    except MeasurementError as error:
        sys.exit(f"no measurement: {error}")
