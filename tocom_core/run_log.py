"""What a training run writes down while it runs: ``log.csv``, TensorBoard events, or both."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

from tocom_core.errors import TrainingError

LogKind = Literal["csv", "tensorboard", "both", "none"]


class RunLog(Protocol):
    """Named figures over steps."""

    def start(self, step: int) -> None:
        """Drop everything after ``step``, which will be written again."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append figures."""


class CsvLog:
    """``log.csv`` in long form (step, name, value), cut back to the checkpoint on resume."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, step: int) -> None:
        """Drop everything after ``step``, which will be written again."""
        rows: list[list[str]] = []
        if step and self._path.exists():
            with self._path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if row[0] != "step" and int(row[0]) <= step]
        with self._path.open("w", newline="") as file:
            csv.writer(file).writerows([["step", "name", "value"], *rows])

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append one row per figure."""
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows(
                [step, name, f"{value:.6g}"] for name, value in figures.items()
            )


class TensorBoardLog:
    """Event files for TensorBoard; what a killed run wrote after its checkpoint is hidden."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "--log tensorboard needs the package tensorboard: pip install tensorboard, or use "
                "--log csv"
            ) from error
        self._folder, self._open = folder, SummaryWriter

    def start(self, step: int) -> None:
        """Hide everything after ``step``, which will be written again, or was written before."""
        self._writer = self._open(str(self._folder), purge_step=step + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append one point per figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


class RunLogs:
    """Several logs as one."""

    def __init__(self, logs: list[RunLog]) -> None:
        self._logs = logs

    def start(self, step: int) -> None:
        """Drop everything after ``step``, which will be written again."""
        for log in self._logs:
            log.start(step)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Append figures to every log."""
        for log in self._logs:
            log.write(step, figures)


def open_log(folder: Path, kind: LogKind) -> RunLogs:
    """The logs that were asked for, in a run's output folder.

    Raises:
        TrainingError: TensorBoard was asked for and is not installed.
    """
    logs: list[RunLog] = []
    if kind in ("csv", "both"):
        logs.append(CsvLog(folder / "log.csv"))
    if kind in ("tensorboard", "both"):
        logs.append(TensorBoardLog(folder / "tensorboard"))
    return RunLogs(logs)
