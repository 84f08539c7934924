"""What a model does on a few training images, measured once and used for every pair of ratios.

Losses are estimates of one thing, so that blocks and modules can be compared: the Kullback-Leibler
divergence of the pruned model's class probabilities from the dense model's, in nats, to second
order. An error e in what a branch adds to the residual stream costs ``e' F e / 2``, where F is the
mean of ``g g'`` over the gradients g of the log-likelihood of labels drawn from the model itself
(the Fisher information).

Sums and targets are over a sample of each image's tokens. Tokens of one image say nearly the same
about a layer, images do not: on the CIFAR-10 models 4 of 64 patches were as good as all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.architecture import fingerprint_of
from vit_ratio_opt.models.blocks import ViT, branches, keeps_heads, keeps_ranks, stages
from vit_ratio_opt.models.classifier import classes_of
from vit_ratio_opt.models.device import evaluating
from vit_ratio_opt.models.separate import BiasedAttention, TalkingHeads
from vit_ratio_opt.models.supported import check_precision, check_weights
from vit_ratio_opt.models.surgery import check_all_tokens, shape_of
from vit_ratio_opt.pruning.batches import check_logits, image_batches, image_means
from vit_ratio_opt.pruning.eliminate import elimination_order
from vit_ratio_opt.pruning.factorize import HeadFactors, HeadMoments, head_factors

__all__ = ["BlockCalibration", "Calibration", "calibrate", "tokens_at"]

# Images whose gradients are taken, the dearest part; two numbers a token and one matrix a branch
# are made from them.
_GRADIENT_IMAGES = 256
_CHUNK = 32  # images that pass through the model at once
# Patches of each image: at least so many, and such that the widest layer has so many for each of
# its inputs.
_LEAST_PATCHES, _TOKENS_PER_INPUT = 8, 8


@dataclass(frozen=True)
class BlockCalibration:
    """One block.

    Args:
        factors: Of its heads.
        neuron_order: Hidden neurons, the first to be removed first, ``(M,)``.
        neuron_losses: What each of them adds to the loss, in that order, ``(M,)``.
        attention_weights: Mean squared gradient after the attention at the tokens that each of
            the sampled ones stands for, as a share of all tokens, ``(sampled,)``.
        ffn_weights: The same after the FFN.
        attention_target: The residual stream after the attention at the sampled tokens,
            ``(images, sampled, D)``, in the model's precision.
        ffn_target: The same after the FFN.
    """

    factors: HeadFactors
    neuron_order: torch.Tensor
    neuron_losses: torch.Tensor
    attention_weights: torch.Tensor
    ffn_weights: torch.Tensor
    attention_target: torch.Tensor
    ffn_target: torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """All blocks, on the CPU.

    Args:
        blocks: From the input to the output.
        positions: The sampled tokens of each image, ``(images, sampled)``: all prefix tokens, then
            some of the patches.
        model: Fingerprint of the model that was measured, ``(16,)`` bytes; None if not known.
        means: Mean of each image, ``(images,)``, to tell other images; None if not known.
    """

    blocks: tuple[BlockCalibration, ...]
    positions: torch.Tensor
    model: torch.Tensor | None = None
    means: torch.Tensor | None = None

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """By name, for a safetensors file."""
        tensors = {"positions": self.positions}
        known = {"model": self.model, "means": self.means}
        tensors |= {name: tensor for name, tensor in known.items() if tensor is not None}
        for index, block in enumerate(self.blocks):
            own = {name: tensor for name, tensor in vars(block).items() if name != "factors"}
            for name, tensor in {**own, **vars(block.factors)}.items():
                tensors[f"{index}.{name}"] = tensor.contiguous()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Calibration:
        """What :meth:`to_tensors` gave; KeyError or ValueError where it did not."""
        blocks = []
        indices = [int(name.split(".")[0]) for name in tensors if "." in name]
        for index in range(1 + max(indices)):
            names = [field.name for field in fields(BlockCalibration)[1:]]
            blocks.append(
                BlockCalibration(
                    HeadFactors(
                        **{f.name: tensors[f"{index}.{f.name}"] for f in fields(HeadFactors)}
                    ),
                    **{name: tensors[f"{index}.{name}"] for name in names},
                )
            )
        known = {name: tensors.get(name) for name in ("model", "means")}
        return cls(tuple(blocks), tensors["positions"], **known)


def calibrate(model: ViT, images: Iterable[torch.Tensor], *, seed: int = 0) -> Calibration:
    """Measure ``model`` on ``images``: one pass with gradients, one without.

    Args:
        model: In float32. Its mode, gradients and frozen weights are left as they were; frozen or
            not makes no difference.
        images: Normalised batches ``(batch, channels, height, width)``, on its device. The
            gradients are those of the first 256 images.
        seed: Of the labels that are drawn from the model's own predictions, and of the sampled
            tokens.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``images`` is empty or does not fit the model, which has a cascade or weights
            that are not finite numbers of this precision.
    """
    model = check_all_tokens(model)
    check_precision(model)
    check_weights(model)
    classes_of(model)
    images = image_batches(model, images)
    if not images:
        raise InputError(
            "Calibration needs at least one batch of images, but got none: a generator gives its "
            "batches only once."
        )
    positions = _sample(model, sum(len(batch) for batch in images), seed)
    with evaluating(model):
        costs = _branch_costs(model, images, seed, positions.shape[1])
        moments = [
            _Moments(*parts, costs[2 * index], costs[2 * index + 1], positions)
            for index, parts in enumerate(_parts(model))
        ]
        hooks = [hook for block in moments for hook in block.hooks()]
        try:
            with torch.inference_mode():
                for chunk in _chunks(images):
                    model.forward_features(chunk)
        finally:
            for hook in hooks:
                hook.remove()
    blocks = tuple(block.calibration() for block in moments)
    return Calibration(blocks, positions, fingerprint_of(model), image_means(images))


def tokens_at(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``(B, N, D)`` to ``(B, sampled, D)``, with positions ``(B, sampled)``."""
    return tokens.take_along_dim(positions[:, :, None], dim=1)


def _chunks(images: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for batch in images:
        yield from torch.split(batch, _CHUNK)


def _sample(model: ViT, images: int, seed: int) -> torch.Tensor:
    """Positions ``(images, sampled)``."""
    shape = shape_of(model)
    widest = max(max(b.hidden_dim, b.num_heads * b.head_dim) for b in shape.blocks)
    patches = max(_LEAST_PATCHES, math.ceil(_TOKENS_PER_INPUT * widest / images))
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(images, shape.patches, generator=generator).argsort(dim=1)
    prefix = torch.arange(shape.prefix_tokens).expand(images, -1)
    return torch.cat([prefix, shape.prefix_tokens + order[:, :patches]], dim=1)


@dataclass(frozen=True)
class _Cost:
    """What an error in what a branch adds to the stream costs.

    Args:
        root: ``(D, D)``; the loss is the squared length of ``root @ error``, weighted by token.
        weights: ``(sampled,)``, what each sampled token weighs.
    """

    root: torch.Tensor
    weights: torch.Tensor


def _branch_costs(
    model: ViT, images: Sequence[torch.Tensor], seed: int, sampled: int
) -> list[_Cost]:
    """Fisher information of every branch, attention and FFN in turn."""
    taps: list[torch.Tensor] = []

    def tap(module: nn.Module, args: object, output: torch.Tensor) -> None:
        taps.append(output)

    prefix = shape_of(model).prefix_tokens
    layers = [branch.last for pair in branches(model) for branch in pair]
    hooks = [layer.register_forward_hook(tap) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    squares = [torch.zeros(0)] * len(layers)
    tokens = [torch.zeros(0)] * len(layers)
    seen = 0
    try:
        with torch.enable_grad():
            for number, part in enumerate(_chunks(images)):
                chunk = part[: _GRADIENT_IMAGES - seen].detach().requires_grad_()
                if not len(chunk):
                    break
                taps.clear()
                logits = model(chunk)
                check_logits(logits, number)
                drawn = logits.detach().float().softmax(dim=1).cpu()
                labels = torch.multinomial(drawn, 1, generator=generator)[:, 0].to(chunk.device)
                loss = F.cross_entropy(logits, labels, reduction="sum")
                for index, gradient in enumerate(torch.autograd.grad(loss, taps)):
                    flat = gradient.flatten(0, 1)
                    square = (flat.mT @ flat).double().cpu()
                    token = gradient.square().sum(dim=(0, 2)).double().cpu()
                    squares[index] = squares[index] + square if seen else square
                    tokens[index] = tokens[index] + token if seen else token
                seen += len(chunk)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        _cost(square, token / seen, prefix, seen, sampled)
        for square, token in zip(squares, tokens, strict=True)
    ]


def _cost(
    square: torch.Tensor, tokens: torch.Tensor, prefix: int, images: int, sampled: int
) -> _Cost:
    # One patch's weight is noise, that of all patches is not.
    tokens[prefix:] = tokens[prefix:].mean()
    total = float(tokens.sum())
    if total == 0:  # a branch that changes nothing
        weights = torch.full((sampled,), 1 / sampled, dtype=tokens.dtype)
        return _Cost(torch.zeros_like(square), weights)
    weights = tokens[:sampled] / total
    weights[prefix:] *= (len(tokens) - prefix) / (sampled - prefix)
    width = len(square)
    metric = square / square.trace()
    # So few gradients say little about directions: the fewer, the more alike all of them count.
    doubt = width / (images * _effective(tokens))
    metric = (metric + doubt / width * torch.eye(width, dtype=metric.dtype)) / (1 + doubt)
    values, vectors = torch.linalg.eigh(metric * total / 2)
    return _Cost(values.clamp_min(0).sqrt()[:, None] * vectors.mT, weights)


def _effective(weights: torch.Tensor) -> float:
    """As how many equally weighted samples the weighted ones count."""
    return float(weights.sum().square() / weights.square().sum())


_Tap = Callable[[Callable[[torch.Tensor], None]], torch.utils.hooks.RemovableHandle]
"""Has a function told a tensor in every forward pass, until the handle is removed."""


def _parts(model: ViT) -> Iterator[tuple[Any, Any, _Tap, _Tap]]:
    """Of each pair of branches the attention, the FFN, and where the streams after them are."""
    after: dict[tuple[str, int], _Tap] = {}
    order = list(stages(model))
    for now, following in itertools.pairwise(order):
        entry = following[0][2].entry
        for index, kind, _ in now:
            after[kind, index] = partial(_on_input, entry)
    for index, kind, _ in order[-1]:
        after[kind, index] = partial(_on_output, model.blocks[-1])
    for index, (attention, ffn) in enumerate(branches(model)):
        ends = after["attention", index], after["ffn", index]
        yield attention.module, ffn.module, *ends


def _on_input(
    module: nn.Module, told: Callable[[torch.Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_pre_hook(lambda _, args: told(args[0]))


def _on_output(
    module: nn.Module, told: Callable[[torch.Tensor], None]
) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda *args: told(args[2]))


class _Moments:
    """Weighted sums over the sampled tokens of one block, gathered by hooks, and the targets."""

    def __init__(
        self,
        attn: Any,
        ffn: Any,
        middle: _Tap,
        end: _Tap,
        attention_cost: _Cost,
        ffn_cost: _Cost,
        positions: torch.Tensor,
    ) -> None:
        self._attn, self._fc2, self._ends = attn, ffn.fc2, (middle, end)
        self._attention, self._ffn = attention_cost, ffn_cost
        self._positions = positions
        self._seen = slice(0, 0)  # images in hand
        self._sums: dict[str, torch.Tensor] = {}
        self._qkv = torch.zeros(0)
        self._targets: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
        columns = (attention_cost.root @ attn.proj.weight.detach().cpu().double()).float()
        columns = torch.unflatten(columns, 1, (attn.num_heads, -1)).transpose(0, 1)
        self._gram = columns.mT @ columns  # (H, d, d): v' gram v is what v counts for in the loss

    def hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Register; the caller removes."""
        return [
            self._attn.register_forward_pre_hook(self._begin),
            self._attn.qkv.register_forward_hook(self._see_qkv),
            self._attn.proj.register_forward_pre_hook(self._see_heads),
            self._fc2.register_forward_pre_hook(self._see_neurons),
            *(tap(partial(self._keep, branch)) for branch, tap in enumerate(self._ends)),
        ]

    def _begin(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self._seen = slice(self._seen.stop, self._seen.stop + len(args[0]))

    def _sampled(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens_at(tokens, self._positions[self._seen].to(tokens.device))

    def _keep(self, branch: int, stream: torch.Tensor) -> None:
        self._targets[branch].append(self._sampled(stream).cpu())

    def _see_qkv(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self._qkv = output

    def _see_heads(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        attn = self._attn
        sizes = (attn.num_heads, attn.head_dim)
        q, k, v = self._qkv.chunk(3, dim=-1)
        q, k, v, outputs = (
            torch.unflatten(rows, 2, sizes).transpose(1, 2)  # (B, H, N, d)
            for rows in (self._sampled(q), k, v, self._sampled(args[0]))
        )
        q, k = attn.q_norm(q), attn.k_norm(k)
        weights = self._attention.weights.to(q)[:, None]
        self._add("queries", _products(q * weights, q))
        self._add("outputs", _products(outputs * weights, outputs))
        self._add("output_mean", (outputs * weights).sum(dim=(0, 2)))
        k = k - k.mean(dim=2, keepdim=True)
        self._add("keys", _products(k, k) / k.shape[2])
        logits = q @ k.mT * attn.scale
        gram = self._gram.to(q)
        if isinstance(attn, TalkingHeads):
            effect = _mixed_effect(attn, logits, v, gram)
        else:
            bias = attn.position_bias() if isinstance(attn, BiasedAttention) else None
            if bias is not None:
                where = self._positions[self._seen].to(q.device)
                logits = logits + bias[0][:, where].transpose(0, 1)
            effect = _logit_effect(logits.softmax(dim=-1), v, outputs, gram)
        self._add("logit_effect", (effect * weights[:, 0]).sum(dim=(0, 2)))

    def _see_neurons(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        hidden = self._sampled(args[0])
        weighted = hidden * self._ffn.weights.to(hidden)[:, None]
        self._add("neurons", weighted.flatten(0, 1).mT @ hidden.flatten(0, 1))
        self._add("neuron_mean", weighted.sum(dim=(0, 1)))

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.double().cpu()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def calibration(self) -> BlockCalibration:
        """When all images were seen."""
        images = self._seen.stop
        means = {name: total / images for name, total in self._sums.items()}
        attn, fc2 = self._attn, self._fc2
        centre, outputs = means.pop("output_mean"), means.pop("outputs")
        if attn.proj.bias is None:
            centre = torch.zeros_like(centre)
        outputs = outputs - centre[:, :, None] * centre[:, None]
        neurons, neuron_mean = means.pop("neurons"), means.pop("neuron_mean")
        if fc2.bias is not None:
            neurons = neurons - torch.outer(neuron_mean, neuron_mean)
        root, weights = self._ffn.root, self._ffn.weights
        order, losses = elimination_order(
            neurons,
            root @ fc2.weight.detach().cpu().double(),
            samples=images * _effective(weights),
        )
        moments = HeadMoments(output_mean=centre, outputs=outputs, **means)
        return BlockCalibration(
            head_factors(
                moments,
                self._attention.root @ attn.proj.weight.detach().cpu().double(),
                attn.scale,
                truncate=not keeps_ranks(attn),
                remove=not keeps_heads(attn),
            ),
            neuron_order=order,
            neuron_losses=losses,
            attention_weights=self._attention.weights,
            ffn_weights=weights,
            attention_target=torch.cat(self._targets[0]),
            ffn_target=torch.cat(self._targets[1]),
        )


def _logit_effect(
    shares: torch.Tensor, values: torch.Tensor, outputs: torch.Tensor, gram: torch.Tensor
) -> torch.Tensor:
    """What noise of variance 1 in the logits costs, ``(B, H, N)``.

    Independent noise e changes an output by ``sum_j p_j e_j (v_j - output)``.

    Args:
        shares: p, the attention after the softmax, ``(B, H, N, keys)``.
        values: v, ``(B, H, keys, d)``.
        outputs: ``shares @ values``.
        gram: Of the heads, ``(H, d, d)``: ``x' gram x`` is what an error x costs.
    """
    shares = shares.square()
    lengths = ((values @ gram) * values).sum(dim=-1, keepdim=True)
    mixed = outputs @ gram
    effect = shares @ lengths - 2 * ((shares @ values) * mixed).sum(dim=-1, keepdim=True)
    effect += shares.sum(dim=-1, keepdim=True) * (mixed * outputs).sum(dim=-1, keepdim=True)
    return effect[..., 0]


def _mixed_effect(
    attn: TalkingHeads, logits: torch.Tensor, values: torch.Tensor, gram: torch.Tensor
) -> torch.Tensor:
    """The same where the logits of a head reach all heads, before and after the softmax.

    As if what reaches a head on different ways were independent.
    """
    before, after = attn.proj_l.weight.square(), attn.proj_w.weight.square()
    shares = attn.mixed(attn.proj_l, logits).softmax(dim=-1)
    # Of the noise in the j-th softmax for the i-th head: (B, N, i, j).
    effects = []
    for index in range(attn.num_heads):
        share = shares[:, index : index + 1].expand_as(shares)
        effects.append(_logit_effect(share, values, share @ values, gram).transpose(1, 2))
    effect: torch.Tensor = (torch.stack(effects, dim=3) * after).sum(dim=2)
    raw: torch.Tensor = effect @ before
    return raw.transpose(1, 2)


def _products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of outer products over images and tokens: twice ``(B, H, N, d)`` to ``(H, d, d)``."""
    return torch.einsum("bhnd,bhne->hde", first, second)
