"""Where the bank lies that somebody named: in a file, a folder, or a repository on a hub.

A repository's ``bank.safetensors`` is fetched into Hugging Face's own cache, whose variables hold
here too: ``HF_HUB_OFFLINE=1`` asks no hub at all, ``HF_ENDPOINT`` names another one, ``HF_TOKEN``
opens private repositories, ``HF_HUB_CACHE`` is where the cache lies.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tocom_core.errors import BankError

logger = logging.getLogger(__name__)

BANK_FILE = "bank.safetensors"
"""What a bank is called in a folder or repository."""

_ADDRESS = re.compile(r"hf[-_]hub:(?P<name>[^@\s]+)(@(?P<revision>[^@\s]+))?")
_SCHEMES = ("hf-hub:", "hf_hub:")


def on_hub(given: str) -> bool:
    """Whether this names a repository and no place on this machine."""
    return given.startswith(_SCHEMES)


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
        return _fetch(str(given), local_only or constants.HF_HUB_OFFLINE)
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
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise BankError(f"{address!r} names no repository; write hf-hub:owner/name[@revision]")
    name, revision = match["name"], match["revision"]
    if local_only:
        return _from_cache(address, name, revision, _not_asked(), None)
    try:
        HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return Path(hf_hub_download(name, BANK_FILE, revision=revision))
    except HFValidationError as error:
        raise BankError(f"{address} names no repository: {error}") from error
    except Exception as error:  # the hub's client and what carries it fail in any way
        return _from_cache(address, name, revision, _reason(error, name, revision), error)


def _from_cache(
    address: str, name: str, revision: str | None, reason: str, cause: Exception | None
) -> Path:
    """The bank that an earlier call fetched."""
    try:
        path = Path(hf_hub_download(name, BANK_FILE, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise BankError(f"{address} names no repository: {error}") from error
    except Exception as error:
        raise BankError(
            f"the bank of {address} is not in the local cache {constants.HF_HUB_CACHE}, and "
            f"{reason}; or give a local file or folder"
        ) from (cause or error)
    if cause is not None:
        logger.warning("the bank of %s is taken from the local cache: %s", address, reason)
    return path


def _not_asked() -> str:
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    return "a reload may not fetch from a hub: start the server with it"


def _reason(error: Exception, name: str, revision: str | None) -> str:
    """Why the hub gave nothing, and what mends it."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"its owner asks for consent; accept the terms on {hub}/{name}, and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no revision {revision!r}; check it after the @"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{hub} has no such repository, or it is private; check the name, and set HF_TOKEN "
            "for a private one"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return f"the repository has no {BANK_FILE}; 'tocom bank export --push' makes one"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"{hub} answered {error.response.status_code}; try again later"
    return (
        f"the hub at {hub} cannot be reached ({type(error).__name__}); check the network, "
        "HF_ENDPOINT and HTTPS_PROXY"
    )
