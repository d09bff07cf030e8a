"""From `tocom serve` to its ready line, beside what no server of this model could do without.

    python benchmarks/startup.py
    … --rounds 9 -- --backend eager         flags for the server

Default model, with a stored profile. Bare is `import torch, timm` and loading the model, in a fresh
interpreter as well. Rounds are interleaved after one that fills the caches; the ratio is taken
within a round. Also shows which of our own imports take longest. Ends with one JSON line.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from server.served_process import MeasurementError
from tocom_core.throughput import Spread

ASKED = 1.5
READY_WITHIN_S = 300.0
BARE = "import torch, timm\nfrom tocom_core.models import load_model\nload_model('default')"


def main() -> None:
    """Store a profile, start both in turns, report."""
    options = _parse()
    found: dict[str, list[float]] = {"bare": [], "ready": []}
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--profile={_store_profile(Path(folder), options.server)}", *options.server]
        for done in tqdm(range(options.rounds + 1), unit="round", leave=False):
            seconds = {"bare": _bare_s(), "ready": _ready_s(flags, Path(folder))}
            if done:
                for name, value in seconds.items():
                    found[name].append(value)
    ratios = [ready / bare for ready, bare in zip(found["ready"], found["bare"], strict=True)]
    spreads = {name: Spread.of(values) for name, values in (found | {"ratio": ratios}).items()}
    print("| | seconds |\n|---|---|")
    print(f"| import torch, timm, load the model | {spreads['bare']} |")
    print(f"| start to ready | {spreads['ready']} |")
    print(f"| ratio | {spreads['ratio']} |")
    if options.imports:
        print("\n| import | own ms |\n|---|---|")
        slowest = _slowest_imports(options.imports)
        print("\n".join(f"| {name} | {ms:.0f} |" for name, ms in slowest))
    held = spreads["ratio"].median <= ASKED
    result = {name: spread.as_list() for name, spread in spreads.items()}
    print("\n" + json.dumps({"benchmark": "startup", **result, "asked": ASKED, "held": held}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--imports", type=int, default=12, help="show so many; 0: none")
    parser.add_argument("server", nargs="*", help="after --: flags for tocom serve")
    return parser.parse_args()


def _store_profile(folder: Path, flags: Sequence[str]) -> Path:
    """A profile of this model on this device, of the cells that a warm-up measures."""
    from server.engine import load_engine
    from server.settings_sources import load_settings

    engine = load_engine(load_settings(flags))
    path = folder / "profile.json"
    engine.own_profile(asyncio.run(engine.warm_up()).measurements).save(path)
    engine.close()
    return path


def _bare_s() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE], check=True)
    return time.perf_counter() - started


def _ready_s(flags: Sequence[str], folder: Path) -> float:
    """Seconds until the log says ready; the server is then ended."""
    command = [sys.executable, "-m", "server.cli", "serve", "--port=0", *flags]
    log = folder / "server.log"
    with log.open("w") as stream:
        started = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=stream, text=True)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            if "ready: url=" in line:
                return time.perf_counter() - started
            lines.append(line)
        raise MeasurementError(f"the server ended before it was ready: {''.join(lines)[-2000:]}")
    finally:
        process.terminate()
        process.communicate(timeout=READY_WITHIN_S)


def _slowest_imports(count: int) -> list[tuple[str, float]]:
    """Modules by their own time, as the interpreter tells it, in milliseconds."""
    command = [sys.executable, "-X", "importtime", "-c", "import server.serving, server.app"]
    told = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True).stderr
    # Of each package, all its modules together: single ones say little.
    total: dict[str, float] = {}
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", told):
        package = name.partition(".")[0]
        total[package] = total.get(package, 0.0) + int(own) / 1000
    return sorted(total.items(), key=lambda item: -item[1])[:count]


if __name__ == "__main__":
    try:
        main()
    except MeasurementError as error:
        sys.exit(f"no measurement: {error}")
