"""Second moments of the activations of a block on the calibration images."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vit_ratio_opt.models.blocks import ViT, attention_kind, branches, stages
from vit_ratio_opt.models.device import as_double
from vit_ratio_opt.pruning.batches import tokens_at
from vit_ratio_opt.pruning.factorize import HeadMoments
from vit_ratio_opt.pruning.fisher import BranchCost
from vit_ratio_opt.pruning.passes import in_precision
from vit_ratio_opt.pruning.sums import RunningSum, gram

__all__ = ["BlockMoments", "block_moments"]

_Tap = Callable[[Callable[[torch.Tensor], None]], RemovableHandle]
"""Register ``callback(tensor)`` on every forward pass; return the hook handle."""

Allocate = Callable[[tuple[int, ...]], torch.Tensor]
"""Return an empty tensor of a shape."""


class BlockMoments:
    """Weighted sums over the sampled tokens of one block, gathered by hooks.

    Args:
        attn: Attention of the block.
        ffn: FFN of the block.
        middle: Tap on the residual stream after the attention.
        end: Tap on the residual stream after the FFN.
        attention_cost: Cost of errors in the attention's output.
        ffn_cost: Cost of errors in the FFN's output.
        positions: Positions of the sampled tokens, ``(images, sampled)``, on the model's device.
        allocate: Function that returns an empty tensor of a shape, for the targets.

    Attributes:
        attention_target: Residual stream after the attention at the sampled tokens,
            ``(images, sampled, D)``.
        ffn_target: Residual stream after the FFN at the sampled tokens, ``(images, sampled, D)``.
    """

    def __init__(
        self,
        attn: Any,
        ffn: Any,
        middle: _Tap,
        end: _Tap,
        attention_cost: BranchCost,
        ffn_cost: BranchCost,
        positions: torch.Tensor,
        allocate: Allocate,
    ) -> None:
        self.attn, self.fc2 = attn, ffn.fc2
        self.attention_cost, self.ffn_cost = attention_cost, ffn_cost
        size = (*positions.shape, attn.proj.out_features)
        self.attention_target, self.ffn_target = allocate(size), allocate(size)
        self._taps = middle, end
        self._positions = positions
        self._batch = slice(0, 0)  # images of the current batch
        self._sums: dict[str, RunningSum] = defaultdict(RunningSum)
        self._qkv = torch.zeros(0)
        columns = (attention_cost.root @ as_double(attn.proj.weight.detach())).float()
        columns = torch.unflatten(columns, 1, (attn.num_heads, -1)).transpose(0, 1)
        self._gram = (  # (H, d, d): an error v of a head's output costs v' gram v
            (columns.mT @ columns).to(positions.device)
        )
        self._weights = {  # of the tokens, (sampled, 1)
            kind: cost.weights.float().to(positions.device)[:, None]
            for kind, cost in (("attention", attention_cost), ("ffn", ffn_cost))
        }

    @property
    def images(self) -> int:
        """Return the number of images seen so far."""
        return self._batch.stop

    def hooks(self) -> list[RemovableHandle]:
        """Register the hooks and return their handles, which the caller removes."""
        middle, end = self._taps
        return [
            self.attn.register_forward_pre_hook(self._on_batch),
            self.attn.qkv.register_forward_hook(self._on_qkv),
            self.attn.proj.register_forward_pre_hook(self._on_heads),
            self.fc2.register_forward_pre_hook(self._on_neurons),
            middle(partial(self._keep_target, self.attention_target)),
            end(partial(self._keep_target, self.ffn_target)),
        ]

    def _on_batch(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._batch = slice(self._batch.stop, self._batch.stop + len(args[0]))

    def _sampled(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens_at(tokens, self._positions[self._batch])

    def _keep_target(self, target: torch.Tensor, stream: torch.Tensor) -> None:
        target[self._batch] = self._sampled(stream).to(target.dtype)

    def _on_qkv(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self._qkv = output

    def _on_heads(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        with in_precision(args[0].device, "float32"):
            self._add_heads(args[0])

    def _add_heads(self, heads: torch.Tensor) -> None:
        attn = self.attn
        sizes = (attn.num_heads, attn.head_dim)
        q, k, v = self._qkv.chunk(3, dim=-1)
        q, k, v, outputs = (
            torch.unflatten(rows.float(), 2, sizes).transpose(1, 2)  # (B, H, N, d)
            for rows in (self._sampled(q), k, v, self._sampled(heads))
        )
        q, k = attn.q_norm(q), attn.k_norm(k)
        weights = self._weights["attention"]
        self._add("queries", _products(q * weights, q))
        self._add("outputs", _products(outputs * weights, outputs))
        self._add("output_mean", (outputs * weights).sum(dim=(0, 2)))
        k = k - k.mean(dim=2, keepdim=True)
        self._add("keys", _products(k, k) / k.shape[2])
        logits = q @ k.mT * attn.scale
        kind = attention_kind(attn)
        if kind.mixers is not None:
            first, second = (getattr(attn, name) for name in kind.mixers)
            effect = _mixed_effect(first, second, logits, v, self._gram)
        else:
            bias = None if kind.bias is None else kind.bias(attn)
            if bias is not None:
                where = self._positions[self._batch]
                logits = logits + bias[0][:, where].transpose(0, 1)
            effect = _logit_effect(logits.softmax(dim=-1), v, outputs, self._gram)
        self._add("logit_effect", (effect * weights[:, 0]).sum(dim=(0, 2)))

    def _on_neurons(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        with in_precision(args[0].device, "float32"):
            roots = self._weights["ffn"].sqrt()
            hidden = self._sampled(args[0])
            hidden = hidden * roots.to(hidden.dtype)
            self._add("neurons", gram(hidden.flatten(0, 1)))
            self._add("neuron_mean", (hidden * roots).sum(dim=(0, 1)))

    def _add(self, name: str, value: torch.Tensor) -> None:
        self._sums[name].add(value)

    def _mean(self, name: str) -> torch.Tensor:
        return self._sums.pop(name).total() / self.images

    def head_moments(self) -> HeadMoments:
        """Return the moments of the heads over all images, once."""
        centre = self._mean("output_mean")
        if self.attn.proj.bias is None:
            centre = torch.zeros_like(centre)
        return HeadMoments(
            queries=self._mean("queries"),
            keys=self._mean("keys"),
            outputs=self._mean("outputs") - centre[:, :, None] * centre[:, None],
            output_mean=centre,
            logit_effect=self._mean("logit_effect"),
        )

    def neuron_covariance(self) -> torch.Tensor:
        """Return the covariance of the hidden neurons, ``(M, M)``, once.

        It is not centred where the layer has no bias.
        """
        products, mean = self._mean("neurons"), self._mean("neuron_mean")
        return products if self.fc2.bias is None else products - torch.outer(mean, mean)


def block_moments(
    model: ViT, costs: Sequence[BranchCost], positions: torch.Tensor, allocate: Allocate
) -> list[BlockMoments]:
    """Return the moments of each block, with nothing gathered yet.

    Args:
        model: Dense or pruned model.
        costs: Cost of errors in every branch, attention and FFN in turn.
        positions: Positions of the sampled tokens, ``(images, sampled)``, on the model's device.
        allocate: Function that returns an empty tensor of a shape, for the targets.
    """
    return [
        BlockMoments(*parts, costs[2 * index], costs[2 * index + 1], positions, allocate)
        for index, parts in enumerate(_parts(model))
    ]


def _parts(model: ViT) -> Iterator[tuple[Any, Any, _Tap, _Tap]]:
    """Yield the attention and FFN of each pair of branches, and taps on the streams after them."""
    after: dict[tuple[str, int], _Tap] = {}
    order = list(stages(model))
    for now, following in itertools.pairwise(order):
        entry = following[0].entry
        for branch in now:
            after[branch.kind, branch.index] = partial(_on_input, entry)
    for branch in order[-1]:
        after[branch.kind, branch.index] = partial(_on_output, model.blocks[-1])
    for index, (attention, ffn) in enumerate(branches(model)):
        ends = after["attention", index], after["ffn", index]
        yield attention.module, ffn.module, *ends


def _on_input(module: nn.Module, callback: Callable[[torch.Tensor], None]) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda _, args: callback(args[0]))


def _on_output(module: nn.Module, callback: Callable[[torch.Tensor], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda *args: callback(args[2]))


def _logit_effect(
    shares: torch.Tensor, values: torch.Tensor, outputs: torch.Tensor, gram: torch.Tensor
) -> torch.Tensor:
    """Return the loss caused by noise of variance 1 in the logits, ``(B, H, N)``.

    Independent noise e changes an output by ``sum_j p_j e_j (v_j - output)``.

    Args:
        shares: p, the attention after the softmax, ``(B, H, N, keys)``.
        values: v, ``(B, H, keys, d)``.
        outputs: ``shares @ values``.
        gram: ``(H, d, d)``: an error x of a head's output costs ``x' gram x``.
    """
    shares = shares.square()
    lengths = ((values @ gram) * values).sum(dim=-1, keepdim=True)
    mixed = outputs @ gram
    effect = shares @ lengths - 2 * ((shares @ values) * mixed).sum(dim=-1, keepdim=True)
    effect += shares.sum(dim=-1, keepdim=True) * (mixed * outputs).sum(dim=-1, keepdim=True)
    return effect[..., 0]


def _mixed_effect(
    first: nn.Linear,
    second: nn.Linear,
    logits: torch.Tensor,
    values: torch.Tensor,
    gram: torch.Tensor,
) -> torch.Tensor:
    """Return :func:`_logit_effect` where heads are mixed before and after the softmax.

    Effects that reach a head through different heads are taken as independent.

    Args:
        first: Layer from heads to heads before the softmax.
        second: Layer from heads to heads after the softmax.
        logits: ``(B, H, N, keys)``.
        values: ``(B, H, keys, d)``.
        gram: ``(H, d, d)``: an error x of a head's output costs ``x' gram x``.
    """
    before, after = first.weight.square(), second.weight.square()
    mixed: torch.Tensor = first(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    shares = mixed.softmax(dim=-1)
    # Of the noise in the j-th softmax for the i-th head: (B, N, i, j).
    effects = []
    for index in range(shares.shape[1]):
        share = shares[:, index : index + 1].expand_as(shares)
        effects.append(_logit_effect(share, values, share @ values, gram).transpose(1, 2))
    effect: torch.Tensor = (torch.stack(effects, dim=3) * after).sum(dim=2)
    raw: torch.Tensor = effect @ before
    return raw.transpose(1, 2)


def _products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return sums of outer products over images and tokens: ``(B, H, N, d)`` to ``(H, d, d)``."""
    return torch.einsum("bhnd,bhne->hde", first, second)
