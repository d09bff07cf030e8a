"""What the settings name, read from its files: a model and its bank."""

from pathlib import Path

from server.settings import Settings
from tocom_core.bank import Bank
from tocom_core.errors import CheckpointError
from tocom_core.models import LoadedModel, find_bank, load_model


def load_parts(settings: Settings) -> tuple[LoadedModel, Bank | None, Path | None]:
    """Read the model, its bank, and where that lay.

    Raises:
        TocomError: the model or the bank cannot be loaded, or the model has no classes.
    """
    loaded = load_model(
        settings.model,
        architecture=settings.architecture,
        labels=settings.labels,
        r_source=settings.r_source,
    )
    if loaded.vit.num_classes == 0:
        raise CheckpointError(
            f"{settings.model} has no classifier, so that there is nothing to answer; give it one: "
            f"tocom finetune --model {settings.model} --data FOLDER"
        )
    path = find_bank(settings.model, settings.bank, loaded)
    return loaded, None if path is None else Bank.load(path), path
