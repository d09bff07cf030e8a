"""The figures of the table, on images whose outcome is made up."""

import pytest
import torch
from torch import Tensor

from tocom_core.accuracy_rows import accuracy_rows
from tocom_core.image_figures import ImageFigures
from tocom_core.predictions import Variant

OWN, PLAIN, BANK = Variant(0, 0), Variant(0, 8), Variant(0, 8, 0.1)
COSTS = {0: {"gflops": 2.0}, 8: {"gflops": 1.0}}


def told(right: int, kl: float) -> ImageFigures:
    """A hundred images of which the first ``right`` are right, and agree."""
    flags: Tensor = torch.arange(100) < right
    return ImageFigures(flags, torch.ones(100, dtype=torch.bool), flags, torch.full((100,), kl))


FIGURES = {OWN: told(90, 0.0), PLAIN: told(60, 0.4), BANK: told(80, 0.1)}


def test_the_bank_is_compared_with_plain_merging_and_both_with_r_source() -> None:
    """Gain, loss, share won back and KL, each with its paired interval."""
    own, plain, bank = accuracy_rows([OWN, PLAIN, BANK], FIGURES, COSTS, labelled=True)
    assert (bank["r_source"], bank["r"], bank["bank"], bank["scaling"]) == (0, 8, True, 0.1)
    assert (plain["bank"], plain["scaling"], plain["gflops"]) == (False, None, 1.0)
    assert (plain["top1"], plain["top5"]) == (pytest.approx(0.6), 1.0)
    assert bank["gain"][0] == pytest.approx(0.2) and 0.1 < bank["gain"][1] < 0.2
    assert plain["top1_loss"][0] == pytest.approx(0.3)
    assert bank["top1_loss"][0] == pytest.approx(0.1)
    assert bank["won_back"][0] == pytest.approx(2 / 3)
    assert 0.4 < bank["won_back"][1] < 2 / 3 < bank["won_back"][2] < 0.9
    assert bank["kl_change"] == pytest.approx([-0.3, -0.3, -0.3])
    assert bank["kl_cut"] == pytest.approx([0.75, 0.75, 0.75])
    assert bank["top1_interval"][0] == bank["top1"]
    assert own["top1_loss"] == [0.0, 0.0, 0.0] and "gain" not in own


def test_no_share_is_told_where_nothing_is_lost() -> None:
    """A loss of one image in a hundred may be none: its share would be noise over noise."""
    figures = {OWN: told(90, 0.0), PLAIN: told(89, 0.0), BANK: told(91, 0.0)}
    row = accuracy_rows([BANK], figures, COSTS, labelled=True)[0]
    assert row["won_back"] is None and row["kl_cut"] is None
    assert row["gain"][0] == pytest.approx(0.02)


def test_unlabelled_images_have_no_accuracy() -> None:
    """Agreement and KL are left."""
    row = accuracy_rows([BANK], FIGURES, COSTS, labelled=False)[0]
    assert not {"top1", "top5", "gain", "won_back", "top1_loss"} & set(row)
    assert row["agreement"] == pytest.approx(0.8) and row["kl_cut"][0] == pytest.approx(0.75)
