"""From flags, environment and file to `Settings`, or a sentence that says what is wrong with them.

Flags beat variables, variables beat the YAML file. Bad values and unknown keys and flags are
refused with a sentence that names them; unknown `TOCOM_*` variables only warn, since Kubernetes
injects some.
"""

import argparse
import difflib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from server.errors import SettingsError
from server.settings import ENV_PREFIX, ONLY_VARIABLES, Settings

logger = logging.getLogger(__name__)

OTHER_VARIABLES = frozenset(
    {"TOCOM_API_KEY", "TOCOM_URL"}
    | {"TOCOM_DATA", "TOCOM_FUZZ_EXAMPLES", "TOCOM_REQUIRE_SYSTEM", "TOCOM_SYSTEM_FULL_IMAGE"}
)
"""Variables with the prefix that belong to the client, the tests and benchmarks, not the server."""


def load_settings(argv: Sequence[str]) -> Settings:
    """Read flags, environment and file into one `Settings`.

    Args:
        argv: the command line after the subcommand; `--help` prints the help and exits.

    Raises:
        SettingsError: a value, key, flag or the file itself is wrong.
    """
    flags = _read_flags(argv)
    variables = _read_environment()
    path = flags.get("config", variables.get("config"))
    entries = {} if path is None else _read_file(Path(path))
    origins = {name: f"{name} in {path}" for name in entries}
    origins |= {name: f"{ENV_PREFIX}{name.upper()}" for name in variables}
    origins |= {name: flag_of(name) for name in flags}
    values = entries | variables | flags
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, origins)) from None


def flag_of(name: str) -> str:
    """Return the command line flag of the setting `name`."""
    return "--" + name.replace("_", "-")


class RaisingParser(argparse.ArgumentParser):
    """An argument parser whose errors are raised as `SettingsError`, not printed."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, and where the flags are listed."""
        raise SettingsError(f"{message}; '{self.prog} --help' lists all flags")


def build_parser() -> argparse.ArgumentParser:
    """Return a parser with one flag per setting; values stay text until validation."""
    parser = RaisingParser(
        prog="tocom serve",
        description="Serve a Vision Transformer whose speed can be dialled while it runs.",
        epilog=f"Each flag is a variable ({ENV_PREFIX}PORT) and a key of the YAML file (port) too.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in Settings.model_fields.items():
        if name in ONLY_VARIABLES:
            continue
        default = "unset" if field.default is None else field.default
        text = f"{field.description} [{default}]".replace("%", "%%")
        if field.annotation in (bool, bool | None):
            parser.add_argument(flag_of(name), nargs="?", const="true", metavar="BOOL", help=text)
            negative = f"--no-{name.replace('_', '-')}"
            parser.add_argument(
                negative, dest=name, action="store_const", const="false", help="Turn it off."
            )
        else:
            parser.add_argument(flag_of(name), metavar=_metavar(field.annotation), help=text)
    return parser


def _metavar(annotation: Any) -> str:
    """Name the kind of value: `int`, `float`, `path`, or the choices."""
    if getattr(annotation, "__origin__", None) is Literal:
        return "|".join(annotation.__args__)
    for kind, name in ((int, "INT"), (float, "NUMBER"), (Path, "PATH")):
        if annotation in (kind, kind | None):
            return name
    return "TEXT"


def _read_flags(argv: Sequence[str]) -> dict[str, str]:
    known, unknown = build_parser().parse_known_args(argv)
    if unknown:
        word = next((w for w in unknown if w.startswith("-")), unknown[0])
        if not word.startswith("-"):
            raise SettingsError(f"unexpected argument {word!r}: settings are given as --name value")
        flag = word.split("=")[0]
        raise SettingsError(f"unknown flag {flag}{_nearest(flag, map(flag_of, _public_names()))}")
    return vars(known)


def _read_environment() -> dict[str, Any]:
    names = {f"{ENV_PREFIX}{name.upper()}" for name in _names()}
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and name not in names | OTHER_VARIABLES:
            logger.warning("unknown variable %s%s; ignored", variable, _nearest(variable, names))
    return EnvSettingsSource(Settings)()


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is no valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"the settings file {path} must hold 'name: value' lines")
    names = [name for name in _public_names() if name != "config"]
    for key in content:
        if key not in names:
            hint = _nearest(str(key).replace("-", "_"), names)
            raise SettingsError(f"unknown key {key!r} in {path}{hint}")
    return content


def _names() -> list[str]:
    return list(Settings.model_fields)


def _public_names() -> list[str]:
    return [name for name in _names() if name not in ONLY_VARIABLES]


def _nearest(word: str, names: Iterable[str]) -> str:
    """Return `; did you mean ...?` with the closest of `names`, or nothing if none is close."""
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


def _explain(error: ValidationError, origins: dict[str, str]) -> str:
    """Turn pydantic's report into one sentence per wrong value."""
    sentences = []
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            sentences.append(message)
            continue
        name = str(item["loc"][0])
        sentence = f"{origins.get(name, name)}={item['input']!r}: {message}"
        sentence += f". {Settings.model_fields[name].description}"
        if str(item["input"]).startswith("tcp://"):
            sentence += " Kubernetes injected this variable: set enableServiceLinks: false."
        sentences.append(sentence)
    return "\n".join(sentences)
