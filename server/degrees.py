"""Which degrees a model is served at, and whose latency and accuracy are being spoken of."""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from server.errors import SettingsError
from tocom_core.bank import Bank
from tocom_core.compressed_vit import CompressedViT
from tocom_core.latency_profile import Accuracy
from tocom_core.models import LoadedModel
from tocom_core.schedule import arithmetic_ratio


def highest_degree(
    model: CompressedViT, bank: Bank | None, r_source: int, asked: int | None = None
) -> int:
    """The highest degree that is served.

    With a bank: its ``K``.  Without: the highest degree that every layer can follow in full, since
    beyond it next to no tokens are left and nothing compensates for them; more only if asked for.

    Raises:
        SettingsError: more was asked for than there is.
    """
    if bank is not None:
        highest = min(bank.num_groups, model.max_r)
    else:
        in_full = (model.num_patches - 1) // model.depth
        highest = min(max(in_full, r_source, asked or 0), model.max_r)
    if asked is not None and asked > highest:
        whose = "the model" if bank is None else "the bank"
        raise SettingsError(f"max_r={asked}: {whose} reaches r={highest}; lower max_r")
    return highest


def relative_work(model: CompressedViT, highest: int) -> dict[int, float]:
    """Multiply-adds of each degree from 0 to ``highest``, relative to those of r=0."""
    return {r: 1 / arithmetic_ratio(model, r) for r in range(highest + 1)}


def expected_accuracy(table: Mapping[str, Any] | None, *, with_bank: bool) -> dict[int, float]:
    """Degree to top-1, from the table that a checkpoint carries, for the way it is served."""
    rows = (table or {}).get("rows", ())
    return {int(row["r"]): float(row["top1"]) for row in rows if bool(row["bank"]) == with_bank}


def most_telling_first(highest: int) -> Iterator[int]:
    """Each degree once: 0, the highest, then the middles of ever smaller gaps."""
    yield 0
    if highest == 0:
        return
    yield highest
    gaps = [(0, highest)]
    while gaps:
        narrower = []
        for low, high in gaps:
            middle = (low + high) // 2
            if middle > low:
                yield middle
                narrower += [(low, middle), (middle, high)]
        gaps = narrower


def table_accuracies(table: Mapping[str, Any] | None, *, with_bank: bool) -> tuple[Accuracy, ...]:
    """``expected_accuracy`` as a profile's records, ascending; an untold number of images is 1."""
    images = max(1, int((table or {}).get("images", 1)))
    found = expected_accuracy(table, with_bank=with_bank)
    return tuple(Accuracy(r, found[r], "evaluation", images) for r in sorted(found))


def device_identity(
    device: torch.device, dtype: str, threads: int, lanes: int, backend: str
) -> dict[str, str | int]:
    """The device and what else decides how fast one and the same model runs on it."""
    told: dict[str, str | int] = {"device": product_name(device)}
    if device.type == "cpu":
        told |= {"threads": threads, "lanes": lanes}
    if device.type in ("cpu", "cuda"):
        told |= {"backend": backend}
    return told | {"dtype": dtype, "torch": str(torch.__version__)}


def model_identity(
    loaded: LoadedModel, bank: Bank | None, model: CompressedViT, scaling: float | None
) -> dict[str, Any]:
    """The model and what else decides how accurate it is at each degree.

    Args:
        loaded: the model with its weights as in its file.
        bank: the compensator.
        model: says how tokens are reduced.
        scaling: the factor on the bank's deltas; None takes the bank's own.
    """
    if bank is None:
        scaling = None
    elif scaling is None:
        scaling = bank.scaling
    return {
        "digest": loaded.digest,
        "head": _head_digest(loaded),
        "bank": None if bank is None else bank.digest,
        "scaling": scaling,
        "method": model.method,
        "prop_attn": model.prop_attn,
        "r_source": loaded.r_source,
    }


def product_name(device: torch.device, cpu_info: Path = Path("/proc/cpuinfo")) -> str:
    """The product's name where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return name if device.type == "cpu" else f"{device.type}, {name}"


def _head_digest(loaded: LoadedModel) -> str:
    """SHA-256 of the classifier's weights, which the backbone's digest leaves out."""
    total = hashlib.sha256()
    for key, value in sorted(loaded.vit.state_dict().items()):
        if key.startswith(("head.", "head_dist.")):
            total.update(f"{key}{tuple(value.shape)}".encode())
            total.update(value.half().cpu().numpy().tobytes())
    return total.hexdigest()
