"""The files of a model repository on a Hugging Face hub, by way of the local cache.

Only configuration and weights are fetched, never code. The cache is Hugging Face's own
(``HF_HOME``, ``HF_HUB_CACHE``), as are its switches: ``HF_HUB_OFFLINE=1`` asks no hub at all,
``HF_ENDPOINT`` names another one, ``HF_TOKEN`` opens private repositories. One short question to
the hub comes first. If that fails, a copy in the cache is good enough, so that a server starts
again while the hub is down; and where there is none, it fails within the time of that question.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tocom_core.errors import CheckpointError
from tocom_core.weight_files import INDEX, WEIGHTS, choose_weights, parts_of

logger = logging.getLogger(__name__)

SCHEMES = ("hf-hub:", "hf_hub:")
"""What a model on the hub begins with, as timm writes it."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIG = "config.json"
_BESIDE = ("preprocessor_config.json", "processor_config.json", "bank.safetensors")
"""What is fetched beside config and weights where a repository has it."""


@dataclass(frozen=True)
class Repository:
    """A model repository.

    Attributes:
        owner_and_name: ``owner/name``.
        revision: branch, tag or commit; ``None``: the main branch.
    """

    owner_and_name: str
    revision: str | None = None

    def __str__(self) -> str:
        """As it is given to ``--model``."""
        return SCHEMES[0] + "@".join(filter(None, (self.owner_and_name, self.revision)))

    @property
    def name(self) -> str:
        """Without its owner."""
        return self.owner_and_name.rpartition("/")[2]


def cache_folder() -> Path:
    """Where Hugging Face's libraries keep what they fetched."""
    return Path(constants.HF_HUB_CACHE)


def parse(place: str) -> Repository:
    """Take ``hf-hub:owner/name[@revision]`` apart.

    Raises:
        CheckpointError: not of that form.
    """
    scheme = next((scheme for scheme in SCHEMES if place.startswith(scheme)), "")
    name, at, revision = place.removeprefix(scheme).partition("@")
    if not scheme or not name or (at and not revision) or "@" in revision:
        raise CheckpointError(f"{place!r} names no repository; write hf-hub:owner/name[@revision]")
    return Repository(name, revision or None)


def fetch(repository: Repository, weights: str | None = None) -> Path:
    """Bring a repository's model into the cache, unless it is there.

    Args:
        repository: which one.
        weights: name of the file of weights; default: the one that stands for the model.

    Returns:
        The file of weights; what else was fetched lies beside it.

    Raises:
        CheckpointError: it cannot be had; the message says why, and what to do.
    """
    if constants.HF_HUB_OFFLINE:
        return _from_cache(repository, weights, "HF_HUB_OFFLINE forbids asking the hub", None)
    if _COMMIT.fullmatch(repository.revision or "") and (path := _cached(repository, weights)):
        return path  # a commit never changes
    try:
        info = HfApi().model_info(
            repository.owner_and_name,
            revision=repository.revision,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        names = {file.rfilename for file in info.siblings or ()}
    except HFValidationError as error:
        raise CheckpointError(f"{repository} names no repository: {error}") from error
    except Exception as error:  # the hub's client and what carries it fail in any way
        return _from_cache(repository, weights, reason_for(repository, error), error)
    chosen = (
        choose_weights({n for n in names if "/" not in n} - {_CONFIG}, str(repository))
        if weights is None or weights not in names
        else weights
    )
    try:
        return _download(repository, chosen, names)
    except CheckpointError:
        raise
    except Exception as error:
        return _from_cache(repository, weights, reason_for(repository, error), error)


def _download(repository: Repository, weights: str, names: set[str]) -> Path:
    """Fetch what is not in the cache; all of it from the same commit."""
    name = repository.owner_and_name
    # By its revision's name, so that the cache knows which commit that was.
    first = _CONFIG if _CONFIG in names else weights
    anchor = Path(hf_hub_download(name, first, revision=repository.revision))
    commit = anchor.parent.name
    logger.info("%s is at commit %s, in %s", repository, commit, anchor.parent)
    for beside in _BESIDE:
        if beside in names:
            hf_hub_download(name, beside, revision=commit)
    path = Path(hf_hub_download(name, weights, revision=commit))
    if weights.endswith(INDEX):
        for part in parts_of(path):
            hf_hub_download(name, part.name, revision=commit)
    return path


def _from_cache(
    repository: Repository, weights: str | None, reason: str, cause: Exception | None
) -> Path:
    """What an earlier run fetched, complete."""
    path = _cached(repository, weights)
    if path is None:
        raise CheckpointError(
            f"{repository} is not in the local cache {cache_folder()}, and {reason}; or "
            "give a local folder or file"
        ) from cause
    if cause is not None:
        logger.warning("%s is taken from the local cache %s: %s", repository, path.parent, reason)
    return path


def _cached(repository: Repository, weights: str | None) -> Path | None:
    """The file of weights in the cache, if all that belongs to it is there as well."""
    for name in (_CONFIG, *WEIGHTS):  # a repository that timm fetched has no config there
        try:
            folder = Path(
                hf_hub_download(
                    repository.owner_and_name,
                    name,
                    revision=repository.revision,
                    local_files_only=True,
                )
            ).parent
            break
        except Exception:  # not there, or no name that could be
            continue
    else:
        return None
    try:
        found = [entry.name for entry in folder.iterdir()]
        path = folder / (weights if weights in found else choose_weights(found, str(folder)))
        parts = parts_of(path) if path.name.endswith(INDEX) else [path]
    except CheckpointError:
        return None
    return path if all(part.is_file() for part in parts) else None


def reason_for(repository: Repository, error: Exception) -> str:
    """Why the hub gave nothing, and what mends it."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return (
            f"its owner gives {repository.owner_and_name} only to those who asked; accept its "
            "terms on its page, and set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {repository.revision!r}; check it after the @"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{hub} has no such model, or it is private; check the name, and set HF_TOKEN for a "
            "private one"
        )
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"{hub} answered {error.response.status_code}; try again later"
    return (
        f"the hub at {hub} cannot be reached ({type(error).__name__}: {error}); check the network, "
        "HF_ENDPOINT and HTTPS_PROXY"
    )
