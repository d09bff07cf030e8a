"""Read and write model files.  Never runs code from a file."""

import argparse
import difflib
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tocom_core.errors import CheckpointError
from tocom_core.training_arguments import config_of_run, known_name, read_args_yaml
from tocom_core.weight_files import INDEX, parts_of

logger = logging.getLogger(__name__)

Config = dict[str, Any]

# Where training scripts put the weights inside a pickle, the better ones first.
_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# What DistributedDataParallel, torch.compile and transformers' wrapper put before every name.
_PREFIX = re.compile(r"^(module\.|_orig_mod\.|timm_model\.)+")
# Plain records and numbers that training scripts store beside weights: safe to rebuild.
_SCALAR = np.float64(0).__reduce__()[0]
_RECORDS: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    (_SCALAR, "numpy._core.multiarray.scalar"),  # as NumPy 2 calls it, and as NumPy 1 did
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(getattr(np.dtypes, f"{kind}DType") for kind in ("Float32", "Float64", "Int32", "Int64")),
]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Config]:
    """Read a checkpoint's tensors, on the CPU, and its config.

    The config comes from a safetensors header or what a training script stored, else from a
    ``config.json`` (timm's or transformers' hub layout) or timm's ``args.yaml`` beside the file,
    else it is empty.  A path that ends in ``.index.json`` stands for the parts that it lists.

    Raises:
        CheckpointError: no such file, not readable, or a pickle that wants to run code.
    """
    if not path.is_file():
        raise CheckpointError(f"no model file at {path}")
    if path.name.endswith(INDEX):
        state, config = _read_parts(path)
    elif path.suffix == ".safetensors":
        state, config = _read_safetensors(path)
    else:
        state, config = _read_pickle(path)
    if not state:
        raise CheckpointError(f"{path} holds no weights; expected a state dict")
    beside, run = path.with_name("config.json"), path.with_name("args.yaml")
    if not config and beside.is_file():
        config = _parse_config(beside.read_bytes(), beside)
    elif not config and run.is_file():
        config = read_args_yaml(run)
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


def _read_parts(index: Path) -> tuple[dict[str, Tensor], Config]:
    """All parts of a sharded checkpoint."""
    state: dict[str, Tensor] = {}
    for part in parts_of(index):
        if not part.is_file():
            raise CheckpointError(f"{index} lists {part.name}, which is not there; fetch it again")
        read = _read_safetensors if part.suffix == ".safetensors" else _read_pickle
        state.update(read(part)[0])
    return state, {}


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
        with torch.serialization.safe_globals(_RECORDS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as plain weights ({reason}); pickles that hold code are never "
            "loaded: convert it to .safetensors where you trust it"
        ) from error
    config = _config_beside(content)
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            logger.info("%s: the weights under %r are taken", path, nest)
            content = content[nest]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}, config


def _config_beside(content: object) -> Config:
    """What a training script stored beside the weights, as far as it tells of the model."""
    if not isinstance(content, dict):
        return {}
    arch, arguments = content.get("arch"), content.get("args")
    if isinstance(arguments, argparse.Namespace):
        return config_of_run(vars(arguments), arch)
    if isinstance(arguments, dict):
        return config_of_run(arguments, arch)
    name = known_name(arch)
    return {} if name is None else {"architecture": name}


def nearest(name: str) -> str:
    """A hint at the timm architecture with the most similar name, or nothing."""
    close = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
