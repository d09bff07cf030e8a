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
from tocom_core.errors import DataError, DataWarning, DivergedError, TrainingError
from tocom_core.loop_options import LoopOptions
from tocom_core.sources import open_source
from tocom_core.training import RunReport, TrainingLoop

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


class Loss(nn.Module):
    """Cross entropy that can fail or break at a step, and writes down what it saw."""

    def __init__(self, module: nn.Module, stop: int = -1, breaks: int = -1) -> None:
        super().__init__()
        self._module, self._stop, self._break = module, stop, breaks
        self.seen: list[tuple[int, float]] = []

    def forward(
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
    TrainingLoop(learner, objective, images, chosen).run()
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


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 5}, {"epochs": 3.0}, {"ema": 0.9}])
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


@pytest.mark.parametrize("breaks", [0, 5, 6])
def test_a_loss_that_is_not_finite_ends_the_run_and_nothing_is_lost(
    images: TrainingImages, tmp_path: Path, caplog: pytest.LogCaptureFixture, breaks: int
) -> None:
    """The last checkpoint is kept as it is; with a lower rate the run goes on from there."""
    with pytest.raises(DivergedError, match=rf"step {breaks} has the loss nan.*lower --lr"):
        train(images, options(tmp_path), breaks=breaks)
    _, loss = train(images, options(tmp_path, lr=5e-3, clip_grad=0.5))
    assert [step for step, _ in loss.seen] == list(range(4 * (breaks // 4), STEPS))
    assert ("lr: 0.01 then, 0.005 now" in caplog.text) == (breaks >= 4)


def test_a_run_that_breaks_goes_back_to_its_best_weights(
    images: TrainingImages, tmp_path: Path
) -> None:
    """Weights that a high rate has ruined are not what the checkpoint holds; the best ones are."""
    learner = Learner()
    kept: list[Tensor] = []

    def validate() -> Mapping[str, float]:
        kept.append(learner.classify.weight.detach().clone())
        return {"score": float(len(kept))}

    chosen = options(tmp_path, epochs=3.0, lr=1.0, clip_grad=0, checkpoint_every=1)
    broken = Loss(learner, breaks=12)
    with pytest.raises(DivergedError):
        TrainingLoop(learner, broken, images, chosen, validate, "score").run()
    again = Learner()
    seen: list[Tensor] = []

    class Watch(Loss):
        def forward(
            self, step: int, images: Tensor, labels: Tensor
        ) -> tuple[Tensor, Mapping[str, float]]:
            seen.append(again.classify.weight.detach().clone())
            return super().forward(step, images, labels)

    calmer = options(tmp_path, epochs=3.0, lr=1e-3, clip_grad=0, checkpoint_every=1)
    TrainingLoop(again, Watch(again), images, calmer, validate, "score").run()
    assert torch.equal(seen[0], kept[0])


def test_a_validation_that_fails_loses_no_step(images: TrainingImages, tmp_path: Path) -> None:
    """What was learned until then is in the checkpoint, and the same run can be taken up again."""
    learner = Learner()

    def validate() -> Mapping[str, float]:
        raise DataError("one test image is broken")

    with pytest.raises(DataError):
        TrainingLoop(learner, Loss(learner), images, options(tmp_path), validate).run()
    _, loss = train(images, options(tmp_path))
    assert [step for step, _ in loss.seen] == [5, 6, 7], "the first validation was after step 5"


def test_the_start_counts_if_it_is_validated(images: TrainingImages, tmp_path: Path) -> None:
    """A run that makes everything worse delivers the weights that it started from."""
    learner = Learner()
    start = learner.classify.weight.detach().clone()
    scores = iter([1.0, 2.0, 3.0])
    loop = TrainingLoop(
        *(learner, Loss(learner), images, options(tmp_path)),
        lambda: {"score": next(scores)},
        "score",
        validate_first=True,
    )
    assert loop.run().best_step == 0
    assert torch.equal(learner.classify.weight, start)


def test_a_checkpoint_knows_its_backbone(images: TrainingImages, tmp_path: Path) -> None:
    """Another model under the same name does not go on from it."""
    learner = Learner()
    for digest in ("one", "one", "another"):
        loop = TrainingLoop(
            learner, Loss(learner), images, options(tmp_path), facts={"backbone": digest}
        )
        if digest == "another":
            with pytest.raises(TrainingError, match="backbone: one then, another now"):
                loop.run()
        else:
            loop.run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0 must be 1 or more"),
        ({"accumulate": 0}, "--accumulate 0 must be 1 or more"),
        ({"log_every": 0}, "--log-every 0 must be 1 or more"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0 must be 1 or more"),
        ({"ema": 1.5}, "--ema 1.5 must be from 0 to 0.999999"),
        ({"epochs": -3.0}, "--epochs -3.0 must be above 0"),
        ({"lr": math.nan}, "--lr nan must be 0 or more"),
    ],
)
def test_values_that_no_run_can_have_are_refused(change: dict[str, Any], message: str) -> None:
    """Before anything is read, with what is allowed."""
    with pytest.raises(TrainingError, match=message):
        options(Path("out"), **change).check()


@pytest.mark.parametrize(("every", "calls"), [(0.01, STEPS), (0.4, 4), (1.0, 2), (0.0, 1)])
def test_how_often_a_run_validates(
    images: TrainingImages, tmp_path: Path, every: float, calls: int
) -> None:
    """Every so many epochs, at least each step; 0 is at the end only."""
    learner = Learner()
    seen: list[int] = []
    chosen = options(tmp_path, validate_every=every)

    def validate() -> Mapping[str, float]:
        seen.append(1)
        return {}

    TrainingLoop(learner, Loss(learner), images, chosen, validate).run()
    assert len(seen) == calls


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(
    images: TrainingImages, tmp_path: Path
) -> None:
    """A finite loss with an infinite slope must not reach the weights."""
    learner = Learner()

    class Steep(nn.Module):
        def forward(
            self, step: int, x: Tensor, labels: Tensor
        ) -> tuple[Tensor, Mapping[str, float]]:
            return (learner.classify.weight * 0).abs().sqrt().sum(), {}

    with pytest.raises(TrainingError, match=r"step 0 has the loss 0\.0 and the gradient norm nan"):
        TrainingLoop(learner, Steep(), images, options(tmp_path, warmup_steps=0)).run()
    assert torch.isfinite(learner.classify.weight).all()


def test_the_loop_learns_and_logs(images: TrainingImages, tmp_path: Path) -> None:
    """The loss falls; every step's figures and each validation stand in the log."""
    learner = Learner()
    calls: list[int] = []

    def validate() -> Mapping[str, float]:
        calls.append(1)
        return {"top1": 0.5}

    chosen = options(tmp_path, epochs=12.0, lr=0.05, validate_every=4.0)
    TrainingLoop(learner, Loss(learner), images, chosen, validate).run()

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
    loop = TrainingLoop(learner, Loss(learner), images, options(tmp_path, clip_grad=1e-3))
    loop.run()
    norm = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]).norm()
    assert float(norm) <= 1.001e-3


def test_too_few_images_are_refused(images: TrainingImages, tmp_path: Path) -> None:
    """A data set must fill one batch."""
    with pytest.raises(DataError, match="20 images do not fill one batch of 64"):
        train(images, options(tmp_path, batch_size=64))


def test_figures_are_logged_as_means_also_across_a_resume(
    images: TrainingImages, tmp_path: Path
) -> None:
    """A line of the log is the mean of the steps since the line before, however they were run."""
    train(images, options(tmp_path / "each", log_every=1))
    with pytest.raises(Interruption):
        train(images, options(tmp_path / "means", log_every=3, checkpoint_every=5), stop=6)
    train(images, options(tmp_path / "means", log_every=3, checkpoint_every=5))

    def losses(folder: str) -> dict[int, float]:
        rows = read_log(tmp_path / folder)
        return {int(step): float(value) for step, name, value in rows[1:] if name == "loss"}

    each, means = losses("each"), losses("means")
    assert list(means) == [3, 6, 8]
    assert means[6] == pytest.approx((each[4] + each[5] + each[6]) / 3, rel=1e-4)
    assert means[8] == pytest.approx((each[7] + each[8]) / 2, rel=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(
    images: TrainingImages, tmp_path: Path
) -> None:
    """Two forward passes of two images take the step that one of four takes."""
    once, _ = train_without_dropout(images, options(tmp_path / "1"))
    twice, report = train_without_dropout(
        images, options(tmp_path / "2", batch_size=2, accumulate=2)
    )
    assert report.steps == STEPS
    torch.testing.assert_close(twice.classify.weight, once.classify.weight, rtol=1e-4, atol=1e-6)
    assert not torch.equal(once.classify.weight, Learner().classify.weight)


def train_without_dropout(images: TrainingImages, chosen: LoopOptions) -> tuple[Learner, RunReport]:
    """A run in which only the images matter."""
    learner = Learner()
    learner.dropout.p = 0.0
    return learner, TrainingLoop(learner, Loss(learner), images, chosen).run()


@pytest.mark.parametrize(("name", "kept"), [("score", 10), ("-score", 15), (None, 20)])
def test_the_best_weights_are_kept(
    images: TrainingImages, tmp_path: Path, name: str | None, kept: int
) -> None:
    """By the figure that was named, low or high; else the last; a resume does not forget them."""
    weights: dict[int, Tensor] = {}
    scores = iter([3.0, 1.0, 9.0, 2.0])
    learner = Learner()

    def validate() -> Mapping[str, float]:
        weights[5 * (len(weights) + 1)] = learner.classify.weight.detach().clone()
        return {"score": next(scores)}

    chosen = options(tmp_path, epochs=4.0, validate_every=1.0)
    report = TrainingLoop(learner, Loss(learner), images, chosen, validate, name).run()
    assert report.best_step == (kept if name else None)
    assert torch.equal(learner.classify.weight, weights[kept])
    assert report.final == {"score": 2.0}

    again = Learner()
    TrainingLoop(again, Loss(again), images, chosen, validate, name).run()
    assert torch.equal(again.classify.weight, weights[kept])


def test_a_run_that_diverges_is_warned_of(
    images: TrainingImages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A validation far above the best one says so, with the step to go back to."""
    scores = iter([1.0, 1.4, 1.6])
    learner = Learner()
    chosen = options(tmp_path, epochs=3.0)
    validate = lambda: {"score": next(scores)}  # noqa: E731
    TrainingLoop(learner, Loss(learner), images, chosen, validate, "score").run()
    assert caplog.text.count("the run diverges") == 1
    assert "score is 1.6 at step 15, 1 at step 5" in caplog.text


def test_the_moving_average_is_what_a_run_delivers(images: TrainingImages, tmp_path: Path) -> None:
    """It is validated and kept; it lags behind the last weights; a resumed run has the same."""
    seen: list[Tensor] = []
    learner = Learner()

    def validate() -> Mapping[str, float]:
        seen.append(learner.classify.weight.detach().clone())
        return {}

    plain, _ = train(images, options(tmp_path / "plain"))
    chosen = options(tmp_path / "ema", ema=0.9, validate_every=0)
    TrainingLoop(learner, Loss(learner), images, chosen, validate).run()
    assert torch.equal(learner.classify.weight, seen[-1])
    start = Learner().classify.weight
    assert (learner.classify.weight - start).norm() < 0.9 * (plain.classify.weight - start).norm()

    with pytest.raises(Interruption):
        train(images, options(tmp_path / "parts", ema=0.9), stop=6)
    resumed, _ = train(images, options(tmp_path / "parts", ema=0.9))
    assert torch.equal(resumed.classify.weight, learner.classify.weight)


def test_large_steps_scale_the_learning_rate(images: TrainingImages, tmp_path: Path) -> None:
    """DeiT's rule acts from 256 images a step on, and can be turned off."""
    learner = Learner()

    def peak(**changes: Any) -> float:
        chosen = options(tmp_path, lr=1e-3, batch_size=4, **changes)
        return TrainingLoop(learner, Loss(learner), images, chosen).peak_lr

    assert peak() == 1e-3
    assert peak(accumulate=256) == 2e-3
    assert peak(accumulate=256, lr_scale=False) == 1e-3


def test_unreadable_images_are_counted(images: TrainingImages, tmp_path: Path) -> None:
    """A run goes on past them and says how many there were."""
    bad = sorted(tmp_path.rglob("*.png"))[0]
    bad.write_bytes(b"not an image")
    with pytest.warns(DataWarning, match="cannot be read"):
        _, report = train_without_dropout(images, options(tmp_path / "out", epochs=2.0))
    assert report.skipped == 2
