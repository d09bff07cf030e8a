"""Command-line flags from a dataclass, so that an option is defined once.

Each field gives one flag (``batch_size`` is ``--batch-size``); its help comes from
``metadata={"help": …}``, its type from the annotation (``Literal`` lists the choices).  Only the
standard library is used: training must run where the server's dependencies are not installed.
"""

import argparse
import dataclasses
import os
import shlex
import sys
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def option(default: Any = dataclasses.MISSING, *, help: str) -> Any:
    """A dataclass field with a help text; without a default the flag is required."""
    return dataclasses.field(default=default, metadata={"help": help})


def parse_options(cls: type[T], argv: Sequence[str] | None, prog: str, description: str) -> T:
    """Parse flags into an instance of dataclass ``cls``; exits with code 2 on bad ones."""
    parser = argparse.ArgumentParser(prog, description=description, allow_abbrev=False)
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        _add_flag(parser, field, hints[field.name])
    values = vars(parser.parse_args(argv))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def command_line(prog: str, argv: Sequence[str] | None) -> str:
    """The command as somebody else could type it: for model cards and provenance.

    The folder that ``TOCOM_DATA`` names is written as that variable.
    """
    typed = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    data = os.environ.get("TOCOM_DATA")
    return typed.replace(data, "$TOCOM_DATA") if data else typed


def _add_flag(parser: argparse.ArgumentParser, field: Any, hint: Any) -> None:
    choices = get_args(hint) if get_origin(hint) is Literal else None
    kind, many = (str, False) if choices else _scalar_type(hint)
    required = field.default is dataclasses.MISSING
    text = field.metadata.get("help", "").replace("%", "%%")
    settings: dict[str, Any] = {"dest": field.name, "required": required, "help": text}
    if not required:
        settings["default"] = field.default
        settings["help"] += f" (default: {field.default})"
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"], settings["choices"] = kind, choices
    if many:
        settings["nargs"] = "+"
    parser.add_argument(f"--{field.name.replace('_', '-')}", **settings)


def _scalar_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether the flag takes several."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) in (tuple, list):
        return get_args(hint)[0], True
    return (str if hint is Any else hint), False
