"""The report of a bench: complete, readable, and JSON that every parser takes."""

import csv
import json
from pathlib import Path

import pytest

from server.bench_report import BenchReport, as_json, as_markdown, write_summary
from server.capacity import Capacity
from server.fates import Fate, summarise, write_requests
from server.replay import Replay

FATES = (
    Fate(0.0, 0.1, "ok", 4, 1.0, 2),
    Fate(0.5, 0.9, "ok", 8, 0.0, 1),
    Fate(1.0, 1.01, "shed", None),
)


def finished(seed: int, *, fates: tuple[Fate, ...] = FATES, kept_up: bool = True) -> Replay:
    """A replay of these fates."""
    figures = summarise(fates, 0.3, seconds=2)
    return Replay(seed, fates, figures, 0.001, 0.002, kept_up, {})


def report(*replays: Replay) -> BenchReport:
    """A report of a bench that replayed these."""
    return BenchReport(
        "tocom bench --trace step",
        "step",
        [f"step as seed {replay.seed}" for replay in replays],
        "vit (abc)",
        "cpu, float32",
        0.3,
        0.25,
        0.03,
        [Capacity(0, 35.0), Capacity(16, 68.0)],
        replays=list(replays),
    )


def test_json_holds_every_figure_per_seed_and_over_seeds() -> None:
    """With the units in the names, and nothing that JSON does not know."""
    told = json.loads(json.dumps(as_json(report(finished(0), finished(1))), allow_nan=False))
    assert (told["slo_ms"], told["server_slo_ms"], told["single_latency_ms"]) == (300, 250, 30)
    assert told["capacities"][1] == {"r": 16, "images_per_s": 68}
    assert [seed["seed"] for seed in told["seeds"]] == [0, 1]
    assert told["seeds"][0]["attainment"] == pytest.approx(1 / 3)
    assert told["seeds"][0]["replayed"] == "step as seed 0"
    assert told["over_seeds"]["attainment"]["median"] == pytest.approx(1 / 3)
    assert told["valid"] is True and told["complete"] is False


def test_a_bench_without_results_is_json_too() -> None:
    """Ctrl-C during the first measurement: nulls, not NaN."""
    told = json.loads(json.dumps(as_json(BenchReport("tocom bench", "step")), allow_nan=False))
    assert told["slo_ms"] is None and told["seeds"] == [] and told["over_seeds"] == {}
    assert "Replay of step" in as_markdown(BenchReport("tocom bench", "step"))


def test_markdown_has_one_row_per_seed_and_the_median() -> None:
    """Shares in percent, latencies in milliseconds, all rows equally wide."""
    text = as_markdown(report(finished(0), finished(1)))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert len({line.count("|") for line in rows}) == 1
    assert "33.33%" in rows[2] and "| 400 |" in rows[2]
    assert "33.33% (33.33% to 33.33%)" in rows[4]
    assert "capacity at r=16: 68.0 images/s" in text


def test_a_late_client_is_told_loudly() -> None:
    """In the text, in the row, and in the JSON."""
    late = report(finished(0), finished(1, kept_up=False))
    assert "**Not valid**" in as_markdown(late)
    assert as_json(late)["valid"] is False


def test_unknown_correctness_says_why() -> None:
    """And shows no number for it."""
    unlabelled = report(finished(0, fates=(Fate(0.0, 0.1, "ok", 4),)))
    unlabelled.correctness_unknown = "no --images with labels were given"
    assert as_json(unlabelled)["seeds"][0]["on_time_correct"] is None
    assert "no --images" in as_json(unlabelled)["correctness_unknown"]
    assert "correctness is not known: no --images" in as_markdown(unlabelled)


def test_files_hold_the_report_and_every_request(tmp_path: Path) -> None:
    """What is not known is an empty cell; the CSV's arrivals can be replayed again."""
    write_summary(tmp_path, report(finished(0)))
    write_requests(tmp_path / "requests.csv", FATES)
    assert json.loads((tmp_path / "report.json").read_text())["trace"] == "step"
    assert (tmp_path / "report.md").read_text().startswith("# Replay of step")
    with (tmp_path / "requests.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["outcome"] for row in rows] == ["ok", "ok", "shed"]
    assert [row["r"] for row in rows] == ["4", "8", ""]
    assert [row["correct"] for row in rows] == ["1", "0", ""]
    assert float(rows[1]["done_s"]) - float(rows[1]["arrival_s"]) == pytest.approx(0.4)
