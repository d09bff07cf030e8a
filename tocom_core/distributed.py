"""Several processes as one run: what ``torchrun`` starts, each with its share of every batch.

Without ``torchrun`` there is one process, and nothing here does anything.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tocom_core.errors import TrainingError


@dataclass(frozen=True)
class World:
    """The processes of one run.

    Attributes:
        rank: number of this process; 0 writes files and speaks.
        size: how many there are.
        local_rank: number of this process on its machine, which is the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The GPU of this process where several share a machine, else ``device`` itself."""
        if self.size > 1 and str(device) == "cuda":  # no GPU was named
            return torch.device("cuda", self.local_rank)
        return device

    def parallel(self, objective: nn.Module, device: torch.device, all_learn: bool) -> nn.Module:
        """Average the gradients of all processes on each backward pass.

        Args:
            objective: computes the loss.
            device: this process's.
            all_learn: every pass has a gradient for every parameter, so none need be looked for.
        """
        if self.size == 1:
            return objective
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            objective, device_ids=devices, find_unused_parameters=not all_learn
        )

    def total(self, value: float, device: torch.device) -> float:
        """Sum of a number over all processes."""
        if self.size == 1:
            return value
        tensor: Tensor = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return float(tensor)

    def share(self, value: Any) -> Any:
        """What the main process holds, on every process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            distributed.barrier()


def is_main_process() -> bool:
    """Whether ``torchrun`` has made this the first process, or there is only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """Join the processes that ``torchrun`` has started, and leave them at the end.

    Args:
        device: where tensors live: NCCL connects GPUs, Gloo everything else.

    Raises:
        TrainingError: the processes cannot find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not distributed.is_available():
        yield World()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    world = World(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(world.device(device))
    try:
        # One process validates while the others wait, and a test set may be large.
        distributed.init_process_group(backend, timeout=timedelta(hours=24))
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process {world.rank} of {size} cannot reach the others over {backend}: {error}; "
            "start all of them with torchrun, with the same --master-addr and --master-port"
        ) from error
    if not world.is_main:
        logging.getLogger().setLevel(logging.ERROR)  # one process speaks
    try:
        yield world
    finally:
        distributed.destroy_process_group()
