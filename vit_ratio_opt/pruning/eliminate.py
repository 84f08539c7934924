"""Order the hidden neurons of a block by how well the remaining ones reconstruct them.

Optimal brain surgeon (Hassibi 1993) for whole columns of fc2, as in ZipLM (Kurtic 2023): the
neuron goes whose removal adds the least loss when the others are refitted, one after the other.
MoDeGPT's choice by ridge leverage scores (Lin 2024) considers the activations alone; this one also
considers the weights of fc2.
"""

from __future__ import annotations

import torch

__all__ = ["elimination_order"]

_STEPS = 64  # the neurons of a block are eliminated in at least as many steps


def elimination_order(
    covariance: torch.Tensor, weight: torch.Tensor, samples: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order in which inputs of a linear layer are best removed, the rest refitted.

    Args:
        covariance: Covariance of the inputs, ``(M, M)``; not centred where the layer has no bias.
        weight: Weight ``(E, M)``, in any E coordinates in which squared length is the loss.
        samples: Number of samples of the covariance. The ridge is the mean variance times
            ``M / samples``, the size of the sampling error of the covariance.

    Returns:
        Indices in the order of removal, ``(M,)``, and the loss that each adds after those before
        it, ``(M,)``. Large layers lose several at once, in about 64 steps.
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
