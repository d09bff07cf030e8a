"""What numbers a model computes with: the type of its weights, and how float32 is multiplied.

On a CUDA device "float32" is less than it says: PyTorch lets cuDNN round the inputs of convolutions
to 10 bits (TF32) unless told otherwise, and the patch embedding is one. So both sides are spelled
out: ``float32`` is exact everywhere, ``tf32`` rounds in all products and keeps weights, sums and
everything between in float32. bfloat16 and float16 hold weights and activations; their products are
summed in float32, and similarities and merged tokens are computed in float32 in any case.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from tocom_core.errors import DeviceError

PrecisionName = Literal["float32", "tf32", "bfloat16", "float16"]
TF32_CAPABILITY = (8, 0)
"""Compute capability of the first devices with TF32 (Ampere)."""


@dataclass(frozen=True)
class Precision:
    """One way to compute.

    Attributes:
        name: as the setting calls it.
        dtype: of weights and activations.
        tf32: whether the inputs of float32 products are rounded to TF32.
    """

    name: PrecisionName
    dtype: torch.dtype
    tf32: bool = False

    def apply(self, device: torch.device) -> None:
        """Make PyTorch multiply so; a setting of the whole process, and of CUDA only."""
        if device.type != "cuda":
            return
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32


PRECISIONS = {
    "float32": Precision("float32", torch.float32),
    "tf32": Precision("tf32", torch.float32, tf32=True),
    "bfloat16": Precision("bfloat16", torch.bfloat16),
    "float16": Precision("float16", torch.float16),
}


def use_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Let this process compute with the precision of that name, if the device has it.

    Raises:
        DeviceError: TF32 on anything but a CUDA device of capability 8.0 or more. There it would
            be float32 without a word, and just as slow.
    """
    if name == "tf32" and (reason := _without_tf32(device)) is not None:
        raise DeviceError(f"dtype='tf32' on device '{device}': {reason}; use dtype float32")
    precision = PRECISIONS[name]
    precision.apply(device)
    return precision


def _without_tf32(device: torch.device) -> str | None:
    """Why a device has no TF32; ``None`` if it has."""
    if device.type != "cuda":
        return "TF32 is a format of CUDA devices"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < TF32_CAPABILITY:
        return f"TF32 needs compute capability 8.0, this device has {major}.{minor}"
    return None
