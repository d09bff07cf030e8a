"""``tocom bank info``: what a bank says of itself, and how large its groups are."""

import argparse
import json
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Print the facts of a bank, as text or as JSON.

    Raises:
        BankError: it cannot be had or read.
    """
    given = _build_parser().parse_args(argv)
    from tocom_core.bank import Bank  # takes seconds; wrong usage is told before
    from tocom_core.bank_facts import as_text, bank_facts
    from tocom_core.bank_places import locate_bank, told_by_address

    path = locate_bank(given.bank)
    with told_by_address(given.bank, path):
        facts = bank_facts(Bank.load(path), path)
    if given.json:
        print(json.dumps({"place": given.bank, **facts}, indent=2))
    else:
        print(as_text(facts, given.bank))
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tocom bank info",
        description="Tell what a bank is for, how it was made, and how much each of its groups "
        "changes the weights.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "bank",
        help="a bank's file, a folder with bank.safetensors, or hf-hub:owner/name[@revision]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
