"""Two ways to prune an encoder without labels that are not ours, written from their papers.

SnapViT (Simoncini 2025, arXiv 2510.17700, NeurIPS 2025) ranks whole heads and neurons once, by
self-supervised gradients times weights of blocks that an evolution finds. Its optional correction
of weights, SparseGPT's, is left out: the ranking is what is compared.
CORP (Zhang 2026, arXiv 2602.05243) removes neurons, and dimensions of queries and keys, by their
energy, and folds a ridge regression of what goes on what stays into the weights.

Where the published code differs from what is here:

- SnapViT's (github.com/WalterSimoncini/SnapViT) takes one random crop for both global views of an
  image and one for all local views, and squares the gradients after adding them up over all
  batches; its paper has the mean of squares by image. Its xNES is PyPop7's, ours that of cmaes.
- CORP's (github.com/BOX-LEO/CORP) recalibrates after each block by default, where its paper has
  one pass. It pools the products of queries and keys over all images; here they are by image, so
  that only pairs of tokens that attend to each other count. It makes ``I + M`` symmetric, and
  scales the logits by the smaller dimension unless told otherwise, here as in the dense model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cmaes import XNES
from torch import nn
from torchvision.transforms import v2

from vit_ratio_opt.models.blocks import ViT
from vit_ratio_opt.pruning.allocate import even_counts
from vit_ratio_opt.pruning.importance import Importance
from vit_ratio_opt.pruning.prune import prune_units

__all__ = ["BlockStatistics", "corp", "corp_statistics", "snapvit", "snapvit_scores"]

# SnapViT's settings, those of its script for DINO's ViT-B/16.
_CROPS = ((2, (0.25, 1.0)), (10, (0.05, 0.25)))  # global and local views: how many, which areas
_RATIOS = ((0.15, 0.0), (0.35, 0.2), (0.55, 0.4), (0.65, 0.5))  # of neurons and of heads
_EVALUATIONS = 50
_COMPARED = 256  # images that the evolution looks at, of those of the gradients
_COMPONENTS = 0.25  # share of principal components of the features that are compared
_LEAST_NEURONS = 0.05  # share that each block keeps; of its heads a fifth, here one of 8

_RIDGE = 1e-3  # CORP's least ridge
_ACTIVE = 0.01  # CORP: a neuron is active above this share of the layer's root mean square


def snapvit_scores(
    model: ViT, images: torch.Tensor, *, seed: int, evolve: bool = True
) -> Importance:
    """Return SnapViT's scores of heads and neurons, one ranking for every size.

    Args:
        model: An encoder; its output is the feature of an image.
        images: Normalised images ``(images, channels, height, width)``.
        seed: Random seed of the crops and of the evolution.
        evolve: Whether an evolution weighs blocks and heads, as published; without it gradients
            alone rank them, which lost less on the model that was measured.
    """
    local = _local_scores(model, images, seed)
    if not evolve:
        return local
    images = images[:_COMPARED]
    blocks, heads = len(local.heads), len(local.heads[0])
    with torch.inference_mode():
        target = _features(model, images)
    mean = target.mean(dim=0)
    wanted = round(_COMPONENTS * target.shape[1])
    components = torch.linalg.svd(target - mean, full_matrices=False).Vh[:wanted].mT

    def weighted(weights: np.ndarray) -> Importance:
        scale = torch.from_numpy(weights).float().abs()
        by_head = scale[blocks:].view(blocks, heads)
        pairs = zip(local.heads, by_head, strict=True)
        rows = zip(local.neurons, scale[:blocks], strict=True)
        return Importance(
            heads=tuple(score * weight for score, weight in pairs),
            neurons=tuple(score * weight for score, weight in rows),
        )

    def loss(weights: np.ndarray) -> float:
        scores, total = weighted(weights), 0.0
        for ffn_ratio, mhsa_ratio in _RATIOS:
            neurons = int(ffn_ratio * sum(map(len, scores.neurons)))
            smaller = snapvit(model, scores, int(mhsa_ratio * blocks * heads), neurons)
            with torch.inference_mode():
                features = _features(smaller, images)
            seen, dense = (features - mean) @ components, (target - mean) @ components
            total += 1 - float(F.cosine_similarity(seen, dense).mean())
        return total / len(_RATIOS)

    first = np.linspace(1.2, 0.8, blocks)
    start = np.concatenate([first, first.repeat(heads)])
    return weighted(_evolve(loss, start, seed))


def snapvit(model: ViT, scores: Importance, heads: int, neurons: int) -> ViT:
    """Return a copy of ``model`` without the heads and neurons of the lowest scores."""
    kept = []
    for score in scores.neurons:
        protected = score.clone()
        best = score.argsort(descending=True)[: int(_LEAST_NEURONS * len(score))]
        protected[best] = torch.finfo(score.dtype).max
        kept.append(protected)
    return prune_units(model, heads, neurons, Importance(scores.heads, tuple(kept)))


def _local_scores(model: ViT, images: torch.Tensor, seed: int) -> Importance:
    """Return the mean over images of the squared gradients of DINO's loss between views.

    Of a neuron, those of its row of fc1; of a head, those of its rows of the values.
    """
    model = copy.deepcopy(model).eval()
    blocks = list(model.blocks)
    layers = [layer for block in blocks for layer in (block.attn.qkv, block.mlp.fc1)]
    weights = [layer.weight for layer in layers]
    views = [
        (count, v2.RandomResizedCrop(list(images.shape[2:]), scale=area, antialias=True))
        for count, area in _CROPS
    ]
    sums = [torch.zeros(len(weight)) for weight in weights]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for image in images:
            crops = torch.stack([crop(image) for count, crop in views for _ in range(count)])
            embedded = F.normalize(model(crops), dim=1)
            teacher = embedded[: _CROPS[0][0]].detach().softmax(dim=1)
            losses = -teacher @ embedded.log_softmax(dim=1).mT  # (global views, all views)
            loss = losses.sum() - losses.diagonal().sum()  # a view is not compared with itself
            for row_sums, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                row_sums += gradient.square().mean(dim=1) / len(images)
    values = [
        rows.view(3, block.attn.num_heads, -1)[2].mean(dim=1)
        for rows, block in zip(sums[::2], blocks, strict=True)
    ]
    return Importance(tuple(values), tuple(sums[1::2]))


def _evolve(loss: Callable[[np.ndarray], float], start: np.ndarray, seed: int) -> np.ndarray:
    """Return the best weights of a few generations of xNES (Glasmachers 2010)."""
    optimizer = XNES(mean=start, sigma=1.0, seed=seed)
    tried: list[tuple[np.ndarray, float]] = []
    while len(tried) < _EVALUATIONS:
        generation = [optimizer.ask() for _ in range(optimizer.population_size)]
        told = [(weights, loss(weights)) for weights in generation[: _EVALUATIONS - len(tried)]]
        tried += told
        if len(told) == len(generation):
            optimizer.tell(told)
    return min(tried, key=lambda one: one[1])[0]


def _features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(part) for part in torch.split(images, 128)])


@dataclass(frozen=True)
class BlockStatistics:
    """What CORP measures of one block of the dense model, in one pass over the images.

    Args:
        mean: Mean of the hidden neurons over all tokens, ``(M,)``.
        covariance: Their covariance, ``(M, M)``.
        active: Share of tokens at which each of them is active, ``(M,)``.
        tokens: Number of tokens seen.
        queries: Products of the queries, by image and head, ``(images, heads, d, d)``.
        keys: Products of the keys.
        energy: Mean of ``q**2 * k**2`` of each dimension, ``(heads, d)``.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    active: torch.Tensor
    tokens: int
    queries: torch.Tensor
    keys: torch.Tensor
    energy: torch.Tensor


def corp_statistics(model: ViT, images: torch.Tensor) -> list[BlockStatistics]:
    """Return CORP's statistics of every block.

    Args:
        model: An encoder with standard attention.
        images: Normalised images ``(images, channels, height, width)``.
    """
    seen: list[dict[str, list[Any]]] = [
        {"sum": [], "square": [], "active": [], "tokens": [], "q": [], "k": [], "energy": []}
        for _ in model.blocks
    ]

    def on_qkv(index: int, output: torch.Tensor) -> None:
        attn, own = model.blocks[index].attn, seen[index]
        q, k, _ = torch.unflatten(output.double(), 2, (3, attn.num_heads, -1)).permute(
            2, 0, 3, 1, 4
        )
        own["q"].append(q.mT @ q)
        own["k"].append(k.mT @ k)
        own["energy"].append((q * k).square().sum(dim=(0, 2)))

    def on_hidden(index: int, hidden: torch.Tensor) -> None:
        flat, own = hidden.flatten(0, 1).double(), seen[index]
        own["sum"].append(flat.sum(dim=0))
        own["square"].append(flat.mT @ flat)
        least = _ACTIVE * flat.square().mean().sqrt()
        own["active"].append((flat.abs() > least).double().sum(dim=0))
        own["tokens"].append(len(flat))

    hooks = []
    for i, block in enumerate(model.blocks):
        qkv, fc2 = block.attn.qkv, block.mlp.fc2
        hooks.append(qkv.register_forward_hook(lambda _, args, output, i=i: on_qkv(i, output)))
        hooks.append(fc2.register_forward_pre_hook(lambda _, args, i=i: on_hidden(i, args[0])))
    try:
        with torch.inference_mode():
            _features(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    return [_statistics(own) for own in seen]


def _statistics(own: dict[str, list[Any]]) -> BlockStatistics:
    tokens = sum(own["tokens"])
    mean = torch.stack(own["sum"]).sum(dim=0) / tokens
    square = torch.stack(own["square"]).sum(dim=0) / tokens
    return BlockStatistics(
        mean=mean,
        covariance=square - mean.outer(mean),
        active=torch.stack(own["active"]).sum(dim=0) / tokens,
        tokens=tokens,
        queries=torch.cat(own["q"]),
        keys=torch.cat(own["k"]),
        energy=torch.stack(own["energy"]).sum(dim=0) / tokens,
    )


def corp(model: ViT, statistics: Sequence[BlockStatistics], qk_ranks: int, neurons: int) -> ViT:
    """Return a copy of ``model`` as CORP prunes it, the same share of every block.

    Args:
        model: The encoder that was measured; it is not changed.
        statistics: Its statistics.
        qk_ranks: Dimensions of the queries and keys of all heads of a block to remove, in all
            blocks together. One saves half of what a rank of ours does, which goes from values and
            projection too.
        neurons: Hidden neurons to remove in all blocks together.
    """
    smaller = copy.deepcopy(model)
    blocks: list[Any] = list(smaller.blocks)
    sizes = (
        [block.attn.head_dim for block in blocks],
        [block.mlp.fc2.in_features for block in blocks],
    )
    ones = [1] * len(blocks)
    dims = even_counts(sizes[0], qk_ranks, ones, ones)
    counts = even_counts(sizes[1], neurons, ones, ones)
    with torch.no_grad():
        for block, own, gone, removed in zip(blocks, statistics, dims, counts, strict=True):
            if gone:
                block.attn = _NarrowQueries(block.attn, own, gone)
            if removed:
                _remove_neurons(block.mlp, own, removed)
    return smaller


class _NarrowQueries(nn.Module):
    """timm's attention with fewer dimensions of queries and keys than of values."""

    def __init__(self, attn: Any, own: BlockStatistics, gone: int) -> None:
        super().__init__()
        self.num_heads, self.scale = attn.num_heads, attn.scale
        weight = torch.cat([attn.qkv.weight, attn.qkv.bias[:, None]], dim=1)  # biases ride along
        q, k, v = torch.unflatten(weight.double(), 0, (3, attn.num_heads, -1))
        rows: list[list[torch.Tensor]] = [[], []]
        for head in range(attn.num_heads):
            order = own.energy[head].argsort()
            removed, kept = order[:gone], order[gone:].sort().values
            left, right = _matching(own.queries[:, head], own.keys[:, head], removed, kept)
            rows[0].append(left.mT @ q[head, kept])
            rows[1].append(right.mT @ k[head, kept])
        self.qk = _linear(torch.cat(rows[0] + rows[1]))
        self.v = _linear(v.flatten(0, 1))
        self.proj = attn.proj

    def forward(self, x: torch.Tensor, **unused: Any) -> torch.Tensor:
        """Return the attention of all tokens ``(batch, tokens, dim)``."""
        q, k = self.qk(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        v = self.v(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        projected: torch.Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected


def _matching(
    queries: torch.Tensor, keys: torch.Tensor, removed: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return U and V, ``(kept, kept)``, with which ``q U`` and ``k V`` give the dense logits best.

    ``Q_P K_P'`` is approximated by ``Q_S M K_S'`` over all pairs of tokens of an image, by ridge
    regression, and ``I + M = U V'`` is split by its singular values.

    Args:
        queries: Products of the queries of one head, by image, ``(images, d, d)``.
        keys: Products of its keys.
        removed: Dimensions P that go.
        kept: Dimensions S that stay.
    """
    size = len(kept)
    q_kept, k_kept = queries[:, kept][:, :, kept], keys[:, kept][:, :, kept]
    wanted = (queries[:, kept][:, :, removed] @ keys[:, removed][:, :, kept]).sum(dim=0)
    system = torch.einsum("nij,nkl->ikjl", q_kept, k_kept).reshape(size**2, size**2)
    system = system + _RIDGE * torch.eye(size**2, dtype=system.dtype)
    solved = torch.linalg.solve(system, wanted.flatten()).view(size, size)
    left, values, right = torch.linalg.svd(solved + torch.eye(size, dtype=solved.dtype))
    return left * values.sqrt(), right.mT * values.sqrt()


def _remove_neurons(mlp: Any, own: BlockStatistics, count: int) -> None:
    """Remove the neurons with the least energy times activity; fc2 takes over what it can."""
    energy = own.covariance.diagonal() + own.mean.square()
    order = (energy * own.active).argsort()
    removed, kept = order[:count], order[count:].sort().values
    within = own.covariance[kept][:, kept]
    ridge = _shrinkage(within, own.tokens) * torch.eye(len(kept), dtype=within.dtype)
    predictor = torch.linalg.solve(within + ridge, own.covariance[kept][:, removed]).mT
    offset = own.mean[removed] - predictor @ own.mean[kept]
    weight, bias = mlp.fc2.weight.double(), mlp.fc2.bias.double()
    folded = weight[:, kept] + weight[:, removed] @ predictor
    mlp.fc2 = _linear(torch.cat([folded, (bias + weight[:, removed] @ offset)[:, None]], dim=1))
    mlp.fc1 = _linear(torch.cat([mlp.fc1.weight, mlp.fc1.bias[:, None]], dim=1)[kept])


def _shrinkage(covariance: torch.Tensor, samples: int) -> float:
    """Return the ridge: oracle approximating shrinkage (Chen 2010, eq. 23), at least CORP's."""
    size, trace = len(covariance), float(covariance.trace())
    square = float(covariance.square().sum())
    spread = (samples + 1 - 2 / size) * (square - trace**2 / size)
    share = min(1.0, ((1 - 2 / size) * square + trace**2) / spread) if spread > 0 else 1.0
    return max(_RIDGE, share * trace / size)


def _linear(rows: torch.Tensor) -> nn.Linear:
    """Return a float32 layer from its weights, with the biases in the last column."""
    layer = nn.Linear(rows.shape[1] - 1, len(rows))
    layer.weight.data, layer.bias.data = rows[:, :-1].float(), rows[:, -1].float()
    return layer
