"""What the machine has and how much of it is in use, as named figures for the metrics.

Processor time and memory of the process itself come from Prometheus' own client; this adds what
they are to be compared with, and the GPU's use, which `gpu_reading` asks the driver for.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from server.stats import Figure


@dataclass(frozen=True, slots=True)
class GpuUse:
    """A GPU at one moment.

    Attributes:
        utilisation: share of the last moments in which it computed something, from 0 to 1; None
            where the driver does not say.
        used_bytes: memory taken, by whatever process.
        total_bytes: memory that it has.
        reserved_bytes: memory that this process has taken for tensors.
    """

    utilisation: float | None
    used_bytes: float
    total_bytes: float
    reserved_bytes: float


def machine_figures(gpu: GpuUse | None) -> Iterator[Figure]:
    """Yield all figures, also those without a value, so that each is announced."""
    yield Figure(
        "tocom_usable_cpus",
        "Cores that the process may run on; process_cpu_seconds_total grows by so much a second "
        "at most.",
        _usable_cpus(),
    )
    yield Figure(
        "tocom_gpu_utilization_ratio",
        "Share of the last moments in which the GPU computed something; absent without one.",
        None if gpu is None else gpu.utilisation,
    )
    yield Figure(
        "tocom_gpu_memory_used_bytes",
        "Memory of the GPU that is taken, by whatever process; absent without a GPU.",
        None if gpu is None else gpu.used_bytes,
    )
    yield Figure(
        "tocom_gpu_memory_bytes",
        "Memory that the GPU has; absent without one.",
        None if gpu is None else gpu.total_bytes,
    )
    yield Figure(
        "tocom_gpu_memory_reserved_bytes",
        "Memory of the GPU that the server has taken for tensors; absent without a GPU.",
        None if gpu is None else gpu.reserved_bytes,
    )


def _usable_cpus() -> int:
    """Cores left by the process' affinity; a container's quota is not looked at."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
