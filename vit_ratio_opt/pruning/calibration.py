"""What a model does on a few training images, measured once and used for every pair of ratios.

Losses are estimates of one thing, so that blocks and modules can be compared: the Kullback-Leibler
divergence of the pruned model's class probabilities from the dense model's, in nats, to second
order. An error e in what a branch adds to the residual stream costs ``e' F e / 2``, where F is the
mean of ``g g'`` over the gradients g of the log-likelihood of labels drawn from the model itself
(the Fisher information).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.pruning.factorize import HeadFactors, HeadMoments, head_factors
from vit_ratio_opt.pruning.reconstruct import elimination_order
from vit_ratio_opt.pruning.surgery import check_supported, evaluating

__all__ = ["BlockCalibration", "Calibration", "calibrate"]

# Images whose gradients are taken, the dearest part; two numbers a token and one matrix a branch
# are made from them.
_GRADIENT_IMAGES = 256
_CHUNK = 32  # images whose attention maps are in memory at once


@dataclass(frozen=True)
class BlockCalibration:
    """One block.

    Args:
        factors: Of its heads.
        neuron_order: Hidden neurons, the first to be removed first, ``(M,)``.
        neuron_losses: What each of them adds to the loss, in that order, ``(M,)``.
        attention_weights: Mean squared gradient at each token after the attention, ``(tokens,)``.
        ffn_weights: The same after the FFN.
    """

    factors: HeadFactors
    neuron_order: torch.Tensor
    neuron_losses: torch.Tensor
    attention_weights: torch.Tensor
    ffn_weights: torch.Tensor


@dataclass(frozen=True)
class Calibration:
    """All blocks, on the CPU, in double precision."""

    blocks: tuple[BlockCalibration, ...]

    @property
    def token_weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What :func:`vit_ratio_opt.pruning.repair` weighs errors by."""
        return [(block.attention_weights, block.ffn_weights) for block in self.blocks]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """By name, for a safetensors file."""
        tensors = {}
        for index, block in enumerate(self.blocks):
            own = {name: tensor for name, tensor in vars(block).items() if name != "factors"}
            for name, tensor in {**own, **vars(block.factors)}.items():
                tensors[f"{index}.{name}"] = tensor.contiguous()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, torch.Tensor]) -> Calibration:
        """What :meth:`to_tensors` gave; KeyError or ValueError where it did not."""
        blocks = []
        for index in range(1 + max(int(name.split(".")[0]) for name in tensors)):
            names = [field.name for field in fields(BlockCalibration)[1:]]
            blocks.append(
                BlockCalibration(
                    HeadFactors(
                        **{f.name: tensors[f"{index}.{f.name}"] for f in fields(HeadFactors)}
                    ),
                    **{name: tensors[f"{index}.{name}"] for name in names},
                )
            )
        return cls(tuple(blocks))


def calibrate(
    model: VisionTransformer, images: Sequence[torch.Tensor], *, seed: int = 0
) -> Calibration:
    """Measure ``model`` on ``images``: one pass with gradients, one without.

    Args:
        model: Its training mode is left as it was.
        images: Normalised batches ``(batch, channels, height, width)``, on its device. The
            gradients are those of the first 256 images.
        seed: Of the labels that are drawn from the model's own predictions.

    Raises:
        UnsupportedModelError: The model cannot be pruned.
        InputError: ``images`` is empty.
    """
    check_supported(model)
    if not any(len(batch) for batch in images):
        raise InputError("Calibration needs at least one batch of images, but got none.")
    with evaluating(model):
        branches = _branches(model, images, seed)
        moments = [
            _Moments(block, *branches[2 * index : 2 * index + 2])
            for index, block in enumerate(model.blocks)
        ]
        hooks = [hook for block in moments for hook in block.hooks()]
        try:
            with torch.inference_mode():
                for batch in images:
                    for chunk in torch.split(batch, _CHUNK):
                        model.forward_features(chunk)
        finally:
            for hook in hooks:
                hook.remove()
    return Calibration(tuple(block.calibration() for block in moments))


@dataclass(frozen=True)
class _Branch:
    """What an error in what a branch adds to the stream costs.

    Args:
        root: ``(D, D)``; the loss is the squared length of ``root @ error``, weighted by token.
        tokens: ``(tokens,)``, what each token weighs.
    """

    root: torch.Tensor
    tokens: torch.Tensor


def _branches(
    model: VisionTransformer, images: Sequence[torch.Tensor], seed: int
) -> list[_Branch]:
    """Fisher information of every branch, attention and FFN in turn."""
    taps: list[torch.Tensor] = []

    def tap(module: nn.Module, args: object, output: torch.Tensor) -> None:
        taps.append(output)

    layers = [layer for block in model.blocks for layer in (block.attn.proj, block.mlp.fc2)]
    hooks = [layer.register_forward_hook(tap) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    squares = [torch.zeros(0)] * len(layers)
    tokens = [torch.zeros(0)] * len(layers)
    seen = 0
    try:
        with torch.enable_grad():
            for batch in images:
                chunk = batch[: _GRADIENT_IMAGES - seen].detach().requires_grad_()
                if not len(chunk):
                    break
                taps.clear()
                logits = model(chunk)
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
        _branch(square, token / seen, model.num_prefix_tokens, seen)
        for square, token in zip(squares, tokens, strict=True)
    ]


def _branch(square: torch.Tensor, tokens: torch.Tensor, prefix: int, images: int) -> _Branch:
    # One patch's weight is noise, that of all patches is not.
    tokens[prefix:] = tokens[prefix:].mean()
    tokens = tokens.clamp_min(0)
    total = float(tokens.sum())
    if total == 0:  # a branch that changes nothing
        return _Branch(torch.zeros_like(square), torch.full_like(tokens, 1 / len(tokens)))
    width = len(square)
    metric = square / square.trace()
    # So few gradients say little about directions: the fewer, the more alike all of them count.
    doubt = width / (images * _effective(tokens))
    metric = (metric + doubt / width * torch.eye(width, dtype=metric.dtype)) / (1 + doubt)
    values, vectors = torch.linalg.eigh(metric * total / 2)
    return _Branch(values.clamp_min(0).sqrt()[:, None] * vectors.mT, tokens / total)


def _effective(weights: torch.Tensor) -> float:
    """As how many equally weighted samples the weighted ones count."""
    return float(weights.sum().square() / weights.square().sum())


class _Moments:
    """Weighted sums over all images and tokens of one block, gathered by hooks."""

    def __init__(self, block: Any, attention: _Branch, ffn: _Branch) -> None:
        self._block = block
        self._attention, self._ffn = attention, ffn
        self._images = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._qkv = torch.zeros(0)
        columns = (attention.root @ block.attn.proj.weight.detach().cpu().double()).float()
        self._columns = torch.unflatten(columns, 1, (block.attn.num_heads, -1)).transpose(0, 1)

    def hooks(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Register; the caller removes."""
        attn, mlp = self._block.attn, self._block.mlp
        return [
            attn.qkv.register_forward_hook(self._see_qkv),
            attn.proj.register_forward_pre_hook(self._see_heads),
            mlp.fc2.register_forward_pre_hook(self._see_neurons),
        ]

    def _see_qkv(self, module: nn.Module, args: object, output: torch.Tensor) -> None:
        self._qkv = output

    def _see_heads(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        attn = self._block.attn
        sizes = (attn.num_heads, attn.head_dim)
        q, k, v = torch.unflatten(self._qkv, 2, (3, *sizes)).permute(
            2, 0, 3, 1, 4
        )  # (B, H, N, d) each
        outputs = torch.unflatten(args[0], 2, sizes).transpose(1, 2)
        weights = self._attention.tokens.to(q)[:, None]
        self._images += len(q)
        self._add("queries", _products(q * weights, q))
        self._add("outputs", _products(outputs * weights, outputs))
        self._add("output_mean", (outputs * weights).sum(dim=(0, 2)))
        k = k - k.mean(dim=2, keepdim=True)
        self._add("keys", _products(k, k) / k.shape[2])
        # Independent noise e in the logits changes an output by sum_j p_j e_j (v_j - output).
        attention = (q @ k.mT * attn.scale).softmax(dim=-1).square()
        values = v @ self._columns.to(q).mT  # (B, H, N, D), in units of the loss
        mixed = outputs @ self._columns.to(q).mT
        effect = attention @ values.square().sum(dim=-1, keepdim=True)
        effect -= 2 * (attention @ values * mixed).sum(dim=-1, keepdim=True)
        shares = attention.sum(dim=-1, keepdim=True)
        effect += shares * mixed.square().sum(dim=-1, keepdim=True)
        self._add("logit_effect", (effect * weights).sum(dim=(0, 2, 3)))

    def _see_neurons(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        hidden = args[0]
        weighted = hidden * self._ffn.tokens.to(hidden)[:, None]
        self._add("neurons", weighted.flatten(0, 1).mT @ hidden.flatten(0, 1))
        self._add("neuron_mean", weighted.sum(dim=(0, 1)))

    def _add(self, name: str, value: torch.Tensor) -> None:
        value = value.double().cpu()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def calibration(self) -> BlockCalibration:
        """When all images were seen."""
        means = {name: total / self._images for name, total in self._sums.items()}
        attn, fc2 = self._block.attn, self._block.mlp.fc2
        centre, outputs = means.pop("output_mean"), means.pop("outputs")
        if attn.proj.bias is None:
            centre = torch.zeros_like(centre)
        outputs = outputs - centre[:, :, None] * centre[:, None]
        neurons, neuron_mean = means.pop("neurons"), means.pop("neuron_mean")
        if fc2.bias is not None:
            neurons = neurons - torch.outer(neuron_mean, neuron_mean)
        root, tokens = self._ffn.root, self._ffn.tokens
        order, losses = elimination_order(
            neurons,
            root @ fc2.weight.detach().cpu().double(),
            samples=self._images * _effective(tokens),
        )
        moments = HeadMoments(output_mean=centre, outputs=outputs, **means)
        return BlockCalibration(
            head_factors(
                moments,
                self._attention.root @ attn.proj.weight.detach().cpu().double(),
                attn.scale,
            ),
            neuron_order=order,
            neuron_losses=losses,
            attention_weights=self._attention.tokens,
            ffn_weights=tokens,
        )


def _products(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of outer products over images and tokens: twice ``(B, H, N, d)`` to ``(H, d, d)``."""
    return torch.einsum("bhnd,bhne->hde", first, second)
