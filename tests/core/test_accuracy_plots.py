"""The pictures: what is drawn, and that drawing leaves nothing behind."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.core.accuracy_tables import accuracy_table
from tocom_core.accuracy_plots import plot_by_degree, plot_by_throughput

CASES = {
    "labelled": accuracy_table(),
    "unlabelled": accuracy_table(labelled=False),
    "two origins": accuracy_table(sources=(0, 8)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("plot", [plot_by_degree, plot_by_throughput])
def test_both_lines_are_drawn_in_their_colours(tmp_path: Path, plot, case: str) -> None:
    """Large enough for print, one panel per origin, both colours present."""
    plot(tmp_path / "plot.png", CASES[case])
    with Image.open(tmp_path / "plot.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width, _ = pixels.shape
    assert height >= 600 and width >= (1700 if case == "two origins" else 900)
    for colour in ((0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)):
        assert (pixels == colour).all(axis=2).sum() > 100, "a line and its marks"


def test_a_table_without_a_bank_has_one_line(tmp_path: Path) -> None:
    """Nothing is drawn in the bank's colour, in the legend neither."""
    table = accuracy_table()
    table["rows"] = [row for row in table["rows"] if not row["bank"]]
    plot_by_degree(tmp_path / "plot.png", table)
    with Image.open(tmp_path / "plot.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert not (pixels == (0x00, 0x72, 0xB2)).all(axis=2).any()
