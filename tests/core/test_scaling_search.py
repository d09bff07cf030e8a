"""Which scaling is chosen."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.core.pictures import write_folder
from tocom_core.errors import BankError
from tocom_core.evaluation_images import ImagePlace, JudgingImages
from tocom_core.image_figures import ImageFigures
from tocom_core.predictions import Variant, VariantRunner
from tocom_core.scaling_search import PAPER_SCALINGS, parse_scalings, search_scaling
from tocom_core.sources import open_source


class FakeRunner(VariantRunner):
    """Tells made-up figures of 100 images: ``{(r, scaling): (right ones, KL, first of them)}``."""

    def __init__(self, told: Mapping[tuple[int, float], tuple[float, ...]]) -> None:
        self.told = told

    def figures(self, source, variants):
        """Those of each variant."""
        assert all(variant.r != variant.r_source for variant in variants), "nothing to choose there"
        return {variant: self._figures(variant) for variant in variants}

    def _figures(self, variant: Variant) -> ImageFigures:
        right, kl, *first = self.told[variant.r, variant.scaling or 0.0]
        flags = (torch.arange(100) - sum(first)) % 100 < right
        return ImageFigures(flags, flags, flags, torch.full((100,), kl))


@pytest.fixture
def validation(tmp_path: Path) -> JudgingImages:
    """Ten labelled images."""
    folder = write_folder(tmp_path, 10)
    return JudgingImages(open_source(folder), True, ImagePlace(str(folder)))


TOLD = {(8, 0.1): (90, 0.2), (16, 0.1): (50, 0.3), (8, 0.2): (70, 0.1), (16, 0.2): (80, 0.6)}
PAIRS = [(0, 0), (0, 8), (0, 16)]


def test_the_best_mean_top1_wins(validation: JudgingImages) -> None:
    """One scaling for all degrees of a model, also where it does nothing."""
    search = search_scaling(FakeRunner(TOLD), validation, PAIRS, [0.1, 0.2])
    assert search.chosen == dict.fromkeys(PAIRS, 0.2)
    assert search.images == 100
    assert [(row["scaling"], row["top1"], row["chosen"]) for row in search.rows] == [
        (0.1, pytest.approx(0.7), False),
        (0.2, pytest.approx(0.75), True),
    ]
    assert search.rows[1]["kl"] == pytest.approx(0.35)
    assert search.rows[1]["r"] is None and search.rows[1]["r_source"] == 0


def test_each_degree_can_have_its_own(validation: JudgingImages) -> None:
    """The best at r=8 is not the best at r=16."""
    search = search_scaling(FakeRunner(TOLD), validation, PAIRS, [0.1, 0.2], per_degree=True)
    assert (search.chosen[0, 8], search.chosen[0, 16]) == (0.1, 0.2)
    assert [row["r"] for row in search.rows] == [8, 8, 16, 16]


@pytest.mark.parametrize("labelled", [True, False])
def test_kl_decides_ties_and_unlabelled_images(
    tmp_path: Path, validation: JudgingImages, labelled: bool
) -> None:
    """Equal top-1, or none at all: the lower mean KL wins."""
    images = JudgingImages(validation.source, labelled, validation.place)
    told = {(8, 0.1): (70 if labelled else 90, 0.2), (8, 0.2): (70, 0.1), (8, 0.3): (70, 0.15)}
    search = search_scaling(FakeRunner(told), images, [(0, 8)], [0.1, 0.2, 0.3])
    assert search.chosen == {(0, 8): 0.2}
    assert (search.rows[0]["top1"] is None) == (not labelled)


@pytest.mark.parametrize(("right", "close"), [(46, True), (40, False)])
def test_noise_does_not_choose(validation: JudgingImages, right: int, close: bool) -> None:
    """Within one standard error of the highest top-1 the lower KL wins; beyond it, top-1.

    Of 100 images 30 are right with one scaling alone, ``right - 20`` with the other alone: the
    standard error is 0.075 and 0.070, the difference 0.04 and 0.10.
    """
    told = {(8, 0.1): (right, 0.1, 30), (8, 0.2): (50, 0.3), (8, 0.3): (10, 0.01)}
    search = search_scaling(FakeRunner(told), validation, [(0, 8)], [0.1, 0.2, 0.3])
    assert search.chosen == {(0, 8): 0.1 if close else 0.2}
    assert [row["eligible"] for row in search.rows] == [close, True, False]


def test_words_become_scalings() -> None:
    """Numbers, the paper's grid with the bank's own, or the bank's own alone."""
    assert parse_scalings(None, 0.3) == [0.3]
    assert parse_scalings(("0.05", "0.1", "0.05"), 0.3) == [0.05, 0.1]
    assert parse_scalings(("search",), 0.3) == [*PAPER_SCALINGS, 0.3]
    assert parse_scalings(("search",), 0.1) == list(PAPER_SCALINGS)
    for word in ("much", "nan", "inf"):
        with pytest.raises(BankError, match=f"scaling='{word}'"):
            parse_scalings(("0.1", word), 0.1)
