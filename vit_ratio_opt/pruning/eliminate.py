"""Which hidden neurons the others can stand in for.

Optimal brain surgeon (Hassibi 1993) for whole columns of fc2, as in ZipLM (Kurtic 2023): the
neuron goes whose removal hurts least when the others are refitted, one after the other. MoDeGPT's
choice by ridge leverage scores (Lin 2024) considers the activations alone; this considers what fc2
does with them too.
"""

from __future__ import annotations

import torch

__all__ = ["elimination_order"]

_STEPS = 64  # in which the neurons of a block are eliminated, at least


def elimination_order(
    covariance: torch.Tensor, weight: torch.Tensor, samples: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order in which inputs of a linear layer are best removed, with the rest refitted.

    Args:
        covariance: Of the inputs, ``(M, M)``; not centred where the layer has no bias.
        weight: ``(E, M)``, in any E coordinates in which squared length is the loss.
        samples: That the covariance is made from. The ridge is the mean variance times
            ``M / samples``, which is what the covariance of so few samples may be wrong by.

    Returns:
        Indices ``(M,)``, first to go first, and what each adds to the loss, ``(M,)``, when those
        before it are gone. Large layers lose several at once, in some 64 steps.
    """
    size = len(covariance)
    covariance, weight = covariance.double(), weight.double()
    ridge = covariance.diagonal().mean().clamp_min(1e-30) * max(size / samples, 1e-8)
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(size, dtype=torch.float64))
    left = torch.arange(size)
    order, losses = [], []
    while len(left):
        scores = weight.square().sum(dim=0) / inverse.diagonal()
        count = min(max(1, size // _STEPS), len(left))
        lowest = scores.topk(count, largest=False)
        order.append(left[lowest.indices])
        losses.append(lowest.values)
        gone = lowest.indices
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[gone] = False
        stay = stays.nonzero()[:, 0]
        rows = inverse[gone]
        share = torch.linalg.solve(rows[:, gone], rows[:, stay])
        weight = weight[:, stay] - weight[:, gone] @ share
        # index_select twice is several times faster than indexing with a grid.
        inverse = inverse.index_select(0, stay).index_select(1, stay)
        inverse.addmm_(rows[:, stay].mT, share, alpha=-1)
        left = left[stay]
    return torch.cat(order), torch.cat(losses)
