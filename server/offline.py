"""`tocom classify`: image files and folders to classes, without a server.

    tocom classify cat.jpg dog.png                      the likeliest classes, as text
    tocom classify photos/ --output classes.csv --r 8   a folder and below; .csv or .jsonl
    tocom classify photos/ --format jsonl | jq …

With `--output` the same call goes on after an interruption. Exit code 1 if a file could not be
classified.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from server.errors import SettingsError
from server.image_files import image_files
from server.offline_results import ResultFile, show
from server.settings import Settings
from server.settings_sources import flag_of, load_settings

if TYPE_CHECKING:
    from server.engine import Engine

_MODEL_SETTINGS = (
    *("model", "architecture", "labels", "bank", "r_source", "scaling", "method", "prop_attn"),
    *("device", "dtype", "threads", "backend", "lanes", "max_batch_size", "decode_workers"),
    *("max_image_bytes", "max_image_pixels"),
)


def main(argv: Sequence[str]) -> int:
    """Classify files and print or write the answers; 1 if one of them could not be classified.

    Raises:
        SettingsError: a setting, a flag or a place is wrong, or `--output` holds something else.
        TocomError: the model or bank cannot be loaded.
        KeyboardInterrupt: interrupted; what was written to `--output` can be continued.
    """
    given = _build_parser().parse_args(argv)
    settings = load_settings(_settings_flags(given))
    files = image_files(given.files)
    from server.engine import load_engine  # takes seconds; wrong usage is told before

    engine = load_engine(settings)
    try:
        r = engine.r_source if given.r is None else given.r
        if not 0 <= r <= engine.max_r:
            raise SettingsError(f"--r {r}: this model has degrees 0 to {engine.max_r}")
        if given.output is None:
            return _print(engine, settings, given, files, r)
        return _write(engine, settings, given, files, r)
    finally:
        engine.close()


def _print(
    engine: "Engine", settings: Settings, given: argparse.Namespace, files: list[Path], r: int
) -> int:
    """Answers to stdout."""
    failed = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal failed
        for results in _with_progress(engine, settings, files, r, given.top_k):
            for result in results:
                failed += "error" in result
                yield result

    show(given.format, counted(), given.top_k)
    return int(failed > 0)


def _write(
    engine: "Engine", settings: Settings, given: argparse.Namespace, files: list[Path], r: int
) -> int:
    """Answers to a file that may have been begun."""
    run = {"model": engine.loaded.digest[:12], "r": r}
    output = ResultFile(given.output, given.top_k, run, overwrite=given.overwrite)
    try:
        remaining = [file for file in files if str(file) not in output.done]
        before, failed = len(files) - len(remaining), output.failed
        for results in _with_progress(engine, settings, remaining, r, given.top_k):
            output.write(results)
            failed += sum("error" in result for result in results)
    finally:
        output.close()
    told = f", {before} were there before" if before else ""
    wrong = f"; {failed} could not be classified, see 'error'" if failed else ""
    print(f"{given.output}: {len(remaining)} files{told}{wrong}", file=sys.stderr)
    return int(failed > 0)


def _with_progress(
    engine: "Engine", settings: Settings, files: list[Path], r: int, top_k: int
) -> Iterator[list[dict[str, Any]]]:
    """The answers; a bar on stderr, where that is a terminal."""
    from server.offline_run import classify_files  # PyTorch is loaded by now

    with tqdm(total=len(files), unit="image", disable=None) as bar:
        for results in classify_files(engine, settings, files, r, top_k):
            yield results
            bar.update(len(results))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tocom classify",
        description="Classify image files, and folders of them, without a server.",
        epilog="With --output the same call goes on after an interruption.",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="PATH", help="a file, or a folder and all below it"
    )
    parser.add_argument("--r", type=int, help="degree of compression [r_source]")
    parser.add_argument("--top-k", type=_positive, default=5, help="classes per image [5]")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write there, .csv or .jsonl, and go on there"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin --output anew instead of going on"
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--format",
        choices=("text", "json", "jsonl", "csv"),
        default="text",
        help="of what is printed without --output [text]",
    )
    kinds.add_argument("--json", dest="format", action="store_const", const="json", help="a list")
    for name in _MODEL_SETTINGS:
        text = f"{Settings.model_fields[name].description} Also TOCOM_{name.upper()}."
        default = argparse.SUPPRESS
        parser.add_argument(flag_of(name), default=default, help=text.replace("%", "%%"))
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def _settings_flags(given: argparse.Namespace) -> list[str]:
    """Those of the settings that were given, as ``tocom serve`` would take them."""
    return [f"{flag_of(n)}={getattr(given, n)}" for n in _MODEL_SETTINGS if n in given]
