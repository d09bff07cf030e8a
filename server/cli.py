"""The command line: ``tocom``.

A subcommand's module is imported when it is used, so that ``tocom --help`` needs no torch and
``tocom train`` no web server.  Exit codes: 0 success, 1 failure, 2 wrong usage or configuration;
failures that can be expected are one line on stderr, without a traceback.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import ServeError, SettingsError
from tocom_core import __version__
from tocom_core.errors import TocomError

FAILURE = 1
USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """A subcommand: ``main(argv)`` of a module, and what it is for."""

    module: str
    purpose: str


COMMANDS = {
    "serve": Command("server.serving", "serve a model over HTTP"),
    "classify": Command("server.offline", "classify image files without a server"),
    "finetune": Command("tocom_core.finetuning", "make a classifier at a given r_source"),
    "train": Command("tocom_core.distillation", "train a bank by self-distillation"),
    "evaluate": Command("tocom_core.evaluation", "measure accuracy per degree"),
    "bank": Command("server.bank_command", "look at a bank, check, convert and share it"),
    "key": Command("server.key_command", "make an API key, and the line that makes it known"),
    "doctor": Command("server.doctor", "examine whether serving would work here, and well"),
    "profile": Command("server.profiling", "measure latency and agreement per degree"),
    "bench": Command("server.bench", "replay a trace of arrivals against a running server"),
    "simulate": Command("server.simulator", "replay a trace in simulated time"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the exit code."""
    given = _build_parser().parse_args(argv)
    command = importlib.import_module(COMMANDS[given.command].module)
    try:
        return int(command.main(given.arguments) or 0)
    except SettingsError as error:
        return _fail(str(error), USAGE)
    except (TocomError, ServeError, OSError) as error:
        return _fail(str(error), FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED


def _build_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.purpose}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="tocom",
        description="Vision Transformers whose speed can be dialled while they run.",
        epilog="\n".join(["commands:", *lines, "", "'tocom COMMAND --help' explains each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tocom-serve {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser


def _fail(message: str, code: int) -> int:
    print(f"tocom: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
