"""What a run writes down."""

import csv
import sys
from pathlib import Path

import pytest

from tocom_core.errors import TrainingError
from tocom_core.run_log import CsvLog, open_log


def read_log(folder: Path) -> list[list[str]]:
    """The rows of log.csv."""
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_the_csv_log_is_cut_back(tmp_path: Path) -> None:
    """Rows after the step that a run goes on from are dropped; from 0 on everything is new."""
    log = CsvLog(tmp_path / "log.csv")
    log.start(0)
    for step in (1, 2, 3):
        log.write(step, {"a": step / 3, "b": 1.0})
    log.start(2)
    assert read_log(tmp_path) == [
        ["step", "name", "value"],
        ["1", "a", "0.333333"],
        ["1", "b", "1"],
        ["2", "a", "0.666667"],
        ["2", "b", "1"],
    ]
    log.start(0)
    assert read_log(tmp_path) == [["step", "name", "value"]]


def test_tensorboard_events_can_be_read_back(tmp_path: Path) -> None:
    """Each figure is a scalar at its step; after a resume the later points are replaced."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path, "both")
    log.start(0)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    again = open_log(tmp_path, "both")
    again.start(2)
    again.write(3, {"loss": 7.0})

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 7.0)]
    assert read_log(tmp_path)[1:] == [["1", "loss", "1"], ["2", "loss", "2"], ["3", "loss", "7"]]


def test_tensorboard_that_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package and the way without it."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="pip install tensorboard, or use --log csv"):
        open_log(tmp_path, "tensorboard")


def test_no_log_writes_nothing(tmp_path: Path) -> None:
    """Processes other than the first one keep quiet."""
    log = open_log(tmp_path, "none")
    log.start(0)
    log.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
