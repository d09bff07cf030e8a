"""Is the machine fit to serve? Versions, cores, memory, the address, keys; without PyTorch."""

import importlib.metadata
import importlib.util
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from server.api_keys import load_keys
from server.cores import CGROUP, affinity, cpu_quota, usable_cores
from server.findings import Finding
from server.security import check_exposure
from server.serving import bind
from server.settings import Settings

PACKAGE = "tocom-serve"
MEMINFO = Path("/proc/meminfo")
MIB = 2**20
LEAST_MEMORY_MIB = 1024
"""PyTorch, timm and a small model take about so much."""
SPARE_FILES = 64
"""Files that are open beside connections."""


def versions() -> Iterator[Finding]:
    """Python and the packages against what this version needs."""
    try:
        wanted = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("versions", "note", f"{PACKAGE} is not installed, only lies there", "")
        return
    wrong = [told for text in wanted if (told := _unmet(Requirement(text)))]
    for told in wrong:
        yield Finding("versions", "problem", told, f"pip install --upgrade {PACKAGE}")
    if not wrong:
        known = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm")]
        here = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        yield Finding(
            "versions", "ok", ", ".join([here, f"Python {platform.python_version()}", *known])
        )


def _unmet(wanted: Requirement) -> str:
    """What is wrong with a package that is needed, or that belongs to an extra and is there."""
    extra = wanted.marker is not None and "extra" in str(wanted.marker)
    if wanted.marker is not None and not extra and not wanted.marker.evaluate():
        return ""
    try:
        found = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return "" if extra else f"{wanted.name} is missing"
    if wanted.specifier.contains(found, prereleases=True):
        return ""
    return f"{wanted.name} is {found}, needed is {wanted.specifier}"


def cores(settings: Settings, cgroup: Path = CGROUP) -> Iterator[Finding]:
    """How many cores there are for how many threads."""
    usable = float(affinity())
    quota = cpu_quota(cgroup)
    if quota is not None and quota < usable:
        told = f"{usable:g} cores, of which this container may use {quota:g}"
        least = usable_cores(cgroup)
        if settings.threads > least:
            yield Finding(
                "cores",
                "warning",
                f"{told}; threads={settings.threads} would wait for each other",
                f"set --threads {least}, or leave it out",
            )
            return
        yield Finding("cores", "ok", told)
        return
    if settings.threads > usable:
        yield Finding(
            "cores",
            "warning",
            f"threads={settings.threads}, and there are {usable:g} cores",
            f"set --threads {usable:g} or leave it out",
        )
        return
    yield Finding("cores", "ok", f"{usable:g} cores")


def memory(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> Iterator[Finding]:
    """Whether there is memory for PyTorch and a model."""
    left = memory_left_mib(cgroup, meminfo)
    if left is None:
        yield Finding("memory", "note", "how much is left is not known on this system")
    elif left < LEAST_MEMORY_MIB:
        yield Finding(
            "memory",
            "warning",
            f"{left:.0f} MiB left, and the server takes about {LEAST_MEMORY_MIB} MiB and the model",
            "raise the container's limit, or end what else runs",
        )
    else:
        yield Finding("memory", "ok", f"{left:.0f} MiB left")


def memory_left_mib(cgroup: Path = CGROUP, meminfo: Path = MEMINFO) -> float | None:
    """MiB that are free on this machine and within the control group's limit (v2)."""
    left: list[float] = []
    try:
        lines = meminfo.read_text().splitlines()
        left += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text() for name in ("max", "current"))
        if limit.strip() != "max":
            left.append((int(limit) - int(used)) / MIB)
    except (OSError, ValueError):
        pass
    return min(left) if left else None


def address(settings: Settings) -> Iterator[Finding]:
    """Whether the port is free, and who could come in."""
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        yield Finding("address", "problem", str(error))
        return
    with listener:
        check_exposure(settings, listener.getsockname()[0])
    yield Finding("address", "ok", f"{settings.host}:{settings.port} is free")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < settings.max_connections + SPARE_FILES:
        yield Finding(
            "address",
            "warning",
            f"max_connections={settings.max_connections}, but the process may open {most} files",
            f"ulimit -n {settings.max_connections + SPARE_FILES}, or lower max_connections",
        )


def keys(settings: Settings) -> Iterator[Finding]:
    """Whether API keys can be read, and are nobody else's to read."""
    secret = settings.api_keys
    ring = load_keys(secret.get_secret_value() if secret else None, settings.api_keys_file)
    if ring is None:
        yield Finding("keys", "note", "none: whoever reaches the port may do everything", "")
    else:
        yield Finding("keys", "ok", f"{len(ring)} API keys")


def extras(settings: Settings) -> Iterator[Finding]:
    """What the settings need that is no part of a plain installation, and folders they name."""
    if settings.traces == "otlp" and importlib.util.find_spec("opentelemetry") is None:
        yield Finding(
            "settings",
            "problem",
            "traces=otlp, and OpenTelemetry is not installed",
            "pip install 'tocom-serve[otel]'",
        )
    if settings.models_dir is not None and not settings.models_dir.expanduser().is_dir():
        yield Finding(
            "settings",
            "problem",
            f"models_dir={str(settings.models_dir)!r} is no folder",
            "make it, or leave it out",
        )
    if settings.queue_size < settings.max_batch_size:
        yield Finding(
            "settings",
            "warning",
            f"queue_size={settings.queue_size} cannot fill a batch of {settings.max_batch_size}",
            "raise queue_size or lower max_batch_size",
        )
