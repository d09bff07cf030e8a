"""What the settings name, read from its files: a model and its bank."""

from pathlib import Path

from server.settings import Settings
from tocom_core.bank import Bank
from tocom_core.models import LoadedModel, find_bank, load_model


def load_parts(settings: Settings) -> tuple[LoadedModel, Bank | None, Path | None]:
    """Read the model, its bank, and where that lay.

    Raises:
        TocomError: the model or the bank cannot be loaded.
    """
    loaded = load_model(
        settings.model,
        architecture=settings.architecture,
        labels=settings.labels,
        r_source=settings.r_source,
    )
    path = find_bank(settings.model, settings.bank, loaded)
    return loaded, None if path is None else Bank.load(path), path
