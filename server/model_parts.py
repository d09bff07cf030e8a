"""What the settings name, read from its files: a model and its bank."""

from pathlib import Path

from server.settings import Settings
from tocom_core.bank import Bank
from tocom_core.bank_places import told_by_address
from tocom_core.errors import CheckpointError
from tocom_core.models import LoadedModel, find_bank, load_model


def load_parts(
    settings: Settings, *, local_only: bool = False
) -> tuple[LoadedModel, Bank | None, Path | None]:
    """Read the model, its bank, and where that lay.

    Args:
        settings: what they name.
        local_only: fetch no bank from a hub; one that was fetched before is found.

    Raises:
        TocomError: the model or the bank cannot be loaded, or the model has no classes.
    """
    loaded = read_model(settings)
    if loaded.vit.num_classes == 0:
        raise CheckpointError(
            f"{settings.model} has no classifier, so that there is nothing to answer; give it one: "
            f"tocom finetune --model {settings.model} --data FOLDER"
        )
    return loaded, *read_bank(settings, loaded, local_only=local_only)


def read_model(settings: Settings) -> LoadedModel:
    """Read the model, with classes or without.

    Raises:
        TocomError: it cannot be loaded.
    """
    return load_model(
        settings.model,
        architecture=settings.architecture,
        labels=settings.labels,
        r_source=settings.r_source,
    )


def read_bank(
    settings: Settings, loaded: LoadedModel, *, local_only: bool = False
) -> tuple[Bank | None, Path | None]:
    """Read a model's bank, and where it lay; neither if there is none.

    Raises:
        BankError: it cannot be had or read.
    """
    path = find_bank(settings.model, settings.bank, loaded, local_only=local_only)
    if path is None:
        return None, None
    with told_by_address(settings.bank, path):
        return Bank.load(path), path
