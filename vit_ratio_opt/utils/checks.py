"""Check the types and ranges of options, with a sentence that names the option."""

from __future__ import annotations

import math
import operator
import os
from numbers import Real
from typing import Any

from vit_ratio_opt.errors import InputError

__all__ = [
    "LARGEST_SEED",
    "check_count",
    "check_flags",
    "check_number",
    "check_path",
    "is_between",
]

LARGEST_SEED = 2**32 - 1
"""Largest random seed that NumPy accepts."""


def check_count(name: str, value: Any, *, least: int = 1, most: int | None = None) -> int:
    """Return an integer, such as one of NumPy's, as an ``int``.

    Args:
        name: Name of the option, for the message.
        value: Value of the option.
        least: Smallest value allowed.
        most: Largest value allowed; None for no limit.

    Raises:
        InputError: ``value`` is no integer, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        limit = "" if most is None else f" and at most {most}"
        kind = ": give an integer" if number is None else ""
        raise InputError(f"`{name}` must be at least {least}{limit}, but got {value!r:.80}{kind}.")
    return number


def check_number(name: str, value: Any, rule: str, *, least: float, most: float) -> float:
    """Return a finite number, such as one of NumPy's, as a ``float``.

    Args:
        name: Name of the option, for the message.
        value: Value of the option.
        rule: End of the sentence "`name` must be ...".
        least: Smallest value allowed.
        most: Largest value allowed; infinity for no limit.

    Raises:
        InputError: ``value`` is no finite number, or out of range.
    """
    is_number = not isinstance(value, bool) and isinstance(value, Real)
    number = float(value) if is_number else math.nan
    if not (least <= number <= most) or number == math.inf:
        raise InputError(f"`{name}` must be {rule}, but got {value!r:.80}.")
    return number


def check_flags(options: Any, *names: str) -> None:
    """Refuse options that are neither True nor False.

    Args:
        options: Object whose attributes are checked.
        names: Names of the attributes.

    Raises:
        InputError: A value is another one.
    """
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, bool):
            raise InputError(f"`{name}` must be True or False, but got {value!r:.80}.")


def check_path(name: str, value: Any) -> None:
    """Refuse a value that is neither a path nor None.

    Raises:
        InputError: ``value`` is another object.
    """
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise InputError(f"`{name}` must be a path, but got {value!r:.80}: give a text or a Path.")


def is_between(value: object, low: float, high: float) -> bool:
    """Return whether a value is a number above ``low`` and below ``high``."""
    return isinstance(value, Real) and low < float(value) < high
