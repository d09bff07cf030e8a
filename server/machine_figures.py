"""What the machine has and how much of it is in use, as named figures for the metrics.

Processor time and memory of the process itself come from Prometheus' own client; this adds what
they are to be compared with, and the GPU's use, which `gpu_reading` asks the driver for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from server.cores import usable_cores
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


def machine_figures(gpus: Mapping[int, GpuUse]) -> Iterator[Figure]:
    """Yield all figures, also those without a value, so that each is announced.

    Args:
        gpus: the number of a device, as in `tocom_device_busy_seconds_total`, to its use.
    """
    yield Figure(
        "tocom_usable_cpus",
        "Cores that the process may run on; process_cpu_seconds_total grows by so much a second "
        "at most.",
        usable_cores(),
    )
    yield Figure(
        "tocom_gpu_utilization_ratio",
        "Share of the last moments in which a GPU computed something, for anybody; absent "
        "without one.",
        by_device={n: g.utilisation for n, g in gpus.items() if g.utilisation is not None},
    )
    yield Figure(
        "tocom_gpu_memory_used_bytes",
        "Memory of a GPU that is taken, by whatever process; absent without one.",
        by_device={n: g.used_bytes for n, g in gpus.items()},
    )
    yield Figure(
        "tocom_gpu_memory_bytes",
        "Memory that a GPU has; absent without one.",
        by_device={n: g.total_bytes for n, g in gpus.items()},
    )
    yield Figure(
        "tocom_gpu_memory_reserved_bytes",
        "Memory of a GPU that the server has taken for tensors; absent without one.",
        by_device={n: g.reserved_bytes for n, g in gpus.items()},
    )
