"""Check that JSON values have the types that they are read as."""

from __future__ import annotations

import functools
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from vit_ratio_opt.errors import InputError

__all__ = ["shorten_repr", "check_type", "field_types", "without_none"]

_LONGEST = 80  # characters of a value in a message
_LARGEST = sys.float_info.max
_MISFIT = object()


def check_type(what: str, value: Any, hint: Any) -> Any:
    """Return a JSON value as the type that ``hint`` names, with tuples for lists.

    Args:
        what: Name of the value, for the message.
        value: The value.
        hint: A plain type, a union, ``Literal``, a tuple or ``dict[str, Any]``.

    Raises:
        InputError: The value is of another type, or a number in it is not finite.
    """
    found = _converted(value, hint)
    if found is _MISFIT:
        wanted = hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")
        raise InputError(f"{what} must be {wanted}, but is {shorten_repr(value)}.")
    return found


def field_types(kind: type) -> Mapping[str, Any]:
    """Return the type of each field of a class; evaluated once, as this takes a millisecond."""
    return _field_types(kind)


@functools.cache
def _field_types(kind: type) -> Mapping[str, Any]:
    return types.MappingProxyType(typing.get_type_hints(kind))


def without_none(hint: Any) -> Any:
    """Return ``X`` for the type ``X | None``."""
    options = [option for option in typing.get_args(hint) if option is not types.NoneType]
    return options[0] if len(options) == 1 else typing.Union[tuple(options)]  # noqa: UP007


def shorten_repr(value: object) -> str:
    """Return the ``repr`` of a value, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _converted(value: Any, hint: Any) -> Any:
    if hint is float:  # first: a plan has hundreds of them
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if is_number and abs(value) <= _LARGEST else _MISFIT  # not NaN
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        options = (_converted(value, option) for option in arguments)
        return next((option for option in options if option is not _MISFIT), _MISFIT)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _MISFIT
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return _MISFIT
        hints = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(hints) != len(value):
            return _MISFIT
        parts = tuple(map(_converted, value, hints))
        return _MISFIT if any(part is _MISFIT for part in parts) else parts
    if origin is dict:
        if not isinstance(value, Mapping) or not _is_json(value):
            return _MISFIT
        entries = {key: _converted(part, arguments[1]) for key, part in value.items()}
        return _MISFIT if any(part is _MISFIT for part in entries.values()) else entries
    if hint is Any:
        return value
    if hint is int and isinstance(value, bool):
        return _MISFIT
    return value if isinstance(value, hint) else _MISFIT


def _is_json(value: Any) -> bool:
    """Return whether a value is of JSON's types, with finite numbers only."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))
