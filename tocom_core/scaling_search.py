"""Choose the factor on a bank's deltas, on images that no accuracy is reported on.

The paper trains with ``s`` = 0.1 and searches ``s`` at use.  The criterion here is top-1, averaged
over the degrees served; but on a thousand images the highest top-1 is often the luckiest.  So all
scalings whose mean top-1 is within one standard error of the highest (paired bootstrap of the
difference) count as equal, and of these the one with the lowest mean KL to the model at its own
degree is taken.  KL also decides alone where there are no labels, or where the model knows the
validation images by heart.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tocom_core.bootstrap import Estimate, estimates
from tocom_core.errors import BankError
from tocom_core.evaluation_images import JudgingImages
from tocom_core.image_figures import ImageFigures
from tocom_core.predictions import Variant, VariantRunner

PAPER_SCALINGS = (0.01, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15)
"""The grid that the paper searches."""

Pair = tuple[int, int]
"""``(r_source, r_target)``."""


@dataclass(frozen=True)
class Search:
    """What was chosen, and from what.

    Attributes:
        chosen: scaling for each pair of degrees.
        images: how many validation images it was chosen on.
        rows: one per candidate: ``r_source``, ``r`` (``None``: for all degrees), ``scaling``,
            ``top1`` (``None`` without labels), ``kl``, ``eligible`` (its top-1 is within the
            error of the highest), ``chosen``.
    """

    chosen: Mapping[Pair, float]
    images: int
    rows: Sequence[Mapping[str, Any]]


def parse_scalings(given: Sequence[str] | None, own: float) -> list[float]:
    """Factors from words.

    Args:
        given: numbers, or ``search`` for the paper's grid and the bank's own.
        own: the bank's own, if nothing is given.

    Raises:
        BankError: a word is neither.
    """
    found: list[float] = []
    for word in given or ():
        try:
            values = [*PAPER_SCALINGS, own] if word == "search" else [float(word)]
        except ValueError:
            values = [math.nan]
        if not all(map(math.isfinite, values)):
            raise BankError(f"scaling={word!r} must be a finite number, or search")
        found += values
    return list(dict.fromkeys(found)) or [own]


def search_scaling(
    runner: VariantRunner,
    validation: JudgingImages,
    pairs: Sequence[Pair],
    scalings: Sequence[float],
    *,
    per_degree: bool = False,
) -> Search:
    """Try all scalings on the validation images.

    Args:
        runner: with the bank.
        validation: images that are not evaluated on.
        pairs: the degrees to serve; where the two are equal the bank does nothing.
        scalings: the candidates.
        per_degree: choose one for each pair, instead of one for each ``r_source``.
    """
    apart = [pair for pair in pairs if pair[0] != pair[1]]
    variants = [Variant(*pair, scaling) for pair in apart for scaling in scalings]
    figures = runner.figures(validation.source, variants) if variants else {}
    chosen: dict[Pair, float] = {pair: scalings[0] for pair in pairs}
    rows: list[dict[str, Any]] = []
    for r_source, r, group in _groups(apart, per_degree):
        tried = _rows(figures, group, scalings, validation.labelled)
        best = min((row for row in tried if row["eligible"]), key=lambda row: row["kl"])
        for row in tried:
            rows.append({"r_source": r_source, "r": r, **row, "chosen": row is best})
        served = (pair for pair in pairs if pair[0] == r_source and r in (None, pair[1]))
        chosen |= dict.fromkeys(served, best["scaling"])
    images = len(next(iter(figures.values()))) if figures else 0
    return Search(chosen, images, rows)


def _groups(
    pairs: Sequence[Pair], per_degree: bool
) -> Iterator[tuple[int, int | None, list[Pair]]]:
    """Which pairs share one scaling: those of a model, or each on its own."""
    if per_degree:
        yield from ((r_source, r, [(r_source, r)]) for r_source, r in pairs)
        return
    for r_source in dict.fromkeys(pair[0] for pair in pairs):
        yield r_source, None, [pair for pair in pairs if pair[0] == r_source]


def _rows(
    figures: Mapping[Variant, ImageFigures],
    group: Sequence[Pair],
    scalings: Sequence[float],
    labelled: bool,
) -> list[dict[str, Any]]:
    """Mean figures of each scaling over some pairs, and which of them may be chosen."""
    found = [[figures[Variant(*pair, scaling)] for pair in group] for scaling in scalings]
    kls = [float(torch.stack([of.kl.double() for of in own]).mean()) for own in found]
    top1s: list[float | None] = [None] * len(found)
    eligible = [True] * len(found)
    if labelled:
        right = estimates(torch.stack([of.right for of in own]).sum(dim=0) for own in found)
        top1s = [each.value / len(group) for each in right]
        eligible = _within_error_of_the_best(right)
    return [
        {"scaling": scaling, "top1": top1, "kl": kl, "eligible": close}
        for scaling, top1, kl, close in zip(scalings, top1s, kls, eligible, strict=True)
    ]


def _within_error_of_the_best(found: Sequence[Estimate]) -> list[bool]:
    """Which lie less than one standard error of the difference below the highest, or tie with it.

    The means must be of whole numbers, so that ties are ties.
    """
    best = max(found, key=lambda each: each.value)
    behind = [best - each for each in found]
    return [gap.value <= float(gap.samples.std()) for gap in behind]
