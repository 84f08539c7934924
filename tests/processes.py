"""What tests run in processes of their own.

Not in ``conftest.py``: a process finds a function by the name of its module, and several files
have that name.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import torch
from safetensors.torch import load_file

from vit_ratio_opt.model_files.load import load_pruned

__all__ = ["load_all", "run_alone", "run_command_line"]


@sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
def _skip_waiting_for_the_disk(connection: Any, _: Any) -> None:
    """SQLite waits for the disk at each commit, against a loss of power, which no test has.

    A process that is killed loses nothing without it: the system has its writes.
    """
    if isinstance(connection, sqlite3.Connection):
        with contextlib.suppress(sqlite3.Error):  # a file that is none of SQLite's
            connection.execute("PRAGMA synchronous=OFF")


def run_alone(
    environment: dict[str, str],
    log: str,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()  # the server's is that of the first test that had it started
    os.environ.update(environment)
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        function(*arguments)


def run_command_line(*arguments: object) -> None:
    from vit_ratio_opt.cli.main import main

    sys.argv = ["vit-ratio-opt", *map(str, arguments)]
    main()


def load_all(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        model, manifest = load_pruned(path)
        expected = load_file(path.with_suffix(".expected"))
        with torch.no_grad():
            assert torch.equal(model(expected["images"]), expected["logits"]), path
        assert not model.training
        print(manifest["name"])
