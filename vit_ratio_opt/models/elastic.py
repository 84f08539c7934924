"""One set of weights for models of several sizes.

Each level of an :class:`ElasticViT` is a timm model whose matrices are slices of those of the next
larger level: in every block the first heads, the first dimensions of each of them, and the first
hidden neurons. What is first is for :func:`vit_ratio_opt.build_elastic` to arrange.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from vit_ratio_opt.errors import InputError
from vit_ratio_opt.models.blocks import ViT, attention_kind, branches, input_layers
from vit_ratio_opt.models.copies import copy_model
from vit_ratio_opt.models.shape import shape_of
from vit_ratio_opt.models.surgery import set_sizes, shrink_to
from vit_ratio_opt.space.pairs import RatioPair
from vit_ratio_opt.space.shape import BlockShape
from vit_ratio_opt.utils.checks import check_number

__all__ = ["ElasticLevel", "ElasticViT"]

# While a level computes, the largest model has its sizes and weights: threads take turns.
_turn = threading.RLock()


@dataclass(frozen=True)
class ElasticLevel:
    """One size of an :class:`ElasticViT`.

    Args:
        pair: Ratios of the dense model that the level removes at least.
        blocks: Heads, their dimensions and hidden neurons of every block.
        macs_ratio: MACs of the level as a share of the dense model's.
    """

    pair: RatioPair
    blocks: tuple[BlockShape, ...]
    macs_ratio: float


class ElasticViT(nn.Module):
    """Models of several sizes in one set of weights.

    All matrices are shared, and the biases of neurons and of queries, keys and values. The other
    vectors, such as norms and the biases of ``proj`` and ``fc2``, are each level's own, since a
    smaller model needs other means: in a ViT-B they are 0.07 % of the weights for each level.

    Args:
        largest: timm model of the largest level.
        levels: The levels, from the largest to the smallest.

    Attributes:
        largest: timm model of the largest level, whose weights all levels share.
        levels: The levels, from the largest to the smallest.
        vectors: Own vectors of every level but the largest, in the order of ``vector_names``.
        vector_names: Names of these vectors in a level's model.

    Raises:
        InputError: The levels are not nested, or are not those of ``largest``.
        UnsupportedModelError: The model cannot be pruned.

    Example:
        >>> elastic = vro.build_elastic(dense, [(0, 0), (0.3, 0.5), (0.6, 0.7)], calibration)
        >>> vro.finetune(elastic, data, vro.Recipe(epochs=10), teacher=dense)
        >>> model = elastic.at(0.5)  # a plain timm model within half of the FLOPs
    """

    def __init__(self, largest: ViT, levels: Sequence[ElasticLevel]) -> None:
        super().__init__()
        _check_nested(shape_of(largest).blocks, levels)
        self.largest, self.levels = largest, tuple(levels)
        cut = self._cut_state(levels[0].blocks).keys()
        own = {
            name: parameter
            for name, parameter in largest.named_parameters()
            if parameter.ndim == 1 and name not in cut
        }
        self.vector_names = tuple(own)
        self.vectors = nn.ModuleList(
            nn.ParameterList(
                nn.Parameter(value.detach().clone(), value.requires_grad) for value in own.values()
            )
            for _ in levels[1:]
        )

    @property
    def blocks(self) -> nn.Module:
        """Return the blocks of the largest level."""
        blocks: nn.Module = self.largest.blocks
        return blocks

    def no_weight_decay(self) -> set[str]:
        """Return the weights that timm's optimisers do not let decay."""
        return {f"largest.{name}" for name in self.largest.no_weight_decay()}

    def forward(self, images: torch.Tensor, level: int = 0) -> torch.Tensor:
        """Return the outputs of one level, with gradients for the shared weights.

        Threads take turns: to serve several at once, give each the model of :meth:`at`.

        Args:
            images: Normalised images ``(batch, channels, height, width)``.
            level: Index of the level, 0 for the largest.

        Raises:
            InputError: There is no such level, or the model checkpoints its gradients, which would
                be those of another level.
        """
        level = self._index(level)
        if getattr(self.largest, "grad_checkpointing", False):
            raise InputError(
                "An elastic model cannot checkpoint gradients: call "
                "`elastic.largest.set_grad_checkpointing(False)`."
            )
        with nullcontext() if torch.compiler.is_compiling() else _turn:
            if level == 0:
                outputs: torch.Tensor = self.largest(images)
                return outputs
            state = self.state_of(level)
            with self._sized(self.levels[level].blocks):
                outputs = functional_call(self.largest, state, (images,))
            return outputs

    def state_of(self, level: int) -> dict[str, torch.Tensor]:
        """Return the weights of a level in which it differs from the largest, as slices."""
        level = self._index(level)
        state = self._cut_state(self.levels[level].blocks)
        if level:
            state |= {name: self.vector(level, name) for name in self.vector_names}
        return state

    def vector(self, level: int, name: str) -> nn.Parameter:
        """Return one of the vectors that are each level's own.

        Args:
            level: Index of the level, 0 for the largest.
            name: One of ``vector_names``.
        """
        if level == 0:
            shared: nn.Parameter = self.largest.get_parameter(name)
            return shared
        own: Any = self.vectors[level - 1]
        vector: nn.Parameter = own[self.vector_names.index(name)]
        return vector

    def extract(self, level: int) -> ViT:
        """Return a copy of a level's model: a plain timm model, in evaluation mode.

        Args:
            level: Index of the level, 0 for the largest.
        """
        level = self._index(level)
        with _turn, torch.no_grad():
            if not level:
                return copy_model(self.largest).eval()
            model = shrink_to(self.largest, self.levels[level].blocks)
            parts = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            for name, value in self.state_of(level).items():
                parts[name].copy_(value)
        return model.eval()

    def at(self, budget: float) -> ViT:
        """Return the model of the largest level within a budget: a copy, a plain timm model.

        Args:
            budget: Largest share of the dense model's MACs, in [0, 1].

        Raises:
            InputError: Every level is over the budget.
        """
        budget = check_number("budget", budget, "in [0, 1]", least=0, most=1)
        for index, level in enumerate(self.levels):
            if level.macs_ratio <= budget + 1e-9:
                return self.extract(index)
        raise InputError(
            f"No level costs at most {budget:g} of the dense model's MACs: the smallest costs "
            f"{self.levels[-1].macs_ratio:.4f}. Give a larger budget, or build it with a smaller "
            "level."
        )

    def __repr__(self) -> str:
        shares = ", ".join(f"{level.macs_ratio:.3f}" for level in self.levels)
        return f"<ElasticViT: {len(self.levels)} levels with {shares} of the MACs>"

    def _index(self, level: int) -> int:
        """Return the index of a level, counted from the largest.

        Raises:
            InputError: There is no such level.
        """
        count = len(self.levels)
        is_index = isinstance(level, int) and not isinstance(level, bool)
        if not (is_index and -count <= level < count):
            raise InputError(
                f"`level` must be the index of a level, 0 to {count - 1}, but got {level!r:.80}."
            )
        return level % count

    def _cut_state(self, blocks: Sequence[BlockShape]) -> dict[str, torch.Tensor]:
        """Return the tensors whose first parts blocks of these sizes take, cut."""
        state: dict[str, torch.Tensor] = {}
        for (attention, ffn), size in zip(branches(self.largest), blocks, strict=True):
            attn, mlp = attention.module, ffn.module
            for name, part in _named(attention.name, "qkv", attn.qkv):
                state[name] = _cut_rows(part, attn, size)
            columns = torch.unflatten(attn.proj.weight, 1, (attn.num_heads, attn.head_dim))
            columns = columns[:, : size.num_heads, : size.head_dim]
            state[f"{attention.name}.proj.weight"] = columns.flatten(1)
            for name, dim in attention_kind(attn).per_head.items():
                part = getattr(attn, name)
                if part is not None:
                    state[f"{attention.name}.{name}"] = part.narrow(dim, 0, size.num_heads)
            names = {id(module): name for name, module in mlp.named_children()}
            for layer, rows in input_layers(mlp):
                for name, part in _named(ffn.name, names[id(layer)], layer):
                    neurons = torch.unflatten(part, 0, (rows, -1))[:, : size.hidden_dim]
                    state[name] = neurons.flatten(0, 1)
            state[f"{ffn.name}.fc2.weight"] = mlp.fc2.weight[:, : size.hidden_dim]
        return state

    @contextmanager
    def _sized(self, blocks: Sequence[BlockShape]) -> Iterator[None]:
        """Let the attentions of the largest model count heads as those of a level."""
        attentions = [attention.module for attention, _ in branches(self.largest)]
        before = [(attn.num_heads, attn.head_dim, attn.scale) for attn in attentions]
        try:
            for attn, size in zip(attentions, blocks, strict=True):
                if size.head_dim != attn.head_dim:
                    attn.scale = size.head_dim**-0.5
                set_sizes(attn, size.num_heads, size.head_dim)
            yield
        finally:
            for attn, (num_heads, head_dim, scale) in zip(attentions, before, strict=True):
                attn.scale = scale
                set_sizes(attn, num_heads, head_dim)


def _named(branch: str, name: str, layer: nn.Linear) -> list[tuple[str, torch.Tensor]]:
    """Return the weight and the bias of a layer with their names in the model."""
    parts = [(f"{branch}.{name}.weight", layer.weight)]
    return parts if layer.bias is None else [*parts, (f"{branch}.{name}.bias", layer.bias)]


def _cut_rows(part: torch.Tensor, attn: Any, size: BlockShape) -> torch.Tensor:
    """Return the rows of qkv's weight or bias for fewer heads of fewer dimensions."""
    rows = torch.unflatten(part, 0, (3, attn.num_heads, attn.head_dim))
    rows = rows[:, : size.num_heads, : size.head_dim]
    if size.head_dim != attn.head_dim:  # timm's scale follows from the size of a head
        queries, others = rows[:1], rows[1:]
        rows = torch.cat([queries * (attn.scale * size.head_dim**0.5), others])
    return rows.flatten(0, 2)


def _check_nested(largest: Sequence[BlockShape], levels: Sequence[ElasticLevel]) -> None:
    if not levels or tuple(levels[0].blocks) != tuple(largest):
        raise InputError("The first of `levels` must have the blocks of the largest model.")
    for number, (large, small) in enumerate(pairwise(levels), start=1):
        if len(small.blocks) != len(large.blocks):
            raise InputError(f"Level {number} must have {len(large.blocks)} blocks.")
        pairs = zip(large.blocks, small.blocks, strict=True)
        sizes = [(vars(old).values(), vars(new).values()) for old, new in pairs]
        if any(b > a or b < 1 for old, new in sizes for a, b in zip(old, new, strict=True)):
            raise InputError(f"Level {number} must be nowhere larger than the level before it.")
