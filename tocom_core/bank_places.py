"""Where the bank lies that somebody named: in a file, a folder, or a repository on a hub.

A repository's ``bank.safetensors`` is fetched into Hugging Face's own cache, whose variables hold
here too: ``HF_HUB_OFFLINE=1`` asks no hub at all, ``HF_ENDPOINT`` names another one, ``HF_TOKEN``
opens private repositories, ``HF_HUB_CACHE`` is where the cache lies.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

from tocom_core import hub_files
from tocom_core.errors import BankError, CheckpointError

logger = logging.getLogger(__name__)

BANK_FILE = "bank.safetensors"
"""What a bank is called in a folder or repository."""

_OFFLINE = "HF_HUB_OFFLINE forbids asking the hub"
_LOCAL = "a reload may not fetch from a hub: start the server with it"


def on_hub(given: str) -> bool:
    """Whether this names a repository and no place on this machine."""
    return given.startswith(hub_files.SCHEMES)


def locate_bank(given: str | Path, *, local_only: bool = False) -> Path:
    """Find the file of a bank, and bring it here if it is on a hub.

    Args:
        given: a file; a folder with ``bank.safetensors``; or ``hf-hub:owner/name[@revision]``.
        local_only: ask no hub; what an earlier call fetched is found.

    Returns:
        The file.  One that is named directly need not exist.

    Raises:
        BankError: a folder without a bank, or a repository whose bank cannot be had; the message
            says why, and what to do.
    """
    if on_hub(str(given)):
        return _fetch(str(given), local_only)
    path = Path(given).expanduser()
    if not path.is_dir():
        return path
    if not (path / BANK_FILE).is_file():
        raise BankError(f"the folder {path} has no {BANK_FILE}; name the bank's file itself")
    return path / BANK_FILE


@contextmanager
def told_by_address(given: str, path: Path) -> Iterator[None]:
    """Let errors name the repository that was given instead of a folder deep in the cache."""
    try:
        yield
    except BankError as error:
        if not on_hub(given):
            raise
        raise BankError(str(error).replace(str(path.parent), given)) from error


def _fetch(address: str, local_only: bool) -> Path:
    """The bank of a repository, in the cache; the hub is asked whether there is a newer one.

    One short question comes first, for the client's download goes on trying for most of a minute
    where there is no hub.  What was fetched before is good enough when that fails.
    """
    try:
        repository = hub_files.parse(address)
    except CheckpointError as error:
        raise BankError(str(error)) from error
    if local_only:  # a stranger may have asked for it: no folder of this machine's is told
        return _from_cache(repository, f"is not in the local cache, and {_LOCAL}")
    missing = f"is not in the local cache {hub_files.cache_folder()}, and"
    if constants.HF_HUB_OFFLINE:
        return _from_cache(repository, f"{missing} {_OFFLINE}")
    name, revision = repository.owner_and_name, repository.revision
    try:
        HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return Path(hf_hub_download(name, BANK_FILE, revision=revision))
    except HFValidationError as error:
        raise BankError(f"{address} names no repository: {error}") from error
    except Exception as error:  # the hub's client and what carries it fail in any way
        reason = _reason(repository, error)
        path = _from_cache(repository, f"{missing} {reason}", error)
        logger.warning("the bank of %s is taken from the local cache: %s", address, reason)
        return path


def _from_cache(
    repository: hub_files.Repository, missing: str, cause: Exception | None = None
) -> Path:
    """The bank that an earlier call fetched; ``missing`` says why there is no other."""
    name, revision = repository.owner_and_name, repository.revision
    try:
        return Path(hf_hub_download(name, BANK_FILE, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise BankError(f"{repository} names no repository: {error}") from error
    except Exception as error:  # not there, or not to be read
        raise BankError(
            f"the bank of {repository} {missing}; or give a local file or folder"
        ) from (cause or error)


def _reason(repository: hub_files.Repository, error: Exception) -> str:
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the repository has no {BANK_FILE}; 'tocom bank export --push' makes one"
    return hub_files.reason_for(repository, error)
