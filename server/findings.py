"""What an examination finds: one line each, with what to mend."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from server.errors import ServeError, SettingsError
from tocom_core.errors import BankMismatchWarning, TocomError

Level = Literal["ok", "note", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, in a word or two.
        level: `problem`: it cannot work like this; `warning`: it works, and worse than it could;
            `note`: worth knowing; `ok`.
        found: what was seen.
        mend: what to do about it; empty where there is nothing to do.
    """

    check: str
    level: Level
    found: str
    mend: str = ""


def examine(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what `look` finds; what it raises becomes a finding, so that all others are looked at.

    Args:
        check: what is looked at, for what it raises.
        look: yields findings.
    """
    try:
        yield from look()
    except (TocomError, ServeError, SettingsError) as error:
        yield Finding(check, "problem", str(error))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        yield Finding(check, "problem", told, "this was not foreseen; please report it")


@contextmanager
def overheard(check: str) -> Iterator[list[Finding]]:
    """Gather what is logged or raised as a warning meanwhile, as findings.

    A bank of another backbone is left to whoever looks at the bank.
    """
    heard: list[Finding] = []

    class _Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(Finding(check, "warning", record.getMessage()))

    listener, root = _Listener(logging.WARNING), logging.getLogger()
    root.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            yield heard
    finally:
        root.removeHandler(listener)
    other = [warning for warning in raised if warning.category is not BankMismatchWarning]
    heard += [Finding(check, "warning", str(warning.message)) for warning in other]
