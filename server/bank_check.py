"""``tocom bank check``: whether a bank fits a model, and with images whether it helps.

Exit code 0: it fits; 1: it does not, or with ``--strict`` there is a warning.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from server.settings import Settings
from server.settings_sources import RaisingParser, load_settings
from tocom_core.errors import BankError, BankMismatchWarning

if TYPE_CHECKING:
    from tocom_core.bank import Bank
    from tocom_core.bank_agreement import AgreementTable
    from tocom_core.bank_fit import Finding
    from tocom_core.models import LoadedModel

PROG = "tocom bank check"


def main(argv: Sequence[str]) -> int:
    """Print what was found, as text or JSON; 1 if the bank does not fit.

    Raises:
        SettingsError: a flag or setting is wrong.
        TocomError: the model or the images cannot be read.
    """
    given, rest = _build_parser().parse_known_args(argv)
    settings = load_settings(rest)
    from server.model_parts import read_model  # takes seconds; wrong usage is told before
    from tocom_core.bank_fit import examine

    loaded = read_model(settings)
    bank, place, missing = _read_bank(settings, loaded)
    findings = missing if bank is None else examine(loaded, bank, _serving(settings))
    table = None
    if given.images is not None and bank is not None and _fits(findings):
        table = _measure(given, settings, loaded, bank)
        findings.append(_verdict(table))
    fits = _fits(findings, strict=given.strict)
    if given.json:
        print(json.dumps(_as_json(loaded, place, fits, findings, table), indent=2))
    else:
        print(_as_text(loaded, place, fits, findings, table))
    return int(not fits)


def _build_parser() -> argparse.ArgumentParser:
    parser = RaisingParser(
        prog=PROG,
        description="Check whether a bank fits a model: sizes, backbone, method, degrees, finite "
        "weights. Exit code 0: it fits; 1: it does not.",
        epilog="All flags of 'tocom serve' are taken too and should be as they will be when it is "
        "served: --model, --architecture, --bank, --r-source, --scaling, --method, --prop-attn, "
        "--max-r, --dtype, --device.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON")
    add("--strict", action="store_true", help="warnings count as well")
    add(
        "--images",
        metavar="DATA",
        help="images, labels not needed, to measure how often each degree's answer is the one at "
        "r_source, with and without the bank: a folder, parquet files or WebDataset shards",
    )
    add("--count", type=_positive, default=100, metavar="N", help="at most so many of them [100]")
    add("--degrees", nargs="+", type=int, metavar="R", help="[four, up to the highest]")
    return parser


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def _read_bank(
    settings: Settings, loaded: "LoadedModel"
) -> tuple["Bank | None", str, list["Finding"]]:
    """The bank, its name, and what is wrong where there is none."""
    from server.model_parts import read_bank
    from tocom_core.bank_fit import Finding

    try:
        bank, path = read_bank(settings, loaded)
    except BankError as error:
        mend = "name a bank's file, folder or repository: --bank …"
        return None, settings.bank, [Finding("error", "file", str(error), mend)]
    if bank is None:
        found = "--bank none asks for none" if settings.bank == "none" else "there is none for it"
        mend = "name one (--bank FILE), or train one: tocom train --model …"
        return None, settings.bank, [Finding("error", "file", found, mend)]
    return bank, str(path) if settings.bank == "auto" else settings.bank, []


def _serving(settings: Settings) -> Any:
    from tocom_core.bank_fit import Serving
    from tocom_core.precision import PRECISIONS

    return Serving(
        method=settings.method if "method" in settings.model_fields_set else None,
        prop_attn=settings.prop_attn,
        scaling=settings.scaling,
        max_r=settings.max_r,
        dtype=PRECISIONS[settings.dtype].dtype,
    )


def _fits(findings: Sequence["Finding"], *, strict: bool = False) -> bool:
    bad = {"error", "warning"} if strict else {"error"}
    return all(finding.severity not in bad for finding in findings)


def _measure(
    given: argparse.Namespace, settings: Settings, loaded: "LoadedModel", bank: "Bank"
) -> "AgreementTable":
    from tocom_core.bank_agreement import evenly, measure, spread_degrees
    from tocom_core.compressed_vit import CompressedViT
    from tocom_core.models import pick_device
    from tocom_core.precision import use_precision
    from tocom_core.sources import open_source

    device = pick_device(settings.device)
    vit = loaded.vit.to(device, use_precision(settings.dtype, device).dtype)
    method = settings.method if "method" in settings.model_fields_set else bank.method
    model = CompressedViT(vit, method, loaded.choose_prop_attn(settings.prop_attn, bank))
    images = evenly(open_source(given.images), given.count)
    degrees = given.degrees or spread_degrees(model, bank, loaded.r_source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BankMismatchWarning)  # a finding of its own
        return measure(model, loaded, bank, images, degrees, scaling=settings.scaling)


def _verdict(table: "AgreementTable") -> "Finding":
    """What the images say; only what is beyond chance counts."""
    from tocom_core.bank_fit import Finding

    change = table.kl_change
    text = (
        f"on {table.images} images the bank changes the KL divergence from r_source by "
        f"{change.mean:+.4f} ({change.low:+.4f} … {change.high:+.4f})"
    )
    if change.low > 0:
        mend = "serve without it (--bank none), or with a smaller --scaling, or train one"
        return Finding("error", "images", f"{text}: it harms", mend)
    if change.high < 0:
        return Finding("ok", "images", f"{text}: it helps")
    return Finding("note", "images", f"{text}: too close to tell; --count takes more images")


def _as_json(
    loaded: "LoadedModel",
    place: str,
    fits: bool,
    findings: Sequence["Finding"],
    table: "AgreementTable | None",
) -> dict[str, Any]:
    return {
        "fits": fits,
        "model": loaded.name,
        "bank": place,
        "findings": [asdict(finding) for finding in findings],
        "agreement": None if table is None else asdict(table),
    }


def _as_text(
    loaded: "LoadedModel",
    place: str,
    fits: bool,
    findings: Sequence["Finding"],
    table: "AgreementTable | None",
) -> str:
    lines = []
    for finding in findings:
        lines.append(f"  {finding.severity:8} {finding.about:10} {finding.message}")
        if finding.mend:
            lines.append(f"  {'':8} {'':10} → {finding.mend}")
    if table is not None:
        lines += [
            "",
            "    r   plain  with bank   gain (95 %)                KL plain  KL with bank",
        ]
        lines += [
            f"  {row.r:>3}  {row.plain:>6.1%}  {row.with_bank:>9.1%}   {row.gain.mean:+6.1%} "
            f"({row.gain.low:+6.1%} … {row.gain.high:+6.1%})   {row.kl_plain:>8.4f}  "
            f"{row.kl_with_bank:>12.4f}"
            for row in table.rows
        ]
    verdict = "fits" if fits else "does not fit"
    return "\n".join([f"{place} {verdict} {loaded.name}", *lines])
