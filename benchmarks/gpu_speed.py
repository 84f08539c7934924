"""The stages of ``gpu.py`` that need no images: ``speed`` and ``loop``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def speed(*, rehearse: bool, compiles: bool) -> Iterator[Any]:
    yield from ()


def loop(*, rehearse: bool, compiles: bool) -> Iterator[Any]:
    yield from ()
