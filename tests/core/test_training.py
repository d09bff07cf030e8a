"""The training loop: what it does each step, and that a resumed run is the same run."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.core.pictures import write_folder
from tocom_core.data import TrainingImages
from tocom_core.errors import DataError, TrainingError
from tocom_core.sources import open_source
from tocom_core.training import (
    LoopOptions,
    StepLog,
    TrainingLoop,
    learning_rate,
    parameter_groups,
)

STEPS_PER_EPOCH = 5  # 20 images, 4 a step
STEPS = 8


def jitter(image: Image.Image) -> Tensor:
    """RGB image to float ``(192,)`` with random noise, as an augmentation has."""
    pixels = torch.from_numpy(np.array(image)).flatten() / 255
    return pixels + 0.1 * torch.randn(192)


@pytest.fixture
def images(tmp_path: Path) -> TrainingImages:
    """Twenty digits with random noise."""
    return TrainingImages(open_source(write_folder(tmp_path / "digits", 20)), jitter, seed=0)


class Learner(nn.Module):
    """A linear classifier behind dropout, which draws from the step's generator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classify = nn.Linear(192, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Classify ``(B, 192)`` pixels."""
        logits: Tensor = self.classify(self.dropout(x))
        return logits


class Interruption(Exception):
    """The machine went away."""


class Loss:
    """Cross entropy that can fail or break at a step, and writes down what it saw."""

    def __init__(self, module: nn.Module, stop: int = -1, breaks: int = -1) -> None:
        self._module, self._stop, self._break = module, stop, breaks
        self.seen: list[tuple[int, float]] = []

    def __call__(
        self, step: int, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Compute the loss of one step, unless it is the one to fail at."""
        if step == self._stop:
            raise Interruption
        self.seen.append((step, float(images.sum())))
        loss = nn.functional.cross_entropy(self._module(images), labels)
        return loss * (math.nan if step == self._break else 1.0), {"images": float(len(images))}


def options(output: Path, **changes: Any) -> LoopOptions:
    """Eight steps of four images, checkpoints at every fourth."""
    fields: dict[str, Any] = {
        "output": output,
        "epochs": STEPS / STEPS_PER_EPOCH,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_steps": 2,
        "checkpoint_every": 4,
        "log_every": 1,
        "workers": 0,
        "device": "cpu",
    }
    return LoopOptions(**{**fields, **changes})


def train(images: TrainingImages, chosen: LoopOptions, **loss: int) -> tuple[Learner, Loss]:
    """One run of a fresh learner."""
    learner = Learner()
    objective = Loss(learner, **loss)
    TrainingLoop(learner, images, chosen, objective).run()
    return learner, objective


def read_log(output: Path) -> list[list[str]]:
    """The rows of log.csv."""
    with (output / "log.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("stop", [4, 5, 7])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_same_run(
    images: TrainingImages, tmp_path: Path, stop: int, workers: int
) -> None:
    """Killed after a checkpoint and started again, it ends in the same bits and the same log."""
    whole, seen = train(images, options(tmp_path / "whole"))

    parts = tmp_path / "parts"
    with pytest.raises(Interruption):
        train(images, options(parts, workers=workers), stop=stop)
    resumed, seen_again = train(images, options(parts))

    assert seen_again.seen == seen.seen[4:], "it goes on from step 4, with the same images"
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)
    assert read_log(parts) == read_log(tmp_path / "whole")


def test_a_finished_run_is_not_repeated(images: TrainingImages, tmp_path: Path) -> None:
    """Started once more after its end, it takes no step and keeps its weights."""
    trained, _ = train(images, options(tmp_path))
    again, loss = train(images, options(tmp_path))
    assert loss.seen == []
    assert torch.equal(again.classify.weight, trained.classify.weight)


def test_no_resume_starts_over(images: TrainingImages, tmp_path: Path) -> None:
    """``--no-resume`` ignores the checkpoint and the log of before."""
    with pytest.raises(Interruption):
        train(images, options(tmp_path), stop=6)
    _, loss = train(images, options(tmp_path, resume=False))
    assert [step for step, _ in loss.seen] == list(range(STEPS))
    assert [row[0] for row in read_log(tmp_path) if row[1] == "loss"] == [
        str(n) for n in range(1, STEPS + 1)
    ]


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"seed": 1}, {"batch_size": 5}, {"epochs": 3.0}])
def test_a_checkpoint_of_another_run_is_refused(
    images: TrainingImages, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Other options would give another run; the error names both values."""
    train(images, options(tmp_path))
    name, value = next(iter(change.items()))
    old = getattr(options(tmp_path), name)
    with pytest.raises(TrainingError, match=rf"another run .*{name}: {old} then, {value} now"):
        train(images, options(tmp_path, **change))


def test_options_that_change_no_number_may_differ(images: TrainingImages, tmp_path: Path) -> None:
    """Checkpoints, logs, workers and threads are no part of a run's identity."""
    with pytest.raises(Interruption):
        train(images, options(tmp_path), stop=5)
    train(images, options(tmp_path, checkpoint_every=3, log_every=2, workers=1))


@pytest.mark.parametrize("content", [b"", b"noise"], ids=["empty", "noise"])
def test_a_broken_checkpoint_is_refused(
    images: TrainingImages, tmp_path: Path, content: bytes
) -> None:
    """A checkpoint that cannot be read is named, with what to do."""
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt cannot be read.*--no-resume"):
        train(images, options(tmp_path))


def test_a_loss_that_is_not_finite_ends_the_run(images: TrainingImages, tmp_path: Path) -> None:
    """The error says where; the last checkpoint is kept, and a run can go on from it."""
    with pytest.raises(TrainingError, match=r"the loss is nan at step 6.*--lr"):
        train(images, options(tmp_path), breaks=6)
    _, loss = train(images, options(tmp_path))
    assert [step for step, _ in loss.seen] == [4, 5, 6, 7]


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(
    images: TrainingImages, tmp_path: Path
) -> None:
    """A finite loss with an infinite slope must not reach the weights."""
    learner = Learner()

    def steep(step: int, x: Tensor, labels: Tensor) -> tuple[Tensor, Mapping[str, float]]:
        return (learner.classify.weight * 0).abs().sqrt().sum(), {}

    with pytest.raises(TrainingError, match="the gradient norm is nan at step 0"):
        TrainingLoop(learner, images, options(tmp_path, warmup_steps=0), steep).run()
    assert torch.isfinite(learner.classify.weight).all()


def test_the_loop_learns_and_logs(images: TrainingImages, tmp_path: Path) -> None:
    """The loss falls; every step's figures and each validation stand in the log."""
    learner = Learner()
    calls: list[int] = []

    def validate() -> Mapping[str, float]:
        calls.append(1)
        return {"top1": 0.5}

    chosen = options(tmp_path, epochs=12.0, lr=0.05, validate_every=4.0)
    TrainingLoop(learner, images, chosen, Loss(learner), validate).run()

    rows = read_log(tmp_path)
    assert rows[0] == ["step", "name", "value"]
    losses = [float(value) for _, name, value in rows[1:] if name == "loss"]
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert [row[0] for row in rows if row[1] == "val_top1"] == ["20", "40", "60"]
    assert len(calls) == 3
    assert {row[1] for row in rows[1:]} == {
        "loss",
        "lr",
        "grad_norm",
        "images",
        "val_top1",
        "val_seconds",
    }


def test_gradients_are_clipped(images: TrainingImages, tmp_path: Path) -> None:
    """The gradient that reaches the optimizer is no longer than ``clip_grad``."""
    learner = Learner()
    loop = TrainingLoop(learner, images, options(tmp_path, clip_grad=1e-3), Loss(learner))
    loop.run()
    norm = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]).norm()
    assert float(norm) <= 1.001e-3


def test_too_few_images_are_refused(images: TrainingImages, tmp_path: Path) -> None:
    """A data set must fill one batch."""
    with pytest.raises(DataError, match="20 images do not fill one batch of 64"):
        train(images, options(tmp_path, batch_size=64))


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    """Linear to the peak, then half a cosine."""
    rates = [learning_rate(step, 100, 2.0, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, 1, 2.0, 0) == 2.0


def test_only_matrices_decay() -> None:
    """Biases, norms and what the module exempts are not decayed; frozen ones are left out."""

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(2, 3), nn.LayerNorm(3)
            self.token = nn.Parameter(torch.zeros(1, 1, 3))
            self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

        def no_weight_decay(self) -> set[str]:
            return {"token"}

    module = Module()
    decayed, plain = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [id(p) for p in decayed["params"]] == [id(module.linear.weight)]
    assert plain["weight_decay"] == 0.0
    assert len(plain["params"]) == 4


def test_step_log_is_cut_back(tmp_path: Path) -> None:
    """Rows after the step that a run goes on from are dropped; from 0 on everything is new."""
    log = StepLog(tmp_path / "log.csv")
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
