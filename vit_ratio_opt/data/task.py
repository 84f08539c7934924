"""The four tasks. This file imports no torch, so that ``--help`` need not wait for it."""

from __future__ import annotations

from typing import Literal

__all__ = ["Task"]

Task = Literal["single-label", "multi-label", "regression", "features"]
"""What the labels of a data set are.

Of ``"features"`` no labels are needed: the dense model's outputs are the targets.
"""
