"""``tocom bank export``: a bank, and its model if wanted, as a repository of a hub."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.errors import SettingsError
from server.settings_sources import RaisingParser, load_settings

PROG = "tocom bank export"


def main(argv: Sequence[str]) -> int:
    """Write the folder, push it if asked to, and print what was written.

    Raises:
        SettingsError: a flag or setting is wrong, or the folder holds something.
        TocomError: model or bank cannot be read or do not fit, or the hub takes nothing.
        OSError: the folder cannot be written.
    """
    given, rest = _build_parser().parse_known_args(argv)
    settings = load_settings(rest)
    _check_folder(given.folder, given.overwrite)
    evaluation = _read_evaluation(given.evaluation)
    from server.model_parts import (  # takes seconds; wrong usage is told before
        read_bank,
        read_model,
    )
    from tocom_core.bank_card import CardOptions
    from tocom_core.bank_fit import examine
    from tocom_core.bank_repository import push, write_folder
    from tocom_core.errors import BankError

    loaded = read_model(settings)
    bank, _ = read_bank(settings, loaded)
    if bank is None:
        raise BankError(f"{loaded.name} has no bank to export; name one: --bank FILE")
    for finding in examine(loaded, bank):
        if finding.severity == "error":
            raise BankError(f"{finding.message}; 'tocom bank check' tells more")
    options = CardOptions(
        title=given.title or f"Token compensator bank for {bank.arch or loaded.architecture}",
        license=given.license,
        base_model=given.base_model,
        datasets=tuple(given.datasets),
        with_model=given.with_model,
        repository=given.push,
    )
    if evaluation is not None:
        _refuse_another_bank(evaluation, bank.digest, given.evaluation)
    elif settings.bank == "auto":  # the model's table is of the bank that goes with it
        evaluation = loaded.evaluation
    files = write_folder(given.folder, bank, options, loaded=loaded, evaluation=evaluation)
    print(f"{given.folder}: {', '.join(files)}")
    if given.push:
        address = push(given.folder, files, given.push, private=given.private)
        print(f"pushed to {address}; serve it with --bank hf-hub:{given.push}")
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = RaisingParser(
        prog=PROG,
        description="Write bank.safetensors and a model card as a repository of the Hugging Face "
        "hub, with --with-model the model in timm's layout too, and with --push upload it.",
        epilog="Which model and bank: the flags of 'tocom serve' (--model, --architecture, --bank, "
        "--labels, --r-source). Pushing needs HF_TOKEN; HF_ENDPOINT names another hub.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where to write; made if it is not there")
    add("--with-model", action="store_true", help="write the model as well")
    add("--push", metavar="OWNER/NAME", help="upload it to that repository")
    add("--private", action="store_true", help="make a repository that others do not see")
    add("--title", help="of the model card")
    add("--license", help="of what you publish, as the hub calls it: apache-2.0, say")
    add("--base-model", metavar="OWNER/NAME", help="the hub's repository of the backbone")
    add("--datasets", nargs="+", default=[], metavar="NAME", help="what it was trained with")
    add(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="accuracies for the card: what 'tocom evaluate --output' wrote [the model file's own]",
    )
    add("--overwrite", action="store_true", help="replace files in a folder that is not empty")
    return parser


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder} is a file; name a folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty; name another folder, or give --overwrite")


def _read_evaluation(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    file = path / "evaluation.json" if path.is_dir() else path
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        rows = {(int(row["r"]), bool(row["bank"])) for row in table["rows"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"--evaluation {path}: it is not what 'tocom evaluate --output' writes "
            f"({type(error).__name__}: {error})"
        ) from error
    if not any(with_bank for _, with_bank in rows):
        raise SettingsError(f"--evaluation {path}: it has no row with a bank; evaluate with one")
    return dict(table)


def _refuse_another_bank(table: Mapping[str, Any], digest: str, path: Path) -> None:
    told = table.get("bank")
    if isinstance(told, Mapping) and told.get("digest") not in (None, digest):
        raise SettingsError(f"--evaluation {path}: it is of another bank; evaluate with this one")
