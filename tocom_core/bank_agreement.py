"""Does a bank help this model? How near each degree comes to ``r_source``, with it and without.

Images without labels are enough.  The same images are run both ways, so that the difference has a
narrow interval (`bootstrap`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tocom_core.bank import Bank
from tocom_core.bootstrap import Interval, paired_bootstrap
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import DegreeError
from tocom_core.models import LoadedModel
from tocom_core.predictions import Variant, VariantRunner
from tocom_core.sources import ImageSource, SubsetSource


@dataclass(frozen=True)
class Agreement:
    """How often one degree gives the class that ``r_source`` gives.

    Attributes:
        r: the degree.
        plain: share of the images without the bank.
        with_bank: share with it.
        gain: the second minus the first, with its 95 % interval.
        kl_plain: mean KL divergence from the logits at ``r_source`` in nats, without the bank.
        kl_with_bank: with it.
    """

    r: int
    plain: float
    with_bank: float
    gain: Interval
    kl_plain: float
    kl_with_bank: float


@dataclass(frozen=True)
class AgreementTable:
    """What was measured.

    Attributes:
        images: how many could be read.
        rows: one per degree.
        kl_change: of the KL divergence by the bank over all images and degrees, in nats, with its
            95 % interval; below 0 it helps.  Sharper than agreement, for each image counts.
    """

    images: int
    rows: tuple[Agreement, ...]
    kl_change: Interval


def spread_degrees(model: CompressedViT, bank: Bank, r_source: int, count: int = 4) -> list[int]:
    """Some degrees that the bank covers, evenly spread up to the highest; never ``r_source``."""
    highest = min(bank.num_groups, model.max_r)
    spread = {round(highest * step / count) for step in range(count + 1)}
    return sorted(spread - {r_source})


def evenly(source: ImageSource, count: int) -> ImageSource:
    """At most so many images of a source, from all of it."""
    count = min(count, len(source))
    return SubsetSource(source, [number * len(source) // count for number in range(count)])


def measure(
    model: CompressedViT,
    loaded: LoadedModel,
    bank: Bank,
    source: ImageSource,
    degrees: Sequence[int],
    *,
    scaling: float | None = None,
    batch_size: int = 32,
) -> AgreementTable:
    """Run all images at ``r_source`` and at each degree both ways.

    Args:
        model: on its device; its weights are as before afterwards.
        loaded: where it comes from.
        bank: fits the model.
        source: labels are not needed; images that cannot be read are left out.
        degrees: at least one, other than ``r_source``.
        scaling: ``s``; default: the bank's own.
        batch_size: images per forward pass.

    Raises:
        DegreeError: a degree that the bank does not cover, or ``r_source`` itself.
        DataError: no image can be read.
        BankError: the bank does not fit.
        CheckpointError: logits that are not finite.
    """
    for r in degrees:
        bank.check_degree(r)
        if r == loaded.r_source:
            raise DegreeError(
                f"r={r} is r_source itself, where the bank does nothing; leave it out"
            )
    factor = bank.scaling if scaling is None else scaling
    pairs = [(Variant(loaded.r_source, r), Variant(loaded.r_source, r, factor)) for r in degrees]
    runner = VariantRunner(model, loaded, bank, batch_size, skip_unreadable=True)
    found = runner.figures(source, [variant for pair in pairs for variant in pair])
    rows, changes = [], []
    for plain, compensated in pairs:
        without, own = found[plain], found[compensated]
        changes.append((own.kl - without.kl).double())
        rows.append(
            Agreement(
                plain.r,
                float(without.agrees.double().mean()),
                float(own.agrees.double().mean()),
                paired_bootstrap(own.agrees.double() - without.agrees.double()),
                float(without.kl.mean()),
                float(own.kl.mean()),
            )
        )
    change = paired_bootstrap(torch.stack(changes).mean(dim=0))
    return AgreementTable(len(changes[0]), tuple(rows), change)
