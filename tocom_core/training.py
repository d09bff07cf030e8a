"""The training loop that fine-tuning and distillation share.

Everything random in a run is a function of the seed and of where in the run it happens: the order
of the images of the epoch, their augmentation of ``(epoch, index)``, dropout and pair draws of the
step.  No generator state needs saving, and a resumed run takes the very steps that it would have
taken; several processes see together exactly what one process with their whole batch would see.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from tocom_core.attention import learning_kernels
from tocom_core.data import EpochBatches, TrainingImages, seed_all
from tocom_core.distributed import World
from tocom_core.errors import DivergedError, TrainingError
from tocom_core.loop_options import LoopOptions
from tocom_core.optimisation import learning_rate, parameter_groups, scaled_lr
from tocom_core.run_log import open_log
from tocom_core.run_state import Best, Means, RunFile, RunState

logger = logging.getLogger(__name__)

_DIVERGED = 1.5
"""A validation figure this many times the best one is worth a warning."""
Batch = tuple[Tensor, Tensor, Tensor]
"""uint8 images ``(B, 3, H, W)``, int64 labels ``(B,)``, how many images were skipped ``(B,)``."""


@dataclass(frozen=True)
class RunReport:
    """How a run went.

    Attributes:
        steps: optimiser steps in all.
        seconds: wall-clock time of this process's part (after a resume: since then).
        skipped: unreadable images that were passed over, counted as often as it happened.
        final: the last validation's figures.
        best_step: the step whose weights were kept; ``None`` if the last ones were.
    """

    steps: int
    seconds: float
    skipped: int
    final: Mapping[str, float]
    best_step: int | None


class TrainingLoop:
    """AdamW over steps, with progress, a log, checkpoints and exact resume.

    Args:
        learner: what learns, and what a checkpoint holds.
        objective: ``(step, images, labels) -> (loss, figures to log)``; holds the learner.
        images: the training set.
        options: see ``LoopOptions``.
        validate: called now and then; its figures are logged with the prefix ``val_``.
        best: the validation figure by which the best weights are kept, the lower the better;
            ``"-name"`` for the higher the better; ``None`` keeps the last weights.
        world: the processes of this run.
        facts: what else a checkpoint must agree in, such as the digest of the backbone.
        validate_first: also validate before the first step, so that a run which only makes things
            worse delivers what it started from.
        all_learn: every step has a gradient for every parameter of the learner.
    """

    def __init__(
        self,
        learner: nn.Module,
        objective: nn.Module,
        images: TrainingImages,
        options: LoopOptions,
        validate: Callable[[], Mapping[str, float]] | None = None,
        best: str | None = None,
        world: World | None = None,
        *,
        facts: Mapping[str, str] | None = None,
        validate_first: bool = False,
        all_learn: bool = False,
    ) -> None:
        self.learner, self.options, self.world = learner, options, world or World()
        self._images, self._validate, self._validate_first = images, validate, validate_first
        self.device = next(learner.parameters()).device
        self._objective = self.world.parallel(objective, self.device, all_learn)
        self.images_per_step = options.batch_size * options.accumulate * self.world.size
        self.steps_per_epoch = len(images) // self.images_per_step
        self.steps = max(1, round(options.epochs * self.steps_per_epoch))
        lr = options.lr
        self.peak_lr = scaled_lr(lr, self.images_per_step) if options.lr_scale else lr
        self._optimizer = torch.optim.AdamW(parameter_groups(learner, options.weight_decay))
        ema = ModelEmaV3(learner, decay=options.ema) if options.ema else None
        self._state = RunState(learner, self._optimizer, ema, Best(best))
        identity = {"images": len(images), "processes": self.world.size, **(facts or {})}
        self._file = RunFile(options.output, options, identity)
        self._log = open_log(options.output, options.log if self.world.is_main else "none")
        self._kernels = learning_kernels(self.device.type)

    def run(self) -> RunReport:
        """Train to the end, from the last checkpoint on if there is one.

        Afterwards the learner holds the result: the best weights by validation if a figure was
        named for it, else the moving average if there is one, else the last weights.

        Raises:
            DivergedError: loss or gradients are not finite; the checkpoint holds the best weights
                before, or the last that it held.
            TrainingError: the checkpoint is of another run, or cannot be read.
        """
        started = time.perf_counter()
        self.options.output.mkdir(parents=True, exist_ok=True)
        self._restore()
        self._log.start(self._state.step)
        final: Mapping[str, float] = {}
        if self._validate_first and self._validate and self._state.step == 0:
            final = self._run_validation()
        with tqdm(
            total=self.steps,
            initial=self._state.step,
            unit="step",
            mininterval=1.0,
            disable=not self.world.is_main,
        ) as bar:
            recent = self._state.recent
            for micro_batches in self._micro_batches():
                recent.add(self._step_or_save(micro_batches))
                bar.update()
                done = self._state.step
                if done % self.options.log_every == 0 or done == self.steps:
                    bar.set_postfix({k: f"{v:.4g}" for k, v in recent.means().items()})
                    self._log.write(done, recent.take())
                if self._is_validation(done):
                    final = self._run_validation()
                if done % self.options.checkpoint_every == 0 or done == self.steps:
                    self._save()
        self._state.take_result()
        skipped = round(self.world.total(self._state.skipped, self.device))
        if skipped:
            logger.warning("%d times an unreadable image was passed over", skipped)
        seconds = time.perf_counter() - started
        return RunReport(self._state.step, seconds, skipped, final, self._state.best.step)

    def _restore(self) -> None:
        """Continue from the checkpoint, all processes from the same one."""
        if self.options.resume and self._file.restore(self._state):
            done = self._state.step >= self.steps
            end = "; it is finished, --no-resume trains anew" if done else ""
            logger.info("resumed after step %d of %d%s", self._state.step, self.steps, end)
        leader = self.world.share(self._state.step)
        if self.world.total(abs(leader - self._state.step), self.device):
            raise TrainingError(
                f"the processes found different checkpoints in {self.options.output}; put --output "
                "on a folder that all machines share, or use --no-resume"
            )
        if not self.world.is_main:
            self._state.skipped = 0  # the checkpoint holds the sum over all processes

    def take_best(self) -> bool:
        """Put the best weights so far into the learner; ``False`` if none were kept."""
        if not self._state.best.weights:
            return False
        self._state.take_result()
        return True

    def _micro_batches(self) -> Iterator[list[Batch]]:
        """For each step, its batches."""
        options = self.options
        sampler = EpochBatches(
            len(self._images),
            options.batch_size,
            self.steps,
            self._state.step,
            options.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            accumulate=options.accumulate,
        )
        batches: Iterable[Batch] = DataLoader(
            self._images,
            batch_sampler=sampler,
            num_workers=options.workers,
            pin_memory=self.device.type == "cuda",
        )
        iterator = iter(batches)
        while step := list(islice(iterator, options.accumulate)):
            yield step

    def _step_or_save(self, micro_batches: list[Batch]) -> Mapping[str, float]:
        """One step; when it fails, the file is left at weights that a run can go on from."""
        try:
            return self._step(micro_batches)
        except DivergedError:
            # The present weights may be what is wrong: the best ones, or the last file, are not.
            if self.world.is_main and self._state.rewind():
                self._file.save(self._state)
            raise

    def _step(self, micro_batches: list[Batch]) -> Mapping[str, float]:
        step, options = self._state.step, self.options
        seed_all(hash((options.seed, step)) & 0x7FFFFFFF)
        rate = learning_rate(step, self.steps, self.peak_lr, options.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        means = Means()
        for number, (images, labels, skipped) in enumerate(micro_batches, 1):
            self._state.skipped += int(skipped.sum())
            with self._unsynchronised(number < len(micro_batches)):
                means.add(self._backward(images, labels))
        figures = means.take()
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, options.clip_grad or math.inf)
        figures["loss"] = self.world.total(figures["loss"], self.device) / self.world.size
        self._check_finite(figures["loss"], norm)  # before it reaches the weights
        self._optimizer.step()
        self._state.advance()
        return {"lr": rate, "grad_norm": norm.item(), **figures}

    def _backward(self, images: Tensor, labels: Tensor) -> Mapping[str, float]:
        """Add the gradients of one forward pass, its share of the step's."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp)
        with sdpa_kernel(self._kernels), autocast:
            loss, figures = self._objective(self._state.step, images, labels)
        (loss / self.options.accumulate).backward()
        return {"loss": loss.item(), **figures}

    def _unsynchronised(self, wanted: bool) -> AbstractContextManager[None]:
        """Leave the exchange of gradients to the step's last backward pass."""
        if wanted and isinstance(self._objective, DistributedDataParallel):
            return self._objective.no_sync()
        return nullcontext()

    def _check_finite(self, loss: float, norm: Tensor) -> None:
        if math.isfinite(loss) and torch.isfinite(norm):
            return
        raise DivergedError(
            f"step {self._state.step} has the loss {loss} and the gradient norm {norm.item()}; the "
            f"checkpoint in {self.options.output}, if there is one yet, holds the best or the last "
            "weights before it: start again with the same options and a lower --lr (now "
            f"{self.options.lr}) or --clip-grad (now {self.options.clip_grad})"
        )

    def _is_validation(self, done: int) -> bool:
        if self._validate is None:
            return False
        if done == self.steps or not self.options.validate_every:
            return done == self.steps
        return done % max(1, round(self.options.validate_every * self.steps_per_epoch)) == 0

    def _run_validation(self) -> Mapping[str, float]:
        """Validate on the main process, log it, and keep the weights if they are the best."""
        assert self._validate is not None  # _is_validation has asked
        figures: Mapping[str, float] = {}
        if self.world.is_main:
            started = time.perf_counter()
            figures = self._validate_or_save(self._validate)
            self._warn_of_divergence(figures)
            if self._state.keep_if_best(figures):
                self._file.save(self._state)
            logged = {f"val_{name}": value for name, value in figures.items()}
            logged["val_seconds"] = time.perf_counter() - started
            self._log.write(self._state.step, logged)
            tqdm.write(" ".join(f"{k}={v:.4f}" for k, v in logged.items()))
        self.world.wait()
        return figures

    def _validate_or_save(self, validate: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        """Validate; should that fail, the steps up to here are not lost."""
        try:
            with self._state.averaged():
                return validate()
        except Exception:
            self._file.save(self._state)
            raise

    def _warn_of_divergence(self, figures: Mapping[str, float]) -> None:
        best = self._state.best
        if best.name is None or best.value is None or best.name.startswith("-"):
            return
        value = figures[best.name]
        if not value <= _DIVERGED * best.value:  # NaN too
            logger.warning(
                "validation %s is %.4g at step %d, %.4g at step %s: the run diverges; its best "
                "weights are kept, a lower --lr (now %g) may do better",
                *(best.name, value, self._state.step, best.value, best.step, self.options.lr),
            )

    def _save(self) -> None:
        own = self._state.skipped
        total = round(self.world.total(own, self.device))
        if self.world.is_main:
            self._state.skipped = total
            self._file.save(self._state)
            self._state.skipped = own
        self.world.wait()
