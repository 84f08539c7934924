"""Run the command line of a benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import optuna
import typer

from vit_ratio_opt.errors import InputError

__all__ = ["run_command"]


def run_command(command: Callable[..., Any] | typer.Typer) -> NoReturn:
    """Run a function or an app as a command line; an ``InputError`` ends it with one sentence."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    app = command if isinstance(command, typer.Typer) else typer.Typer(add_completion=False)
    if app is not command:
        app.command()(command)
    try:
        app()
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
