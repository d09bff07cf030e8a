"""What a reload may load: names from one folder, and what the settings named; never a path.

A request is a stranger's. It can say *which* of the models that the operator laid out in
`models_dir` is served, and nothing else on this machine: a name has no slash, and what it leads to
must lie in that folder when all links have been followed. Only safetensors are taken, and no name
leads to the hub. It is asked again only for the model's repository that the operator started the
server with; a bank of a repository is read from the local cache alone.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from server.errors import BadParameter
from server.reload_schemas import ReloadRequest
from server.settings import Settings
from tocom_core.bank_places import on_hub
from tocom_core.hub_files import cache_folder

OF_A_MODEL = ("model", "bank", "labels", "architecture", "r_source", "scaling")
"""The settings that a reload can change; another model does not inherit the others of the last."""

CONFIGURED = "configured"


def choose(request: ReloadRequest, present: Settings, configured: Settings) -> Settings:
    """The settings to load by.

    Args:
        request: what is to change; with a model, all else starts anew, without one it stays.
        present: what is served now.
        configured: what the server was started with.

    Raises:
        BadParameter: a name leads nowhere.
    """
    changes: dict[str, Any] = {}
    if request.model == CONFIGURED:
        changes = {name: getattr(configured, name) for name in OF_A_MODEL}
    elif request.model is not None:
        changes = {name: Settings.model_fields[name].default for name in OF_A_MODEL}
        if request.model != "default":
            places = "{}.safetensors", "{}/model.safetensors", "{}"
            changes["model"] = str(_find(present, "model", request.model, places, {".safetensors"}))
    if request.bank in ("auto", "none"):
        changes["bank"] = request.bank
    elif request.bank is not None:
        places = "{}.safetensors", "{}/bank.safetensors", "{}"
        changes["bank"] = str(_find(present, "bank", request.bank, places, {".safetensors"}))
    if request.labels is not None:
        places = "{}", "{}.txt", "{}.json"
        changes["labels"] = _find(present, "labels", request.labels, places, {".txt", ".json"})
    for name in ("architecture", "r_source", "scaling"):
        if (value := getattr(request, name)) is not None:
            changes[name] = value
    return present.model_copy(update=changes)


def shown(settings: Settings, text: str) -> str:
    """A message about what was loaded, without the folders that it lies in."""
    folders = map(_folder, (settings.model, settings.bank, settings.labels))
    for folder in (settings.models_dir and settings.models_dir.expanduser().resolve(), *folders):
        if folder is not None and folder != Path("."):
            text = text.replace(f"{folder}/", "")
    return text.replace(f" {cache_folder()}", "")


def _folder(place: str | Path | None) -> Path | None:
    if place is None or on_hub(str(place)):
        return None
    return Path(place).expanduser().parent


def _find(
    settings: Settings, what: str, name: str, places: Iterable[str], endings: set[str]
) -> Path:
    """The first of the places that is a file inside of `models_dir`."""
    if settings.models_dir is None:
        raise BadParameter(
            f"{what}={name!r}: this server has no models_dir, so a reload can only read again what "
            "it was started with; leave it out, or start the server with --models-dir"
        )
    folder = settings.models_dir.expanduser().resolve()
    for place in places:
        path = (folder / place.format(name)).resolve()
        if path.is_file() and path.suffix in endings and path.is_relative_to(folder):
            return path
    raise BadParameter(
        f"{what}={name!r}: models_dir has no such file; expected one of "
        f"{', '.join(place.format(name) for place in places)} ending in {' or '.join(endings)}"
    )
