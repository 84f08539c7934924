"""``vit-ratio-opt dashboard``: show studies in a browser."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from vit_ratio_opt.cli.command import Panel, check_text, option
from vit_ratio_opt.cli.options import HostOption, StorageOption
from vit_ratio_opt.runs.storage import open_storage
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE
from vit_ratio_opt.utils.network import check_port

__all__ = ["DashboardOptions", "dashboard"]


@dataclass(frozen=True, kw_only=True)
class DashboardOptions:
    """Options of ``vit-ratio-opt dashboard``."""

    storage: StorageOption = DEFAULT_STORAGE
    study_name: Annotated[
        str | None,
        option(
            Panel.STUDY,
            "Name of the study to open. By default the list of all studies opens.",
            callback=check_text,
        ),
    ] = None
    host: HostOption = "127.0.0.1"
    port: Annotated[int, option(Panel.WORKERS, "Network port to listen on.", min=1, max=65535)] = (
        8080
    )
    browse: Annotated[
        bool, option(Panel.WORKERS, "Open a browser if the command runs in a terminal.")
    ] = True


def dashboard(options: DashboardOptions) -> None:
    """Serve optuna-dashboard with the studies and their artifacts.

    The server has no passwords: keep it on this machine, or behind a proxy that asks for one.
    """
    from vit_ratio_opt.report.dashboard import serve_dashboard
    from vit_ratio_opt.runs.artifacts import open_artifacts

    backend = open_storage(options.storage, must_exist=True)
    check_port(options.host, options.port)
    serve_dashboard(
        backend,
        options.host,
        options.port,
        open_artifacts=open_artifacts,
        study_name=options.study_name,
        browse=options.browse and sys.stdout.isatty(),
    )
