"""Where a profile's accuracies come from: an evaluation's table, or agreement without labels."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from server.degrees import table_accuracies
from server.engine import Engine
from server.errors import ServeError, SettingsError
from server.stored_profile import differences
from tocom_core.errors import DataError
from tocom_core.latency_profile import Accuracy
from tocom_core.models import LoadedModel
from tocom_core.sources import UNREADABLE, decode_rgb, open_source

logger = logging.getLogger(__name__)

NO_ANSWER = -1
"""The class of an image for which the model gave no finite scores; it agrees with none."""

Classes = np.ndarray[tuple[int], np.dtype[np.int64]]


def read_evaluation(path: Path, engine: Engine) -> tuple[Accuracy, ...]:
    """Top-1 per degree from what `tocom evaluate --output` wrote, for the way the model is served.

    Args:
        path: `evaluation.json`, or the folder that it is in.
        engine: the model that is served, with or without a bank.

    Raises:
        SettingsError: it cannot be read, is of another model, or tells no accuracy.
    """
    if path.is_dir():
        path = path / "evaluation.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = _own_rows(table, engine)
        _check_model(path, table, rows, engine)
        found = table_accuracies({**table, "rows": rows}, with_bank=engine.bank is not None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"--evaluation {path}: it is not what 'tocom evaluate --output' writes for labelled "
            f"images ({type(error).__name__}: {error})"
        ) from error
    return tuple(accuracy for accuracy in found if accuracy.r in engine.work)


def _own_rows(table: dict[str, Any], engine: Engine) -> list[dict[str, Any]]:
    """The rows of the way the model is served: its own `r_source`, with or without the bank."""
    with_bank = engine.bank is not None
    return [
        row
        for row in table["rows"]
        if row["bank"] == with_bank and row["r_source"] == engine.r_source
    ]


def _check_model(
    path: Path, table: dict[str, Any], rows: Sequence[dict[str, Any]], engine: Engine
) -> None:
    """Refuse figures of another model, bank or factor.

    The head is not compared: the evaluation does not tell its digest.
    """
    bank = table["bank"] if engine.bank is not None else None
    there = {"digest": table["digest"], "method": table["method"], "prop_attn": table["prop_attn"]}
    there["bank"] = bank["digest"] if bank else None
    here = {name: engine.model_identity[name] for name in there}
    if other := differences(there, here):
        raise SettingsError(f"--evaluation {path}: it is of another model: {other}")
    if not rows:
        raise SettingsError(
            f"--evaluation {path}: no row has r_source={engine.r_source} and "
            f"bank={engine.bank is not None}, as the model is served; evaluate it that way"
        )
    scalings = {row["scaling"] for row in rows} - {engine.scaling}
    if scalings:
        raise SettingsError(
            f"--evaluation {path}: scaling {sorted(scalings)} there, {engine.scaling} here; give "
            "--scaling, or evaluate with the one that is served"
        )


def calibration_images(place: str, count: int, loaded: LoadedModel) -> list[Tensor]:
    """Images as the model takes them, evenly spread over a data set; labels are not needed.

    Args:
        place: as of `tocom_core.sources.open_source`.
        count: at most so many.
        loaded: the model, for its transform.

    Returns:
        uint8 `(3, H, W)` each; unreadable ones are left out, with a warning.

    Raises:
        DataError: there is no data set at that place, or no readable image in it.
    """
    source = open_source(place)
    count = min(count, len(source))
    images = []
    for number in tqdm(range(count), desc="reading", unit="image", leave=False):
        index = number * len(source) // count
        try:
            images.append(loaded.transform(decode_rgb(source.image_bytes(index))))
        except UNREADABLE as error:
            logger.warning("%s left out: %s", source.name(index), error)
    if not images:
        raise DataError(f"{place} has no readable image; name another data set")
    return images


def measure_agreement(
    engine: Engine, images: Sequence[Tensor], degrees: Iterable[int], batch: int
) -> tuple[Accuracy, ...]:
    """How often each degree's first class is the one at `r_source`.

    Args:
        engine: nobody else uses it meanwhile.
        images: as `calibration_images` gives them; at least one.
        degrees: which; 1 at `r_source`, by definition.
        batch: images per forward pass.

    Raises:
        ForwardFailed: the model cannot run them.
    """
    reference = _first_classes(engine, images, engine.r_source, batch)
    found = []
    for r in tqdm(list(degrees), desc="agreement", unit="degree", leave=False):
        own = _first_classes(engine, images, r, batch)
        agrees = (own == reference) & (reference != NO_ANSWER)
        value = 1.0 if r == engine.r_source else float(agrees.mean())
        found.append(Accuracy(r, value, "agreement", len(images)))
    return tuple(found)


def _first_classes(engine: Engine, images: Sequence[Tensor], r: int, batch: int) -> Classes:
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    outputs = [output for part in parts for output in engine.run_blocking(part, r).outputs]
    classes = [NO_ANSWER if isinstance(o, ServeError) else int(o.argmax()) for o in outputs]
    return np.array(classes)
