"""``vit-ratio-opt cache``: show or empty the folder of calibrations and latency tables."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from rich.console import Console
from rich.table import Table

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.cache_files import CachedFile, cached_files, remove_unused
from vit_ratio_opt.utils.caching import default_cache
from vit_ratio_opt.utils.text import shorten

__all__ = ["CacheOptions", "cache"]

_DAY_SECONDS = 86_400
_MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Options of ``vit-ratio-opt cache``."""

    list: Annotated[
        bool, option(Panel.OUTPUT, "Show the files of the cache; the default.", "--list")
    ] = False
    clear: Annotated[
        bool, option(Panel.OUTPUT, "Remove the files that no process uses.", "--clear")
    ] = False


def cache(options: CacheOptions) -> None:
    """Show or remove measurements that are kept for later runs: calibrations and latency tables.

    What is removed is measured again when it is needed. Other files in the folder stay.
    """
    if options.list and options.clear:
        raise InputError("--list and --clear are two commands: give one of them.")
    folder = default_cache()
    files, shown = cached_files(folder), shorten(folder, 200)
    if options.clear:
        gone = [file for file in files if remove_unused(file.path)]
        kept = len(files) - len(gone)
        print(
            f"removed {len(gone)} file(s) of {_size(gone)} from {shown}"
            + (f"; {kept} are in use or belong to another user" if kept else "")
        )
        return
    if files:
        Console(markup=False).print(_table(files))
    print(f"{len(files)} file(s) of {_size(files)} in {shown}")


def _table(files: list[CachedFile]) -> Table:
    """Return a table of the files, the last used first."""
    table = Table("file", "what", "of")
    table.add_column("MB", justify="right")
    table.add_column("days unused", justify="right")
    for file in reversed(files):
        days = max(time.time() - file.used, 0) / _DAY_SECONDS
        name = file.path.name[:12]
        about = shorten(file.about)
        table.add_row(name, file.kind, about, f"{file.size / _MB:.1f}", f"{days:.1f}")
    return table


def _size(files: list[CachedFile]) -> str:
    return f"{sum(file.size for file in files) / _MB:,.1f} MB"
