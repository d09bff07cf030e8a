"""Read the original research code's compensator checkpoint (its layout, not its code)."""

import re
from pathlib import Path

import torch
from torch import Tensor

from tocom_core.errors import BankError

_KEY = re.compile(r"(?:module\.)?blocks\.(\d+)\.attn\.([qv])_tocom\.adapter_(down|up)\.weight")


def read_reference_state(path: Path, num_groups: int) -> dict[str, Tensor]:
    """Read the factors under the names of ``Bank``'s parameters, with groups in rising order.

    Returns:
        ``lora_A.{layer}.{q|v}``: ``(K·h, D)`` and ``lora_B.…``: ``(D, K·h)``, float32, on the CPU.

    Raises:
        BankError: not readable as plain weights, keys or shapes missing, or ``num_groups`` wrong.
    """
    found = _matching_tensors(path)
    layers = sorted({layer for layer, _, _ in found})
    wanted = [(layer, p, side) for layer in layers for p in "qv" for side in ("down", "up")]
    missing = [key for key in wanted if key not in found]
    if not layers or layers != list(range(len(layers))) or missing:
        raise BankError(
            f"{path} holds no complete compensator: expected "
            "blocks.{l}.attn.{q,v}_tocom.adapter_{down,up}.weight for every layer from 0 on"
        )
    state = {}
    for layer in layers:
        for p in "qv":
            state[f"lora_A.{layer}.{p}"], state[f"lora_B.{layer}.{p}"] = _reverse_groups(
                found[layer, p, "down"], found[layer, p, "up"], num_groups, f"{path}, layer {layer}"
            )
    return state


def _matching_tensors(path: Path) -> dict[tuple[int, str, str], Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail in any way
        raise BankError(f"{path} cannot be read as plain weights: {error}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise BankError(f"{path} is no research checkpoint: expected a dict of weights in 'model'")
    matches = [(_KEY.fullmatch(str(key)), value) for key, value in state.items()]
    return {
        (int(match[1]), match[2], match[3]): value.float()
        for match, value in matches
        if match is not None and isinstance(value, Tensor)
    }


def _reverse_groups(down: Tensor, up: Tensor, num_groups: int, where: str) -> tuple[Tensor, Tensor]:
    """Turn "the last rows first" into rising order, keeping the rows inside a group in theirs."""
    if down.ndim != 2 or up.shape != down.shape[::-1]:
        raise BankError(
            f"{where}: down must be a matrix and up of its transposed shape, but they are "
            f"{tuple(down.shape)} and {tuple(up.shape)}"
        )
    total = len(down)
    if num_groups < 1 or total % num_groups:
        raise BankError(
            f"{where}: {total} rows do not split into {num_groups} groups; "
            "give the K that it was trained with"
        )
    rank = total // num_groups
    order = torch.arange(total).view(num_groups, rank).flip(0).reshape(-1)
    return down[order].contiguous(), up[:, order].contiguous()
