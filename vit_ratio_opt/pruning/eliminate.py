"""Order the hidden neurons of a block by how well the remaining ones reconstruct them.

Optimal brain surgeon (Hassibi 1993) for whole columns of fc2, as in ZipLM (Kurtic 2023): the
neuron goes whose removal adds the least loss when the others are refitted, one after the other.
MoDeGPT's choice by ridge leverage scores (Lin 2024) considers the activations alone; this one also
considers the weights of fc2.
"""

from __future__ import annotations

import torch

from vit_ratio_opt.pruning.sums import gram

__all__ = ["elimination_order"]

_STEPS = 64  # the neurons of a block are eliminated in at least as many steps
_DELAYED = 8  # steps after which the rest of the covariance's inverse is computed anew


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
    covariance, weight = covariance.double(), weight.double().clone()
    ridge = covariance.diagonal().mean().clamp_min(1e-30) * max(size / samples, 1e-8)
    inverse = _inverse(covariance, ridge)
    left = torch.arange(size, device=inverse.device)
    order, losses = [], []
    while len(left):
        gone, added, rows = _eliminate(inverse, weight, max(1, size // _STEPS))
        order.append(left[gone])
        losses.append(added)
        stays = torch.ones(len(left), dtype=torch.bool, device=inverse.device)
        stays[gone] = False
        stay = stays.nonzero()[:, 0]
        # index_select twice is several times faster than indexing with a grid.
        inverse = inverse.index_select(0, stay).index_select(1, stay)
        inverse -= gram(rows[:, stay])
        weight, left = weight[:, stay], left[stay]
    return torch.cat(order), torch.cat(losses)


def _eliminate(
    inverse: torch.Tensor, weight: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eliminate the best neurons in a few steps, and update ``weight`` in place.

    Args:
        inverse: Inverse of the covariance of the neurons left, ``(M, M)``.
        weight: Their weight ``(E, M)``.
        count: Neurons of a step.

    Returns:
        Indices and losses in the order of removal, and the rows with which the inverse for the
        others is ``inverse - rows.T @ rows``, as in a Cholesky factorisation with pivots.
    """
    size = len(inverse)
    variances = inverse.diagonal().clone()
    rows = inverse.new_empty(min(_DELAYED * count, size), size)
    gone = torch.empty(len(rows), dtype=torch.long, device=inverse.device)
    losses = inverse.new_empty(len(rows))
    for done in range(0, len(rows), count):
        scores = weight.square().sum(dim=0) / variances
        scores[gone[:done]] = torch.inf
        now = slice(done, min(done + count, len(rows)))
        losses[now], gone[now] = scores.topk(now.stop - done, largest=False)
        own = inverse[gone[now]] - rows[:done, gone[now]].mT @ rows[:done]
        factor, _ = torch.linalg.cholesky_ex(own[:, gone[now]])
        rows[now] = torch.linalg.solve_triangular(factor, own, upper=False)
        share = torch.linalg.solve_triangular(factor.mT, rows[now], upper=True)
        weight.addmm_(weight[:, gone[now]], share, alpha=-1)
        variances -= rows[now].square().sum(dim=0)
    return gone, losses, rows


def _inverse(covariance: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """Return the inverse with a ridge, a larger one where rounding outweighs it."""
    ridged = covariance.clone()
    ridged.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    if failed:  # all of the variance is rounding, as of one token
        ridged.diagonal().add_(2 * torch.linalg.eigvalsh(covariance)[0].abs())
        factor = torch.linalg.cholesky(ridged)
    return torch.cholesky_inverse(factor)
