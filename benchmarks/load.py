"""A burst of real photographs against a real server: does it bend instead of break?

    python benchmarks/load.py                                   starts the default model's server
    python benchmarks/load.py -- --model mine.safetensors       flags after -- go to the server
    python benchmarks/load.py --url http://127.0.0.1:8000       a server that runs already
    python benchmarks/load.py --plot load.png                   draws the timeline too

First the capacity at r=0 is measured in a closed loop.  Then photographs arrive in an open loop in
phases, each a multiple of that capacity for some seconds: above it, far below, far above.  The last
phase turns the dial by hand under load.  `load_report` tabulates, `load_checks` judges.  Prints
Markdown and one final JSON line; the exit code is 1 if a check failed.

Server and client share the machine, so part of its processors is the client's and the decoder's.
"""

import argparse
import asyncio
import json
import sys
from contextlib import nullcontext
from pathlib import Path

from benchmarks.load_checks import check
from benchmarks.load_report import Check, Phase, PinTest, Run, Span, describe, show
from benchmarks.photographs import photographs
from server.arrivals import EVEN, POISSON, PhasedTrace
from server.arrivals import Phase as TracePhase
from server.capacity import capacity, settle
from server.open_loop import Answer, Client, Watch, open_loop, watch
from server.served_process import MeasurementError, ServedProcess, serve

PHASES = ("1.5x60", "0.25x30", "4x15", "0.25x15")
PIN_PHASE = Phase(0.7, 10)
SAMPLE_S = 0.5
MULTIPART_FILES = 8
MULTIPARTS = (0.2, 0.48, 0.52, 0.8)
"""When in the pin phase they are sent: two of them right before and after the turn of the dial."""


def main() -> None:
    """Run the phases, print the report, leave the exit code."""
    options = _parse()
    photos = photographs(options.images, options.image_count)
    starting = nullcontext(ServedProcess(options.url)) if options.url else serve(options.server)
    try:
        with starting as server:
            run = asyncio.run(_drive(server.url, photos, options))
    except MeasurementError as error:
        sys.exit(f"no measurement: {error}")
    checks = check(run) if options.url else [*check(run), *_ended_well(server)]
    show(run, checks)
    if options.plot:
        from benchmarks.load_timeline import plot  # Matplotlib takes a second to import

        plot(run, options.plot)
    print(json.dumps(describe(run, checks)))
    sys.exit(0 if all(one.passed for one in checks) else 1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--url", help="a running server; default: start one")
    parser.add_argument("--images", help="JPEGs: a folder, a parquet file or hub:owner/name")
    parser.add_argument("--image-count", type=int, default=64, help="different ones at most")
    parser.add_argument("--phases", nargs="+", default=list(PHASES), metavar="MULTIPLExSECONDS")
    parser.add_argument("--arrivals", choices=["poisson", "constant"], default="poisson")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pin-test", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pin", type=int, default=12, metavar="R", help="the degree to pin")
    parser.add_argument("--plot", type=Path, help="write a PNG of the timeline")
    parser.add_argument("server", nargs="*", help="after --: flags for tocom serve")
    options = parser.parse_args()
    try:
        options.phases = [Phase.parse(text) for text in options.phases]
    except ValueError as error:
        parser.error(str(error))
    if options.url and options.server:
        parser.error("flags for the server need a server that is started here: drop --url")
    return options


def _ended_well(server: ServedProcess) -> list[Check]:
    """How a server of our own ended, and what it complained about."""
    complaints = server.complaints
    seen = "; ".join([f"{len(complaints)} such lines", *complaints[:3]])
    return [
        Check("SIGTERM ends the server", server.exit_code == 0, f"exit code {server.exit_code}"),
        Check("the server logged no warning or error", not complaints, seen),
    ]


async def _drive(url: str, photos: list[bytes], options: argparse.Namespace) -> Run:
    """Capacity, then all phases; the dial is handed back whatever happens."""
    async with Client(url, photos, options.seed) as client:
        try:
            images_per_s = (await capacity(client, 0)).images_per_s
            print(f"Capacity at r=0: {images_per_s:.1f} images/s\n", flush=True)
            await settle(client)
            return await _phases(client, images_per_s, options)
        finally:
            await client.control.auto()


async def _phases(client: Client, images_per_s: float, options: argparse.Namespace) -> Run:
    """All phases without a break between them, while the server's own view is sampled."""
    seen, slo_s = Watch(), await client.gauge("tocom_slo_seconds")
    r_source: int = (await client.control.compression()).r_source
    phases = [*options.phases, PIN_PHASE] if options.pin_test else options.phases
    spans, due = _schedule(phases, images_per_s, options)
    watching = asyncio.create_task(watch(client, SAMPLE_S, seen))
    try:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(open_loop(client, due))
            pin = None
            if options.pin_test:
                pin = group.create_task(_turn_dial(client, spans[-1], options.pin))
    finally:
        watching.cancel()
    return Run(
        capacity=images_per_s,
        slo_s=slo_s,
        r_source=r_source,
        arrivals=options.arrivals,
        spans=spans,
        answers=sending.result(),
        watch=seen,
        pin=pin.result() if pin else None,
    )


def _schedule(
    phases: list[Phase], images_per_s: float, options: argparse.Namespace
) -> tuple[list[Span], list[float]]:
    """When each phase begins and ends, and when each request is due, from half a second on."""
    first_s = start_s = asyncio.get_running_loop().time() + 0.5
    spans: list[Span] = []
    for phase in phases:
        spans.append(Span(phase, start_s, start_s + phase.seconds))
        start_s += phase.seconds
    shape = tuple(TracePhase(phase.multiple, phase.multiple, phase.seconds) for phase in phases)
    trace = PhasedTrace("load", shape, POISSON if options.arrivals == "poisson" else EVEN)
    return spans, [first_s + at for at in trace.times(images_per_s, options.seed)]


async def _turn_dial(client: Client, span: Span, r: int) -> PinTest:
    """Pin in the middle of the phase, with requests of several images around it."""
    loop = asyncio.get_running_loop()

    async def until(share: float) -> None:
        await asyncio.sleep(span.start_s + share * span.phase.seconds - loop.time())

    async def send_files(share: float) -> Answer:
        await until(share)
        return await client.classify_files(MULTIPART_FILES)

    async with asyncio.TaskGroup() as group:
        multiparts = [group.create_task(send_files(share)) for share in MULTIPARTS]
        await until(0.5)
        before = await client.control.compression()
        asked_s = loop.time()
        after = await client.control.pin(min(r, before.levels[-1].r))
        replied_s = loop.time()
    return PinTest(before.r, after.r, asked_s, replied_s, [m.result() for m in multiparts])


if __name__ == "__main__":
    main()
