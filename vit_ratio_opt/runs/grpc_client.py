"""Optuna's gRPC proxy with a deadline for each call."""

from __future__ import annotations

import json

import grpc  # type: ignore[import-untyped]
import optuna

from vit_ratio_opt._compat import grpc_client
from vit_ratio_opt.runs.connections import answer_seconds, silence_seconds

__all__ = ["GrpcStorageProxy"]


class GrpcStorageProxy(optuna.storages.GrpcStorageProxy):
    """Optuna's client of its proxy, with a deadline for each call; Optuna's own waits forever.

    Args:
        host: Name or address of the proxy's machine.
        port: Port of the proxy.
        grace: Seconds after which a trial without a heartbeat is stale; determines the deadlines.

    Attributes:
        silence_seconds: Seconds for which a proxy that does not answer is retried.
    """

    def __init__(self, *, host: str, port: int, grace: float) -> None:
        self._seconds = answer_seconds(grace)
        self.silence_seconds = silence_seconds(grace)
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        every_method = {"name": [{}], "timeout": f"{self._seconds}s"}
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.service_config", json.dumps({"methodConfig": [every_method]})),
        ]
        self._channel = grpc.insecure_channel(f"{self._host}:{self._port}", options=options)
        self._stub, self._cache = grpc_client(self._channel)
