"""What is written beside the figures."""

import csv
import json
import logging
import sys
from pathlib import Path

import pytest

from tests.core.accuracy_tables import accuracy_table
from tocom_core.accuracy_report import as_document, as_markdown, write_report


def test_the_table_has_one_line_per_degree() -> None:
    """Plain merging and the bank side by side; nothing where the bank does not reach."""
    lines = as_markdown(accuracy_table()).splitlines()
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:6] == ["8", "1.70", "1.47 ×", "108.0", "78.00%", "82.00%"]
    assert cells[6].startswith("+4.00 (+1.") and cells[7].startswith("33 % (")
    assert lines[4].split("|")[6].strip() == ""


def test_columns_follow_what_was_measured() -> None:
    """No timing, no labels, several origins."""
    assert "images/s" not in as_markdown(accuracy_table(timed=False))
    unlabelled = as_markdown(accuracy_table(labelled=False))
    assert "top-1" not in unlabelled and "agreement bank" in unlabelled
    several = as_markdown(accuracy_table(sources=(0, 8))).splitlines()
    assert several[0].startswith("| r_source | r |") and len(several) == 2 + 6


@pytest.mark.parametrize("labelled", [True, False])
def test_a_report_is_json_csv_markdown_and_pictures(tmp_path: Path, labelled: bool) -> None:
    """Each complete in itself, and the Markdown shows the pictures."""
    table = accuracy_table(labelled=labelled)
    write_report(tmp_path / "out", table)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "accuracy_by_r.png",
        "accuracy_by_throughput.png",
        "evaluation.csv",
        "evaluation.json",
        "evaluation.md",
    ]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == table
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "(accuracy_by_r.png)" in text and "(accuracy_by_throughput.png)" in text
    with (tmp_path / "out" / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["r"]) for row in rows] == [0, 0, 8, 8, 16]
    low, middle, high = (float(rows[3][f"kl_cut{end}"]) for end in ("_low", "", "_high"))
    assert low <= middle <= high
    assert ("top1" in rows[0]) == labelled and "top1_interval" not in rows[0]
    assert float(rows[0]["images_per_s_low"]) == 98.0


def test_without_matplotlib_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says how to get the pictures."""
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with caplog.at_level(logging.WARNING):
        write_report(tmp_path, accuracy_table())
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["evaluation.csv", "evaluation.json", "evaluation.md"]
    assert [record.getMessage() for record in caplog.records if "tocom-serve[plots]" in record.msg]
    assert ".png" not in (tmp_path / "evaluation.md").read_text()


def test_the_document_tells_how_it_came_about() -> None:
    """The search with its validation images, notes, skipped images."""
    table = accuracy_table() | {"notes": ["The timing was disturbed."], "skipped_images": 3}
    table["scaling_search"] = {
        "data": "pictures, split train",
        "images": 50,
        "rows": [
            {
                **{"r_source": 0, "r": None, "scaling": s, "top1": 0.5, "kl": s},
                **{"eligible": s < 0.2, "chosen": s == 0.05},
            }
            for s in (0.05, 0.1, 0.2)
        ],
    }
    text = as_document(table)
    assert "On 50 validation images (pictures, split train)" in text
    assert "lowest mean KL of the eligible" in text and "one standard error" in text
    for scaling, mark in (("0.05", "chosen"), ("0.1", "eligible"), ("0.2", "")):
        assert f"| 0 | all | {scaling} | 50.00% | {float(scaling):.4f} | {mark} |" in text
    assert "- The timing was disturbed." in text
    assert "3 unreadable ones left out" in text
    assert "bank, s=0.1" in text and "K=8, rank 2" in text


def test_the_document_names_the_method() -> None:
    """Merging with or without proportional attention; pruning never as merging."""
    merging = as_document(accuracy_table())
    assert "- Method: `merge`, proportional attention on (`prop_attn`)" in merging
    assert "plain token merging loses" in merging
    plain = as_document(accuracy_table() | {"prop_attn": False})
    assert "proportional attention off" in plain
    pruning = as_document(accuracy_table() | {"method": "prune"})
    assert "- Method: `prune`\n" in pruning and "plain token pruning loses" in pruning
    assert "merg" not in pruning
