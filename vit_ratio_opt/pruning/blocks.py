"""Where the parts of a block are: the one place that knows timm's kinds of blocks and FFNs.

Whatever its block looks like, a residual branch adds ``after(module(before(stream)))`` to the
stream, and its module ends in a linear layer whose inputs are its units: the dimensions of heads
(``proj``) or the hidden neurons (``fc2``). Branches of one *stage* read the same stream; the next
stage reads what they have added up to.

===================== ============================== ===================================
block                 stages                         before, after
===================== ============================== ===================================
Block                 attention, then FFN            norm, LayerScale
ResPostBlock          attention, then FFN            nothing, norm
ParallelThingsBlock   several attentions, then       norm, LayerScale
                      as many FFNs
ParallelBlock         attention and FFN              one norm, one LayerScale for both
===================== ============================== ===================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention, GluMlp, Mlp, SwiGLU
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

__all__ = [
    "BLOCKS",
    "FFNS",
    "Branch",
    "ParallelBlock",
    "branches",
    "input_layers",
    "keeps_ranks",
    "separate_names",
    "separate_parallel",
    "stages",
]


@dataclass(frozen=True)
class Branch:
    """A residual branch of one block.

    Args:
        name: Of the module in the model, for messages.
        owner: The module that holds it.
        attribute: Under this name.
        before: What the stream passes through first.
        after: What the module's output passes through before it is added.
    """

    name: str
    owner: nn.Module
    attribute: str
    before: nn.Module
    after: nn.Module

    @property
    def module(self) -> Any:
        """The attention or the FFN."""
        return getattr(self.owner, self.attribute)

    def replace(self, module: nn.Module) -> None:
        """Put another module in its place."""
        setattr(self.owner, self.attribute, module)

    @property
    def last_name(self) -> str:
        """What the module calls the linear layer that it ends in."""
        return "proj" if hasattr(self.module, "proj") else "fc2"

    @property
    def last(self) -> nn.Linear:
        """That layer."""
        layer: nn.Linear = getattr(self.module, self.last_name)
        return layer

    @property
    def entry(self) -> nn.Module:
        """What is given the stream."""
        module: nn.Module = self.module
        return module if isinstance(self.before, nn.Identity) else self.before


class ParallelBlock(nn.Module):
    """timm's ``ParallelScalingBlock`` (Dehghani 2023, arXiv 2302.05442) in separate layers.

    timm keeps fc1 and qkv in one matrix, and can have no other number of heads than the width
    says. The same weights in its ``Attention`` and ``Mlp`` can be cut.

    Args:
        block: timm's; its weights are not taken, see :func:`separate_names`.
    """

    def __init__(self, block: ParallelScalingBlock) -> None:
        super().__init__()
        width, heads = block.in_norm.normalized_shape[0], block.num_heads
        bias = block.attn_out_proj.bias is not None
        self.norm = block.in_norm
        self.attn = Attention(
            width,
            num_heads=heads,
            qkv_bias=block.in_proj.bias is not None,
            proj_bias=bias,
            attn_drop=block.attn_drop.p,
        )
        self.attn.q_norm, self.attn.k_norm = block.q_norm, block.k_norm
        self.mlp = Mlp(width, hidden_features=block.in_split[0], bias=(True, bias))
        self.mlp.act, self.mlp.drop1 = block.mlp_act, block.mlp_drop
        self.ls, self.drop_path = block.ls, block.drop_path

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Streams ``(batch, tokens, width)``."""
        y = self.norm(x)
        y = self.attn(y, attn_mask=attn_mask, is_causal=is_causal) + self.mlp(y)
        out: torch.Tensor = x + self.drop_path(self.ls(y))
        return out


BLOCKS = (Block, ResPostBlock, ParallelThingsBlock, ParallelBlock)
"""Blocks that can be pruned. Compared exactly: a subclass may compute something else."""

FFNS = (Mlp, GluMlp, SwiGLU)
"""FFNs that can be pruned."""


def stages(model: VisionTransformer) -> Iterator[list[tuple[int, str, Branch]]]:
    """The residual branches of all blocks in the order in which they run, stage by stage.

    Yields:
        Of each branch its index among those of its kind, ``"attention"`` or ``"ffn"``, and itself.
    """
    index = 0
    for number, block in enumerate(model.blocks):
        where = f"blocks.{number}"
        if isinstance(block, ParallelThingsBlock):
            for kind, part, name in (("attention", "attns", "attn"), ("ffn", "ffns", "mlp")):
                yield [
                    (
                        index + i,
                        kind,
                        Branch(f"{where}.{part}.{i}.{name}", own, name, own.norm, own.ls),
                    )
                    for i, own in enumerate(getattr(block, part))
                ]
            index += len(block.attns)
            continue
        if isinstance(block, ParallelBlock):
            around = [(block.norm, block.ls)] * 2
        elif isinstance(block, ResPostBlock):
            around = [(nn.Identity(), block.norm1), (nn.Identity(), block.norm2)]
        else:
            around = [(block.norm1, block.ls1), (block.norm2, block.ls2)]
        attention, ffn = (
            (index, kind, Branch(f"{where}.{name}", block, name, *norms))
            for (kind, name), norms in zip(
                (("attention", "attn"), ("ffn", "mlp")), around, strict=True
            )
        )
        if isinstance(block, ParallelBlock):
            yield [attention, ffn]
        else:
            yield [attention]
            yield [ffn]
        index += 1


def branches(model: VisionTransformer) -> list[tuple[Branch, Branch]]:
    """The i-th attention and the i-th FFN of the model, for every i.

    They are the blocks of a :class:`~vit_ratio_opt.geometry.ViTShape`: a block that has several in
    parallel counts as so many.
    """
    by_kind: dict[str, list[Branch]] = {"attention": [], "ffn": []}
    for stage in stages(model):
        for _, kind, branch in stage:
            by_kind[kind].append(branch)
    return list(zip(by_kind["attention"], by_kind["ffn"], strict=True))


def input_layers(ffn: nn.Module) -> list[tuple[nn.Linear, int]]:
    """The layers that hidden neurons are made of, and how many rows a neuron has in each.

    The rows of a gated FFN's ``fc1`` are those of the gate and of what it gates, one after the
    other.
    """
    if isinstance(ffn, SwiGLU):
        return [(ffn.fc1_g, 1), (ffn.fc1_x, 1)]
    assert isinstance(ffn, (Mlp, GluMlp))
    return [(ffn.fc1, 2 if isinstance(ffn, GluMlp) else 1)]


def keeps_ranks(attn: Attention) -> bool:
    """Whether heads can be given a lower rank: not where queries or keys pass through a norm."""
    return isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)


def separate_parallel(model: VisionTransformer) -> None:
    """Make every ``ParallelScalingBlock`` of ``model`` a :class:`ParallelBlock`, in place."""
    if not any(type(block) is ParallelScalingBlock for block in getattr(model, "blocks", ())):
        return
    state = separate_names(model.state_dict())
    for index, block in enumerate(model.blocks):
        if type(block) is ParallelScalingBlock and block.out_proj is None:
            model.blocks[index] = ParallelBlock(block).to(block.in_proj.weight.device)
    model.load_state_dict(state, assign=True)


def separate_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of :class:`ParallelBlock` from one of timm's; any other one as it is."""
    separate = dict(state)
    for matrix in [key for key in state if key.endswith(".in_proj.weight")]:
        block, width = matrix.removesuffix("in_proj.weight"), state[matrix].shape[-1]
        for old in [key for key in separate if key.startswith(block)]:
            tensor, name = separate.pop(old), old.removeprefix(block)
            if name.startswith("in_proj."):  # [fc1, queries, keys, values]
                name = name.removeprefix("in_proj.")
                hidden = len(tensor) - 3 * width
                separate[f"{block}mlp.fc1.{name}"] = tensor[:hidden].clone()
                separate[f"{block}attn.qkv.{name}"] = tensor[hidden:].clone()
                continue
            for part, new in _SEPARATE.items():
                name = re.sub(f"^{part}", new, name)
            separate[block + name] = tensor
    return separate


_SEPARATE = {
    "mlp_bias$": "mlp.fc1.bias",
    "attn_out_proj": "attn.proj",
    "mlp_out_proj": "mlp.fc2",
    "in_norm": "norm",
    "([qk]_norm)": r"attn.\1",
}
