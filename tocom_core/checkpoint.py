"""Read and write model files.  Never runs code from a file."""

import argparse
import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tocom_core.errors import CheckpointError

Config = dict[str, Any]

# Where training scripts put the weights inside a pickle, the better ones first.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# What DistributedDataParallel and torch.compile put before every name.
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Config]:
    """Read a checkpoint's tensors, on the CPU, and its config.

    The config comes from a safetensors header, else from a ``config.json`` beside the file (timm's
    or transformers' hub layout), else it is empty.

    Raises:
        CheckpointError: no such file, not readable, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no model file at {path}")
    if path.suffix == ".safetensors":
        state, config = _read_safetensors(path)
    else:
        state, config = _read_pickle(path)
    if not state:
        raise CheckpointError(f"{path} holds no weights; expected a state dict")
    beside = path.with_name("config.json")
    if not config and beside.is_file():
        config = _parse_config(beside.read_bytes(), beside)
    return {_PREFIX.sub("", str(key)): value for key, value in state.items()}, config


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and a header of strings; whole or not at all, and readable by everyone.

    The file is written beside itself first and then renamed.  Servers often run as another user
    than the one who trained, and safetensors leaves a file to its owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {key: value.contiguous() for key, value in state.items()},
        partial,
        metadata={"format": "pt", **metadata},
    )
    partial.chmod(0o644)
    partial.replace(path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Config]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return state, _parse_config(metadata["config"], path) if "config" in metadata else {}


def _parse_config(text: str | bytes, where: Path) -> Config:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the config in {where} is no valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"the config in {where} must be a JSON object, not {config!r:.40}")
    return config


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], Config]:
    try:
        # timm's training script stores its command line: a plain record, safe to rebuild.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({reason}); pickles that hold code are never "
            "loaded: convert it to .safetensors where you trust it"
        ) from error
    config = {"architecture": content["arch"]} if _has_name(content) else {}
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}, config


def _has_name(content: object) -> bool:
    return isinstance(content, dict) and isinstance(content.get("arch"), str)


def nearest(name: str) -> str:
    """A hint at the timm architecture with the most similar name, or nothing."""
    close = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
