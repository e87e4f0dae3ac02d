"""Settings given in Python: their names and types, which the command's flags have anyway."""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vgg_ddp.flags import UsageError, flag


def check_given(config_class: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings as a dataclass of flags expects them, without those that are None, which means unset.

    Numbers may be those of NumPy, paths those of pathlib, and lists need not be tuples.

    Raises:
        UsageError: for an unknown setting, or a value of another type.
    """
    hints = get_type_hints(config_class)
    types = {field.name: hints[field.name] for field in dataclasses.fields(config_class)}
    values = {}
    for name, value in given.items():
        if name not in types:
            similar = difflib.get_close_matches(name, types, n=1)
            raise UsageError(f"unknown setting {name}." + (f" Did you mean {similar[0]}?" if similar else ""))
        if value is not None:
            values[name] = _converted(name, types[name], value)
    return values


def _converted(name: str, kind: Any, value: Any) -> Any:
    if get_origin(kind) is UnionType:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
            return tuple(value)
        # Without the value, which may contain a secret.
        raise UsageError(f"{flag(name)}: expected a list of strings.")
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    names = {bool: "True or False", int: "an integer", float: "a number", str: "a string"}
    expected = names[kind] if kind in names else f"one of {', '.join(get_args(kind))}"
    raise UsageError(f"{flag(name)} {value!r}: expected {expected}.")
