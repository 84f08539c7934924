"""The ``vit-ratio-opt`` command: its commands, and how it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, NoReturn

import optuna
import typer
from typer.rich_utils import rich_format_error

from vit_ratio_opt.cli.cache import cache
from vit_ratio_opt.cli.command import command_of
from vit_ratio_opt.cli.dashboard import dashboard
from vit_ratio_opt.cli.demo import demo
from vit_ratio_opt.cli.export import export
from vit_ratio_opt.cli.final import final
from vit_ratio_opt.cli.frontier import frontier
from vit_ratio_opt.cli.prune import prune
from vit_ratio_opt.cli.ray import ray
from vit_ratio_opt.cli.reap import reap
from vit_ratio_opt.cli.report import report
from vit_ratio_opt.cli.search import search
from vit_ratio_opt.cli.serve import serve
from vit_ratio_opt.cli.train import train
from vit_ratio_opt.cli.worker import worker
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.failures import is_storage_error, reason
from vit_ratio_opt.utils.redact import redact
from vit_ratio_opt.utils.text import shorten, strip_escapes
from vit_ratio_opt.utils.versions import check_versions

__all__ = ["COMMANDS", "app", "main", "run_command"]

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

# By the panel of `--help`.
COMMANDS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "Search": (search, train, demo),
    "Look at studies": (report, frontier, dashboard, cache),
    "Run workers": (worker, ray, serve, reap),
    "Make models": (prune, final, export),
}
for _panel, _commands in COMMANDS.items():
    for _run in _commands:
        app.command(_run.__name__, rich_help_panel=_panel)(command_of(_run))


@app.callback()
def _vit_ratio_opt() -> None:
    """Prune Vision Transformers: search how much of the attention and FFN modules to remove."""


def run_command(command: Callable[..., Any] | typer.Typer) -> NoReturn:
    """Run a command line; an :class:`InputError` becomes one sentence and exit code 2.

    So does a failure of the storage, such as a database that is full, of the operating system, and
    of the memory. Ctrl-C ends with 130, a reader that has gone with 1.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _repair_streams()
    if not isinstance(command, typer.Typer):
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command()(command)
        command = single
    code = 0
    try:
        check_versions()
        returned = command(standalone_mode=False)
        code = returned if isinstance(returned, int) else 0
        sys.stdout.flush()
    except _UsageError as error:
        error.message = strip_escapes(redact(error.message))
        rich_format_error(error)
        code = error.exit_code
    except InputError as error:
        code = _refuse(str(error))
    except BrokenPipeError:
        code = 1
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if is_storage_error(error):
            code = _refuse(f"The storage cannot be used: {reason(error)}")
        elif isinstance(error, OSError) and error.errno is not None:
            where = "" if error.filename is None else f"{shorten(error.filename, 200)}: "
            code = _refuse(f"{where}{error.strerror}.")
        elif isinstance(error, JSONDecodeError):  # an attribute that is half written, say
            code = _refuse(f"What the storage or a file holds is damaged, no JSON: {error}.")
        elif isinstance(error, ValueError) and "embedded null" in str(error):  # earlier click
            code = _refuse("A path has a null character, which no file can have in its name.")
        elif _is_out_of_memory(error):
            code = _refuse("The memory is not enough: use smaller images or models.")
        else:
            raise
    _leave(code)


# click's, of which typer may have a copy.
_UsageError: Any = typer.BadParameter.__mro__[2]


def _refuse(sentence: str) -> int:
    print(f"Error: {strip_escapes(redact(sentence))}", file=sys.stderr)
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    words = ("can't allocate memory", "out of memory", "not enough memory")
    is_torchs = isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    return isinstance(error, MemoryError) or is_torchs


def _repair_streams() -> None:
    """Replace closed streams, and escape characters that the terminal's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the process that has started this one
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _leave(code: int) -> NoReturn:
    """Exit; what cannot be written any more is dropped, since Python would complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = 1
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if error.errno != errno.EPIPE and stream is sys.stdout:
                _refuse(f"The output cannot be written: {error.strerror}.")
    sys.exit(code)


def main() -> None:
    """Run ``vit-ratio-opt``."""
    run_command(app)
