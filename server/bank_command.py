"""``tocom bank``: what a bank is for, whether it fits, other people's banks, and the hub.

    tocom bank info  weights/vit_tiny_patch16_224       what it is for, how it was made
    tocom bank check --model M --bank B                 does it fit this model
    tocom bank convert checkpoint.pth bank.safetensors  from the original research code
    tocom bank export FOLDER --push owner/name          as a repository of the hub

A bank is named by its file, by a folder with ``bank.safetensors``, or by
``hf-hub:owner/name[@revision]``.
"""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class _Part:
    """One thing that can be done with a bank: ``main(argv)`` of a module, and what it is for."""

    module: str
    purpose: str


PARTS = {
    "info": _Part("server.bank_info", "what a bank is for, how it was made, how large it is"),
    "check": _Part("server.bank_check", "whether a bank fits a model"),
    "convert": _Part("server.bank_convert", "read the original research code's checkpoint"),
    "export": _Part("server.bank_export", "write a bank as a hub's repository, and push it"),
}


def main(argv: Sequence[str]) -> int:
    """Do one of ``PARTS``; each names in its own ``main`` what it raises and returns."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request to a hub
    given = _build_parser().parse_args(argv)
    part = importlib.import_module(PARTS[given.part].module)
    return int(part.main(given.arguments))


def _build_parser() -> argparse.ArgumentParser:
    width = max(map(len, PARTS))
    lines = [f"  {name:{width}}  {part.purpose}" for name, part in PARTS.items()]
    parser = argparse.ArgumentParser(
        prog="tocom bank",
        description="Look at a compensator bank, check, convert and share it.",
        epilog="\n".join(["parts:", *lines, "", "'tocom bank PART --help' explains each."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS, metavar="PART")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    return parser
