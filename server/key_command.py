"""``tocom key``: a new API key, and the line that makes it known to a server."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server.api_keys import SCOPES, Scope, key_line, load_keys, new_key
from server.errors import SettingsError

_PRIVATE = 0o600


def main(argv: Sequence[str]) -> int:
    """Print a new key, once; with ``--file`` append its line there, else print that too.

    Raises:
        SettingsError: the name or scopes cannot be, or the file is no key file.
        OSError: the file cannot be written.
    """
    options = _build_parser().parse_args(argv)
    scopes = _scopes(options.scopes)
    key = new_key()
    line = key_line(options.name, scopes, key)
    if options.file is None:
        print(f"key:  {key}")
        print(f"line: {line}")
        print("Give the key to its user; the line, which does not tell it, to the server.")
        return 0
    _append(options.file, line)
    print(key)
    print(f"added to {options.file}: {line}", file=sys.stderr)
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tocom key",
        description="Make an API key of 256 random bits. It is shown once and kept nowhere.",
        allow_abbrev=False,
    )
    parser.add_argument("name", help="whose key it is; shows in the server's log")
    parser.add_argument(
        "--scopes",
        default="inference",
        help=f"what it is good for, separated by commas: {', '.join(SCOPES)} [inference]",
    )
    parser.add_argument(
        "--file", type=Path, help="append the line to this key file (made with mode 600)"
    )
    return parser


def _scopes(given: str) -> list[Scope]:
    wanted = [word.strip() for word in given.split(",")]
    if unknown := set(wanted) - set(SCOPES):
        raise SettingsError(f"no scope {sorted(unknown)[0]!r}: there are {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in wanted]


def _append(file: Path, line: str) -> None:
    """Add a line to a key file that is good, and good with it."""
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    load_keys(f"{before}\n{line}", None)
    gap = "" if before.endswith("\n") or not before else "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _PRIVATE)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(f"{gap}{line}\n")
