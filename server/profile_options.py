"""What `tocom profile` can be told beside the settings of the server that the profile is for."""

import argparse
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import SettingsError
from server.settings import Settings
from server.settings_sources import RaisingParser, load_settings

PROG = "tocom profile"


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What to measure.

    Attributes:
        output: the profile; continued if it is there already.
        batch_sizes: those to measure; None takes the powers of two and the largest.
        degrees: those to measure; None takes all.
        repeats: runs of each cell, over all calls.
        seconds: no new round after so many.
        calibration: a data set for the agreement with `r_source`; None measures none.
        calibration_count: at most so many of its images.
        evaluation: what `tocom evaluate --output` wrote.
        overwrite: start anew.
        plot: a picture to draw.
        trace: a folder for where the time goes by stage; instead of a profile.
    """

    output: Path = Path("profile.json")
    batch_sizes: tuple[int, ...] | None = None
    degrees: tuple[int, ...] | None = None
    repeats: int = 5
    seconds: float = math.inf
    calibration: str | None = None
    calibration_count: int = 500
    evaluation: Path | None = None
    overwrite: bool = False
    plot: Path | None = None
    trace: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.output, self.plot):
            if path is not None and not path.absolute().parent.is_dir():
                raise SettingsError(f"{path}: there is no folder {path.parent}; make it first")
        if self.plot is not None and importlib.util.find_spec("matplotlib") is None:
            raise SettingsError("--plot needs matplotlib: pip install 'tocom-serve[plots]'")


def parse_arguments(argv: Sequence[str]) -> tuple[ProfileOptions, Settings]:
    """Split a command line into own options and the server's settings.

    Raises:
        SettingsError: a flag or a value is wrong.
    """
    given, rest = _build_parser().parse_known_args(argv)
    values: dict[str, Any] = vars(given)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return ProfileOptions(**values), load_settings(rest)


def _build_parser() -> argparse.ArgumentParser:
    parser = RaisingParser(
        prog=PROG,
        description="Measure how long batches take at each degree on this machine, and how good "
        "the answers are, and write it to a file that 'tocom serve --profile FILE' starts from.",
        epilog="All flags of 'tocom serve' are taken too: those of the model (--model, --bank, "
        "--scaling, …), the device (--device, --dtype, --threads, --lanes) and --max-batch-size "
        "must be as they will be when it is served.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help="continued if it is there [profile.json]")
    add("--overwrite", action="store_true", help="start anew instead of continuing the file")
    add("--batch-sizes", nargs="+", type=_whole, metavar="N", help="[1 2 4 … the largest]")
    add("--degrees", nargs="+", type=_at_least(0), metavar="R", help="[all]")
    add("--repeats", type=_whole, metavar="N", help="runs of each degree and batch size [5]")
    add("--seconds", type=_seconds, metavar="S", help="start no new round after so many [no limit]")
    add(
        "--calibration",
        metavar="DATA",
        help="images, labels not needed, to measure how often each degree's answer is the one at "
        "r_source: a folder, parquet files, WebDataset shards or hub:owner/name",
    )
    add("--calibration-count", type=_whole, metavar="N", help="at most so many of them [500]")
    add(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="expected accuracy of each degree: what 'tocom evaluate --output' wrote",
    )
    add("--plot", type=Path, metavar="FILE", help="draw a picture (needs matplotlib)")
    add(
        "--trace",
        type=Path,
        metavar="FOLDER",
        help="write no profile, but where the time of a batch goes by stage (attention, MLP, "
        "matching, merging, copies, launch gaps, …): a table, a picture and Chrome traces; of "
        "three degrees at batches of 1, 8 and 32 unless told otherwise; --backend auto traces all",
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} must be {least} or more")
        return value

    whole.__name__ = "whole number"
    return whole


_whole = _at_least(1)


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{value} must be above 0")
    return value
