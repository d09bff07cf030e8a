"""``tocom classify``: image files to classes, without a server."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.errors import ServeError, SettingsError
from server.images import ImageLimits, decode, guard_pillow
from server.settings import Settings
from server.settings_sources import flag_of, load_settings

if TYPE_CHECKING:
    from server.engine import Engine

_MODEL_SETTINGS = ("model", "architecture", "labels", "bank", "r_source", "device", "dtype")


def main(argv: Sequence[str]) -> int:
    """Classify files and print the result; 1 if one of them could not be classified.

    Raises:
        SettingsError: a setting or ``--r`` is wrong.
        TocomError: the model or bank cannot be loaded.
    """
    given = _build_parser().parse_args(argv)
    settings = load_settings(_settings_flags(given))
    from server.engine import load_engine  # takes seconds; wrong usage is told before

    engine = load_engine(settings)
    try:
        r = engine.r_source if given.r is None else given.r
        if not 0 <= r <= engine.max_r:
            raise SettingsError(f"--r {r}: this model has degrees 0 to {engine.max_r}")
        results = [_classify(engine, settings, path, r, given.top_k) for path in given.files]
    finally:
        engine.close()
    print(json.dumps(results, indent=2) if given.json else "\n".join(map(_text, results)))
    return int(any("error" in result for result in results))


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tocom classify", description="Classify image files without a server."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--r", type=int, help="degree of compression [r_source]")
    parser.add_argument("--top-k", type=_positive, default=5, help="classes per image [5]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name in _MODEL_SETTINGS:
        text = f"{Settings.model_fields[name].description} Also TOCOM_{name.upper()}."
        parser.add_argument(flag_of(name), default=argparse.SUPPRESS, help=text)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def _settings_flags(given: argparse.Namespace) -> list[str]:
    """Those of the settings that were given, as ``tocom serve`` would take them."""
    return [f"{flag_of(n)}={getattr(given, n)}" for n in _MODEL_SETTINGS if n in given]


def _classify(
    engine: "Engine", settings: Settings, path: Path, r: int, top_k: int
) -> dict[str, Any]:
    from server.resizing import faster  # PyTorch is loaded by now

    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    guard_pillow(limits)
    try:
        image = decode(path.read_bytes(), limits, faster(engine.loaded.transform))
        scores = engine.run_blocking([image], r).outputs[0]
        if isinstance(scores, ServeError):
            raise scores
    except (ServeError, OSError) as error:
        return {"file": str(path), "error": str(error)}
    best = scores.argsort()[::-1][:top_k].tolist()
    predictions = [
        {"label": engine.labels[i], "index": i, "score": round(float(scores[i]), 6)} for i in best
    ]
    return {"file": str(path), "r": r, "predictions": predictions}


def _text(result: dict[str, Any]) -> str:
    if "error" in result:
        print(f"tocom: {result['file']}: {result['error']}", file=sys.stderr)
        return f"{result['file']}: not classified"
    lines = [f"  {p['score']:7.2%}  {p['label']}" for p in result["predictions"]]
    return "\n".join([f"{result['file']}: r={result['r']}", *lines])
