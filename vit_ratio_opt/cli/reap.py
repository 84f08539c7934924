"""``vit-ratio-opt reap``: free the pairs of dead workers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

from vit_ratio_opt._compat import rdb_of
from vit_ratio_opt.cli.command import LONGEST_SECONDS, Panel, check_finite, option
from vit_ratio_opt.cli.options import GraceOption, StorageOption, StudyNamesOption
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.records.loading import load_studies
from vit_ratio_opt.runs.reaping import Reaper
from vit_ratio_opt.runs.storage import GRACE_SECONDS, open_storage
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE

__all__ = ["ReapOptions", "reap"]


@dataclass(frozen=True, kw_only=True)
class ReapOptions:
    """Options of ``vit-ratio-opt reap``."""

    storage: StorageOption = DEFAULT_STORAGE
    study_name: StudyNamesOption = None
    every: Annotated[
        float | None,
        option(
            Panel.WORKERS,
            "Seconds between two checks. By default the command checks once and ends.",
            min=1,
            max=LONGEST_SECONDS,
            callback=check_finite,
        ),
    ] = None
    grace: GraceOption = GRACE_SECONDS


def reap(options: ReapOptions) -> None:
    """Fail the running trials of dead workers, so that their pairs are requeued.

    Workers and `serve` do this without this command.
    """
    backend = open_storage(options.storage, must_exist=True, grace=options.grace)
    if rdb_of(backend) is None:
        raise InputError("Reaping needs the database itself, not a proxy: give its URL.")
    reaper = Reaper(backend)
    names = [study.study_name for study in load_studies(backend, options.study_name or ())]
    while True:
        for name, number in reaper.reap(names):
            print(f"study {name!r}: requeued trial {number} of a dead worker", flush=True)
        if options.every is None:
            return
        time.sleep(options.every)
