"""How many cores this process may really use.

The machine's cores say little in a container: the process' affinity and the control group's quota
(`docker run --cpus`, a Kubernetes CPU limit) decide. Threads beyond that only wait for each other.
"""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def affinity() -> int:
    """Return how many cores the process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Return the cores that the control group (version 2) allows; None: no limit, or not known."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Return how many threads can run at once, at least 1; a part of a core counts as one."""
    quota = cpu_quota(cgroup)
    cores = affinity()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))
