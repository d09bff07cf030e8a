"""``tocom bank convert``: the original research code's checkpoint as a bank of ours."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from server.errors import SettingsError

PROG = "tocom bank convert"


def main(argv: Sequence[str]) -> int:
    """Write the bank, and print what it holds.

    Raises:
        SettingsError: the output is there already, or cannot be one.
        TocomError: the checkpoint or the model cannot be read, or they do not fit.
        OSError: the output cannot be written.
    """
    given = _build_parser().parse_args(argv)
    _check_output(given.output, given.overwrite)
    from tocom_core.bank_conversion import convert  # takes seconds; wrong usage is told before
    from tocom_core.bank_facts import as_text, bank_facts
    from tocom_core.models import load_model
    from tocom_core.options import command_line

    backbone = None
    if given.model is not None:
        backbone = load_model(given.model, architecture=given.architecture)
    bank = convert(
        given.input,
        num_groups=given.num_groups,
        scaling=given.scaling,
        method=given.method,
        prop_attn=given.prop_attn,
        backbone=backbone,
        provenance={"command": command_line(PROG, argv)},
    )
    bank.save(given.output)
    print(as_text(bank_facts(bank, given.output), str(given.output)))
    return 0


def _check_output(path: Path, overwrite: bool) -> None:
    if path.suffix != ".safetensors":
        raise SettingsError(f"{path}: a bank is a .safetensors file; name it so")
    if path.is_dir() or (path.exists() and not overwrite):
        raise SettingsError(f"{path} is there already; name another file, or give --overwrite")


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Convert a checkpoint of the original research code (Token Compensator). The "
        "file does not say how it was trained: give the K, scaling and model that it was trained "
        "with.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", type=Path, metavar="IN", help="the checkpoint, a .pth file")
    add("output", type=Path, metavar="OUT", help="the bank, a .safetensors file")
    add("--num-groups", type=int, default=16, metavar="K", help="highest degree covered [16]")
    add("--scaling", type=float, default=0.1, metavar="S", help="factor on every delta [0.1]")
    add("--method", choices=("merge", "prune"), default="merge", help="in training [merge]")
    add(
        "--prop-attn",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether proportional attention was on in training [yes]",
    )
    add(
        "--model",
        help="the model that it was trained on: its name and digest are written down, so that "
        "'tocom serve' and 'tocom bank check' know what the bank is for",
    )
    add("--architecture", help="timm architecture of a model file that does not name its own")
    add("--overwrite", action="store_true", help="replace a file that is there")
    return parser
