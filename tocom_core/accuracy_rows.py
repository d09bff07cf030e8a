"""The figures of the table: what each degree costs, and what the bank wins back, with intervals.

All rows are flat: numbers, and ``[mean, low, high]`` lists for 95 % intervals (paired bootstrap
over images) or ``[median, lower, upper quartile]`` for timings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tocom_core.bootstrap import Estimate, estimates
from tocom_core.image_figures import ImageFigures
from tocom_core.predictions import Variant

Row = dict[str, Any]


@dataclass(frozen=True)
class _Means:
    """What the table takes of one variant."""

    right: Estimate
    in_top5: Estimate
    agrees: Estimate
    kl: Estimate


def accuracy_rows(
    shown: Sequence[Variant],
    figures: Mapping[Variant, ImageFigures],
    costs: Mapping[int, Row],
    *,
    labelled: bool,
) -> list[Row]:
    """One row per variant that is shown, in their order.

    Args:
        shown: variants with and without the bank.
        figures: of these, and for each ``r_source`` and ``r`` of the plain one, and of the plain
            one at ``r = r_source``, to which losses are counted.
        costs: what to add to the rows of each degree.
        labelled: whether the images have labels; else all that needs them is left out.

    Returns:
        rows with ``r_source``, ``r``, ``bank``, ``scaling``, the costs, and

        - ``top1``, ``top5``, ``agreement``, ``kl``: means; ``kl`` in nats; ``agreement`` and ``kl``
          are with the model's own weights at ``r_source``;
        - ``top1_interval``, ``agreement_interval``, ``kl_interval``: the same with intervals;
        - ``top1_loss``: top-1 at ``r_source`` minus this;
        - with the bank: ``gain`` (top-1 over plain), ``kl_change`` (mean KL minus plain's),
          ``kl_cut`` (share of plain's KL that is gone) and ``won_back`` (share of plain's top-1
          loss that is regained; ``None`` where that loss is not surely above 0).
    """
    means = _means(figures)
    rows = []
    for variant in shown:
        r_source, r, scaling = variant
        own, plain = means[variant], means[Variant(r_source, r)]
        row: Row = {"r_source": r_source, "r": r, "bank": scaling is not None, "scaling": scaling}
        row |= costs[r]
        if labelled:
            row |= _accuracy(own, means[Variant(r_source, r_source)])
        row |= _closeness(own)
        if labelled and scaling is not None:
            row |= _top1_comparison(own, plain, means[Variant(r_source, r_source)])
        if scaling is not None:
            row |= _kl_comparison(own, plain)
        rows.append(row)
    return rows


def _means(figures: Mapping[Variant, ImageFigures]) -> dict[Variant, _Means]:
    """All means from one set of resamples, so that any two can be compared."""
    found = estimates(
        column
        for image in figures.values()
        for column in (image.right, image.in_top5, image.agrees, image.kl)
    )
    return {
        variant: _Means(*found[4 * number : 4 * number + 4])
        for number, variant in enumerate(figures)
    }


def _closeness(own: _Means) -> Row:
    return {
        "agreement": own.agrees.value,
        "agreement_interval": own.agrees.interval().as_list(),
        "kl": own.kl.value,
        "kl_interval": own.kl.interval().as_list(),
    }


def _accuracy(own: _Means, reference: _Means) -> Row:
    return {
        "top1": own.right.value,
        "top1_interval": own.right.interval().as_list(),
        "top5": own.in_top5.value,
        "top1_loss": (reference.right - own.right).interval().as_list(),
    }


def _kl_comparison(own: _Means, plain: _Means) -> Row:
    return {
        "kl_change": (own.kl - plain.kl).interval().as_list(),
        "kl_cut": _share(plain.kl - own.kl, plain.kl),
    }


def _top1_comparison(own: _Means, plain: _Means, reference: _Means) -> Row:
    gain = own.right - plain.right
    return {
        "gain": gain.interval().as_list(),
        "won_back": _share(gain, reference.right - plain.right),
    }


def _share(part: Estimate, whole: Estimate) -> Sequence[float] | None:
    share = part.share_of(whole)
    return None if share is None else share.interval().as_list()
