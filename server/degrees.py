"""Which degrees a model is served at, and what each of them wins and costs."""

from collections.abc import Iterator, Mapping
from typing import Any

from server.errors import SettingsError
from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.operating_point import OperatingPoint
from tocom_core.schedule import arithmetic_ratio


def highest_degree(
    model: CompressedViT, bank: Bank | None, r_source: int, asked: int | None = None
) -> int:
    """The highest degree that is served.

    With a bank: its ``K``.  Without: the highest degree that every layer can follow in full, since
    beyond it next to no tokens are left and nothing compensates for them; more only if asked for.

    Raises:
        SettingsError: more was asked for than there is.
    """
    if bank is not None:
        highest = min(bank.num_groups, model.max_r)
    else:
        in_full = (model.num_patches - 1) // model.depth
        highest = min(max(in_full, r_source, asked or 0), model.max_r)
    if asked is not None and asked > highest:
        whose = "the model" if bank is None else "the bank"
        raise SettingsError(f"max_r={asked}: {whose} reaches r={highest}; lower max_r")
    return highest


def operating_points(
    model: CompressedViT,
    highest: int,
    images_per_s: Mapping[int, float],
    accuracy: Mapping[int, float],
) -> tuple[OperatingPoint, ...]:
    """All degrees from 0 to ``highest``.

    Args:
        model: counts the multiply-adds of each degree.
        highest: the last degree.
        images_per_s: measured throughput of some degrees; the others are derived from the nearest
            measured one by the ratio of multiply-adds.
        accuracy: top-1 of some degrees.
    """
    ratios = {r: arithmetic_ratio(model, r) for r in range(highest + 1)}

    def point(r: int) -> OperatingPoint:
        throughput = images_per_s.get(r)
        if throughput is None and images_per_s:
            known = min(images_per_s, key=lambda other: (abs(other - r), other))
            throughput = images_per_s[known] * ratios[r] / ratios[known]
        ratio = ratios[r]
        if throughput is not None and 0 in images_per_s:
            ratio = throughput / images_per_s[0]
        return OperatingPoint(r, ratio, throughput, accuracy.get(r), measured=r in images_per_s)

    return tuple(map(point, ratios))


def expected_accuracy(table: Mapping[str, Any] | None, *, with_bank: bool) -> dict[int, float]:
    """Degree to top-1, from the table that a checkpoint carries, for the way it is served."""
    rows = (table or {}).get("rows", ())
    return {int(row["r"]): float(row["top1"]) for row in rows if bool(row["bank"]) == with_bank}


def most_telling_first(highest: int) -> Iterator[int]:
    """Each degree once: 0, the highest, then the middles of ever smaller gaps."""
    yield 0
    if highest == 0:
        return
    yield highest
    gaps = [(0, highest)]
    while gaps:
        narrower = []
        for low, high in gaps:
            middle = (low + high) // 2
            if middle > low:
                yield middle
                narrower += [(low, middle), (middle, high)]
        gaps = narrower
