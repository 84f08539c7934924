"""Start workers on a Ray cluster; Ray restarts workers that are lost with a node."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.redact import redact

__all__ = ["run_on_ray"]


def run_on_ray(
    work: Callable[[], int],
    *,
    address: str | None,
    workers: int,
    gpus_per_worker: float,
    cpus_per_worker: float,
) -> None:
    """Run workers on a Ray cluster until all of them have returned.

    This package has to be installed on every node. Ctrl-C stops the workers as it stops a single
    one: each saves the state of its training and requeues its trial.

    Args:
        work: Function that one worker runs. Ray pickles it with its arguments; pass a storage's
            URL as an argument, because Ray shows the environment of a task.
        address: Address of the cluster, such as ``auto`` or ``ray://head:10001``; None starts a
            cluster on this machine.
        workers: Number of workers.
        gpus_per_worker: GPUs of each worker; workers share a GPU only below 1.
        cpus_per_worker: CPU threads of each worker.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, no node is large
            enough, or ``work`` raised an InputError.
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
    task = ray.remote(_run_task).options(
        num_gpus=gpus_per_worker, num_cpus=cpus_per_worker, max_retries=-1
    )
    _wait_for_tasks(ray, [task.remote(work) for _ in range(workers)])


def _wait_for_tasks(ray: Any, pending: list[Any]) -> None:
    """Wait until all tasks have ended; cancel the others once one has failed."""
    try:
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise InputError(str(error.cause)) from None
        raise
    finally:
        # Only pending ones: cancelling a task that has just failed may abort the whole process.
        for one in pending:
            ray.cancel(one)
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=60)
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Fail at once where nothing listens; Ray itself would try for minutes."""
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _run_task(work: Callable[[], int]) -> int:
    """Run one worker in a process of Ray's; return its exit code."""
    os.environ.pop("OPTUNA_STORAGE", None)
    try:
        return work()
    except SystemExit as ended:  # Ray would take it for a crash
        return int(ended.code or 0)
