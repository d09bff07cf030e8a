"""The pictures: what is drawn, and that drawing leaves nothing behind."""

from pathlib import Path

import matplotlib.figure
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


@pytest.mark.parametrize(("method", "done"), [("merge", "merging"), ("prune", "pruning")])
def test_words_are_those_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, done: str
) -> None:
    """Legend and axis of a pruning bank do not speak of merging."""
    drawn: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    plot_by_degree(tmp_path / "plot.png", accuracy_table() | {"method": method})
    (axis,) = drawn[0].axes
    assert axis.get_xlabel() == f"r, tokens {method}d per layer"
    legend = axis.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    assert words == [f"plain token {done}", "with the bank", "model at r_source"]
