"""`tocom bench`: replay a trace of arrivals against a real server and report what became of it.

    tocom bench --trace step --url http://127.0.0.1:8000       one that runs already
    tocom bench --trace gamma:0.9x60,cv2=4 -- --model MODEL    starts one with these flags
    tocom bench --save-profile FILE -- --model MODEL           what `tocom simulate` needs

First the latency of a single request (for the SLO, unless given) and the capacity at r=0 and at the
highest degree are measured, then the trace is replayed in multiples of that capacity, once per
seed. `server.arrivals` explains traces, `server.fates` the figures. Progress goes to stderr, the
report and one last line of JSON to stdout. Ctrl-C keeps the seeds that are finished.
"""

import importlib.util
import json
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.bench_options import BenchOptions
from server.errors import SettingsError
from tocom_core.options import command_line, parse_options

PROG = "tocom bench"
DESCRIPTION = (
    "Replay a trace of arrivals against a server: --url, or one that is started with the flags of "
    "'tocom serve' that follow a lone --."
)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Bench, print the report and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    own, flags = split_flags(given)
    options = parse_options(BenchOptions, own, PROG, DESCRIPTION)
    trace = options.parsed_trace()
    _check_flags(options, flags)
    for module in ("aiohttp", "httpx"):
        _need(module, "bench")
    if options.output is not None:
        _prepare_folder(Path(options.output), plot=options.plot)
    from server.bench_report import as_json, as_markdown  # needs aiohttp, as the next one does
    from server.bench_run import BenchRun

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    run = BenchRun(options, flags, trace, command_line(PROG, given))
    with terminated_like_interrupted():
        try:
            run.measure()
            code = 0
        except KeyboardInterrupt:
            code = INTERRUPTED
    print(as_markdown(run.report))
    print(json.dumps(as_json(run.report), allow_nan=False))
    return code


def split_flags(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the bench's own flags, and those after a lone `--`, which are the server's."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:place]), tuple(argv[place + 1 :])


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: what was measured is kept, the server is ended."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_flags(options: BenchOptions, flags: Sequence[str]) -> None:
    if options.url is not None and flags:
        raise SettingsError("flags after -- are for a server that is started here: drop --url")
    if any(flag.split("=")[0] == "--slo-ms" for flag in flags):
        raise SettingsError("give --slo-ms before the --: client and server share it")


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise SettingsError(f"tocom bench needs {module}: pip install 'tocom-serve[{extra}]'")


def _prepare_folder(folder: Path, *, plot: bool) -> None:
    """Fail now rather than after the measurement."""
    if plot and importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("plots need Matplotlib: pip install 'tocom-serve[plots]', or --no-plot")
    folder.mkdir(parents=True, exist_ok=True)


def _interrupt(*_: object) -> None:
    """Do what Ctrl-C does, also in a job of a script's background, where Ctrl-C is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)
