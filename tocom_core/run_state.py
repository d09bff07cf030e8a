"""The state of a training run, and the file that it goes on from.

The file holds everything that a resumed run needs to take the very steps that it would have taken,
and says of which run it is: continuing with other data or another recipe is refused.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from tocom_core.errors import TrainingError

logger = logging.getLogger(__name__)

_FREE = frozenset(
    {"output", "workers", "device", "threads", "resume"}
    | {"checkpoint_every", "log", "log_every", "validate_every"}
)
"""Options that change nothing of what is learned."""
_ADJUSTABLE = frozenset({"lr", "clip_grad", "lr_scale"})
"""Options that somebody may have to change in the middle of a run that diverges."""

Weights = dict[str, Tensor]


@dataclass
class Best:
    """The best weights so far, by one figure of the validation.

    Attributes:
        name: the figure, the lower the better; with ``-`` in front: the higher the better; ``None``
            keeps nothing.
        value: the best figure so far.
        step: when it was reached.
        weights: the learner's state then.
    """

    name: str | None = None
    value: float | None = None
    step: int | None = None
    weights: Weights = field(default_factory=dict)

    def is_better(self, figures: Mapping[str, float]) -> bool:
        """Whether these figures beat the best so far."""
        if self.name is None:
            return False
        value = self._value(figures)
        if self.value is None:
            return value == value  # anything but NaN
        return value > self.value if self.name.startswith("-") else value < self.value

    def keep(self, figures: Mapping[str, float], step: int, weights: Weights) -> None:
        """Remember these weights."""
        self.value, self.step, self.weights = self._value(figures), step, weights

    def _value(self, figures: Mapping[str, float]) -> float:
        assert self.name is not None  # is_better has asked
        return figures[self.name.removeprefix("-")]


class Means:
    """Means of named figures since they were last taken."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, figures: Mapping[str, float]) -> None:
        """Count one more value of each figure."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Look at the means so far."""
        return {name: value / self.count for name, value in self.sums.items()}

    def take(self) -> dict[str, float]:
        """The means so far; from here on they are counted anew."""
        means = self.means()
        self.sums, self.count = {}, 0
        return means


class RunState:
    """Everything that changes from step to step.

    Args:
        learner: what learns.
        optimizer: with its moments.
        ema: the moving average of the learner's weights, if one is wanted.
        best: the best weights so far.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
        best: Best,
    ) -> None:
        self.learner, self.optimizer, self.ema, self.best = learner, optimizer, ema, best
        self.step = 0
        self.skipped = 0
        """Unreadable images that this process has passed over."""
        self.recent = Means()
        """Of the figures since the last line of the log."""

    def advance(self) -> None:
        """Count a step that the optimiser has taken."""
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.learner, step=self.step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average, if there is one, into the learner for a while."""
        if self.ema is None:
            yield
            return
        own = _copy(self.learner)
        self.learner.load_state_dict(self.ema.module.state_dict())
        try:
            yield
        finally:
            self.learner.load_state_dict(own)

    def keep_if_best(self, figures: Mapping[str, float]) -> bool:
        """Remember the present weights if these are the best figures so far; whether they are."""
        if not self.best.is_better(figures):
            return False
        with self.averaged():
            self.best.keep(figures, self.step, _copy(self.learner))
        return True

    def rewind(self) -> bool:
        """Go back to the best weights, with the moments of a new start; ``False`` without any."""
        if not self.best.weights:
            return False
        self.learner.load_state_dict(self.best.weights)
        if self.ema is not None:
            self.ema.module.load_state_dict(self.best.weights)
        self.optimizer.state.clear()
        return True

    def take_result(self) -> None:
        """Put into the learner what the run is to deliver: best, else averaged, else last."""
        if self.best.weights:
            self.learner.load_state_dict(self.best.weights)
        elif self.ema is not None:
            self.learner.load_state_dict(self.ema.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "recent": vars(self.recent),
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "best": asdict(self.best),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state_dict`` gave."""
        self.step, self.skipped = int(state["step"]), int(state["skipped"])
        self.recent.__dict__.update(state["recent"])
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.best = Best(**state["best"])


def _copy(module: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class RunFile:
    """``checkpoint.pt`` of an output folder.

    Args:
        folder: the output folder.
        options: the run's options, a dataclass; a checkpoint made with others is refused.
        facts: what else the checkpoint must agree in: how many images, processes, …
    """

    def __init__(self, folder: Path, options: Any, facts: Mapping[str, Any]) -> None:
        self._path = folder / "checkpoint.pt"
        fixed = {k: str(v) for k, v in asdict(options).items() if k not in _FREE}
        self._identity = {**fixed, **facts}

    def save(self, state: RunState) -> None:
        """Write it beside itself first, so that a crash leaves the last one whole."""
        partial = self._path.with_suffix(".partial")
        torch.save({"identity": json.dumps(self._identity), **state.state_dict()}, partial)
        partial.replace(self._path)

    def restore(self, state: RunState) -> bool:
        """Continue from the file; ``False`` if there is none.

        Raises:
            TrainingError: it cannot be read, or is of another run.
        """
        if not self._path.exists():
            return False
        try:
            stored = torch.load(self._path, map_location="cpu", weights_only=True)
            theirs = json.loads(stored["identity"])
            self._check(theirs)
            state.load_state_dict(stored)
        except TrainingError:
            raise
        except Exception as error:  # a broken pickle can fail in any way
            raise TrainingError(
                f"{self._path} cannot be read ({type(error).__name__}); remove it, or start "
                "over with --no-resume"
            ) from error
        return True

    def _check(self, theirs: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another run."""
        different = {k: v for k, v in self._identity.items() if theirs.get(k) != v}
        changes = ", ".join(f"{k}: {theirs.get(k)} then, {v} now" for k, v in different.items())
        if not different.keys() <= _ADJUSTABLE:
            raise TrainingError(
                f"{self._path} is of another run ({changes}); use the same options, another "
                "--output, or --no-resume"
            )
        if different:
            logger.warning("the run goes on with other options: %s", changes)
