"""All policies on the same arrivals on a real server: who keeps the SLO, and at which accuracy?

    python benchmarks/policies.py --output runs/policies --images IMAGES -- --model MODEL

The SLO (ten times the latency of a single r=0 request) is measured once, the capacity before each
trace and seed, for a shared machine changes its pace within minutes. Then each policy serves the
same arrivals, on a `tocom serve` process of its own, in an order that rotates. Static
degrees compete too: the best of them is picked afterwards, with the wisdom of hindsight. How long
batches take while requests come in is measured first (`served.json`), for `simulated_replays`.

Every finished run is a file in the output folder; a second call goes on where the first one
stopped. `policies_report` tabulates. Prints Markdown and one final JSON line.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.policies_report import (
    CAPACITY,
    PolicyRun,
    Setting,
    as_expected,
    describe,
    draw,
    file_of,
    show,
)
from server.arrivals import Trace, parse_trace
from server.bench import terminated_like_interrupted
from server.bench_images import Pictures, open_pictures
from server.bench_run import QUIET, SLO_SINGLES, largest_batch
from server.calibration import calibrate
from server.capacity import WARM_UP_S, capacity, settle, single_latency_s
from server.errors import SettingsError
from server.open_loop import Client, closed_loop
from server.replay import Replay, replay
from server.served_process import serve
from tocom_client import Client as Operator
from tocom_core.errors import TocomError
from tocom_core.latency_profile import LatencyProfile

TRACES = ("step:0.5x20,1.5x60,0.5x20", "gamma:0.9x60,cv2=4")
ADAPTIVE = ("demand", "threshold", "slackfit", "aimd")
STATICS = (0, 4, 8, 12, 14, 16)


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, or a static degree, and how a server is told."""

    name: str
    flags: tuple[str, ...]

    @classmethod
    def static(cls, r: int) -> "Contender":
        """Return the policy that stays at one degree."""
        return cls(f"static r={r}", ("--policy=static", f"--static-r={r}"))

    @classmethod
    def adaptive(cls, name: str) -> "Contender":
        """Return one of the server's policies by name."""
        return cls(name, (f"--policy={name}",))


def main() -> None:
    """Measure what is not measured yet, and report."""
    options = _parse()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    try:
        traces = [parse_trace(spec) for spec in options.traces]
        with terminated_like_interrupted():
            setting = _setting(folder / "setting.json", options)
            _profile_under_load(folder / "served.json", options, setting)
            contenders = _contenders(options, setting.highest)
            _run_missing(folder, options, setting, traces, contenders)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on with the runs that are missing")
    except (TocomError, SettingsError) as error:
        sys.exit(f"no measurement: {error}")
    runs = {
        trace.name: [
            PolicyRun.load(_path(folder, trace, seed, contender))
            for contender in contenders
            for seed in options.seeds
        ]
        for trace in traces
    }
    expected = LatencyProfile.load(folder / "served.json").expected_accuracy()
    usual_runs = as_expected(setting, runs, expected)
    show(setting, runs, usual_runs)
    if options.plot:
        draw(folder, setting, runs)
    print(json.dumps(describe(setting, runs, usual_runs), allow_nan=False))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished runs")
    parser.add_argument("--images", required=True, help="JPEGs with labels")
    parser.add_argument("--split", default="test")
    parser.add_argument("--image-count", type=int, default=1000)
    parser.add_argument("--traces", nargs="+", default=list(TRACES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--policies", nargs="*", default=list(ADAPTIVE))
    parser.add_argument("--static", type=int, nargs="*", default=list(STATICS), metavar="R")
    parser.add_argument("--slo-ms", type=float, help="default: 10 × a single r=0 request")
    parser.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("server", nargs="*", help="after --: flags for tocom serve")
    return parser.parse_args()


def _contenders(options: argparse.Namespace, highest: int) -> list[Contender]:
    degrees = sorted({0, highest, *(r for r in options.static if r <= highest)})
    return [*map(Contender.adaptive, options.policies), *map(Contender.static, degrees)]


def _setting(path: Path, options: argparse.Namespace) -> Setting:
    """What the runs in this folder share: measured once, then read."""
    if path.exists():
        known = Setting.load(path)
        if list(known.flags) != options.server:
            raise SettingsError(
                f"{path} was measured with the server's flags {list(known.flags)}, not "
                f"{options.server}: use another folder"
            )
        return known
    slo_ms = options.slo_ms
    if slo_ms is None:
        with serve([*options.server, *QUIET]) as server:
            slo_ms = round(1000 * SLO_SINGLES * asyncio.run(_single_s(server.url, options)), 1)
    with serve([*options.server, f"--slo-ms={slo_ms:g}"]) as server:
        setting = asyncio.run(_measured(server.url, options, slo_ms / 1000))
    setting.save(path)
    return setting


def _profile_under_load(path: Path, options: argparse.Namespace, setting: Setting) -> None:
    """Measure batches while requests come in, unless that is done."""
    if path.exists():
        return
    print("measuring batches under load", file=sys.stderr, flush=True)
    with serve([*options.server, f"--slo-ms={1000 * setting.slo_s:g}", *QUIET]) as server:
        asyncio.run(_calibrated(server.url, options)).save(path)


async def _calibrated(url: str, options: argparse.Namespace) -> LatencyProfile:
    pictures = _pictures(url, options)
    async with Client(url, pictures.files, 0) as client:
        return await calibrate(client, largest_batch(options.server))


async def _single_s(url: str, options: argparse.Namespace) -> float:
    pictures = _pictures(url, options)
    async with Client(url, pictures.files, 0) as client:
        return await single_latency_s(client)


async def _measured(url: str, options: argparse.Namespace, slo_s: float) -> Setting:
    """Capacities at r=0 and at the highest degree, on the server with the SLO."""
    pictures = _pictures(url, options)
    async with Client(url, pictures.files, 0) as client:
        model, state = await client.control.model(), await client.control.compression()
        lowest = await capacity(client, 0)
        highest = await capacity(client, state.max_r)
    return Setting(
        flags=tuple(options.server),
        model=f"{model.name} ({model.digest[:12]})",
        slo_s=slo_s,
        capacity=lowest.images_per_s,
        highest=highest.r,
        highest_capacity=highest.images_per_s,
        correctness_unknown=pictures.unknown,
    )


def _pictures(url: str, options: argparse.Namespace) -> Pictures:
    with Operator(url) as operator:
        labels = operator.model().labels
    return open_pictures(options.images, options.split, options.image_count, labels)


def _run_missing(
    folder: Path,
    options: argparse.Namespace,
    setting: Setting,
    traces: Sequence[Trace],
    contenders: Sequence[Contender],
) -> None:
    """Every run of which there is no file yet."""
    missing = [
        run for run in _order(options.seeds, traces, contenders) if not _path(folder, *run).exists()
    ]
    for number, (trace, seed, contender) in enumerate(missing, 1):
        what = f"{trace.name}, seed {seed}, {contender.name}"
        print(f"{number} of {len(missing)}: {what}", file=sys.stderr, flush=True)
        unit = _capacity_now(folder, options, setting, trace, seed)
        flags = [*options.server, f"--slo-ms={1000 * setting.slo_s:g}", *contender.flags]
        with serve(flags) as server:
            done = asyncio.run(_serve_trace(server.url, options, setting.slo_s, unit, trace, seed))
        PolicyRun(contender.name, done).save(_path(folder, trace, seed, contender))


def _capacity_now(
    folder: Path, options: argparse.Namespace, setting: Setting, trace: Trace, seed: int
) -> float:
    """Return images/s at r=0, measured when the first policy is about to serve these arrivals."""
    path = file_of(folder, trace.name, seed, CAPACITY)
    if not path.exists():
        with serve([*options.server, f"--slo-ms={1000 * setting.slo_s:g}"]) as server:
            now = asyncio.run(_measured(server.url, options, setting.slo_s))
        now.save(path)
    return Setting.load(path).capacity


def _order(
    seeds: Sequence[int], traces: Sequence[Trace], contenders: Sequence[Contender]
) -> Iterator[tuple[Trace, int, Contender]]:
    """Seed by seed; each time another contender begins."""
    for turn, seed in enumerate(seeds):
        for trace in traces:
            first = turn * max(1, len(contenders) // max(1, len(seeds))) % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                yield trace, seed, contender


async def _serve_trace(
    url: str, options: argparse.Namespace, slo_s: float, unit: float, trace: Trace, seed: int
) -> Replay:
    """One replay on a fresh server, after a warm-up."""
    pictures = _pictures(url, options)
    async with Client(url, pictures.files, 0) as client:
        await closed_loop(client, WARM_UP_S, 1)
        await settle(client)
    async with Client(url, pictures.files, seed) as client:
        return await replay(
            client,
            pictures,
            trace.times(unit, seed),
            seed=seed,
            seconds=trace.seconds(unit),
            slo_s=slo_s,
        )


def _path(folder: Path, trace: Trace, seed: int, contender: Contender) -> Path:
    return file_of(folder, trace.name, seed, contender.name)


if __name__ == "__main__":
    main()
