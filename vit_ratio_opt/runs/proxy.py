"""Serve Optuna's gRPC proxy, and fail the trials of dead workers, which Optuna's does not."""

from __future__ import annotations

import logging
import threading
from importlib.util import find_spec

from optuna.storages import get_storage

from vit_ratio_opt._compat import grpc_server, rdb_of
from vit_ratio_opt.errors import InputError
from vit_ratio_opt.runs.reaping import Reaper
from vit_ratio_opt.runs.storage import BEATS_IN_GRACE, open_storage
from vit_ratio_opt.utils.network import check_port

__all__ = ["serve_proxy"]

_logger = logging.getLogger(f"optuna.{__name__}")


def serve_proxy(url: str, host: str, port: int, threads: int, grace: int) -> None:
    """Serve the database at ``url`` until the process ends.

    Args:
        url: URL of the database.
        host: Name or address to listen on.
        port: Port to listen on.
        threads: Number of requests answered at a time, each with its own connection.
        grace: Seconds after which a trial without a heartbeat is stale.

    Raises:
        InputError: gRPC is not installed, the address is taken, or the database cannot be opened.
    """
    if find_spec("grpc") is None:
        raise InputError("The proxy needs gRPC: pip install 'vit_ratio_opt[grpc]'.")
    check_port(host, port)  # gRPC would share the port with another proxy
    backend = open_storage(url, must_exist=True, grace=grace, connections=threads + 1)
    if rdb_of(backend) is None:
        raise InputError("The proxy needs the URL of a database, not that of another proxy.")
    reaper = Reaper(backend)

    def reap() -> None:
        while True:
            try:
                for name, number in reaper.reap():
                    print(f"study {name!r}: requeued trial {number} of a dead worker", flush=True)
            except Exception as error:  # the database may be restarting
                _logger.warning(f"Dead workers could not be checked: {type(error).__name__}")
            threading.Event().wait(grace / BEATS_IN_GRACE)

    with_cache = get_storage(backend)
    try:
        server = grpc_server(with_cache, host, port, threads)
    except RuntimeError:
        raise InputError(f"Cannot listen on {host}:{port}.") from None
    server.start()
    threading.Thread(target=reap, daemon=True, name="reaper").start()
    print(f"serving at grpc://{host}:{port} (Ctrl-C stops it)", flush=True)
    server.wait_for_termination()
