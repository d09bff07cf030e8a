"""Which backend `auto` means where a profile of this model on this device is stored.

Measured latencies hold for the backend that they were measured with. Timing both backends anew at
each start would now and then choose the other one on a busy machine, and the profile would be void.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from server.degrees import device_identity
from server.lanes import choose_lanes
from server.settings import Settings
from server.stored_profile import differences, find_profile
from tocom_core.compressed_vit import CompressedViT
from tocom_core.errors import ProfileError
from tocom_core.latency_profile import LatencyProfile
from tocom_core.onnx_backend import unsupported_onnx

logger = logging.getLogger(__name__)


def asked_backend(
    settings: Settings,
    device: torch.device,
    threads: int,
    bank_path: Path | None,
    model: CompressedViT,
    identity: Mapping[str, Any],
) -> str:
    """Return what the settings ask for, or for ``auto`` what their profile was measured with.

    Args:
        settings: backend, lanes, dtype, and where the profile lies.
        device: where the model will run.
        threads: of the model.
        bank_path: where its bank lies, if it comes from a file.
        model: not necessarily on the device yet.
        identity: the model's.

    Raises:
        SettingsError: the profile's place is none.
    """
    if settings.backend != "auto" or device.type != "cpu":
        return settings.backend
    path = find_profile(settings, bank_path)
    try:
        profile = None if path is None or not path.exists() else LatencyProfile.load(path)
    except ProfileError:
        profile = None  # whoever opens it for its figures has a word for it
    if profile is None or differences(profile.model, identity):
        return settings.backend
    known = str(profile.device.get("backend"))
    lanes = choose_lanes(settings.lanes, threads, device.type)
    here = device_identity(device, settings.dtype, threads, lanes, known)
    possible = known == "eager" or (known == "onnx" and unsupported_onnx(model) is None)
    if not possible or differences(profile.device, here):
        return settings.backend
    logger.info("backend %s: profile %s was measured with it", known, path)
    return known
