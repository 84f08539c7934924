"""``vit-ratio-opt serve``: a proxy between many workers and one database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vit_ratio_opt.cli.command import Panel, option
from vit_ratio_opt.cli.options import GraceOption, HostOption, StorageOption
from vit_ratio_opt.runs.proxy import serve_proxy
from vit_ratio_opt.runs.storage import GRACE_SECONDS, GRPC_PORT
from vit_ratio_opt.runs.storage_url import DEFAULT_STORAGE

__all__ = ["ServeOptions", "serve"]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of ``vit-ratio-opt serve``."""

    storage: StorageOption = DEFAULT_STORAGE
    host: HostOption = "127.0.0.1"
    port: Annotated[int, option(Panel.WORKERS, "Network port to listen on.", min=1, max=65535)] = (
        GRPC_PORT
    )
    threads: Annotated[
        int, option(Panel.WORKERS, "Number of requests that are served at once.", min=1, max=1024)
    ] = 16
    grace: GraceOption = GRACE_SECONDS


def serve(options: ServeOptions) -> None:
    """Serve a database to many workers over gRPC, who use --storage grpc://HOST:PORT.

    The server has no passwords: keep it on this machine or in a trusted network. It also fails the
    trials of dead workers, because no worker behind a proxy can.
    """
    serve_proxy(options.storage, options.host, options.port, options.threads, options.grace)
