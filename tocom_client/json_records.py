"""From JSON to the records of `results`, checked value by value.

The fields of a dataclass and their types are the rule: what is not a field is passed over, what has
a default may be missing, and anything else that does not fit is an `UnexpectedAnswer` that says
where.
"""

import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tocom_client.errors import UnexpectedAnswer

T = TypeVar("T")

SHOWN = 60
"""Characters of a wrong value that an error repeats."""


def decode(kind: type[T], data: object, where: str = "the answer") -> T:
    """A record of this kind from an object of JSON.

    Args:
        kind: a dataclass.
        data: as the json module reads it.
        where: names the object in errors.

    Raises:
        UnexpectedAnswer: a field is missing or has another type.
    """
    if not isinstance(data, Mapping):
        raise _unexpected(where, "an object", data)
    values: dict[str, Any] = {}
    for name, hint, optional in _fields(cast(Hashable, kind)):
        if name in data:
            values[name] = _value(hint, data[name], f"{where}.{name}")
        elif not optional:
            raise UnexpectedAnswer(f"{where} has no {name!r}; is this a ToCom server?")
    return kind(**values)


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether it may be missing."""
    hints = get_type_hints(kind)
    return tuple(
        (f.name, hints[f.name], f.default is not MISSING or f.default_factory is not MISSING)
        for f in fields(kind)
    )


def _value(hint: Any, value: object, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (hint,) = (choice for choice in get_args(hint) if choice is not type(None))
        return _value(hint, value, where)
    if is_dataclass(hint):
        return decode(cast(type[Any], hint), value, where)
    if origin is tuple:
        return _tuple(get_args(hint), value, where)
    if hint is datetime:
        return _moment(value, where)
    return _plain(origin or hint, value, where)


def _tuple(hints: Sequence[Any], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _unexpected(where, "a list", value)
    if hints[-1] is Ellipsis:
        hints = [hints[0]] * len(value)
    elif len(hints) != len(value):
        raise _unexpected(where, f"{len(hints)} values", value)
    return tuple(
        _value(hint, item, f"{where}[{place}]")
        for place, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _moment(value: object, where: str) -> datetime:
    try:
        return datetime.fromisoformat(cast(str, value))
    except (TypeError, ValueError):
        raise _unexpected(where, "a date and time", value) from None


def _plain(kind: Any, value: object, where: str) -> Any:
    """A number, a text, a truth value or an object; true is no number."""
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _unexpected(where, getattr(kind, "__name__", str(kind)), value)
    return float(value) if kind is float else value


def _unexpected(where: str, expected: str, value: object) -> UnexpectedAnswer:
    return UnexpectedAnswer(f"{where}: expected {expected}, found {str(value)[:SHOWN]!r}")
