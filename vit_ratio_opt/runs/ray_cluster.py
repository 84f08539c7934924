"""Workers on a Ray cluster: Ray places them and starts those again that are lost with a node."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.redact import redact

__all__ = ["run_on_ray"]


def run_on_ray(
    arguments: Mapping[str, Any],
    storage: str,
    *,
    address: str | None,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
) -> None:
    """Run so many workers until the study is done.

    This package has to be installed on every node. Ctrl-C stops the workers as it stops one: their
    trainings are put by, their trials handed back.

    Args:
        arguments: Of ``vit-ratio-opt worker``, but for the storage.
        storage: The storage's URL; it is passed as data, since Ray shows a task's environment.
        address: Of the cluster, such as ``auto`` or ``ray://head:10001``; None for one of this
            machine's own.
        workers: How many.
        gpus_per_worker: Ray gives no GPU to two workers, unless this is below 1.
        cpus_per_worker: So many threads each.

    Raises:
        InputError: Ray is not installed, there is no such cluster, no node is large enough, or a
            worker was refused.
    """
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed: pip install 'vit_ratio_opt[ray]'.") from None
    try:
        _check_address(address)
        ray.init(address=address, logging_level="warning")
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"There is no Ray cluster at {redact(str(address))!r}: {redact(str(error))}"
        ) from None
    wanted = {"CPU": cpus_per_worker, "GPU": gpus_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
        raise InputError(f"No node of the cluster has {wanted} for a worker.")
    # A task that dies with its node is started again elsewhere; one that raises is not.
    task = ray.remote(_work).options(
        num_gpus=gpus_per_worker, num_cpus=cpus_per_worker, max_retries=-1
    )
    pending = [task.remote(dict(arguments), storage) for _ in range(workers)]
    try:
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    finally:
        # Only these: to cancel a task that has just failed may abort the whole process.
        for one in pending:
            ray.cancel(one)
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=60)
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Ray itself would try for minutes."""
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _work(arguments: dict[str, Any], storage: str) -> int:
    """One worker, in a process of Ray's."""
    from vit_ratio_opt.cli.worker import WorkerCommandOptions, worker

    os.environ.pop("OPTUNA_STORAGE", None)
    try:
        worker(WorkerCommandOptions(storage=storage, **arguments))
    except SystemExit as ended:  # Ray would take it for a crash
        return int(ended.code or 0)
    return 0
