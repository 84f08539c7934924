"""Read and write the options of a command as TOML, for ``--config``."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from optuna.study import Study

from vit_ratio_opt.cli.command import NumberOrAuto, Numbers
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import shorten

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["config_text", "load_config", "read_config", "save_config", "use_config"]

# User attribute of a study: the options of its last `search` as TOML.
_ATTRIBUTE = "config"

_LIMITS = ("budget", "tolerance", "frontier")
# One of the second ones on the command line replaces the first one in the file.
_ALTERNATIVES = {
    **{name: tuple(other for other in _LIMITS if other != name) for name in _LIMITS},
    "confidence": ("budget", "frontier"),
}
_WORDS = {
    **{bool: "true or false", int: "an integer", float: "a number", str: "a text"},
    NumberOrAuto: 'a number or "auto"',
    Numbers: 'a number, or a text such as "0.8,0.5"',
}


def read_config(path: Path, options: type) -> dict[str, Any]:
    """Return the values in a TOML file by the names of fields.

    Args:
        path: The file. Its keys are the names of options without the leading dashes.
        options: The dataclass of the command's options.

    Raises:
        InputError: The file cannot be read or is no TOML, or a key or the type of a value is
            wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is no TOML: {shorten(error)}"
        raise InputError(f"--config {shorten(path, 200)} cannot be read: {why}.") from None
    types = {_key(name): kind for name, kind in _value_types(options).items()}
    for key, value in values.items():
        if key not in types:
            raise InputError(_unknown_key(path, key, list(types)))
        if not _fits(value, types[key]):
            raise InputError(
                f"`{key}` in {shorten(path, 200)} must be {_WORDS[types[key]]}, but is "
                f"{shorten(json.dumps(value, default=str))}."
            )
    limits = [f"`{name}`" for name in _LIMITS if name in values]
    if len(limits) > 1:
        raise InputError(f"{shorten(path, 200)} has {' and '.join(limits)}: keep one of them.")
    return {key.replace("-", "_"): value for key, value in values.items()}


def use_config(ctx: typer.Context, path: Path | None, options: type) -> Path | None:
    """Set the defaults of a command from a TOML file; a callback of an eager option.

    Raises:
        InputError: See :func:`read_config`.
    """
    if path is not None:
        values = read_config(path, options)
        ctx.default_map = {
            name: _unless_replaced(ctx, name, value) for name, value in values.items()
        }
    return path


def _unless_replaced(ctx: typer.Context, name: str, value: Any) -> Callable[[], Any]:
    """Return a function that gives the value, or None if an alternative is already given.

    Options of the command line are processed first, so these are known when a default is needed.
    """
    others = _ALTERNATIVES.get(name, ())
    return lambda: value if all(ctx.params.get(other) is None for other in others) else None


def config_text(options: Any) -> str:
    """Return the options of a command as TOML.

    Args:
        options: An instance of the dataclass of the command's options. Fields that are None and
            ``config`` are left out.

    Raises:
        InputError: A path is no UTF-8 text, which TOML cannot store.
    """
    lines = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value is None or field.name == "config":
            continue
        line = f"{_key(field.name)} = {_toml(value)}\n"
        if any("\ud800" <= character <= "\udfff" for character in line):
            raise InputError(f"--{_key(field.name)} is no UTF-8 text, which TOML cannot store.")
        lines.append(line)
    return "".join(lines)


def save_config(study: Study, text: str) -> None:
    """Store the options of a search, as TOML, in its study."""
    study.set_user_attr(_ATTRIBUTE, text)


def load_config(study: Study) -> str | None:
    """Return the options of the search of a study as TOML; None for studies made in Python."""
    text = study.user_attrs.get(_ATTRIBUTE)
    return text if isinstance(text, str) else None


def _toml(value: bool | float | str | Path) -> str:
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    # TOML's strings are JSON's, but it has no surrogates and escapes DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name.replace("_", "-")


def _value_types(options: type) -> dict[str, type]:
    """Return the TOML type of each field that a file can set."""
    types: dict[str, type] = {}
    hints: Mapping[str, Any] = get_type_hints(options)
    for name, hint in hints.items():
        if name == "config":
            continue
        if get_origin(hint) is UnionType or type(None) in get_args(hint):
            hint = next(part for part in get_args(hint) if part is not type(None))
        types[name] = str if hint is Path or get_origin(hint) is Literal else hint
    return types


def _fits(value: Any, kind: type) -> bool:
    """Return whether a TOML value is of a type; integers are numbers, booleans are not."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    kinds = {float: (int, float), NumberOrAuto: (int, float, str), Numbers: (int, float, str)}
    return isinstance(value, kinds.get(kind, kind))


def _unknown_key(path: Path, key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0)
    return (
        f"{shorten(path, 200)} has the unknown key {shorten(key)!r}: did you mean {nearest[0]!r}? "
        "Keys are the options of --help without the leading dashes."
    )
