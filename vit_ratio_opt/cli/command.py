"""Build a command from a dataclass: each field is one option of the command.

The same fields are the keys of the TOML file of ``--config``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import Enum
from inspect import Parameter, Signature
from typing import Any, TypeVar, get_type_hints

import typer

from vit_ratio_opt.search.limits import Tolerance

__all__ = [
    "LONGEST_SECONDS",
    "NumberOrAuto",
    "Numbers",
    "Panel",
    "check_confidence",
    "check_finite",
    "check_numbers",
    "check_text",
    "check_texts",
    "command_of",
    "option",
    "split_numbers",
]

Options = TypeVar("Options")


class Panel(str, Enum):
    """A group of options in ``--help``, in the order in which a reader decides."""

    MODEL = "Model"
    DATA = "Data"
    LIMIT = "Limit"
    PRUNING = "Pruning"
    TRAINING = "Training"
    STUDY = "Study"
    WORKERS = "Workers"
    OUTPUT = "Output"


class Numbers(str):
    """A number, or several with commas, as a text; a TOML file may have one number itself."""

    __slots__ = ()


class NumberOrAuto(str):
    """A number as a text, or ``"auto"``; a TOML file may have the number itself."""

    __slots__ = ()


LONGEST_SECONDS = 31_536_000
"""A year: the longest time that an option accepts, in seconds."""

_LONGEST_TEXT = 500  # Optuna's columns have 512 characters


def option(panel: Panel, sentence: str, *names: str, **settings: Any) -> Any:
    """Return a ``typer.Option`` in a panel of ``--help``.

    Args:
        panel: Group of the option.
        sentence: Help text of the option.
        names: Names of the option; that of the field by default.
        settings: Further arguments of ``typer.Option``.
    """
    return typer.Option(*names, help=sentence, rich_help_panel=panel.value, **settings)


def check_text(value: str | None) -> str | None:
    """Return a text unless a database cannot store it.

    Raises:
        typer.BadParameter: The text is empty, too long or no UTF-8 text.
    """
    if value is None:
        return None
    if not value.strip():
        raise typer.BadParameter("it is empty.")
    if len(value) > _LONGEST_TEXT:
        raise typer.BadParameter(f"it is longer than {_LONGEST_TEXT} characters.")
    if "\0" in value or not value.encode(errors="ignore").decode() == value:
        raise typer.BadParameter("it is no UTF-8 text.")
    return value


def check_texts(values: list[str] | None) -> list[str] | None:
    """Return texts unless a database cannot store one of them.

    Raises:
        typer.BadParameter: A text is empty, too long or no UTF-8 text.
    """
    for value in values or ():
        check_text(value)
    return values


def check_finite(value: float | None) -> float | None:
    """Return a number unless it is infinite or not a number.

    Raises:
        typer.BadParameter: The number is not finite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is no finite number.")
    return value


def check_numbers(value: str | None) -> str | None:
    """Return a text unless it is no list of numbers with commas.

    Raises:
        typer.BadParameter: A part of the text is no finite number.
    """
    if value is None:
        return None
    try:
        for number in split_numbers(value):
            check_finite(number)
    except ValueError:
        raise typer.BadParameter(
            f"{value!r:.80} is no list of numbers with commas, such as 0.485,0.456,0.406."
        ) from None
    return value


def split_numbers(value: str) -> tuple[float, ...]:
    """Return the numbers of a text that :func:`check_numbers` has accepted."""
    return tuple(map(float, value.split(",")))


def check_confidence(value: float | None) -> float:
    """Return a probability unless it is outside of (0.5, 1).

    Args:
        value: The probability; None, for the default, where --budget replaces that of a file.

    Raises:
        typer.BadParameter: The probability is outside of (0.5, 1).
    """
    if value is None:
        return Tolerance.confidence
    if not 0.5 < value < 1:
        raise typer.BadParameter(f"{value:g} is not in (0.5, 1).")
    return value


def command_of(run: Callable[[Options], None]) -> Callable[..., None]:
    """Return a function for ``typer`` whose parameters are the fields of ``run``'s options.

    Args:
        run: A function of one parameter, ``options``, whose type is a dataclass. The types of its
            fields are ``Annotated`` with ``typer.Option`` or ``typer.Argument``. Its docstring is
            the help text of the command.
    """
    kind: Any = get_type_hints(run)["options"]
    types = get_type_hints(kind, include_extras=True)
    parameters = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=types[field.name],
        )
        for field in fields(kind)
    ]
    parameters.sort(key=_panel_rank)

    def command(**values: Any) -> None:
        run(kind(**values))

    command.__doc__ = run.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command


def _panel_rank(parameter: Parameter) -> int:
    """Return the place of a parameter's panel in ``--help``; arguments come first."""
    panel = parameter.annotation.__metadata__[0].rich_help_panel
    panels = [one.value for one in Panel]
    return panels.index(panel) if panel in panels else -1
