"""What every training run can be told."""

import math
from dataclasses import dataclass
from pathlib import Path

from tocom_core.errors import TrainingError
from tocom_core.options import option
from tocom_core.run_log import LogKind


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options of every training run."""

    output: Path = option(help="folder for the result, its checkpoints and its log")
    epochs: float = option(10.0, help="passes over the data")
    batch_size: int = option(128, help="images per forward pass and process")
    accumulate: int = option(1, help="forward passes whose gradients make one step")
    lr: float = option(1e-3, help="peak learning rate of AdamW")
    lr_scale: bool = option(
        True, help="multiply lr by batch/512, as DeiT does, where a step holds 256 images or more"
    )
    weight_decay: float = option(0.05, help="decoupled weight decay of matrices")
    warmup_steps: int = option(0, help="steps of linear warm-up before the cosine")
    clip_grad: float = option(1.0, help="largest gradient norm; 0 turns clipping off")
    ema: float = option(0.0, help="decay of a moving average of the weights, the result; 0: none")
    seed: int = option(0, help="decides every random draw")
    workers: int = option(1, help="processes that decode and augment")
    amp: bool = option(False, help="run forward passes in bfloat16")
    device: str = option("auto", help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    threads: int = option(0, help="CPU threads; 0 leaves it to PyTorch")
    checkpoint_every: int = option(100, help="steps between checkpoints")
    log: LogKind = option("csv", help="where figures go: log.csv, TensorBoard events, or both")
    log_every: int = option(50, help="steps between lines of the log")
    validate_every: float = option(1.0, help="epochs between validations; 0: only at the end")
    resume: bool = option(True, help="go on from the output folder's checkpoint, if it has one")

    def check(self) -> None:
        """Refuse values that no run can have, before anything is read.

        Raises:
            TrainingError: which one, and what it may be.
        """
        for name in ("batch_size", "accumulate", "checkpoint_every", "log_every"):
            within(self, name, 1)
        for name in ("lr", "weight_decay", "clip_grad", "warmup_steps", "workers", "threads"):
            within(self, name, 0)
        within(self, "validate_every", 0)
        within(self, "ema", 0, 0.999999)
        if not self.epochs > 0:
            raise TrainingError(f"--epochs {self.epochs} must be above 0")


def within(options: object, name: str, low: float, high: float = math.inf) -> None:
    """Raise ``TrainingError`` unless ``low ≤ value ≤ high``."""
    value = getattr(options, name)
    if not low <= value <= high:
        wanted = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise TrainingError(f"--{name.replace('_', '-')} {value} must be {wanted}")
