"""The training loop that fine-tuning and distillation share.

Everything random in a run is a function of the seed and of where in the run it happens: the order
of the images of the epoch, their augmentation of ``(epoch, index)``, dropout and pair draws of the
step.  No generator state needs saving, and a resumed run takes the very steps that it would have
taken.
"""

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from tocom_core.data import EpochBatches, TrainingImages, seed_all
from tocom_core.errors import TrainingError
from tocom_core.options import option

logger = logging.getLogger(__name__)

_FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
LossFunction = Callable[[int, Tensor, Tensor], tuple[Tensor, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Options of every training run."""

    output: Path = option(help="folder for the result, its checkpoints and its log")
    epochs: float = option(10.0, help="passes over the data")
    batch_size: int = option(128, help="images per step")
    lr: float = option(1e-3, help="peak learning rate of AdamW")
    weight_decay: float = option(0.05, help="decoupled weight decay of matrices")
    warmup_steps: int = option(0, help="steps of linear warm-up before the cosine")
    clip_grad: float = option(1.0, help="largest gradient norm; 0 turns clipping off")
    seed: int = option(0, help="decides every random draw")
    workers: int = option(1, help="processes that decode and augment")
    amp: bool = option(False, help="run forward passes in bfloat16")
    device: str = option("auto", help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    threads: int = option(0, help="CPU threads; 0 leaves it to PyTorch")
    checkpoint_every: int = option(500, help="steps between checkpoints")
    log_every: int = option(50, help="steps between lines of log.csv")
    validate_every: float = option(1.0, help="epochs between validations; 0: only at the end")
    resume: bool = option(True, help="go on from the output folder's checkpoint, if it has one")


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices; leave biases, norms, tokens and position embeddings alone, as timm does."""
    exempt_names: set[str] = getattr(module, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim <= 1 or name in exempt_names
            (plain if exempt else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


class TrainingLoop:
    """AdamW over steps, with progress, a log, checkpoints and exact resume.

    Args:
        module: what learns, and what a checkpoint holds.
        images: the training set.
        options: see ``LoopOptions``.
        loss: ``(step, images, labels) -> (loss, figures to log)``.
        validate: called now and then; its figures are logged.
    """

    def __init__(
        self,
        module: nn.Module,
        images: TrainingImages,
        options: LoopOptions,
        loss: LossFunction,
        validate: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.module, self.options = module, options
        self._images, self._loss, self._validate = images, loss, validate
        self.device = next(module.parameters()).device
        self.steps_per_epoch = len(images) // options.batch_size
        self.steps = max(1, round(options.epochs * self.steps_per_epoch))
        self._optimizer = torch.optim.AdamW(parameter_groups(module, options.weight_decay))
        self._log = StepLog(options.output / "log.csv")
        self._start = 0
        # The fused kernel's backward pass is several times slower than plain products on a CPU.
        self._kernels = [SDPBackend.MATH] if self.device.type == "cpu" else _FUSED

    def run(self) -> None:
        """Train to the end, from the last checkpoint on if there is one.

        Raises:
            TrainingError: the loss is not finite, or the checkpoint is of another run.
        """
        self.options.output.mkdir(parents=True, exist_ok=True)
        if self.options.resume and self._checkpoint.exists():
            self._restore()
        self._log.start(self._start)
        bar = tqdm(total=self.steps, initial=self._start, unit="step", mininterval=1.0)
        for step, (images, labels) in enumerate(self._batches(), self._start):
            figures = self._step(step, images.to(self.device), labels.to(self.device))
            done = step + 1
            bar.update()
            if done % self.options.log_every == 0 or done == self.steps:
                bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()})
                self._log.write(done, figures)
            if self._is_validation(done):
                self._log.write(done, self._run_validation())
            if done % self.options.checkpoint_every == 0 or done == self.steps:
                self._save(done)
        bar.close()

    def _batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        options = self.options
        sampler = EpochBatches(
            len(self._images), options.batch_size, self.steps, self._start, options.seed
        )
        return DataLoader(
            self._images,
            batch_sampler=sampler,
            num_workers=options.workers,
            persistent_workers=False,
            pin_memory=self.device.type == "cuda",
        )

    def _step(self, step: int, images: Tensor, labels: Tensor) -> dict[str, float]:
        options = self.options
        seed_all(hash((options.seed, step)) & 0x7FFFFFFF)
        rate = learning_rate(step, self.steps, options.lr, options.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=options.amp)
        with sdpa_kernel(self._kernels), autocast:
            loss, figures = self._loss(step, images, labels)
        self._check_finite("loss", loss, step)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, options.clip_grad or math.inf)
        self._check_finite("gradient norm", norm, step)  # before it reaches the weights
        self._optimizer.step()
        return {"loss": loss.item(), "lr": rate, "grad_norm": norm.item(), **figures}

    def _check_finite(self, name: str, value: Tensor, step: int) -> None:
        if not torch.isfinite(value):
            raise TrainingError(
                f"the {name} is {value.item()} at step {step}; the last checkpoint is kept in "
                f"{self.options.output}; lower --lr (now {self.options.lr}) or --clip-grad (now "
                f"{self.options.clip_grad})"
            )

    def _is_validation(self, done: int) -> bool:
        if self._validate is None:
            return False
        every = round(self.options.validate_every * self.steps_per_epoch)
        return done == self.steps or (every > 0 and done % every == 0)

    def _run_validation(self) -> dict[str, float]:
        assert self._validate is not None  # _is_validation has asked
        started = time.perf_counter()
        figures = {f"val_{k}": v for k, v in self._validate().items()}
        figures["val_seconds"] = time.perf_counter() - started
        tqdm.write(" ".join(f"{k}={v:.4f}" for k, v in figures.items()))
        return figures

    @property
    def _checkpoint(self) -> Path:
        return self.options.output / "checkpoint.pt"

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be of this run."""
        free = {"output", "workers", "device", "threads", "resume"}
        free |= {"checkpoint_every", "log_every", "validate_every"}
        fixed = {k: str(v) for k, v in asdict(self.options).items() if k not in free}
        return {**fixed, "images": len(self._images)}

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "identity": json.dumps(self._identity()),
            "module": self.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def _restore(self) -> None:
        try:
            state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:  # a broken pickle can fail in any way
            raise TrainingError(
                f"{self._checkpoint} cannot be read ({type(error).__name__}); remove it, or start "
                "over with --no-resume"
            ) from error
        theirs, ours = json.loads(state["identity"]), self._identity()
        different = {k: (theirs.get(k), v) for k, v in ours.items() if theirs.get(k) != v}
        if different:
            changes = ", ".join(f"{k}: {a} then, {b} now" for k, (a, b) in different.items())
            raise TrainingError(
                f"{self._checkpoint} is of another run ({changes}); use the same options, another "
                "--output, or --no-resume"
            )
        self.module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._start = int(state["step"])
        logger.info("resumed at step %d of %d", self._start, self.steps)


class StepLog:
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
