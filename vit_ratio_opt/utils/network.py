"""Check network addresses."""

from __future__ import annotations

import socket

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.utils.text import shorten

__all__ = ["check_port"]


def check_port(host: str, port: int) -> None:
    """Refuse an address that this process cannot listen on.

    Raises:
        InputError: The address is taken, or the host is unknown or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError, ValueError) as error:  # the last two: of a name that is none
        why = getattr(error, "strerror", None) or "this is no name of a machine"
        raise InputError(f"Cannot listen on {shorten(host)}:{port}: {why}.") from None
