"""`tocom profile`: latency and accuracy per degree, measured once and kept in a file.

    tocom profile --output profile.json                  the default model
    tocom profile --model MODEL --calibration IMAGES     agreement with r_source, without labels
    tocom profile --model MODEL --evaluation FOLDER      top-1 that 'tocom evaluate' measured
    tocom profile --trace FOLDER                         where the time of a batch goes, by stage

A server that is given the file is ready at once, and `tocom simulate` plays with it.  Progress goes
to stderr, the table to stdout.  Ctrl-C keeps the rounds that are finished.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.profile_options import PROG, ProfileOptions, parse_arguments
from server.settings import Settings

if TYPE_CHECKING:
    from server.engine import Engine


def main(argv: Sequence[str]) -> int:
    """Measure, write the profile, print its table; returns the exit code.

    Raises:
        SettingsError: a flag or setting is wrong, or the file is of another model or device.
        TocomError: the model, bank, data or file cannot be read.
        KeyboardInterrupt: interrupted; what was written can be continued.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    options, settings = parse_arguments(argv)
    # As `tocom serve` does, for the threads' habits decide the latency; before PyTorch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # PyTorch's profiler chats on stderr
    from server.engine import load_engine  # takes seconds; wrong usage is told before
    from server.profile_report import as_markdown, plot_profile
    from server.profile_run import ProfileRun

    engine = load_engine(settings)
    if options.trace is not None:
        return _trace(engine, settings, options, options.trace)
    try:
        profile = ProfileRun(engine, settings.max_batch_size, options).run()
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted; run the command again to go on", file=sys.stderr)
        raise
    finally:
        engine.close()
    print(as_markdown(profile, settings.max_batch_s))
    if options.plot is not None:
        plot_profile(options.plot, profile, settings.max_batch_s, engine.loaded.name)
    return 0


def _trace(engine: "Engine", settings: Settings, options: ProfileOptions, folder: Path) -> int:
    """Trace the engine's model; nothing else runs on it meanwhile."""
    from server.trace_run import trace_stages, written_files
    from tocom_core.stage_report import as_markdown

    try:
        breakdowns = trace_stages(engine, settings, options, folder)
    finally:
        engine.close()
    print(f"{as_markdown(breakdowns)}\n\n{written_files(folder)}")
    return 0
