"""Settings of the replicas: the server's, save where it listens, which is Ray's to decide."""

from collections.abc import Mapping
from typing import Any

from server.errors import SettingsError
from server.settings import Settings
from server.settings_sources import flag_of, load_settings

RAYS = {
    "host": "http_options.host of the Serve configuration (--host)",
    "port": "http_options.port of the Serve configuration (--port)",
}
"""What Ray's proxy does in place of the server, and where that is set."""


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Read the settings of an application, with the variables of this process.

    Args:
        given: name to value, as in the settings file; None leaves a setting unset.

    Raises:
        SettingsError: one of them is wrong, or not the replicas' to know.
    """
    for name, instead in RAYS.items():
        if name in given:
            raise SettingsError(f"{name}={given[name]!r}: replicas do not listen; use {instead}")
    flags = [f"{flag_of(name)}={value}" for name, value in given.items() if value is not None]
    return load_settings(flags)
