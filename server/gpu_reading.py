"""Reads how much of the CUDA devices is in use, for the metrics.

Memory comes from PyTorch. How busy the device is, only the driver's management library (NVML)
knows; it is loaded if it is there, without a Python package for it. In a container it is there if
the driver's `utility` capability was granted (`deploy/compose.gpu.yml` asks for it).
"""

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from server.machine_figures import GpuUse

logger = logging.getLogger(__name__)

NVML = "libnvidia-ml.so.1"


class _Utilisation(ctypes.Structure):
    """`nvmlUtilization_t`: percent of the last sample period, between a sixth of a second and 1."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def gpu_reader(devices: Sequence[torch.device]) -> Callable[[], Mapping[int, GpuUse]]:
    """Return what reads the use of those devices that are CUDA devices, by their place here."""
    readers = {
        place: (device, utilisation_reader(torch.cuda.get_device_properties(device).uuid))
        for place, device in enumerate(devices)
        if device.type == "cuda"
    }

    def read() -> Mapping[int, GpuUse]:
        try:
            return {place: _use(*reader) for place, reader in readers.items()}
        except RuntimeError:  # a lost device must not take the other metrics along
            return {}

    return read


def _use(device: torch.device, utilisation: Callable[[], float | None]) -> GpuUse:
    free, total = torch.cuda.mem_get_info(device)
    return GpuUse(utilisation(), total - free, total, torch.cuda.memory_reserved(device))


def utilisation_reader(uuid: object, library: str = NVML) -> Callable[[], float | None]:
    """Return what asks the driver how busy a GPU is, from 0 to 1.

    Args:
        uuid: of the GPU, as PyTorch has it: without `GPU-` before it.
        library: the driver's management library.

    Without that library, or for a device that it does not count (a part of a GPU, for instance),
    the answer is always None.
    """
    try:
        nvml = ctypes.CDLL(library)
        handle = ctypes.c_void_p()
        name = f"GPU-{uuid}".encode()
        failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle))
    except (OSError, AttributeError) as error:
        logger.info("no figure for the use of the GPU: %s", error)
        return lambda: None
    if failed:
        logger.info("no figure for the use of the GPU: NVML answered %d", failed)
        return lambda: None

    def read() -> float | None:
        rates = _Utilisation()
        if nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)):
            return None
        return float(rates.gpu) / 100

    return read
