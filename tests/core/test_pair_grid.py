"""How good a bank is, on a fixed grid of pairs and images."""

from pathlib import Path

import pytest
import torch

from tests.core import zoo
from tests.core.pictures import write_folder
from tocom_core import Bank, CompressedViT, WeightMerger
from tocom_core.bank_header import BankHeader
from tocom_core.evaluation import kl_divergence, predict
from tocom_core.models import describe
from tocom_core.pair_grid import PairGrid, as_markdown, grid_of_pairs
from tocom_core.self_distillation import CompensatedViT, soft_target_divergence
from tocom_core.sources import open_source

K = 4


def make_student(scale: float) -> tuple[CompensatedViT, Bank]:
    """A small random model with a random bank."""
    model = CompressedViT(zoo.build("test_vit"))
    bank = Bank(BankHeader("", model.embed_dim, model.depth, K, 2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return CompensatedViT(model, bank), bank


@pytest.mark.parametrize(
    ("groups", "anchor", "expected"),
    [
        (16, 0, {(0, 4), (0, 8), (0, 12), (0, 16), (16, 0), (8, 0), (16, 8)}),
        (16, 16, {(16, 0), (16, 4), (16, 8), (16, 12), (8, 0)}),
        (2, 0, {(0, 1), (0, 2), (2, 0), (1, 0), (2, 1)}),
        (1, 0, {(0, 1), (1, 0)}),
    ],
)
def test_grid_of_pairs(groups: int, anchor: int, expected: set[tuple[int, int]]) -> None:
    """From the anchor to each quarter, and between the ends and the middle; none twice."""
    pairs = grid_of_pairs(groups, anchor)
    assert set(pairs) == expected
    assert len(pairs) == len(expected)


def test_the_grid_measures_what_serving_would(tmp_path: Path) -> None:
    """Distances to the teacher at m of the model served at n, with merged weights and without."""
    student, bank = make_student(0.5)
    loaded = describe(student.model.vit, "test_vit")
    source = open_source(write_folder(tmp_path, 10))
    figures = PairGrid(
        student, loaded, source, soft_target_divergence(), [(0, 3), (3, 1)], batch_size=4
    )()

    served = student.model
    for m, n in [(0, 3), (3, 1)]:
        teacher, _ = predict(served, loaded, source, m)
        plain, _ = predict(served, loaded, source, n)
        merger = WeightMerger(served, bank, m)
        merger.set_target(n)
        banked, _ = predict(served, loaded, source, n)
        merger.set_target(m)
        for name, logits in (("plain", plain), ("bank", banked)):
            expected = float(kl_divergence(teacher, logits).mean())
            assert figures[f"{name}_{m}_to_{n}"] == pytest.approx(expected, rel=0.01)
    sums = [sum(figures[f"{n}_{p}"] for p in ("0_to_3", "3_to_1")) for n in ("bank", "plain")]
    assert figures["score"] == pytest.approx(sums[0] / sums[1])
    assert figures["score"] != pytest.approx(1.0, abs=1e-3)


def test_an_untrained_bank_scores_one(tmp_path: Path) -> None:
    """1 means that the bank does nothing; asked again it says the same."""
    student, bank = make_student(0.0)
    loaded = describe(student.model.vit, "test_vit")
    source = open_source(write_folder(tmp_path, 6))
    grid = PairGrid(student, loaded, source, soft_target_divergence(), [(0, 4)])
    assert grid()["score"] == pytest.approx(1.0)
    assert grid() == grid()
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_()
    assert grid()["score"] != pytest.approx(1.0, abs=1e-3)


def test_the_table_names_each_pair() -> None:
    """One line per pair with the change in percent."""
    figures = {"score": 0.5, "plain_0_to_4": 0.2, "bank_0_to_4": 0.1}
    assert as_markdown(figures, [(0, 4)]).splitlines()[-1] == "| 0 | 4 | 0.2000 | 0.1000 | -50.0% |"


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    """One bad image among those that are held out ends no training."""
    student, _ = make_student(0.5)
    loaded = describe(student.model.vit, "test_vit")
    folder = write_folder(tmp_path, 6)
    sorted(folder.rglob("*.png"))[2].write_bytes(b"not an image")
    grid = PairGrid(student, loaded, open_source(folder), soft_target_divergence(), [(0, 4)])
    assert grid.count == 5
    assert grid()["plain_0_to_4"] > 0
