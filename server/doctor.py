"""`tocom doctor`: would `tocom serve` with these flags work here, and well?

    tocom doctor                              the default model on this machine
    tocom doctor --model MODEL --port 9000    whatever 'tocom serve' would be given
    tocom doctor --json

Looks at the machine, the packages, the device, the address and keys, and at the model, its bank and
its profile, which are loaded and tried. Each line says what was found and what to mend.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from server import doctor_machine
from server.errors import SettingsError
from server.findings import Finding, examine
from server.settings import Settings
from server.settings_sources import load_settings

PROG = "tocom doctor"
WIDTH = 9


def main(argv: Sequence[str]) -> int:
    """Examine, print what was found, and return 1 if something cannot work, else 0."""
    given, rest = _build_parser().parse_known_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.ERROR, format="%(message)s")
    found: list[Finding] = []
    for finding in _examine_all(rest):
        found.append(finding)
        if not given.json:
            print(_line(finding), flush=True)
    problems = sum(finding.level == "problem" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    if given.json:
        told = {"ok": not problems, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(told, indent=2))
    else:
        print(f"\n{_count(problems, 'problem')}, {_count(warnings, 'warning')}")
    return int(problems > 0)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Examine whether 'tocom serve' with these flags would work here, and say what "
        "to mend. Exit code 1 if something cannot work.",
        epilog="All flags of 'tocom serve' are taken too, and its variables and settings file.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _examine_all(flags: Sequence[str]) -> Iterator[Finding]:
    """Machine first, for that takes no time; then what needs PyTorch and the model."""
    yield from examine("versions", doctor_machine.versions)
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        yield Finding("settings", "problem", str(error), "'tocom serve --help' lists all settings")
        return
    yield from examine("cores", lambda: doctor_machine.cores(settings))
    yield from examine("memory", doctor_machine.memory)
    yield from examine("address", lambda: doctor_machine.address(settings))
    yield from examine("keys", lambda: doctor_machine.keys(settings))
    yield from examine("settings", lambda: doctor_machine.extras(settings))
    yield from examine("model", lambda: _examine_model(settings))


def _examine_model(settings: Settings) -> Iterator[Finding]:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `tocom serve` does
    from server import doctor_model  # takes seconds; the machine's findings are out by now

    yield from examine("device", lambda: doctor_model.device(settings))
    yield from examine("model", lambda: doctor_model.model(settings))


def _line(finding: Finding) -> str:
    level = finding.level.upper() if finding.level == "problem" else finding.level
    lines = [f"{level:{WIDTH}}{finding.check}: {finding.found}"]
    if finding.mend:
        lines.append(f"{'':{WIDTH}}→ {finding.mend}")
    return "\n".join(lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
