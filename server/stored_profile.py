"""The measurements of an earlier run: where they lie, and what of them is true here.

Latencies belong to a device, accuracies to a model.  A profile of another device still tells how
accurate the model is; one of another model tells nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from server.errors import SettingsError
from server.settings import Settings
from tocom_core.errors import ProfileError
from tocom_core.latency_profile import Accuracy, LatencyProfile, Measurement, ServingOverhead
from tocom_core.models import default_model_path

logger = logging.getLogger(__name__)

FILE_NAME = "profile.json"


class Served(Protocol):
    """What is asked about the model that is served: an `Engine`."""

    bank_path: Path | None
    device_identity: dict[str, str | int]
    model_identity: dict[str, Any]
    work: dict[int, float]


@dataclass(frozen=True)
class StoredProfile:
    """What of a stored profile holds for this model on this device.

    Attributes:
        measurements: enough to start from, or none.
        accuracies: of degrees that are served.
        serving: what requests cost beside the model, on this device.
        write_to: where the settings want a profile that is not there yet.
    """

    measurements: tuple[Measurement, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    serving: ServingOverhead | None = None
    write_to: Path | None = None

    def complete(self, own: LatencyProfile) -> LatencyProfile:
        """What the server starts from.

        Args:
            own: what it knows by itself, whose measurements count where none are stored.  An
                evaluation that is stored goes before the one in the model's file.
        """
        accuracies = self.accuracies
        if not any(accuracy.source == "evaluation" for accuracy in accuracies):
            accuracies += tuple(a for a in own.accuracies if a.source == "evaluation")
        return replace(
            own,
            measurements=self.measurements or own.measurements,
            accuracies=accuracies,
            serving=self.serving,
        )

    def save(self, profile: LatencyProfile) -> None:
        """Write a profile where the settings want one that was not there; else do nothing.

        Raises:
            ProfileError: the place cannot be written.
        """
        if self.write_to is not None:
            profile.save(self.write_to)
            logger.info("profile written to %s", self.write_to)


def find_profile(settings: Settings, bank_path: Path | None = None) -> Path | None:
    """Where the profile that the settings name lies, or is to be written.

    ``auto`` is ``profile.json`` beside the model file or in its folder, else beside its bank, if
    there is one.

    Raises:
        SettingsError: a profile could not be written there.
    """
    if settings.profile == "none":
        return None
    if settings.profile != "auto":
        path = Path(settings.profile).expanduser()
        if not path.parent.is_dir():
            raise SettingsError(
                f"profile={settings.profile!r}: there is no folder {path.parent}; make it, or name "
                "another place"
            )
        return path
    model = settings.model
    file = default_model_path() if model == "default" else Path(model).expanduser()
    places = [place for place in (file, bank_path) if place is not None and place.is_file()]
    beside = [place.with_name(FILE_NAME) for place in places]
    if file.is_dir():
        beside.insert(0, file / FILE_NAME)
    return next((path for path in beside if path.is_file()), None)


def open_profile(settings: Settings, served: Served) -> StoredProfile:
    """Read what an earlier run measured, and leave out what does not hold here; the log says what.

    Raises:
        SettingsError: the settings name a place where no profile can be written.
        ProfileError: they name a file that is no profile.  One that was only found is passed over.
    """
    path = find_profile(settings, served.bank_path)
    if path is None:
        return StoredProfile()
    if not path.exists():
        return StoredProfile(write_to=path)
    try:
        profile = LatencyProfile.load(path)
    except ProfileError as error:
        if settings.profile != "auto":
            raise
        logger.warning("%s; starting without it", error)
        return StoredProfile()
    return _what_holds(profile, path, settings.max_batch_size, served)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two identities do not have in common, in words; empty if they are the same."""
    names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
    return ", ".join(f"{n} {_short(there.get(n))} there, {_short(here.get(n))} here" for n in names)


def _what_holds(
    profile: LatencyProfile, path: Path, max_batch_size: int, served: Served
) -> StoredProfile:
    if other := differences(profile.model, served.model_identity):
        logger.info("profile %s ignored, it is of another model: %s", path, other)
        return StoredProfile()
    accuracies = tuple(a for a in profile.accuracies if a.r in served.work)
    if other := differences(profile.device, served.device_identity):
        logger.info("profile %s: latencies ignored, the device is another: %s", path, other)
        return StoredProfile(accuracies=accuracies)
    possible = [m for m in profile.measurements if m.r in served.work and m.batch <= max_batch_size]
    if len(possible) < min(2, len(served.work) * max_batch_size):
        logger.info("profile %s: too few latencies up to batches of %d", path, max_batch_size)
        possible = []
    logger.info("profile %s: %d latencies, %d accuracies", path, len(possible), len(accuracies))
    return StoredProfile(tuple(possible), accuracies, profile.serving)


def _short(value: object) -> object:
    """A digest by its beginning; all else as it is."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value
