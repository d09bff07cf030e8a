"""A bank, and its model if wanted, as a hub's repository: written to a folder, and pushed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from tocom_core.bank import Bank
from tocom_core.bank_card import CardOptions, card
from tocom_core.bank_places import BANK_FILE
from tocom_core.checkpoint import read_checkpoint
from tocom_core.errors import BankError
from tocom_core.model_files import save_model
from tocom_core.models import LoadedModel

MODEL_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"


def write_folder(
    folder: Path,
    bank: Bank,
    options: CardOptions,
    *,
    loaded: LoadedModel,
    evaluation: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the files of a repository.

    The model is written as timm lays it out, ``model.safetensors`` and ``config.json``, in float16
    where that loses nothing.

    Args:
        folder: made if it is not there.
        bank: what it is about.
        options: says whether the model goes with it.
        loaded: the model.
        evaluation: table of accuracies for the card.

    Returns:
        the names of the files that were written.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bank.save(folder / BANK_FILE)
    written = [BANK_FILE]
    if options.with_model:
        _write_model(folder, loaded)
        written += [MODEL_FILE, CONFIG_FILE]
    (folder / CARD_FILE).write_text(card(bank, options, evaluation), encoding="utf-8")
    return [*written, CARD_FILE]


def _write_model(folder: Path, loaded: LoadedModel) -> None:
    told = {
        "r_source": loaded.r_source,
        "trained_from": loaded.trained_from,
        "evaluation": loaded.evaluation,
    }
    if loaded.prop_attn is not None:
        told["prop_attn"] = loaded.prop_attn
    path = folder / MODEL_FILE
    save_model(
        path,
        loaded.vit,
        loaded.labels,
        dtype=_smallest_exact(loaded),
        model_args=loaded.model_args,
        tocom=told,
    )
    config = {**read_checkpoint(path)[1], "num_features": int(loaded.vit.num_features)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _smallest_exact(loaded: LoadedModel) -> torch.dtype:
    """float16 if that holds every weight exactly, as where they were read from such a file."""
    values = [value for value in loaded.vit.state_dict().values() if value.is_floating_point()]
    exact = all(torch.equal(value.half().to(value.dtype), value) for value in values)
    return torch.float16 if exact else torch.float32


def push(folder: Path, files: list[str], repository: str, *, private: bool = False) -> str:
    """Upload a folder's files to a hub, as ``HF_TOKEN`` or the client's login allows.

    Args:
        folder: as ``write_folder`` left it.
        files: which of its files; nothing else in the folder is uploaded.
        repository: ``owner/name``; made if it is not there.
        private: make it one that others do not see.

    Returns:
        the address of what was uploaded.

    Raises:
        BankError: the hub refuses it or cannot be reached; the folder stays.
    """
    if constants.HF_HUB_OFFLINE:
        raise BankError(
            f"{repository} was not pushed: HF_HUB_OFFLINE forbids asking the hub; {folder} is "
            "written, unset the variable to push it"
        )
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Upload a token compensator bank",
        )
    except Exception as error:  # the hub's client and what carries it fail in any way
        raise BankError(
            f"{repository} was not pushed: {_reason(error)}; {folder} is written"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    hub = constants.ENDPOINT
    if isinstance(error, HFValidationError):
        return f"that is no name of a repository ({error}); write owner/name"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return f"{hub} does not let you write there ({status}); set HF_TOKEN to one that may"
        return f"{hub} answered {status} ({error})"
    return (
        f"the hub at {hub} cannot be reached ({type(error).__name__}); check the network, "
        "HF_ENDPOINT and HTTPS_PROXY"
    )
