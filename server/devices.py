"""Which devices compute, and how many threads of the CPU each has."""

import logging
from dataclasses import dataclass

import torch

from server.cores import usable_cores
from server.degrees import product_name
from server.errors import SettingsError
from server.settings import Settings
from tocom_core.models import pick_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where one replica of the model runs.

    Attributes:
        device: the device.
        threads: of the CPU, for what of the replica runs there.
    """

    device: torch.device
    threads: int


def choose_places(settings: Settings) -> tuple[Place, ...]:
    """Return the devices that the settings name; replicas on the CPU share out its threads.

    As a side effect PyTorch's number of threads is set, to what the settings say, else to no more
    than the process may use at once.

    Raises:
        DeviceError: no such device on this machine.
        SettingsError: fewer threads than replicas on the CPU, or no GPU where all are asked for.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    elif torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())  # PyTorch knows nothing of a container's quota
    threads = torch.get_num_threads()
    names = settings.device_names
    if names == ("all",):
        names = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        if not names:
            raise SettingsError("devices='all': this machine has no GPU; leave devices unset")
    devices = [pick_device(name) for name in names]
    on_cpu = sum(device.type == "cpu" for device in devices)
    if on_cpu > threads:
        raise SettingsError(
            f"devices={settings.devices!r}: {on_cpu} replicas on the CPU have {threads} "
            f"thread{'s' * (threads > 1)} to share; name the cpu less often or raise threads"
        )
    products = sorted({product_name(device) for device in devices})
    if len(products) > 1:
        logger.warning(
            "the devices differ (%s): the scheduler reckons with what they take on average",
            ", ".join(products),
        )
    share = max(1, threads // max(1, on_cpu))
    return tuple(Place(device, share if device.type == "cpu" else threads) for device in devices)
