"""Sizes that a device computes fast: the numbers of which ranks and neurons are multiples."""

from __future__ import annotations

import torch

from vit_ratio_opt.space.shape import ViTShape

__all__ = ["STEPS", "fitting_step", "usual_round_to"]

STEPS = (1, 8, 16, 32)
"""Numbers of which sizes may be multiples. Tensor cores read rows of 16 bytes: 8 half numbers."""


def usual_round_to(shape: ViTShape, device: torch.device) -> int:
    """Return the number of which ranks and neurons should be multiples on a device.

    8 on CUDA, whose tensor cores are several times slower with odd sizes; 1 elsewhere, where a
    finer choice of sizes keeps more accuracy. Smaller heads get less, so that their rank can still
    be halved.

    Args:
        shape: Shape of the dense model.
        device: Device that the pruned models will run on.
    """
    return fitting_step(shape, 8 if device.type == "cuda" else 1)


def fitting_step(shape: ViTShape, wanted: int) -> int:
    """Return the number, or as often half of it as lets every block be halved.

    Args:
        shape: Shape of the dense model.
        wanted: A power of 2.
    """
    sizes = [block.hidden_dim for block in shape.blocks]
    if not shape.whole_heads:
        sizes += [block.head_dim for block in shape.blocks]
    while wanted > 1 and 2 * wanted > min(sizes):
        wanted //= 2
    return wanted
