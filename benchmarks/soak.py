"""Ten minutes at twice the capacity, with everything going wrong that can.

    python benchmarks/soak.py                         make soak
    … --seconds 25 --threads 1 --keep-log soak.log

A real server (`soak_server.py`) whose decoder and forward pass fail at random is sent twice what it
carries, in an open loop. Clients leave half way, send broken images, name short deadlines. The
degree is pinned, bounded and let go, and the model is reloaded: the same files, another bank, none,
a file that is broken, SIGHUP.

At the end the books must balance: every request that was sent was answered, refused, or given up by
its own client; the server's counters and its request log say the same, outcome by outcome. Then it
gets SIGTERM with the load still on, and must exit with 0 within its drain bound. Its memory must
not grow. Prints a table and one JSON line; the exit code is 1 if anything did not hold.
"""

import argparse
import asyncio
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.photographs import resized_cat
from benchmarks.soak_client import Books, Client
from benchmarks.soak_process import DRAIN_TIMEOUT_S, Server, started

CALIBRATION_S = 5.0
CALIBRATION_CLIENTS = 24
PAUSE_AFTER_REFUSAL_S = 0.05
LAST_LOAD_S = 2.0
MOST_UNDER_WAY = 600
"""Beyond it connections would pile up before the server has accepted them, where nobody can keep
books; a machine whose cores are taken by others gets there."""
LOGGED_WITHIN_S = 1.0
MOST_GROWTH = 1.25
"""Of the resident memory, from the first half of the run to the second."""
OUTCOMES = {
    200: {"ok"},
    400: {"bad_image"},
    429: {"shed"},
    500: {"failed"},
    503: {"not_ready", "draining"},
    504: {"expired"},
}


@dataclass
class Report:
    """What was seen; `problems` is empty if all held."""

    seconds: float = 0.0
    capacity: float = 0.0
    offered: float = 0.0
    sent: int = 0
    skipped: int = 0
    answered: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    left: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    server: dict[str, int] = field(default_factory=dict)
    logged: int = 0
    reloads: dict[str, int] = field(default_factory=dict)
    pins: int = 0
    switches: int = 0
    rss_mb: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    exit_s: float = 0.0
    last_load: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        """Note a problem unless this holds."""
        if not holds:
            self.problems.append(problem)


async def soak(server: Server, options: argparse.Namespace) -> Report:
    """Measure the capacity, load the server, disturb it, and balance the books."""
    report = Report(seconds=options.seconds)
    bodies = [resized_cat(side, quality=80) for side in (48, 64, 96)]
    before = Counter(server.counts("tocom_requests_total", "outcome"))
    calm = Client(server.port, bodies)
    report.capacity = await capacity(calm)
    report.offered = options.load * report.capacity
    client = Client(
        *(server.port, bodies, options.seed),
        leave_share=0.05,
        bad_share=0.01,
        several_share=0.03,
        deadline_share=0.1,
    )
    stop = asyncio.Event()
    rss: list[float] = []
    disturbers = [
        asyncio.create_task(work)
        for work in (pin(server, stop, report), reload(server, stop), watch(server, stop, rss))
    ]
    await open_loop(client, report.offered, options.seconds, random.Random(options.seed))
    stop.set()
    await asyncio.gather(*disturbers)
    calm.close()
    await settle(server, report)
    balance(server, [calm.books, client.books], before, report)
    note(client.books, rss, report)
    await end(server, client, report)
    client.close()
    return report


async def capacity(client: Client) -> float:
    """Answers per second of a closed loop."""
    give_up = time.monotonic() + CALIBRATION_S

    async def one() -> None:
        while time.monotonic() < give_up:
            if await client.classify() != 200:
                await asyncio.sleep(PAUSE_AFTER_REFUSAL_S)

    await asyncio.gather(*(one() for _ in range(CALIBRATION_CLIENTS)))
    return client.books.answers[200] / CALIBRATION_S


async def open_loop(client: Client, rate: float, seconds: float, draw: random.Random) -> None:
    """Send requests when they are due, however the last ones fared."""
    loop = asyncio.get_running_loop()
    due = started_at = loop.time()
    async with asyncio.TaskGroup() as requests:
        while due < started_at + seconds:
            await asyncio.sleep(max(0.0, due - loop.time()))
            if client.under_way < MOST_UNDER_WAY:
                requests.create_task(client.classify())
            else:
                client.books.skipped += 1
            due += draw.expovariate(rate)


async def pin(server: Server, stop: asyncio.Event, report: Report) -> None:
    """What an operator does with the degree, every second or two."""
    draw = random.Random(1)
    wishes = ["r=0", "r=8&ttl_s=1", "r=16", "mode=auto", "mode=shadow&ttl_s=1", "mode=auto"]
    wishes += ["min_r=2&max_r=12", "min_r=0&max_r=16"]
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), draw.uniform(0.5, 2))
        await asyncio.to_thread(server.ask, "PUT", f"/compression?{draw.choice(wishes)}")
        report.pins += 1


async def reload(server: Server, stop: asyncio.Event) -> None:
    """One reload after the other, good ones and bad ones, with a pause between them."""
    draw = random.Random(2)
    wishes: list[dict[str, Any] | None] = [
        {"model": "second"},
        {"bank": "none"},
        {"model": "broken"},
        {"model": "first", "bank": "second"},
        {},
        None,
    ]
    turn = 0
    while not stop.is_set():
        wish = wishes[turn % len(wishes)]
        turn += 1
        if wish is None:
            server.process.send_signal(signal.SIGHUP)
        else:
            await asyncio.to_thread(server.ask, "POST", "/models/reload", wish | {"wait_s": 60})
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), draw.uniform(2, 6))


async def watch(server: Server, stop: asyncio.Event, rss: list[float]) -> None:
    """Look at the memory once a second."""
    while not stop.is_set():
        rss.append(server.rss_mb())
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 1)


async def settle(server: Server, report: Report) -> None:
    """Wait until the server has noticed that the last clients are gone, and ended its reload."""
    for _ in range(100):
        page = (await asyncio.to_thread(server.ask, "GET", "/metrics"))[1]
        state = json.loads((await asyncio.to_thread(server.ask, "GET", "/model"))[1])["reload"]
        busy = state is not None and state["state"] not in ("done", "failed")
        if "\ntocom_in_flight_requests 0.0\n" in page and not busy:
            await asyncio.sleep(LOGGED_WITHIN_S)
            return
        await asyncio.sleep(0.2)
    report.problems.append("20 s after the load requests are in flight, or a reload goes on")


def balance(server: Server, books: Sequence[Books], before: Counter[str], report: Report) -> None:
    """Compare what the clients saw with what the server counted and logged."""
    counted = Counter(server.counts("tocom_requests_total", "outcome")) - before
    sent = sum(b.sent for b in books)
    answers = sum((b.answers for b in books), Counter[int]())
    left = sum(b.left for b in books)
    broken = [text for b in books for text in b.broken]
    report.check(not broken, f"{len(broken)} connections broken by the server: {broken[:3]}")
    report.check(sum(answers.values()) + left == sent, f"{sent=} {answers=} {left=}")
    report.check(sum(counted.values()) == sent, f"server counted {counted.total()}, {sent=}")
    unknown = set(answers) - set(OUTCOMES)
    report.check(not unknown, f"statuses that nothing should have: {unknown}")
    # Who left may have been answered into the void, so those are counted among any outcome.
    into_the_void = 0
    for status, outcomes in OUTCOMES.items():
        more = sum(counted[name] for name in outcomes) - answers[status]
        into_the_void += more
        report.check(more >= 0, f"{status}: {answers[status]} seen, {-more} more than counted")
    abandoned = left - into_the_void
    report.check(abandoned == counted["abandoned"], f"{abandoned=}, counted {counted['abandoned']}")
    report.check(not server.operator_errors, f"the operator got {server.operator_errors[:3]}")
    text = server.log.read_text()
    report.logged = len(re.findall(r'"message": "POST /classify ', text))
    report.check(report.logged == sent, f"{report.logged} lines in the request log, {sent=}")
    report.server = dict(counted)


def note(books: Books, rss: Sequence[float], report: Report) -> None:
    """The figures of the run, and whether the memory stayed."""
    report.sent, report.answered, report.left = books.sent, books.answers[200], books.left
    report.skipped = books.skipped
    report.refused = {str(k): v for k, v in sorted(books.answers.items()) if k != 200}
    percentiles = statistics.quantiles(books.latencies_s or [0.0, 0.0], n=100)
    report.p50_ms, report.p99_ms = 1e3 * percentiles[49], 1e3 * percentiles[98]
    half = len(rss) // 2
    early, late = statistics.median(rss[half // 2 : half]), statistics.median(rss[half:])
    report.rss_mb = {"first": rss[0], "early": early, "late": late, "most": max(rss)}
    report.check(late <= MOST_GROWTH * early, f"memory grew from {early:.0f} to {late:.0f} MB")
    report.check(report.answered > 0, "nothing was answered")


async def end(server: Server, client: Client, report: Report) -> None:
    """SIGTERM with the load still on."""
    report.reloads = server.counts("tocom_reloads_total", "outcome")
    report.switches = sum(server.counts("tocom_switches_total", "reason").values())
    report.check(report.reloads.get("done", 0) > 0, f"no reload was done: {report.reloads}")
    client.books = books = Books()
    load = asyncio.create_task(
        open_loop(client, report.offered, LAST_LOAD_S, random.Random(3)), name="last load"
    )
    await asyncio.sleep(LAST_LOAD_S / 2)
    started_at = time.monotonic()
    server.process.terminate()
    try:
        report.exit_code = await asyncio.to_thread(server.process.wait, DRAIN_TIMEOUT_S + 10)
    except subprocess.TimeoutExpired:
        report.problems.append(f"it did not end within {DRAIN_TIMEOUT_S + 10:g} s")
    report.exit_s = time.monotonic() - started_at
    await load
    report.check(report.exit_code == 0, f"exit code {report.exit_code}")
    report.check(report.exit_s <= DRAIN_TIMEOUT_S, f"the exit took {report.exit_s:.1f} s")
    # A request may cross the end of its idle connection on the way: HTTP/1.1 knows no better.
    report.last_load = {
        **{str(status): count for status, count in sorted(books.answers.items())},
        "left": books.left,
        "nobody listening": books.unsent,
        "crossed the end": len(books.broken),
    }
    report.check(
        books.accounted + len(books.broken) == books.sent, f"last load: {report.last_load}"
    )


def run(options: argparse.Namespace) -> Report:
    """One soak from start to report."""
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), options) as server:
        server.wait_until_ready()
        try:
            return asyncio.run(soak(server, options))
        finally:
            if options.keep_log:
                shutil.copy(server.log, options.keep_log)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--load", type=float, default=2.0, help="offered, in multiples of capacity")
    parser.add_argument("--slo-ms", type=float, default=500)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--decode-faults", type=float, default=0.003, help="share of calls")
    parser.add_argument("--forward-faults", type=float, default=0.003, help="share of calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-log", type=Path, help="where to copy the server's log")
    return parser.parse_args(arguments)


def main() -> int:
    """Run, print, and say by the exit code whether all held."""
    report = run(parse())
    print("| what | seen |\n|---|---|")
    for name, value in asdict(report).items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"| {name.replace('_', ' ')} | {shown} |")
    print("\n" + json.dumps({"benchmark": "soak", **asdict(report)}))
    return bool(report.problems)


if __name__ == "__main__":
    sys.exit(main())
